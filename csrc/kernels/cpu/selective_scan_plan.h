// SPDX-License-Identifier: Apache-2.0
// What the planner of selective scans tells the kernels of an ISA level.
#pragma once

#include "../common/selective_scan.h"

namespace fgk {

// B or C as rows of states, in the type that is computed in: element (b, k, g, position, n) is
// data[b batch + k direction + g group + position row + n]. Constant ones are read from the arguments, and so are those
// without data: chunk by chunk.
struct ProjectionRows {
  const void* data = nullptr;
  int64_t batch = 0;
  int64_t direction = 0;
  int64_t group = 0;
  int64_t row = 0;
};

struct ScanPlan {
  SelectiveScanForward args;
  ProjectionRows B;
  ProjectionRows C;
  int64_t rows = 0;  // that a block's arrays of lanes have: all positions with a table, else one chunk
};

// Sums over the batch come later, in a fixed order.
struct ScanBackwardPlan {
  ScanPlan scan;
  SelectiveScanBackward args;
  int64_t splits = 1;  // of the channel blocks of a group; each has sums of dB and dC of its own
  // (splits, batch, directions, groups, length, states); null where B or C is constant
  void* dB_parts = nullptr;
  void* dC_parts = nullptr;
  // (batch, directions, channels, states) and (batch, directions, channels)
  void* dA_parts = nullptr;
  void* dB_constant_parts = nullptr;
  void* dC_constant_parts = nullptr;
  void* dD_parts = nullptr;
  void* dbias_parts = nullptr;
};

// One block of lanes: `lanes` channels at most, of one group.
struct ScanBlock {
  int64_t batch = 0;
  int64_t group = 0;
  int64_t first = 0;  // channel within the group
};

struct SelectiveScanTable {
  int lanes_f32;
  int lanes_f64;
  // Bytes of scratch memory that a block takes.
  int64_t (*forward_bytes)(const ScanPlan&);
  int64_t (*backward_bytes)(const ScanPlan&);
  void (*forward_f32)(const ScanPlan&, const ScanBlock&, void* memory);
  void (*forward_f64)(const ScanPlan&, const ScanBlock&, void* memory);
  // `split` names the sums of dB and dC that the block adds to.
  void (*backward_f32)(const ScanBackwardPlan&, const ScanBlock&, int64_t split, void* memory);
  void (*backward_f64)(const ScanBackwardPlan&, const ScanBlock&, int64_t split, void* memory);
  // Rows (length, states) of one (batch, direction, group) of B or C.
  void (*read_rows_f32)(float* rows, const ScanProjection&, DType, int64_t element, int64_t length, int64_t states);
  void (*read_rows_f64)(double* rows, const ScanProjection&, DType, int64_t element, int64_t length, int64_t states);
  // The other way round; `rows` is readable for a vector past its end.
  void (*write_rows_f32)(const ScanProjection&, DType, int64_t element, int64_t length, int64_t states, const float*);
  void (*write_rows_f64)(const ScanProjection&, DType, int64_t element, int64_t length, int64_t states, const double*);
  void (*update_f32)(const StateUpdate&, int64_t batch, int64_t head, int64_t first, int64_t last);
  void (*update_f64)(const StateUpdate&, int64_t batch, int64_t head, int64_t first, int64_t last);
};

}  // namespace fgk
