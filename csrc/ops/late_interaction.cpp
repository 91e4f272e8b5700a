// SPDX-License-Identifier: Apache-2.0
// Checks, allocation and the call into kernels/ for the late-interaction operators.
#include "late_interaction.h"

#include "token_sides.h"

namespace fgk::ops {
namespace {

constexpr int64_t kNarrowIndexLimit = 32767;

ScalarType score_type(const Tensor& tokens) {
  return tokens.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

ScalarType index_type(int64_t tokens) { return tokens <= kNarrowIndexLimit ? ScalarType::Short : ScalarType::Int; }

void write_to(DirectionOutput& out, Tensor& scores, Tensor* alignment) {
  out.scores = scores.mutable_data_ptr();
  out.score_count = scores.numel();
  if (alignment == nullptr) return;
  out.indices = alignment->mutable_data_ptr();
  out.index_count = alignment->numel();
  out.wide_indices = alignment->scalar_type() == ScalarType::Int;
}

// A tensor that a backward gets back: on the device of the call's first tensor, in the shape that the forward gave it.
void check_returned(const char* name, const Tensor& tensor, const char* first_name, const Tensor& first,
                    std::initializer_list<int64_t> sizes, bool legal_type, const char* types) {
  check_device(name, tensor, first_name, first);
  check(has_sizes(tensor, sizes) && legal_type, name, ": expected ", types, " ", shape(sizes),
        " as the forward returned it, got ", dtype_name(tensor), " ", shape(tensor));
}

// What a backward is given for one direction. Gradients are read through their strides (an expanded one is never
// copied), alignments are dense.
struct Incoming {
  Tensor grad;
  Tensor alignment;
};

Incoming check_incoming(const char* grad_name, const Tensor& grad, const char* alignment_name, const Tensor& alignment,
                        const char* first_name, const Tensor& first, std::initializer_list<int64_t> score_sizes,
                        std::initializer_list<int64_t> alignment_sizes) {
  const ScalarType score = score_type(first);
  check_returned(grad_name, grad, first_name, first, score_sizes, grad.scalar_type() == score, dtype_name(score));
  const ScalarType index = alignment.scalar_type();
  check_returned(alignment_name, alignment, first_name, first, alignment_sizes,
                 index == ScalarType::Short || index == ScalarType::Int, "int16 or int32");
  return {grad, dense(alignment)};
}

void read_from(DirectionOutput& direction, const Incoming& incoming) {
  direction.scores = const_cast<void*>(incoming.grad.const_data_ptr());
  direction.score_count = span(incoming.grad);
  direction.indices = const_cast<void*>(incoming.alignment.const_data_ptr());
  direction.index_count = incoming.alignment.numel();
  direction.wide_indices = incoming.alignment.scalar_type() == ScalarType::Int;
}

// ---- maxsim, padded ----

struct PaddedCall {
  Side queries;
  Side documents;
  int64_t paired = 0;  // K, documents per query; 0: all pairs
  bool rerank = false;

  int64_t score_columns() const { return rerank ? paired : documents.batch.batch; }
  bool flat() const { return paired > 0 && !rerank; }  // scores (N,)
};

PaddedCall padded_call(const Tensor& queries, const Tensor& documents, const OptionalTensor& query_mask,
                       const OptionalTensor& document_mask, const OptionalTensor& scales, bool paired) {
  check(queries.dim() == 3, "queries: expected (Nq, Lq, D), got ", shape(queries));
  const bool rerank = documents.dim() == 4;
  const char* letters = rerank ? "(Nq, K, Ld, D)" : paired ? "(N, Ld, D)" : "(Nd, Ld, D)";
  check(documents.dim() == 3 || (rerank && paired), "documents: expected ",
        paired ? "(N, Ld, D), or (Nq, K, Ld, D) to rerank" : "(Nd, Ld, D)", ", got ", shape(documents));
  const DType query_type = check_float("queries", queries);
  const DType document_type =
      check_tokens_like("documents", documents, "queries", queries, true, scales.has_value(), letters);
  check(!paired || documents.size(0) == queries.size(0), "documents: expected ", letters, " with ",
        rerank ? "Nq = " : "N = ", queries.size(0), " like queries, got ", shape(documents));
  check_per_token("query_mask", query_mask, "queries", queries, ScalarType::Bool, "(Nq, Lq)",
                  {queries.size(0), queries.size(1)});
  const int64_t d0 = documents.size(0), d1 = documents.size(1), d2 = documents.size(2);
  const std::initializer_list<int64_t> padded = {d0, d1}, candidates = {d0, d1, d2};
  const std::initializer_list<int64_t>& sizes = rerank ? candidates : padded;
  const char* token_letters = rerank ? "(Nq, K, Ld)" : paired ? "(N, Ld)" : "(Nd, Ld)";
  check_per_token("document_mask", document_mask, "queries", queries, ScalarType::Bool, token_letters, sizes);
  check_per_token("document_scales", scales, "queries", queries, ScalarType::Float, token_letters, sizes);
  PaddedCall call;
  call.rerank = rerank;
  call.queries = padded_side("queries", queries, query_type);
  call.documents = padded_side("documents", documents, document_type);
  attach_mask(call.queries, query_mask);
  attach_mask(call.documents, document_mask);
  attach_scales(call.documents, scales);
  if (paired) call.paired = rerank ? documents.size(1) : 1;
  return call;
}

void place_padded(const PaddedCall& call, DirectionOutput& out) {
  const int64_t lq = call.queries.batch.length;
  out.index_y = lq;
  out.score_y = 1;
  if (call.paired == 0) {
    out.score_x = call.documents.batch.batch;
    out.index_x = call.documents.batch.batch;
  }
}

Tensor run_maxsim(const PaddedCall& call, bool mean, bool zero_padding, Tensor* alignment) {
  const ScalarType type = score_type(call.queries.tokens);
  const ScalarType narrow = index_type(call.documents.batch.length);
  const int64_t nq = call.queries.batch.batch;
  const int64_t lq = call.queries.batch.length;
  const int64_t columns = call.score_columns();
  const Tensor& like = call.queries.tokens;
  Tensor scores = call.flat() ? empty({nq}, type, like) : empty({nq, columns}, type, like);
  if (alignment) *alignment = call.flat() ? empty({nq, lq}, narrow, like) : empty({nq, columns, lq}, narrow, like);
  LateInteractionForward args;
  args.a = call.queries.batch;
  args.b = call.documents.batch;
  args.mean = mean;
  args.zero_padding = zero_padding;
  args.paired = call.paired;
  place_padded(call, args.ab);
  write_to(args.ab, scores, alignment);
  device::run(args, like);
  return scores;
}

// ---- maxsim, packed ----

struct PackedCall {
  Side queries;
  Side documents;
  bool paired = false;
};

PackedCall packed_call(const Tensor& queries, const Tensor& documents, const Tensor& query_offsets,
                       const Tensor& document_offsets, const OptionalTensor& scales, bool paired) {
  check(queries.dim() == 2, "queries: expected (Tq, D), got ", shape(queries));
  check(documents.dim() == 2, "documents: expected (Td, D), got ", shape(documents));
  const DType query_type = check_float("queries", queries);
  const DType document_type =
      check_tokens_like("documents", documents, "queries", queries, true, scales.has_value(), "(Td, D)");
  check_per_token("document_scales", scales, "queries", queries, ScalarType::Float, "(Td,)", {documents.size(0)});
  PackedCall call;
  call.paired = paired;
  call.queries = packed_side("queries", queries, query_type, "query_offsets", query_offsets, "queries", queries);
  call.documents =
      packed_side("documents", documents, document_type, "document_offsets", document_offsets, "queries", queries);
  attach_scales(call.documents, scales);
  check(!paired || call.queries.batch.batch == call.documents.batch.batch,
        "document_offsets: expected (N + 1,) with N = ", call.queries.batch.batch,
        " like query_offsets for paired scores, got ", shape(document_offsets));
  return call;
}

void place_packed(const PackedCall& call, DirectionOutput& out) {
  out.score_y = 1;
  out.index_x = 1;
  if (call.paired) return;
  out.score_x = call.documents.batch.batch;
  out.index_y = call.queries.tokens.size(0);
}

Tensor run_varlen(const PackedCall& call, bool mean, Tensor* alignment) {
  const ScalarType type = score_type(call.queries.tokens);
  const ScalarType narrow = index_type(call.documents.tokens.size(0));
  const int64_t nq = call.queries.batch.batch;
  const int64_t nd = call.documents.batch.batch;
  const int64_t tq = call.queries.tokens.size(0);
  const Tensor& like = call.queries.tokens;
  Tensor scores = call.paired ? empty({nq}, type, like) : empty({nq, nd}, type, like);
  if (alignment) *alignment = call.paired ? empty({tq}, narrow, like) : empty({nd, tq}, narrow, like);
  LateInteractionForward args;
  args.a = call.queries.batch;
  args.b = call.documents.batch;
  args.mean = mean;
  args.paired = call.paired ? 1 : 0;
  place_packed(call, args.ab);
  write_to(args.ab, scores, alignment);
  device::run(args, like);
  return scores;
}

// Gradient of a one-direction call with respect to its queries (gather) or documents (scatter).
Tensor run_maxsim_backward(const Side& queries, const Side& documents, const DirectionOutput& direction, bool mean,
                           int64_t paired, bool for_queries, const Tensor& like) {
  Tensor gradient = empty_dense_like(like);
  LateInteractionBackward args;
  args.owner = for_queries ? queries.batch : documents.batch;
  args.other = for_queries ? documents.batch : queries.batch;
  (for_queries ? args.own : args.from_other) = direction;
  args.mean = mean;
  args.paired = paired;
  args.owner_is_a = for_queries;
  args.gradient = gradient.mutable_data_ptr();
  device::run(args, like);
  return gradient;
}

void check_document_gradient(const Tensor& documents) {
  check(documents.scalar_type() != ScalarType::Char, "documents: int8 documents take no gradient");
}

Tensor maxsim_gradient(const Tensor& grad_scores, const Tensor& queries, const Tensor& documents,
                       const OptionalTensor& query_mask, const OptionalTensor& document_scales, const Tensor& alignment,
                       bool mean, bool paired, bool for_queries) {
  if (!for_queries) check_document_gradient(documents);
  const PaddedCall call = padded_call(queries, documents, query_mask, std::nullopt, document_scales, paired);
  const int64_t nq = call.queries.batch.batch;
  const int64_t lq = call.queries.batch.length;
  const int64_t columns = call.score_columns();
  const Incoming incoming = call.flat() ? check_incoming("grad_scores", grad_scores, "alignment", alignment, "queries",
                                                         queries, {nq}, {nq, lq})
                                        : check_incoming("grad_scores", grad_scores, "alignment", alignment, "queries",
                                                         queries, {nq, columns}, {nq, columns, lq});
  DirectionOutput direction;
  place_padded(call, direction);
  read_from(direction, incoming);
  // A paired document is found from its own number alone, which takes dense rows.
  const Tensor grad = call.paired ? dense(grad_scores) : grad_scores;
  direction.scores = const_cast<void*>(grad.const_data_ptr());
  direction.score_count = span(grad);
  if (call.paired == 0) {
    direction.score_x = grad.stride(0);
    direction.score_y = grad.stride(1);
  }
  return run_maxsim_backward(call.queries, call.documents, direction, mean, call.paired, for_queries,
                             for_queries ? queries : documents);
}

Tensor varlen_gradient(const Tensor& grad_scores, const Tensor& queries, const Tensor& documents,
                       const Tensor& query_offsets, const Tensor& document_offsets,
                       const OptionalTensor& document_scales, const Tensor& alignment, bool mean, bool paired,
                       bool for_queries) {
  if (!for_queries) check_document_gradient(documents);
  const PackedCall call = packed_call(queries, documents, query_offsets, document_offsets, document_scales, paired);
  const int64_t nq = call.queries.batch.batch;
  const int64_t nd = call.documents.batch.batch;
  const int64_t tq = queries.size(0);
  const Incoming incoming =
      paired
          ? check_incoming("grad_scores", grad_scores, "alignment", alignment, "queries", queries, {nq}, {tq})
          : check_incoming("grad_scores", grad_scores, "alignment", alignment, "queries", queries, {nq, nd}, {nd, tq});
  DirectionOutput direction;
  place_packed(call, direction);
  read_from(direction, incoming);
  direction.score_x = paired ? 0 : grad_scores.stride(0);
  direction.score_y = grad_scores.stride(paired ? 0 : 1);
  return run_maxsim_backward(call.queries, call.documents, direction, mean, paired ? 1 : 0, for_queries,
                             for_queries ? queries : documents);
}

// ---- both directions ----

struct LateCall {
  Side a;
  Side b;
};

LateCall late_call(const Tensor& a, const Tensor& b, const OptionalTensor& a_mask, const OptionalTensor& b_mask) {
  check(a.dim() == 3, "a: expected (Na, n, D), got ", shape(a));
  check(b.dim() == 3, "b: expected (Nb, m, D), got ", shape(b));
  const DType a_type = check_float("a", a);
  const DType b_type = check_tokens_like("b", b, "a", a, false, false, "(Nb, m, D)");
  check_per_token("a_mask", a_mask, "a", a, ScalarType::Bool, "(Na, n)", {a.size(0), a.size(1)});
  check_per_token("b_mask", b_mask, "a", a, ScalarType::Bool, "(Nb, m)", {b.size(0), b.size(1)});
  LateCall call;
  call.a = padded_side("a", a, a_type);
  call.b = padded_side("b", b, b_type);
  attach_mask(call.a, a_mask);
  attach_mask(call.b, b_mask);
  return call;
}

void place_late(const LateCall& call, DirectionOutput& ab, DirectionOutput& ba) {
  const int64_t nb = call.b.batch.batch;
  const int64_t n = call.a.batch.length;
  const int64_t m = call.b.batch.length;
  ab.score_x = nb;
  ab.score_y = 1;
  ab.index_x = nb;
  ab.index_y = n;
  ba.score_x = 1;
  ba.score_y = nb;
  ba.index_x = 1;
  ba.index_y = nb * m;
}

std::tuple<Tensor, Tensor> run_late(const LateCall& call, bool mean, bool zero_padding, Tensor* alignment_ab,
                                    Tensor* alignment_ba) {
  const ScalarType type = score_type(call.a.tokens);
  const int64_t na = call.a.batch.batch;
  const int64_t nb = call.b.batch.batch;
  const int64_t n = call.a.batch.length;
  const int64_t m = call.b.batch.length;
  const Tensor& like = call.a.tokens;
  Tensor ab = empty({na, nb}, type, like);
  Tensor ba = empty({na, nb}, type, like);
  if (alignment_ab) {
    *alignment_ab = empty({na, nb, n}, index_type(m), like);
    *alignment_ba = empty({na, nb, m}, index_type(n), like);
  }
  LateInteractionForward args;
  args.a = call.a.batch;
  args.b = call.b.batch;
  args.mean = mean;
  args.zero_padding = zero_padding;
  place_late(call, args.ab, args.ba);
  write_to(args.ab, ab, alignment_ab);
  write_to(args.ba, ba, alignment_ba);
  device::run(args, like);
  return {ab, ba};
}

Tensor late_gradient(const Tensor& grad_ab, const Tensor& grad_ba, const Tensor& a, const Tensor& b,
                     const OptionalTensor& a_mask, const OptionalTensor& b_mask, const Tensor& alignment_ab,
                     const Tensor& alignment_ba, bool mean, bool for_a) {
  const LateCall call = late_call(a, b, a_mask, b_mask);
  const int64_t na = a.size(0), nb = b.size(0), n = a.size(1), m = b.size(1);
  const Incoming in_ab =
      check_incoming("grad_ab", grad_ab, "alignment_ab", alignment_ab, "a", a, {na, nb}, {na, nb, n});
  const Incoming in_ba =
      check_incoming("grad_ba", grad_ba, "alignment_ba", alignment_ba, "a", a, {na, nb}, {na, nb, m});
  DirectionOutput ab, ba;
  place_late(call, ab, ba);
  read_from(ab, in_ab);
  read_from(ba, in_ba);
  ab.score_x = grad_ab.stride(0);
  ab.score_y = grad_ab.stride(1);
  ba.score_x = grad_ba.stride(1);
  ba.score_y = grad_ba.stride(0);
  const Tensor& like = for_a ? a : b;
  Tensor gradient = empty_dense_like(like);
  LateInteractionBackward args;
  args.owner = for_a ? call.a.batch : call.b.batch;
  args.other = for_a ? call.b.batch : call.a.batch;
  args.own = for_a ? ab : ba;
  args.from_other = for_a ? ba : ab;
  args.mean = mean;
  args.owner_is_a = for_a;
  args.gradient = gradient.mutable_data_ptr();
  device::run(args, like);
  return gradient;
}

}  // namespace

std::tuple<Tensor, Tensor> maxsim(const Tensor& queries, const Tensor& documents, const OptionalTensor& query_mask,
                                  const OptionalTensor& document_mask, const OptionalTensor& document_scales, bool mean,
                                  bool zero_padding, bool paired) {
  const PaddedCall call = padded_call(queries, documents, query_mask, document_mask, document_scales, paired);
  Tensor alignment;
  Tensor scores = run_maxsim(call, mean, zero_padding, &alignment);
  return {scores, alignment};
}

Tensor maxsim_fwd(const Tensor& queries, const Tensor& documents, const OptionalTensor& query_mask,
                  const OptionalTensor& document_mask, const OptionalTensor& document_scales, bool mean,
                  bool zero_padding, bool paired) {
  const PaddedCall call = padded_call(queries, documents, query_mask, document_mask, document_scales, paired);
  return run_maxsim(call, mean, zero_padding, nullptr);
}

Tensor maxsim_backward_queries(const Tensor& grad_scores, const Tensor& queries, const Tensor& documents,
                               const OptionalTensor& query_mask, const OptionalTensor& document_scales,
                               const Tensor& alignment, bool mean, bool paired) {
  return maxsim_gradient(grad_scores, queries, documents, query_mask, document_scales, alignment, mean, paired, true);
}

Tensor maxsim_backward_documents(const Tensor& grad_scores, const Tensor& queries, const Tensor& documents,
                                 const OptionalTensor& query_mask, const OptionalTensor& document_scales,
                                 const Tensor& alignment, bool mean, bool paired) {
  return maxsim_gradient(grad_scores, queries, documents, query_mask, document_scales, alignment, mean, paired, false);
}

std::tuple<Tensor, Tensor> maxsim_varlen(const Tensor& queries, const Tensor& documents, const Tensor& query_offsets,
                                         const Tensor& document_offsets, const OptionalTensor& document_scales,
                                         bool mean, bool paired) {
  const PackedCall call = packed_call(queries, documents, query_offsets, document_offsets, document_scales, paired);
  Tensor alignment;
  Tensor scores = run_varlen(call, mean, &alignment);
  return {scores, alignment};
}

Tensor maxsim_varlen_fwd(const Tensor& queries, const Tensor& documents, const Tensor& query_offsets,
                         const Tensor& document_offsets, const OptionalTensor& document_scales, bool mean,
                         bool paired) {
  const PackedCall call = packed_call(queries, documents, query_offsets, document_offsets, document_scales, paired);
  return run_varlen(call, mean, nullptr);
}

Tensor maxsim_varlen_backward_queries(const Tensor& grad_scores, const Tensor& queries, const Tensor& documents,
                                      const Tensor& query_offsets, const Tensor& document_offsets,
                                      const OptionalTensor& document_scales, const Tensor& alignment, bool mean,
                                      bool paired) {
  return varlen_gradient(grad_scores, queries, documents, query_offsets, document_offsets, document_scales, alignment,
                         mean, paired, true);
}

Tensor maxsim_varlen_backward_documents(const Tensor& grad_scores, const Tensor& queries, const Tensor& documents,
                                        const Tensor& query_offsets, const Tensor& document_offsets,
                                        const OptionalTensor& document_scales, const Tensor& alignment, bool mean,
                                        bool paired) {
  return varlen_gradient(grad_scores, queries, documents, query_offsets, document_offsets, document_scales, alignment,
                         mean, paired, false);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> late_interaction(const Tensor& a, const Tensor& b,
                                                            const OptionalTensor& a_mask, const OptionalTensor& b_mask,
                                                            bool mean, bool zero_padding) {
  const LateCall call = late_call(a, b, a_mask, b_mask);
  Tensor alignment_ab, alignment_ba;
  auto [ab, ba] = run_late(call, mean, zero_padding, &alignment_ab, &alignment_ba);
  return {ab, ba, alignment_ab, alignment_ba};
}

std::tuple<Tensor, Tensor> late_interaction_fwd(const Tensor& a, const Tensor& b, const OptionalTensor& a_mask,
                                                const OptionalTensor& b_mask, bool mean, bool zero_padding) {
  return run_late(late_call(a, b, a_mask, b_mask), mean, zero_padding, nullptr, nullptr);
}

Tensor late_interaction_backward_a(const Tensor& grad_ab, const Tensor& grad_ba, const Tensor& a, const Tensor& b,
                                   const OptionalTensor& a_mask, const OptionalTensor& b_mask,
                                   const Tensor& alignment_ab, const Tensor& alignment_ba, bool mean) {
  return late_gradient(grad_ab, grad_ba, a, b, a_mask, b_mask, alignment_ab, alignment_ba, mean, true);
}

Tensor late_interaction_backward_b(const Tensor& grad_ab, const Tensor& grad_ba, const Tensor& a, const Tensor& b,
                                   const OptionalTensor& a_mask, const OptionalTensor& b_mask,
                                   const Tensor& alignment_ab, const Tensor& alignment_ba, bool mean) {
  return late_gradient(grad_ab, grad_ba, a, b, a_mask, b_mask, alignment_ab, alignment_ba, mean, false);
}

}  // namespace fgk::ops
