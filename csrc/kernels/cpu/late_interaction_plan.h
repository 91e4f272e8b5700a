// SPDX-License-Identifier: Apache-2.0
// What the planner (late_interaction.cpp) hands to the code of one ISA level (late_interaction_*isa.cpp): plain data.
#pragma once

#include <cstdint>

#include "late_interaction.h"

namespace fgk {

// "Lanes": the side packed with tokens across vector lanes. "Stream": the side whose tokens are broadcast one by one.
struct LaneGroup {
  int64_t first_sample;
  int64_t last_sample;
  int64_t lanes;         // including padding lanes
  int64_t stream_first;  // samples of the stream side that this group meets
  int64_t stream_last;
};

struct LaneSample {
  int64_t first_lane;    // within its group
  int64_t valid;         // unmasked tokens
  int64_t first_masked;  // -1: none
  int64_t map_first;     // where its tokens start in ForwardPlan::lane_token
};

struct ForwardTask {
  int64_t group;
  int64_t stream_first;
  int64_t stream_last;
};

struct ForwardPlan {
  TokenBatch lanes;
  TokenBatch stream;
  DirectionOutput row;     // per lane token, the best stream token
  DirectionOutput column;  // per stream token, the best lane token
  bool mean;
  bool zero_padding;
  bool pack_stream;  // stream tokens must be converted or copied before the micro-kernel can read them
  int64_t steps;     // depth of the micro-kernel: dim, or ceil(dim / 2) for bf16 pairs
  int64_t segment;   // stream tokens handled at a time
  int64_t max_lanes;
  const LaneGroup* groups;
  const LaneSample* samples;
  const int32_t* lane_token;  // original token of each valid lane, all samples one after another; null without a mask

  // Original tokens of the valid lanes of sample s, or null when lane i is token i.
  FGK_INLINE const int32_t* lane_map(int64_t s) const {
    return samples[s].first_masked >= 0 ? lane_token + samples[s].map_first : nullptr;
  }
};

struct Workspace {
  char* packed_lanes;
  char* packed_stream;
  void* row_best;
  void* row_index;
  void* column_best;
  void* column_index;
  double* column_total;   // per lane sample of the group
  int32_t* stream_token;  // original token of each valid stream token
  char* extra;            // one converted row, or what int8 screening needs
  int64_t packed_group = -1;
};

// The int8 screen keeps a token's number within its segment in ten bits.
constexpr int64_t kMaxInt8Segment = 1024;

// Workspace::extra of the int8 path: rounded lanes, four numbers per lane, and the screen's scores of a segment.
FGK_INLINE int64_t int8_scratch_bytes(int64_t lanes, int64_t dim, int64_t segment) {
  return lanes * ((dim + 3) / 4 * 4 + 4 * 4) + segment * 3 * (16 * 4 + 8) + 8 * 64;
}

struct BackwardPlan {
  LateInteractionBackward args;
  const double* own_weight;    // per owner sample: 1 / valid tokens, or 1
  const double* other_weight;  // per sample of the other side
  bool in_place;               // accumulate in the gradient itself: same type and zeroed
};

// Owner samples [sample_first, sample_last), and of each the tokens [token_first, token_last).
struct BackwardTask {
  int64_t sample_first;
  int64_t sample_last;
  int64_t token_first;
  int64_t token_last;
};

// One row per ISA level; the planner owns all memory, the functions only compute.
struct LateInteractionTable {
  using Forward = void (*)(const ForwardPlan&, Workspace&, const ForwardTask&);
  using Backward = void (*)(const BackwardPlan&, const BackwardTask&, void* accumulators);
  int lanes_f32;
  int lanes_f64;
  int tile_tokens;
  int column_slack;
  Forward forward_f32;
  Forward forward_f64;
  Forward forward_bf16;  // null: through forward_f32
  Forward forward_int8;  // null: through forward_f32
  Backward backward_f32;
  Backward backward_f64;
};

const LateInteractionTable& late_interaction_table();

}  // namespace fgk
