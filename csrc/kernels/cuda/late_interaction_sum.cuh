// SPDX-License-Identifier: Apache-2.0
// Sums the scores of samples whose rows several blocks share.
#pragma once

#include "late_interaction_maxima.cuh"
#include "late_interaction_params.cuh"

namespace fgk::cuda {

// Scores of samples whose slots were summed one by one: thread per (sample, partner), slots in their order.
template <class Acc>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kThreads, 4) sum_slots_kernel(SumParams<Acc> p) {
  const bool illegal = p.illegal && p.illegal.ld(0) != 0;
  const int64_t step = dev::grid_blocks() * kThreads;
  for (int64_t i = dev::bid() * kThreads + dev::tid(); i < p.rows.batch * p.partners; i += step) {
    const int64_t sample = i / p.partners, k = i % p.partners;
    const int64_t y = p.paired > 0 ? sample * p.paired + k : k;
    const int64_t at = sample * p.row.score_x + y * p.row.score_y;
    if (illegal) {
      p.row.scores.st(at, kInfinity<Acc> - kInfinity<Acc>);
      continue;
    }
    const int64_t first = p.slot_first ? p.slot_first.ld(sample) : sample * p.slots_per_sample;
    const int filled = (p.rows.tokens(sample) + kSlotRows - 1) / kSlotRows;
    Acc total = 0;
    for (int j = 0; j < filled; ++j) total += p.partial.ld((first + j) * p.partners + k);
    const int valid = p.rows.about(sample).valid;
    if (p.mean && valid > 0) total /= static_cast<Acc>(valid);
    p.row.scores.st(at, total);
  }
}

}  // namespace fgk::cuda
