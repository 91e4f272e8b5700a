// SPDX-License-Identifier: Apache-2.0
// Late-interaction similarity on the CPU: forward (one or both directions) and its gradients.
#pragma once

#include "../common/late_interaction.h"
#include "../common/parallel.h"

namespace fgk {

void late_interaction_forward(const LateInteractionForward& args, const Parallel& parallel);
void late_interaction_backward(const LateInteractionBackward& args, const Parallel& parallel);

}  // namespace fgk
