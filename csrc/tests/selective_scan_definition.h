// SPDX-License-Identifier: Apache-2.0
// The selective scan by its definition, step by step, with its gradients; problems of every form to give it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/common/selective_scan.h"
#include "strided_array.h"

namespace selective_scan_cases {

using namespace fgk;
using namespace strided_array;

namespace {

constexpr const auto& kTypes = arrays::kFloatTypes;

// What a case consists of.
struct Shape {
  DType dtype = DType::f32;
  int64_t batch = 2;
  int64_t directions = 1;
  int64_t channels = 3;
  int64_t groups = 1;
  int64_t length = 65;
  int64_t states = 4;
  bool constant_b = false;
  bool constant_c = false;
  bool d = true;
  bool z = true;
  bool bias = true;
  bool softplus = true;
  bool initial = false;  // initial state, and a gradient of the last one
  bool table = false;    // random permutations
  bool ordered = false;  // with a table: sequences are in scan order
  bool shared_u = true;  // with a table and not ordered: directions share u
  bool shared_parameters = false;
  Layout layout = Layout::dense;
};

// A batch of sequences and what they are multiplied by.
struct Problem {
  Shape shape;
  Array u, delta, z, A, D, bias, B, C, initial, grad_out, grad_last;
  std::vector<int32_t> table;

  Problem(std::mt19937& random, const Shape& s) : shape(s) {
    const DType acc = arrays::accumulation(s.dtype);
    const int64_t directions = s.directions;
    const int64_t parameter_rows = s.shared_parameters ? 1 : directions;
    const bool shared_u = s.table && !s.ordered && s.shared_u;
    u = Array(s.dtype, {s.batch, shared_u ? 1 : directions, s.channels, s.length}, s.layout);
    u.draw(random, -128, 128, 0x1p-6);
    delta = Array(s.dtype, {s.batch, directions, s.channels, s.length}, s.layout);
    if (s.softplus) {
      delta.draw(random, -192, 64, 0x1p-6);
    } else {
      delta.draw(random, 1, 128, 0x1p-8);
    }
    A = Array(acc, {parameter_rows, s.channels, s.states});
    A.draw(random, -255, -1, 0x1p-6);
    B = projection(random, s.constant_b);
    C = projection(random, s.constant_c);
    if (s.d) {
      D = Array(acc, {parameter_rows, s.channels});
      D.draw(random, -64, 64, 0x1p-6);
    }
    if (s.z) {
      z = Array(s.dtype, {s.batch, 1, s.channels, s.length}, s.layout);
      z.draw(random, -192, 192, 0x1p-6);
    }
    if (s.bias) {
      bias = Array(acc, {parameter_rows, s.channels});
      bias.draw(random, s.softplus ? -64 : 0, 64, 0x1p-8);
    }
    if (s.initial) {
      initial = Array(acc, {s.batch, directions, s.channels, s.states});
      initial.draw(random, -128, 128, 0x1p-6);
      grad_last = Array(acc, {s.batch, directions, s.channels, s.states});
      grad_last.draw(random, -128, 128, 0x1p-6);
    }
    grad_out = Array(s.dtype, {s.batch, 1, s.channels, s.length}, s.layout);
    grad_out.draw(random, -128, 128, 0x1p-6);
    for (int64_t k = 0; s.table && k < directions; ++k) {
      std::vector<int32_t> row(static_cast<size_t>(s.length));
      std::iota(row.begin(), row.end(), 0);
      std::shuffle(row.begin(), row.end(), random);
      table.insert(table.end(), row.begin(), row.end());
    }
  }

  int64_t chunks() const { return scan_chunks(shape.length); }
  int64_t group_of(int64_t channel) const { return channel / (shape.channels / shape.groups); }
  // Where step t of a direction reads u, delta, B and C, and where it reads z and writes.
  int64_t map_position(int64_t k, int64_t t) const {
    return table.empty() ? t : table[static_cast<size_t>(k * shape.length + t)];
  }
  int64_t input_position(int64_t k, int64_t t) const { return shape.ordered ? t : map_position(k, t); }

  // The place of a B, C or their gradient.
  static size_t place(const Array& p, bool constant, int64_t b, int64_t k, int64_t c, int64_t g, int64_t n, int64_t t) {
    return constant ? p.flat({k, c, n}) : p.flat({b, k, g, n, t});
  }

  SelectiveScanForward forward_args() {
    SelectiveScanForward args;
    args.dtype = shape.dtype;
    args.batch = shape.batch;
    args.directions = shape.directions;
    args.channels = shape.channels;
    args.groups = shape.groups;
    args.length = shape.length;
    args.states = shape.states;
    args.u = sequence(u);
    args.delta = sequence(delta);
    args.z = sequence(z);
    args.A = A.data();
    args.D = D.data();
    args.delta_bias = bias.data();
    args.shared_parameters = shape.shared_parameters;
    args.B = projection(B, shape.constant_b);
    args.C = projection(C, shape.constant_c);
    args.initial_state = initial.data();
    args.table = table.empty() ? nullptr : table.data();
    args.ordered = shape.ordered;
    args.delta_softplus = shape.softplus;
    return args;
  }

  static ScanSequence sequence(Array& a) {
    if (!a) return {};
    return {a.data(), a.step(0), a.step(1), a.step(2), a.step(3), a.span()};
  }

  static ScanProjection projection(Array& a, bool constant) {
    ScanProjection p;
    p.data = a.data();
    p.constant = constant;
    p.span = a.span();
    if (constant) {
      p.direction = a.step(0);
    } else {
      p.batch = a.step(0);
      p.direction = a.step(1);
      p.group = a.step(2);
      p.state = a.step(3);
      p.position = a.step(4);
    }
    return p;
  }

 private:
  Array projection(std::mt19937& random, bool constant) {
    const int64_t directions = shape.shared_parameters ? 1 : shape.directions;
    Array out = constant ? Array(arrays::accumulation(shape.dtype), {directions, shape.channels, shape.states})
                         : Array(shape.dtype, {shape.batch, shape.directions, shape.groups, shape.states, shape.length},
                                 shape.layout);
    out.draw(random, -128, 128, 0x1p-6);
    return out;
  }
};

// An array's numbers in the order of its sizes.
struct Values {
  std::vector<double> value;
  double terms = 0;  // of long sums: the largest sum of the magnitudes of what was added up
};

struct Results {
  Values out, last_state, checkpoints, du, ddelta, dz, dA, dD, dbias, dB, dC, dinitial;
};

template <class S>
struct Definition {
  const Problem& p;
  Results r;

  explicit Definition(const Problem& problem) : p(problem) {
    const Shape& s = p.shape;
    const size_t states = static_cast<size_t>(s.batch * s.directions * s.channels * s.states);
    r.last_state.value.resize(states);
    r.checkpoints.value.resize(states * static_cast<size_t>(p.chunks()));
    r.dinitial.value.resize(states);
    out.resize(p.grad_out.value.size());
    dz.resize(p.z.value.size());
    du.resize(p.u.value.size());
    ddelta.resize(p.delta.value.size());
    dA = Sums(p.A);
    dD = Sums(p.D);
    dbias = Sums(p.bias);
    dB = Sums(p.B);
    dC = Sums(p.C);
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t c = 0; c < s.channels; ++c) row(b, c);
    }
    r.out.value = doubles(out);
    r.dz.value = doubles(dz);
    r.du.value = doubles(du);
    r.ddelta.value = doubles(ddelta);
    r.dA = dA.values();
    r.dD = dD.values();
    r.dbias = dbias.values();
    r.dB = dB.values();
    r.dC = dC.values();
  }

 private:
  // Sums over steps or channels, and of the magnitudes of their terms.
  struct Sums {
    std::vector<S> total, size;
    Sums() = default;
    explicit Sums(const Array& like) : total(like.value.size()), size(like.value.size()) {}
    void add(size_t i, S term) {
      total[i] += term;
      size[i] += std::fabs(term);
    }
    Values values() const {
      const auto largest = std::max_element(size.begin(), size.end());
      return {doubles(total), largest == size.end() ? 0.0 : static_cast<double>(*largest)};
    }
  };

  std::vector<S> out, dz, du, ddelta;
  Sums dA, dD, dbias, dB, dC;

  static std::vector<double> doubles(const std::vector<S>& v) { return std::vector<double>(v.begin(), v.end()); }
  static S sigmoid(S x) { return 1 / (1 + std::exp(-x)); }

  // All directions of one channel of one batch entry.
  void row(int64_t b, int64_t c) {
    const Shape& s = p.shape;
    const size_t length = static_cast<size_t>(s.length);
    std::vector<S> y(length), gated(length);
    std::vector<std::vector<S>> states;
    for (int64_t k = 0; k < s.directions; ++k) states.push_back(forward(b, k, c, y));
    for (int64_t t = 0; t < s.length; ++t) {
      const size_t i = p.grad_out.flat({b, 0, c, t});
      const S g = static_cast<S>(p.grad_out.value[i]);
      const S gate = p.z ? static_cast<S>(p.z.value[i]) : S{0};
      const S sig = sigmoid(gate);
      out[i] = p.z ? y[static_cast<size_t>(t)] * gate * sig : y[static_cast<size_t>(t)];
      if (p.z) dz[i] = g * y[static_cast<size_t>(t)] * sig * (1 + gate * (1 - sig));
      gated[static_cast<size_t>(t)] = p.z ? g * gate * sig : g;
    }
    for (int64_t k = 0; k < s.directions; ++k) backward(b, k, c, gated, states[static_cast<size_t>(k)]);
  }

  S raw_delta(int64_t b, int64_t k, int64_t c, int64_t at) const {
    return static_cast<S>(p.delta.at({b, k, c, at})) + (p.bias ? static_cast<S>(p.bias.at({k, c})) : S{0});
  }
  S step_of(S raw) const { return p.shape.softplus && raw <= 20 ? std::log1p(std::exp(raw)) : raw; }

  // States after each step, the initial one before them; adds the outputs to y, in map order.
  std::vector<S> forward(int64_t b, int64_t k, int64_t c, std::vector<S>& y) {
    const Shape& s = p.shape;
    const int64_t g = p.group_of(c);
    std::vector<S> h(static_cast<size_t>((s.length + 1) * s.states));
    const size_t row = static_cast<size_t>((b * s.directions + k) * s.channels + c);
    for (int64_t n = 0; n < s.states; ++n) {
      if (p.initial) h[static_cast<size_t>(n)] = static_cast<S>(p.initial.at({b, k, c, n}));
    }
    for (int64_t t = 0; t < s.length; ++t) {
      const int64_t at = p.input_position(k, t);
      const S x = static_cast<S>(p.u.at({b, k, c, at}));
      const S dt = step_of(raw_delta(b, k, c, at));
      S sum = p.D ? static_cast<S>(p.D.at({k, c})) * x : S{0};
      for (int64_t n = 0; n < s.states; ++n) {
        const size_t i = static_cast<size_t>(t * s.states + n);
        if (t % kScanChunk == 0) {
          const size_t chunk = row * static_cast<size_t>(p.chunks()) + static_cast<size_t>(t / kScanChunk);
          r.checkpoints.value[chunk * static_cast<size_t>(s.states) + static_cast<size_t>(n)] =
              static_cast<double>(h[i]);
        }
        const S weight = static_cast<S>(p.B.value[Problem::place(p.B, s.constant_b, b, k, c, g, n, at)]);
        const S next = std::exp(dt * static_cast<S>(p.A.at({k, c, n}))) * h[i] + dt * weight * x;
        h[i + static_cast<size_t>(s.states)] = next;
        sum += static_cast<S>(p.C.value[Problem::place(p.C, s.constant_c, b, k, c, g, n, at)]) * next;
      }
      y[static_cast<size_t>(p.map_position(k, t))] += sum;
    }
    for (int64_t n = 0; n < s.states; ++n) {
      r.last_state.value[row * static_cast<size_t>(s.states) + static_cast<size_t>(n)] =
          static_cast<double>(h[static_cast<size_t>(s.length * s.states + n)]);
    }
    return h;
  }

  void backward(int64_t b, int64_t k, int64_t c, const std::vector<S>& grad, const std::vector<S>& h) {
    const Shape& s = p.shape;
    const int64_t group = p.group_of(c);
    std::vector<S> dh(static_cast<size_t>(s.states));
    for (int64_t n = 0; n < s.states; ++n) {
      if (p.grad_last) dh[static_cast<size_t>(n)] = static_cast<S>(p.grad_last.at({b, k, c, n}));
    }
    for (int64_t t = s.length; t-- > 0;) {
      const int64_t at = p.input_position(k, t);
      const S g = grad[static_cast<size_t>(p.map_position(k, t))];
      const S x = static_cast<S>(p.u.at({b, k, c, at}));
      const S raw = raw_delta(b, k, c, at);
      const S dt = step_of(raw);
      S ddt = 0;
      S dx = 0;
      if (p.D) {
        dD.add(p.D.flat({k, c}), g * x);
        dx += g * static_cast<S>(p.D.at({k, c}));
      }
      for (int64_t n = 0; n < s.states; ++n) {
        const size_t before = static_cast<size_t>(t * s.states + n);
        const size_t pb = Problem::place(p.B, s.constant_b, b, k, c, group, n, at);
        const size_t pc = Problem::place(p.C, s.constant_c, b, k, c, group, n, at);
        const S a = static_cast<S>(p.A.at({k, c, n}));
        const S decay = std::exp(dt * a);
        S& carried = dh[static_cast<size_t>(n)];
        dC.add(pc, g * h[before + static_cast<size_t>(s.states)]);
        carried += g * static_cast<S>(p.C.value[pc]);
        dB.add(pb, carried * dt * x);
        dx += carried * dt * static_cast<S>(p.B.value[pb]);
        dA.add(p.A.flat({k, c, n}), carried * h[before] * decay * dt);
        ddt += carried * (h[before] * decay * a + static_cast<S>(p.B.value[pb]) * x);
        carried *= decay;
      }
      if (s.softplus && raw <= 20) ddt *= sigmoid(raw);
      du[p.u.flat({b, k, c, at})] += dx;
      ddelta[p.delta.flat({b, k, c, at})] += ddt;
      if (p.bias) dbias.add(p.bias.flat({k, c}), ddt);
    }
    const size_t row = static_cast<size_t>((b * s.directions + k) * s.channels + c);
    for (int64_t n = 0; n < s.states; ++n) {
      r.dinitial.value[row * static_cast<size_t>(s.states) + static_cast<size_t>(n)] =
          static_cast<double>(dh[static_cast<size_t>(n)]);
    }
  }
};

}  // namespace
}  // namespace selective_scan_cases
