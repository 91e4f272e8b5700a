// SPDX-License-Identifier: Apache-2.0
// Selective scans in CUDA: forward, gradients, the decoding step, and the gathers and sums of 2-D scans. All pointers
// of the arguments are device pointers.
//
// Tables and entries on a device are not checked before a call. A table's entry outside of the map is no place: it is
// neither read nor written, what the step would have read is NaN, and gradients by what no step reads are not written;
// cross_scan gives NaN there. A batch entry whose state is outside of the states gets NaN and changes none.
#pragma once

#include "../common/selective_scan.h"
#include "context.h"

namespace fgk::cuda {

void selective_scan_forward(const SelectiveScanForward& args, const Context& context);
void selective_scan_backward(const SelectiveScanBackward& args, const Context& context);
void state_update(const StateUpdate& args, const Context& context);
void cross_scan(const CrossScan& args, const Context& context);

}  // namespace fgk::cuda
