// SPDX-License-Identifier: Apache-2.0
// Pieces of the late-interaction forward that its fp and int8 paths share. Included by *_isa.cpp files only.
#pragma once

#include "../common/simd.h"
#include "late_interaction_plan.h"

namespace fgk {
namespace FGK_ISA_NS {

// One sample of the stream side with its masked tokens taken out.
struct StreamSample {
  int64_t sample;
  int64_t tokens;  // masked ones included
  int64_t valid;
  int64_t first;         // first valid token
  int64_t first_masked;  // -1: none
  const int32_t* map;    // original token of each valid one; null when they form one run
  int64_t original(int64_t t) const { return map ? map[t] : first + t; }
};

StreamSample stream_sample(const TokenBatch& stream, int64_t s, int32_t* map);
void store_index(const DirectionOutput& out, int64_t position, int64_t value);
void clear_indices(const DirectionOutput& out, int64_t position, int64_t count);

// Reduces the row maxima of every sample of a group to scores, and writes their indices.
template <class V>
void finish_rows(const ForwardPlan& plan, const LaneGroup& group, const StreamSample& stream, Workspace& work);

void forward_int8(const ForwardPlan& plan, Workspace& work, const ForwardTask& task);
void backward_f32(const BackwardPlan& plan, const BackwardTask& task, void* accumulators);
void backward_f64(const BackwardPlan& plan, const BackwardTask& task, void* accumulators);

}  // namespace FGK_ISA_NS
}  // namespace fgk
