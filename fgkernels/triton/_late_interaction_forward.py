# SPDX-License-Identifier: Apache-2.0
"""Forward kernels of late interaction: best match of every token, and the sum of the best matches.

`match_kernel` owns a tile of row tokens (the queries) and streams the column tokens (the documents) of one sample after
the other through the matrix units; per row, and for two-way similarity per column, it keeps the maximum and its index.
Similarities of token pairs stay in registers. `reduce_kernel` applies what depends on a whole sample (padding policy,
empty samples, parts of a long row side) and sums over tokens in a fixed order.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language import core  # noqa: F401 (the interpreter patches it only if it finds it here)

from .device import (
    NO_INDEX,
    Kernel,
    device_function,
    matrix_operand,
    max_keeping_nan,
    maximum_of,
    minimum_of,
    next_power_of_2,
    sum_of,
)


@device_function
def similarities(row_tokens, column_tokens, column_scales, SCALED: tl.constexpr, INTERPRETER: tl.constexpr):
    """Products of a tile of row tokens (M, K) with one of column tokens (N, K), accumulated in float32 (float64)."""
    if SCALED:
        # Infinite or NaN scales meet the single entries, so that 0 * Inf is NaN as in dequantised tokens.
        special = tl.where(tl.abs(column_scales) < float("inf"), 1.0, column_scales)
        column_tokens = (column_tokens.to(tl.float32) * special[:, None]).to(row_tokens.dtype)
    return tl.dot(
        matrix_operand(row_tokens, INTERPRETER),
        tl.trans(matrix_operand(column_tokens, INTERPRETER)),
        input_precision="ieee",
    )


@triton.jit(do_not_specialize=["column_class"])
def match_kernel(
    rows, row_stride_x, row_stride_i, row_stride_c,
    columns, column_stride_x, column_stride_y, column_stride_t, column_stride_c,
    row_mask, column_mask, column_scales, row_offsets, column_offsets, tile_samples, tile_starts, order,
    maxima, indices, match_stride_x, match_stride_y,
    column_maxima, column_indices, column_part_stride, column_match_stride_x, column_match_stride_y,
    samples, row_length, column_samples, column_length, channels, row_tiles, group, column_class,
    PACKED: tl.constexpr, PAIRED: tl.constexpr, BOTH: tl.constexpr, INDEX: tl.constexpr,
    ROW_MASK: tl.constexpr, COLUMN_MASK: tl.constexpr, SCALED: tl.constexpr, WHOLE: tl.constexpr,
    SAMPLE_ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    INTERPRETER: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Best matches of a tile of rows in a group of column samples.

    Rows of (samples, row_length) tokens x, i; columns of (column_samples, column_length) tokens y, t. Packed columns
    lie behind `column_offsets`; packed rows are one sample, or, paired, tiles listed in tile_samples and tile_starts.
    `maxima` and `indices` take row results at x * match_stride_x + y * match_stride_y + i; `column_maxima` and
    `column_indices` take those of columns likewise, once per part of a sample's rows that a tile holds.

    SAMPLE_ROWS is 0 where a tile runs on from one sample to the next; else it holds BLOCK_M // SAMPLE_ROWS whole
    samples of up to SAMPLE_ROWS tokens, or part of one. WHOLE: all channels fit one block, and rows are read once.
    """
    accumulator: tl.constexpr = tl.float64 if rows.dtype.element_ty == tl.float64 else tl.float32
    tile = tl.program_id(0) % row_tiles
    first_column_sample = tl.program_id(0) // row_tiles * group
    lane = tl.arange(0, BLOCK_M)
    part = 0
    if PACKED and PAIRED:
        x = tl.load(tile_samples + tile)
        first_row = tl.load(row_offsets + x) + (tile - tl.load(tile_starts + x)) * BLOCK_M
        last_row = tl.load(row_offsets + x + 1)
        i = first_row + lane
        row_live = i < last_row
        row_x = 0
    elif SAMPLE_ROWS == 0:
        position = tile.to(tl.int64) * BLOCK_M + lane
        row_x = position // row_length
        i = position % row_length
        row_live = row_x < samples
        x = 0
    else:
        parts = (row_length + BLOCK_M - 1) // BLOCK_M
        part = tile % parts
        x = tile // parts * (BLOCK_M // SAMPLE_ROWS)
        row_x = x + lane // SAMPLE_ROWS
        i = part * BLOCK_M + lane % SAMPLE_ROWS
        row_live = (row_x < samples) & (i < row_length)
    i = i.to(tl.int64)
    row_x = row_x + tl.full([BLOCK_M], 0, tl.int64)
    match_at = row_x * match_stride_x + i
    row_at = rows + row_x * row_stride_x + i * row_stride_i
    if ROW_MASK:
        row_valid = row_live & (tl.load(row_mask + row_x * row_length + i, mask=row_live, other=0) != 0)
    else:
        row_valid = row_live
    channel = tl.arange(0, BLOCK_K).to(tl.int64)[None, :]
    row_at = row_at[:, None] + channel * row_stride_c
    channel_at = columns + channel * column_stride_c
    inside = channel < channels
    if WHOLE:
        row_tokens = tl.load(row_at, mask=row_live[:, None] & inside, other=0)

    length = column_length
    start = tl.full([], 0, tl.int64)
    if PACKED:
        if PAIRED:
            first_column_sample = x
        else:
            first_column_sample = tl.load(order + first_column_sample)
        start = tl.load(column_offsets + first_column_sample)
        length = (tl.load(column_offsets + first_column_sample + 1) - start).to(tl.int32)
        if PAIRED:
            length = tl.where(first_row < last_row, length, 0)  # a tile past the last one has nothing to do
        steps = (length + BLOCK_N - 1) // BLOCK_N
        blocks = steps
        if length == 0:
            # Every maximum over no token is 0 and no token wins.
            empty_at = match_at + first_column_sample.to(tl.int64) * match_stride_y
            tl.store(maxima + empty_at, tl.full([BLOCK_M], 0, accumulator), mask=row_live)
            if INDEX:
                tl.store(indices + empty_at, tl.full([BLOCK_M], -1, indices.dtype.element_ty), mask=row_live)
    else:
        steps = (length + BLOCK_N - 1) // BLOCK_N
        blocks = (tl.minimum(column_samples, first_column_sample + group) - first_column_sample) * steps

    best = tl.full([BLOCK_M], float("-inf"), accumulator)
    best_index = tl.full([BLOCK_M], NO_INDEX, tl.int32)
    # One loop over the blocks of all samples, so that loads run ahead across samples too.
    for block in range(0, blocks):
        sample = block // steps
        step = block - sample * steps
        y = (first_column_sample + sample).to(tl.int64)
        t = step * BLOCK_N + tl.arange(0, BLOCK_N)
        live = t < length
        token = start + t
        column_at = token * column_stride_t
        if not PACKED:
            column_at += y * column_stride_y
            if PAIRED:
                column_at += x.to(tl.int64) * column_stride_x
        if COLUMN_MASK or SCALED:
            mask_at = token
            if not PACKED:
                mask_at += y * column_length
                if PAIRED:
                    mask_at += x.to(tl.int64) * column_samples * column_length
        valid = live
        if COLUMN_MASK:
            valid = live & (tl.load(column_mask + mask_at, mask=live, other=0) != 0)
        scale = 1.0
        if SCALED:
            scale = tl.load(column_scales + mask_at, mask=live, other=0)
        if WHOLE:
            column_tokens = tl.load(channel_at + column_at[:, None], mask=live[:, None] & inside, other=0)
            values = similarities(row_tokens, column_tokens, scale, SCALED, INTERPRETER)
        else:
            values = tl.full([BLOCK_M, BLOCK_N], 0, accumulator)
            for first in range(0, channels, BLOCK_K):
                skip = tl.full([], 0, tl.int64) + first
                inside = channel < channels - skip
                row_tokens = tl.load(row_at + skip * row_stride_c, mask=row_live[:, None] & inside, other=0)
                column_tokens = tl.load(
                    channel_at + (column_at[:, None] + skip * column_stride_c), mask=live[:, None] & inside, other=0
                )
                values += similarities(row_tokens, column_tokens, scale, SCALED, INTERPRETER)
        if SCALED:
            values = values * tl.where(tl.abs(scale) < float("inf"), scale, 1.0)[None, :]
        if BOTH:
            values = tl.where(row_valid[:, None] & valid[None, :], values, float("-inf"))
        else:
            values = tl.where(valid[None, :], values, float("-inf"))

        maximum = max_keeping_nan(values, 1, INTERPRETER)
        better = (step == 0) | (maximum > best) | ((maximum != maximum) & (best == best))
        if INDEX:
            # The lowest index that equals the maximum: equality is bitwise the value just reduced.
            column_index = tl.where(valid, t, NO_INDEX)
            winner = tl.where((values == maximum[:, None]) | (values != values), column_index[None, :], NO_INDEX)
            index = minimum_of(winner, 1)
            best_index = tl.where(better | ((maximum == best) & (best_index == NO_INDEX)), index, best_index)
        best = tl.where(better, maximum, best)
        if step == steps - 1:
            match_to = match_at + y * match_stride_y
            tl.store(maxima + match_to, best, mask=row_live)
            if INDEX:
                tl.store(indices + match_to, best_index.to(indices.dtype.element_ty), mask=row_live)

        if BOTH:
            row_index = tl.where(row_valid, i.to(tl.int32), NO_INDEX)
            by_sample = tl.reshape(values, [BLOCK_M // SAMPLE_ROWS, SAMPLE_ROWS, BLOCK_N])
            maximum = max_keeping_nan(by_sample, 1, INTERPRETER)
            group_x = (x + tl.arange(0, BLOCK_M // SAMPLE_ROWS)).to(tl.int64)
            to = part.to(tl.int64) * column_part_stride + y * column_match_stride_y
            to += (group_x * column_match_stride_x)[:, None] + t[None, :]
            stored = (group_x < samples)[:, None] & live[None, :]
            tl.store(column_maxima + to, maximum, mask=stored)
            if INDEX:
                winner = tl.where(
                    (by_sample == maximum[:, None, :]) | (by_sample != by_sample),
                    tl.reshape(row_index, [BLOCK_M // SAMPLE_ROWS, SAMPLE_ROWS])[:, :, None], NO_INDEX,
                )  # fmt: skip
                index = minimum_of(winner, 1)
                tl.store(column_indices + to, index.to(column_indices.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["longest"])
def reduce_kernel(
    maxima, indices, parts, part_stride, match_stride_x, match_stride_y, alignment,
    scores, score_stride_x, score_stride_y,
    token_mask, offsets, length, first_masked, opposite_length, legal,
    pairs, column_samples, longest, sample_stride_x, sample_stride_y, opposite_stride_x, opposite_stride_y,
    PACKED: tl.constexpr, MEAN: tl.constexpr, ZERO: tl.constexpr, INDEX: tl.constexpr,
    TOKEN_MASK: tl.constexpr, OPPOSITE_MASK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Scores of pairs of samples (x, y): the sum or mean over a sample's tokens of their best matches.

    Matches of a pair lie at x * match_stride_x + y * match_stride_y + token, in `parts` candidates of which the best
    counts (each covers later tokens of the opposite sample than the one before). Sample number x * sample_stride_x +
    y * sample_stride_y owns the tokens, number x * opposite_stride_x + y * opposite_stride_y is what they were matched
    with; `first_masked` holds the index of its first masked token, its length if none is, -1 if all are.
    Where INDEX, `alignment` receives the final indices; it may be `indices` itself.
    """
    pair = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pair < pairs
    x = pair // column_samples
    y = pair % column_samples
    owner = x * sample_stride_x + y * sample_stride_y
    match_at = x * match_stride_x + y * match_stride_y
    if PACKED:
        start = tl.load(offsets + owner, mask=inside, other=0)
        count = tl.load(offsets + (owner + 1), mask=inside, other=0) - start
        match_at += start
        steps = maximum_of(count, 0)
    else:
        count = tl.full([BLOCK_P], 0, tl.int64) + length
        steps = length
    if OPPOSITE_MASK:
        masked = tl.load(first_masked + x * opposite_stride_x + y * opposite_stride_y, mask=inside, other=0)
        empty = masked < 0
        some_masked = (masked >= 0) & (masked < opposite_length)
    total = tl.full([BLOCK_P, BLOCK_I], 0, scores.dtype.element_ty)
    tokens = tl.full([BLOCK_P], 0, tl.int64)
    for first in range(0, steps, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        live = inside[:, None] & (i[None, :] < count[:, None])
        at = match_at[:, None] + i[None, :]
        value = tl.load(maxima + at, mask=live, other=0)
        if INDEX:
            index = tl.load(indices + at, mask=live, other=0).to(tl.int32)
        for part in range(1, parts):
            part_at = at + (tl.full([], 0, tl.int64) + part) * part_stride
            other = tl.load(maxima + part_at, mask=live, other=0)
            better = (other > value) | ((other != other) & (value == value))
            if INDEX:
                other_index = tl.load(indices + part_at, mask=live, other=0).to(tl.int32)
                # -inf from a part without a valid token has no index yet.
                better_index = better | ((other == value) & (index == NO_INDEX))
                index = tl.where(better_index, other_index, index)
            value = tl.where(better, other, value)
        if OPPOSITE_MASK:
            none = empty[:, None] & live
            if ZERO:
                # A masked token is a zero vector: it beats negative values, and zeros of a higher index.
                beaten = value < 0
                if INDEX:
                    beaten = beaten | ((value == 0) & (masked[:, None] < index))
                none = none | (beaten & some_masked[:, None])
            value = tl.where(none, 0, value)
            if INDEX:
                index = tl.where(none, -1, index)
        if TOKEN_MASK:
            valid = live & (tl.load(token_mask + (owner[:, None] * length + i[None, :]), mask=live, other=0) != 0)
            value = tl.where(valid, value, 0)
            tokens += sum_of(valid.to(tl.int64), 1)
            if INDEX:
                index = tl.where(valid, index, -1)
        if INDEX:
            tl.store(alignment + at, index.to(alignment.dtype.element_ty), mask=live)
        total += value
    score = sum_of(total, 1)
    if MEAN:
        if not TOKEN_MASK:
            tokens = count
        score = score / tl.maximum(tokens, 1).to(scores.dtype.element_ty)
    if PACKED:
        score = tl.where(tl.load(legal) != 0, score, float("nan"))
    tl.store(scores + x * score_stride_x + y * score_stride_y, score, mask=inside)


def _configs() -> list[triton.Config]:
    return [
        triton.Config({"BLOCK_N": block}, num_warps=warps, num_stages=stages)
        for block, warps, stages in (
            (64, 8, 2),
            (32, 8, 2),
            (32, 8, 3),
            (64, 4, 2),
            (32, 4, 2),
            (128, 8, 2),
            (16, 4, 4),
        )
    ]


def _match_shared_bytes(config: triton.Config, named: dict[str, Any], amd: bool) -> int | None:
    """Rows, the pipelined column blocks, and what reductions exchange between warps."""
    size, column_size = named["rows"].element_size(), named["columns"].element_size()
    if size >= 4 and config.kwargs["BLOCK_N"] * size > 256:
        return None  # every thread keeps its operands in registers, and these would spill
    rows = named["BLOCK_M"] * named["BLOCK_K"] * size
    columns = config.kwargs["BLOCK_N"] * named["BLOCK_K"] * max(size, column_size)
    exchange = 3 * 1024
    if amd:
        # Rows pass through on their way to registers, and one stage of the columns stays in registers.
        return max(rows, columns * (config.num_stages - 1) + exchange)
    if named["WHOLE"]:
        return rows + columns * config.num_stages + exchange
    return (rows + columns) * config.num_stages + exchange


def _match_interpreter_blocks(named: dict[str, Any]) -> dict[str, int]:
    return {"BLOCK_N": next_power_of_2(named["column_class"], high=4096)}


def _reduce_interpreter_blocks(named: dict[str, Any]) -> dict[str, int]:
    tokens = next_power_of_2(named["longest"], high=4096)
    return {"BLOCK_P": next_power_of_2(named["pairs"], high=max(2**18 // tokens, 1)), "BLOCK_I": tokens}


# One configuration: the order of the sum, and so the last bits of the scores, does not depend on tuning.
reduce = Kernel(
    reduce_kernel,
    [triton.Config({"BLOCK_P": 16, "BLOCK_I": 64}, num_warps=4, num_stages=2)],
    (),
    lambda config, named, amd: 0,
    _reduce_interpreter_blocks,
)

match = Kernel(
    match_kernel,
    _configs(),
    ("BLOCK_M", "BLOCK_K", "SAMPLE_ROWS", "column_class", "BOTH", "INDEX", "COLUMN_MASK", "PACKED"),
    _match_shared_bytes,
    _match_interpreter_blocks,
)
