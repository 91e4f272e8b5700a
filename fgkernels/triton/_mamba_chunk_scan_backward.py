# SPDX-License-Identifier: Apache-2.0
"""Backward kernels of Mamba-2's scan in its chunked matrix form.

With g the gradient of y, H that of the state that leaves a chunk, h the state that enters it and M[t, s] = (g[t] x[s])
decay[t, s] dt[s], of which a chunk holds 128 x 128 per head:

    dx[s] = dt[s] (sum_t decay[t, s] (C[t] B[s]) g[t] + (share left) H B[s]) + D g[s]
    dB[s] = sum_t M[t, s] C[t] + (share left) dt[s] x[s] H,   dC[t] = sum_s M[t, s] B[s] + (share left) g[t] h

summed over the heads of a group, and the gradient of dt[j] A sums every pair with s < j <= t, which is done without
subtractions. What several programs add to is written per program and summed in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import core  # noqa: F401 (the interpreter patches it only if it finds it here)

from ._mamba_chunk_scan_forward import (
    between,
    chunk_of,
    gated_gradient,
    load_rows,
    product,
    similarity,
    since_start,
    step_inputs,
    until_end,
)
from ._scan_math import softplus, softplus_gradient
from .device import device_function, fixed, rounded, sum_of


@triton.jit
def input_gradient_kernel(
    x, x_stride_b, x_stride_l, x_stride_h, x_stride_p, z, z_stride_b, z_stride_l, z_stride_h, z_stride_p,
    grad, grad_stride_b, grad_stride_l, grad_stride_h, grad_stride_p,
    B, B_stride_b, B_stride_l, B_stride_g, B_stride_n, C, C_stride_b, C_stride_l, C_stride_g, C_stride_n,
    D, D_stride_h, D_stride_p, steps, sums, plane, numbers, leaving, dx, through_input, dD,
    length, heads, channels, states, per_group, chunks,
    SKIP: tl.constexpr, GATED: tl.constexpr, SEQUENCES: tl.constexpr, NARROW: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    INTERPRETER: tl.constexpr,
):  # fmt: skip
    """A block of steps s: dx, its part of dD (batch, chunks, blocks, heads, channels), and dx / dt times x,
    (batch, heads, length): what dt gets through the input."""
    accumulator: tl.constexpr = sums.dtype.element_ty
    blocks: tl.constexpr = CHUNK // BLOCK_S
    b, c, h, block = chunk_of(tl.program_id(0), blocks, heads, chunks)
    start = c * CHUNK
    end = tl.minimum(start + CHUNK, length) - 1
    first_s = block * BLOCK_S
    s = start + first_s + tl.arange(0, BLOCK_S)
    s_live = s < length
    head_at = (b * heads + h) * length
    group = h // per_group
    x_at = x + (b * x_stride_b + h * x_stride_h)
    grad_at = grad + (b * grad_stride_b + h * grad_stride_h)
    z_at = z
    if GATED:
        z_at = z + (b * z_stride_b + h * z_stride_h)
    B_at = B + (b * B_stride_b + group * B_stride_g)
    C_at = C + (b * C_stride_b + group * C_stride_g)
    leaving_at = leaving + ((b * chunks + c) * heads + h) * channels * states
    step = tl.load(steps + (head_at + s), mask=s_live, other=0)
    left = until_end(sums, plane, head_at, numbers, b, end, s, s_live, length, SEQUENCES)
    through = step * 0
    for first_p in range(0, channels, BLOCK_P):
        p = (tl.full([], 0, tl.int64) + first_p) + tl.arange(0, BLOCK_P)
        p_live = p < channels
        total = tl.full([BLOCK_S, BLOCK_P], 0, accumulator)
        for first in range(0, states, BLOCK_N):
            n = (tl.full([], 0, tl.int64) + first) + tl.arange(0, BLOCK_N)
            rows = load_rows(B_at, s * B_stride_l, n * B_stride_n, s_live, n < states)
            state = load_rows(leaving_at, p * states, n, p_live, n < states)
            total = product(rows, tl.trans(state), total, NARROW, INTERPRETER)
        total *= left[:, None]
        # Steps before the block's first get nothing from it.
        for first_t in range(first_s // BLOCK_T * BLOCK_T, tl.minimum(CHUNK, length - start), BLOCK_T):
            t = (start + first_t) + tl.arange(0, BLOCK_T)
            t_live = t < length
            matrix = similarity(
                B_at, B_stride_l, B_stride_n, s, s_live, C_at, C_stride_l, C_stride_n, t, t_live, states, accumulator,
                NARROW, INTERPRETER, BLOCK_S, BLOCK_T, BLOCK_N,
            )  # fmt: skip
            matrix *= tl.trans(between(sums, plane, head_at, numbers, b, t, t_live, s, s_live, length, SEQUENCES))
            grad_y = gated_gradient(
                grad_at, t * grad_stride_l, p * grad_stride_p, z_at, t * z_stride_l, p * z_stride_p, t_live, p_live,
                accumulator, GATED,
            )  # fmt: skip
            total = product(matrix, grad_y, total, NARROW, INTERPRETER)
        value = load_rows(x_at, s * x_stride_l, p * x_stride_p, s_live, p_live).to(accumulator)
        through += sum_of(value * total, 1)
        total *= step[:, None]
        if SKIP:
            grad_y = gated_gradient(
                grad_at, s * grad_stride_l, p * grad_stride_p, z_at, s * z_stride_l, p * z_stride_p, s_live, p_live,
                accumulator, GATED,
            ).to(accumulator)  # fmt: skip
            total += grad_y * tl.load(D + (h * D_stride_h + p * D_stride_p), mask=p_live, other=0)[None, :]
            part = (((b * chunks + c) * blocks + block) * heads + h) * channels
            tl.store(dD + (part + p), sum_of(grad_y * value, 0), mask=p_live)
        dx_at = dx + ((b * length + s) * heads + h)[:, None] * channels + p[None, :]
        tl.store(dx_at, rounded(total, dx.dtype.element_ty), mask=s_live[:, None] & p_live[None, :])
    tl.store(through_input + (head_at + s), through, mask=s_live)


@triton.jit
def pairs_kernel(
    x, x_stride_b, x_stride_l, x_stride_h, x_stride_p, z, z_stride_b, z_stride_l, z_stride_h, z_stride_p,
    grad, grad_stride_b, grad_stride_l, grad_stride_h, grad_stride_p,
    B, B_stride_b, B_stride_l, B_stride_g, B_stride_n, C, C_stride_b, C_stride_l, C_stride_g, C_stride_n,
    steps, sums, plane, numbers, pairs, crossing, length, heads, channels, states, per_group, chunks, splits,
    GATED: tl.constexpr, SEQUENCES: tl.constexpr, NARROW: tl.constexpr, CHUNK: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, INTERPRETER: tl.constexpr,
):  # fmt: skip
    """M of a block of steps t, summed over one of `splits` shares of a group's heads, (splits, batch, chunks, groups,
    CHUNK, CHUNK); and per head, (batch, heads, length, blocks), for each s what all pairs (t, s' <= s) with t > s in
    the block contribute to the gradient of the log of a decay: that of step s + 1."""
    accumulator: tl.constexpr = sums.dtype.element_ty
    blocks: tl.constexpr = CHUNK // BLOCK_T
    groups = heads // per_group
    b, c, outer, block = chunk_of(tl.program_id(0), blocks, groups * splits, chunks)
    group = outer // splits
    split = outer % splits
    batch = plane // (heads * length)
    start = c * CHUNK
    t = start + block * BLOCK_T + tl.arange(0, BLOCK_T)
    s = start + tl.arange(0, CHUNK)
    t_live = t < length
    s_live = s < length
    B_at = B + (b * B_stride_b + group * B_stride_g)
    C_at = C + (b * C_stride_b + group * C_stride_g)
    matrix = similarity(
        C_at, C_stride_l, C_stride_n, t, t_live, B_at, B_stride_l, B_stride_n, s, s_live, states, accumulator, NARROW,
        INTERPRETER, BLOCK_T, CHUNK, BLOCK_N,
    )  # fmt: skip
    total = tl.full([BLOCK_T, CHUNK], 0, accumulator)
    share = (per_group + splits - 1) // splits
    for number in range(split * share, tl.minimum(split * share + share, per_group)):
        h = group * per_group + number
        head_at = (b * heads + h) * length
        z_at = z
        if GATED:
            z_at = z + (b * z_stride_b + h * z_stride_h)
        met = tl.full([BLOCK_T, CHUNK], 0, accumulator)
        for first_p in range(0, channels, BLOCK_P):
            p = (tl.full([], 0, tl.int64) + first_p) + tl.arange(0, BLOCK_P)
            grad_y = gated_gradient(
                grad + (b * grad_stride_b + h * grad_stride_h), t * grad_stride_l, p * grad_stride_p, z_at,
                t * z_stride_l, p * z_stride_p, t_live, p < channels, accumulator, GATED,
            )  # fmt: skip
            x_at = x + (b * x_stride_b + h * x_stride_h)
            value = load_rows(x_at, s * x_stride_l, p * x_stride_p, s_live, p < channels)
            met = product(grad_y, tl.trans(value), met, NARROW, INTERPRETER)
        met *= between(sums, plane, head_at, numbers, b, t, t_live, s, s_live, length, SEQUENCES)
        met *= tl.load(steps + (head_at + s), mask=s_live, other=0)[None, :]
        total += met
        up_to = tl.where(t[:, None] > s[None, :], tl.cumsum(met * matrix, 1), 0)
        tl.store(crossing + ((head_at + s) * blocks + block), sum_of(up_to, 0), mask=s_live)
    part = (((split * batch + b) * chunks + c) * groups + group) * CHUNK
    pairs_at = pairs + (part + (t - start))[:, None] * CHUNK + (s - start)[None, :]
    tl.store(pairs_at, total)


@triton.jit
def projection_gradient_kernel(
    value, value_stride_b, value_stride_l, value_stride_h, value_stride_p,
    z, z_stride_b, z_stride_l, z_stride_h, z_stride_p,
    own, own_stride_b, own_stride_l, own_stride_g, own_stride_n,
    other, other_stride_b, other_stride_l, other_stride_g, other_stride_n,
    steps, sums, plane, numbers, states_at, pairs, out, at_bounds,
    length, heads, channels, states, per_group, chunks, splits,
    GATED: tl.constexpr, OF_B: tl.constexpr, SEQUENCES: tl.constexpr, NARROW: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    INTERPRETER: tl.constexpr,
):  # fmt: skip
    """dC of a block of steps and states, or OF_B dB, with `value` g or x and `states_at` h or H; `own` is C or B.

    `at_bounds` (batch, heads, length, blocks of states): the gradient of the log of the share left, own times what the
    state adds to its gradient.
    """
    accumulator: tl.constexpr = sums.dtype.element_ty
    n_blocks = (states + BLOCK_N - 1) // BLOCK_N
    groups = heads // per_group
    b, c, group, block = chunk_of(tl.program_id(0), CHUNK // BLOCK_T * n_blocks, groups, chunks)
    n_block = block % n_blocks
    n = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    n_live = n < states
    batch = plane // (heads * length)
    start = c * CHUNK
    end = tl.minimum(start + CHUNK, length) - 1
    row = block // n_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    t = start + row
    t_live = t < length
    own_at = own + (b * own_stride_b + group * own_stride_g)
    own_rows = load_rows(own_at, t * own_stride_l, n * own_stride_n, t_live, n_live).to(accumulator)
    other_at = other + (b * other_stride_b + group * other_stride_g)
    total = tl.full([BLOCK_T, BLOCK_N], 0, accumulator)
    for first in range(0, tl.minimum(CHUNK, length - start), BLOCK_S):
        column = (tl.full([], 0, tl.int64) + first) + tl.arange(0, BLOCK_S)
        s = start + column
        matrix = tl.full([BLOCK_T, BLOCK_S], 0, accumulator)
        for split in range(0, splits):
            part = (((split * batch + b) * chunks + c) * groups + group) * CHUNK * CHUNK
            if OF_B:
                matrix += tl.load(pairs + part + (row[:, None] + column[None, :] * CHUNK))
            else:
                matrix += tl.load(pairs + part + (row[:, None] * CHUNK + column[None, :]))
        rows = load_rows(other_at, s * other_stride_l, n * other_stride_n, s < length, n_live)
        total = product(matrix, rows, total, NARROW, INTERPRETER)
    for number in range(0, per_group):
        h = group * per_group + number
        head_at = (b * heads + h) * length
        value_at = value + (b * value_stride_b + h * value_stride_h)
        z_at = z
        if GATED:
            z_at = z + (b * z_stride_b + h * z_stride_h)
        state_at = states_at + ((b * chunks + c) * heads + h) * channels * states
        met = tl.full([BLOCK_T, BLOCK_N], 0, accumulator)
        for first_p in range(0, channels, BLOCK_P):
            p = (tl.full([], 0, tl.int64) + first_p) + tl.arange(0, BLOCK_P)
            rows = gated_gradient(
                value_at, t * value_stride_l, p * value_stride_p, z_at, t * z_stride_l, p * z_stride_p, t_live,
                p < channels, accumulator, GATED,
            )  # fmt: skip
            state = load_rows(state_at, p * states, n, p < channels, n_live)
            met = product(rows, state, met, NARROW, INTERPRETER)
        if OF_B:
            weight = until_end(sums, plane, head_at, numbers, b, end, t, t_live, length, SEQUENCES)
            weight = weight * tl.load(steps + (head_at + t), mask=t_live, other=0)
        else:
            weight = since_start(sums, plane, head_at, numbers, b, start, t, t_live, length, SEQUENCES)
        met *= weight[:, None]
        total += met
        tl.store(at_bounds + ((head_at + t) * n_blocks + n_block), sum_of(met * own_rows, 1), mask=t_live)
    out_at = out + ((b * length + t) * groups + group)[:, None] * states + n[None, :]
    tl.store(out_at, rounded(total, out.dtype.element_ty), mask=t_live[:, None] & n_live[None, :])


@device_function
def summed_parts(parts, at, tile, count):
    """Sum over the last axis of parts (..., count), in their order."""
    total = tl.load(parts + at * count, mask=tile, other=0)
    for number in range(1, count):
        total += tl.load(parts + (at * count + number), mask=tile, other=0)
    return total


@triton.jit
def step_gradient_kernel(
    dt, dt_stride_b, dt_stride_l, dt_stride_h, A, bias, steps, through_input, crossing, crossing_parts, since, until,
    bound_parts, shares, share_parts, ddt, dA, dbias, heads, length, chunks,
    SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, DT_MIN: tl.constexpr, DT_MAX: tl.constexpr, BLOCK_H: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """ddt, and each chunk's part of dA and dbias (batch, chunks, heads), from what the other kernels found.

    The log of decay j gets what crosses it: pairs from before it to it or later, `since` of step j and later, `until`
    of the steps before it, and what goes through the whole chunk.
    """
    accumulator: tl.constexpr = A.dtype.element_ty
    b, c, _, block = chunk_of(tl.program_id(0), (heads + BLOCK_H - 1) // BLOCK_H, 1, chunks)
    h = block * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = h < heads
    lane = tl.arange(0, CHUNK)
    t = c * CHUNK + lane
    tile = inside[:, None] & (t < length)[None, :]
    after_first = tile & (lane > 0)[None, :]
    at = (b * heads + h)[:, None] * length + t[None, :]
    through = tl.cumsum(summed_parts(until, at - 1, after_first, bound_parts), 1)
    through += tl.cumsum(summed_parts(since, at, tile, bound_parts), 1, reverse=True)
    through += summed_parts(crossing, at - 1, after_first, crossing_parts)
    through += summed_parts(shares, (b * chunks + c) * heads + h, inside, share_parts)[:, None]
    step = tl.load(steps + at, mask=tile, other=0)
    rate = tl.load(A + h, mask=inside, other=0)
    gradient = through * rate[:, None] + tl.load(through_input + at, mask=tile, other=0)
    raw = step_inputs(dt + b * dt_stride_b, dt_stride_l, dt_stride_h, bias, h, inside, t, tile, accumulator, BIAS)
    unclamped = raw
    if SOFTPLUS:
        unclamped = softplus(raw)
        gradient *= softplus_gradient(raw)
    gradient = tl.where(tile & (unclamped >= DT_MIN) & (unclamped <= DT_MAX), gradient, 0)
    ddt_at = ddt + ((b * length + t)[None, :] * heads + h[:, None])
    tl.store(ddt_at, rounded(gradient, ddt.dtype.element_ty), mask=tile)
    part = (b * chunks + c) * heads + h
    tl.store(dA + part, sum_of(through * step, 1), mask=inside)
    if BIAS:
        tl.store(dbias + part, sum_of(gradient, 1), mask=inside)


input_gradient = fixed(input_gradient_kernel, 8)
pairs = fixed(pairs_kernel, 8)
projection_gradient = fixed(projection_gradient_kernel, 8)
step_gradient = fixed(step_gradient_kernel, 4)
