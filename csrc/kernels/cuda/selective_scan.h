// SPDX-License-Identifier: Apache-2.0
// Selective scans in CUDA: forward, gradients, the decoding step, and the gathers and sums of 2-D scans. All pointers
// of the arguments are device pointers.
#pragma once

#include "../common/selective_scan.h"
#include "context.h"

namespace fgk::cuda {

void selective_scan_forward(const SelectiveScanForward& args, const Context& context);
void selective_scan_backward(const SelectiveScanBackward& args, const Context& context);
void state_update(const StateUpdate& args, const Context& context);
void cross_scan(const CrossScan& args, const Context& context);

}  // namespace fgk::cuda
