// SPDX-License-Identifier: Apache-2.0
// Causal depthwise convolution in CUDA: forward, gradient, and the step of decoding. All pointers of the arguments are
// device pointers.
#pragma once

#include "../common/causal_conv1d.h"
#include "context.h"

namespace fgk::cuda {

void causal_conv1d_forward(const CausalConvForward& args, const Context& context);
// dweight, dbias and dinitial_state are sums in a fixed order: the same bits in every run.
void causal_conv1d_backward(const CausalConvBackward& args, const Context& context);
// Entries and positions that do not exist are left out: an `entry` outside [0, entries) gives zeros.
void causal_conv1d_update(const CausalConvUpdate& args, const Context& context);

}  // namespace fgk::cuda
