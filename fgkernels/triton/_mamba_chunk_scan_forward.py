# SPDX-License-Identifier: Apache-2.0
"""Forward kernels of Mamba-2's scan in its chunked matrix form (Dao and Gu 2024, section 6).

Within a chunk of 128 steps y = (C B^T o decays o dt) x, products of matrices; between chunks states are passed on.
Decays are exp2 of differences of running sums of dt A, which are kept in two parts: differences don't cancel. Sums of
products have float32's precision (float64's) for 16-bit sequences too: what is computed in float32 enters the matrix
units in bfloat16 pieces.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import core  # noqa: F401 (the interpreter patches it only if it finds it here)

from ._scan_math import LOG2_E, running_sums, silu, silu_gradient, softplus
from .device import device_function, fixed, narrow_operand, rounded, sum_of


@device_function
def product(a, b, total, NARROW: tl.constexpr, INTERPRETER: tl.constexpr):
    """total + a (M, K) times b (K, N). NARROW: on the matrix units in bfloat16 pieces, but for the last 2^-24."""
    if INTERPRETER:
        return tl.dot(a.to(total.dtype), b.to(total.dtype), total, input_precision="ieee", out_dtype=total.dtype)
    elif total.dtype == tl.float64:
        # Triton 3.7 and 3.8 cannot bring a computed float64 operand to the matrix units.
        return total + sum_of(a.to(tl.float64)[:, :, None] * b.to(tl.float64)[None, :, :], 1)
    elif not NARROW:
        return tl.dot(a, b, total, input_precision="ieee")
    elif a.dtype == b.dtype and a.dtype != tl.float32:
        return tl.dot(narrow_operand(a), narrow_operand(b), total)
    else:
        a_rest = a.to(tl.float32)
        for i in tl.static_range(1 if a.dtype == tl.bfloat16 else 2 if a.dtype == tl.float16 else 3):
            a_piece = a_rest.to(tl.bfloat16)
            a_rest -= a_piece.to(tl.float32)
            b_rest = b.to(tl.float32)
            for j in tl.static_range(1 if b.dtype == tl.bfloat16 else 2 if b.dtype == tl.float16 else 3):
                b_piece = b_rest.to(tl.bfloat16)
                b_rest -= b_piece.to(tl.float32)
                if i + j < 3:
                    total = tl.dot(narrow_operand(a_piece), narrow_operand(b_piece), total)
        return total


@device_function
def chunk_of(program, blocks, heads, chunks):
    """(batch entry, chunk, head, block) of a program, all int64."""
    program = program.to(tl.int64)
    block = program % blocks
    program = program // blocks
    head = program % heads
    program = program // heads
    return program // chunks, program % chunks, head, block


@device_function
def load_rows(base, row_at, column_at, row_live, column_live):
    return tl.load(
        base + (row_at[:, None] + column_at[None, :]), mask=row_live[:, None] & column_live[None, :], other=0
    )


@device_function
def load_sums(sums, plane, at, live):
    """Both parts of the running sums."""
    return tl.load(sums + at, mask=live, other=0), tl.load(sums + (plane + at), mask=live, other=0)


@device_function
def sequence_before(numbers, b, start, length, SEQUENCES: tl.constexpr):
    """Which sequence the state that enters a chunk belongs to."""
    if SEQUENCES:
        place = tl.maximum(start - 1, 0)
        return tl.where(start == 0, 0, tl.load(numbers + (b * length + place)))
    else:
        return 0


@device_function
def since_start(sums, plane, head_at, numbers, b, start, t, live, length, SEQUENCES: tl.constexpr):
    """The share that is left at steps t of the state that enters their chunk."""
    high, low = load_sums(sums, plane, head_at + t, live)
    weight = tl.where(live, tl.exp2(high + low), 0.0)
    if SEQUENCES:
        own = tl.load(numbers + (b * length + t), mask=live, other=-1)
        weight = tl.where(own == sequence_before(numbers, b, start, length, SEQUENCES), weight, 0.0)
    return weight


@device_function
def until_end(sums, plane, head_at, numbers, b, end, s, live, length, SEQUENCES: tl.constexpr):
    """The share of steps s that is left after step `end`, the last one of their chunk."""
    high, low = load_sums(sums, plane, head_at + s, live)
    end_high, end_low = load_sums(sums, plane, head_at + end, end >= 0)
    weight = tl.where(live, tl.exp2((end_high - high) + (end_low - low)), 0.0)
    if SEQUENCES:
        own = tl.load(numbers + (b * length + s), mask=live, other=-1)
        weight = tl.where(own == tl.load(numbers + (b * length + end)), weight, 0.0)
    return weight


@device_function
def through_chunk(sums, plane, head_at, numbers, b, start, end, length, SEQUENCES: tl.constexpr):
    """The share that leaves a chunk of the state that enters it."""
    high, low = load_sums(sums, plane, head_at + end, end >= 0)
    weight = tl.exp2(high + low)
    if SEQUENCES:
        same = tl.load(numbers + (b * length + end)) == sequence_before(numbers, b, start, length, SEQUENCES)
        weight = tl.where(same, weight, 0.0)
    return weight


@device_function
def between(sums, plane, head_at, numbers, b, t, t_live, s, s_live, length, SEQUENCES: tl.constexpr):
    """(steps t, steps s): the share of step s that is left at step t; 0 where s is later than t."""
    t_high, t_low = load_sums(sums, plane, head_at + t, t_live)
    s_high, s_low = load_sums(sums, plane, head_at + s, s_live)
    seen = (s[None, :] <= t[:, None]) & t_live[:, None] & s_live[None, :]
    if SEQUENCES:
        t_own = tl.load(numbers + (b * length + t), mask=t_live, other=-1)
        s_own = tl.load(numbers + (b * length + s), mask=s_live, other=-1)
        seen = seen & (t_own[:, None] == s_own[None, :])
    difference = (t_high[:, None] - s_high[None, :]) + (t_low[:, None] - s_low[None, :])
    return tl.exp2(tl.where(seen, difference, float("-inf")))


@device_function
def gated_gradient(
    grad, row_at, column_at, z, z_row_at, z_column_at, row_live, column_live, accumulator: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """The gradient of y: of out, times silu(z)."""
    value = load_rows(grad, row_at, column_at, row_live, column_live)
    if GATED:
        gate = load_rows(z, z_row_at, z_column_at, row_live, column_live).to(accumulator)
        return value.to(accumulator) * silu(gate)
    else:
        return value


@device_function
def similarity(
    left, left_l, left_n, left_rows, left_live, right, right_l, right_n, right_rows, right_live, states,
    accumulator: tl.constexpr, NARROW: tl.constexpr, INTERPRETER: tl.constexpr, BLOCK_LEFT: tl.constexpr,
    BLOCK_RIGHT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Products over the states of rows of C with rows of B, or of B with C."""
    total = tl.full([BLOCK_LEFT, BLOCK_RIGHT], 0, accumulator)
    for first in range(0, states, BLOCK_N):
        n = (tl.full([], 0, tl.int64) + first) + tl.arange(0, BLOCK_N)
        a = load_rows(left, left_rows * left_l, n * left_n, left_live, n < states)
        b = load_rows(right, right_rows * right_l, n * right_n, right_live, n < states)
        total = product(a, tl.trans(b), total, NARROW, INTERPRETER)
    return total


@device_function
def step_inputs(dt, stride_l, stride_h, bias, h, inside, t, tile, accumulator: tl.constexpr, BIAS: tl.constexpr):
    """dt with its bias, (heads, steps)."""
    value = tl.load(dt + ((h * stride_h)[:, None] + (t * stride_l)[None, :]), mask=tile, other=0).to(accumulator)
    if BIAS:
        value += tl.load(bias + h, mask=inside, other=0)[:, None]
    return value


@triton.jit
def steps_kernel(
    dt, dt_stride_b, dt_stride_l, dt_stride_h, A, bias, steps, sums, batch, heads, length, chunks,
    SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, DT_MIN: tl.constexpr, DT_MAX: tl.constexpr, BLOCK_H: tl.constexpr,
    CHUNK: tl.constexpr, INTERPRETER: tl.constexpr,
):  # fmt: skip
    """dt as the scan uses it, (batch, heads, length); (2, batch, heads, length): its sums within a chunk, times A."""
    accumulator: tl.constexpr = A.dtype.element_ty
    b, c, _, block = chunk_of(tl.program_id(0), (heads + BLOCK_H - 1) // BLOCK_H, 1, chunks)
    h = block * BLOCK_H + tl.arange(0, BLOCK_H)
    t = c * CHUNK + tl.arange(0, CHUNK)
    tile = (h < heads)[:, None] & (t < length)[None, :]
    raw = step_inputs(dt + b * dt_stride_b, dt_stride_l, dt_stride_h, bias, h, h < heads, t, tile, accumulator, BIAS)
    value = raw
    if SOFTPLUS:
        value = softplus(raw)
    value = tl.where(value < DT_MIN, DT_MIN, value)
    value = tl.where(value > DT_MAX, DT_MAX, value)
    value = tl.where(tile, value, 0.0)
    at = (b * heads + h)[:, None] * length + t[None, :]
    tl.store(steps + at, value, mask=tile)
    rate = tl.load(A + h, mask=h < heads, other=0) * LOG2_E
    high, low = running_sums(value * rate[:, None], INTERPRETER)
    tl.store(sums + at, high, mask=tile)
    tl.store(sums + (batch * heads * length + at), low, mask=tile)


@triton.jit
def summary_kernel(
    x, x_stride_b, x_stride_l, x_stride_h, x_stride_p, z, z_stride_b, z_stride_l, z_stride_h, z_stride_p,
    projection, projection_stride_b, projection_stride_l, projection_stride_g, projection_stride_n,
    steps, sums, plane, numbers, summaries, ends, length, heads, channels, states, per_group, chunks,
    GATED: tl.constexpr, REVERSE: tl.constexpr, SEQUENCES: tl.constexpr, NARROW: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, INTERPRETER: tl.constexpr,
):  # fmt: skip
    """What each chunk adds to the state at its end: sum over its steps of (share left) dt x B^T.

    REVERSE: what it adds to the gradient of the state that enters it, sum of (share left) g C^T, x's place taken by
    grad_out. A summary goes to the slot of the chunk that it enters, or to `ends` where there is none.
    """
    accumulator: tl.constexpr = sums.dtype.element_ty
    n_blocks = (states + BLOCK_N - 1) // BLOCK_N
    b, c, h, block = chunk_of(tl.program_id(0), (channels + BLOCK_P - 1) // BLOCK_P * n_blocks, heads, chunks)
    p = block // n_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    n = block % n_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    head_at = (b * heads + h) * length
    start = c * CHUNK
    end = tl.minimum(start + CHUNK, length) - 1
    x_at = x + (b * x_stride_b + h * x_stride_h)
    z_at = z
    if GATED:
        z_at = z + (b * z_stride_b + h * z_stride_h)
    projection_at = projection + (b * projection_stride_b + h // per_group * projection_stride_g)
    total = tl.full([BLOCK_P, BLOCK_N], 0, accumulator)
    for first in range(0, CHUNK, BLOCK_S):
        s = (start + first) + tl.arange(0, BLOCK_S)
        live = s < length
        value = gated_gradient(
            x_at, s * x_stride_l, p * x_stride_p, z_at, s * z_stride_l, p * z_stride_p, live, p < channels,
            accumulator, GATED,
        )  # fmt: skip
        if REVERSE:
            weight = since_start(sums, plane, head_at, numbers, b, start, s, live, length, SEQUENCES)
        else:
            weight = until_end(sums, plane, head_at, numbers, b, end, s, live, length, SEQUENCES)
            weight = weight * tl.load(steps + (head_at + s), mask=live, other=0)
        rows = load_rows(projection_at, s * projection_stride_l, n * projection_stride_n, live, n < states)
        total = product(tl.trans(value), weight[:, None] * rows.to(accumulator), total, NARROW, INTERPRETER)
    if REVERSE:
        entered = c - 1
        leaves = c == 0
    else:
        entered = c + 1
        leaves = c == chunks - 1
    tile = (p < channels)[:, None] & (n < states)[None, :]
    element = p[:, None] * states + n[None, :]
    size = channels * states
    tl.store(summaries + (((b * chunks + entered) * heads + h) * size + element), total, mask=tile & (leaves == 0))
    tl.store(ends + ((b * heads + h) * size + element), total, mask=tile & leaves)


@triton.jit
def passing_kernel(
    states_at, sums, plane, numbers, first, ends, checkpoints, shares, size, heads, length, chunks,
    FIRST: tl.constexpr, REVERSE: tl.constexpr, SEQUENCES: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turns summaries into the states that enter every chunk, in place, from `first` (zeros without FIRST) on.

    REVERSE: into the gradients of the states that leave it, from the last chunk on; `shares` (batch, chunks, heads,
    blocks) takes each block's part of the gradient of the log of the share that gets through the chunk. `ends` holds
    the summary of the last chunk of the way and takes the state after it.
    """
    blocks = (size + BLOCK - 1) // BLOCK
    b, _, h, block = chunk_of(tl.program_id(0), blocks, heads, 1)
    element = block * BLOCK + tl.arange(0, BLOCK)
    inside = element < size
    head_at = (b * heads + h) * length
    own = (b * heads + h) * size + element
    if FIRST:
        state = tl.load(first + own, mask=inside, other=0)
    else:
        state = (element * 0).to(sums.dtype.element_ty)
    share = tl.full([], 0, sums.dtype.element_ty)
    for turn in range(0, chunks):
        if REVERSE:
            c = chunks - 1 - (tl.full([], 0, tl.int64) + turn)
        else:
            c = tl.full([], 0, tl.int64) + turn
        at = ((b * chunks + c) * heads + h) * size + element
        arrived = inside & (turn > 0)
        state = tl.where(arrived, state * share + tl.load(states_at + at, mask=arrived, other=0), state)
        tl.store(states_at + at, state, mask=inside)
        end = tl.minimum((c + 1) * CHUNK, length) - 1
        share = through_chunk(sums, plane, head_at, numbers, b, c * CHUNK, end, length, SEQUENCES)
        if REVERSE:
            entering = tl.load(checkpoints + at, mask=inside, other=0)
            tl.store(shares + (((b * chunks + c) * heads + h) * blocks + block), sum_of(entering * state, 0) * share)
    tl.store(ends + own, state * share + tl.load(ends + own, mask=inside, other=0), mask=inside)


@triton.jit
def output_kernel(
    x, x_stride_b, x_stride_l, x_stride_h, x_stride_p, z, z_stride_b, z_stride_l, z_stride_h, z_stride_p,
    grad, grad_stride_b, grad_stride_l, grad_stride_h, grad_stride_p,
    B, B_stride_b, B_stride_l, B_stride_g, B_stride_n, C, C_stride_b, C_stride_l, C_stride_g, C_stride_n,
    D, D_stride_h, D_stride_p, steps, sums, plane, numbers, checkpoints, out,
    length, heads, channels, states, per_group, chunks,
    SKIP: tl.constexpr, GATED: tl.constexpr, GATE_GRADIENT: tl.constexpr, SEQUENCES: tl.constexpr,
    NARROW: tl.constexpr, CHUNK: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr, INTERPRETER: tl.constexpr,
):  # fmt: skip
    """A block of steps t: y = (share left) C h + sum over s of (C B^T o decays o dt) x, with D x and the gate.

    GATE_GRADIENT: `out` takes the gradient of z, grad y silu'(z).
    """
    accumulator: tl.constexpr = sums.dtype.element_ty
    p_blocks = (channels + BLOCK_P - 1) // BLOCK_P
    b, c, h, block = chunk_of(tl.program_id(0), CHUNK // BLOCK_T * p_blocks, heads, chunks)
    p = block % p_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    start = c * CHUNK
    first_t = start + block // p_blocks * BLOCK_T
    t = first_t + tl.arange(0, BLOCK_T)
    t_live = t < length
    p_live = p < channels
    head_at = (b * heads + h) * length
    group = h // per_group
    x_at = x + (b * x_stride_b + h * x_stride_h)
    B_at = B + (b * B_stride_b + group * B_stride_g)
    C_at = C + (b * C_stride_b + group * C_stride_g)
    entering_at = checkpoints + ((b * chunks + c) * heads + h) * channels * states
    y = tl.full([BLOCK_T, BLOCK_P], 0, accumulator)
    for first in range(0, states, BLOCK_N):
        n = (tl.full([], 0, tl.int64) + first) + tl.arange(0, BLOCK_N)
        rows = load_rows(C_at, t * C_stride_l, n * C_stride_n, t_live, n < states)
        entering = load_rows(entering_at, p * states, n, p_live, n < states)
        y = product(rows, tl.trans(entering), y, NARROW, INTERPRETER)
    y *= since_start(sums, plane, head_at, numbers, b, start, t, t_live, length, SEQUENCES)[:, None]
    for first_s in range(0, tl.minimum(first_t - start + BLOCK_T, length - start), BLOCK_S):
        s = (start + first_s) + tl.arange(0, BLOCK_S)
        s_live = s < length
        matrix = similarity(
            C_at, C_stride_l, C_stride_n, t, t_live, B_at, B_stride_l, B_stride_n, s, s_live, states, accumulator,
            NARROW, INTERPRETER, BLOCK_T, BLOCK_S, BLOCK_N,
        )  # fmt: skip
        matrix *= between(sums, plane, head_at, numbers, b, t, t_live, s, s_live, length, SEQUENCES)
        matrix *= tl.load(steps + (head_at + s), mask=s_live, other=0)[None, :]
        value = load_rows(x_at, s * x_stride_l, p * x_stride_p, s_live, p_live)
        y = product(matrix, value, y, NARROW, INTERPRETER)
    if SKIP:
        skip = tl.load(D + (h * D_stride_h + p * D_stride_p), mask=p_live, other=0)
        y += load_rows(x_at, t * x_stride_l, p * x_stride_p, t_live, p_live).to(accumulator) * skip[None, :]
    if GATED:
        z_at = z + (b * z_stride_b + h * z_stride_h)
        gate = load_rows(z_at, t * z_stride_l, p * z_stride_p, t_live, p_live).to(accumulator)
        if GATE_GRADIENT:
            grad_at = grad + (b * grad_stride_b + h * grad_stride_h)
            incoming = load_rows(grad_at, t * grad_stride_l, p * grad_stride_p, t_live, p_live)
            y = y * incoming.to(accumulator) * silu_gradient(gate)
        else:
            y = y * silu(gate)
    out_at = out + ((b * length + t) * heads + h)[:, None] * channels + p[None, :]
    tl.store(out_at, rounded(y, out.dtype.element_ty), mask=t_live[:, None] & p_live[None, :])


steps_of = fixed(steps_kernel, 4)
summary = fixed(summary_kernel, 8)
passing = fixed(passing_kernel, 4)
output = fixed(output_kernel, 8)
