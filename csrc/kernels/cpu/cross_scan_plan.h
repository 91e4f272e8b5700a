// SPDX-License-Identifier: Apache-2.0
// What the planner of gathers and sums over scan orders tells the kernels of an ISA level.
#pragma once

#include "../common/selective_scan.h"

namespace fgk {

// How a row of the table runs, for the orders that need no table.
enum class Order { any, forwards, backwards };

struct CrossScanPlan {
  CrossScan args;
  const Order* orders = nullptr;  // (directions,)
};

struct CrossScanTask {
  int64_t batch;
  int64_t channel_first, channel_last;
  int64_t first, last;  // positions of the result
};

// Positions and channels that a kernel has in its scratch memory at a time.
constexpr int64_t kCrossScanRowChunk = 1024;
constexpr int64_t kCrossScanLaneChunk = 16;

struct CrossScanTable {
  int lanes_f32;
  int lanes_f64;
  struct Kernels {
    // Along the positions, for any strides.
    void (*rows)(const CrossScanPlan&, const CrossScanTask&, void* memory);
    // Across channels that lie next to each other; scratch memory: kCrossScanLaneChunk rows of the task's channels, and
    // one row more, rounded up to vectors.
    void (*lanes)(const CrossScanPlan&, const CrossScanTask&, void* memory);
  };
  Kernels f32;
  Kernels f64;
};

}  // namespace fgk
