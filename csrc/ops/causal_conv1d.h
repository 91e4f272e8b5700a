// SPDX-License-Identifier: Apache-2.0
// Implementations of the causal depthwise convolution for the device of the library (device.h); schemas in library.cpp,
// semantics in fgkernels/ops/causal_conv1d.py.
#pragma once

#include <tuple>

#include "checks.h"

namespace fgk::ops {

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& seq_idx,
                     const OptionalTensor& initial_state, bool silu);
std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward(const Tensor& grad_out, const Tensor& x,
                                                                  const Tensor& weight, const OptionalTensor& bias,
                                                                  const OptionalTensor& seq_idx,
                                                                  const OptionalTensor& initial_state, bool silu);
Tensor causal_conv1d_update(const Tensor& x, const Tensor& conv_state, const Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& cache_seqlens, const OptionalTensor& conv_state_indices, bool silu);

}  // namespace fgk::ops
