// SPDX-License-Identifier: Apache-2.0
// What the late-interaction kernels are launched with, and the order in which maxima are decided.
#pragma once

#include "device.cuh"

namespace fgk::cuda {

using dev::gptr;
using dev::sptr;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kSlotRows = 32;  // rows of one warp: a slot holds tokens of one sample

// About one sample: its valid tokens, and the first valid and the first masked one (-1: none).
struct SampleFacts {
  int32_t valid;
  int32_t first_valid;
  int32_t first_masked;
};

// Up to 32 tokens of one sample, from `token` on; sample -1: an empty slot.
struct RowSlot {
  int32_t sample;
  int32_t token;
};

// How long the samples of a side are, and which of their tokens are valid.
struct Lengths {
  gptr<const int64_t> offsets;  // packed
  gptr<const uint8_t> mask;
  gptr<const int32_t> facts;  // 3 per sample (SampleFacts), given with a mask
  int64_t batch;
  int32_t length;  // padded

  FGK_DEVICE int tokens(int64_t s) const {
    return offsets ? static_cast<int>(offsets.ld(s + 1) - offsets.ld(s)) : length;
  }
  FGK_DEVICE int64_t token_base(int64_t s) const { return offsets ? offsets.ld(s) : s * length; }
  FGK_DEVICE SampleFacts about(int64_t s) const {
    if (facts) return {facts.ld(3 * s), facts.ld(3 * s + 1), facts.ld(3 * s + 2)};
    return {tokens(s), 0, -1};
  }
};

// One side of a call on the device; see TokenBatch.
template <class T>
struct Tokens : Lengths {
  gptr<const T> data;
  gptr<const int8_t> data8;  // int8 tokens instead of `data`
  gptr<const float> scales;
  int64_t sample_stride;
  int64_t token_stride;
  int32_t dim;
  bool vectors;  // every token starts at a multiple of a 16-byte unit (int8: of what widens to one)

  FGK_DEVICE int64_t element(int64_t s) const { return offsets ? offsets.ld(s) * token_stride : s * sample_stride; }
};

// Where the results of one direction go, or where its incoming gradients come from; see DirectionOutput.
template <class Acc>
struct Direction {
  gptr<Acc> scores;
  gptr<int16_t> narrow;
  gptr<int32_t> wide;
  int64_t score_x, score_y, index_x, index_y;
  int64_t index_count;

  FGK_DEVICE void store_index(int64_t i, int value) const {
    if (narrow) {
      narrow.st(i, static_cast<int16_t>(value));
    } else if (wide) {
      wide.st(i, value);
    }
  }
};

template <class T, class Acc>
struct ForwardParams {
  Tokens<T> rows;    // the side whose tokens stay with a block
  Tokens<T> stream;  // the side that passes by
  Direction<Acc> row;
  Direction<Acc> column;        // both directions only
  gptr<Acc> partial;            // [slot][partner]: sums of slots, where a sample does not fit into one block
  gptr<const RowSlot> slots;    // packed rows: what each slot holds
  gptr<const int32_t> order;    // packed stream: samples by falling length
  gptr<const int32_t> illegal;  // packed: not 0 if the offsets are
  int32_t row_groups;           // blocks side by side over the rows
  int64_t partners_per_block;
  int64_t paired;  // K of LateInteractionForward
  int32_t slots_per_sample;
  int32_t chunks;  // of 128 bytes of channels, at least 1
  int32_t stages;  // 2 or 3
  bool resident;   // the rows' channels all stay in shared memory
  bool mean;
  bool zero_padding;
};

template <class Acc>
struct SumParams {
  gptr<const Acc> partial;
  gptr<const int32_t> slot_first;  // packed rows: first slot of each sample
  gptr<const int32_t> illegal;
  Direction<Acc> row;
  Lengths rows;
  int64_t partners;  // per sample
  int64_t paired;
  int64_t slots_per_sample;  // padded: distance of two samples' first slots
  bool mean;
};

}  // namespace fgk::cuda
