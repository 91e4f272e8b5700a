// SPDX-License-Identifier: Apache-2.0
// The planner of Mamba-2 scans: lays B and C out as rows, hands out heads, adds up partial gradients.
#include "mamba_chunk_scan.h"

#include "isa.h"
#include "mamba_chunk_scan_plan.h"
#include "scan_rows.h"

namespace fgk {

FGK_DEFINE_TABLE_GETTER(chunk_scan_table, ChunkScanTable, kChunkScanTable)

namespace {

ScanProjection as_projection(const HeadProjection& rows) {
  ScanProjection projection;
  projection.data = rows.data;
  projection.batch = rows.batch;
  projection.group = rows.group;
  projection.state = rows.state;
  projection.position = rows.position;
  projection.span = rows.span;
  return projection;
}

template <class T>
class ChunkScan {
  static constexpr bool kDouble = sizeof(T) == 8;

 public:
  ChunkScan(const ChunkScanForward& args, const Parallel& parallel)
      : args_(args),
        parallel_(parallel),
        table_(chunk_scan_table()),
        rows_{args.dtype, args.batch, 1, args.groups, args.length, args.states, parallel},
        work_(args.batch * args.heads * args.channels * args.length * std::max<int64_t>(args.states, 1)) {
    plan_.args = args;
    plan_.B = rows_.lay_out(as_projection(args.B), b_rows_);
    plan_.C = rows_.lay_out(as_projection(args.C), c_rows_);
  }

  void forward() {
    const int64_t lanes = kDouble ? table_.lanes_f64 : table_.lanes_f32;
    const int64_t blocks = round_up(args_.channels, lanes) / lanes;
    const int64_t tasks = args_.batch * args_.heads * blocks;
    const int workers = scan_workers(parallel_, tasks, work_);
    const Arena arena(table_.forward_bytes(plan_), workers);
    for_tasks(parallel_, workers, tasks, [&](int64_t task, int worker) {
      const int64_t head = task / blocks;
      (kDouble ? table_.forward_f64 : table_.forward_f32)(plan_, head / args_.heads, head % args_.heads, task % blocks,
                                                          arena.worker(worker));
    });
  }

  void backward(const ChunkScanBackward& args) {
    const int64_t heads = args_.heads / args_.groups;  // of a group
    const int64_t channels = args_.heads * args_.channels;
    const int64_t splits = scan_splits(args_.batch * args_.groups, heads, channels, args_.states * args_.groups);
    const int64_t projection = splits * rows_.count() * rows_.size();
    ScanMemory<T> dB(projection), dC(projection), dA(args_.batch * args_.heads), dbias(args_.batch * args_.heads);
    ScanMemory<T> dD(args_.D ? args_.batch * channels : 0);
    ChunkScanBackwardPlan plan;
    plan.scan = plan_;
    plan.args = args;
    plan.dB_parts = dB.data();
    plan.dC_parts = dC.data();
    plan.dA_parts = dA.data();
    plan.dbias_parts = dbias.data();
    plan.dD_parts = dD.data();
    const int64_t per_task = (heads + splits - 1) / splits;
    const int64_t tasks = rows_.count() * splits;
    const int workers = scan_workers(parallel_, tasks, work_);
    const Arena arena(table_.backward_bytes(plan_), workers);
    for_tasks(parallel_, workers, tasks, [&](int64_t task, int worker) {
      const int64_t split = task % splits, row = task / splits;
      for (const ScanMemory<T>* sums : {&dB, &dC}) {
        T* part = sums->data() + (split * rows_.count() + row) * rows_.size();
        std::fill(part, part + rows_.size(), T(0));
      }
      for (int64_t i = split * per_task; i < std::min(heads, (split + 1) * per_task); ++i) {
        const int64_t head = row % args_.groups * heads + i;
        (kDouble ? table_.backward_f64 : table_.backward_f32)(plan, row / args_.groups, head, split,
                                                              arena.worker(worker));
      }
    });
    rows_.write_parts(as_projection(args.dB), dB.data(), splits);
    rows_.write_parts(as_projection(args.dC), dC.data(), splits);
    add_up(args.dA, dA.data(), args_.heads, 1);
    if (args_.dt_bias) add_up(args.ddt_bias, dbias.data(), args_.heads, 1);
    if (args_.D) add_up(args.dD, dD.data(), channels, args_.D_per_channel ? 1 : args_.channels);
  }

 private:
  // target[i] = sum over batch entries, and over `run` neighbours, of parts[b][i run ...].
  void add_up(void* target, const T* parts, int64_t count, int64_t run) const {
    T* sums = static_cast<T*>(target);
    std::fill(sums, sums + (run > 0 ? count / run : args_.heads), T(0));
    for (int64_t b = 0; b < args_.batch; ++b) {
      for (int64_t i = 0; i < count; ++i) sums[i / run] += parts[b * count + i];
    }
  }

  const ChunkScanForward& args_;
  const Parallel& parallel_;
  const ChunkScanTable& table_;
  RowsOf<T> rows_;
  ChunkScanPlan plan_;
  std::unique_ptr<ScanMemory<T>> b_rows_;
  std::unique_ptr<ScanMemory<T>> c_rows_;
  int64_t work_;
};

}  // namespace

void chunk_scan_forward(const ChunkScanForward& args, const Parallel& parallel) {
  if (args.batch == 0 || args.heads == 0) return;
  args.dtype == DType::f64 ? ChunkScan<double>(args, parallel).forward() : ChunkScan<float>(args, parallel).forward();
}

void chunk_scan_backward(const ChunkScanBackward& args, const Parallel& parallel) {
  if (args.forward.heads == 0) return;
  if (args.forward.dtype == DType::f64) {
    ChunkScan<double>(args.forward, parallel).backward(args);
  } else {
    ChunkScan<float>(args.forward, parallel).backward(args);
  }
}

}  // namespace fgk
