// SPDX-License-Identifier: Apache-2.0
// Late-interaction similarity in CUDA: forward (one or both directions) and its gradients. All pointers of the
// arguments are device pointers; packed offsets are int64 on the device, checked there (illegal ones give NaN).
#pragma once

#include "../common/late_interaction.h"

namespace fgk::cuda {

// Where a call runs. `scratch(owner, bytes)` gives device memory that stays valid, in stream order, until the call's
// kernels are done; 16-byte aligned.
struct Context {
  void* stream = nullptr;
  void* (*scratch)(void* owner, int64_t bytes) = nullptr;
  void* owner = nullptr;
};

void late_interaction_forward(const LateInteractionForward& args, const Context& context);
void late_interaction_backward(const LateInteractionBackward& args, const Context& context);

}  // namespace fgk::cuda
