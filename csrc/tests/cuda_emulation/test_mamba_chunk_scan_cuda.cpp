// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of the Mamba-2 scan, executed by the emulator in three orders, against the recurrence in double
// precision: one chunk and several, tiles that end anywhere, several tiles of channels and of states, shares of heads.
#include "../mamba_chunk_scan_cases.h"
#include "kernel_test.h"
#include "kernels/cuda/mamba_chunk_scan.h"

namespace mamba_chunk_scan_cases {
namespace {

using kernel_test::check_all_written;
using kernel_test::in_every_order;
using kernel_test::Scratch;

void run_forward(const ChunkScanForward& args) {
  Scratch scratch;
  cuda::chunk_scan_forward(args, scratch.context());
  check_all_written(scratch);
}

void run_backward(const ChunkScanBackward& args) {
  Scratch scratch;
  cuda::chunk_scan_backward(args, scratch.context());
  check_all_written(scratch);
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// (batch, length, heads, channels, groups, states, lead, sliced)
const Shape kShapes[] = {{1, 1, 1, 1, 1, 1, 0, false},     // the smallest
                         {2, 37, 2, 5, 1, 7, 0, false},    // less than a tile
                         {1, 100, 2, 8, 2, 4, 1, true},    // two tiles of one chunk
                         {2, 128, 1, 3, 1, 6, 0, false},   // exactly one chunk
                         {1, 300, 3, 4, 1, 5, 3, true},    // three chunks, the last one of one tile
                         {1, 20, 2, 70, 1, 3, 0, false},   // two tiles of channels
                         {1, 70, 2, 4, 2, 67, 0, false}};  // two tiles of states

// D, z, dt_bias, initial_states, seq_idx, dt_softplus, dt_min, dt_max, decay
const Options kOptions[] = {{D::head, true, true, true, true, true, 0, kInfinity, 1},
                            {D::none, false, false, false, false, true, 0, kInfinity, 0.1},
                            {D::channel, false, true, true, false, true, 0.1, 0.4, 1}};

TEST(forward) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      for (const Shape& s : kShapes) {
        for (const Options& o : kOptions) check_forward(random, dtype, s, o, false, o.z);
      }
    }
  });
}

TEST(backward) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      for (const Shape& s : kShapes) {
        for (const Options& o : kOptions) check_backward(random, dtype, s, o, o.z);
      }
    }
  });
}

}  // namespace
}  // namespace mamba_chunk_scan_cases
