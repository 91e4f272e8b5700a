// SPDX-License-Identifier: Apache-2.0
#include "late_interaction_launch.cuh"

namespace fgk::cuda {

template void forward<double>(const LateInteractionForward&, const Context&);
template void backward<double>(const LateInteractionBackward&, const Context&);

}  // namespace fgk::cuda
