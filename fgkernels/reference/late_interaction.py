# SPDX-License-Identifier: Apache-2.0
"""Late-interaction similarity in plain PyTorch: ColBERT's MaxSim and FILIP's two-way token-wise similarity.

For a query with tokens q_1..q_n and a document with tokens d_1..d_m (masked tokens left out)

    score(query, document) = reduce_i max_t <q_i, d_t>

where reduce is the sum (ColBERT, Khattab and Zaharia 2020, equation 3) or the mean over the query's valid tokens
(FILIP, Yao et al. 2022, equations 4 and 5). The score matrix of every pair of tokens is materialised here, which the
fused kernels avoid. Everything is differentiable ATen: it is the truth of the tests, the decomposition of exported
programs and the back end of devices without a kernel.

Conventions shared by the three functions: 16-bit inputs are computed and returned in float32, float64 stays float64;
ties go to the lowest index; a NaN that is read makes the score NaN; a document without a valid token gives 0 to every
maximum, with alignment -1; the mean of no valid query token is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._autocast import autocast_inputs

__all__ = ["dequantize_documents", "late_interaction", "maxsim", "maxsim_varlen", "quantize_documents"]


@autocast_inputs
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
    """Same contract as :func:`fgkernels.maxsim`, in plain PyTorch."""
    mean, zero = _checks.check_reduction(reduction), _checks.check_padding(padding)
    _checks.check_maxsim(_checks.raise_error, queries, documents, query_mask, document_mask, document_scales, paired)
    _checks.check_no_scale_gradient(document_scales)
    scores, alignment = maxsim_core(
        queries, documents, query_mask, document_mask, document_scales, mean, zero, paired or documents.dim() == 4
    )
    return (scores, alignment) if return_alignment else scores


@autocast_inputs
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
    """Same contract as :func:`fgkernels.late_interaction`, in plain PyTorch."""
    mean, zero = _checks.check_reduction(reduction), _checks.check_padding(padding)
    _checks.check_late_interaction(_checks.raise_error, a, b, a_mask, b_mask)
    outputs = late_interaction_core(a, b, a_mask, b_mask, mean, zero)
    return outputs if return_alignment else outputs[:2]


@autocast_inputs
def maxsim_varlen(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor,
    document_offsets: Tensor,
    *,
    reduction: str = "sum",
    paired: bool = False,
    document_scales: Tensor | None = None,
    return_alignment: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Same contract as :func:`fgkernels.maxsim_varlen` with packed tensors, in plain PyTorch."""
    mean = _checks.check_reduction(reduction)
    _checks.check_varlen(
        _checks.raise_error, queries, documents, query_offsets, document_offsets, document_scales, paired
    )
    _checks.check_no_scale_gradient(document_scales)
    if not torch.compiler.is_compiling():
        _checks.check_offset_values("query_offsets", query_offsets, queries)
        _checks.check_offset_values("document_offsets", document_offsets, documents)
    scores, alignment = maxsim_varlen_core(
        queries, documents, query_offsets, document_offsets, document_scales, mean, paired
    )
    return (scores, alignment) if return_alignment else scores


def quantize_documents(documents: Tensor) -> tuple[Tensor, Tensor]:
    """Same contract as :func:`fgkernels.quantize_documents`."""
    if documents.dtype not in _checks.FLOAT_DTYPES:
        raise TypeError(f"documents: expected {_checks.FLOAT_NAMES}, got {documents.dtype}")
    if documents.dim() < 1:
        raise ValueError("documents: expected (..., D), got a tensor without dimensions")
    values = documents.detach().to(torch.float64 if documents.dtype == torch.float64 else torch.float32)
    if values.shape[-1] == 0:
        return values.to(torch.int8), values.new_zeros(values.shape[:-1], dtype=torch.float32)
    scales = (values.abs().amax(-1) / 127).to(torch.float32)
    # A zero token has scale 0: dividing by 1 keeps its zeros. One with NaN or Inf has such a scale and reads as NaN.
    steps = values / torch.where(scales > 0, scales, 1).unsqueeze(-1)
    return steps.nan_to_num(0.0).round().clamp(-127, 127).to(torch.int8), scales


def dequantize_documents(documents: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The tokens that int8 `documents` (..., D) with `scales` (...) stand for: value * scale per token."""
    return documents.to(dtype) * scales.to(dtype).unsqueeze(-1)


# --- without checks: what exported programs are decomposed into -------------------------------------------------------


def maxsim_core(
    queries: Tensor,
    documents: Tensor,
    query_mask: Tensor | None,
    document_mask: Tensor | None,
    document_scales: Tensor | None,
    mean: bool,
    zero_padding: bool,
    paired: bool,
) -> tuple[Tensor, Tensor]:
    """(scores, int64 alignment) of the op `maxsim`."""
    dtype = _compute_dtype(queries)
    if document_scales is not None:
        documents = dequantize_documents(documents, document_scales, dtype)
    queries = _without_masked(queries.to(dtype), query_mask)
    documents = _without_masked(documents.to(dtype), document_mask)
    if not paired:
        similarities = torch.einsum("qid,ytd->qyit", queries, documents)
    elif documents.dim() == 4:
        similarities = torch.einsum("qid,qktd->qkit", queries, documents)
    else:
        similarities = torch.einsum("qid,qtd->qit", queries, documents)
    maxima, alignment = _masked_max(similarities, _rows(document_mask), zero_padding)
    return _reduce(maxima, alignment, query_mask if paired and documents.dim() == 3 else _rows(query_mask), mean)


def late_interaction_core(
    a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None, mean: bool, zero_padding: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(scores_ab, scores_ba, int64 alignment_ab, int64 alignment_ba) of the op `late_interaction`."""
    dtype = _compute_dtype(a)
    a = _without_masked(a.to(dtype), a_mask)
    b = _without_masked(b.to(dtype), b_mask)
    similarities = torch.einsum("xid,ytd->xyit", a, b)
    maxima_ab, alignment_ab = _masked_max(similarities, _rows(b_mask), zero_padding)
    maxima_ba, alignment_ba = _masked_max(
        similarities.transpose(-1, -2), None if a_mask is None else a_mask[:, None, None, :], zero_padding
    )
    scores_ab, alignment_ab = _reduce(maxima_ab, alignment_ab, _rows(a_mask), mean)
    scores_ba, alignment_ba = _reduce(maxima_ba, alignment_ba, b_mask, mean)
    return scores_ab, scores_ba, alignment_ab, alignment_ba


def maxsim_varlen_core(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor,
    document_offsets: Tensor,
    document_scales: Tensor | None,
    mean: bool,
    paired: bool,
) -> tuple[Tensor, Tensor]:
    """(scores, int64 alignment) of the op `maxsim_varlen`; alignment counts in the document's own tokens."""
    dtype = _compute_dtype(queries)
    if document_scales is not None:
        documents = dequantize_documents(documents, document_scales, dtype)
    query_count, document_count = query_offsets.shape[0] - 1, document_offsets.shape[0] - 1
    query_of_token = _sample_of_token(query_offsets, queries)
    document_of_token = _sample_of_token(document_offsets, documents)
    similarities = queries.to(dtype) @ documents.to(dtype).T
    maxima, alignment = _segment_max(similarities, document_of_token, document_count)  # (Tq, Nd)
    alignment = torch.where(alignment >= 0, alignment - document_offsets[:-1], -1)
    if paired:
        own = query_of_token.unsqueeze(1)
        maxima, alignment = maxima.gather(1, own).squeeze(1), alignment.gather(1, own).squeeze(1)
    scores = maxima.new_zeros((query_count, *maxima.shape[1:])).index_add(0, query_of_token, maxima)
    if mean:
        counts = query_offsets.diff().clamp(min=1).to(dtype)
        scores = scores / (counts if paired else counts.unsqueeze(1))
    return scores, (alignment if paired else alignment.T.contiguous())


def _compute_dtype(queries: Tensor) -> torch.dtype:
    return torch.float64 if queries.dtype == torch.float64 else torch.float32


def _rows(mask: Tensor | None) -> Tensor | None:
    """A mask (..., L) made to broadcast over the second last axis of similarities: (..., 1, L)."""
    return None if mask is None else mask.unsqueeze(-2)


def _without_masked(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros in place of masked tokens, so that a NaN in them reaches neither a score nor (0 * NaN) a gradient."""
    return tokens if mask is None else torch.where(mask.unsqueeze(-1), tokens, 0)


def _masked_max(similarities: Tensor, mask: Tensor | None, zero_padding: bool) -> tuple[Tensor, Tensor]:
    """Maximum and its index over the last axis of `similarities`; `mask` broadcasts to them."""
    if similarities.shape[-1] == 0:
        return similarities.sum(-1), similarities.sum(-1).to(torch.int64) - 1
    if mask is None:
        return similarities.max(-1)
    valid = mask.expand(similarities.shape)
    maxima, alignment = torch.where(valid, similarities, -torch.inf).max(-1)
    # Where every valid similarity is -inf the maximum may have landed on a masked one: the first valid one wins.
    first_valid = valid.to(torch.uint8).max(-1).indices
    alignment = torch.where(maxima == -torch.inf, first_valid, alignment)
    some = valid.any(-1)
    if zero_padding:
        # A masked token is a zero vector: it beats negative similarities, and zeros of a higher index.
        first_masked = (~valid).to(torch.uint8).max(-1).indices
        beaten = (maxima < 0) | ((maxima == 0) & (first_masked < alignment))
        some = some & ~(beaten & ~valid.all(-1))
    return torch.where(some, maxima, 0), torch.where(some, alignment, -1)


def _segment_max(similarities: Tensor, segment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Maximum and its column over each segment of the columns of `similarities` (T, S): two (T, count) tensors."""
    rows, columns = similarities.shape
    if columns == 0:
        empty = similarities.new_zeros((rows, count)) + similarities.sum(1, keepdim=True)
        return empty, torch.full_like(empty, -1, dtype=torch.int64)
    place = segment.expand(rows, columns)
    fixed = similarities.detach()
    maxima = fixed.new_full((rows, count), -torch.inf).scatter_reduce(1, place, fixed, "amax")
    wins = (fixed == maxima.gather(1, place)) | fixed.isnan()
    candidates = torch.where(wins, torch.arange(columns, device=segment.device), columns)
    alignment = torch.full_like(maxima, columns, dtype=torch.int64).scatter_reduce(1, place, candidates, "amin")
    some = alignment < columns
    # Reading the winner gives it the whole gradient (amax would share it among ties).
    chosen = similarities.gather(1, alignment.clamp(max=columns - 1))
    return torch.where(some, chosen, 0), torch.where(some, alignment, -1)


def _sample_of_token(offsets: Tensor, tokens: Tensor) -> Tensor:
    positions = torch.arange(tokens.shape[0], device=tokens.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets, positions, right=True).to(torch.int64) - 1


def _reduce(maxima: Tensor, alignment: Tensor, query_mask: Tensor | None, mean: bool) -> tuple[Tensor, Tensor]:
    """Sum or mean over the last axis, leaving masked query tokens out; their alignment is -1."""
    if query_mask is None:
        scores = maxima.sum(-1)
        count = max(maxima.shape[-1], 1)
    else:
        scores = torch.where(query_mask, maxima, 0).sum(-1)
        alignment = torch.where(query_mask, alignment, -1)
        count = query_mask.sum(-1).clamp(min=1).to(scores.dtype)
    return (scores / count if mean else scores), alignment
