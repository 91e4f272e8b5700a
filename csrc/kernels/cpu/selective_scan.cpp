// SPDX-License-Identifier: Apache-2.0
// The planner of selective scans: lays B and C out as rows, hands out blocks of channels, adds up partial gradients.
#include "selective_scan.h"

#include "isa.h"
#include "scan_rows.h"

namespace fgk {

FGK_DEFINE_TABLE_GETTER(selective_scan_table, SelectiveScanTable, kSelectiveScanTable)

namespace {

// Up to this size B and C are each laid out once for all blocks, which then share them.
constexpr int64_t kSharedLayoutBytes = int64_t(4) << 20;

template <class T>
class Scan {
  static constexpr bool kDouble = sizeof(T) == 8;

 public:
  Scan(const SelectiveScanForward& args, const Parallel& parallel)
      : args_(args),
        parallel_(parallel),
        table_(selective_scan_table()),
        rows_{args.dtype, args.batch, args.directions, args.groups, args.length, args.states, parallel} {
    lanes_ = kDouble ? table_.lanes_f64 : table_.lanes_f32;
    blocks_ = round_up(args.channels / args.groups, lanes_) / lanes_;  // of a group
    work_ = args.batch * args.directions * args.channels * args.length * std::max<int64_t>(args.states, 1);
    plan_.args = args;
    plan_.rows = args.table ? args.length : std::min(args.length, kScanChunk);
  }

  void forward() {
    const int64_t layout_bytes = rows_.count() * rows_.size() * static_cast<int64_t>(sizeof(T));
    if (args_.table || layout_bytes <= kSharedLayoutBytes) {
      plan_.B = rows_.lay_out(args_.B, b_rows_);
      plan_.C = rows_.lay_out(args_.C, c_rows_);
    } else {  // each block lays out one chunk at a time: a long sequence takes no more memory than a short one
      plan_.B = rows_.in_place(args_.B);
      plan_.C = rows_.in_place(args_.C);
    }
    const int64_t tasks = args_.batch * args_.groups * blocks_;
    const int workers = scan_workers(parallel_, tasks, work_);
    const Arena arena(table_.forward_bytes(plan_), workers);
    for_tasks(parallel_, workers, tasks, [&](int64_t task, int worker) {
      const ScanBlock block = block_of(task / blocks_, task % blocks_);
      (kDouble ? table_.forward_f64 : table_.forward_f32)(plan_, block, arena.worker(worker));
    });
  }

  void backward(const SelectiveScanBackward& args) {
    plan_.B = rows_.lay_out(args_.B, b_rows_);
    plan_.C = rows_.lay_out(args_.C, c_rows_);
    ScanBackwardPlan plan;
    plan.scan = plan_;
    plan.args = args;
    plan.splits = scan_splits(args_.batch * args_.groups, blocks_, args_.channels, args_.states * args_.groups);
    const int64_t rows = args_.batch * args_.directions;
    const int64_t states = rows * args_.channels * args_.states;
    const int64_t projection = rows * args_.groups * args_.length * args_.states;
    ScanMemory<T> dA(states), dB_constant(args_.B.constant ? states : 0), dC_constant(args_.C.constant ? states : 0);
    ScanMemory<T> dD(args_.D ? rows * args_.channels : 0), dbias(args_.delta_bias ? rows * args_.channels : 0);
    ScanMemory<T> dB(args_.B.constant ? 0 : plan.splits * projection),
        dC(args_.C.constant ? 0 : plan.splits * projection);
    plan.dA_parts = dA.data();
    plan.dB_constant_parts = dB_constant.data();
    plan.dC_constant_parts = dC_constant.data();
    plan.dD_parts = dD.data();
    plan.dbias_parts = dbias.data();
    plan.dB_parts = args_.B.constant ? nullptr : dB.data();
    plan.dC_parts = args_.C.constant ? nullptr : dC.data();
    const int64_t per_task = (blocks_ + plan.splits - 1) / plan.splits;
    const int64_t tasks = args_.batch * args_.groups * plan.splits;
    const int workers = scan_workers(parallel_, tasks, work_);
    const Arena arena(table_.backward_bytes(plan_), workers);
    for_tasks(parallel_, workers, tasks, [&](int64_t task, int worker) {
      const int64_t split = task % plan.splits;
      clear_parts(plan, task / plan.splits, split);
      for (int64_t i = split * per_task; i < std::min(blocks_, (split + 1) * per_task); ++i) {
        const ScanBlock block = block_of(task / plan.splits, i);
        (kDouble ? table_.backward_f64 : table_.backward_f32)(plan, block, split, arena.worker(worker));
      }
    });
    if (!args_.B.constant) rows_.write_parts(args.dB, dB.data(), plan.splits);
    if (!args_.C.constant) rows_.write_parts(args.dC, dC.data(), plan.splits);
    const int64_t per_direction = args_.channels * args_.states;
    add_parameter(args.dA, dA.data(), per_direction, args_.shared_parameters);
    if (args_.B.constant) add_parameter(args.dB.data, dB_constant.data(), per_direction, args_.B.direction == 0);
    if (args_.C.constant) add_parameter(args.dC.data, dC_constant.data(), per_direction, args_.C.direction == 0);
    if (args_.D) add_parameter(args.dD, dD.data(), args_.channels, args_.shared_parameters);
    if (args_.delta_bias) add_parameter(args.ddelta_bias, dbias.data(), args_.channels, args_.shared_parameters);
  }

 private:
  ScanBlock block_of(int64_t batch_and_group, int64_t block) const {
    return {batch_and_group / args_.groups, batch_and_group % args_.groups, block * lanes_};
  }

  void clear_parts(const ScanBackwardPlan& plan, int64_t batch_and_group, int64_t split) const {
    const int64_t b = batch_and_group / args_.groups, g = batch_and_group % args_.groups;
    const int64_t size = args_.length * args_.states;
    for (void* parts : {plan.dB_parts, plan.dC_parts}) {
      if (parts == nullptr) continue;
      for (int64_t k = 0; k < args_.directions; ++k) {
        const int64_t row = ((split * args_.batch + b) * args_.directions + k) * args_.groups + g;
        std::memset(static_cast<T*>(parts) + row * size, 0, static_cast<size_t>(size) * sizeof(T));
      }
    }
  }

  // target[k][i] = sum over batch entries (and over directions if they share the parameter) of parts[b][k][i].
  void add_parameter(void* target, const T* parts, int64_t size, bool shared) const {
    T* sums = static_cast<T*>(target);
    const int64_t rows = args_.batch * args_.directions;
    const int64_t outputs = shared ? 1 : args_.directions;
    std::fill(sums, sums + outputs * size, T(0));
    for (int64_t row = 0; row < rows; ++row) {
      T* sum = sums + (shared ? 0 : row % args_.directions) * size;
      for (int64_t i = 0; i < size; ++i) sum[i] += parts[row * size + i];
    }
  }

  const SelectiveScanForward& args_;
  const Parallel& parallel_;
  const SelectiveScanTable& table_;
  RowsOf<T> rows_;
  ScanPlan plan_;
  std::unique_ptr<ScanMemory<T>> b_rows_;
  std::unique_ptr<ScanMemory<T>> c_rows_;
  int64_t lanes_ = 0;
  int64_t blocks_ = 0;
  int64_t work_ = 0;
};

}  // namespace

void selective_scan_forward(const SelectiveScanForward& args, const Parallel& parallel) {
  if (args.batch == 0 || args.channels == 0) return;
  args.dtype == DType::f64 ? Scan<double>(args, parallel).forward() : Scan<float>(args, parallel).forward();
}

void selective_scan_backward(const SelectiveScanBackward& args, const Parallel& parallel) {
  if (args.forward.channels == 0) return;
  if (args.forward.dtype == DType::f64) {
    Scan<double>(args.forward, parallel).backward(args);
  } else {
    Scan<float>(args.forward, parallel).backward(args);
  }
}

void state_update(const StateUpdate& args, const Parallel& parallel) {
  const SelectiveScanTable& table = selective_scan_table();
  const bool wide = args.state_dtype == DType::f64 || args.dtype == DType::f64;
  // Work is cut into runs of channels of one head of one batch entry.
  constexpr int64_t kRun = 64;
  const int64_t runs = round_up(args.channels, kRun) / kRun;
  const int64_t tasks = args.batch * args.heads * runs;
  const int workers = scan_workers(parallel, tasks, args.batch * args.heads * args.channels * args.states);
  for_tasks(parallel, workers, tasks, [&](int64_t task, int) {
    const int64_t first = task % runs * kRun;
    const int64_t last = std::min(args.channels, first + kRun);
    const int64_t row = task / runs;
    (wide ? table.update_f64 : table.update_f32)(args, row / args.heads, row % args.heads, first, last);
  });
}

}  // namespace fgk
