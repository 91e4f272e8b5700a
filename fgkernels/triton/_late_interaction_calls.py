# SPDX-License-Identifier: Apache-2.0
"""What the operators of late interaction launch: scratch memory, strides and shapes for the kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _late_interaction_backward as backward_kernels
from . import _late_interaction_forward as forward_kernels
from ._late_interaction_plan import channel_block, column_group, owner_block, row_block, swap_sides
from ._packed import Packed, Tiles, token_samples
from .device import INTERPRETED, ceil_div, next_power_of_2

#: Bytes of best matches that a call holds at a time; above it samples are served in several runs.
SCRATCH_BYTES = 2**28


def accumulator(tokens: Tensor) -> torch.dtype:
    """dtype of sums and scores."""
    return torch.float64 if tokens.dtype == torch.float64 else torch.float32


def _dense(values: Tensor | None) -> Tensor | None:
    """Masks as bytes and scales, contiguous (they are small beside the tokens)."""
    if values is None:
        return None
    return values.contiguous().view(torch.uint8) if values.dtype == torch.bool else values.contiguous()


class Direction(NamedTuple):
    """What one direction of a call returns: scores (Na, Nb), and the alignment (Na, Nb, tokens) where it is wanted."""

    scores: Tensor
    alignment: Tensor | None

    def chunk(self, first: int, last: int) -> Direction:
        return Direction(self.scores[first:last], None if self.alignment is None else self.alignment[first:last])

    def swapped(self) -> Direction:
        return Direction(
            self.scores.transpose(0, 1), None if self.alignment is None else self.alignment.transpose(0, 1)
        )

    def fill_empty(self) -> None:
        self.scores.zero_()
        if self.alignment is not None:
            self.alignment.fill_(-1)


# --- forward, padded --------------------------------------------------------------------------------------------------


def _first_masked(mask: Tensor | None) -> Tensor | None:
    """(..., L) -> (...): index of the first masked token, L if none is, -1 if all are."""
    if mask is None:
        return None
    length = mask.shape[-1]
    positions = torch.arange(length, device=mask.device, dtype=torch.int32)
    first = torch.where(mask, length, positions).amin(-1)
    return torch.where(mask.any(-1), first, -1).to(torch.int32).contiguous()


def _reduce(
    direction: Direction,
    maxima: Tensor,
    indices: Tensor | None,
    mean: bool,
    zero: bool,
    token_mask: Tensor | None,
    opposite_mask: Tensor | None,
    owner: tuple[int, int],
    opposite: tuple[int, int],
    opposite_length: int,
    offsets: Packed | None = None,
) -> None:
    """Scores (x, y) from best matches (parts, x, y, tokens); `owner` and `opposite` are strides of sample numbers."""
    scores, alignment = direction
    parts, count_x, count_y, length = maxima.shape
    # Without masks and parts, the indices are the alignment already.
    index = alignment is not None and (parts > 1 or token_mask is not None or opposite_mask is not None)
    pairs = count_x * count_y
    forward_kernels.reduce.launch(
        maxima.device,
        lambda named: ceil_div(pairs, named["BLOCK_P"]),
        maxima=maxima, indices=indices if index else None, parts=parts, part_stride=maxima.stride(0),
        match_stride_x=maxima.stride(1), match_stride_y=maxima.stride(2), alignment=alignment if index else None,
        scores=scores, score_stride_x=scores.stride(0), score_stride_y=scores.stride(1),
        token_mask=_dense(token_mask), offsets=None if offsets is None else offsets.offsets, length=length,
        first_masked=_first_masked(opposite_mask), opposite_length=opposite_length,
        legal=None if offsets is None else offsets.legal,
        pairs=pairs, column_samples=count_y, longest=length, sample_stride_x=owner[0], sample_stride_y=owner[1],
        opposite_stride_x=opposite[0], opposite_stride_y=opposite[1],
        PACKED=offsets is not None, MEAN=mean, ZERO=zero, INDEX=index,
        TOKEN_MASK=token_mask is not None, OPPOSITE_MASK=opposite_mask is not None,
    )  # fmt: skip


def _match(
    rows: Tensor,
    columns: Tensor,
    row_mask: Tensor | None,
    column_mask: Tensor | None,
    scales: Tensor | None,
    paired: bool,
    blocks: tuple[int, int],
    maxima: Tensor,
    indices: Tensor | None,
    column_maxima: Tensor | None = None,
    column_indices: Tensor | None = None,
) -> None:
    """Best matches (1, x, y, i) of rows (x, i, D) in columns (y, t, D), or paired (x, y, t, D); of columns if asked."""
    samples, row_length, channels = rows.shape
    column_samples, column_length = columns.shape[-3:-1]
    block_m, sample_rows = blocks
    if sample_rows == 0:
        row_tiles = ceil_div(samples * row_length, block_m)
    else:
        row_tiles = ceil_div(samples, block_m // sample_rows) * ceil_div(row_length, block_m)
    group = column_group(row_tiles, column_samples, rows.device)
    both = column_maxima is not None
    block_k, whole = channel_block(channels, rows.element_size())
    forward_kernels.match.launch(
        rows.device,
        lambda named: row_tiles * ceil_div(column_samples, group),
        rows=rows, row_stride_x=rows.stride(0), row_stride_i=rows.stride(1), row_stride_c=rows.stride(2),
        columns=columns, column_stride_x=columns.stride(0) if paired else 0, column_stride_y=columns.stride(-3),
        column_stride_t=columns.stride(-2), column_stride_c=columns.stride(-1),
        row_mask=_dense(row_mask) if both else None, column_mask=_dense(column_mask),
        column_scales=_dense(scales), row_offsets=None, column_offsets=None, tile_samples=None, tile_starts=None,
        order=None, maxima=maxima, indices=indices, match_stride_x=maxima.stride(1), match_stride_y=maxima.stride(2),
        column_maxima=column_maxima, column_indices=column_indices,
        column_part_stride=column_maxima.stride(0) if both else 0,
        column_match_stride_x=column_maxima.stride(1) if both else 0,
        column_match_stride_y=column_maxima.stride(2) if both else 0,
        samples=samples, row_length=row_length, column_samples=column_samples, column_length=column_length,
        channels=channels, row_tiles=row_tiles, group=group,
        column_class=next_power_of_2(column_length),
        PACKED=False, PAIRED=paired, BOTH=both, INDEX=indices is not None,
        ROW_MASK=both and row_mask is not None, COLUMN_MASK=column_mask is not None,
        SCALED=scales is not None and channels > 0, WHOLE=whole,
        SAMPLE_ROWS=sample_rows, BLOCK_M=block_m, BLOCK_K=block_k, INTERPRETER=INTERPRETED,
    )  # fmt: skip


def _chunks(samples: int, bytes_per_sample: int) -> list[tuple[int, int]]:
    step = max(1, SCRATCH_BYTES // max(bytes_per_sample, 1))
    return [(first, min(first + step, samples)) for first in range(0, samples, step)]


def forward_one(
    queries: Tensor, documents: Tensor, query_mask: Tensor | None, document_mask: Tensor | None,
    scales: Tensor | None, mean: bool, zero: bool, paired: bool, out: Direction,
) -> None:  # fmt: skip
    """maxsim: queries (x, i, D) with documents (y, t, D), or paired (x, y, t, D)."""
    samples, length, _ = queries.shape
    column_samples, column_length = documents.shape[-3:-1]
    if min(samples, length, column_samples, column_length) == 0:
        out.fill_empty()
        return
    dtype = accumulator(queries)
    for first, last in _chunks(samples, column_samples * length * dtype.itemsize):

        def part(values: Tensor | None, first: int = first, last: int = last) -> Tensor | None:
            return values[first:last] if paired and values is not None else values

        mask = None if query_mask is None else query_mask[first:last]
        chunk = out.chunk(first, last)
        maxima = queries.new_empty((1, last - first, column_samples, length), dtype=dtype)
        blocks = row_block(length, last - first, queries.element_size(), paired, False)
        _match(
            queries[first:last], part(documents), None, part(document_mask), part(scales), paired, blocks,
            maxima, chunk.alignment,
        )  # fmt: skip
        opposite = (column_samples, 1) if paired else (0, 1)
        _reduce(
            chunk, maxima, chunk.alignment, mean, zero, mask, part(document_mask), (1, 0), opposite, column_length
        )  # fmt: skip


def forward_both(
    a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None, mean: bool, zero: bool,
    ab: Direction, ba: Direction,
) -> None:  # fmt: skip
    """late_interaction: the rows of a tile come from the side that fills tiles better."""
    if min(*a.shape[:2], *b.shape[:2]) == 0:
        ab.fill_empty()
        ba.fill_empty()
        return
    swap = swap_sides(a, b)
    dtype, count_b, n, m = accumulator(a), b.shape[0], a.shape[1], b.shape[1]
    index = ab.alignment is not None
    size = dtype.itemsize
    for first, last in _chunks(a.shape[0], count_b * (n + 2 * m) * size):
        rows, columns = a[first:last], b
        masks = (None if a_mask is None else a_mask[first:last], b_mask)
        row_out, column_out = ab.chunk(first, last), ba.chunk(first, last)
        maxima = a.new_empty((1, last - first, count_b, n), dtype=dtype)
        if swap:
            rows, columns, masks = columns, rows, masks[::-1]
            row_out, column_out = column_out.swapped(), row_out.swapped()
            maxima = a.new_empty((1, last - first, count_b, m), dtype=dtype).transpose(1, 2)
        blocks = row_block(rows.shape[1], rows.shape[0], a.element_size(), False, True)
        parts = ceil_div(rows.shape[1], blocks[0])
        tokens = columns.shape[1]
        column_maxima = a.new_empty((parts, last - first, count_b, tokens), dtype=dtype)
        column_indices = column_out.alignment
        if index and parts > 1:
            column_indices = a.new_empty((parts, last - first, count_b, tokens), dtype=torch.int32)
            column_indices = column_indices.transpose(1, 2) if swap else column_indices
        column_maxima = column_maxima.transpose(1, 2) if swap else column_maxima
        _match(rows, columns, *masks, None, False, blocks, maxima, row_out.alignment, column_maxima, column_indices)
        _reduce(row_out, maxima, row_out.alignment, mean, zero, *masks, (1, 0), (0, 1), tokens)
        _reduce(column_out, column_maxima, column_indices, mean, zero, *masks[::-1], (0, 1), (1, 0), rows.shape[1])


# --- forward, packed --------------------------------------------------------------------------------------------------


def forward_packed(
    queries: Tensor, documents: Tensor, query_offsets: Packed, document_offsets: Packed, scales: Tensor | None,
    mean: bool, paired: bool, scores: Tensor, alignment: Tensor | None,
) -> None:  # fmt: skip
    """maxsim_varlen: scores (x, y) and alignment (y, token), or paired (x,) and (token,)."""
    tokens, channels = queries.shape
    count, column_samples = query_offsets.count, document_offsets.count
    if paired:
        scores, column_samples = scores.unsqueeze(1), 1
        if alignment is not None:
            alignment = alignment.fill_(-1).unsqueeze(0)  # stays where illegal offsets leave no tile of queries
    if min(tokens, count, column_samples) == 0:
        if alignment is not None:
            alignment.fill_(-1)
        scores.copy_(query_offsets.poison(scores.new_zeros(()).expand(scores.shape)))
        return
    dtype = accumulator(queries)
    block_m, _ = row_block(tokens, 1, queries.element_size(), False, False)
    block_k, whole = channel_block(channels, queries.element_size())
    tiles = Tiles.of(query_offsets, tokens, block_m, document_offsets.lengths()) if paired else None
    row_tiles = tiles.count if tiles is not None else ceil_div(tokens, block_m)
    for first, last in _chunks(column_samples, tokens * dtype.itemsize):
        size = last - first
        chunk = None if alignment is None else alignment[first:last]
        maxima = queries.new_empty((size, tokens), dtype=dtype)
        places = document_offsets.offsets if paired else document_offsets.offsets[first : last + 1]
        forward_kernels.match.launch(
            queries.device,
            lambda named, size=size: row_tiles * size,
            rows=queries, row_stride_x=0, row_stride_i=queries.stride(0), row_stride_c=queries.stride(1),
            columns=documents, column_stride_x=0, column_stride_y=0, column_stride_t=documents.stride(0),
            column_stride_c=documents.stride(1), row_mask=None, column_mask=None, column_scales=_dense(scales),
            row_offsets=query_offsets.offsets if paired else None, column_offsets=places,
            tile_samples=None if tiles is None else tiles.samples, tile_starts=None if tiles is None else tiles.starts,
            # Long documents first, so that no program is left with one at the end.
            order=None if paired else torch.argsort(places.diff(), descending=True, stable=True),
            maxima=maxima, indices=chunk, match_stride_x=0, match_stride_y=0 if paired else tokens,
            column_maxima=None, column_indices=None, column_part_stride=0, column_match_stride_x=0,
            column_match_stride_y=0, samples=1, row_length=tokens, column_samples=size,
            column_length=documents.shape[0], channels=channels, row_tiles=row_tiles, group=1,
            column_class=next_power_of_2(ceil_div(documents.shape[0], document_offsets.count)),
            PACKED=True, PAIRED=paired, BOTH=False, INDEX=chunk is not None, ROW_MASK=False, COLUMN_MASK=False,
            SCALED=scales is not None and channels > 0, WHOLE=whole, SAMPLE_ROWS=0,
            BLOCK_M=block_m, BLOCK_K=block_k, INTERPRETER=INTERPRETED,
        )  # fmt: skip
        _reduce(
            Direction(scores[:, first:last], None), maxima.expand(1, count, size, tokens),
            None, mean, False, None, None, (1, 0), (0, 0), 0, query_offsets,
        )  # fmt: skip


# --- backward ---------------------------------------------------------------------------------------------------------


def gradient_of_queries(
    weights: Tensor, queries: Tensor, documents: Tensor, query_mask: Tensor | None, scales: Tensor | None,
    alignment: Tensor, paired: bool,
) -> Tensor:  # fmt: skip
    """Gradient (x, i, D) from weights (x, y), documents (y, t, D), or paired (x, y, t, D), alignment (x, y, i)."""
    samples, length, _ = queries.shape
    column_samples, column_length = documents.shape[-3:-1]
    return _gather(
        queries, weights, documents.stride(0) if paired else 0, documents.stride(-3), documents, query_mask, scales,
        alignment, (column_samples * length, length), samples, length, column_samples, column_length, paired,
    )  # fmt: skip


def gradient_of_packed_queries(
    weights: Tensor, queries: Tensor, documents: Tensor, query_offsets: Packed, document_offsets: Packed,
    scales: Tensor | None, alignment: Tensor, paired: bool,
) -> Tensor:  # fmt: skip
    """Gradient (Tq, D) from weights (x, y), or paired (x, 1), and alignment (y, token), or paired (token,)."""
    tokens = queries.shape[0]
    if min(query_offsets.count, weights.shape[1], queries.numel(), documents.numel()) == 0:
        return query_offsets.poison(torch.zeros_like(queries, memory_format=torch.contiguous_format))
    return _gather(
        queries, weights, 0, 0, documents, None, scales, alignment, (0, tokens), 1, tokens, weights.shape[1], 0,
        paired, query_offsets, document_offsets,
    )  # fmt: skip


def _gather(
    tokens: Tensor, weights: Tensor, other_stride_x: int, other_stride_y: int, others: Tensor, mask: Tensor | None,
    scales: Tensor | None, alignment: Tensor, alignment_strides: tuple[int, int], samples: int, length: int,
    others_per_sample: int, other_length: int, paired: bool, offsets: Packed | None = None,
    other_offsets: Packed | None = None,
) -> Tensor:  # fmt: skip
    gradient = tokens.new_empty(tokens.shape)
    channels = tokens.shape[-1]
    if min(gradient.numel(), others.numel(), others_per_sample) == 0:
        return gradient.zero_()
    backward_kernels.gather.launch(
        tokens.device,
        lambda named: ceil_div(samples * length, named["BLOCK_M"]) * ceil_div(channels, named["BLOCK_C"]),
        gradient=gradient, weights=weights, alignment=alignment, alignment_stride_x=alignment_strides[0],
        alignment_stride_y=alignment_strides[1], others=others, other_stride_x=other_stride_x,
        other_stride_y=other_stride_y, other_stride_t=others.stride(-2), other_stride_c=others.stride(-1),
        token_mask=_dense(mask), scales=_dense(scales),
        token_samples=None if offsets is None else token_samples(offsets, length),
        other_offsets=None if other_offsets is None else other_offsets.offsets,
        legal=None if offsets is None else offsets.legal,
        samples=samples, length=length, others_per_sample=others_per_sample, other_length=other_length,
        channels=channels, PACKED=offsets is not None, PAIRED=paired, TOKEN_MASK=mask is not None,
        SCALED=scales is not None,
    )  # fmt: skip
    return gradient


class Chosen(NamedTuple):
    """One direction of a call: weights (x, y) and alignment (x, y, i) of tokens i of x that chose among those of y."""

    weights: Tensor
    alignment: Tensor

    def transposed(self) -> Chosen:
        return Chosen(self.weights.transpose(0, 1), self.alignment.transpose(0, 1))


def gradient_of_chosen(
    tokens: Tensor, others: Tensor, chosen: Chosen, own: Chosen | None, mask: Tensor | None,
    other_mask: Tensor | None, paired: int,
) -> Tensor:  # fmt: skip
    """Gradient (o, j, D) of tokens that others (x, i, D) chose; paired > 0: sample o meets sample o // paired alone.

    Paired, weights are (o,) and the alignment (o, i). `own` holds the same tokens' own choices as (o, x) and (o, x, j).
    """
    weights, alignment = chosen
    return _scatter(
        tokens, others, weights, (0, weights.stride(0)) if paired else weights.stride(), alignment,
        (0, alignment.stride(0)) if paired else alignment.stride()[:2], own, mask, other_mask,
        tokens.shape[0], tokens.shape[1], others.shape[0], others.shape[1], others.stride()[:2], paired,
    )  # fmt: skip


def gradient_of_packed_documents(
    weights: Tensor, queries: Tensor, documents: Tensor, query_offsets: Packed, document_offsets: Packed,
    alignment: Tensor, paired: bool,
) -> Tensor:  # fmt: skip
    """Gradient (Td, D) from weights (x, y), or paired (x, 1), and alignment (y, token), or paired (token,)."""
    if min(document_offsets.count, query_offsets.count, queries.numel(), documents.numel()) == 0:
        return query_offsets.poison(torch.zeros_like(documents, memory_format=torch.contiguous_format))
    tokens = queries.shape[0]
    return _scatter(
        documents, queries, weights, (1, 0) if paired else weights.stride(), alignment, (0, 0 if paired else tokens),
        None, None, None, document_offsets.count, documents.shape[0], query_offsets.count, tokens,
        (0, queries.stride(0)), int(paired), document_offsets, query_offsets,
    )  # fmt: skip


def _scatter(
    tokens: Tensor, others: Tensor, weights: Tensor, weight_strides: tuple[int, ...], alignment: Tensor,
    alignment_strides: tuple[int, ...], own: Chosen | None, mask: Tensor | None, other_mask: Tensor | None,
    samples: int, length: int, other_samples: int, other_length: int, other_strides: tuple[int, ...], paired: int,
    offsets: Packed | None = None, other_offsets: Packed | None = None,
) -> Tensor:  # fmt: skip
    gradient = tokens.new_empty(tokens.shape)
    channels = tokens.shape[-1]
    if min(gradient.numel(), others.numel()) == 0:
        return gradient.zero_()
    block_m, block_c = owner_block(length, channels, tokens.element_size())
    tiles = None
    if offsets is not None:
        gradient.fill_(torch.nan)  # stays where illegal offsets leave no sample to own the tokens
        tiles = Tiles.of(offsets, length, block_m, offsets.lengths())
    row_tiles = samples * ceil_div(length, block_m) if tiles is None else tiles.count
    channel_tiles = ceil_div(channels, block_c)
    scaled = tokens.dtype == torch.float16
    backward_kernels.scatter.launch(
        tokens.device,
        lambda named: row_tiles * channel_tiles,
        gradient=gradient, weights=weights, weight_stride_x=weight_strides[0], weight_stride_o=weight_strides[1],
        alignment=alignment, alignment_stride_x=alignment_strides[0], alignment_stride_o=alignment_strides[1],
        own_weights=None if own is None else own.weights, own_alignment=None if own is None else own.alignment,
        own_weight_stride_x=0 if own is None else own.weights.stride(1),
        own_weight_stride_o=0 if own is None else own.weights.stride(0),
        own_stride_x=0 if own is None else own.alignment.stride(1),
        own_stride_o=0 if own is None else own.alignment.stride(0),
        others=others, other_stride_x=other_strides[0], other_stride_i=other_strides[1],
        other_stride_c=others.stride(-1), magnitude=_magnitude(weights, own) if scaled else None,
        token_mask=_dense(mask), other_mask=_dense(other_mask),
        offsets=None if offsets is None else offsets.offsets, tile_samples=None if tiles is None else tiles.samples,
        tile_starts=None if tiles is None else tiles.starts,
        other_offsets=None if other_offsets is None else other_offsets.offsets,
        other_samples=None if other_offsets is None else token_samples(other_offsets, other_length),
        length=length,
        other_count=other_length if offsets is not None else other_samples * other_length, other_length=other_length,
        channels=channels, row_tiles=row_tiles, paired=max(paired, 1),
        other_class=next_power_of_2(other_length * (1 if paired else other_samples), high=2**20),
        PACKED=offsets is not None, PAIRED=paired > 0, BOTH=own is not None, SCALED=scaled,
        TOKEN_MASK=mask is not None, OTHER_MASK=other_mask is not None,
        BLOCK_M=block_m, BLOCK_C=block_c, INTERPRETER=INTERPRETED,
    )  # fmt: skip
    return gradient


def _magnitude(weights: Tensor, own: Chosen | None) -> Tensor:
    """The power of two that brings the largest weight near 2^14, 1 where there is none or it isn't finite."""
    largest = weights.abs().amax()
    if own is not None:
        largest = torch.maximum(largest, own.weights.abs().amax())
    exponent = torch.frexp(largest).exponent
    power = torch.ldexp(torch.ones_like(largest), (14 - exponent).clamp(-100, 100))
    return torch.where(largest.isfinite() & (largest > 0), power, 1.0)
