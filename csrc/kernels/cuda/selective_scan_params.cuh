// SPDX-License-Identifier: Apache-2.0
// What the selective-scan kernels are launched with, and how a block's threads share a tile of steps.
#pragma once

#include "../common/selective_scan.h"
#include "sequence_math.cuh"

namespace fgk::cuda {

// Steps that follow each other and belong to one thread: 32 bytes of numbers in the accumulation type.
template <class T>
constexpr int kScanItems = 32 / static_cast<int>(sizeof(Accumulation<T>));
constexpr int kChunkSteps = static_cast<int>(kScanChunk);
constexpr int kScanMaxWarps = 8;
constexpr int kScanMaxThreads = 32 * kScanMaxWarps;

// Who works on what: a segment of a warp's lanes walks over a tile's steps for one state. Other segments and other
// state warps take other states; position warps follow each other along the tile.
struct ScanShape {
  int32_t segment;  // lanes, a power of two
  int32_t state_warps;
  int32_t position_warps;

  FGK_HOST_DEVICE int threads() const { return 32 * state_warps * position_warps; }
  // Numbers in shared memory by which position warps tell each other what their steps amount to.
  FGK_HOST_DEVICE int joint_count() const { return position_warps > 1 ? 4 * state_warps * position_warps : 0; }
  // States under way at a time.
  FGK_HOST_DEVICE int states_at_once() const { return 32 / segment * state_warps; }
  template <class T>
  FGK_HOST_DEVICE int tile() const {
    return kScanItems<T> * segment * position_warps;
  }
};

// See ScanSequence.
template <class T>
struct SequenceView {
  gptr<T> data;
  int64_t batch, direction, channel, position;

  FGK_DEVICE gptr<T> row(int b, int k, int c, int length) const {
    return data.slice(b * batch + k * direction + c * channel, (length - 1) * position + 1);
  }
};

// See ScanProjection. Rows are in scan order, their steps side by side.
template <class T>
struct ProjectionView {
  gptr<const T> rows;  // null: constant
  gptr<const Accumulation<T>> constant;
  int64_t batch, direction, group, state;
  int32_t readable;  // steps from a row's start on that vectors may read: rows start at multiples of 16 bytes
};

// Inputs of a call; see SelectiveScanForward.
template <class T>
struct ScanInputs {
  using Acc = Accumulation<T>;

  SequenceView<const T> u, delta, z;
  gptr<const Acc> A, D, bias;
  ProjectionView<T> B, C;
  gptr<const Acc> initial;
  gptr<const int32_t> table;
  int32_t batch, directions, channels, groups;
  int32_t length, states, chunks;
  ScanShape shape;
  bool shared_parameters;
  bool ordered;
  bool softplus;

  FGK_DEVICE int64_t parameter_row(int k, int c) const { return shared_parameters ? c : int64_t{k} * channels + c; }
  FGK_DEVICE int64_t row(int b, int k, int c) const { return (int64_t{b} * directions + k) * channels + c; }
  FGK_DEVICE int group_of(int c) const { return c / (channels / groups); }
};

template <class T>
struct ScanForwardParams : ScanInputs<T> {
  using Acc = Accumulation<T>;

  SequenceView<T> out;
  gptr<Acc> last_state;
  gptr<Acc> checkpoints;
  // States of a tile's checkpoints.
  FGK_HOST_DEVICE int staged_count() const {
    const int chunks = this->shape.template tile<T>() / kChunkSteps;
    return (chunks > 0 ? chunks : 1) * this->states;
  }

  gptr<Acc> sums;  // (batch, channels, length), where directions are summed up and a row is too long for shared memory
};

template <class T>
struct ScanBackwardParams : ScanInputs<T> {
  using Acc = Accumulation<T>;

  SequenceView<const T> grad_out;
  gptr<const Acc> grad_last;
  gptr<const Acc> checkpoints;
  SequenceView<T> du, ddelta, dz;
  // (batch, directions, channels, length) in map order, instead of du and dz where directions are to be summed up.
  gptr<Acc> du_parts, y_parts;
  // (batch, position warps, directions, channels, states)
  gptr<Acc> dA, dB_constant, dC_constant;
  gptr<Acc> dD, dbias;         // (batch, directions, channels)
  gptr<Acc> dB_rows, dC_rows;  // (batch, directions, groups, sets, states, pitch) in scan order
  gptr<Acc> carry;  // (batch, directions, channels, states): what earlier steps get; dinitial_state in the end
  int32_t pitch;
  int32_t set_channels;  // channels of a group that one block takes in turn
  int32_t sets;
  bool rows_in_shared;  // a tile's part of dB_rows and dC_rows is summed up in shared memory
};

}  // namespace fgk::cuda
