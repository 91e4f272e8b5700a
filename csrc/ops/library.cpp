// SPDX-License-Identifier: Apache-2.0
// Every operator: schema and dispatch keys, nothing else. Fake kernels and autograd are registered in
// fgkernels/ops/<family>.py. An op whose name ends in _fwd keeps nothing for a backward.
//
// Compiled once per library (cmake/ops.cmake), which says:
//   FGK_OP_NAMESPACE     namespace of the operators; builds for the Hugging Face kernels format rename it
//   FGK_DISPATCH_KEY     the key that the library's kernels are registered for
//   FGK_DEFINE_SCHEMAS   defined in the one library of a namespace that brings the schemas
#include "causal_conv1d.h"
#include "late_interaction.h"
#include "mamba_chunk_scan.h"
#include "selective_scan.h"
#include "selective_scan_2d.h"

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

#define FGK_SCAN_INPUTS                                                                              \
  "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, " \
  "Tensor? initial_state, "
#define FGK_SCAN_2D_INPUTS                                                                           \
  "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, " \
  "Tensor table, "
#define FGK_CONV_ARGS "Tensor x, Tensor weight, Tensor? bias, Tensor? seq_idx, Tensor? initial_state, bool silu)"
#define FGK_CHUNK_SCAN_INPUTS                                                                  \
  "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, " \
  "Tensor? initial_states, Tensor? seq_idx, "
#define FGK_CHUNK_SCAN_OPTIONS "bool dt_softplus, float dt_min, float dt_max)"

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

  m.def("selective_scan(" FGK_SCAN_INPUTS
        "bool delta_softplus) -> (Tensor out, Tensor last_state, Tensor checkpoints)");
  m.def("selective_scan_fwd(" FGK_SCAN_INPUTS "bool delta_softplus) -> (Tensor out, Tensor last_state)");
  m.def("selective_scan_backward(Tensor grad_out, Tensor? grad_last_state, " FGK_SCAN_INPUTS
        "Tensor checkpoints, bool delta_softplus) -> (Tensor du, Tensor ddelta, Tensor dA, Tensor dB, Tensor dC, "
        "Tensor dD, Tensor dz, Tensor ddelta_bias, Tensor dinitial_state)");
  m.def(
      "selective_state_update(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, "
      "Tensor? z, Tensor? dt_bias, Tensor? state_batch_indices, bool dt_softplus) -> Tensor");

  m.def("selective_scan_2d(" FGK_SCAN_2D_INPUTS
        "bool delta_softplus, bool ordered) -> (Tensor out, Tensor checkpoints)");
  m.def("selective_scan_2d_fwd(" FGK_SCAN_2D_INPUTS "bool delta_softplus, bool ordered) -> Tensor");
  m.def("selective_scan_2d_backward(Tensor grad_out, " FGK_SCAN_2D_INPUTS
        "Tensor checkpoints, bool delta_softplus, bool ordered) -> (Tensor dx, Tensor ddelta, Tensor dA, Tensor dB, "
        "Tensor dC, Tensor dD, Tensor dz, Tensor ddelta_bias)");
  m.def("cross_scan(Tensor x, Tensor table) -> Tensor");
  m.def("cross_merge(Tensor y, Tensor table) -> Tensor");

  m.def("causal_conv1d(" FGK_CONV_ARGS " -> Tensor");
  m.def("causal_conv1d_backward(Tensor grad_out, " FGK_CONV_ARGS
        " -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dinitial_state)");
  m.def(
      "causal_conv1d_update(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, Tensor? cache_seqlens, "
      "Tensor? conv_state_indices, bool silu) -> Tensor");

  m.def("mamba_chunk_scan(" FGK_CHUNK_SCAN_INPUTS FGK_CHUNK_SCAN_OPTIONS
        " -> (Tensor out, Tensor final_states, Tensor checkpoints)");
  m.def("mamba_chunk_scan_fwd(" FGK_CHUNK_SCAN_INPUTS FGK_CHUNK_SCAN_OPTIONS " -> (Tensor out, Tensor final_states)");
  m.def("mamba_chunk_scan_backward(Tensor grad_out, Tensor? grad_final_states, " FGK_CHUNK_SCAN_INPUTS
        "Tensor checkpoints, " FGK_CHUNK_SCAN_OPTIONS
        " -> (Tensor dx, Tensor ddt, Tensor dA, Tensor dB, Tensor dC, Tensor dD, Tensor dz, Tensor ddt_bias, "
        "Tensor dinitial_states)");
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

  m.impl("selective_scan", TORCH_BOX(&fgk::ops::selective_scan));
  m.impl("selective_scan_fwd", TORCH_BOX(&fgk::ops::selective_scan_fwd));
  m.impl("selective_scan_backward", TORCH_BOX(&fgk::ops::selective_scan_backward));
  m.impl("selective_state_update", TORCH_BOX(&fgk::ops::selective_state_update));

  m.impl("selective_scan_2d", TORCH_BOX(&fgk::ops::selective_scan_2d));
  m.impl("selective_scan_2d_fwd", TORCH_BOX(&fgk::ops::selective_scan_2d_fwd));
  m.impl("selective_scan_2d_backward", TORCH_BOX(&fgk::ops::selective_scan_2d_backward));
  m.impl("cross_scan", TORCH_BOX(&fgk::ops::cross_scan));
  m.impl("cross_merge", TORCH_BOX(&fgk::ops::cross_merge));

  m.impl("causal_conv1d", TORCH_BOX(&fgk::ops::causal_conv1d));
  m.impl("causal_conv1d_backward", TORCH_BOX(&fgk::ops::causal_conv1d_backward));
  m.impl("causal_conv1d_update", TORCH_BOX(&fgk::ops::causal_conv1d_update));

  m.impl("mamba_chunk_scan", TORCH_BOX(&fgk::ops::mamba_chunk_scan));
  m.impl("mamba_chunk_scan_fwd", TORCH_BOX(&fgk::ops::mamba_chunk_scan_fwd));
  m.impl("mamba_chunk_scan_backward", TORCH_BOX(&fgk::ops::mamba_chunk_scan_backward));
}
