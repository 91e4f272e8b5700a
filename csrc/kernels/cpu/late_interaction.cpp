// SPDX-License-Identifier: Apache-2.0
// The planner of late interaction: chooses the vector side, cuts the work into tasks, owns all scratch memory.
#include "late_interaction.h"

#include <algorithm>
#include <vector>

#include "isa.h"
#include "late_interaction_plan.h"
#include "workspace.h"

namespace fgk {

FGK_DEFINE_TABLE_GETTER(late_interaction_table, LateInteractionTable, kLateInteractionTable)

namespace {

// Half of a core's L2: the packed lanes of a group stay there while documents stream past.
constexpr int64_t kGroupBytes = 512 * 1024;
constexpr int64_t kSegmentBytes = 256 * 1024;
// Below this many multiply-adds a second thread costs more than it brings.
constexpr int64_t kParallelWork = int64_t(1) << 20;
constexpr int64_t kTasksPerThread = 16;
constexpr int64_t kMaxInt8Depth = 65536;  // 255 * 127 * depth fits an int32

int64_t valid_tokens(const TokenBatch& batch, int64_t s) {
  if (batch.mask == nullptr) return batch.tokens(s);
  const uint8_t* mask = batch.mask + s * batch.length;
  int64_t count = 0;
  for (int64_t t = 0; t < batch.length; ++t) count += mask[t] != 0;
  return count;
}

std::vector<int64_t> valid_tokens(const TokenBatch& batch) {
  std::vector<int64_t> counts(static_cast<size_t>(batch.batch));
  for (int64_t s = 0; s < batch.batch; ++s) counts[static_cast<size_t>(s)] = valid_tokens(batch, s);
  return counts;
}

// Number of multiply-adds with this side in the lanes, up to the common factor of the depth.
int64_t padded_cost(const std::vector<int64_t>& lanes, const std::vector<int64_t>& stream, int64_t width) {
  int64_t lane_total = 0;
  int64_t stream_total = 0;
  for (int64_t n : lanes) lane_total += round_up(n, width);
  for (int64_t n : stream) stream_total += n;
  return lane_total * stream_total;
}

struct ForwardRun {
  ForwardPlan plan{};
  LateInteractionTable::Forward kernel = nullptr;
  int64_t width = 0;
  int64_t step_bytes = 4;
  bool int8 = false;
  std::vector<LaneGroup> groups;
  std::vector<LaneSample> samples;
  std::vector<int32_t> lane_token;
  std::vector<ForwardTask> tasks;
  int64_t max_group_samples = 0;
};

void choose_kernel(ForwardRun& run, const LateInteractionTable& table) {
  ForwardPlan& plan = run.plan;
  const DType lanes = plan.lanes.dtype;
  const DType stream = plan.stream.dtype;
  const int64_t dim = plan.lanes.dim;
  plan.steps = dim;
  run.width = table.lanes_f32;
  if (lanes == DType::f64) {
    run.kernel = table.forward_f64;
    run.width = table.lanes_f64;
    run.step_bytes = 8;
    plan.pack_stream = stream != DType::f64;
  } else if (lanes == DType::bf16 && stream == DType::bf16 && table.forward_bf16 != nullptr) {
    run.kernel = table.forward_bf16;
    plan.steps = std::max<int64_t>((dim + 1) / 2, 1);
    plan.pack_stream = dim % 2 != 0 || dim == 0;
  } else if (stream == DType::i8 && table.forward_int8 != nullptr && dim > 0 && dim <= kMaxInt8Depth) {
    run.kernel = table.forward_int8;
    run.int8 = true;
    plan.pack_stream = true;
  } else {
    run.kernel = table.forward_f32;
    plan.pack_stream = stream != DType::f32;
  }
}

void plan_lanes(ForwardRun& run, const std::vector<int64_t>& valid, int64_t paired) {
  ForwardPlan& plan = run.plan;
  const TokenBatch& lanes = plan.lanes;
  const bool columns = plan.column.scores != nullptr;
  const int64_t cap = std::max<int64_t>(kGroupBytes / std::max<int64_t>(plan.steps * run.step_bytes, 1), run.width);
  run.samples.resize(valid.size());
  LaneGroup group{0, 0, 0, 0, plan.stream.batch};
  auto close_group = [&](int64_t next) {
    if (group.last_sample > group.first_sample) {
      group.lanes = round_up(group.lanes, run.width);
      if (paired > 0) {
        group.stream_first = group.first_sample * paired;
        group.stream_last = group.last_sample * paired;
      }
      plan.max_lanes = std::max(plan.max_lanes, group.lanes);
      run.max_group_samples = std::max(run.max_group_samples, group.last_sample - group.first_sample);
      run.groups.push_back(group);
    }
    group.first_sample = group.last_sample = next;
    group.lanes = 0;
  };
  for (int64_t s = 0; s < lanes.batch; ++s) {
    LaneSample& sample = run.samples[static_cast<size_t>(s)];
    sample.valid = valid[static_cast<size_t>(s)];
    sample.first_masked = -1;
    sample.map_first = static_cast<int64_t>(run.lane_token.size());
    if (sample.valid < lanes.tokens(s)) {
      const uint8_t* mask = lanes.mask + s * lanes.length;
      for (int64_t t = 0; t < lanes.length; ++t) {
        if (mask[t]) {
          run.lane_token.push_back(static_cast<int32_t>(t));
        } else if (sample.first_masked < 0) {
          sample.first_masked = t;
        }
      }
    }
    const int64_t needed = columns ? round_up(sample.valid, run.width) : sample.valid;
    if (paired > 0 || group.lanes + needed > cap) close_group(s);
    sample.first_lane = group.lanes;
    group.lanes += needed;
    group.last_sample = s + 1;
  }
  close_group(lanes.batch);
  plan.groups = run.groups.data();
  plan.samples = run.samples.data();
  plan.lane_token = run.lane_token.data();
}

void plan_tasks(ForwardRun& run, const std::vector<int64_t>& stream_valid, int threads) {
  std::vector<int64_t> cost_before(stream_valid.size() + 1, 0);
  constexpr int64_t kSampleCost = 2;  // in tokens: what a sample costs besides its tokens
  for (size_t s = 0; s < stream_valid.size(); ++s) cost_before[s + 1] = cost_before[s] + stream_valid[s] + kSampleCost;
  int64_t total = 0;
  for (const LaneGroup& group : run.groups) {
    total += group.lanes * (cost_before[static_cast<size_t>(group.stream_last)] -
                            cost_before[static_cast<size_t>(group.stream_first)]);
  }
  const int64_t target = std::max<int64_t>(threads > 1 ? total / (threads * kTasksPerThread) : total, 1);
  for (size_t g = 0; g < run.groups.size(); ++g) {
    const LaneGroup& group = run.groups[g];
    int64_t first = group.stream_first;
    for (int64_t s = first; s < group.stream_last; ++s) {
      const int64_t cost =
          group.lanes * (cost_before[static_cast<size_t>(s + 1)] - cost_before[static_cast<size_t>(first)]);
      if (cost >= target || s + 1 == group.stream_last) {
        run.tasks.push_back({static_cast<int64_t>(g), first, s + 1});
        first = s + 1;
      }
    }
  }
}

int64_t assign_workspace(const ForwardRun& run, const LateInteractionTable& table, char* base, Workspace& work) {
  const ForwardPlan& plan = run.plan;
  const bool columns = plan.column.scores != nullptr;
  const int64_t cells = columns ? (plan.segment + table.column_slack) * run.width : 0;
  const bool may_pack = plan.pack_stream || plan.stream.mask != nullptr;
  Layout layout(base);
  work.packed_lanes = layout.take(plan.max_lanes * plan.steps * run.step_bytes);
  work.packed_stream = layout.take(may_pack ? plan.segment * plan.steps * run.step_bytes : 0);
  work.row_best = layout.take(plan.max_lanes * 8);
  work.row_index = layout.take(plan.max_lanes * 8);
  work.column_best = layout.take(run.int8 ? plan.segment * int64_t(sizeof(float)) : cells * 8);  // int8: token scales
  work.column_index = layout.take(cells * 8);
  work.column_total = reinterpret_cast<double*>(layout.take(run.max_group_samples * 8));
  work.stream_token =
      reinterpret_cast<int32_t*>(layout.take(plan.stream.mask ? plan.stream.length * int64_t(sizeof(int32_t)) : 0));
  work.extra = layout.take(run.int8 ? int8_scratch_bytes(plan.max_lanes, plan.lanes.dim, plan.segment)
                                    : plan.steps * run.step_bytes);
  return layout.used();
}

}  // namespace

void late_interaction_forward(const LateInteractionForward& args, const Parallel& parallel) {
  if (args.a.batch == 0 || args.b.batch == 0) return;
  const LateInteractionTable& table = late_interaction_table();
  ForwardRun run;
  ForwardPlan& plan = run.plan;
  plan.lanes = args.a;
  plan.stream = args.b;
  plan.row = args.ab;
  plan.column = args.ba;
  plan.mean = args.mean;
  plan.zero_padding = args.zero_padding;
  std::vector<int64_t> lane_valid = valid_tokens(args.a);
  std::vector<int64_t> stream_valid = valid_tokens(args.b);
  choose_kernel(run, table);
  if (plan.column.scores != nullptr &&
      padded_cost(stream_valid, lane_valid, run.width) < padded_cost(lane_valid, stream_valid, run.width)) {
    std::swap(plan.lanes, plan.stream);
    std::swap(plan.row, plan.column);
    std::swap(lane_valid, stream_valid);
  }
  plan_lanes(run, lane_valid, args.paired);

  int64_t lane_total = 0;
  for (const LaneGroup& group : run.groups) lane_total += group.lanes;
  int64_t stream_total = 0;
  int64_t longest = 0;
  for (int64_t n : stream_valid) {
    stream_total += n;
    longest = std::max(longest, n);
  }
  if (args.paired > 0) lane_total = run.groups.empty() ? 0 : lane_total / static_cast<int64_t>(run.groups.size());
  const double work = double(lane_total) * double(stream_total) * double(std::max<int64_t>(plan.steps, 1));
  const int threads = work < double(kParallelWork) ? 1 : std::max(parallel.threads, 1);
  plan_tasks(run, stream_valid, threads);

  const int64_t segment = kSegmentBytes / std::max<int64_t>(plan.steps * run.step_bytes, 1);
  plan.segment = std::max<int64_t>(segment / table.tile_tokens, 1) * table.tile_tokens;
  plan.segment = std::min(plan.segment, std::max<int64_t>(longest, 1));
  if (run.int8) plan.segment = std::min(plan.segment, kMaxInt8Segment);

  const int workers = static_cast<int>(std::min<int64_t>(threads, static_cast<int64_t>(run.tasks.size())));
  Workspace measure{};
  const Arena arena(assign_workspace(run, table, nullptr, measure), workers);
  TaskQueue queue(static_cast<int64_t>(run.tasks.size()));
  parallel.run(workers, [&](int worker) {
    Workspace workspace{};
    assign_workspace(run, table, arena.worker(worker), workspace);
    for (int64_t task = queue.next(); task >= 0; task = queue.next()) {
      run.kernel(plan, workspace, run.tasks[static_cast<size_t>(task)]);
    }
  });
}

void late_interaction_backward(const LateInteractionBackward& args, const Parallel& parallel) {
  const LateInteractionTable& table = late_interaction_table();
  const TokenBatch& owner = args.owner;
  const bool wide = owner.dtype == DType::f64;
  BackwardPlan plan{};
  plan.args = args;
  plan.in_place = owner.dtype == DType::f64 || owner.dtype == DType::f32;
  auto weights = [&](const TokenBatch& batch) {
    std::vector<double> weight(static_cast<size_t>(batch.batch), 1.0);
    for (int64_t s = 0; args.mean && s < batch.batch; ++s) {
      const int64_t valid = valid_tokens(batch, s);
      weight[static_cast<size_t>(s)] = valid > 0 ? 1.0 / static_cast<double>(valid) : 0.0;
    }
    return weight;
  };
  const std::vector<double> own_weight = weights(owner);
  const std::vector<double> other_weight = weights(args.other);
  plan.own_weight = own_weight.data();
  plan.other_weight = other_weight.data();

  int64_t total_tokens = 0;
  for (int64_t s = 0; s < owner.batch; ++s) total_tokens += owner.tokens(s);
  int64_t other_tokens = 0;
  for (int64_t s = 0; s < args.other.batch; ++s) other_tokens += args.other.tokens(s);
  const double pairs = args.paired > 0 ? 1.0 : double(args.other.batch);
  const double work = (double(total_tokens) * pairs + double(other_tokens)) * double(owner.dim);
  const int threads = work < double(kParallelWork) ? 1 : std::max(parallel.threads, 1);

  // Several owner samples at a time share each pass over the other side, as long as their sums stay in L2.
  const int64_t scalar = wide ? 8 : 4;
  const int64_t cap = std::max<int64_t>(kSegmentBytes / std::max<int64_t>(owner.dim * scalar, 1), 1);
  const int64_t enough = std::max<int64_t>(total_tokens / (threads * kTasksPerThread / 4), 1);
  std::vector<BackwardTask> tasks;
  int64_t first = 0;
  int64_t pending = 0;
  int64_t task_tokens = 0;
  for (int64_t s = 0; s < owner.batch; ++s) {
    const int64_t n = owner.tokens(s);
    if (threads > 1 && owner.batch < threads) {  // few samples: cut each into token ranges
      const int64_t part = round_up((n + threads - 1) / threads, 8);
      for (int64_t t = 0; t < n; t += part) tasks.push_back({s, s + 1, t, std::min(n, t + part)});
      task_tokens = std::max(task_tokens, std::min(part, n));
      first = s + 1;
      continue;
    }
    pending += n;
    if (pending + n > cap || pending >= enough || s + 1 == owner.batch) {
      tasks.push_back({first, s + 1, 0, -1});
      task_tokens = std::max(task_tokens, pending);
      first = s + 1;
      pending = 0;
    }
  }

  const int workers = static_cast<int>(std::max<int64_t>(std::min<int64_t>(threads, int64_t(tasks.size())), 1));
  const int64_t sums = plan.in_place ? 0 : task_tokens * owner.dim * scalar;
  const Arena arena(round_up(sums, 64) + owner.dim * scalar, workers);
  TaskQueue queue(static_cast<int64_t>(tasks.size()));
  parallel.run(workers, [&](int worker) {
    for (int64_t task = queue.next(); task >= 0; task = queue.next()) {
      (wide ? table.backward_f64 : table.backward_f32)(plan, tasks[static_cast<size_t>(task)], arena.worker(worker));
    }
  });
}

}  // namespace fgk
