// SPDX-License-Identifier: Apache-2.0
// What a causal depthwise convolution is, for every device: out[b, c, t] = act(bias[c] + sum_j weight[c, j] x[b, c, t -
// (width - 1) + j]), where positions before the first come from the initial state, or are zero.
#pragma once

#include "types.h"

namespace fgk {

constexpr int kMinConvWidth = 2;
constexpr int kMaxConvWidth = 4;

// (batch, channel, position), strides in elements.
struct ConvSequence {
  void* data = nullptr;
  int64_t batch = 0;
  int64_t channel = 0;
  int64_t position = 0;
  int64_t span = 0;  // elements between the first and the last one that the strides reach, both included
};

struct CausalConvForward {
  DType dtype = DType::f32;  // of x and out
  int64_t batch = 0;
  int64_t channels = 0;
  int64_t length = 0;
  int width = 0;
  bool silu = false;
  ConvSequence x;
  const void* weight = nullptr;  // (channels, width), dense, accumulation type (double for double x, else float)
  const void* bias = nullptr;    // (channels,), likewise; null: none
  // (batch, length), dense: which sequence a position belongs to. A tap reads a position of its own sequence only; the
  // initial state goes before the sequence of position 0.
  const int32_t* seq_idx = nullptr;
  const void* initial_state = nullptr;  // (batch, channels, width - 1), dense, accumulation type; null: zeros
  ConvSequence out;
};

struct CausalConvBackward {
  CausalConvForward forward;  // out unused
  ConvSequence grad_out;
  ConvSequence dx;
  void* dweight = nullptr;         // dense, accumulation type
  void* dbias = nullptr;           // null without a bias
  void* dinitial_state = nullptr;  // null without an initial state
};

// Decoding: `steps` new positions after those that `state` holds, in place.
struct CausalConvUpdate {
  DType dtype = DType::f32;  // of x, state and out
  int64_t batch = 0;
  int64_t channels = 0;
  int64_t steps = 0;
  int width = 0;
  bool silu = false;
  ConvSequence x;
  // (entries, channels, state_length), state_length >= width - 1: the latest positions, newest last; with
  // `cache_seqlens` a ring buffer whose next position is cache_seqlens[b] % state_length.
  ConvSequence state;
  int64_t entries = 0;
  int64_t state_length = 0;
  const int32_t* entry = nullptr;          // (batch,) in [0, entries); null: batch entry b uses row b
  const int32_t* cache_seqlens = nullptr;  // (batch,); null: no ring buffer
  const void* weight = nullptr;            // as above
  const void* bias = nullptr;
  ConvSequence out;
};

}  // namespace fgk
