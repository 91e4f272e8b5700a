// SPDX-License-Identifier: Apache-2.0
#include "causal_conv1d_launch.cuh"

namespace fgk::cuda {

template void conv_forward<dev::f16>(const CausalConvForward&, const Context&);
template void conv_backward<dev::f16>(const CausalConvBackward&, const Context&);
template void conv_update<dev::f16>(const CausalConvUpdate&, const Context&);

}  // namespace fgk::cuda
