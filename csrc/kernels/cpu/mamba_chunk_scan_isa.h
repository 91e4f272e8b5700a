// SPDX-License-Identifier: Apache-2.0
// What the forward and the backward of the Mamba-2 scan share. Included by *_isa.cpp files only.
#pragma once

#include "mamba_chunk_scan_plan.h"
#include "scan_isa.h"

namespace fgk {
namespace FGK_ISA_NS {

template <class V>
class HeadLanes {
 protected:
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  static constexpr int W = V::W;
  static constexpr int64_t kChunk = kChunkScanChunk;  // a multiple of every W

  HeadLanes(const ChunkScanPlan& plan, int64_t batch, int64_t head, void* memory)
      : args_(plan.args),
        plan_(plan),
        batch_(batch),
        head_(head),
        states_(args_.states),
        arena_(memory),
        raw_(arena_.take<Scalar>(kChunk)),
        unclamped_(arena_.take<Scalar>(kChunk)),
        dt_(arena_.take<Scalar>(kChunk)),
        decay_(arena_.take<Scalar>(kChunk)) {}

  int64_t chunks() const { return chunk_scan_chunks(args_.length); }
  int64_t chunk_length(int64_t chunk) const {
    const int64_t left = args_.length - chunk * kChunk;
    return left < kChunk ? left : kChunk;
  }

  LaneView lanes(const HeadSequence& sequence, int64_t block) const {
    const int64_t first = batch_ * sequence.batch + head_ * sequence.head + block * W * sequence.channel;
    return view(sequence.data, args_.dtype, first, sequence.channel, sequence.position, block);
  }

  // Lanes of an array (rows, channels, inner) of the accumulation type; "positions" are the inner elements.
  LaneView inner_lanes(const void* data, int64_t row, int64_t inner, int64_t block) const {
    const int64_t first = (row * args_.channels + block * W) * inner;
    return view(const_cast<void*>(data), kLaneType<V>, first, inner, 1, block);
  }

  LaneView state_lanes(const void* data, int64_t block) const {
    return inner_lanes(data, batch_ * args_.heads + head_, states_, block);
  }
  LaneView checkpoint_lanes(const void* data, int64_t chunk, int64_t block) const {
    return inner_lanes(data, (batch_ * chunks() + chunk) * args_.heads + head_, states_, block);
  }

  Operand<V> rows(const ProjectionRows& rows, int64_t chunk) const {
    const int64_t group = head_ / (args_.heads / args_.groups);
    Operand<V> operand;
    operand.row = rows.row;
    operand.data =
        static_cast<const Scalar*>(rows.data) + batch_ * rows.batch + group * rows.group + chunk * kChunk * rows.row;
    return operand;
  }

  Scalar head_value(const void* parameter) const {
    return parameter ? static_cast<const Scalar*>(parameter)[head_] : Scalar(0);
  }

  Reg skip(int64_t block) const {
    if (args_.D == nullptr) return V::zero();
    if (!args_.D_per_channel) return V::set1(head_value(args_.D));
    alignas(64) Scalar values[W];
    load_rows<V>(values, W, inner_lanes(args_.D, head_, 1, block), 0, 1);
    return V::load(values);
  }

  // Steps and decays of a chunk; a decay of 0 starts a new sequence.
  void load_steps(int64_t chunk) {
    const int64_t count = chunk_length(chunk);
    const int64_t size = dtype_bytes(args_.dtype);
    const char* source = static_cast<const char*>(args_.dt.data) +
                         (batch_ * args_.dt.batch + head_ * args_.dt.head + chunk * kChunk * args_.dt.position) * size;
    for (int64_t t = 0; t < count; ++t) widen_row(raw_ + t, source + t * args_.dt.position * size, args_.dtype, 1, 1);
    for (int64_t t = count; t % W != 0; ++t) raw_[t] = Scalar(0);
    const Reg bias = V::set1(head_value(args_.dt_bias));
    const Reg A = V::set1(head_value(args_.A));
    for (int64_t t = 0; t < count; t += W) {
      const Reg raw = V::add(V::load(raw_ + t), bias);
      V::store(raw_ + t, raw);
      const Reg unclamped = args_.dt_softplus ? softplus<V>(raw) : raw;
      V::store(unclamped_ + t, unclamped);
      const Reg dt = V::at_most(V::at_least(unclamped, constant<V>(args_.dt_min)), constant<V>(args_.dt_max));
      V::store(dt_ + t, dt);
      V::store(decay_ + t, exp<V>(V::mul(dt, A)));
    }
    if (args_.seq_idx == nullptr) return;
    const int32_t* sequence = args_.seq_idx + batch_ * args_.length + chunk * kChunk;
    for (int64_t t = 0; t < count; ++t) {
      const int32_t before = chunk == 0 && t == 0 ? 0 : sequence[t - 1];
      if (sequence[t] != before) decay_[t] = Scalar(0);
    }
  }

  const ChunkScanForward& args_;
  const ChunkScanPlan& plan_;
  int64_t batch_;
  int64_t head_;
  int64_t states_;
  LaneArena arena_;
  Scalar* raw_;        // dt + bias of a chunk's steps
  Scalar* unclamped_;  // through softplus
  Scalar* dt_;
  Scalar* decay_;

 private:
  LaneView view(void* data, DType dtype, int64_t first, int64_t channel, int64_t position, int64_t block) const {
    LaneView lanes;
    lanes.dtype = dtype;
    lanes.data = static_cast<char*>(data) + first * dtype_bytes(dtype);
    lanes.channel = channel;
    lanes.position = position;
    const int64_t left = args_.channels - block * W;
    lanes.channels = static_cast<int>(left < W ? left : W);
    return lanes;
  }
};

int64_t chunk_scan_backward_bytes(const ChunkScanPlan& plan);
void chunk_scan_backward_f32(const ChunkScanBackwardPlan&, int64_t batch, int64_t head, int64_t split, void* memory);
void chunk_scan_backward_f64(const ChunkScanBackwardPlan&, int64_t batch, int64_t head, int64_t split, void* memory);

}  // namespace FGK_ISA_NS
}  // namespace fgk
