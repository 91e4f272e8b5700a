// SPDX-License-Identifier: Apache-2.0
// What a Mamba-2 scan is, for every device (state-space duality; Dao and Gu 2024, equation 16): one decay per head.
//
// Per batch entry b, head i and channel p, with dt = clamp(softplus?(dt + bias), dt_min, dt_max):
//   h[t, p, n] = exp(dt[t] A[i]) h[t - 1, p, n] + dt[t] x[t, p] B[t, n],   y[t, p] = sum_n C[t, n] h[t, p, n] + D x[t,
//   p]
// and out = y silu(z). Where seq_idx changes, and at step 0 where it is not 0, h[t - 1] counts as zero.
#pragma once

#include "types.h"

namespace fgk {

// The state at the start of every this many steps is kept for a backward.
constexpr int64_t kChunkScanChunk = 128;

FGK_INLINE int64_t chunk_scan_chunks(int64_t length) { return (length + kChunkScanChunk - 1) / kChunkScanChunk; }

// (batch, position, head, channel), strides in elements. dt has no channels: its stride is 0.
struct HeadSequence {
  void* data = nullptr;  // null: not there
  int64_t batch = 0;
  int64_t position = 0;
  int64_t head = 0;
  int64_t channel = 0;
  int64_t span = 0;  // elements between the first and the last one that the strides reach, both included
};

// B or C: (batch, position, group, state), strides in elements. Head i reads group i / (heads / groups).
struct HeadProjection {
  void* data = nullptr;
  int64_t batch = 0;
  int64_t position = 0;
  int64_t group = 0;
  int64_t state = 0;
  int64_t span = 0;
};

// Parameters and states have the accumulation type: double for double sequences, else float; all are dense.
struct ChunkScanForward {
  DType dtype = DType::f32;  // of x, dt, z, B, C and out
  int64_t batch = 0;
  int64_t length = 0;
  int64_t heads = 0;
  int64_t channels = 0;  // per head
  int64_t groups = 1;
  int64_t states = 0;
  HeadSequence x;
  HeadSequence dt;
  HeadSequence z;
  const void* A = nullptr;  // (heads,)
  const void* D = nullptr;  // (heads,) or, if D_per_channel, (heads, channels); null: none
  bool D_per_channel = false;
  const void* dt_bias = nullptr;  // (heads,); null: none
  HeadProjection B;
  HeadProjection C;
  const void* initial_states = nullptr;  // (batch, heads, channels, states); null: zeros
  const int32_t* seq_idx = nullptr;      // (batch, length); null: one sequence
  bool dt_softplus = false;
  double dt_min = 0;
  double dt_max = 0;  // infinity: no limit

  HeadSequence out;
  void* final_states = nullptr;  // (batch, heads, channels, states); may be null
  void* checkpoints = nullptr;   // (batch, chunk_scan_chunks(length), heads, channels, states); may be null
};

struct ChunkScanBackward {
  ChunkScanForward forward;  // inputs; out, final_states and checkpoints unused
  HeadSequence grad_out;
  const void* grad_final_states = nullptr;  // null: zeros
  const void* checkpoints = nullptr;
  HeadSequence dx;
  HeadSequence ddt;
  HeadSequence dz;
  void* dA = nullptr;
  void* dD = nullptr;
  void* ddt_bias = nullptr;
  HeadProjection dB;
  HeadProjection dC;
  void* dinitial_states = nullptr;
};

}  // namespace fgk
