// SPDX-License-Identifier: Apache-2.0
// Checks of an implementation of the selective scan against its definition: outputs, states and every gradient, in each
// storage type and memory order. Included by one test program per implementation, which defines run_forward and
// run_backward.
//
// What an implementation may be wrong by follows from the number types alone: twice the error that the definition
// itself makes in the accumulation type (both against long double), some roundings of the largest value, and the
// rounding of a result to its storage type.
#pragma once

#include <string>
#include <utility>

#include "selective_scan_definition.h"

namespace selective_scan_cases {

void run_forward(const SelectiveScanForward& args);
void run_backward(const SelectiveScanBackward& args);

namespace {

inline std::string describe(const Shape& s) {
  std::string text = "type " + std::to_string(static_cast<int>(s.dtype));
  const auto add = [&](const char* name, int64_t v) { text += std::string(", ") + name + " " + std::to_string(v); };
  add("batch", s.batch);
  add("directions", s.directions);
  add("channels", s.channels);
  add("groups", s.groups);
  add("length", s.length);
  add("states", s.states);
  const std::pair<const char*, bool> flags[] = {{"constant B", s.constant_b},
                                                {"constant C", s.constant_c},
                                                {"D", s.d},
                                                {"z", s.z},
                                                {"bias", s.bias},
                                                {"softplus", s.softplus},
                                                {"initial", s.initial},
                                                {"table", s.table},
                                                {"ordered", s.ordered},
                                                {"shared u", s.shared_u},
                                                {"shared parameters", s.shared_parameters}};
  for (const auto& [name, set] : flags) {
    if (set) text += std::string(", ") + name;
  }
  return text + ", layout " + std::to_string(static_cast<int>(s.layout));
}

// `result` against the exact values; `plain` are those of the definition in the accumulation type.
inline void compare(const char* name, const Shape& shape, Array& result, const Values& exact, const Values& plain) {
  if (!result) return;
  result.load();
  double largest = exact.terms;
  double error = 0;
  for (size_t i = 0; i < exact.value.size(); ++i) {
    largest = std::max(largest, std::fabs(exact.value[i]));
    error = std::max(error, std::fabs(exact.value[i] - plain.value[i]));
  }
  const double everywhere = 2 * error + 16 * arrays::unit_roundoff(arrays::accumulation(shape.dtype)) * largest;
  // Below its normal numbers fp16 has a fixed spacing.
  const double smallest = result.dtype == DType::f16 ? 0x1p-25 : 0;
  for (size_t i = 0; i < exact.value.size(); ++i) {
    const double expected = exact.value[i];
    const double allowed = everywhere + arrays::unit_roundoff(result.dtype) * std::fabs(expected) * 1.01 + smallest;
    if (std::fabs(result.value[i] - expected) <= allowed) continue;
    check::fail(__FILE__, __LINE__) << name << "[" << i << "] is " << result.value[i] << ", expected " << expected
                                    << " within " << allowed << " (" << describe(shape) << ")\n";
    return;
  }
}

// Which results a caller asks for.
struct Wanted {
  bool last_state = true;
  bool checkpoints = true;
  bool backward = true;
};

inline void check_problem(Problem& p, const Wanted& wanted = {}) {
  const Shape& s = p.shape;
  const Results exact = Definition<long double>(p).r;
  const Results plain = s.dtype == DType::f64 ? Definition<double>(p).r : Definition<float>(p).r;
  const DType acc = arrays::accumulation(s.dtype);
  const Layout layout = s.layout == Layout::swapped ? Layout::swapped : Layout::dense;

  SelectiveScanForward args = p.forward_args();
  Array out(s.dtype, p.grad_out.size, layout);
  Array last(acc, {s.batch, s.directions, s.channels, s.states});
  Array checkpoints(acc, {s.batch, s.directions, s.channels, p.chunks(), s.states});
  args.out = Problem::sequence(out);
  if (wanted.last_state) args.last_state = last.data();
  if (wanted.checkpoints) args.checkpoints = checkpoints.data();
  run_forward(args);
  compare("out", s, out, exact.out, plain.out);
  if (wanted.last_state) compare("last_state", s, last, exact.last_state, plain.last_state);
  if (wanted.checkpoints) compare("checkpoints", s, checkpoints, exact.checkpoints, plain.checkpoints);
  if (!wanted.checkpoints || !wanted.backward) return;

  SelectiveScanBackward back;
  back.forward = p.forward_args();
  back.grad_out = Problem::sequence(p.grad_out);
  back.grad_last_state = p.grad_last.data();
  back.checkpoints = checkpoints.data();
  const auto like = [&](const Array& a) {
    return a ? Array(a.dtype, a.size, a.size.size() > 3 ? layout : Layout::dense) : Array();
  };
  Array du = like(p.u), ddelta = like(p.delta), dz = like(p.z), dA = like(p.A), dD = like(p.D), dbias = like(p.bias);
  Array dB = like(p.B), dC = like(p.C), dinitial = p.initial ? Array(acc, p.initial.size) : Array();
  back.du = Problem::sequence(du);
  back.ddelta = Problem::sequence(ddelta);
  back.dz = Problem::sequence(dz);
  back.dA = dA.data();
  back.dD = dD.data();
  back.ddelta_bias = dbias.data();
  back.dB = Problem::projection(dB, s.constant_b);
  back.dC = Problem::projection(dC, s.constant_c);
  back.dinitial_state = dinitial.data();
  run_backward(back);
  compare("du", s, du, exact.du, plain.du);
  compare("ddelta", s, ddelta, exact.ddelta, plain.ddelta);
  compare("dz", s, dz, exact.dz, plain.dz);
  compare("dA", s, dA, exact.dA, plain.dA);
  compare("dD", s, dD, exact.dD, plain.dD);
  compare("ddelta_bias", s, dbias, exact.dbias, plain.dbias);
  compare("dB", s, dB, exact.dB, plain.dB);
  compare("dC", s, dC, exact.dC, plain.dC);
  compare("dinitial_state", s, dinitial, exact.dinitial, plain.dinitial);
}

inline void check_scan(std::mt19937& random, const Shape& s, const Wanted& wanted = {}) {
  Problem p(random, s);
  check_problem(p, wanted);
}

// One step each, of which the output is softplus(delta): to 1e-6 of itself, however small.
inline void softplus_is_exact_in_its_tail(DType dtype) {
  Shape s;
  s.dtype = dtype;
  s.batch = 401;
  s.channels = s.length = s.states = 1;
  s.d = s.z = s.bias = false;
  std::mt19937 random(1);
  Problem p(random, s);
  for (Array* ones : {&p.u, &p.B, &p.C}) {
    ones->value.assign(ones->value.size(), 1.0);
    ones->store();
  }
  for (size_t i = 0; i < p.delta.value.size(); ++i) p.delta.value[i] = -25 + static_cast<double>(i) / 8;
  p.delta.store();
  SelectiveScanForward args = p.forward_args();
  Array out(dtype, p.grad_out.size);
  args.out = Problem::sequence(out);
  run_forward(args);
  out.load();
  for (size_t i = 0; i < out.value.size(); ++i) {
    const double x = p.delta.value[i];
    const double exact = x > 20 ? x : std::log1p(std::exp(x));
    CHECK_NEAR(out.value[i] / exact, 1.0, dtype == DType::f64 ? 1e-14 : 1e-6);
  }
}

// A delta from -300, whose exponential is no normal number, over -80 up to 0, where a state is kept as it is.
inline void long_products_stay_finite(std::mt19937& random, DType dtype) {
  Shape s;
  s.dtype = dtype;
  s.batch = 1;
  s.channels = 2;
  s.length = 200;
  s.states = 3;
  s.softplus = s.bias = false;
  s.initial = true;
  Problem p(random, s);
  for (size_t i = 0; i < p.A.value.size(); ++i) p.A.value[i] = i % 3 == 0 ? -300 : i % 3 == 1 ? -80 : 0;
  p.A.store();
  for (double& dt : p.delta.value) {
    const unsigned kind = random() % 4;
    if (kind < 2) dt = kind;  // 0 or 1
  }
  p.delta.store();
  check_problem(p);
}

}  // namespace
}  // namespace selective_scan_cases
