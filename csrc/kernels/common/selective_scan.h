// SPDX-License-Identifier: Apache-2.0
// What a selective-scan call is, for every device (Mamba, Gu and Dao 2023, algorithm 2; VMamba, Liu et al. 2024).
//
// Per batch entry b, direction k and channel c, with dt = delta + bias, through softplus where asked:
//   h[t, n] = exp(dt[t] A[c, n]) h[t - 1, n] + dt[t] B[t, n] u[t],   y[t] = sum_n C[t, n] h[t, n] + D[c] u[t]
// and out = y silu(z). A direction visits positions in the order of its row of `table`. A channel's B and C are those
// of its group, channel / (channels / groups). No array of size batch x channels x length x states reaches memory.
#pragma once

#include "types.h"

namespace fgk {

// The state at the start of every this many steps is kept for a backward.
constexpr int64_t kScanChunk = 64;

FGK_INLINE int64_t scan_chunks(int64_t length) { return (length + kScanChunk - 1) / kScanChunk; }

// (batch, direction, channel, position), strides in elements; direction 0 where the directions share one array.
struct ScanSequence {
  void* data = nullptr;  // null: not there
  int64_t batch = 0;
  int64_t direction = 0;
  int64_t channel = 0;
  int64_t position = 0;
  int64_t span = 0;  // elements between the first and the last one that the strides reach, both included
};

// B or C: (batch, direction, group, state, position), strides in elements; or, if `constant`, the same at every
// position of every batch entry: (direction, channel, state) in the accumulation type, dense but for `direction`, which
// is 0 where the directions share it.
struct ScanProjection {
  void* data = nullptr;
  bool constant = false;
  int64_t batch = 0;
  int64_t direction = 0;
  int64_t group = 0;
  int64_t state = 0;
  int64_t position = 0;
  int64_t span = 0;
};

// Parameters and states have the accumulation type: double for double sequences, else float.
struct SelectiveScanForward {
  DType dtype = DType::f32;  // of u, delta, z, out and of B and C that are not constant
  int64_t batch = 0;
  int64_t directions = 1;
  int64_t channels = 0;  // per direction
  int64_t groups = 1;    // per direction
  int64_t length = 0;
  int64_t states = 0;

  ScanSequence u;
  ScanSequence delta;
  ScanSequence z;                    // one for all directions, in map order
  const void* A = nullptr;           // (directions, channels, states), or (channels, states) if shared
  const void* D = nullptr;           // (directions, channels), or (channels,) if shared; null: none
  const void* delta_bias = nullptr;  // likewise
  bool shared_parameters = false;    // the directions share A, D and delta_bias
  ScanProjection B;
  ScanProjection C;
  const void* initial_state = nullptr;  // (batch, directions, channels, states), null: zeros
  // (directions, length), each row a permutation of [0, length): the position that step t of a direction visits. Null:
  // positions in their order, and one direction.
  const int32_t* table = nullptr;
  // With a table: u, delta, B and C lie in scan order already (position t is step t); z and out are in map order.
  bool ordered = false;
  bool delta_softplus = false;

  // Sum over directions; its `direction` is 0. D u and the gate are part of it.
  ScanSequence out;
  void* last_state = nullptr;   // (batch, directions, channels, states); may be null
  void* checkpoints = nullptr;  // (batch, directions, channels, scan_chunks(length), states); may be null
};

struct SelectiveScanBackward {
  SelectiveScanForward forward;           // inputs; out, last_state and checkpoints unused
  ScanSequence grad_out;                  // strides as out
  const void* grad_last_state = nullptr;  // dense, null: zeros
  const void* checkpoints = nullptr;
  // Gradients. Null where the input is null (initial_state's may also be null where there is one).
  ScanSequence du;  // direction 0 where u's is: summed over directions
  ScanSequence ddelta;
  ScanSequence dz;
  void* dA = nullptr;  // dense, shapes of the parameters, accumulation type
  void* dD = nullptr;
  void* ddelta_bias = nullptr;
  ScanProjection dB;
  ScanProjection dC;
  void* dinitial_state = nullptr;  // dense
};

// One step for decoding (Mamba, algorithm 2 with L = 1), in place: channels of a row share B and C by group.
// Strides in elements; `entry` names the row of `state` that a batch entry uses.
struct StateUpdate {
  DType dtype = DType::f32;        // of x, dt, z, B, C and out
  DType state_dtype = DType::f32;  // of state, which is computed in the accumulation type
  int64_t batch = 0;
  int64_t heads = 0;     // state (entries, heads, channels, states); heads is 1 for a state (entries, channels, states)
  int64_t channels = 0;  // per head
  int64_t groups = 1;    // of heads if heads > 1, else of channels
  int64_t states = 0;
  void* state = nullptr;
  int64_t state_entry = 0, state_head = 0, state_channel = 0, state_state = 0, state_span = 0;
  int64_t entries = 0;
  const int32_t* entry = nullptr;  // (batch,) in [0, entries); null: entry b of the batch uses row b
  struct Rows {                    // (batch, head, channel)
    const void* data = nullptr;
    int64_t batch = 0, head = 0, channel = 0, span = 0;
  };
  Rows x, dt, z;
  struct Parameter {  // (head, channel, state), accumulation type; stride 0 where it is shared
    const void* data = nullptr;
    int64_t head = 0, channel = 0, state = 0, span = 0;
  };
  Parameter A, D, dt_bias;
  struct Projection {  // (batch, group, state)
    const void* data = nullptr;
    int64_t batch = 0, group = 0, state = 0, span = 0;
  };
  Projection B, C;
  bool dt_softplus = false;
  void* out = nullptr;  // (batch, heads, channels), dense
};

// Gathers: out[b, k, c, t] = x[b, c, table[k, t]]; and sums: out[b, c, p] = sum_k x[b, k, c, table[k, p]], where
// `table` holds the inverse permutations. Results are dense.
struct CrossScan {
  DType dtype = DType::f32;
  int64_t batch = 0, directions = 0, channels = 0, length = 0;
  ScanSequence x;
  const int32_t* table = nullptr;  // (directions, length)
  bool merge = false;
  void* out = nullptr;
};

}  // namespace fgk
