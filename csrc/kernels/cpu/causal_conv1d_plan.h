// SPDX-License-Identifier: Apache-2.0
// What the planner of causal convolutions tells the kernels of an ISA level.
//
// A call is cut into tasks: some batch entries, a block of channels, and a piece of the positions. The cut depends on
// the shape alone, so that the sums for weight and bias are the same for any number of threads. Where positions lie
// next to each other, vectors run along them ("rows"); elsewhere they run across channels ("lanes").
#pragma once

#include "../common/causal_conv1d.h"

namespace fgk {

// Positions that a kernel has in its scratch memory at a time, and elements by which arrays of a chunk are longer:
// the taps before it, the gradients behind it, and a whole vector.
constexpr int64_t kConvRowChunk = 1024;
constexpr int64_t kConvLaneChunk = 16;
constexpr int64_t kConvPad = 32;
// Sums per channel that a task keeps: of each lag, and of the bias.
constexpr int kConvSums = kMaxConvWidth + 1;

struct ConvPlan {
  CausalConvForward args;
  // Of a backward, else null.
  ConvSequence grad_out;
  ConvSequence dx;
  void* dinitial_state = nullptr;

  int64_t group_batches = 1;
  int64_t piece = 0;
  int64_t block = 0;  // channels per task
  int64_t row = 0;    // the same, rounded up to whole vectors
};

struct ConvTask {
  int64_t batch_first, batch_last;
  int64_t channel_first, channel_last;
  int64_t first, last;  // positions
  void* sums;           // accumulation type, (channels of the task, kConvSums)
};

// Elements of scratch memory that a worker takes.
inline int64_t conv_row_memory(bool sequences, int64_t piece) {
  return 4 * (kConvRowChunk + kConvPad) + (sequences ? (kMaxConvWidth - 1) * (piece + kConvPad) : 0);
}
inline int64_t conv_lane_memory(int64_t row) {
  constexpr int64_t kTaps = kMaxConvWidth - 1;
  constexpr int64_t kRows = kConvLaneChunk + 2 * kTaps;
  // x, the gradient of out and what it becomes, out or dx; the initial state and its gradient; weights and bias; the
  // sums; zeros.
  return row * (4 * kRows + 2 * kTaps + 2 * kConvSums + 1);
}

struct CausalConvTable {
  int lanes_f32;
  int lanes_f64;
  struct Kernels {
    void (*forward_rows)(const ConvPlan&, const ConvTask&, void* memory);
    void (*forward_lanes)(const ConvPlan&, const ConvTask&, void* memory);
    void (*backward_rows)(const ConvPlan&, const ConvTask&, void* memory);
    void (*backward_lanes)(const ConvPlan&, const ConvTask&, void* memory);
    // A vector of channels of one batch entry.
    void (*update)(const CausalConvUpdate&, int64_t batch, int64_t channel);
  };
  Kernels f32;
  Kernels f64;
};

}  // namespace fgk
