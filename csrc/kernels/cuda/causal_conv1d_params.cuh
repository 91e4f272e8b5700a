// SPDX-License-Identifier: Apache-2.0
// What the kernels of the causal convolution are launched with.
#pragma once

#include "sequence_math.cuh"

namespace fgk::cuda {

// (batch, channel, position); see ConvSequence.
template <class T>
struct ConvView {
  gptr<T> data;
  int64_t batch, channel, position;

  FGK_DEVICE gptr<T> row(int64_t b, int64_t c, int length) const {
    return data.slice(b * batch + c * channel, (length - 1) * position + 1);
  }
  // The channels from c to `channels` of one position.
  FGK_DEVICE gptr<T> column(int64_t b, int64_t c, int at, int64_t channels) const {
    return data.slice(b * batch + c * channel + at * position, (channels - 1 - c) * channel + 1);
  }
};

template <class T>
struct ConvParams {
  using Acc = Accumulation<T>;

  ConvView<const T> x;
  ConvView<const T> grad_out;  // backward only
  ConvView<T> out;             // backward: dx
  gptr<const Acc> weight;
  gptr<const Acc> bias;
  gptr<const Acc> initial;
  gptr<const int32_t> seq_idx;
  int64_t batch, channels;
  int32_t length;
  bool silu;

  // Rows: neighbouring positions lie side by side. `x_lead`, ...: elements by which an array starts off an address that
  // is divisible by 16.
  bool contiguous;  // whether all arrays are laid out so
  int32_t x_lead, grad_out_lead, out_lead;
  int32_t first_vector;  // of a row; negative ones hold positions of the initial state
  int32_t vectors;       // of a row
  int32_t steps;         // of a warp, backward only

  // Channels: neighbouring channels lie side by side. A thread walks over `run` positions.
  bool aligned;  // whether vectors of channels start at multiples of their size
  int32_t run;

  // Backward: (pieces, channels, width), (pieces, channels) and (batch, channels, width - 1).
  gptr<Acc> dweight;
  gptr<Acc> dbias;
  gptr<Acc> dinitial;
};

// Which sequence a position belongs to; those before the first belong to its sequence.
template <class T>
FGK_DEVICE int32_t conv_sequence(const ConvParams<T>& p, int64_t b, int position) {
  if (!p.seq_idx) return 0;
  return p.seq_idx.ld(b * p.length + dev::min(dev::max(position, 0), p.length - 1));
}

// A channel's x at a position that may lie before the first (the initial state) or behind the last (zero).
template <class T, int kWidth>
FGK_DEVICE Accumulation<T> conv_value(const ConvParams<T>& p, int64_t b, int64_t c, int position) {
  constexpr int kPast = kWidth - 1;
  if (position >= p.length) return 0;
  if (position >= 0) return to_acc(p.x.row(b, c, p.length).ld(position * p.x.position));
  if (!p.initial || position < -kPast) return 0;
  return p.initial.ld((b * p.channels + c) * kPast + kPast + position);
}

// Incoming gradient, likewise; zero outside of the sequence.
template <class T>
FGK_DEVICE Accumulation<T> conv_gradient(const ConvParams<T>& p, int64_t b, int64_t c, int position) {
  if (position < 0 || position >= p.length) return 0;
  return to_acc(p.grad_out.row(b, c, p.length).ld(position * p.grad_out.position));
}

// Where the gradient by what conv_value reads goes.
template <class T, int kWidth>
FGK_DEVICE void store_conv_gradient(const ConvParams<T>& p, int64_t b, int64_t c, int position, Accumulation<T> value) {
  constexpr int kPast = kWidth - 1;
  if (position >= p.length) return;
  if (position >= 0) {
    p.out.row(b, c, p.length).st(position * p.out.position, from_acc<T>(value));
  } else if (p.dinitial && position >= -kPast) {
    p.dinitial.st((b * p.channels + c) * kPast + kPast + position, value);
  }
}

}  // namespace fgk::cuda
