// SPDX-License-Identifier: Apache-2.0
// The planner of causal convolutions: chooses along what vectors run, cuts the work into tasks, adds up their sums.
#include "causal_conv1d.h"

#include "causal_conv1d_plan.h"
#include "isa.h"
#include "tasks.h"
#include "workspace.h"

namespace fgk {

FGK_DEFINE_TABLE_GETTER(causal_conv1d_table, CausalConvTable, kCausalConvTable)

namespace {

// Below this many elements a second thread costs more than it brings.
constexpr int64_t kParallelWork = int64_t(1) << 14;
constexpr int64_t kTaskElements = int64_t(1) << 15;
constexpr int64_t kRowPiece = 4096;
// Vectors across channels: memory is read in runs of a task's channels, and short ones cost bandwidth.
constexpr int64_t kLaneBytes = 4096;
constexpr int64_t kLanePiece = 256;
// Batch entries whose positions are this many together share their sums, so that sums stay small beside x.
constexpr int64_t kSharedPositions = 1024;

// dweight and dbias: the sums of all tasks, in their order.
template <class T>
void add_up(const CausalConvBackward& args, const T* sums, int64_t parts) {
  const int width = args.forward.width;
  T* dweight = static_cast<T*>(args.dweight);
  T* dbias = static_cast<T*>(args.dbias);
  for (int64_t c = 0; c < args.forward.channels; ++c) {
    double total[kConvSums] = {};
    for (int64_t part = 0; part < parts; ++part) {
      for (int k = 0; k < kConvSums; ++k) {
        total[k] += static_cast<double>(sums[(part * args.forward.channels + c) * kConvSums + k]);
      }
    }
    for (int k = 0; k < width; ++k) dweight[c * width + width - 1 - k] = static_cast<T>(total[k]);
    if (dbias != nullptr) dbias[c] = static_cast<T>(total[kMaxConvWidth]);
  }
}

void convolve(const CausalConvForward& args, const CausalConvBackward* backward, const Parallel& parallel) {
  const CausalConvTable& table = causal_conv1d_table();
  const bool wide = args.dtype == DType::f64;
  const int64_t lanes = wide ? table.lanes_f64 : table.lanes_f32;
  const int64_t scalar = wide ? 8 : 4;
  ConvPlan plan;
  plan.args = args;
  if (backward != nullptr) {
    plan.args.out = {};
    plan.grad_out = backward->grad_out;
    plan.dx = backward->dx;
    plan.dinitial_state = backward->dinitial_state;
  }
  bool rows = args.x.position == 1 && args.length >= lanes;
  for (const ConvSequence* other : {&plan.args.out, &plan.grad_out, &plan.dx}) {
    if (other->data != nullptr && other->position != 1) rows = false;
  }
  plan.group_batches = std::min(std::max<int64_t>(kSharedPositions / args.length, 1), args.batch);
  if (rows) {
    plan.piece = std::min(args.length, kRowPiece);
    plan.block = std::max<int64_t>(kTaskElements / (plan.group_batches * plan.piece), 1);
  } else {
    const int64_t parts = (args.channels * scalar + kLaneBytes - 1) / kLaneBytes;
    plan.block = round_up((args.channels + parts - 1) / parts, lanes);
    plan.piece = std::min(args.length, std::max(kTaskElements / plan.block, kLanePiece));
  }
  plan.block = std::min(plan.block, args.channels);
  plan.row = round_up(plan.block, lanes);
  const int64_t groups = (args.batch + plan.group_batches - 1) / plan.group_batches;
  const int64_t pieces = (args.length + plan.piece - 1) / plan.piece;
  const int64_t blocks = (args.channels + plan.block - 1) / plan.block;
  const int64_t tasks = groups * pieces * blocks;

  const int64_t sums = groups * pieces * args.channels * kConvSums;
  const Arena sum_memory(backward != nullptr ? sums * scalar : 0, 1);
  const CausalConvTable::Kernels& kernels = wide ? table.f64 : table.f32;
  const auto kernel = backward != nullptr ? (rows ? kernels.backward_rows : kernels.backward_lanes)
                                          : (rows ? kernels.forward_rows : kernels.forward_lanes);
  const int64_t memory = rows ? conv_row_memory(args.seq_idx != nullptr, plan.piece) : conv_lane_memory(plan.row);
  const int workers = workers_for(parallel, tasks, args.batch * args.channels * args.length, kParallelWork);
  const Arena arena(memory * scalar, workers);
  for_tasks(parallel, workers, tasks, [&](int64_t i, int worker) {
    const int64_t channel = i % blocks * plan.block;
    const int64_t piece = i / blocks % pieces;
    const int64_t group = i / blocks / pieces;
    ConvTask task;
    task.batch_first = group * plan.group_batches;
    task.batch_last = std::min(task.batch_first + plan.group_batches, args.batch);
    task.channel_first = channel;
    task.channel_last = std::min(channel + plan.block, args.channels);
    task.first = piece * plan.piece;
    task.last = std::min(task.first + plan.piece, args.length);
    task.sums = sum_memory.worker(0);
    if (backward != nullptr) {
      task.sums = sum_memory.worker(0) + ((group * pieces + piece) * args.channels + channel) * kConvSums * scalar;
    }
    kernel(plan, task, arena.worker(worker));
  });
  if (backward == nullptr) return;
  if (wide) {
    add_up(*backward, reinterpret_cast<const double*>(sum_memory.worker(0)), groups * pieces);
  } else {
    add_up(*backward, reinterpret_cast<const float*>(sum_memory.worker(0)), groups * pieces);
  }
}

}  // namespace

void causal_conv1d_forward(const CausalConvForward& args, const Parallel& parallel) {
  if (args.batch * args.channels * args.length > 0) convolve(args, nullptr, parallel);
}

void causal_conv1d_backward(const CausalConvBackward& args, const Parallel& parallel) {
  const CausalConvForward& forward = args.forward;
  if (forward.batch * forward.channels * forward.length > 0) {
    convolve(forward, &args, parallel);
    return;
  }
  const size_t scalar = forward.dtype == DType::f64 ? 8 : 4;
  const auto clear = [&](void* data, int64_t count) {
    if (data != nullptr && count > 0) std::memset(data, 0, static_cast<size_t>(count) * scalar);
  };
  clear(args.dweight, forward.channels * forward.width);
  clear(args.dbias, forward.channels);
  clear(args.dinitial_state, forward.batch * forward.channels * (forward.width - 1));
}

void causal_conv1d_update(const CausalConvUpdate& args, const Parallel& parallel) {
  const CausalConvTable& table = causal_conv1d_table();
  const bool wide = args.dtype == DType::f64;
  const int64_t lanes = wide ? table.lanes_f64 : table.lanes_f32;
  const int64_t blocks = (args.channels + lanes - 1) / lanes;
  // Rows that several batch entries name would be written by several threads.
  const int workers = workers_for(parallel, blocks, args.batch * args.channels * args.steps, kParallelWork);
  for_tasks(parallel, workers, blocks, [&](int64_t block, int) {
    for (int64_t b = 0; b < args.batch; ++b) (wide ? table.f64 : table.f32).update(args, b, block * lanes);
  });
}

}  // namespace fgk
