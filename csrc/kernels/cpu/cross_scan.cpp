// SPDX-License-Identifier: Apache-2.0
// The planner of gathers and sums over scan orders.
#include "cross_scan.h"

#include <vector>

#include "cross_scan_plan.h"
#include "isa.h"
#include "tasks.h"
#include "workspace.h"

namespace fgk {

FGK_DEFINE_TABLE_GETTER(cross_scan_table, CrossScanTable, kCrossScanTable)

namespace {

// Below this many elements a second thread costs more than it brings.
constexpr int64_t kParallelWork = int64_t(1) << 15;
constexpr int64_t kTaskElements = int64_t(1) << 16;
constexpr int64_t kMinLanes = 8;         // fewer channels than this in a row are read one by one
constexpr int64_t kLaneChannels = 256;   // of a task
constexpr int64_t kRowPiece = 1 << 16;   // positions of a task
constexpr int64_t kLanePiece = 1 << 10;  // likewise

Order order_of(const int32_t* row, int64_t length) {
  bool forwards = true, backwards = true;
  for (int64_t t = 0; t < length && (forwards || backwards); ++t) {
    forwards = forwards && row[t] == t;
    backwards = backwards && row[t] == length - 1 - t;
  }
  return forwards ? Order::forwards : backwards ? Order::backwards : Order::any;
}

}  // namespace

void cross_scan(const CrossScan& args, const Parallel& parallel) {
  if (args.batch * args.directions * args.channels * args.length == 0) return;
  const CrossScanTable& table = cross_scan_table();
  const bool wide = args.dtype == DType::f64;
  const int64_t lanes = wide ? table.lanes_f64 : table.lanes_f32;
  std::vector<Order> orders(static_cast<size_t>(args.directions));
  for (int64_t k = 0; k < args.directions; ++k) {
    orders[static_cast<size_t>(k)] = order_of(args.table + k * args.length, args.length);
  }
  const CrossScanPlan plan = {args, orders.data()};
  const bool across = args.x.channel == 1 && args.x.position != 1 && args.channels >= kMinLanes;
  const int64_t piece = std::min(args.length, across ? kLanePiece : kRowPiece);
  const int64_t pieces = (args.length + piece - 1) / piece;
  const int64_t block =
      std::min(args.channels, across ? kLaneChannels : std::max<int64_t>(kTaskElements / (piece * args.directions), 1));
  const int64_t blocks = (args.channels + block - 1) / block;
  const int64_t tasks = args.batch * pieces * blocks;
  const int workers =
      workers_for(parallel, tasks, args.batch * args.directions * args.channels * args.length, kParallelWork);
  const int64_t scalars = across ? (kCrossScanLaneChunk + 1) * round_up(block, lanes) : kCrossScanRowChunk;
  const Arena arena(scalars * (wide ? 8 : 4), workers);
  const CrossScanTable::Kernels& kernels = wide ? table.f64 : table.f32;
  for_tasks(parallel, workers, tasks, [&](int64_t i, int worker) {
    CrossScanTask task;
    task.batch = i / blocks / pieces;
    task.channel_first = i % blocks * block;
    task.channel_last = std::min(task.channel_first + block, args.channels);
    task.first = i / blocks % pieces * piece;
    task.last = std::min(task.first + piece, args.length);
    (across ? kernels.lanes : kernels.rows)(plan, task, arena.worker(worker));
  });
}

}  // namespace fgk
