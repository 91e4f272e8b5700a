// SPDX-License-Identifier: Apache-2.0
// Implementations of the Mamba-2 scan for the device of the library (device.h); schemas in library.cpp, semantics in
// fgkernels/ops/mamba_chunk_scan.py.
#pragma once

#include <tuple>

#include "checks.h"

namespace fgk::ops {

std::tuple<Tensor, Tensor, Tensor> mamba_chunk_scan(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                                                    const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                                    const OptionalTensor& dt_bias, const OptionalTensor& initial_states,
                                                    const OptionalTensor& seq_idx, bool dt_softplus, double dt_min,
                                                    double dt_max);
std::tuple<Tensor, Tensor> mamba_chunk_scan_fwd(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                                                const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                                const OptionalTensor& dt_bias, const OptionalTensor& initial_states,
                                                const OptionalTensor& seq_idx, bool dt_softplus, double dt_min,
                                                double dt_max);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mamba_chunk_scan_backward(
    const Tensor& grad_out, const OptionalTensor& grad_final_states, const Tensor& x, const Tensor& dt, const Tensor& A,
    const Tensor& B, const Tensor& C, const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias,
    const OptionalTensor& initial_states, const OptionalTensor& seq_idx, const Tensor& checkpoints, bool dt_softplus,
    double dt_min, double dt_max);

}  // namespace fgk::ops
