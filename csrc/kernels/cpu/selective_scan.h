// SPDX-License-Identifier: Apache-2.0
// Selective scans on the CPU. Channels lie across the lanes of vectors, states stay in registers over a chunk of steps.
#pragma once

#include "../common/parallel.h"
#include "../common/selective_scan.h"

namespace fgk {

void selective_scan_forward(const SelectiveScanForward& args, const Parallel& parallel);
void selective_scan_backward(const SelectiveScanBackward& args, const Parallel& parallel);
void state_update(const StateUpdate& args, const Parallel& parallel);

}  // namespace fgk
