// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of cross scans and merges, executed by the emulator in three orders, against their definitions.
#include "cross_scan_cases.h"
#include "kernel_test.h"
#include "kernels/cuda/selective_scan.h"

namespace cross_scan_cases {
namespace {

using kernel_test::in_every_order;
using kernel_test::Scratch;

}  // namespace

void run_cross(const CrossScan& args) {
  Scratch scratch;
  cuda::cross_scan(args, scratch.context());
  kernel_test::check_all_written(scratch);
}

TEST(types_and_layouts) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : arrays::kFloatTypes) {
      for (Layout layout : {Layout::dense, Layout::swapped, Layout::padded}) {
        for (bool merge : {false, true}) {
          Shape s;
          s.dtype = dtype;
          s.merge = merge;
          s.layout = layout;
          check_cross(random, s);
        }
      }
    }
  });
}

// One direction and one position; several rows to a block, the last of fewer; rows too long for shared memory.
TEST(sizes) {
  in_every_order([](std::mt19937& random) {
    for (bool merge : {false, true}) {
      Shape s;
      s.merge = merge;
      s.directions = 1;
      check_cross(random, s);
      s.length = 1;
      check_cross(random, s);
      s.directions = 2;
      s.length = 100;
      s.channels = 23;
      check_cross(random, s);
      s.channels = 2;
      s.length = 900;
      emulation::set_limits({132, 1024});
      check_cross(random, s);
      emulation::set_limits({132, 232448});
      s.batch = 0;
      check_cross(random, s);
    }
  });
}

// Entries outside of the map read nothing: NaN.
TEST(hostile_tables) {
  in_every_order([](std::mt19937& random) {
    for (bool merge : {false, true}) {
      Shape s;
      s.merge = merge;
      Array x = cross_input(random, s);
      Array out = cross_output(s);
      std::vector<int32_t> table = draw_table(random, s.directions, s.length);
      table[3] = -1;
      table[4] = static_cast<int32_t>(s.length);
      table[5] = std::numeric_limits<int32_t>::min();
      run_cross(cross_args(s, x, table, out));
      out.load();
      for (int64_t t = 2; t < 7; ++t) CHECK_EQ(std::isnan(out.at({1, 0, 2, t})), t > 2 && t < 6);
    }
  });
}

}  // namespace cross_scan_cases
