// SPDX-License-Identifier: Apache-2.0
// One or a few steps of decoding with the causal convolution, in place on its state.
#pragma once

#include "../common/causal_conv1d.h"
#include "causal_conv1d_params.cuh"

namespace fgk::cuda {

constexpr int kConvUpdateThreads = 128;

// See CausalConvUpdate.
template <class T>
struct ConvUpdateParams {
  using Acc = Accumulation<T>;

  ConvView<const T> x;
  ConvView<T> state;
  ConvView<T> out;
  gptr<const Acc> weight;
  gptr<const Acc> bias;
  gptr<const int32_t> entry;
  gptr<const int32_t> cache_seqlens;
  int64_t batch, channels, entries;
  int32_t steps, state_length, width;
  bool silu;
};

// Thread: a channel of a batch entry.
template <class T>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kConvUpdateThreads, 8) conv_update_kernel(ConvUpdateParams<T> p) {
  using Acc = Accumulation<T>;
  const int64_t item = dev::bid() * kConvUpdateThreads + dev::tid();
  if (item >= p.batch * p.channels) return;
  const int64_t b = item / p.channels, c = item % p.channels;
  const gptr<const T> x = p.x.row(b, c, p.steps);
  const gptr<T> out = p.out.row(b, c, p.steps);
  const int64_t entry = p.entry ? p.entry.ld(b) : b;
  if (entry < 0 || entry >= p.entries) {
    for (int t = 0; t < p.steps; ++t) out.st(t * p.out.position, from_acc<T>(Acc(0)));
    return;
  }
  const gptr<T> state = p.state.row(entry, c, p.state_length);
  // Where position t lies in the state, 0 being the first new one.
  const int64_t next = p.cache_seqlens ? p.cache_seqlens.ld(b) : 0;
  const auto place = [&](int t) {
    const int64_t remainder = (next + t) % p.state_length;
    return (remainder < 0 ? remainder + p.state_length : remainder) * p.state.position;
  };

  // Taps from `first` on are there, the last one belonging to the newest position.
  const int first = kMaxConvWidth - p.width;
  Acc weight[kMaxConvWidth], tap[kMaxConvWidth];
  FGK_UNROLL
  for (int j = 0; j < kMaxConvWidth; ++j) {
    weight[j] = j >= first ? p.weight.ld(c * p.width + j - first) : Acc(0);
    tap[j] = 0;
    // Shifted by one: the first step makes room.
    if (j > first) tap[j] = to_acc(state.ld(place(j - kMaxConvWidth)));
  }
  const Acc bias = p.bias ? p.bias.ld(c) : Acc(0);
  for (int t = 0; t < p.steps; ++t) {
    const T newest = x.ld(t * p.x.position);
    FGK_UNROLL
    for (int j = 0; j + 1 < kMaxConvWidth; ++j) tap[j] = tap[j + 1];
    tap[kMaxConvWidth - 1] = to_acc(newest);
    Acc sum = bias;
    FGK_UNROLL
    for (int j = 0; j < kMaxConvWidth; ++j) {
      if (j >= first) sum += weight[j] * tap[j];
    }
    out.st(t * p.out.position, from_acc<T>(p.silu ? silu(sum) : sum));
    if (p.cache_seqlens) state.st(place(t), newest);
  }
  if (p.cache_seqlens) return;
  for (int i = 0; i < p.state_length; ++i) {
    const int64_t from = static_cast<int64_t>(i) + p.steps;
    const T moved =
        from < p.state_length ? state.ld(from * p.state.position) : x.ld((from - p.state_length) * p.x.position);
    state.st(i * p.state.position, moved);
  }
}

}  // namespace fgk::cuda
