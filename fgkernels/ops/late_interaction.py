# SPDX-License-Identifier: Apache-2.0
"""Late-interaction similarity: `maxsim`, `late_interaction`, `maxsim_varlen` and int8 documents.

The public functions choose between the compiled operators and the reference; without gradients they call the
forward-only operator, whose call costs a quarter of one with autograd attached. What the operators need from Python
(fake kernels, autograd, autocast, vmap) is in `_late_interaction_rules`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend
from ..reference import _checks
from ..reference import late_interaction as reference
from . import _late_interaction_rules as _rules  # noqa: F401  (registers fake kernels, autograd, autocast and vmap)
from . import _library
from ._calls import differentiated, reference_call, runs_operators

__all__ = ["late_interaction", "maxsim", "maxsim_varlen", "quantize_documents"]

_maxsim = _library.op("maxsim")
_maxsim_fwd = _library.op("maxsim_fwd")
_maxsim_varlen = _library.op("maxsim_varlen")
_maxsim_varlen_fwd = _library.op("maxsim_varlen_fwd")
_late_interaction = _library.op("late_interaction")
_late_interaction_fwd = _library.op("late_interaction_fwd")

_backend.declare(
    "late_interaction",
    functions=("maxsim", "late_interaction", "maxsim_varlen"),
    operators=(
        "maxsim", "maxsim_fwd", "maxsim_backward_queries", "maxsim_backward_documents",
        "maxsim_varlen", "maxsim_varlen_fwd", "maxsim_varlen_backward_queries", "maxsim_varlen_backward_documents",
        "late_interaction", "late_interaction_fwd", "late_interaction_backward_a", "late_interaction_backward_b",
    ),
)  # fmt: skip


def maxsim(
    queries: Tensor,
    documents: Tensor,
    query_mask: Tensor | None = None,
    document_mask: Tensor | None = None,
    *,
    reduction: str = "sum",
    padding: str = "exclude",
    paired: bool = False,
    document_scales: Tensor | None = None,
    return_alignment: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """MaxSim: for each query token the best dot product with any document token, reduced over the query.

    ``scores[x, y] = reduce_i max_t <queries[x, i], documents[y, t]>`` (ColBERT, Khattab and Zaharia 2020, equation 3;
    with ``reduction="mean"`` FILIP, Yao et al. 2022, equation 4). The similarities of all token pairs are never
    stored. Differentiable in queries and documents.

    Args:
        queries: (Nq, Lq, D), float32, float64, bfloat16 or float16, any strides.
        documents: (Nd, Ld, D) to score every query against every document, (Nq, K, Ld, D) to score each query against
            its own K candidates (rerank). dtype of the queries, or int8 with `document_scales`.
        query_mask: bool (Nq, Lq), True at valid tokens. Masked tokens enter neither the reduction nor its count.
        document_mask: bool, shaped like documents without D, True at valid tokens.
        reduction: "sum" or "mean" (over the valid tokens of the query; 0 if there is none).
        padding: "exclude": masked document tokens never win a maximum. "zero": a masked document token counts as a
            zero vector, so documents that have one give at least 0 to every maximum (PyLate, Wukong).
        paired: score query x against document x only; documents are then (N, Ld, D) with N = Nq.
        document_scales: float32, shaped like documents without D: int8 documents stand for documents * scales.
        return_alignment: also return which document token won each maximum.

    Returns:
        scores: (Nq, Nd); rerank (Nq, K); paired (N,). float32, or float64 for float64 queries.
        alignment (with return_alignment): int64 (Nq, Nd, Lq); rerank (Nq, K, Lq); paired (N, Lq). Index of the winning
        document token, ties to the lowest; -1 where none won: a masked query token, a document without a valid
        token (its maxima are 0, without gradient), or the zero of padding="zero".

    Raises:
        ValueError, TypeError, RuntimeError: with the argument's name, the expected shape and what came.

    NaN in a token that is read makes the scores that read it NaN; masked tokens are never read. In an autocast region
    queries and float documents are cast to its dtype, scores stay float32.
    """
    if reduction not in ("sum", "mean") or padding not in ("exclude", "zero"):
        _raise_bad_option(reduction, padding)
    if not runs_operators("maxsim", queries, documents):
        return reference_call(
            reference.maxsim, queries, documents, query_mask, document_mask,
            reduction=reduction, padding=padding, paired=paired, document_scales=document_scales,
            return_alignment=return_alignment,
        )  # fmt: skip
    if document_scales is not None:
        _checks.check_no_scale_gradient(document_scales)
    mean, zero, paired = reduction == "mean", padding == "zero", paired or documents.dim() == 4
    if not return_alignment and not differentiated(queries, documents):
        return _maxsim_fwd(queries, documents, query_mask, document_mask, document_scales, mean, zero, paired)
    scores, alignment = _maxsim(
        queries, documents, query_mask, document_mask, document_scales, mean, zero, paired
    )  # fmt: skip
    return (scores, alignment.to(torch.int64)) if return_alignment else scores


def late_interaction(
    a: Tensor,
    b: Tensor,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    *,
    reduction: str = "mean",
    padding: str = "exclude",
    return_alignment: bool = False,
) -> tuple[Tensor, ...]:
    """Token-wise similarity in both directions, from one pass over the similarities (FILIP, Yao et al. 2022).

    ``scores_ab[x, y] = reduce_i max_t <a[x, i], b[y, t]>`` (equation 4) and
    ``scores_ba[x, y] = reduce_t max_i <a[x, i], b[y, t]>`` (equation 5); in general they differ. The similarities of
    all token pairs are never stored. Differentiable in a and b.

    Args:
        a: (Na, n, D), say image patches; float32, float64, bfloat16 or float16, any strides.
        b: (Nb, m, D), say text tokens; dtype of a.
        a_mask: bool (Na, n), True at valid tokens. Masked tokens win no maximum and enter no reduction.
        b_mask: bool (Nb, m), likewise.
        reduction: "mean" over the valid tokens of the side that is reduced (0 if there is none), or "sum".
        padding: "exclude", or "zero": a masked token counts as a zero vector in the other side's maxima.
        return_alignment: also return which token won each maximum.

    Returns:
        scores_ab, scores_ba: both (Na, Nb), float32, or float64 for float64 inputs.
        alignment_ab, alignment_ba (with return_alignment): int64 (Na, Nb, n), indices into b's tokens, and
        (Na, Nb, m), indices into a's tokens; ties to the lowest index, -1 where no token won (see `maxsim`).

    Raises:
        ValueError, TypeError, RuntimeError: with the argument's name, the expected shape and what came.
    """
    if reduction not in ("sum", "mean") or padding not in ("exclude", "zero"):
        _raise_bad_option(reduction, padding)
    if not runs_operators("late_interaction", a, b):
        return reference_call(
            reference.late_interaction, a, b, a_mask, b_mask,
            reduction=reduction, padding=padding, return_alignment=return_alignment,
        )  # fmt: skip
    mean, zero = reduction == "mean", padding == "zero"
    if not return_alignment and not differentiated(a, b):
        return _late_interaction_fwd(a, b, a_mask, b_mask, mean, zero)
    scores_ab, scores_ba, alignment_ab, alignment_ba = _late_interaction(a, b, a_mask, b_mask, mean, zero)
    if return_alignment:
        return scores_ab, scores_ba, alignment_ab.to(torch.int64), alignment_ba.to(torch.int64)
    return scores_ab, scores_ba


def maxsim_varlen(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor | None = None,
    document_offsets: Tensor | None = None,
    *,
    reduction: str = "sum",
    paired: bool = False,
    document_scales: Tensor | None = None,
    return_alignment: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """MaxSim of sequences of different lengths packed one after the other, without padding.

    Sequence x of the queries is ``queries[query_offsets[x]:query_offsets[x + 1]]``, and so for the documents. Either
    side may be a jagged nested tensor (N, j, D) instead, without offsets; gradients then flow to it.

    Args:
        queries: (Tq, D), float32, float64, bfloat16 or float16, or a jagged nested tensor.
        documents: (Td, D), dtype of the queries or int8 with `document_scales`, or a jagged nested tensor.
        query_offsets: int32 or int64 (Nq + 1,), from 0 to Tq, never falling. Equal neighbours are an empty query.
        document_offsets: int32 or int64 (Nd + 1,), from 0 to Td, likewise.
        reduction: "sum" or "mean" over the tokens of the query (0 if it has none).
        paired: score query x against document x only (Nq = Nd = N).
        document_scales: float32 (Td,): int8 documents stand for documents * scales.
        return_alignment: also return which document token won each maximum.

    Returns:
        scores: (Nq, Nd), paired (N,). float32, or float64 for float64 queries.
        alignment (with return_alignment): int64 (Nd, Tq), paired (Tq,): index of the winning token within its document,
        ties to the lowest, -1 for an empty document.

    Raises:
        ValueError, TypeError, RuntimeError: with the argument's name, the expected shape and what came; also for
            offsets that don't start at 0, fall, or don't end at the token count.
    """
    if reduction not in ("sum", "mean"):
        _raise_bad_option(reduction, "exclude")
    _checks.check_tensor("queries", queries)
    _checks.check_tensor("documents", documents)
    if queries.is_nested:
        queries, query_offsets = _packed("query", queries, query_offsets)
    elif query_offsets is None:
        raise ValueError("query_offsets: expected (Nq + 1,) with packed queries (Tq, D), got None")
    if document_scales is not None and document_scales.is_nested:
        document_scales = document_scales.values()
    if documents.is_nested:
        documents, document_offsets = _packed("document", documents, document_offsets)
    elif document_offsets is None:
        raise ValueError("document_offsets: expected (Nd + 1,) with packed documents (Td, D), got None")
    if not runs_operators("maxsim_varlen", queries, documents):
        return reference_call(
            reference.maxsim_varlen, queries, documents, query_offsets, document_offsets,
            reduction=reduction, paired=paired, document_scales=document_scales, return_alignment=return_alignment,
        )  # fmt: skip
    if document_scales is not None:
        _checks.check_no_scale_gradient(document_scales)
    args = (queries, documents, query_offsets, document_offsets, document_scales, reduction == "mean", paired)
    if not return_alignment and not differentiated(queries, documents):
        return _maxsim_varlen_fwd(*args)
    scores, alignment = _maxsim_varlen(*args)
    return (scores, alignment.to(torch.int64)) if return_alignment else scores


def quantize_documents(documents: Tensor) -> tuple[Tensor, Tensor]:
    """int8 documents for `maxsim` and `maxsim_varlen`: symmetric, one scale per token, absmax / 127.

    Args:
        documents: (..., D), float32, float64, bfloat16 or float16. No gradient flows through the quantisation.

    Returns:
        int8 (..., D) in [-127, 127] and float32 scales (...), so that documents ~ values * scales, each entry off by at
        most half a scale. A token of zeros has scale 0; one that holds NaN or Inf dequantises to NaN.

    Raises:
        TypeError: for another dtype.
    """
    _checks.check_tensor("documents", documents)
    return reference.quantize_documents(documents)


def _raise_bad_option(reduction: str, padding: str) -> None:
    _checks.check_reduction(reduction)
    _checks.check_padding(padding)


def _packed(side: str, tokens: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values (T, D) and offsets (N + 1,) of a jagged nested tensor (N, j, D)."""
    name = "queries" if side == "query" else "documents"
    if offsets is not None:
        raise ValueError(f"{side}_offsets: expected None, since {name} is a nested tensor, got a tensor")
    if tokens.layout != torch.jagged:
        raise TypeError(f"{name}: expected a nested tensor of layout torch.jagged, got {tokens.layout}")
    if tokens.dim() != 3 or tokens._ragged_idx != 1:
        raise ValueError(f"{name}: expected a jagged nested tensor (N, j, D) ragged in j, got {tuple(tokens.shape)}")
    if tokens.lengths() is not None:
        if tokens.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: expected a contiguous nested tensor, got one with gaps between its sequences, "
                "through which torch has no gradient"
            )
        tokens = tokens.contiguous()
    return tokens.values(), tokens.offsets()
