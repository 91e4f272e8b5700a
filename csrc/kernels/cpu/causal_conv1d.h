// SPDX-License-Identifier: Apache-2.0
// Causal depthwise convolution on the CPU: forward, gradients, and the step for decoding.
#pragma once

#include "../common/causal_conv1d.h"
#include "../common/parallel.h"

namespace fgk {

void causal_conv1d_forward(const CausalConvForward& args, const Parallel& parallel);
void causal_conv1d_backward(const CausalConvBackward& args, const Parallel& parallel);
void causal_conv1d_update(const CausalConvUpdate& args, const Parallel& parallel);

}  // namespace fgk
