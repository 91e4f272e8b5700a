// SPDX-License-Identifier: Apache-2.0
// Entry points of the Mamba-2 scan in CUDA.
#include "mamba_chunk_scan.h"

#include "kernel_call.cuh"

namespace fgk::cuda {

// Defined once per type in mamba_chunk_scan_<type>.cu.
template <class T>
void forward_chunks(const ChunkScanForward& args, const Context& context);
template <class T>
void backward_chunks(const ChunkScanBackward& args, const Context& context);

void chunk_scan_forward(const ChunkScanForward& args, const Context& context) {
  with_type(args.dtype, [&](auto type) { forward_chunks<decltype(type)>(args, context); });
}

void chunk_scan_backward(const ChunkScanBackward& args, const Context& context) {
  with_type(args.forward.dtype, [&](auto type) { backward_chunks<decltype(type)>(args, context); });
}

}  // namespace fgk::cuda
