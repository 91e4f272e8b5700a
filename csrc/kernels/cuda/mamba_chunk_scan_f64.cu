// SPDX-License-Identifier: Apache-2.0
#include "mamba_chunk_scan_launch.cuh"

namespace fgk::cuda {

template void scan_forward<double>(const ChunkScanForward&, const Context&);
template void scan_backward<double>(const ChunkScanBackward&, const Context&);

}  // namespace fgk::cuda
