// SPDX-License-Identifier: Apache-2.0
#include "mamba_chunk_scan_launch.cuh"

namespace fgk::cuda {

template void forward_chunks<dev::bf16>(const ChunkScanForward&, const Context&);
template void backward_chunks<dev::bf16>(const ChunkScanBackward&, const Context&);

}  // namespace fgk::cuda
