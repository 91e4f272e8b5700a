// SPDX-License-Identifier: Apache-2.0
// Gradient of late interaction with respect to the tokens of one side. A warp owns one token and some of its channels:
// it adds up what the token won or gave in a fixed order, so the result is the same at every run, without atomics.
//
// gather:  the owner's token i was reduced; it takes the other side's token that won its maximum, for every partner.
// scatter: the other side was reduced; the owner's token takes every token whose maximum it won. The saved winners of
//          all partners are compared with i, 32 at a time: a D-th of the forward's work, in plain integer compares.
#pragma once

#include "late_interaction_maxima.cuh"
#include "late_interaction_tile.cuh"

namespace fgk::cuda {

// What a direction hands back: the gradient of its scores and who won.
template <class Acc>
struct Incoming {
  gptr<const Acc> scores;  // null: the direction takes no part
  gptr<const int16_t> narrow;
  gptr<const int32_t> wide;
  int64_t score_x, score_y, index_x, index_y;

  FGK_DEVICE int index(int64_t i) const { return narrow ? narrow.ld(i) : wide.ld(i); }
};

template <class T, class Acc>
struct BackwardParams {
  Lengths owner;
  Tokens<T> other;
  Incoming<Acc> own;         // owner -> other: gather
  Incoming<Acc> from_other;  // other -> owner: scatter
  gptr<T> gradient;
  gptr<const int32_t> illegal;
  int64_t owner_tokens;
  int64_t paired;
  int32_t channel_blocks;  // of 32 units
  bool owner_is_a;
  bool mean;
  bool vectors;  // gradient tokens start at multiples of 16 bytes
};

template <class T, class Acc>
struct TokenGradient {
  const BackwardParams<T, Acc>& p;
  const int sample;
  const int token;
  const int channel;  // first of this lane's unit
  Acc sum[kUnitElements<T>] = {};

  FGK_DEVICE TokenGradient(const BackwardParams<T, Acc>& params, int s, int i, int first_channel)
      : p(params), sample(s), token(i), channel(first_channel) {}

  // Adds weight * (token t of sample y of the other side).
  FGK_DEVICE void add(int y, int t, Acc weight) {
    if (channel >= p.other.dim) return;
    const int64_t element = p.other.element(y) + t * p.other.token_stride;
    Unit<T> unit;
    if (p.other.data8) {
      unit = gather_unit<T>(p.other.data8.slice(element, p.other.dim), channel, p.other.dim);
      weight *= static_cast<Acc>(p.other.scales.ld(p.other.token_base(y) + t));
    } else {
      const gptr<const T> from = p.other.data.slice(element, p.other.dim);
      if (p.other.vectors && channel + kUnitElements<T> <= p.other.dim) {
        unit = from.template ld_as<Unit<T>>(channel);
      } else {
        unit = gather_unit<T>(from, channel, p.other.dim);
      }
    }
    FGK_UNROLL
    for (int e = 0; e < kUnitElements<T>; ++e) sum[e] += weight * widen(unit.value[e]);
  }

  // The samples of the other side that the owner's sample met: [begin, end).
  FGK_DEVICE int begin() const {
    if (p.paired == 0) return 0;
    return static_cast<int>(p.owner_is_a ? sample * p.paired : sample / p.paired);
  }
  FGK_DEVICE int end() const {
    if (p.paired == 0) return static_cast<int>(p.other.batch);
    return begin() + static_cast<int>(p.owner_is_a ? p.paired : 1);
  }

  FGK_DEVICE void gather() {
    const int64_t base = p.owner.token_base(sample) * p.own.index_x + token;
    const int valid = p.owner.about(sample).valid;
    const int last = end();
    for (int first = begin(); first < last; first += 32) {
      const int y = first + dev::lane();
      int t = -1;
      Acc weight = 0;
      if (y < last) {
        t = p.own.index(base + y * p.own.index_y);
        if (t >= p.other.tokens(y)) t = -1;
        weight = p.own.scores.ld(sample * p.own.score_x + y * p.own.score_y);
        if (p.mean && valid > 0) weight /= static_cast<Acc>(valid);
      }
      const int count = dev::min(last - first, 32);
      for (int j = 0; j < count; ++j) {
        const int winner = dev::shfl(t, j);
        const Acc its_weight = dev::shfl(weight, j);
        if (winner >= 0) add(first + j, winner, its_weight);
      }
    }
  }

  FGK_DEVICE void scatter() {
    const int last = end();
    for (int y = begin(); y < last; ++y) {
      const int64_t base = p.other.token_base(y) * p.from_other.index_x + sample * p.from_other.index_y;
      const int count = p.other.tokens(y);
      Acc weight = p.from_other.scores.ld(y * p.from_other.score_x + sample * p.from_other.score_y);
      if (p.mean) {
        const int valid = p.other.about(y).valid;
        if (valid > 0) weight /= static_cast<Acc>(valid);
      }
      for (int first = 0; first < count; first += 32) {
        const int t = first + dev::lane();
        const bool won = t < count && p.from_other.index(base + t) == token;
        uint32_t winners = dev::ballot(won);
        while (winners != 0) {
          add(y, first + dev::first_bit(winners), weight);
          winners &= winners - 1;
        }
      }
    }
  }

  FGK_DEVICE void store(gptr<T> to) const {
    if (p.vectors && channel + kUnitElements<T> <= p.other.dim) {
      Unit<T> unit;
      FGK_UNROLL
      for (int e = 0; e < kUnitElements<T>; ++e) unit.value[e] = narrow<T>(sum[e]);
      to.template st_as<Unit<T>>(channel, unit);
      return;
    }
    FGK_UNROLL
    for (int e = 0; e < kUnitElements<T>; ++e) {
      if (channel + e < p.other.dim) to.st(channel + e, narrow<T>(sum[e]));
    }
  }
};

// The packed sample that holds token n: the last one that starts at or before it and is not empty.
FGK_DEVICE int64_t sample_of_token(gptr<const int64_t> offsets, int64_t samples, int64_t n) {
  int64_t low = 0, high = samples;  // offsets[low] <= n < offsets[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (offsets.ld(middle) <= n) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class T, class Acc>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kThreads, 4) late_interaction_backward_kernel(BackwardParams<T, Acc> p) {
  const int64_t item = dev::bid() * kWarps + dev::warp();
  const int64_t n = item / p.channel_blocks;
  if (n >= p.owner_tokens) return;
  const int channel = (static_cast<int>(item % p.channel_blocks) * 32 + dev::lane()) * kUnitElements<T>;
  const gptr<T> to = p.gradient.slice(n * p.other.dim, p.other.dim);
  if (p.illegal && p.illegal.ld(0) != 0) {
    TokenGradient<T, Acc> nothing(p, 0, 0, channel);
    for (Acc& value : nothing.sum) value = kInfinity<Acc> - kInfinity<Acc>;
    nothing.store(to);
    return;
  }
  const int sample =
      static_cast<int>(p.owner.offsets ? sample_of_token(p.owner.offsets, p.owner.batch, n) : n / p.owner.length);
  const int token = static_cast<int>(n - p.owner.token_base(sample));
  TokenGradient<T, Acc> gradient(p, sample, token, channel);
  if (p.own.scores) gradient.gather();
  if (p.from_other.scores) gradient.scatter();
  gradient.store(to);
}

}  // namespace fgk::cuda
