// SPDX-License-Identifier: Apache-2.0
#include "causal_conv1d_launch.cuh"

namespace fgk::cuda {

template void conv_forward<float>(const CausalConvForward&, const Context&);
template void conv_backward<float>(const CausalConvBackward&, const Context&);
template void conv_update<float>(const CausalConvUpdate&, const Context&);

}  // namespace fgk::cuda
