// SPDX-License-Identifier: Apache-2.0
// The causal convolution by its definition in double precision, and checks of an implementation against it. Included by
// one test program per implementation, which defines run_forward, run_backward and run_update.
#pragma once

#include <algorithm>

#include "arrays.h"
#include "kernels/common/causal_conv1d.h"

namespace causal_conv1d_cases {
namespace {

using namespace fgk;
using namespace arrays;

// The calls under test.
void run_forward(const CausalConvForward& args);
void run_backward(const CausalConvBackward& args);
void run_update(const CausalConvUpdate& args);

struct Shape {
  int64_t batch, channels, length;
  int width;
  bool channel_last = false;
  int64_t lead = 0;   // elements by which the sequences start off an aligned address
  int64_t pitch = 0;  // elements between rows that belong to nobody
  int64_t shift = 0;  // elements by which results start further off than what they come from
};

// The shape of results.
Shape shifted(Shape s) {
  s.lead += s.shift;
  return s;
}

struct Options {
  bool silu = true, bias = true, initial_state = false, seq_idx = false;
};

// A sequence (batch, channels, length) laid out as the shape says.
struct Sequence {
  Array array;
  ConvSequence view;

  Sequence(DType dtype, const Shape& s, int64_t length) {
    if (s.channel_last) {
      view.channel = 1;
      view.position = s.channels + s.pitch;
      view.batch = length * view.position;
    } else {
      view.position = 1;
      view.channel = length + s.pitch;
      view.batch = s.channels * view.channel;
    }
    const bool any = s.batch > 0 && s.channels > 0 && length > 0;
    view.span = any ? at(s.batch - 1, s.channels - 1, length - 1) + 1 : 0;
    array = Array(dtype, view.span, s.lead);
  }
  int64_t at(int64_t b, int64_t c, int64_t t) const { return b * view.batch + c * view.channel + t * view.position; }
  double get(int64_t b, int64_t c, int64_t t) const { return array.get(at(b, c, t)); }
  void fill(const Shape& s, int64_t length, const std::function<double()>& draw) {
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t c = 0; c < s.channels; ++c) {
        for (int64_t t = 0; t < length; ++t) array.set(at(b, c, t), draw());
      }
    }
  }
  ConvSequence sealed() {
    ConvSequence out = view;
    out.data = array.data();
    return out;
  }
};

struct Problem {
  DType dtype;
  Shape s;
  Options o;
  Sequence x;
  Array weight, bias, initial;
  std::vector<int32_t> seq_idx;
  CausalConvForward args;

  Problem(std::mt19937& random, DType type, const Shape& shape, const Options& options)
      : dtype(type), s(shape), o(options), x(type, shape, shape.length) {
    const DType acc = accumulation(type);
    x.fill(s, s.length, normal(random));
    weight = Array(acc, s.channels * s.width);
    weight.fill(normal(random));
    if (o.bias) {
      bias = Array(acc, s.channels);
      bias.fill(normal(random));
    }
    if (o.initial_state) {
      initial = Array(acc, s.batch * s.channels * (s.width - 1));
      initial.fill(normal(random));
    }
    if (o.seq_idx) {
      for (int64_t b = 0; b < s.batch; ++b) {
        int32_t sequence = static_cast<int32_t>(random() % 3);
        for (int64_t t = 0; t < s.length; ++t) {
          seq_idx.push_back(sequence);
          if (random() % 5 == 0) sequence += 1 + static_cast<int32_t>(random() % 2);
        }
      }
    }
    args.dtype = dtype;
    args.batch = s.batch;
    args.channels = s.channels;
    args.length = s.length;
    args.width = s.width;
    args.silu = o.silu;
    args.x = x.sealed();
    args.weight = weight.data();
    args.bias = bias.data();
    args.seq_idx = seq_idx.empty() ? nullptr : seq_idx.data();
    args.initial_state = initial.data();
  }

  int32_t sequence(int64_t b, int64_t t) const {
    return seq_idx.empty() ? 0 : seq_idx[static_cast<size_t>(b * s.length + t)];
  }
  // Whether tap j of step t reads something, and if so which position: those before 0 are the initial state's.
  bool reads(int64_t b, int64_t t, int j, int64_t& position) const {
    position = t - (s.width - 1) + j;
    if (position < 0 && initial.count() == 0) return false;
    return sequence(b, t) == sequence(b, std::max<int64_t>(position, 0));
  }
  int64_t initial_at(int64_t b, int64_t c, int64_t position) const {
    return (b * s.channels + c) * (s.width - 1) + position + s.width - 1;
  }
  double value(int64_t b, int64_t c, int64_t position) const {
    return position < 0 ? initial.get(initial_at(b, c, position)) : x.get(b, c, position);
  }
  double w(int64_t c, int j) const { return weight.get(c * s.width + j); }
  // The sum before the activation, and the sum of its terms' sizes.
  double sum(int64_t b, int64_t c, int64_t t, double& size) const {
    double total = o.bias ? bias.get(c) : 0;
    size = std::fabs(total);
    for (int j = 0; j < s.width; ++j) {
      int64_t position;
      if (!reads(b, t, j, position)) continue;
      const double term = w(c, j) * value(b, c, position);
      total += term;
      size += std::fabs(term);
    }
    return total;
  }
};

// A few roundings of the terms, and one of the result.
double tolerance(DType dtype, double expected, double size) {
  return 32 * unit_roundoff(accumulation(dtype)) * size + 1.01 * unit_roundoff(dtype) * std::fabs(expected) + 1e-30 +
         (dtype == DType::f16 ? 0x1p-25 : 0);
}

void check_forward(std::mt19937& random, DType dtype, const Shape& s, const Options& o) {
  Problem p(random, dtype, s, o);
  Sequence out(dtype, shifted(s), s.length);
  p.args.out = out.sealed();
  run_forward(p.args);
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t c = 0; c < s.channels; ++c) {
      for (int64_t t = 0; t < s.length; ++t) {
        double size;
        double expected = p.sum(b, c, t, size);
        if (o.silu) expected = silu(expected);
        CHECK_NEAR(out.get(b, c, t), expected, tolerance(dtype, expected, size));
      }
    }
  }
}

// Gradients by the definition, each with the sum of its terms' sizes.
void check_backward(std::mt19937& random, DType dtype, const Shape& s, const Options& o) {
  Problem p(random, dtype, s, o);
  Sequence grad(dtype, s, s.length), dx(dtype, shifted(s), s.length);
  grad.fill(s, s.length, normal(random));
  const DType acc = accumulation(dtype);
  Array dweight(acc, p.weight.count()), dbias(acc, p.bias.count()), dinitial(acc, p.initial.count());
  CausalConvBackward args;
  args.forward = p.args;
  args.grad_out = grad.sealed();
  args.dx = dx.sealed();
  args.dweight = dweight.data();
  args.dbias = dbias.data();
  args.dinitial_state = dinitial.data();
  run_backward(args);

  struct Sum {
    std::vector<double> value, size;
    explicit Sum(int64_t n) : value(static_cast<size_t>(n)), size(static_cast<size_t>(n)) {}
    void add(int64_t i, double term, double term_size) {
      value[static_cast<size_t>(i)] += term;
      size[static_cast<size_t>(i)] += term_size;
    }
  };
  Sum to_x(dx.array.count()), to_weight(dweight.count()), to_bias(dbias.count()), to_initial(dinitial.count());
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t c = 0; c < s.channels; ++c) {
      for (int64_t t = 0; t < s.length; ++t) {
        double size;
        const double pre = p.sum(b, c, t, size);
        double g = grad.get(b, c, t);
        double g_size = std::fabs(g);
        if (o.silu) {
          g_size *= 1.1 + size;  // of the slope, and of what an error of the sum makes of it
          g *= silu_slope(pre);
        }
        if (o.bias) to_bias.add(c, g, g_size);
        for (int j = 0; j < s.width; ++j) {
          int64_t position;
          if (!p.reads(b, t, j, position)) continue;
          const double v = p.value(b, c, position), w = p.w(c, j);
          to_weight.add(c * s.width + j, g * v, g_size * std::fabs(v));
          if (position < 0) {
            to_initial.add(p.initial_at(b, c, position), g * w, g_size * std::fabs(w));
          } else {
            to_x.add(dx.at(b, c, position), g * w, g_size * std::fabs(w));
          }
        }
      }
    }
  }
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t c = 0; c < s.channels; ++c) {
      for (int64_t t = 0; t < s.length; ++t) {
        const size_t i = static_cast<size_t>(dx.at(b, c, t));
        CHECK_NEAR(dx.get(b, c, t), to_x.value[i], tolerance(dtype, to_x.value[i], to_x.size[i]));
      }
    }
  }
  const auto check_all = [&](const Array& got, const Sum& expected) {
    for (int64_t i = 0; i < got.count(); ++i) {
      const size_t k = static_cast<size_t>(i);
      CHECK_NEAR(got.get(i), expected.value[k], tolerance(acc, expected.value[k], expected.size[k]));
    }
  };
  check_all(dweight, to_weight);
  check_all(dbias, to_bias);
  check_all(dinitial, to_initial);
}

struct UpdateOptions {
  int64_t state_length;
  bool silu = true, bias = true;
  bool ring = false;     // cache_seqlens
  bool entries = false;  // rows of the state in an order of their own, with rows that no batch entry uses
};

// `s.length` new positions after a state.
void check_update(std::mt19937& random, DType dtype, const Shape& s, const UpdateOptions& o) {
  Problem p(random, dtype, s, {o.silu, o.bias, false, false});
  Shape state_shape = s;
  state_shape.batch = o.entries ? s.batch + 3 : s.batch;
  Sequence state(dtype, state_shape, o.state_length), out(dtype, s, s.length);
  state.fill(state_shape, o.state_length, normal(random));
  const Sequence before = state;
  std::vector<int32_t> entry(static_cast<size_t>(state_shape.batch)), filled(static_cast<size_t>(s.batch));
  for (size_t i = 0; i < entry.size(); ++i) entry[i] = static_cast<int32_t>(i);
  if (o.entries) std::shuffle(entry.begin(), entry.end(), random);
  for (int32_t& n : filled) n = static_cast<int32_t>(random() % 40);

  CausalConvUpdate args;
  args.dtype = dtype;
  args.batch = s.batch;
  args.channels = s.channels;
  args.steps = s.length;
  args.width = s.width;
  args.silu = o.silu;
  args.x = p.args.x;
  args.state = state.sealed();
  args.entries = state_shape.batch;
  args.state_length = o.state_length;
  args.entry = o.entries ? entry.data() : nullptr;
  args.cache_seqlens = o.ring ? filled.data() : nullptr;
  args.weight = p.args.weight;
  args.bias = p.args.bias;
  args.out = out.sealed();
  run_update(args);

  Sequence after = before;
  for (int64_t b = 0; b < s.batch; ++b) {
    const int64_t e = entry[static_cast<size_t>(b)];
    // Where in the state the position `t` lies, 0 being the first new one.
    const auto place = [&](int64_t t) {
      const int64_t n = o.state_length;
      return o.ring ? ((filled[static_cast<size_t>(b)] + t) % n + n) % n : t + n;
    };
    for (int64_t c = 0; c < s.channels; ++c) {
      for (int64_t t = 0; t < s.length; ++t) {
        double total = o.bias ? p.bias.get(c) : 0;
        double size = std::fabs(total);
        for (int j = 0; j < s.width; ++j) {
          const int64_t position = t - (s.width - 1) + j;
          const double v = position < 0 ? before.get(e, c, place(position)) : p.x.get(b, c, position);
          total += p.w(c, j) * v;
          size += std::fabs(p.w(c, j) * v);
        }
        const double expected = o.silu ? silu(total) : total;
        CHECK_NEAR(out.get(b, c, t), expected, tolerance(dtype, expected, size));
      }
      for (int64_t i = 0; i < o.state_length && !o.ring; ++i) {
        const int64_t from = i + s.length;  // of the old state and the new positions in a row
        const double v = from < o.state_length ? before.get(e, c, from) : p.x.get(b, c, from - o.state_length);
        after.array.set(after.at(e, c, i), v);
      }
      for (int64_t t = 0; t < s.length && o.ring; ++t) after.array.set(after.at(e, c, place(t)), p.x.get(b, c, t));
    }
  }
  CHECK(state.array.bytes() == after.array.bytes());
}

}  // namespace
}  // namespace causal_conv1d_cases
