# SPDX-License-Identifier: Apache-2.0
"""What the late-interaction operators need from Python: fake kernels, autograd, autocast and vmap rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import _checks
from . import _library
from ._registration import autocast, autograd, expect, fake, fold, loop, no_double_backward, place, unfold, vmap

# --- fake kernels: outputs are contiguous -----------------------------------------------------------------------------


def score_dtype(queries: Tensor) -> torch.dtype:
    return torch.float64 if queries.dtype == torch.float64 else torch.float32


def index_dtype(length: int) -> torch.dtype:
    """The operators' alignment takes the smallest type that can number `length` tokens, with -1."""
    return torch.int16 if length <= 32767 else torch.int32


@fake("maxsim_fwd")
def _maxsim_fwd_fake(
    queries: Tensor,
    documents: Tensor,
    query_mask: Tensor | None,
    document_mask: Tensor | None,
    document_scales: Tensor | None,
    mean: bool,
    zero_padding: bool,
    paired: bool,
) -> Tensor:
    _checks.check_maxsim(expect, queries, documents, query_mask, document_mask, document_scales, paired)
    rerank = documents.dim() == 4
    expect(paired or not rerank, ValueError, lambda: "paired: expected True with documents (Nq, K, Ld, D), got False")
    if rerank:
        shape = documents.shape[:2]
    elif paired:
        shape = documents.shape[:1]
    else:
        shape = (queries.shape[0], documents.shape[0])
    return queries.new_empty(shape, dtype=score_dtype(queries))


@fake("maxsim")
def _maxsim_fake(queries: Tensor, documents: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    scores = _maxsim_fwd_fake(queries, documents, *args)
    shape = (*scores.shape, queries.shape[1])
    return scores, queries.new_empty(shape, dtype=index_dtype(documents.shape[-2]))


@fake("maxsim_varlen_fwd")
def _maxsim_varlen_fwd_fake(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor,
    document_offsets: Tensor,
    document_scales: Tensor | None,
    mean: bool,
    paired: bool,
) -> Tensor:
    _checks.check_varlen(expect, queries, documents, query_offsets, document_offsets, document_scales, paired)
    count = query_offsets.shape[0] - 1
    shape = (count,) if paired else (count, document_offsets.shape[0] - 1)
    return queries.new_empty(shape, dtype=score_dtype(queries))


@fake("maxsim_varlen")
def _maxsim_varlen_fake(
    queries: Tensor, documents: Tensor, query_offsets: Tensor, document_offsets: Tensor, scales: Tensor | None,
    mean: bool, paired: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scores = _maxsim_varlen_fwd_fake(queries, documents, query_offsets, document_offsets, scales, mean, paired)
    shape = queries.shape[:1] if paired else (document_offsets.shape[0] - 1, queries.shape[0])
    return scores, queries.new_empty(shape, dtype=index_dtype(documents.shape[0]))


@fake("late_interaction_fwd")
def _late_interaction_fwd_fake(
    a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None, mean: bool, zero_padding: bool
) -> tuple[Tensor, Tensor]:
    _checks.check_late_interaction(expect, a, b, a_mask, b_mask)
    shape, dtype = (a.shape[0], b.shape[0]), score_dtype(a)
    return a.new_empty(shape, dtype=dtype), a.new_empty(shape, dtype=dtype)


@fake("late_interaction")
def _late_interaction_fake(a: Tensor, b: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores_ab, scores_ba = _late_interaction_fwd_fake(a, b, *args)
    return (
        scores_ab,
        scores_ba,
        a.new_empty((*scores_ab.shape, a.shape[1]), dtype=index_dtype(b.shape[1])),
        a.new_empty((*scores_ba.shape, b.shape[1]), dtype=index_dtype(a.shape[1])),
    )


@fake("maxsim_backward_queries", "maxsim_varlen_backward_queries")
def _backward_queries_fake(grad_scores: Tensor, queries: Tensor, *args: Any) -> Tensor:
    _checks.check_tensor("queries", queries)
    return queries.new_empty(queries.shape)


@fake("maxsim_backward_documents", "maxsim_varlen_backward_documents")
def _backward_documents_fake(grad_scores: Tensor, queries: Tensor, documents: Tensor, *args: Any) -> Tensor:
    _checks.check_tensor("documents", documents)
    return documents.new_empty(documents.shape)


@fake("late_interaction_backward_a")
def _backward_a_fake(grad_ab: Tensor, grad_ba: Tensor, a: Tensor, *args: Any) -> Tensor:
    _checks.check_tensor("a", a)
    return a.new_empty(a.shape)


@fake("late_interaction_backward_b")
def _backward_b_fake(grad_ab: Tensor, grad_ba: Tensor, a: Tensor, b: Tensor, *args: Any) -> Tensor:
    _checks.check_tensor("b", b)
    return b.new_empty(b.shape)


# --- autograd: only the gradients that are asked for are computed -----------------------------------------------------

_maxsim_backward_queries = _library.op("maxsim_backward_queries")
_maxsim_backward_documents = _library.op("maxsim_backward_documents")
_varlen_backward_queries = _library.op("maxsim_varlen_backward_queries")
_varlen_backward_documents = _library.op("maxsim_varlen_backward_documents")
_backward_a = _library.op("late_interaction_backward_a")
_backward_b = _library.op("late_interaction_backward_b")


def _maxsim_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    queries, documents, query_mask, _, scales, ctx.mean, _, ctx.paired = inputs
    if ctx.needs_input_grad[4]:
        _checks.check_no_scale_gradient(scales)
    ctx.save_for_backward(queries, documents, query_mask, scales, output[1])


def _maxsim_backward(ctx: Any, grad_scores: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    queries, documents, query_mask, scales, alignment = ctx.saved_tensors
    args = (grad_scores, queries, documents, query_mask, scales, alignment, ctx.mean, ctx.paired)
    grad_queries = _maxsim_backward_queries(*args) if ctx.needs_input_grad[0] else None
    grad_documents = _maxsim_backward_documents(*args) if ctx.needs_input_grad[1] else None
    return grad_queries, grad_documents, None, None, None, None, None, None


def _varlen_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    queries, documents, query_offsets, document_offsets, scales, ctx.mean, ctx.paired = inputs
    if ctx.needs_input_grad[4]:
        _checks.check_no_scale_gradient(scales)
    ctx.save_for_backward(queries, documents, query_offsets, document_offsets, scales, output[1])


def _varlen_backward(ctx: Any, grad_scores: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    args = (grad_scores, *ctx.saved_tensors, ctx.mean, ctx.paired)
    grad_queries = _varlen_backward_queries(*args) if ctx.needs_input_grad[0] else None
    grad_documents = _varlen_backward_documents(*args) if ctx.needs_input_grad[1] else None
    return grad_queries, grad_documents, None, None, None, None, None


def _late_interaction_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    a, b, a_mask, b_mask, ctx.mean, _ = inputs
    ctx.save_for_backward(a, b, a_mask, b_mask, output[2], output[3])


def _late_interaction_backward(ctx: Any, grad_ab: Tensor, grad_ba: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    args = (grad_ab, grad_ba, *ctx.saved_tensors, ctx.mean)
    grad_a = _backward_a(*args) if ctx.needs_input_grad[0] else None
    grad_b = _backward_b(*args) if ctx.needs_input_grad[1] else None
    return grad_a, grad_b, None, None, None, None


autograd("maxsim", _maxsim_backward, _maxsim_context)
autograd("maxsim_varlen", _varlen_backward, _varlen_context)
autograd("late_interaction", _late_interaction_backward, _late_interaction_context)
no_double_backward("maxsim", "maxsim_backward_queries", "maxsim_backward_documents")
no_double_backward("maxsim_varlen", "maxsim_varlen_backward_queries", "maxsim_varlen_backward_documents")
no_double_backward("late_interaction", "late_interaction_backward_a", "late_interaction_backward_b")

autocast(
    "maxsim", "maxsim_fwd", "maxsim_varlen", "maxsim_varlen_fwd", "late_interaction", "late_interaction_fwd",
    cast=(0, 1),
)  # fmt: skip

# --- vmap: the batch is folded into the samples of the side that has it; where both sides have it and every query meets
# --- every document, samples of different batch entries must not meet, and the op runs once per entry


def _batched(dims: Sequence[int | None], *places: int) -> bool:
    return any(dims[i] is not None for i in places)


def _outputs(outputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return function(outputs) if isinstance(outputs, Tensor) else tuple(function(output) for output in outputs)


def _dims(outputs: Any, dim: int) -> Any:
    return dim if isinstance(outputs, Tensor) else (dim,) * len(outputs)


@vmap("maxsim", "maxsim_fwd")
def _maxsim_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    queries, documents, query_mask, document_mask, scales, *flags = args
    query_side, document_side, paired = _batched(dims, 0, 2), _batched(dims, 1, 3, 4), flags[2]
    documents_and_dims = ((documents, dims[1]), (document_mask, dims[3]), (scales, dims[4]))
    if document_side and not query_side:
        rank = documents.dim() - (dims[1] is not None)
        if paired and rank == 3:  # batch entries become the candidates of their query
            documents, document_mask, scales = (place(t, dim, size, 1) for t, dim in documents_and_dims)
            out = op(queries, documents, query_mask, document_mask, scales, *flags)
        else:
            documents, document_mask, scales = (fold(t, dim, size, int(paired)) for t, dim in documents_and_dims)
            out = op(queries, documents, query_mask, document_mask, scales, *flags)
            out = _outputs(out, lambda t: unfold(t, size, 1))
        return out, _dims(out, 1)
    if paired == document_side:
        queries, query_mask = fold(queries, dims[0], size), fold(query_mask, dims[2], size)
        if paired:
            documents, document_mask, scales = (fold(t, dim, size) for t, dim in documents_and_dims)
        out = _outputs(op(queries, documents, query_mask, document_mask, scales, *flags), lambda t: unfold(t, size))
        return out, _dims(out, 0)
    return loop(op, size, dims, *args)


@vmap("maxsim_backward_queries")
def _maxsim_backward_queries_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    document_side, paired = _batched(dims, 2, 4), args[7]
    if document_side != paired:
        return loop(op, size, dims, *args)
    folded = [0, 1, 2, 3, 4, 5] if paired else [0, 1, 3, 5]
    args = [fold(arg, dims[i], size) if i in folded else arg for i, arg in enumerate(args)]
    return unfold(op(*args), size), 0


@vmap("maxsim_backward_documents")
def _maxsim_backward_documents_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    query_side, paired = _batched(dims, 1, 3), args[7]
    if query_side != paired:
        return loop(op, size, dims, *args)
    axes = {0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0} if paired else {0: 1, 2: 0, 4: 0, 5: 1}
    args = [fold(arg, dims[i], size, axes[i]) if i in axes else arg for i, arg in enumerate(args)]
    return unfold(op(*args), size), 0


@vmap("late_interaction", "late_interaction_fwd")
def _late_interaction_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    a_side, b_side = _batched(dims, 0, 2), _batched(dims, 1, 3)
    if a_side and b_side:
        return loop(op, size, dims, *args)
    folded, axis = ((0, 2), 0) if a_side else ((1, 3), 1)
    args = [fold(arg, dims[i], size) if i in folded else arg for i, arg in enumerate(args)]
    out = _outputs(op(*args), lambda t: unfold(t, size, axis))
    return out, _dims(out, axis)


@vmap("late_interaction_backward_a")
def _late_interaction_backward_a_vmap(
    op: Callable, size: int, dims: Sequence[int | None], *args: Any
) -> tuple[Any, Any]:
    if _batched(dims, 3, 5):
        return loop(op, size, dims, *args)
    args = [fold(arg, dims[i], size) if i in (0, 1, 2, 4, 6, 7) else arg for i, arg in enumerate(args)]
    return unfold(op(*args), size), 0


@vmap("late_interaction_backward_b")
def _late_interaction_backward_b_vmap(
    op: Callable, size: int, dims: Sequence[int | None], *args: Any
) -> tuple[Any, Any]:
    if _batched(dims, 2, 4):
        return loop(op, size, dims, *args)
    axes = {0: 1, 1: 1, 3: 0, 5: 0, 6: 1, 7: 1}
    args = [fold(arg, dims[i], size, axes[i]) if i in axes else arg for i, arg in enumerate(args)]
    return unfold(op(*args), size), 0


def _fold_offsets(offsets: Tensor, dim: int | None, size: int, tokens: int) -> Tensor:
    """Offsets of `size` packed batches of `tokens` tokens laid one after the other."""
    starts = torch.arange(size, device=offsets.device).unsqueeze(1) * tokens
    rows = (offsets.unsqueeze(0) if dim is None else offsets.movedim(dim, 0))[:, :-1] + starts
    return torch.cat([rows.flatten(), starts.new_full((1,), size * tokens)])


@vmap("maxsim_varlen", "maxsim_varlen_fwd")
def _maxsim_varlen_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    queries, documents, query_offsets, document_offsets, scales, mean, paired = args
    query_side, document_side = _batched(dims, 0, 2), _batched(dims, 1, 3, 4)
    if (query_side and document_side) != paired:
        return loop(op, size, dims, *args)
    query_tokens = queries.shape[-2] if dims[0] is None else queries.movedim(dims[0], 0).shape[1]
    document_tokens = documents.shape[-2] if dims[1] is None else documents.movedim(dims[1], 0).shape[1]
    if query_side:
        queries = fold(queries, dims[0], size)
        query_offsets = _fold_offsets(query_offsets, dims[2], size, query_tokens)
    if document_side:
        documents, scales = fold(documents, dims[1], size), fold(scales, dims[4], size)
        document_offsets = _fold_offsets(document_offsets, dims[3], size, document_tokens)
    out = op(queries, documents, query_offsets, document_offsets, scales, mean, paired)
    scores, alignment = (out, None) if isinstance(out, Tensor) else out
    axis = 0 if query_side else 1
    scores = unfold(scores, size, axis)
    if alignment is None:
        return scores, axis
    alignment_axis = 0 if paired or document_side else 1
    alignment = unfold(alignment, size, alignment_axis)
    alignment = alignment.to(index_dtype(document_tokens))  # the folded call numbers size times as many
    return (scores, alignment), (axis, alignment_axis)


@vmap("maxsim_varlen_backward_queries")
def _varlen_backward_queries_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    grad, queries, documents, query_offsets, document_offsets, scales, alignment, mean, paired = args
    if _batched(dims, 2, 4, 5) or paired:
        return loop(op, size, dims, *args)
    tokens = queries.shape[-2] if dims[1] is None else queries.movedim(dims[1], 0).shape[1]
    out = op(
        fold(grad, dims[0], size), fold(queries, dims[1], size), documents,
        _fold_offsets(query_offsets, dims[3], size, tokens), document_offsets, scales,
        fold(alignment, dims[6], size, 1), mean, paired,
    )  # fmt: skip
    return unfold(out, size), 0


@vmap("maxsim_varlen_backward_documents")
def _varlen_backward_documents_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    return loop(op, size, dims, *args)
