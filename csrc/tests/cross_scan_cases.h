// SPDX-License-Identifier: Apache-2.0
// Cross scans and merges by their definitions, and checks of an implementation against them. Included by one test
// program per implementation, which defines run_cross.
#pragma once

#include <algorithm>

#include "kernels/common/selective_scan.h"
#include "strided_array.h"

namespace cross_scan_cases {

using namespace fgk;
using namespace strided_array;

void run_cross(const CrossScan& args);

namespace {

struct Shape {
  DType dtype = DType::f32;
  int64_t batch = 2, directions = 4, channels = 3, length = 35;
  bool merge = false;
  Layout layout = Layout::dense;
};

inline std::vector<int32_t> draw_table(std::mt19937& random, int64_t directions, int64_t length) {
  std::vector<int32_t> table;
  for (int64_t k = 0; k < directions; ++k) {
    std::vector<int32_t> row(static_cast<size_t>(length));
    std::iota(row.begin(), row.end(), 0);
    std::shuffle(row.begin(), row.end(), random);
    table.insert(table.end(), row.begin(), row.end());
  }
  return table;
}

inline CrossScan cross_args(const Shape& s, Array& x, const std::vector<int32_t>& table, Array& out) {
  CrossScan args;
  args.dtype = s.dtype;
  args.batch = s.batch;
  args.directions = s.directions;
  args.channels = s.channels;
  args.length = s.length;
  args.x = {x.data(), x.step(0), x.step(1), x.step(2), x.step(3), x.span()};
  args.table = table.data();
  args.merge = s.merge;
  args.out = out.data();
  return args;
}

inline Array cross_input(std::mt19937& random, const Shape& s) {
  Array x(s.dtype, {s.batch, s.merge ? s.directions : 1, s.channels, s.length}, s.layout);
  x.draw(random, -128, 128, 0x1p-6);
  return x;
}

inline Array cross_output(const Shape& s) {
  return Array(s.dtype, {s.batch, s.merge ? 1 : s.directions, s.channels, s.length});
}

// Sums of a few multiples of 1/64 below 2 are exact in the accumulation type, and rounded once.
inline void check_cross(std::mt19937& random, const Shape& s) {
  Array x = cross_input(random, s);
  Array out = cross_output(s);
  const std::vector<int32_t> table = draw_table(random, s.directions, s.length);
  run_cross(cross_args(s, x, table, out));
  out.load();
  const auto place = [&](int64_t k, int64_t t) { return table[static_cast<size_t>(k * s.length + t)]; };
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t c = 0; c < s.channels; ++c) {
      for (int64_t t = 0; t < s.length; ++t) {
        double sum = 0;
        for (int64_t k = 0; k < s.directions; ++k) {
          const double v = x.at({b, k, c, place(k, t)});
          if (!s.merge) CHECK_EQ(out.at({b, k, c, t}), v);
          sum += v;
        }
        if (s.merge) CHECK_NEAR(out.at({b, 0, c, t}), sum, arrays::unit_roundoff(s.dtype) * std::fabs(sum));
      }
    }
  }
}

}  // namespace
}  // namespace cross_scan_cases
