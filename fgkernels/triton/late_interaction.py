# SPDX-License-Identifier: Apache-2.0
"""Late interaction on Triton: one function per operator of the family, with the operator's arguments and outputs.

:data:`KERNELS` holds them by operator name. Semantics are those of :mod:`fgkernels.reference.late_interaction`; 16-bit
tokens and int8 documents are multiplied on the matrix units, float32 and float64 in full precision; sums are float32
(float64 for float64) and in a fixed order. Bad arguments raise RuntimeError, as from the compiled operators.

Offsets of packed tensors are checked where they live. On the CPU illegal ones raise. On a GPU, where reading them would
make the host wait, they give NaN scores and gradients and the alignment -1; nothing outside the tensors is touched.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..reference import _checks
from . import _late_interaction_calls as calls
from ._late_interaction_calls import Chosen, Direction, accumulator
from ._packed import Packed, packed

_MAX_TOKENS = 2**31 - 1


def _expect(condition: bool, error: type[Exception], message: Callable[[], str]) -> None:
    if not condition:
        raise RuntimeError(message())


def _check_count(name: str, tokens: int, where: str) -> None:
    _expect(
        tokens <= _MAX_TOKENS,
        RuntimeError,
        lambda: f"{name}: expected at most 2^31 - 1 tokens{where}, got {tokens}",
    )


def _index_dtype(tokens: int) -> torch.dtype:
    return torch.int16 if tokens <= 32767 else torch.int32


# --- maxsim -----------------------------------------------------------------------------------------------------------


def _check_maxsim(
    queries: Tensor, documents: Tensor, query_mask: Tensor | None, document_mask: Tensor | None,
    document_scales: Tensor | None, paired: bool,
) -> tuple[Tensor, bool]:  # fmt: skip
    """Documents as the kernels take them, (Nd, Ld, D) or paired (N, K, Ld, D), and whether scores are (N,)."""
    rerank = documents.dim() == 4
    if not paired:
        _expect(not rerank, ValueError, lambda: f"documents: expected (Nd, Ld, D), got {_checks.shape(documents)}")
    _checks.check_maxsim(_expect, queries, documents, query_mask, document_mask, document_scales, paired)
    _check_count("queries", queries.shape[1], " per sample")
    _check_count("documents", documents.shape[-2], " per sample")
    flat = paired and not rerank
    return (documents.unsqueeze(1) if flat else documents), flat


def _maxsim(
    queries: Tensor, documents: Tensor, query_mask: Tensor | None, document_mask: Tensor | None,
    document_scales: Tensor | None, mean: bool, zero_padding: bool, paired: bool, index: bool,
) -> Direction:  # fmt: skip
    documents, flat = _check_maxsim(queries, documents, query_mask, document_mask, document_scales, paired)
    if flat:
        document_mask, document_scales = (
            None if v is None else v.unsqueeze(1) for v in (document_mask, document_scales)
        )
    shape = (queries.shape[0], documents.shape[-3])
    scores = queries.new_empty(shape, dtype=accumulator(queries))
    alignment = None
    if index:
        alignment = queries.new_empty((*shape, queries.shape[1]), dtype=_index_dtype(documents.shape[-2]))
    calls.forward_one(
        queries, documents, query_mask, document_mask, document_scales, mean, zero_padding, paired,
        Direction(scores, alignment),
    )  # fmt: skip
    if flat:
        return Direction(scores.squeeze(1), None if alignment is None else alignment.squeeze(1))
    return Direction(scores, alignment)


def maxsim(
    queries: Tensor, documents: Tensor, query_mask: Tensor | None, document_mask: Tensor | None,
    document_scales: Tensor | None, mean: bool, zero_padding: bool, paired: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator `maxsim`: scores (Nq, Nd), rerank (Nq, K) or paired (N,), and their alignment (..., Lq)."""
    return tuple(
        _maxsim(queries, documents, query_mask, document_mask, document_scales, mean, zero_padding, paired, True)
    )


def maxsim_fwd(
    queries: Tensor, documents: Tensor, query_mask: Tensor | None, document_mask: Tensor | None,
    document_scales: Tensor | None, mean: bool, zero_padding: bool, paired: bool,
) -> Tensor:  # fmt: skip
    """The operator `maxsim_fwd`: scores alone."""
    return _maxsim(
        queries, documents, query_mask, document_mask, document_scales, mean, zero_padding, paired, False
    ).scores


def maxsim_backward_queries(
    grad_scores: Tensor, queries: Tensor, documents: Tensor, query_mask: Tensor | None,
    document_scales: Tensor | None, alignment: Tensor, mean: bool, paired: bool,
) -> Tensor:  # fmt: skip
    """The operator `maxsim_backward_queries`: gradient like queries, contiguous."""
    documents, flat = _check_maxsim(queries, documents, query_mask, None, document_scales, paired)
    weights = _maxsim_weights(grad_scores, queries, documents, query_mask, alignment, mean, flat)
    return calls.gradient_of_queries(
        weights, queries, documents, query_mask, document_scales, alignment.contiguous(), paired
    )


def maxsim_backward_documents(
    grad_scores: Tensor, queries: Tensor, documents: Tensor, query_mask: Tensor | None,
    document_scales: Tensor | None, alignment: Tensor, mean: bool, paired: bool,
) -> Tensor:  # fmt: skip
    """The operator `maxsim_backward_documents`: gradient like documents, contiguous."""
    _check_document_gradient(documents)
    candidates, flat = _check_maxsim(queries, documents, query_mask, None, document_scales, paired)
    weights = _maxsim_weights(grad_scores, queries, candidates, query_mask, alignment, mean, flat)
    alignment = alignment.contiguous()
    count = 0
    if paired:
        count, candidates = candidates.shape[1], candidates.flatten(0, 1)
        weights, alignment = weights.flatten(), alignment if flat else alignment.flatten(0, 1)
    gradient = calls.gradient_of_chosen(candidates, queries, Chosen(weights, alignment), None, None, query_mask, count)
    return gradient.reshape(documents.shape)


def _maxsim_weights(
    grad_scores: Tensor, queries: Tensor, documents: Tensor, query_mask: Tensor | None, alignment: Tensor,
    mean: bool, flat: bool,
) -> Tensor:  # fmt: skip
    """Checks what came back from the scores' user; the weight (x, y) of every winner in the gradient."""
    samples, length, _ = queries.shape
    shape = (samples,) if flat else (samples, documents.shape[-3])
    _check_incoming("grad_scores", grad_scores, "alignment", alignment, queries, shape, (*shape, length))
    grad = grad_scores.unsqueeze(1) if flat else grad_scores
    return _over_count(grad, query_mask, length, mean)


def _over_count(grad: Tensor, mask: Tensor | None, length: int, mean: bool) -> Tensor:
    """grad (x, y), over the number of valid tokens of x in the mean."""
    if mean and mask is not None:
        grad = grad / mask.sum(1, keepdim=True).clamp(min=1).to(grad.dtype)
    elif mean:
        grad = grad / max(length, 1)
    return grad.contiguous()


def _check_document_gradient(documents: Tensor) -> None:
    _expect(documents.dtype != torch.int8, RuntimeError, lambda: "documents: int8 documents take no gradient")


def _check_incoming(
    grad_name: str, grad: Tensor, alignment_name: str, alignment: Tensor, tokens: Tensor,
    score_shape: tuple[int, ...], alignment_shape: tuple[int, ...],
) -> None:  # fmt: skip
    for name, value, shape, dtypes, words in (
        (grad_name, grad, score_shape, (accumulator(tokens),), "the scores' dtype"),
        (alignment_name, alignment, alignment_shape, (torch.int16, torch.int32), "int16 or int32"),
    ):
        _checks.check_tensor(name, value)
        _expect(
            tuple(value.shape) == shape and value.dtype in dtypes and value.device == tokens.device,
            RuntimeError,
            lambda name=name, value=value, words=words: (
                f"{name}: expected a tensor on {tokens.device} of {words} in the shape that the forward returned, got "
                f"{str(value.dtype).removeprefix('torch.')} {_checks.shape(value)} on {value.device}"
            ),
        )


# --- maxsim_varlen ----------------------------------------------------------------------------------------------------


def _check_varlen(
    queries: Tensor, documents: Tensor, query_offsets: Tensor, document_offsets: Tensor,
    document_scales: Tensor | None, paired: bool,
) -> tuple[Packed, Packed]:  # fmt: skip
    _checks.check_varlen(_expect, queries, documents, query_offsets, document_offsets, document_scales, paired)
    _check_count("queries", queries.shape[0], "")
    _check_count("documents", documents.shape[0], "")
    return packed(query_offsets, queries, document_offsets, documents)


def _maxsim_varlen(
    queries: Tensor, documents: Tensor, query_offsets: Tensor, document_offsets: Tensor,
    document_scales: Tensor | None, mean: bool, paired: bool, index: bool,
) -> Direction:  # fmt: skip
    places = _check_varlen(queries, documents, query_offsets, document_offsets, document_scales, paired)
    count, document_count = (side.count for side in places)
    scores = queries.new_empty((count,) if paired else (count, document_count), dtype=accumulator(queries))
    alignment = None
    if index:
        shape = queries.shape[:1] if paired else (document_count, queries.shape[0])
        alignment = queries.new_empty(shape, dtype=_index_dtype(documents.shape[0]))
    calls.forward_packed(queries, documents, *places, document_scales, mean, paired, scores, alignment)
    return Direction(scores, alignment)


def maxsim_varlen(
    queries: Tensor, documents: Tensor, query_offsets: Tensor, document_offsets: Tensor,
    document_scales: Tensor | None, mean: bool, paired: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator `maxsim_varlen`: scores and alignment, (Nq, Nd) and (Nd, Tq), or paired (N,) and (Tq,)."""
    return tuple(
        _maxsim_varlen(queries, documents, query_offsets, document_offsets, document_scales, mean, paired, True)
    )


def maxsim_varlen_fwd(
    queries: Tensor, documents: Tensor, query_offsets: Tensor, document_offsets: Tensor,
    document_scales: Tensor | None, mean: bool, paired: bool,
) -> Tensor:  # fmt: skip
    """The operator `maxsim_varlen_fwd`: scores alone."""
    return _maxsim_varlen(
        queries, documents, query_offsets, document_offsets, document_scales, mean, paired, False
    ).scores


def maxsim_varlen_backward_queries(
    grad_scores: Tensor, queries: Tensor, documents: Tensor, query_offsets: Tensor, document_offsets: Tensor,
    document_scales: Tensor | None, alignment: Tensor, mean: bool, paired: bool,
) -> Tensor:  # fmt: skip
    """The operator `maxsim_varlen_backward_queries`: gradient like queries, contiguous."""
    places = _check_varlen(queries, documents, query_offsets, document_offsets, document_scales, paired)
    weights = _varlen_weights(grad_scores, queries, places, alignment, mean, paired)
    return calls.gradient_of_packed_queries(
        weights, queries, documents, *places, document_scales, alignment.contiguous(), paired
    )


def maxsim_varlen_backward_documents(
    grad_scores: Tensor, queries: Tensor, documents: Tensor, query_offsets: Tensor, document_offsets: Tensor,
    document_scales: Tensor | None, alignment: Tensor, mean: bool, paired: bool,
) -> Tensor:  # fmt: skip
    """The operator `maxsim_varlen_backward_documents`: gradient like documents, contiguous."""
    _check_document_gradient(documents)
    places = _check_varlen(queries, documents, query_offsets, document_offsets, document_scales, paired)
    weights = _varlen_weights(grad_scores, queries, places, alignment, mean, paired)
    return calls.gradient_of_packed_documents(weights, queries, documents, *places, alignment.contiguous(), paired)


def _varlen_weights(
    grad_scores: Tensor, queries: Tensor, places: tuple[Packed, Packed], alignment: Tensor, mean: bool, paired: bool
) -> Tensor:
    count, document_count = (side.count for side in places)
    score_shape = (count,) if paired else (count, document_count)
    alignment_shape = (queries.shape[0],) if paired else (document_count, queries.shape[0])
    _check_incoming("grad_scores", grad_scores, "alignment", alignment, queries, score_shape, alignment_shape)
    grad = grad_scores.unsqueeze(1) if paired else grad_scores
    if mean:
        grad = grad / places[0].lengths().clamp(min=1).unsqueeze(1).to(grad.dtype)
    return grad.contiguous()


# --- late_interaction -------------------------------------------------------------------------------------------------


def _check_late(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> None:
    _checks.check_late_interaction(_expect, a, b, a_mask, b_mask)
    _check_count("a", a.shape[1], " per sample")
    _check_count("b", b.shape[1], " per sample")


def _late_interaction(
    a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None, mean: bool, zero_padding: bool, index: bool
) -> tuple[Direction, Direction]:
    _check_late(a, b, a_mask, b_mask)
    shape = (a.shape[0], b.shape[0])
    ab, ba = (
        Direction(
            a.new_empty(shape, dtype=accumulator(a)),
            a.new_empty((*shape, tokens), dtype=_index_dtype(others)) if index else None,
        )
        for tokens, others in ((a.shape[1], b.shape[1]), (b.shape[1], a.shape[1]))
    )
    calls.forward_both(a, b, a_mask, b_mask, mean, zero_padding, ab, ba)
    return ab, ba


def late_interaction(
    a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None, mean: bool, zero_padding: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator `late_interaction`: scores_ab, scores_ba (Na, Nb), alignments (Na, Nb, n) and (Na, Nb, m)."""
    ab, ba = _late_interaction(a, b, a_mask, b_mask, mean, zero_padding, True)
    return ab.scores, ba.scores, ab.alignment, ba.alignment


def late_interaction_fwd(
    a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None, mean: bool, zero_padding: bool
) -> tuple[Tensor, Tensor]:
    """The operator `late_interaction_fwd`: the scores alone."""
    ab, ba = _late_interaction(a, b, a_mask, b_mask, mean, zero_padding, False)
    return ab.scores, ba.scores


def late_interaction_backward_a(
    grad_ab: Tensor, grad_ba: Tensor, a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None,
    alignment_ab: Tensor, alignment_ba: Tensor, mean: bool,
) -> Tensor:  # fmt: skip
    """The operator `late_interaction_backward_a`: gradient like a, contiguous."""
    ab, ba = _late_choices(grad_ab, grad_ba, a, b, a_mask, b_mask, alignment_ab, alignment_ba, mean)
    return calls.gradient_of_chosen(a, b, ba.transposed(), ab, a_mask, b_mask, 0)


def late_interaction_backward_b(
    grad_ab: Tensor, grad_ba: Tensor, a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None,
    alignment_ab: Tensor, alignment_ba: Tensor, mean: bool,
) -> Tensor:  # fmt: skip
    """The operator `late_interaction_backward_b`: gradient like b, contiguous."""
    ab, ba = _late_choices(grad_ab, grad_ba, a, b, a_mask, b_mask, alignment_ab, alignment_ba, mean)
    return calls.gradient_of_chosen(b, a, ab, ba.transposed(), b_mask, a_mask, 0)


def _late_choices(
    grad_ab: Tensor, grad_ba: Tensor, a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None,
    alignment_ab: Tensor, alignment_ba: Tensor, mean: bool,
) -> tuple[Chosen, Chosen]:  # fmt: skip
    """Weights (Na, Nb) and alignment of both directions, checked."""
    _check_late(a, b, a_mask, b_mask)
    shape = (a.shape[0], b.shape[0])
    _check_incoming("grad_ab", grad_ab, "alignment_ab", alignment_ab, a, shape, (*shape, a.shape[1]))
    _check_incoming("grad_ba", grad_ba, "alignment_ba", alignment_ba, a, shape, (*shape, b.shape[1]))
    weights_ab = _over_count(grad_ab, a_mask, a.shape[1], mean)
    weights_ba = _over_count(grad_ba.transpose(0, 1), b_mask, b.shape[1], mean).transpose(0, 1)
    return Chosen(weights_ab, alignment_ab.contiguous()), Chosen(weights_ba, alignment_ba.contiguous())


KERNELS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    function.__name__: function
    for function in (
        maxsim, maxsim_fwd, maxsim_backward_queries, maxsim_backward_documents,
        maxsim_varlen, maxsim_varlen_fwd, maxsim_varlen_backward_queries, maxsim_varlen_backward_documents,
        late_interaction, late_interaction_fwd, late_interaction_backward_a, late_interaction_backward_b,
    )
}  # fmt: skip
