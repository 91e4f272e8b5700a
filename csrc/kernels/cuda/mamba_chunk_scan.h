// SPDX-License-Identifier: Apache-2.0
// The Mamba-2 scan in CUDA: forward and gradient. All pointers of the arguments are device pointers.
#pragma once

#include "../common/mamba_chunk_scan.h"
#include "context.h"

namespace fgk::cuda {

void chunk_scan_forward(const ChunkScanForward& args, const Context& context);
// All gradients are sums in a fixed order: the same bits in every run.
void chunk_scan_backward(const ChunkScanBackward& args, const Context& context);

}  // namespace fgk::cuda
