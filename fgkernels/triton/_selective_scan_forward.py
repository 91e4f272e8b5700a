# SPDX-License-Identifier: Apache-2.0
"""Forward kernels of the selective scan, 1-D and along the directions of a table.

A program owns a block of channels in one chunk of 64 steps; all chunks run side by side. `summary_kernel` finds what a
chunk adds to the state, `passing_kernel` carries states from chunk to chunk, `output_kernel` scans within the chunk
from its first state. Scanning positions in parallel beats a loop over time with states in registers: batch x channels
alone (a few hundred to a few thousand) leave a GPU idle, and its steps would wait for one another and for loads.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import core  # noqa: F401 (the interpreter patches it only if it finds it here)

from ._scan_math import LOG2_E, scan, silu, softplus
from .device import device_function, fixed, rounded, sum_of


@device_function
def place_of(program, directions, groups, blocks, first_batch, chunks, first_chunk):
    """(batch entry, direction, group, channel block, chunk) of a program, all int64."""
    program = program.to(tl.int64)
    chunk = program % chunks + first_chunk
    program = program // chunks
    block = program % blocks
    program = program // blocks
    group = program % groups
    program = program // groups
    return program // directions + first_batch, program % directions, group, block, chunk


@device_function
def channel_rows(block, g, per_group, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """(channel, whether there is one, which of BLOCK_N states) of the rows of a block: all channels, state by state."""
    row = tl.arange(0, BLOCK_N * BLOCK_D)
    within = block * BLOCK_D + row % BLOCK_D
    return g * per_group + within, within < per_group, row // BLOCK_D


@device_function
def positions_of(table, k, step, live, length, TABLE: tl.constexpr):
    """Where on the map the steps are. A row of the table that is no permutation mustn't lead out of the tensors."""
    if TABLE:
        position = tl.load(table + k * length + step, mask=live, other=0).to(tl.int64)
        return tl.minimum(tl.maximum(position, 0), length - 1)
    else:
        return step


@device_function
def load_tile(base, row_at, step_at, tile, accumulator: tl.constexpr):
    return tl.load(base + (row_at[:, None] + step_at[None, :]), mask=tile, other=0).to(accumulator)


@device_function
def time_steps(base, row_at, step_at, offset, tile, SOFTPLUS: tl.constexpr):
    """(dt, delta + bias), dt 0 outside the tile: such a step leaves the state as it is."""
    raw = load_tile(base, row_at, step_at, tile, offset.dtype) + offset[:, None]
    if SOFTPLUS:
        return tl.where(tile, softplus(raw), 0.0), raw
    else:
        return tl.where(tile, raw, 0.0), raw


@device_function
def channel_values(values, at, inside, accumulator: tl.constexpr, GIVEN: tl.constexpr):
    """D or delta_bias of the rows; 0 where there is none."""
    if GIVEN:
        return tl.load(values + at, mask=inside, other=0)
    else:
        return (at * 0).to(accumulator)


@device_function
def projection_base(b_stride, k_stride, g_stride, b, k, g, channel, states, CONSTANT: tl.constexpr):
    """Where B or C of a program starts: of its group, or of each row."""
    if CONSTANT:
        return k * k_stride + channel * states
    else:
        return b * b_stride + k * k_stride + g * g_stride


@device_function
def projected(
    values, at, n_stride, number, n, row_live, at_l, live, accumulator: tl.constexpr, CONSTANT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """B or C of the rows' states n, of which `number` is the first, to meet (rows, steps)."""
    if CONSTANT:
        return tl.load(values + (at + n), mask=row_live, other=0)[:, None]
    elif BLOCK_N == 1:
        return tl.load(values + (at + number * n_stride) + at_l, mask=live, other=0).to(accumulator)[None, :]
    else:
        return load_tile(values + at, n * n_stride, at_l, row_live[:, None] & live[None, :], accumulator)


@device_function
def over_states(values, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr):
    """Rows of states and channels -> rows of channels."""
    if BLOCK_N == 1:
        return values
    else:
        return sum_of(tl.reshape(values, [BLOCK_N, BLOCK_D, BLOCK_L]), 0)


@triton.jit
def summary_kernel(
    delta, delta_stride_b, delta_stride_k, delta_stride_d, delta_stride_l,
    sequence, sequence_stride_b, sequence_stride_k, sequence_stride_d, sequence_stride_l,
    z, z_stride_b, z_stride_d, z_stride_l,
    projection, projection_stride_b, projection_stride_k, projection_stride_g, projection_stride_n,
    projection_stride_l,
    A, A_stride_k, bias, parameter_stride_k, table, totals, summaries, ends,
    directions, groups, block_count, per_group, length, states, chunks,
    SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, CONSTANT: tl.constexpr, TABLE: tl.constexpr,
    ORDERED: tl.constexpr, REVERSE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_L: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """What each chunk adds to the state at its end: sum over t of exp(A sum of the later dt) dt u B.

    REVERSE: what it adds to the gradient of the state at its start, sum over t of exp(A sum of dt up to t) g C, with
    g = grad_out silu(z), u's place taken by grad_out and B's by C. A summary goes to the slot of the chunk that it
    enters, or to `ends` where there is none; `totals` takes each chunk's sum of dt.
    """
    accumulator: tl.constexpr = A.dtype.element_ty
    b, k, g, block, c = place_of(tl.program_id(0), directions, groups, block_count, 0, chunks, 0)
    channel, inside, lane_n = channel_rows(block, g, per_group, BLOCK_N, BLOCK_D)
    channels = groups * per_group
    lane = tl.arange(0, BLOCK_L)
    step = c * CHUNK + lane
    live = step < length
    tile = inside[:, None] & live[None, :]
    position = positions_of(table, k, step, live, length, TABLE)
    if ORDERED:
        source = step
    else:
        source = position

    delta_at = delta + (b * delta_stride_b + k * delta_stride_k)
    delta_rows = channel * delta_stride_d
    offset = channel_values(bias, k * parameter_stride_k + channel, inside, accumulator, BIAS)
    dt, _ = time_steps(delta_at, delta_rows, source * delta_stride_l, offset, tile, SOFTPLUS)
    sequence_at = sequence + (b * sequence_stride_b + k * sequence_stride_k)
    if REVERSE:
        exponent = tl.cumsum(dt, 1)
        value = load_tile(sequence_at, channel * sequence_stride_d, position * sequence_stride_l, tile, accumulator)
        if GATED:
            z_at = z + b * z_stride_b
            value = value * silu(load_tile(z_at, channel * z_stride_d, position * z_stride_l, tile, accumulator))
    else:
        # The sum of the later dt, from the steps themselves: a difference of sums would cancel.
        later = (lane < BLOCK_L - 1) & (step + 1 < length)
        if ORDERED:
            next_source = step + 1
        else:
            next_source = positions_of(table, k, step + 1, later, length, TABLE)
        later_tile = inside[:, None] & later[None, :]
        next_dt, _ = time_steps(delta_at, delta_rows, next_source * delta_stride_l, offset, later_tile, SOFTPLUS)
        exponent = tl.cumsum(next_dt, 1, reverse=True)
        value = dt * load_tile(sequence_at, channel * sequence_stride_d, source * sequence_stride_l, tile, accumulator)

    row = (b * directions + k) * channels + channel
    tl.store(totals + (row * chunks + c), sum_of(dt, 1), mask=inside & (lane_n == 0))
    if REVERSE:
        entered = c - 1
        leaves = c == 0
    else:
        entered = c + 1
        leaves = c == chunks - 1
    projection_at = projection_base(
        projection_stride_b, projection_stride_k, projection_stride_g, b, k, g, channel, states, CONSTANT
    )
    A_at = A + (k * A_stride_k + channel * states)
    for first in tl.range(0, states, BLOCK_N, loop_unroll_factor=UNROLL):
        number = tl.full([], 0, tl.int64) + first
        n = number + lane_n
        row_live = inside & (n < states)
        rate = tl.load(A_at + n, mask=row_live, other=0) * LOG2_E
        weight = projected(
            projection, projection_at, projection_stride_n, number, n, row_live, source * projection_stride_l, live,
            accumulator, CONSTANT, BLOCK_N,
        )  # fmt: skip
        added = sum_of(tl.exp2(exponent * rate[:, None]) * (value * weight), 1)
        tl.store(summaries + ((row * chunks + entered) * states + n), added, mask=row_live & (leaves == 0))
        tl.store(ends + (row * states + n), added, mask=row_live & leaves)


@triton.jit
def passing_kernel(
    states_at, totals, A, A_stride_k, first, ends, directions, channels, states, rows, chunks,
    FIRST: tl.constexpr, REVERSE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    INTERPRETER: tl.constexpr,
):  # fmt: skip
    """Turns summaries into the states at the start of every chunk, in place, from `first` (zeros without FIRST) on.

    REVERSE: into the gradients of the states at the end of every chunk, from the last chunk on. `ends` holds the
    summary of the last chunk of the way and takes the state after it.
    """
    element = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = element < rows * states
    row = element // states
    n = element % states
    k = row // channels % directions
    rate = tl.load(A + k * A_stride_k + row % channels * states + n, mask=inside, other=0) * LOG2_E
    if FIRST:
        state = tl.load(first + element, mask=inside, other=0)
    else:
        state = rate * 0
    for start in range(0, chunks, BLOCK_C):
        turn = (tl.full([], 0, tl.int64) + start) + tl.arange(0, BLOCK_C)
        if REVERSE:
            slot = chunks - 1 - turn
            left = slot + 1
        else:
            slot = turn
            left = slot - 1
        live = inside[:, None] & (turn < chunks)[None, :]
        arrived = live & (turn > 0)[None, :]
        at = states_at + ((row * chunks)[:, None] + slot[None, :]) * states + n[:, None]
        total = tl.load(totals + ((row * chunks)[:, None] + left[None, :]), mask=arrived, other=0)
        added = tl.load(at, mask=arrived, other=0)
        decay, value = scan(tl.exp2(total * rate[:, None]), added, False, INTERPRETER)
        value += decay * state[:, None]
        tl.store(at, value, mask=live)
        state = sum_of(tl.where((tl.arange(0, BLOCK_C) == BLOCK_C - 1)[None, :], value, 0), 1)
    if REVERSE:
        last = row * chunks
    else:
        last = row * chunks + (chunks - 1)
    total = tl.load(totals + last, mask=inside, other=0)
    state = state * tl.exp2(total * rate) + tl.load(ends + element, mask=inside, other=0)
    tl.store(ends + element, state, mask=inside)


@triton.jit
def output_kernel(
    u, u_stride_b, u_stride_k, u_stride_d, u_stride_l,
    delta, delta_stride_b, delta_stride_k, delta_stride_d, delta_stride_l,
    z, z_stride_b, z_stride_d, z_stride_l,
    B, B_stride_b, B_stride_k, B_stride_g, B_stride_n, B_stride_l,
    C, C_stride_b, C_stride_k, C_stride_g, C_stride_n, C_stride_l,
    A, A_stride_k, D, bias, parameter_stride_k, table, checkpoints,
    out, out_stride_b, out_stride_k, out_stride_d, out_stride_l,
    directions, groups, block_count, per_group, length, states, chunks,
    SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, SKIP: tl.constexpr, GATED: tl.constexpr,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr, TABLE: tl.constexpr, ORDERED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, BLOCK_L: tl.constexpr,
    UNROLL: tl.constexpr, INTERPRETER: tl.constexpr,
):  # fmt: skip
    """y = sum over n of C h, with D u (SKIP) and the gate, at each direction's place in `out`."""
    accumulator: tl.constexpr = A.dtype.element_ty
    b, k, g, block, c = place_of(tl.program_id(0), directions, groups, block_count, 0, chunks, 0)
    channel, inside, lane_n = channel_rows(block, g, per_group, BLOCK_N, BLOCK_D)
    channels = groups * per_group
    step = c * CHUNK + tl.arange(0, BLOCK_L)
    live = step < length
    tile = inside[:, None] & live[None, :]
    position = positions_of(table, k, step, live, length, TABLE)
    if ORDERED:
        source = step
    else:
        source = position

    offset = channel_values(bias, k * parameter_stride_k + channel, inside, accumulator, BIAS)
    delta_at = delta + (b * delta_stride_b + k * delta_stride_k)
    dt, _ = time_steps(delta_at, channel * delta_stride_d, source * delta_stride_l, offset, tile, SOFTPLUS)
    u_at = u + (b * u_stride_b + k * u_stride_k)
    entering = dt * load_tile(u_at, channel * u_stride_d, source * u_stride_l, tile, accumulator)

    row = (b * directions + k) * channels + channel
    checkpoint_at = checkpoints + (row * chunks + c) * states
    A_at = A + (k * A_stride_k + channel * states)
    B_at = projection_base(B_stride_b, B_stride_k, B_stride_g, b, k, g, channel, states, B_CONSTANT)
    C_at = projection_base(C_stride_b, C_stride_k, C_stride_g, b, k, g, channel, states, C_CONSTANT)
    y = entering * 0
    for first in tl.range(0, states, BLOCK_N, loop_unroll_factor=UNROLL):
        number = tl.full([], 0, tl.int64) + first
        n = number + lane_n
        row_live = inside & (n < states)
        rate = tl.load(A_at + n, mask=row_live, other=0) * LOG2_E
        before = tl.load(checkpoint_at + n, mask=row_live, other=0)
        B_n = projected(
            B, B_at, B_stride_n, number, n, row_live, source * B_stride_l, live, accumulator, B_CONSTANT, BLOCK_N
        )
        C_n = projected(
            C, C_at, C_stride_n, number, n, row_live, source * C_stride_l, live, accumulator, C_CONSTANT, BLOCK_N
        )
        decay, state = scan(tl.exp2(dt * rate[:, None]), entering * B_n, False, INTERPRETER)
        y += (state + decay * before[:, None]) * C_n

    y = over_states(y, BLOCK_N, BLOCK_D, BLOCK_L)
    channel, inside, _ = channel_rows(block, g, per_group, 1, BLOCK_D)
    tile = inside[:, None] & live[None, :]
    if SKIP:
        skip = tl.load(D + (k * parameter_stride_k + channel), mask=inside, other=0)
        y += load_tile(u_at, channel * u_stride_d, source * u_stride_l, tile, accumulator) * skip[:, None]
    if GATED:
        y = y * silu(load_tile(z + b * z_stride_b, channel * z_stride_d, position * z_stride_l, tile, accumulator))
    out_at = out + (b * out_stride_b + k * out_stride_k)
    out_at += (channel * out_stride_d)[:, None] + (position * out_stride_l)[None, :]
    tl.store(out_at, rounded(y, out.dtype.element_ty), mask=tile)


summary = fixed(summary_kernel, 2)
passing = fixed(passing_kernel, 4)
output = fixed(output_kernel, 2)
