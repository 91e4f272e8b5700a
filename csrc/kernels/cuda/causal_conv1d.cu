// SPDX-License-Identifier: Apache-2.0
// Entry points of the causal convolution in CUDA.
#include "causal_conv1d.h"

#include "kernel_call.cuh"

namespace fgk::cuda {

// Defined once per type in causal_conv1d_<type>.cu.
template <class T>
void conv_forward(const CausalConvForward& args, const Context& context);
template <class T>
void conv_backward(const CausalConvBackward& args, const Context& context);
template <class T>
void conv_update(const CausalConvUpdate& args, const Context& context);

void causal_conv1d_forward(const CausalConvForward& args, const Context& context) {
  with_type(args.dtype, [&](auto type) { conv_forward<decltype(type)>(args, context); });
}

void causal_conv1d_backward(const CausalConvBackward& args, const Context& context) {
  with_type(args.forward.dtype, [&](auto type) { conv_backward<decltype(type)>(args, context); });
}

void causal_conv1d_update(const CausalConvUpdate& args, const Context& context) {
  with_type(args.dtype, [&](auto type) { conv_update<decltype(type)>(args, context); });
}

}  // namespace fgk::cuda
