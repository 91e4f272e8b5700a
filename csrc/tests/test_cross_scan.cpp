// SPDX-License-Identifier: Apache-2.0
// Gathers and sums over scan orders on the CPU, against their definition: every storage type, tables of all kinds, maps
// whose positions or channels lie next to each other or neither, one thread and several.
#include <algorithm>
#include <numeric>

#include "arrays.h"
#include "kernels/cpu/cross_scan.h"
#include "threads.h"

namespace {

using namespace fgk;
using namespace arrays;

enum class Layout { positions, channels, gaps, one_row };

// Rows: as they are, reversed, by columns of a map of that height, and at random.
std::vector<int32_t> make_table(std::mt19937& random, int64_t directions, int64_t length) {
  std::vector<int32_t> table;
  for (int64_t k = 0; k < directions; ++k) {
    std::vector<int32_t> row(static_cast<size_t>(length));
    std::iota(row.begin(), row.end(), 0);
    if (k % 4 == 1) std::reverse(row.begin(), row.end());
    if (k % 4 == 2) {
      std::stable_sort(row.begin(), row.end(), [](int32_t a, int32_t b) { return a % 7 < b % 7; });
    }
    if (k % 4 == 3) std::shuffle(row.begin(), row.end(), random);
    table.insert(table.end(), row.begin(), row.end());
  }
  return table;
}

void check_both(std::mt19937& random, DType dtype, int64_t batch, int64_t directions, int64_t channels, int64_t length,
                Layout layout) {
  const std::vector<int32_t> table = make_table(random, directions, length);
  for (const bool merge : {false, true}) {
    CrossScan args;
    args.dtype = dtype;
    args.batch = batch;
    args.directions = directions;
    args.channels = channels;
    args.length = length;
    args.table = table.data();
    args.merge = merge;
    const int64_t sources = merge ? directions : 1;
    if (layout == Layout::one_row) {  // all elements at the same place
    } else if (layout == Layout::channels) {
      args.x.channel = 1;
      args.x.position = channels + 3;
      args.x.direction = merge ? length * args.x.position : 0;
      args.x.batch = sources * length * args.x.position;
    } else {
      args.x.position = layout == Layout::gaps ? 3 : 1;
      args.x.channel = length * args.x.position + 2;
      args.x.direction = merge ? channels * args.x.channel : 0;
      args.x.batch = sources * channels * args.x.channel;
    }
    const auto at = [&](int64_t b, int64_t k, int64_t c, int64_t p) {
      return b * args.x.batch + (merge ? k : 0) * args.x.direction + c * args.x.channel + p * args.x.position;
    };
    args.x.span = at(batch - 1, directions - 1, channels - 1, length - 1) + 1;
    Array x(dtype, args.x.span), out(dtype, batch * channels * length * (merge ? 1 : directions));
    x.fill(normal(random));
    args.x.data = x.data();
    args.out = out.data();
    cross_scan(args, check::threads());

    int64_t i = 0;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t k = 0; k < (merge ? 1 : directions); ++k) {
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t t = 0; t < length; ++t, ++i) {
            double expected = 0, size = 0;
            for (int64_t j = k; j < (merge ? directions : k + 1); ++j) {
              const double value = x.get(at(b, j, c, table[static_cast<size_t>(j * length + t)]));
              expected += value;
              size += std::fabs(value);
            }
            const double tolerance = merge
                                         ? static_cast<double>(directions) * unit_roundoff(accumulation(dtype)) * size +
                                               1.01 * unit_roundoff(dtype) * std::fabs(expected) + 0x1p-25
                                         : 0;
            CHECK_NEAR(out.get(i), expected, tolerance);
          }
        }
      }
    }
  }
}

TEST(every_type_layout_and_size) {
  std::mt19937 random(1);
  for (DType dtype : kFloatTypes) {
    for (Layout layout : {Layout::positions, Layout::channels, Layout::gaps, Layout::one_row}) {
      check_both(random, dtype, 2, 4, 3, 42, layout);
      check_both(random, dtype, 1, 1, 1, 1, layout);
      check_both(random, dtype, 2, 3, 19, 50, layout);
      check_both(random, dtype, 1, 8, 33, 17, layout);
    }
  }
}

// More positions and channels than a task or a chunk has.
TEST(large) {
  std::mt19937 random(2);
  for (int count : {1, 2}) {
    check::thread_count() = count;
    check_both(random, DType::f32, 2, 4, 300, 60, Layout::channels);
    check_both(random, DType::bf16, 1, 4, 17, 2100, Layout::channels);
    check_both(random, DType::f32, 1, 2, 2, 70001, Layout::positions);
    check_both(random, DType::f16, 3, 4, 20, 1500, Layout::positions);
  }
  check::thread_count() = 1;
}

TEST(empty) {
  for (const bool merge : {false, true}) {
    CrossScan args;
    args.merge = merge;
    args.batch = args.directions = args.channels = 2;
    cross_scan(args, check::threads());
    args.length = 4;
    args.batch = 0;
    cross_scan(args, check::threads());
  }
}

// NaN and infinities come out as they went in, a NaN only where it is read.
TEST(nan_and_infinity) {
  std::mt19937 random(3);
  const std::vector<int32_t> table = make_table(random, 4, 9);
  for (DType dtype : kFloatTypes) {
    for (const bool across : {false, true}) {
      Array x(dtype, 16 * 9), out(dtype, 4 * 16 * 9);
      CrossScan args;
      args.dtype = dtype;
      args.batch = 1;
      args.directions = 4;
      args.channels = 16;
      args.length = 9;
      args.table = table.data();
      args.x = {x.data(), 0, 0, across ? 1 : 9, across ? 16 : 1, 16 * 9};
      args.out = out.data();
      const int64_t nan = 5 * args.x.channel + 3 * args.x.position;  // as all elements are at first
      for (int64_t i = 0; i < x.count(); ++i) {
        if (i != nan) x.set(i, 1.0);
      }
      if (dtype != DType::f16) x.set(6 * args.x.channel + 3 * args.x.position, INFINITY);
      cross_scan(args, check::threads());
      for (int64_t i = 0; i < out.count(); ++i) {
        const int64_t k = i / (16 * 9), c = i / 9 % 16, p = table[static_cast<size_t>(k * 9 + i % 9)];
        CHECK_EQ(std::isnan(out.get(i)), c == 5 && p == 3);
        if (dtype != DType::f16) CHECK_EQ(std::isinf(out.get(i)), c == 6 && p == 3);
      }
    }
  }
}

}  // namespace
