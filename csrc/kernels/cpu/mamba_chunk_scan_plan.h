// SPDX-License-Identifier: Apache-2.0
// What the planner of Mamba-2 scans tells the kernels of an ISA level.
#pragma once

#include "../common/mamba_chunk_scan.h"
#include "selective_scan_plan.h"

namespace fgk {

struct ChunkScanPlan {
  ChunkScanForward args;
  ProjectionRows B;  // `direction` unused
  ProjectionRows C;
};

// Sums over batch and heads come later, in a fixed order.
struct ChunkScanBackwardPlan {
  ChunkScanPlan scan;
  ChunkScanBackward args;
  void* dB_parts = nullptr;  // (splits, batch, groups, length, states)
  void* dC_parts = nullptr;
  void* dA_parts = nullptr;  // (batch, heads), as dbias_parts
  void* dbias_parts = nullptr;
  void* dD_parts = nullptr;  // (batch, heads, channels)
};

struct ChunkScanTable {
  int lanes_f32;
  int lanes_f64;
  int64_t (*forward_bytes)(const ChunkScanPlan&);
  int64_t (*backward_bytes)(const ChunkScanPlan&);
  // `block` of a head's channels.
  void (*forward_f32)(const ChunkScanPlan&, int64_t batch, int64_t head, int64_t block, void* memory);
  void (*forward_f64)(const ChunkScanPlan&, int64_t batch, int64_t head, int64_t block, void* memory);
  // `split` names the sums of dB and dC that the head adds to.
  void (*backward_f32)(const ChunkScanBackwardPlan&, int64_t batch, int64_t head, int64_t split, void* memory);
  void (*backward_f64)(const ChunkScanBackwardPlan&, int64_t batch, int64_t head, int64_t split, void* memory);
};

}  // namespace fgk
