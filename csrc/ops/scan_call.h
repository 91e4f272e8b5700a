// SPDX-License-Identifier: Apache-2.0
// What the selective scans over sequences and over maps have in common once their arguments are checked: what the
// kernels read, the outputs, and the call.
#pragma once

#include <tuple>

#include "arguments.h"

namespace fgk::ops {

// Tensors of a checked call. Sequences are (B, D, L), or (B, K, E, L) with one channel block per direction; B and C
// are (B, N, L) or (B, G, N, L), or (B, K, N, L) of a map, or constant.
struct ScanInputs {
  Tensor u, delta, A, B, C;
  OptionalTensor D, z, delta_bias, initial_state;
  OptionalTensor table;  // (K, L) for a scan over a map
  bool ordered = false;
  bool delta_softplus = false;
};

struct ScanForwardOutputs {
  Tensor out, last_state, checkpoints;  // as asked for, else undefined
};

struct ScanGradients {
  Tensor u, delta, A, B, C, D, z, delta_bias, initial_state;
};

ScanForwardOutputs scan_forward(const ScanInputs& inputs, bool with_last_state, bool with_checkpoints);

ScanGradients scan_backward(const ScanInputs& inputs, const Tensor& grad_out, const OptionalTensor& grad_last_state,
                            const Tensor& checkpoints);

}  // namespace fgk::ops
