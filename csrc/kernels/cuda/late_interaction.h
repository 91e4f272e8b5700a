// SPDX-License-Identifier: Apache-2.0
// Late-interaction similarity in CUDA: forward (one or both directions) and its gradients. All pointers of the
// arguments are device pointers; packed offsets are int64 on the device, checked there (illegal ones give NaN).
#pragma once

#include "../common/late_interaction.h"
#include "context.h"

namespace fgk::cuda {

void late_interaction_forward(const LateInteractionForward& args, const Context& context);
void late_interaction_backward(const LateInteractionBackward& args, const Context& context);

}  // namespace fgk::cuda
