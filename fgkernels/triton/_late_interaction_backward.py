# SPDX-License-Identifier: Apache-2.0
"""Backward kernels of late interaction. Each program owns the gradients of its tokens and sums in a fixed order.

`gather_kernel` is for tokens that were reduced over (queries): it adds up the weighted winners that their indices name.
`scatter_kernel` is for tokens that were matched against (documents): it goes through all indices that may name them,
and adds the owners of those that do as a product of a sparse matrix of weights with the owners' tokens, on the matrix
units. In two-way similarity every token is both, and both kinds of terms enter the one matrix.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .device import Kernel, matrix_operand, next_power_of_2, sum_of


@triton.jit
def gather_kernel(
    gradient, weights, alignment, alignment_stride_x, alignment_stride_y,
    others, other_stride_x, other_stride_y, other_stride_t, other_stride_c,
    token_mask, scales, token_samples, other_offsets, legal,
    samples, length, others_per_sample, other_length, channels,
    PACKED: tl.constexpr, PAIRED: tl.constexpr, TOKEN_MASK: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """gradient (samples * length, channels) = sum over y of weights[x, y] * others[x, y, alignment[x, y, i]].

    `weights` is (samples, others_per_sample). Packed tokens are one run whose samples `token_samples` names.
    """
    accumulator: tl.constexpr = weights.dtype.element_ty
    row_tiles = (samples * length + BLOCK_M - 1) // BLOCK_M
    position = (tl.program_id(0) % row_tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = (tl.program_id(0) // row_tiles * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)[None, :]
    channel_at = others + channel * other_stride_c
    inside = channel < channels
    if PACKED:
        live = position < length
        x = tl.load(token_samples + position, mask=live, other=0).to(tl.int64)
        alignment_at = position
    else:
        x = position // length
        live = x < samples
        alignment_at = x * alignment_stride_x + position % length
    valid = live
    if TOKEN_MASK:
        valid = live & (tl.load(token_mask + position, mask=live, other=0) != 0)
    total = tl.full([BLOCK_M, BLOCK_C], 0, accumulator)
    for number in range(0, others_per_sample):
        y = tl.full([], 0, tl.int64) + number
        index = tl.load(alignment + alignment_at + y * alignment_stride_y, mask=valid, other=-1).to(tl.int64)
        weight = tl.load(weights + x * others_per_sample + y, mask=valid, other=0)
        if PACKED:
            if PAIRED:
                met = x
            else:
                met = x * 0 + y
            start = tl.load(other_offsets + met, mask=valid, other=0)
            wins = valid & (index >= 0) & (index < tl.load(other_offsets + (met + 1), mask=valid, other=0) - start)
            other_at = (start + index) * other_stride_t
            scale_at = start + index
        else:
            wins = valid & (index >= 0) & (index < other_length)
            other_at = index * other_stride_t + y * other_stride_y
            if PAIRED:
                other_at += x * other_stride_x
                scale_at = (x * others_per_sample + y) * other_length + index
            else:
                scale_at = y * other_length + index
        winner = tl.load(channel_at + other_at[:, None], mask=wins[:, None] & inside, other=0).to(accumulator)
        if SCALED:
            winner = winner * tl.load(scales + scale_at, mask=wins, other=0).to(accumulator)[:, None]
        total += tl.where(wins, weight, 0)[:, None] * winner
    if PACKED:
        total = tl.where(tl.load(legal) != 0, total, float("nan"))
    to = gradient + position[:, None] * channels + channel
    tl.store(to, total.to(gradient.dtype.element_ty), mask=live[:, None] & inside)


@triton.jit(do_not_specialize=["other_class"])
def scatter_kernel(
    gradient, weights, weight_stride_x, weight_stride_o, alignment, alignment_stride_x, alignment_stride_o,
    own_weights, own_weight_stride_x, own_weight_stride_o, own_alignment, own_stride_x, own_stride_o,
    others, other_stride_x, other_stride_i, other_stride_c, magnitude,
    token_mask, other_mask, offsets, tile_samples, tile_starts, other_offsets, other_samples,
    length, other_count, other_length, channels, row_tiles, paired, other_class,
    PACKED: tl.constexpr, PAIRED: tl.constexpr, BOTH: tl.constexpr, SCALED: tl.constexpr,
    TOKEN_MASK: tl.constexpr, OTHER_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, INTERPRETER: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of sample o's tokens: the other side's tokens (x, i) that chose them, weighted and summed.

    A token (x, i) chose token alignment[x, o, i] with weights[x, o]. Paired, sample o meets sample o // paired alone.
    BOTH: this side chose too, its token j the token own_alignment[o, x, j] with own_weights[o, x]. `magnitude`
    (SCALED) is a power of two that keeps float16 weights away from the ends of its narrow range.
    """
    accumulator: tl.constexpr = weights.dtype.element_ty
    element: tl.constexpr = others.dtype.element_ty
    split: tl.constexpr = element == tl.float16 or element == tl.bfloat16
    tile = tl.program_id(0) % row_tiles
    channel = (tl.program_id(0) // row_tiles * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)[None, :]
    channel_at = others + channel * other_stride_c
    inside = channel < channels
    lane = tl.arange(0, BLOCK_M)
    if PACKED:
        o = tl.load(tile_samples + tile).to(tl.int64)
        position = (tile - tl.load(tile_starts + o)) * BLOCK_M + lane
        start = tl.load(offsets + o)
        live = position < tl.load(offsets + o + 1) - start
        token = start + position
    else:
        tiles = (length + BLOCK_M - 1) // BLOCK_M
        o = (tile // tiles).to(tl.int64)
        position = tile % tiles * BLOCK_M + lane
        live = position < length
        token = o * length + position
    valid = live
    if TOKEN_MASK:
        valid = live & (tl.load(token_mask + token, mask=live, other=0) != 0)
    first = tl.full([], 0, tl.int64)
    last = tl.full([], 0, tl.int64) + other_count
    if PAIRED:
        if PACKED:
            first = tl.load(other_offsets + o)
            last = tl.load(other_offsets + o + 1)
        else:
            first = o // paired * other_length
            last = first + other_length
    power = tl.full([], 1.0, accumulator)
    if SCALED:
        power = tl.load(magnitude)
    total = tl.full([BLOCK_M, BLOCK_C], 0, accumulator)
    for begin in range(first, last, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N).to(tl.int64)
        other_live = n < last
        if PACKED:
            x = tl.load(other_samples + n, mask=other_live, other=0).to(tl.int64)
            i = n
            alignment_at = n + o * alignment_stride_o
        else:
            x = n // other_length
            i = n % other_length
            alignment_at = x * alignment_stride_x + o * alignment_stride_o + i
        if OTHER_MASK:
            other_live = other_live & (tl.load(other_mask + n, mask=other_live, other=0) != 0)
        chosen = tl.load(alignment + alignment_at, mask=other_live, other=-1).to(tl.int32)
        weight_at = x * weight_stride_x + o * weight_stride_o
        weight = tl.load(weights + weight_at, mask=other_live, other=0) * power
        matrix = tl.where((chosen[None, :] == position[:, None]) & valid[:, None], weight[None, :], 0)
        if BOTH:
            own = tl.load(
                own_alignment + o * own_stride_o + (x * own_stride_x)[None, :] + position.to(tl.int64)[:, None],
                mask=valid[:, None] & other_live[None, :], other=-1,
            ).to(tl.int32)  # fmt: skip
            own_weight = (
                tl.load(own_weights + x * own_weight_stride_x + o * own_weight_stride_o, mask=other_live, other=0)
                * power
            )
            matrix += tl.where(own == i.to(tl.int32)[None, :], own_weight[None, :], 0)
        other_at = x * other_stride_x + i * other_stride_i
        tokens = tl.load(channel_at + other_at[:, None], mask=other_live[:, None] & inside, other=0)
        operand = matrix_operand(tokens, INTERPRETER)
        if split:
            # Weights in 16-bit pieces (three of 8 bits in bfloat16, two of 11 in float16) hold all of float32's or all
            # but its last bits, and products with 16-bit tokens are exact.
            for _ in tl.static_range(3 if element == tl.bfloat16 else 2):
                piece = matrix.to(element)
                total = tl.dot(matrix_operand(piece, INTERPRETER), operand, total)
                matrix -= piece.to(accumulator)
        elif element == tl.float64 and not INTERPRETER:
            # Triton 3.7 and 3.8 cannot bring a computed float64 operand to the matrix units.
            total += sum_of(matrix[:, :, None] * operand[None, :, :], 1)
        else:
            total = tl.dot(matrix, operand, total, input_precision="ieee", out_dtype=accumulator)
    total = total / power
    to = gradient + token[:, None] * channels + channel
    tl.store(to, total.to(gradient.dtype.element_ty), mask=live[:, None] & inside)


def _gather_blocks(named: dict[str, Any]) -> dict[str, int]:
    return {
        "BLOCK_M": next_power_of_2(named["samples"] * named["length"], high=4096),
        "BLOCK_C": next_power_of_2(named["channels"]),
    }


def _scatter_shared_bytes(config: triton.Config, named: dict[str, Any], amd: bool) -> int | None:
    """The pipelined blocks of the others' tokens, and the matrix on its way between layouts."""
    size, block = named["others"].element_size(), config.kwargs["BLOCK_N"]
    # Wide types: every thread keeps its operands in registers, and larger blocks would spill.
    if (size >= 4) != (block == 16):
        return None
    return block * (named["BLOCK_C"] * config.num_stages * size + named["BLOCK_M"] * 8) + 2048


def _scatter_blocks(named: dict[str, Any]) -> dict[str, int]:
    return {"BLOCK_N": next_power_of_2(named["other_class"], 16, 2048)}


gather = Kernel(
    gather_kernel,
    [
        triton.Config({"BLOCK_M": rows, "BLOCK_C": channels}, num_warps=4, num_stages=stages)
        for rows, channels, stages in ((16, 128, 3), (32, 64, 3), (16, 64, 4), (8, 256, 3), (32, 128, 2))
    ],
    ("channels", "PACKED", "PAIRED"),
    lambda config, named, amd: config.kwargs["BLOCK_M"] * config.kwargs["BLOCK_C"] * 4 * config.num_stages,
    _gather_blocks,
)

scatter = Kernel(
    scatter_kernel,
    [
        triton.Config({"BLOCK_N": block}, num_warps=warps, num_stages=stages)
        for block, warps, stages in ((32, 4, 3), (32, 8, 3), (64, 4, 2), (64, 8, 2), (16, 8, 2))
    ],
    ("BLOCK_M", "BLOCK_C", "other_class", "BOTH", "PACKED", "PAIRED"),
    _scatter_shared_bytes,
    _scatter_blocks,
)
