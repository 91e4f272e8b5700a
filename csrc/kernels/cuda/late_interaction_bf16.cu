// SPDX-License-Identifier: Apache-2.0
#include "late_interaction_launch.cuh"

namespace fgk::cuda {

template void forward<dev::bf16>(const LateInteractionForward&, const Context&);
template void backward<dev::bf16>(const LateInteractionBackward&, const Context&);

}  // namespace fgk::cuda
