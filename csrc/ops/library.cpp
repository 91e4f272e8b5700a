// SPDX-License-Identifier: Apache-2.0
// Every operator: schema and dispatch keys, nothing else. Fake kernels and autograd are registered in
// fgkernels/ops/<family>.py. An op whose name ends in _fwd keeps nothing for a backward.
//
// Compiled once per library (cmake/ops.cmake), which says:
//   FGK_OP_NAMESPACE     namespace of the operators; builds for the Hugging Face kernels format rename it
//   FGK_DISPATCH_KEY     the key that the library's kernels are registered for
//   FGK_DEFINE_SCHEMAS   defined in the one library of a namespace that brings the schemas
#include "late_interaction.h"

// One level of macros more, so that arguments that are macros are replaced before they become strings.
#define FGK_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define FGK_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)

#if defined(FGK_DEFINE_SCHEMAS)

#define FGK_MAXSIM_ARGS                                                            \
  "(Tensor queries, Tensor documents, Tensor? query_mask, Tensor? document_mask, " \
  "Tensor? document_scales, bool mean, bool zero_padding, bool paired)"
#define FGK_MAXSIM_GRAD_ARGS                                                    \
  "(Tensor grad_scores, Tensor queries, Tensor documents, Tensor? query_mask, " \
  "Tensor? document_scales, Tensor alignment, bool mean, bool paired)"
#define FGK_VARLEN_ARGS                                                                \
  "(Tensor queries, Tensor documents, Tensor query_offsets, Tensor document_offsets, " \
  "Tensor? document_scales, bool mean, bool paired)"
#define FGK_VARLEN_GRAD_ARGS                                                      \
  "(Tensor grad_scores, Tensor queries, Tensor documents, Tensor query_offsets, " \
  "Tensor document_offsets, Tensor? document_scales, Tensor alignment, bool mean, bool paired)"
#define FGK_LATE_ARGS "(Tensor a, Tensor b, Tensor? a_mask, Tensor? b_mask, bool mean, bool zero_padding)"
#define FGK_LATE_GRAD_ARGS                                                                \
  "(Tensor grad_ab, Tensor grad_ba, Tensor a, Tensor b, Tensor? a_mask, Tensor? b_mask, " \
  "Tensor alignment_ab, Tensor alignment_ba, bool mean)"

FGK_LIBRARY(FGK_OP_NAMESPACE, m) {
  m.def("maxsim" FGK_MAXSIM_ARGS " -> (Tensor scores, Tensor alignment)");
  m.def("maxsim_fwd" FGK_MAXSIM_ARGS " -> Tensor");
  m.def("maxsim_backward_queries" FGK_MAXSIM_GRAD_ARGS " -> Tensor");
  m.def("maxsim_backward_documents" FGK_MAXSIM_GRAD_ARGS " -> Tensor");
  m.def("maxsim_varlen" FGK_VARLEN_ARGS " -> (Tensor scores, Tensor alignment)");
  m.def("maxsim_varlen_fwd" FGK_VARLEN_ARGS " -> Tensor");
  m.def("maxsim_varlen_backward_queries" FGK_VARLEN_GRAD_ARGS " -> Tensor");
  m.def("maxsim_varlen_backward_documents" FGK_VARLEN_GRAD_ARGS " -> Tensor");
  m.def("late_interaction" FGK_LATE_ARGS
        " -> (Tensor scores_ab, Tensor scores_ba, Tensor alignment_ab, Tensor alignment_ba)");
  m.def("late_interaction_fwd" FGK_LATE_ARGS " -> (Tensor scores_ab, Tensor scores_ba)");
  m.def("late_interaction_backward_a" FGK_LATE_GRAD_ARGS " -> Tensor");
  m.def("late_interaction_backward_b" FGK_LATE_GRAD_ARGS " -> Tensor");
}

#endif  // FGK_DEFINE_SCHEMAS

FGK_LIBRARY_IMPL(FGK_OP_NAMESPACE, FGK_DISPATCH_KEY, m) {
  m.impl("maxsim", TORCH_BOX(&fgk::ops::maxsim));
  m.impl("maxsim_fwd", TORCH_BOX(&fgk::ops::maxsim_fwd));
  m.impl("maxsim_backward_queries", TORCH_BOX(&fgk::ops::maxsim_backward_queries));
  m.impl("maxsim_backward_documents", TORCH_BOX(&fgk::ops::maxsim_backward_documents));
  m.impl("maxsim_varlen", TORCH_BOX(&fgk::ops::maxsim_varlen));
  m.impl("maxsim_varlen_fwd", TORCH_BOX(&fgk::ops::maxsim_varlen_fwd));
  m.impl("maxsim_varlen_backward_queries", TORCH_BOX(&fgk::ops::maxsim_varlen_backward_queries));
  m.impl("maxsim_varlen_backward_documents", TORCH_BOX(&fgk::ops::maxsim_varlen_backward_documents));
  m.impl("late_interaction", TORCH_BOX(&fgk::ops::late_interaction));
  m.impl("late_interaction_fwd", TORCH_BOX(&fgk::ops::late_interaction_fwd));
  m.impl("late_interaction_backward_a", TORCH_BOX(&fgk::ops::late_interaction_backward_a));
  m.impl("late_interaction_backward_b", TORCH_BOX(&fgk::ops::late_interaction_backward_b));
}
