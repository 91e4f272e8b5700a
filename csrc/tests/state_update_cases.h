// SPDX-License-Identifier: Apache-2.0
// One step of decoding by its definition, and checks of an implementation against it. Included by one test program per
// implementation, which defines run_update.
#pragma once

#include <algorithm>
#include <string>

#include "kernels/common/selective_scan.h"
#include "strided_array.h"

namespace state_update_cases {

using namespace fgk;
using namespace strided_array;

void run_update(const StateUpdate& args);

namespace {

struct Shape {
  DType dtype = DType::f32;
  DType state_dtype = DType::f32;
  int64_t batch = 3;
  int64_t heads = 1;
  int64_t channels = 5;
  int64_t groups = 1;
  int64_t states = 16;
  bool d = true;
  bool z = true;
  bool bias = true;
  bool softplus = true;
  bool entries = false;   // batch entries use rows of a larger state, in another order
  bool per_head = false;  // A, dt_bias, D and dt are one number per head, by strides of 0
  Layout layout = Layout::dense;
};

struct Step {
  Shape shape;
  Array state, x, dt, z, A, B, C, D, bias;
  std::vector<int32_t> entry;

  Step(std::mt19937& random, const Shape& s) : shape(s) {
    const DType acc = arrays::accumulation(s.dtype);
    const int64_t rows = s.entries ? s.batch + 2 : s.batch;
    const int64_t channels = s.per_head ? 1 : s.channels;
    state = Array(s.state_dtype, {rows, s.heads, s.channels, s.states}, s.layout);
    state.draw(random, -128, 128, 0x1p-6);
    x = Array(s.dtype, {s.batch, s.heads, s.channels}, s.layout);
    x.draw(random, -128, 128, 0x1p-6);
    dt = Array(s.dtype, {s.batch, s.heads, channels}, s.layout);
    dt.draw(random, s.softplus ? -192 : 1, 128, 0x1p-7);
    A = Array(acc, {s.heads, channels, s.per_head ? 1 : s.states}, s.layout);
    A.draw(random, -255, -1, 0x1p-6);
    for (Array* p : {&B, &C}) {
      *p = Array(s.dtype, {s.batch, s.groups, s.states}, s.layout);
      p->draw(random, -128, 128, 0x1p-6);
    }
    if (s.z) {
      z = Array(s.dtype, {s.batch, s.heads, s.channels}, s.layout);
      z.draw(random, -192, 192, 0x1p-6);
    }
    for (Array* p : {&D, &bias}) {
      if (p == &D ? !s.d : !s.bias) continue;
      *p = Array(acc, {s.heads, channels}, s.layout);
      p->draw(random, 0, 64, 0x1p-6);
    }
    for (int64_t b = 0; s.entries && b < s.batch; ++b) entry.push_back(static_cast<int32_t>(rows - 1 - b));
  }

  int64_t row(int64_t b) const { return entry.empty() ? b : entry[static_cast<size_t>(b)]; }
  int64_t group_of(int64_t h, int64_t c) const {
    return shape.heads > 1 ? h / (shape.heads / shape.groups) : c / (shape.channels / shape.groups);
  }

  StateUpdate args(Array& out) {
    StateUpdate a;
    a.dtype = shape.dtype;
    a.state_dtype = shape.state_dtype;
    a.batch = shape.batch;
    a.heads = shape.heads;
    a.channels = shape.channels;
    a.groups = shape.groups;
    a.states = shape.states;
    a.state = state.data();
    a.state_entry = state.stride[0];
    a.state_head = state.stride[1];
    a.state_channel = state.stride[2];
    a.state_state = state.stride[3];
    a.state_span = state.span();
    a.entries = state.size[0];
    a.entry = entry.empty() ? nullptr : entry.data();
    const auto rows = [](Array& from) -> StateUpdate::Rows {
      if (!from) return {};
      return {from.data(), from.step(0), from.step(1), from.step(2), from.span()};
    };
    const auto parameter = [](Array& from) -> StateUpdate::Parameter {
      if (!from) return {};
      return {from.data(), from.step(0), from.step(1), from.size.size() > 2 ? from.step(2) : 0, from.span()};
    };
    const auto projection = [](Array& from) -> StateUpdate::Projection {
      return {from.data(), from.step(0), from.step(1), from.step(2), from.span()};
    };
    a.x = rows(x);
    a.dt = rows(dt);
    a.z = rows(z);
    a.A = parameter(A);
    a.D = parameter(D);
    a.dt_bias = parameter(bias);
    a.B = projection(B);
    a.C = projection(C);
    a.dt_softplus = shape.softplus;
    a.out = out.data();
    return a;
  }
};

inline void compare(const char* name, const Shape& s, const Array& result, const std::vector<double>& exact) {
  double largest = 1;
  for (double v : exact) largest = std::max(largest, std::fabs(v));
  const double everywhere =
      static_cast<double>(8 + s.states) * arrays::unit_roundoff(arrays::accumulation(s.dtype)) * largest;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double allowed = everywhere + 1.01 * arrays::unit_roundoff(result.dtype) * std::fabs(exact[i]);
    if (std::fabs(result.value[i] - exact[i]) <= allowed) continue;
    check::fail(__FILE__, __LINE__) << name << "[" << i << "] is " << result.value[i] << ", expected " << exact[i]
                                    << " within " << allowed << " (type " << static_cast<int>(s.dtype) << ", state "
                                    << static_cast<int>(s.state_dtype) << ", heads " << s.heads << ", states "
                                    << s.states << ")\n";
    return;
  }
}

// Rows of the state that no batch entry names must stay as they are.
inline void check_step(std::mt19937& random, const Shape& s) {
  Step p(random, s);
  std::vector<double> out_exact, state_exact = p.state.value;
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < s.heads; ++h) {
      for (int64_t c = 0; c < s.channels; ++c) {
        const double raw = p.dt.at({b, h, c}) + (p.bias ? p.bias.at({h, c}) : 0.0);
        const double dt = s.softplus && raw <= 20 ? std::log1p(std::exp(raw)) : raw;
        const double x = p.x.at({b, h, c});
        const int64_t g = p.group_of(h, c);
        double y = p.D ? p.D.at({h, c}) * x : 0.0;
        for (int64_t n = 0; n < s.states; ++n) {
          double& kept = state_exact[p.state.flat({p.row(b), h, c, n})];
          kept = std::exp(dt * p.A.at({h, c, n})) * kept + dt * p.B.at({b, g, n}) * x;
          y += p.C.at({b, g, n}) * kept;
        }
        if (p.z) y *= arrays::silu(p.z.at({b, h, c}));
        out_exact.push_back(y);
      }
    }
  }
  Array out(s.dtype, {s.batch, s.heads, s.channels});
  run_update(p.args(out));
  out.load();
  p.state.load();
  compare("out", s, out, out_exact);
  compare("state", s, p.state, state_exact);
}

}  // namespace
}  // namespace state_update_cases
