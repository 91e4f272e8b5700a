// SPDX-License-Identifier: Apache-2.0
// The Mamba-2 scan and its gradient step by step in double precision, and checks of an implementation against them.
// Included by one test program per implementation, which defines run_forward and run_backward.
#pragma once

#include <algorithm>
#include <string>

#include "arrays.h"
#include "kernels/common/mamba_chunk_scan.h"

namespace mamba_chunk_scan_cases {
namespace {

using namespace fgk;
using namespace arrays;

// The calls under test.
void run_forward(const ChunkScanForward& args);
void run_backward(const ChunkScanBackward& args);

struct Shape {
  int64_t batch, length, heads, channels, groups, states;
  int64_t lead = 0;  // elements by which the sequences start off an aligned address
  // Sequences are slices of wider rows, as those of a model are, and x's heads and channels are transposed.
  bool sliced = false;
};

enum class D { none, head, channel };

struct Options {
  D d = D::head;
  bool z = true, dt_bias = true, initial_states = false, seq_idx = false, dt_softplus = true;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
  double decay = 1;     // the size of A; 0: no decay at all
  double dt_scale = 1;  // of the steps before the bias
};

// (batch, length, rows, columns), rows being heads or groups.
struct Block {
  Array array;
  int64_t rows, columns, batch, position, row, column, length, samples;

  Block(DType dtype, const Shape& s, int64_t row_count, int64_t column_count, bool plain = false)
      : rows(row_count), columns(column_count), length(s.length), samples(s.batch) {
    const bool sliced = s.sliced && !plain;
    row = sliced ? 1 : columns;
    column = sliced ? rows : 1;
    position = rows * columns + (sliced ? 5 : 0);
    batch = position * length;
    const int64_t count = samples * length * rows * columns;
    const int64_t span = count == 0 ? 0 : at(samples - 1, length - 1, rows - 1, columns - 1) + 1;
    array = Array(dtype, span, plain ? 0 : s.lead);
  }
  int64_t at(int64_t b, int64_t t, int64_t i, int64_t p) const {
    return b * batch + t * position + i * row + p * column;
  }
  double get(int64_t b, int64_t t, int64_t i, int64_t p) const { return array.get(at(b, t, i, p)); }
  template <class Body>
  void each(const Body& body) const {
    for (int64_t b = 0; b < samples; ++b) {
      for (int64_t t = 0; t < length; ++t) {
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t p = 0; p < columns; ++p) body(b, t, i, p);
        }
      }
    }
  }
  void fill(const std::function<double()>& draw) {
    each([&](int64_t b, int64_t t, int64_t i, int64_t p) { array.set(at(b, t, i, p), draw()); });
  }
  HeadSequence sequence() { return {array.data(), batch, position, row, columns == 1 ? 0 : column, array.count()}; }
  HeadProjection projection() { return {array.data(), batch, position, row, column, array.count()}; }
};

struct Problem {
  DType dtype;
  Shape s;
  Options o;
  Block x, dt, z, B, C;
  Array A, d, dt_bias, initial;
  std::vector<int32_t> seq_idx;
  ChunkScanForward args;

  Problem(std::mt19937& random, DType type, const Shape& shape, const Options& options)
      : dtype(type),
        s(shape),
        o(options),
        x(type, shape, shape.heads, shape.channels),
        dt(type, shape, shape.heads, 1),
        z(type, shape, shape.heads, options.z ? shape.channels : 0),
        B(type, shape, shape.groups, shape.states),
        C(type, shape, shape.groups, shape.states) {
    const DType acc = accumulation(type);
    for (Block* block : {&x, &z, &B, &C}) block->fill(normal(random));
    dt.fill(normal(random, o.dt_scale));
    A = Array(acc, s.heads);
    A.fill([&] { return -o.decay * std::exp(0.7 * normal(random)()); });
    if (o.d != D::none) {
      d = Array(acc, o.d == D::head ? s.heads : s.heads * s.channels);
      d.fill(normal(random));
    }
    if (o.dt_bias) {
      dt_bias = Array(acc, s.heads);
      dt_bias.fill([&] { return -1.5 + 0.5 * normal(random)(); });
    }
    if (o.initial_states) {
      initial = Array(acc, s.batch * s.heads * s.channels * s.states);
      initial.fill(normal(random));
    }
    if (o.seq_idx) {
      for (int64_t b = 0; b < s.batch; ++b) {
        int32_t sequence = static_cast<int32_t>(b % 2);  // 1: nothing comes from the initial state
        for (int64_t t = 0; t < s.length; ++t) {
          if (t > 0 && random() % 9 == 0) ++sequence;
          seq_idx.push_back(sequence);
        }
      }
    }
    args.dtype = dtype;
    args.batch = s.batch;
    args.length = s.length;
    args.heads = s.heads;
    args.channels = s.channels;
    args.groups = s.groups;
    args.states = s.states;
    args.x = x.sequence();
    args.dt = dt.sequence();
    if (o.z) args.z = z.sequence();
    args.A = A.data();
    args.D = d.data();
    args.D_per_channel = o.d == D::channel;
    args.dt_bias = dt_bias.data();
    args.B = B.projection();
    args.C = C.projection();
    args.initial_states = initial.data();
    args.seq_idx = seq_idx.empty() ? nullptr : seq_idx.data();
    args.dt_softplus = o.dt_softplus;
    args.dt_min = o.dt_min;
    args.dt_max = o.dt_max;
  }

  int64_t chunks() const { return chunk_scan_chunks(s.length); }
  int64_t state_at(int64_t b, int64_t i, int64_t p, int64_t n) const {
    return ((b * s.heads + i) * s.channels + p) * s.states + n;
  }
  int64_t checkpoint_at(int64_t b, int64_t chunk, int64_t i, int64_t p, int64_t n) const {
    return state_at(b * chunks() + chunk, i, p, n);
  }
  bool resets(int64_t b, int64_t t) const {
    if (seq_idx.empty()) return false;
    const size_t at = static_cast<size_t>(b * s.length + t);
    return t == 0 ? seq_idx[at] != 0 : seq_idx[at] != seq_idx[at - 1];
  }
};

// Everything that the operator computes, with gradients, in double precision. `magnitude`: with the absolute value of
// each factor instead, which bounds the sum of the sizes of each result's terms.
struct Evaluation {
  Block out, dx, ddt, dz, dB, dC;
  std::vector<double> final_states, checkpoints, dA, dd, ddt_bias, dinitial;

  Evaluation(const Problem& p, const Block* grad_out, const Array* grad_final, bool magnitude)
      : out(DType::f64, p.s, p.s.heads, p.s.channels, true),
        dx(DType::f64, p.s, p.s.heads, p.s.channels, true),
        ddt(DType::f64, p.s, p.s.heads, 1, true),
        dz(DType::f64, p.s, p.s.heads, p.o.z ? p.s.channels : 0, true),
        dB(DType::f64, p.s, p.s.groups, p.s.states, true),
        dC(DType::f64, p.s, p.s.groups, p.s.states, true),
        final_states(static_cast<size_t>(p.s.batch * p.s.heads * p.s.channels * p.s.states)),
        checkpoints(final_states.size() * static_cast<size_t>(p.chunks())),
        dA(static_cast<size_t>(p.s.heads)),
        dd(static_cast<size_t>(p.d.count())),
        ddt_bias(static_cast<size_t>(p.dt_bias.count())),
        dinitial(static_cast<size_t>(p.initial.count())),
        absolute_(magnitude) {
    for (Block* block : {&dB, &dC}) block->fill([] { return 0.0; });
    for (int64_t b = 0; b < p.s.batch; ++b) {
      for (int64_t i = 0; i < p.s.heads; ++i) head(p, grad_out, grad_final, b, i);
    }
  }

 private:
  double size(double x) const { return absolute_ ? std::fabs(x) : x; }

  struct Step {
    double dt, slope, decay;  // after softplus and clamp; its derivative by dt; 0 where the sequence changes
  };

  Step step(const Problem& p, int64_t b, int64_t t, int64_t i) const {
    const double raw = p.dt.get(b, t, i, 0) + (p.o.dt_bias ? p.dt_bias.get(i) : 0);
    const bool soft = p.o.dt_softplus && raw <= 20;
    const double smooth = soft ? std::log1p(std::exp(raw)) : raw;
    const bool free = smooth >= p.o.dt_min && smooth <= p.o.dt_max;
    const double dt = std::min(std::max(smooth, p.o.dt_min), p.o.dt_max);
    return {dt, free ? soft ? sigmoid(raw) : 1 : 0, p.resets(b, t) ? 0 : std::exp(dt * p.A.get(i))};
  }

  void head(const Problem& p, const Block* grad_out, const Array* grad_final, int64_t b, int64_t i) {
    const int64_t P = p.s.channels, N = p.s.states, L = p.s.length;
    const int64_t group = i / (p.s.heads / p.s.groups);
    std::vector<double> all(static_cast<size_t>((L + 1) * P * N), 0.0);  // the state before each step, and at last
    const auto h = [&](int64_t t, int64_t c, int64_t n) -> double& {
      return all[static_cast<size_t>((t * P + c) * N + n)];
    };
    const auto skip = [&](int64_t c) {
      return p.o.d == D::none ? 0.0 : size(p.d.get(p.o.d == D::head ? i : i * P + c));
    };
    for (int64_t c = 0; c < P && p.o.initial_states; ++c) {
      for (int64_t n = 0; n < N; ++n) h(0, c, n) = size(p.initial.get(p.state_at(b, i, c, n)));
    }
    for (int64_t t = 0; t < L; ++t) {
      const Step now = step(p, b, t, i);
      for (int64_t c = 0; c < P; ++c) {
        const double x = size(p.x.get(b, t, i, c));
        double y = skip(c) * x;
        for (int64_t n = 0; n < N; ++n) {
          if (t % kChunkScanChunk == 0) {
            checkpoints[static_cast<size_t>(p.checkpoint_at(b, t / kChunkScanChunk, i, c, n))] = h(t, c, n);
          }
          h(t + 1, c, n) = now.decay * h(t, c, n) + size(now.dt) * x * size(p.B.get(b, t, group, n));
          y += size(p.C.get(b, t, group, n)) * h(t + 1, c, n);
        }
        out.array.set(out.at(b, t, i, c), p.o.z ? y * size(silu(p.z.get(b, t, i, c))) : y);
      }
    }
    for (int64_t c = 0; c < P; ++c) {
      for (int64_t n = 0; n < N; ++n) final_states[static_cast<size_t>(p.state_at(b, i, c, n))] = h(L, c, n);
    }
    if (grad_out != nullptr) head_gradient(p, *grad_out, grad_final, b, i, group, h, skip);
  }

  template <class State, class Skip>
  void head_gradient(const Problem& p, const Block& grad_out, const Array* grad_final, int64_t b, int64_t i,
                     int64_t group, const State& h, const Skip& skip) {
    const int64_t P = p.s.channels, N = p.s.states;
    std::vector<double> g(static_cast<size_t>(P * N), 0.0);  // by the state after the step
    for (int64_t k = 0; k < P * N && grad_final != nullptr; ++k) {
      g[static_cast<size_t>(k)] = size(grad_final->get(p.state_at(b, i, 0, 0) + k));
    }
    const double a = size(p.A.get(i));
    for (int64_t t = p.s.length - 1; t >= 0; --t) {
      const Step now = step(p, b, t, i);
      const double dt = size(now.dt);
      double by_dt = 0, by_exponent = 0;
      for (int64_t c = 0; c < P; ++c) {
        const double x = size(p.x.get(b, t, i, c));
        double gy = size(grad_out.get(b, t, i, c));
        double y = skip(c) * x;
        for (int64_t n = 0; n < N; ++n) y += size(p.C.get(b, t, group, n)) * h(t + 1, c, n);
        if (p.o.z) {
          const double z = p.z.get(b, t, i, c);
          dz.array.set(dz.at(b, t, i, c), gy * y * (absolute_ ? silu_slope_terms(z) : silu_slope(z)));
          gy *= size(silu(z));
        }
        if (p.o.d != D::none) dd[static_cast<size_t>(p.o.d == D::head ? i : i * P + c)] += gy * x;
        double by_x = gy * skip(c);
        for (int64_t n = 0; n < N; ++n) {
          const double B = size(p.B.get(b, t, group, n));
          double& gh = g[static_cast<size_t>(c * N + n)];
          gh += gy * size(p.C.get(b, t, group, n));
          add(dC, dC.at(b, t, group, n), gy * h(t + 1, c, n));
          add(dB, dB.at(b, t, group, n), gh * dt * x);
          by_x += gh * dt * B;
          by_dt += gh * x * B;
          by_exponent += gh * now.decay * h(t, c, n);
          gh *= now.decay;
        }
        dx.array.set(dx.at(b, t, i, c), by_x);
      }
      dA[static_cast<size_t>(i)] += dt * by_exponent;
      const double by_raw = now.slope * (by_dt + a * by_exponent);
      ddt.array.set(ddt.at(b, t, i, 0), by_raw);
      if (p.o.dt_bias) ddt_bias[static_cast<size_t>(i)] += by_raw;
    }
    for (int64_t k = 0; k < P * N && p.o.initial_states; ++k) {
      dinitial[static_cast<size_t>(p.state_at(b, i, 0, 0) + k)] = g[static_cast<size_t>(k)];
    }
  }

  // The sizes of silu's derivative's terms, which cancel near -1.28.
  static double silu_slope_terms(double z) { return sigmoid(z) * (1 + std::fabs(z) * sigmoid(-z)); }

  static void add(Block& block, int64_t at, double x) { block.array.set(at, block.array.get(at) + x); }

  bool absolute_;
};

// `terms` is the sum of the terms' sizes. A product of decays has a relative error that grows with its factors, and
// `factors` is that of the factors of an implementation that multiplies on tensor cores.
double tolerance(const Problem& p, DType stored, double expected, double terms, double factors) {
  const double sums = unit_roundoff(accumulation(p.dtype)) * (64 + 4 * static_cast<double>(p.s.length));
  const double smallest = stored == DType::f16 ? 0x1p-25 : 1e-30;
  return (factors + sums) * terms + 1.01 * unit_roundoff(stored) * std::fabs(expected) + smallest;
}

void compare(const std::string& what, const Problem& p, DType stored, double got, double expected, double terms,
             double factors) {
  const double allowed = tolerance(p, stored, expected, terms, factors);
  if (std::fabs(got - expected) <= allowed) return;
  check::fail(__FILE__, __LINE__) << what << " is " << got << ", expected " << expected << ": an error of "
                                  << std::fabs(got - expected) << " where " << allowed << " is allowed ("
                                  << dtype_bytes(p.dtype) << " bytes, length " << p.s.length << ")\n";
}

void compare(const std::string& what, const Problem& p, const Block& got, const Block& expected, const Block& terms,
             double factors) {
  got.each([&](int64_t b, int64_t t, int64_t i, int64_t c) {
    const std::string place = what + " at (" + std::to_string(b) + ", " + std::to_string(t) + ", " + std::to_string(i) +
                              ", " + std::to_string(c) + ")";
    compare(place, p, p.dtype, got.get(b, t, i, c), expected.get(b, t, i, c), terms.get(b, t, i, c), factors);
  });
}

void compare(const std::string& what, const Problem& p, const Array& got, const std::vector<double>& expected,
             const std::vector<double>& terms, double factors) {
  for (int64_t k = 0; k < got.count(); ++k) {
    const size_t at = static_cast<size_t>(k);
    compare(what + " at " + std::to_string(k), p, accumulation(p.dtype), got.get(k), expected[at], terms[at], factors);
  }
}

// `factors`: see tolerance().
void check_forward(std::mt19937& random, DType dtype, const Shape& s, const Options& o, double factors = 0,
                   bool states = true) {
  Problem p(random, dtype, s, o);
  const Evaluation expected(p, nullptr, nullptr, false), terms(p, nullptr, nullptr, true);
  const DType acc = accumulation(dtype);
  Block out(dtype, s, s.heads, s.channels, true);
  Array final_states(acc, states ? static_cast<int64_t>(expected.final_states.size()) : 0);
  Array checkpoints(acc, states ? static_cast<int64_t>(expected.checkpoints.size()) : 0);
  p.args.out = out.sequence();
  p.args.final_states = final_states.data();
  p.args.checkpoints = checkpoints.data();
  run_forward(p.args);
  compare("out", p, out, expected.out, terms.out, factors);
  compare("final_states", p, final_states, expected.final_states, terms.final_states, factors);
  compare("checkpoints", p, checkpoints, expected.checkpoints, terms.checkpoints, factors);
}

// The gradient from checkpoints that are right.
void check_backward(std::mt19937& random, DType dtype, const Shape& s, const Options& o, bool grad_final = true,
                    double factors = 0) {
  Problem p(random, dtype, s, o);
  const DType acc = accumulation(dtype);
  const int64_t state_count = s.batch * s.heads * s.channels * s.states;
  Block grad_out(dtype, s, s.heads, s.channels);
  grad_out.fill(normal(random));
  Array grad_final_states(acc, grad_final ? state_count : 0);
  grad_final_states.fill(normal(random));
  const Array* final_gradient = grad_final ? &grad_final_states : nullptr;
  const Evaluation expected(p, &grad_out, final_gradient, false), terms(p, &grad_out, final_gradient, true);
  Array checkpoints(acc, static_cast<int64_t>(expected.checkpoints.size()));
  for (int64_t k = 0; k < checkpoints.count(); ++k) checkpoints.set(k, expected.checkpoints[static_cast<size_t>(k)]);

  Block dx(dtype, s, s.heads, s.channels, true), ddt(dtype, s, s.heads, 1, true);
  Block dz(dtype, s, s.heads, o.z ? s.channels : 0, true);
  Block dB(dtype, s, s.groups, s.states, true), dC(dtype, s, s.groups, s.states, true);
  Array dA(acc, s.heads), dd(acc, p.d.count()), ddt_bias(acc, p.dt_bias.count()), dinitial(acc, p.initial.count());
  ChunkScanBackward args;
  args.forward = p.args;
  args.grad_out = grad_out.sequence();
  args.grad_final_states = grad_final_states.data();
  args.checkpoints = checkpoints.data();
  args.dx = dx.sequence();
  args.ddt = ddt.sequence();
  if (o.z) args.dz = dz.sequence();
  args.dA = dA.data();
  args.dD = dd.data();
  args.ddt_bias = ddt_bias.data();
  args.dB = dB.projection();
  args.dC = dC.projection();
  args.dinitial_states = dinitial.data();
  run_backward(args);
  compare("dx", p, dx, expected.dx, terms.dx, factors);
  compare("ddt", p, ddt, expected.ddt, terms.ddt, factors);
  compare("dz", p, dz, expected.dz, terms.dz, factors);
  compare("dB", p, dB, expected.dB, terms.dB, factors);
  compare("dC", p, dC, expected.dC, terms.dC, factors);
  compare("dA", p, dA, expected.dA, terms.dA, factors);
  compare("dD", p, dd, expected.dd, terms.dd, factors);
  compare("ddt_bias", p, ddt_bias, expected.ddt_bias, terms.ddt_bias, factors);
  compare("dinitial_states", p, dinitial, expected.dinitial, terms.dinitial, factors);
}

}  // namespace
}  // namespace mamba_chunk_scan_cases
