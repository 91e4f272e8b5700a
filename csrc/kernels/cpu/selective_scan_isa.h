// SPDX-License-Identifier: Apache-2.0
// What the forward and the backward of one block of channels share. Included by *_isa.cpp files only.
#pragma once

#include "scan_isa.h"
#include "selective_scan_plan.h"

namespace fgk {
namespace FGK_ISA_NS {

template <class Step>
FGK_INLINE void with_constants(bool B, bool C, const Step& step) {
  if (B) {
    C ? step(std::true_type{}, std::true_type{}) : step(std::true_type{}, std::false_type{});
  } else {
    C ? step(std::false_type{}, std::true_type{}) : step(std::false_type{}, std::false_type{});
  }
}

template <class V>
class ScanLanes {
 protected:
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  static constexpr int W = V::W;

  ScanLanes(const ScanPlan& plan, const ScanBlock& block, void* memory)
      : args_(plan.args),
        plan_(plan),
        block_(block),
        arena_(memory),
        whole_(args_.table != nullptr),
        states_(args_.states),
        A_(arena_.take<Scalar>(states_ * W)),
        Bc_(arena_.take<Scalar>(args_.B.constant ? states_ * W : 0)),
        Cc_(arena_.take<Scalar>(args_.C.constant ? states_ * W : 0)) {
    const int64_t per_group = args_.groups > 0 ? args_.channels / args_.groups : 0;
    channel_ = block.group * per_group + block.first;
    const int64_t left = per_group - block.first;
    width_ = static_cast<int>(left < W ? left : W);
  }

  LaneView lanes(const ScanSequence& sequence, int64_t direction) const {
    const int64_t first = block_.batch * sequence.batch + direction * sequence.direction + channel_ * sequence.channel;
    LaneView view;
    view.dtype = args_.dtype;
    view.data = static_cast<char*>(sequence.data) + first * dtype_bytes(view.dtype);
    view.channel = sequence.channel;
    view.position = sequence.position;
    view.channels = width_;
    return view;
  }

  // Lanes of an array of the accumulation type, `inner` elements per channel; "positions" are these elements.
  LaneView parameter_lanes(const void* data, int64_t first, int64_t per_channel) const {
    LaneView view;
    view.dtype = kLaneType<V>;
    view.data = const_cast<Scalar*>(static_cast<const Scalar*>(data) + first + channel_ * per_channel);
    view.channel = per_channel;
    view.position = 1;
    view.channels = width_;
    return view;
  }

  // Index of the block's first state in an array (batch, directions, channels, states) of lanes.
  LaneView state_lanes(const void* data, int64_t direction) const {
    const int64_t row = block_.batch * args_.directions + direction;
    return parameter_lanes(data, row * args_.channels * states_, states_);
  }

  LaneView checkpoint_lanes(const void* data, int64_t direction, int64_t chunk) const {
    const int64_t per_channel = scan_chunks(args_.length) * states_;
    const int64_t row = block_.batch * args_.directions + direction;
    return parameter_lanes(data, row * args_.channels * per_channel + chunk * states_, per_channel);
  }

  // One value per channel of a (directions, channels) or (channels,) parameter.
  Reg channel_values(const void* parameter, int64_t direction) const {
    if (parameter == nullptr) return V::zero();
    alignas(64) Scalar values[W];
    const int64_t first = args_.shared_parameters ? 0 : direction * args_.channels;
    load_rows<V>(values, W, parameter_lanes(parameter, first, 1), 0, 1);
    return V::load(values);
  }

  void load_direction(int64_t k) {
    const int64_t row = args_.shared_parameters ? 0 : k;
    load_rows<V>(A_, W, parameter_lanes(args_.A, row * args_.channels * states_, states_), 0, states_);
    B_ = operand(args_.B, plan_.B, k, Bc_);
    C_ = operand(args_.C, plan_.C, k, Cc_);
  }

  Operand<V> operand(const ScanProjection& projection, const ProjectionRows& rows, int64_t k, Scalar* lanes) const {
    Operand<V> operand;
    if (projection.constant) {
      load_rows<V>(lanes, W, parameter_lanes(projection.data, k * projection.direction, states_), 0, states_);
      operand.data = lanes;
      return operand;
    }
    operand.data = static_cast<const Scalar*>(rows.data) + block_.batch * rows.batch + k * rows.direction +
                   block_.group * rows.group;
    operand.row = rows.row;
    return operand;
  }

  // The rows of a chunk in the block's arrays. Without a table the arrays hold that chunk only, so B and C move along.
  Steps steps(int64_t k, int64_t chunk) const {
    const int64_t first = chunk * kScanChunk;
    const int64_t last = first + kScanChunk < args_.length ? first + kScanChunk : args_.length;
    Steps steps;
    if (!whole_) {
      steps.last = last - first;
      return steps;
    }
    steps.first = first;
    steps.last = last;
    steps.out = args_.table + k * args_.length;
    steps.in = args_.ordered ? nullptr : steps.out;
    return steps;
  }

  Operand<V> at_chunk(const Operand<V>& operand, int64_t chunk) const {
    Operand<V> moved = operand;
    if (!whole_) moved.data += chunk * kScanChunk * operand.row;
    return moved;
  }

  // delta + bias, through softplus where asked.
  void to_steps(Scalar* dt, int64_t count, Reg bias) const {
    for (int64_t t = 0; t < count; ++t) {
      const Reg x = V::add(V::load(dt + t * W), bias);
      V::store(dt + t * W, args_.delta_softplus ? softplus<V>(x) : x);
    }
  }

  const SelectiveScanForward& args_;
  const ScanPlan& plan_;
  const ScanBlock& block_;
  LaneArena arena_;
  bool whole_;  // arrays hold all positions
  int64_t states_;
  Scalar* A_;  // (states, W), as are the next two
  Scalar* Bc_;
  Scalar* Cc_;
  Operand<V> B_;
  Operand<V> C_;
  int64_t channel_ = 0;
  int width_ = 0;
};

int64_t scan_backward_bytes(const ScanPlan& plan);
void scan_backward_f32(const ScanBackwardPlan& plan, const ScanBlock& block, int64_t split, void* memory);
void scan_backward_f64(const ScanBackwardPlan& plan, const ScanBlock& block, int64_t split, void* memory);
// Of state_update_isa.cpp.
void state_update_f32(const StateUpdate& args, int64_t batch, int64_t head, int64_t first, int64_t last);
void state_update_f64(const StateUpdate& args, int64_t batch, int64_t head, int64_t first, int64_t last);

}  // namespace FGK_ISA_NS
}  // namespace fgk
