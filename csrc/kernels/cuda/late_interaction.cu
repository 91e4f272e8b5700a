// SPDX-License-Identifier: Apache-2.0
// Entry points of late interaction in CUDA, and the preparations that do not depend on the tokens' type.
#include "late_interaction.h"

#include <stdexcept>

#include "late_interaction_call.cuh"
#include "late_interaction_plan.cuh"

namespace fgk::cuda {

Lengths Call::lengths(const TokenBatch& batch, bool needs_facts) {
  Lengths out{};
  out.batch = batch.batch;
  out.length = static_cast<int32_t>(batch.length);
  out.offsets = buffers().in(batch.offsets, batch.batch + 1, "offsets");
  if (!batch.mask || !needs_facts) return out;
  out.mask = buffers().in(batch.mask, batch.batch * batch.length, "mask");
  const gptr<int32_t> facts = scratch<int32_t>(3 * batch.batch, "facts about samples");
  out.facts = facts;
  dev::launch("sample_facts", sample_facts_kernel, {(batch.batch + kWarps - 1) / kWarps, kThreads, 0}, stream(),
              out.mask, batch.batch, out.length, facts);
  return out;
}

gptr<const int32_t> Call::check_offsets(const Lengths& a, const TokenBatch& a_batch, const Lengths& b,
                                        const TokenBatch& b_batch) {
  if (!a_batch.offsets) return {};
  const gptr<int32_t> illegal = scratch<int32_t>(1, "offsets are illegal");
  dev::launch("check_offsets", check_offsets_kernel, {1, kThreads, dev::shared_bytes<int64_t>(kWarps)}, stream(),
              a.offsets, a_batch.batch, a_batch.total_tokens, b.offsets, b_batch.batch, b_batch.total_tokens, illegal);
  return illegal;
}

Call::PackedRows Call::deal_slots(const Lengths& rows, int align, int64_t capacity, gptr<const int32_t> illegal) {
  const gptr<int32_t> slot_first = scratch<int32_t>(rows.batch + 1, "first slots");
  const gptr<RowSlot> slots = scratch<RowSlot>(capacity, "slots");
  dev::launch("deal_slots", deal_slots_kernel, {1, kThreads, dev::shared_bytes<int64_t>(kWarps)}, stream(),
              rows.offsets, rows.batch, align, illegal, slot_first, slots, capacity);
  return {slot_first, slots};
}

gptr<const int32_t> Call::order_by_length(const Lengths& stream_lengths, gptr<const int32_t> illegal) {
  const gptr<int32_t> order = scratch<int32_t>(stream_lengths.batch, "order");
  const int64_t shared = dev::shared_bytes<int32_t>(1) + dev::shared_bytes<int32_t>(kLengthClasses);
  dev::launch("order_by_length", order_by_length_kernel, {1, kThreads, shared}, stream(), stream_lengths.offsets,
              stream_lengths.batch, illegal, order);
  return order;
}

namespace {

constexpr int64_t kMaxSamples = (int64_t{1} << 31) - 1;

void check_sizes(const TokenBatch& a, const TokenBatch& b) {
  if (a.batch > kMaxSamples || b.batch > kMaxSamples || a.dim > kMaxSamples) {
    throw std::runtime_error("late interaction on CUDA: expected at most 2^31 - 1 samples a side and channels");
  }
}

}  // namespace

void late_interaction_forward(const LateInteractionForward& args, const Context& context) {
  check_sizes(args.a, args.b);
  if (args.a.batch == 0 || args.b.batch == 0) return;
  with_type(args.a.dtype, [&](auto type) { forward<decltype(type)>(args, context); });
}

void late_interaction_backward(const LateInteractionBackward& args, const Context& context) {
  check_sizes(args.owner, args.other);
  if (args.owner.total_tokens == 0 || args.owner.dim == 0) return;
  with_type(args.owner.dtype, [&](auto type) { backward<decltype(type)>(args, context); });
}

}  // namespace fgk::cuda
