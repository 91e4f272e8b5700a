// SPDX-License-Identifier: Apache-2.0
#include "selective_scan_launch.cuh"

namespace fgk::cuda {

template void scan_forward<dev::f16>(const SelectiveScanForward&, const Context&);
template void scan_backward<dev::f16>(const SelectiveScanBackward&, const Context&);

}  // namespace fgk::cuda
