// SPDX-License-Identifier: Apache-2.0
// Implementations of the selective scan over sequences and of its step for decoding, for the device of the library
// (device.h); schemas in library.cpp, semantics in fgkernels/ops/selective_scan.py.
#pragma once

#include <tuple>

#include "checks.h"

namespace fgk::ops {

std::tuple<Tensor, Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A,
                                                  const Tensor& B, const Tensor& C, const OptionalTensor& D,
                                                  const OptionalTensor& z, const OptionalTensor& delta_bias,
                                                  const OptionalTensor& initial_state, bool delta_softplus);
std::tuple<Tensor, Tensor> selective_scan_fwd(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                              const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                              const OptionalTensor& delta_bias, const OptionalTensor& initial_state,
                                              bool delta_softplus);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> selective_scan_backward(
    const Tensor& grad_out, const OptionalTensor& grad_last_state, const Tensor& u, const Tensor& delta,
    const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
    const OptionalTensor& delta_bias, const OptionalTensor& initial_state, const Tensor& checkpoints,
    bool delta_softplus);

Tensor selective_state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                              const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                              const OptionalTensor& dt_bias, const OptionalTensor& state_batch_indices,
                              bool dt_softplus);

}  // namespace fgk::ops
