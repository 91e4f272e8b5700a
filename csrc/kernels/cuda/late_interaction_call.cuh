// SPDX-License-Identifier: Apache-2.0
// What the launchers of the family share on the host: device views of the arguments, scratch memory, preparations.
#pragma once

#include "kernel_call.cuh"
#include "late_interaction.h"
#include "late_interaction_params.cuh"

namespace fgk::cuda {

class Call : public KernelCall {
 public:
  using KernelCall::KernelCall;

  Lengths lengths(const TokenBatch& batch, bool needs_facts);

  template <class T>
  Tokens<T> tokens(const TokenBatch& batch);

  template <class Acc>
  Direction<Acc> direction(const DirectionOutput& out);

  // A flag in device memory that says whether packed offsets are illegal; null for padded sides.
  gptr<const int32_t> check_offsets(const Lengths& a, const TokenBatch& a_batch, const Lengths& b,
                                    const TokenBatch& b_batch);

  // Slots of packed rows and the order of a packed stream; see late_interaction_plan.cuh.
  struct PackedRows {
    gptr<const int32_t> slot_first;
    gptr<const RowSlot> slots;
  };
  PackedRows deal_slots(const Lengths& rows, int align, int64_t capacity, gptr<const int32_t> illegal);
  gptr<const int32_t> order_by_length(const Lengths& stream, gptr<const int32_t> illegal);
};

template <class T>
Tokens<T> Call::tokens(const TokenBatch& batch) {
  Tokens<T> out{};
  static_cast<Lengths&>(out) = lengths(batch, batch.mask != nullptr);
  const bool int8 = batch.dtype == DType::i8;
  if (int8) {
    out.data8 = buffers().in(static_cast<const int8_t*>(batch.data), batch.span, "int8 tokens");
    out.scales = buffers().in(batch.scales, batch.total_tokens, "scales");
  } else {
    out.data = buffers().in(static_cast<const T*>(batch.data), batch.span, "tokens");
  }
  out.sample_stride = batch.sample_stride;
  out.token_stride = batch.token_stride;
  out.dim = static_cast<int32_t>(batch.dim);
  const int64_t unit = int8 ? 16 / static_cast<int64_t>(sizeof(T)) : 16;
  const int64_t size = dtype_bytes(batch.dtype);
  out.vectors = reinterpret_cast<uintptr_t>(batch.data) % static_cast<uintptr_t>(unit) == 0 &&
                batch.token_stride * size % unit == 0 && (batch.offsets || batch.sample_stride * size % unit == 0);
  return out;
}

template <class Acc>
Direction<Acc> Call::direction(const DirectionOutput& out) {
  Direction<Acc> view{};
  view.scores = buffers().out(static_cast<Acc*>(out.scores), out.score_count, "scores");
  if (out.wide_indices) {
    view.wide = buffers().out(static_cast<int32_t*>(out.indices), out.index_count, "alignment");
  } else {
    view.narrow = buffers().out(static_cast<int16_t*>(out.indices), out.index_count, "alignment");
  }
  view.score_x = out.score_x;
  view.score_y = out.score_y;
  view.index_x = out.index_x;
  view.index_y = out.index_y;
  view.index_count = out.indices ? out.index_count : 0;
  return view;
}

template <class T>
struct MathOf;  // bf16, f16: tensor cores; float, double: fused multiply-adds

// Defined once per type in late_interaction_<type>.cu.
template <class T>
void forward(const LateInteractionForward& args, const Context& context);
template <class T>
void backward(const LateInteractionBackward& args, const Context& context);

}  // namespace fgk::cuda
