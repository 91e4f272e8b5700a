// SPDX-License-Identifier: Apache-2.0
// Implementations of the selective scan over maps and of its gathers and sums, for the device of the library
// (device.h); schemas in library.cpp, semantics in fgkernels/ops/selective_scan_2d.py.
#pragma once

#include <tuple>

#include "checks.h"

namespace fgk::ops {

std::tuple<Tensor, Tensor> selective_scan_2d(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                                             const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                             const OptionalTensor& delta_bias, const Tensor& table, bool delta_softplus,
                                             bool ordered);
Tensor selective_scan_2d_fwd(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                             const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias,
                             const Tensor& table, bool delta_softplus, bool ordered);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> selective_scan_2d_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
    const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias, const Tensor& table,
    const Tensor& checkpoints, bool delta_softplus, bool ordered);

Tensor cross_scan(const Tensor& x, const Tensor& table);
Tensor cross_merge(const Tensor& y, const Tensor& table);

}  // namespace fgk::ops
