// SPDX-License-Identifier: Apache-2.0
// The Mamba-2 scan on the CPU, as a recurrence: channels of a head lie across lanes, states stay in registers over a
// chunk. With one decay per head that takes three multiply-adds per state, little more than the matrix form does, and
// no exponential of a segment sum.
#pragma once

#include "../common/mamba_chunk_scan.h"
#include "../common/parallel.h"

namespace fgk {

void chunk_scan_forward(const ChunkScanForward& args, const Parallel& parallel);
void chunk_scan_backward(const ChunkScanBackward& args, const Parallel& parallel);

}  // namespace fgk
