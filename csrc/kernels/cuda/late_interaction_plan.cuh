// SPDX-License-Identifier: Apache-2.0
// The small kernels that prepare a late-interaction call: facts about masked samples, the schedule of packed sequences.
#pragma once

#include "late_interaction_params.cuh"

namespace fgk::cuda {

// One warp per sample: how many tokens are valid, the first valid one and the first masked one.
static FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kThreads, 8)
    sample_facts_kernel(gptr<const uint8_t> mask, int64_t samples, int32_t length, gptr<int32_t> facts) {
  const int64_t sample = dev::bid() * kWarps + dev::warp();
  if (sample >= samples) return;
  SampleFacts found{0, 0, -1};
  for (int first = 0; first < length; first += 32) {
    const int token = first + dev::lane();
    const bool inside = token < length;
    const bool valid = inside && mask.ld(sample * length + token) != 0;
    const uint32_t valids = dev::ballot(valid);
    const uint32_t masked = dev::ballot(inside && !valid);
    if (found.valid == 0 && valids != 0) found.first_valid = first + dev::first_bit(valids);
    if (found.first_masked < 0 && masked != 0) found.first_masked = first + dev::first_bit(masked);
    found.valid += dev::count_bits(valids);
  }
  if (dev::lane() != 0) return;
  facts.st(3 * sample, found.valid);
  facts.st(3 * sample + 1, found.first_valid);
  facts.st(3 * sample + 2, found.first_masked);
}

// Sum over the block, the same in every thread. `scratch` holds kWarps values that nobody uses before.
FGK_DEVICE int64_t block_sum(int64_t value, sptr<int64_t> scratch) {
  const int64_t own = dev::warp_sum(value);
  if (dev::lane() == 0) scratch.st(dev::warp(), own);
  dev::sync_block();
  int64_t total = 0;
  for (int w = 0; w < kWarps; ++w) total += scratch.ld(w);
  return total;
}

// Sum over the threads before this one; `total` gets the sum over all. `scratch` holds kWarps values.
FGK_DEVICE int64_t block_scan(int64_t value, sptr<int64_t> scratch, int64_t& total) {
  int64_t below = value;
  FGK_UNROLL
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t other = dev::shfl_up(below, distance);
    if (dev::lane() >= distance) below += other;
  }
  dev::sync_block();  // the previous call's values have been read
  if (dev::lane() == 31) scratch.st(dev::warp(), below);
  dev::sync_block();
  int64_t before = 0;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    const int64_t part = scratch.ld(w);
    if (w < dev::warp()) before += part;
    total += part;
  }
  return before + below - value;
}

// How many rules the offsets of packed samples break: they start at 0, never fall and end at `tokens`.
FGK_DEVICE int64_t broken_rules(gptr<const int64_t> offsets, int64_t samples, int64_t tokens) {
  int64_t broken = 0;
  for (int64_t s = dev::tid(); s <= samples; s += kThreads) {
    const int64_t value = offsets.ld(s);
    if (s == 0 && value != 0) ++broken;
    if (s > 0 && value < offsets.ld(s - 1)) ++broken;
    if (s == samples && value != tokens) ++broken;
  }
  return broken;
}

// Sets the flag to 1 if either side's offsets are illegal, else to 0. One block.
static FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kThreads, 1)
    check_offsets_kernel(gptr<const int64_t> a, int64_t a_samples, int64_t a_tokens, gptr<const int64_t> b,
                         int64_t b_samples, int64_t b_tokens, gptr<int32_t> illegal) {
  dev::Shared shared;
  const sptr<int64_t> scratch = shared.take<int64_t>(kWarps);
  const int64_t broken =
      block_sum(broken_rules(a, a_samples, a_tokens) + broken_rules(b, b_samples, b_tokens), scratch);
  if (dev::tid() == 0) illegal.st(0, broken != 0 ? 1 : 0);
}

// Deals the tokens of packed rows out to slots: a sample takes whole slots, and, when `align` > 1, a multiple of
// `align` of them. slot_first[s] is the first slot of sample s, `capacity` the length of `slots`; the rest stays empty.
// One block.
static FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kThreads, 1)
    deal_slots_kernel(gptr<const int64_t> offsets, int64_t samples, int align, gptr<const int32_t> illegal,
                      gptr<int32_t> slot_first, gptr<RowSlot> slots, int64_t capacity) {
  if (illegal.ld(0) != 0) return;
  dev::Shared shared;
  const sptr<int64_t> scratch = shared.take<int64_t>(kWarps);
  int64_t used = 0;
  for (int64_t first = 0; first < samples; first += kThreads) {
    const int64_t s = first + dev::tid();
    int64_t filled = 0;
    if (s < samples) filled = (offsets.ld(s + 1) - offsets.ld(s) + kSlotRows - 1) / kSlotRows;
    const int64_t taken = (filled + align - 1) / align * align;
    int64_t total = 0;
    const int64_t place = used + block_scan(taken, scratch, total);
    if (s < samples) {
      slot_first.st(s, static_cast<int32_t>(place));
      for (int64_t j = 0; j < taken; ++j) {
        const int32_t sample = j < filled ? static_cast<int32_t>(s) : -1;
        slots.st(place + j, {sample, static_cast<int32_t>(j * kSlotRows)});
      }
    }
    used += total;
  }
  if (dev::tid() == 0) slot_first.st(samples, static_cast<int32_t>(used));
  for (int64_t j = used + dev::tid(); j < capacity; j += kThreads) slots.st(j, {-1, 0});
}

constexpr int kLengthClasses = 64;

// Numbers packed samples by falling length (in 64 classes of equal width), so that the longest start first. One block.
static FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kThreads, 1)
    order_by_length_kernel(gptr<const int64_t> offsets, int64_t samples, gptr<const int32_t> illegal,
                           gptr<int32_t> order) {
  if (illegal.ld(0) != 0) return;
  dev::Shared shared;
  const sptr<int32_t> longest = shared.take<int32_t>(1);
  const sptr<int32_t> next = shared.take<int32_t>(kLengthClasses);
  if (dev::tid() == 0) longest.st(0, 0);
  if (dev::tid() < kLengthClasses) next.st(dev::tid(), 0);
  dev::sync_block();
  int64_t own_longest = 0;
  for (int64_t s = dev::tid(); s < samples; s += kThreads) {
    const int64_t length = offsets.ld(s + 1) - offsets.ld(s);
    if (length > own_longest) own_longest = length;
  }
  dev::atomic_max(longest, 0, static_cast<int32_t>(own_longest));
  dev::sync_block();
  const int64_t width = longest.ld(0) / kLengthClasses + 1;
  for (int64_t s = dev::tid(); s < samples; s += kThreads) {
    const int64_t length = offsets.ld(s + 1) - offsets.ld(s);
    dev::atomic_add(next, static_cast<int>(kLengthClasses - 1 - length / width), 1);
  }
  dev::sync_block();
  if (dev::tid() == 0) {
    int32_t before = 0;
    for (int c = 0; c < kLengthClasses; ++c) {
      const int32_t count = next.ld(c);
      next.st(c, before);
      before += count;
    }
  }
  dev::sync_block();
  for (int64_t s = dev::tid(); s < samples; s += kThreads) {
    const int64_t length = offsets.ld(s + 1) - offsets.ld(s);
    const int32_t place = dev::atomic_add(next, static_cast<int>(kLengthClasses - 1 - length / width), 1);
    order.st(place, static_cast<int32_t>(s));
  }
}

}  // namespace fgk::cuda
