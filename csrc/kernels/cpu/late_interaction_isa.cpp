// SPDX-License-Identifier: Apache-2.0
// Late-interaction forward of one ISA level: packing, the loop over tiles, and the reduction of maxima to scores.
#include <cmath>

#include "../common/convert.h"
#include "late_interaction_columns.h"
#include "late_interaction_isa.h"
#include "late_interaction_tile.h"

namespace fgk {
namespace FGK_ISA_NS {

void store_index(const DirectionOutput& out, int64_t position, int64_t value) {
  if (out.wide_indices) {
    static_cast<int32_t*>(out.indices)[position] = static_cast<int32_t>(value);
  } else {
    static_cast<int16_t*>(out.indices)[position] = static_cast<int16_t>(value);
  }
}

void clear_indices(const DirectionOutput& out, int64_t position, int64_t count) {
  const int64_t width = out.wide_indices ? 4 : 2;  // -1 is all ones in both
  std::memset(static_cast<char*>(out.indices) + position * width, 0xFF, static_cast<size_t>(count * width));
}

StreamSample stream_sample(const TokenBatch& stream, int64_t s, int32_t* map) {
  StreamSample out{};
  out.sample = s;
  out.tokens = stream.tokens(s);
  out.valid = out.tokens;
  out.first_masked = -1;
  if (stream.mask == nullptr) return out;
  const uint8_t* mask = stream.mask + s * stream.length;
  out.valid = 0;
  for (int64_t t = 0; t < out.tokens; ++t) {
    if (mask[t]) {
      map[out.valid++] = static_cast<int32_t>(t);
    } else if (out.first_masked < 0) {
      out.first_masked = t;
    }
  }
  if (out.valid == 0) return out;
  out.first = map[0];
  const bool one_run = map[out.valid - 1] - map[0] + 1 == out.valid;
  out.map = one_run ? nullptr : map;
  return out;
}

namespace {

template <class M>
const char* pack_stream_segment(const ForwardPlan& plan, const StreamSample& s, int64_t t0, int64_t tokens, char* dst) {
  using Step = typename M::Step;
  const int64_t row_bytes = plan.steps * static_cast<int64_t>(sizeof(Step));
  const TokenBatch& stream = plan.stream;
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t token = s.original(t0 + t);
    const char* src = stream.token(s.sample, token);
    char* row = dst + t * row_bytes;
    if (M::kChannelsPerStep == 1) {
      const float scale = stream.scales ? stream.scales[stream.token_base(s.sample) + token] : 1.0f;
      widen_row(reinterpret_cast<typename M::V::Scalar*>(row), src, stream.dtype, stream.dim, scale);
    } else {  // bf16 pairs, an odd last channel is paired with zero
      std::memset(row + row_bytes - sizeof(Step), 0, sizeof(Step));
      if (stream.dim > 0) std::memcpy(row, src, static_cast<size_t>(stream.dim * 2));  // no channels: src may be null
    }
  }
  return dst;
}

template <class M>
void pack_lane(const ForwardPlan& plan, const char* src, typename M::Step* dst, int64_t stride, void* row) {
  using Step = typename M::Step;
  const Step* values = static_cast<const Step*>(row);
  if (M::kChannelsPerStep == 1) {
    if (plan.lanes.dtype == (sizeof(Step) == 8 ? DType::f64 : DType::f32)) {
      values = reinterpret_cast<const Step*>(src);
    } else {
      widen_row(static_cast<typename M::V::Scalar*>(row), src, plan.lanes.dtype, plan.lanes.dim, 1.0f);
    }
  } else {
    static_cast<Step*>(row)[plan.steps - 1] = 0;
    if (plan.lanes.dim > 0) std::memcpy(row, src, static_cast<size_t>(plan.lanes.dim * 2));
  }
  for (int64_t k = 0; k < plan.steps; ++k) dst[k * stride] = values[k];
}

// Visits the blocks that cover lanes [first, last), a whole number of vectors: block(first lane, vectors).
template <int W, class Block>
FGK_INLINE void for_each_block(int64_t first, int64_t last, const Block& block) {
  for (int64_t lane = first; lane < last;) {
    const int vectors = block_vectors((last - lane) / W);
    block(lane, vectors);
    lane += vectors * W;
  }
}

// Transposes the tokens of a group into blocks: (block, step, lane). Lanes without a token are zero.
template <class M, bool kColumns>
void pack_group(const ForwardPlan& plan, const LaneGroup& group, Workspace& work) {
  using Step = typename M::Step;
  constexpr int W = M::V::W;
  Step* packed = reinterpret_cast<Step*>(work.packed_lanes);
  std::memset(packed, 0, static_cast<size_t>(group.lanes * plan.steps) * sizeof(Step));
  int64_t s = group.first_sample;
  auto pack_region = [&](int64_t first, int64_t last) {
    for_each_block<W>(first, last, [&](int64_t block, int vectors) {
      const int64_t end = block + vectors * W;
      for (int64_t lane = block; lane < end; ++lane) {
        while (s < group.last_sample && lane >= plan.samples[s].first_lane + plan.samples[s].valid) ++s;
        if (s == group.last_sample || lane < plan.samples[s].first_lane) continue;
        const int32_t* map = plan.lane_map(s);
        const int64_t i = lane - plan.samples[s].first_lane;
        pack_lane<M>(plan, plan.lanes.token(s, map ? map[i] : i), packed + block * plan.steps + (lane - block),
                     vectors * W, work.extra);
      }
    });
  };
  if (!kColumns) {
    pack_region(0, group.lanes);
    return;
  }
  for (int64_t x = group.first_sample; x < group.last_sample; ++x) {
    const LaneSample& sample = plan.samples[x];
    pack_region(sample.first_lane, sample.first_lane + (sample.valid + W - 1) / W * W);
  }
}

}  // namespace

template <class V>
void finish_rows(const ForwardPlan& plan, const LaneGroup& group, const StreamSample& stream, Workspace& work) {
  using Scalar = typename V::Scalar;
  const DirectionOutput& out = plan.row;
  Scalar* best = static_cast<Scalar*>(work.row_best);
  typename V::Index* index = static_cast<typename V::Index*>(work.row_index);
  for (int64_t s = group.first_sample; s < group.last_sample; ++s) {
    const LaneSample& sample = plan.samples[s];
    Scalar* row = best + sample.first_lane;
    typename V::Index* from = index + sample.first_lane;
    const bool empty = stream.valid == 0;
    if (!empty && plan.zero_padding && stream.first_masked >= 0) {
      for (int64_t i = 0; i < sample.valid; ++i) {
        if (row[i] < 0 || (row[i] == 0 && stream.first_masked < stream.original(from[i]))) {
          row[i] = 0;
          from[i] = -1;
        }
      }
    }
    Scalar total = empty ? Scalar(0) : sum_of<V>(row, sample.valid);
    if (plan.mean && sample.valid > 0) total /= static_cast<Scalar>(sample.valid);
    static_cast<Scalar*>(out.scores)[s * out.score_x + stream.sample * out.score_y] = total;
    if (out.indices == nullptr) continue;
    const int64_t position = plan.lanes.token_base(s) * out.index_x + stream.sample * out.index_y;
    if (empty || sample.first_masked >= 0) clear_indices(out, position, plan.lanes.tokens(s));
    if (empty) continue;
    const int32_t* map = plan.lane_map(s);
    for (int64_t i = 0; i < sample.valid; ++i) {
      store_index(out, position + (map ? map[i] : i), from[i] < 0 ? -1 : stream.original(from[i]));
    }
  }
}

template void finish_rows<F32>(const ForwardPlan&, const LaneGroup&, const StreamSample&, Workspace&);

namespace {

// The best lane of every stream token of a segment; returns the sum of their scores.
template <class V>
double finish_columns(const ForwardPlan& plan, int64_t lane_sample, const StreamSample& stream, int64_t t0,
                      int64_t tokens, const Workspace& work) {
  using Scalar = typename V::Scalar;
  const LaneSample& sample = plan.samples[lane_sample];
  const DirectionOutput& out = plan.column;
  const int64_t position = plan.stream.token_base(stream.sample) * out.index_x + lane_sample * out.index_y;
  const int32_t* map = plan.lane_map(lane_sample);
  const bool floor = plan.zero_padding && sample.first_masked >= 0;
  ColumnReader<V> reader(static_cast<const Scalar*>(work.column_best),
                         static_cast<const typename V::Index*>(work.column_index));
  double total = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    Scalar value;
    int64_t lane;
    reader.read(t, value, lane);
    int64_t token = map ? map[lane] : lane;
    if (floor && (value < 0 || (value == 0 && sample.first_masked < token))) {
      value = 0;
      token = -1;
    }
    total += value;
    if (out.indices) store_index(out, position + stream.original(t0 + t), token);
  }
  return total;
}

template <class M, bool kColumns>
void forward(const ForwardPlan& plan, Workspace& work, const ForwardTask& task) {
  using V = typename M::V;
  using Scalar = typename V::Scalar;
  using Step = typename M::Step;
  const LaneGroup& group = plan.groups[task.group];
  if (work.packed_group != task.group) {
    pack_group<M, kColumns>(plan, group, work);
    work.packed_group = task.group;
  }
  const Step* packed = reinterpret_cast<const Step*>(work.packed_lanes);
  Scalar* row_best = static_cast<Scalar*>(work.row_best);
  typename V::Index* row_index = static_cast<typename V::Index*>(work.row_index);
  TileState<V> state{};
  state.indices = plan.row.indices != nullptr || plan.column.indices != nullptr || plan.zero_padding;
  state.column_best = static_cast<Scalar*>(work.column_best);
  state.column_index = static_cast<typename V::Index*>(work.column_index);

  const int64_t source_stride = plan.stream.token_stride * dtype_bytes(plan.stream.dtype);
  for (int64_t s = task.stream_first; s < task.stream_last; ++s) {
    const StreamSample stream = stream_sample(plan.stream, s, work.stream_token);
    for (int64_t lane = 0; lane < group.lanes; ++lane) {
      row_best[lane] = -INFINITY;
      row_index[lane] = 0;
    }
    if (kColumns) {
      for (int64_t x = group.first_sample; x < group.last_sample; ++x) {
        work.column_total[x - group.first_sample] = 0;
        if (plan.column.indices && (stream.first_masked >= 0 || plan.samples[x].valid == 0)) {
          const int64_t position = plan.stream.token_base(s) * plan.column.index_x + x * plan.column.index_y;
          clear_indices(plan.column, position, stream.tokens);
        }
      }
    }
    for (int64_t t0 = 0; t0 < stream.valid; t0 += plan.segment) {
      const int64_t tokens = stream.valid - t0 < plan.segment ? stream.valid - t0 : plan.segment;
      const char* rows = plan.stream.token(s, stream.first + t0);
      int64_t stride = source_stride;
      if (plan.pack_stream || stream.map != nullptr) {
        rows = pack_stream_segment<M>(plan, stream, t0, tokens, work.packed_stream);
        stride = plan.steps * static_cast<int64_t>(sizeof(Step));
      }
      state.first_token = t0;
      state.ahead_stride = source_stride;
      state.ahead =
          plan.stream.token(s, stream.first + t0) + (rows == work.packed_stream ? tokens : kTileTokens) * source_stride;
      auto run_blocks = [&](int64_t first, int64_t last, int64_t end_of_tokens) {
        for_each_block<V::W>(first, last, [&](int64_t lane, int vectors) {
          state.row_best = row_best + lane;
          state.row_index = row_index + lane;
          state.first_lane = lane - first;
          state.valid_lanes = end_of_tokens - lane;
          const Step* block = packed + lane * plan.steps;
          if (vectors == 2) {
            segment_block<M, 2, kColumns>(block, plan.steps, rows, stride, tokens, state);
          } else if (vectors == 1) {
            segment_block<M, 1, kColumns>(block, plan.steps, rows, stride, tokens, state);
          } else {
            segment_block<M, kMaxBlockVectors, kColumns>(block, plan.steps, rows, stride, tokens, state);
          }
        });
      };
      if (!kColumns) {
        run_blocks(0, group.lanes, group.lanes);
        continue;
      }
      for (int64_t x = group.first_sample; x < group.last_sample; ++x) {
        const LaneSample& sample = plan.samples[x];
        if (sample.valid == 0) continue;
        for (int64_t i = 0; i < tokens * V::W; ++i) {
          state.column_best[i] = -INFINITY;
          state.column_index[i] = 0;
        }
        const int64_t last = sample.first_lane + (sample.valid + V::W - 1) / V::W * V::W;
        run_blocks(sample.first_lane, last, sample.first_lane + sample.valid);
        work.column_total[x - group.first_sample] += finish_columns<V>(plan, x, stream, t0, tokens, work);
      }
    }
    finish_rows<V>(plan, group, stream, work);
    if (kColumns) {
      for (int64_t x = group.first_sample; x < group.last_sample; ++x) {
        double total = work.column_total[x - group.first_sample];
        if (plan.mean && stream.valid > 0) total /= static_cast<double>(stream.valid);
        static_cast<Scalar*>(plan.column.scores)[s * plan.column.score_x + x * plan.column.score_y] =
            static_cast<Scalar>(total);
      }
    }
  }
}

template <class M>
void forward_any(const ForwardPlan& plan, Workspace& work, const ForwardTask& task) {
  if (plan.column.scores != nullptr) {
    forward<M, true>(plan, work, task);
  } else {
    forward<M, false>(plan, work, task);
  }
}

}  // namespace

// The planner and the int8 path live in other files; this level's entry points are collected here.
extern const LateInteractionTable kLateInteractionTable;
const LateInteractionTable kLateInteractionTable = {
    F32::W,
    F64::W,
    kTileTokens,
    kColumnSlack,
    forward_any<FmaMath<F32>>,
    forward_any<FmaMath<F64>>,
#if defined(__AVX512BF16__)
    forward_any<Bf16Math>,
#else
    nullptr,
#endif
#if defined(FGK_LEVEL_AVX512_BF16)
    forward_int8,
#else
    nullptr,
#endif
    backward_f32,
    backward_f64,
};

}  // namespace FGK_ISA_NS
}  // namespace fgk
