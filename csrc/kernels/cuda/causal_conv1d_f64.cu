// SPDX-License-Identifier: Apache-2.0
#include "causal_conv1d_launch.cuh"

namespace fgk::cuda {

template void conv_forward<double>(const CausalConvForward&, const Context&);
template void conv_backward<double>(const CausalConvBackward&, const Context&);
template void conv_update<double>(const CausalConvUpdate&, const Context&);

}  // namespace fgk::cuda
