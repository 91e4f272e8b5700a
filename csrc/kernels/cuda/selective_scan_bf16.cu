// SPDX-License-Identifier: Apache-2.0
#include "selective_scan_launch.cuh"

namespace fgk::cuda {

template void scan_forward<dev::bf16>(const SelectiveScanForward&, const Context&);
template void scan_backward<dev::bf16>(const SelectiveScanBackward&, const Context&);

}  // namespace fgk::cuda
