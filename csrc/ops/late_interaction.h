// SPDX-License-Identifier: Apache-2.0
// Implementations of the late-interaction operators for the device of the library (device.h); schemas in library.cpp,
// semantics in fgkernels/ops/late_interaction.py.
#pragma once

#include <tuple>

#include "checks.h"

namespace fgk::ops {

std::tuple<Tensor, Tensor> maxsim(const Tensor& queries, const Tensor& documents, const OptionalTensor& query_mask,
                                  const OptionalTensor& document_mask, const OptionalTensor& document_scales, bool mean,
                                  bool zero_padding, bool paired);
Tensor maxsim_fwd(const Tensor& queries, const Tensor& documents, const OptionalTensor& query_mask,
                  const OptionalTensor& document_mask, const OptionalTensor& document_scales, bool mean,
                  bool zero_padding, bool paired);
Tensor maxsim_backward_queries(const Tensor& grad_scores, const Tensor& queries, const Tensor& documents,
                               const OptionalTensor& query_mask, const OptionalTensor& document_scales,
                               const Tensor& alignment, bool mean, bool paired);
Tensor maxsim_backward_documents(const Tensor& grad_scores, const Tensor& queries, const Tensor& documents,
                                 const OptionalTensor& query_mask, const OptionalTensor& document_scales,
                                 const Tensor& alignment, bool mean, bool paired);

std::tuple<Tensor, Tensor> maxsim_varlen(const Tensor& queries, const Tensor& documents, const Tensor& query_offsets,
                                         const Tensor& document_offsets, const OptionalTensor& document_scales,
                                         bool mean, bool paired);
Tensor maxsim_varlen_fwd(const Tensor& queries, const Tensor& documents, const Tensor& query_offsets,
                         const Tensor& document_offsets, const OptionalTensor& document_scales, bool mean, bool paired);
Tensor maxsim_varlen_backward_queries(const Tensor& grad_scores, const Tensor& queries, const Tensor& documents,
                                      const Tensor& query_offsets, const Tensor& document_offsets,
                                      const OptionalTensor& document_scales, const Tensor& alignment, bool mean,
                                      bool paired);
Tensor maxsim_varlen_backward_documents(const Tensor& grad_scores, const Tensor& queries, const Tensor& documents,
                                        const Tensor& query_offsets, const Tensor& document_offsets,
                                        const OptionalTensor& document_scales, const Tensor& alignment, bool mean,
                                        bool paired);

std::tuple<Tensor, Tensor, Tensor, Tensor> late_interaction(const Tensor& a, const Tensor& b,
                                                            const OptionalTensor& a_mask, const OptionalTensor& b_mask,
                                                            bool mean, bool zero_padding);
std::tuple<Tensor, Tensor> late_interaction_fwd(const Tensor& a, const Tensor& b, const OptionalTensor& a_mask,
                                                const OptionalTensor& b_mask, bool mean, bool zero_padding);
Tensor late_interaction_backward_a(const Tensor& grad_ab, const Tensor& grad_ba, const Tensor& a, const Tensor& b,
                                   const OptionalTensor& a_mask, const OptionalTensor& b_mask,
                                   const Tensor& alignment_ab, const Tensor& alignment_ba, bool mean);
Tensor late_interaction_backward_b(const Tensor& grad_ab, const Tensor& grad_ba, const Tensor& a, const Tensor& b,
                                   const OptionalTensor& a_mask, const OptionalTensor& b_mask,
                                   const Tensor& alignment_ab, const Tensor& alignment_ba, bool mean);

}  // namespace fgk::ops
