// SPDX-License-Identifier: Apache-2.0
// The order in which maxima are decided: NaN over numbers, then the larger, then the lower index; and maxima joined
// over lanes.
#pragma once

#include "device.cuh"

namespace fgk::cuda {

// The best value so far of a maximum and who gave it.
template <class V>
struct Best {
  V value;
  int index;
};

template <class V>
constexpr V kInfinity = static_cast<V>(__builtin_huge_val());

// A later candidate, if allowed, wins when it is larger, or the first NaN. Without branches.
template <class V>
FGK_DEVICE void take(Best<V>& best, V value, int index, bool allowed) {
  const bool wins = allowed & !(value <= best.value) & !dev::isnan(best.value);
  best.value = wins ? value : best.value;
  best.index = wins ? index : best.index;
}

// Joins two maxima of interleaved candidates: NaN over numbers, then the larger, then the lower index.
template <class V>
FGK_DEVICE Best<V> better_of(const Best<V>& a, const Best<V>& b) {
  const bool same = a.value == b.value || (dev::isnan(a.value) && dev::isnan(b.value));
  const bool b_wins = b.value > a.value || (dev::isnan(b.value) && !dev::isnan(a.value)) || (same && b.index < a.index);
  return b_wins ? b : a;
}

// A masked candidate counts as a zero: it beats negative maxima, and zeros of a higher index.
template <class V>
FGK_DEVICE void raise_to_zero(Best<V>& best, int first_masked) {
  if (first_masked < 0) return;
  if (best.value < V(0) || (best.value == V(0) && first_masked < best.index)) best = {V(0), -1};
}

// What the lane at distance `mask` has; without indices all are the same.
template <bool kIndices, class V>
FGK_DEVICE Best<V> from_lane(const Best<V>& best, int mask) {
  const V value = dev::shfl_xor(best.value, mask);
  if constexpr (!kIndices) return {value, best.index};
  const int index = dev::shfl_xor(best.index, mask);
  return {value, index};
}

// How many of `count` maxima a lane ends up with in join_lanes.
FGK_HOST_DEVICE constexpr int joined(int count) {
  for (int step = 0; step < 3 && count % 2 == 0; ++step) count /= 2;
  return count;
}

// Joins kCount maxima over the eight lanes 4 g + t (all g) with the same t, lane bits 16, 8 and 4 one after the other.
// At each bit the lanes split the maxima: each gives one half away and joins the other half, so less is exchanged every
// time. Returns which one best[0] is in the end, of joined(kCount) that follow each other; -1 where another lane has
// the same ones.
template <bool kIndices, int kCount, int kMask = 16, class V, int N>
FGK_DEVICE int join_lanes(Best<V> (&best)[N], int first = 0) {
  if constexpr (kMask < 4) {
    return first;
  } else if constexpr (kCount % 2 == 0) {
    const bool upper = (dev::lane() & kMask) != 0;
    constexpr int kHalf = kCount / 2;
    FGK_UNROLL
    for (int k = 0; k < kHalf; ++k) {
      const Best<V> kept = upper ? best[k + kHalf] : best[k];
      const Best<V> given = upper ? best[k] : best[k + kHalf];
      best[k] = better_of(kept, from_lane<kIndices>(given, kMask));
    }
    return join_lanes<kIndices, kHalf, kMask / 2>(best, first + (upper ? kHalf : 0));
  } else {
    FGK_UNROLL
    for (int k = 0; k < kCount; ++k) best[k] = better_of(best[k], from_lane<kIndices>(best[k], kMask));
    const int found = join_lanes<kIndices, kCount, kMask / 2>(best, first);
    return (dev::lane() & kMask) == 0 ? found : -1;
  }
}

}  // namespace fgk::cuda
