# SPDX-License-Identifier: Apache-2.0
"""Backward kernel of the selective scan: all gradients of a block of channels in one chunk of 64 steps.

States are scanned again from the chunk's checkpoint, gradients of states from the chunk's end, where `passing_kernel`
left what the later chunks have to say. With w[t] = exp(dt[t] A) h[t - 1], h[t] = w[t] + dt[t] B[t] u[t] and G the
gradient of h:  du += dt B G,  ddt += G (A w + B u),  dA += G dt w,  dB += G dt u,  dC += g h.
What several programs add to is written per program and summed afterwards, in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import core  # noqa: F401 (the interpreter patches it only if it finds it here)

from ._scan_math import LOG2_E, scan, silu, silu_gradient, softplus_gradient
from ._selective_scan_forward import (
    channel_rows,
    channel_values,
    load_tile,
    over_states,
    place_of,
    positions_of,
    projected,
    projection_base,
    time_steps,
)
from .device import device_function, fixed, rounded, sum_of


@device_function
def store_projection_gradient(
    values, at, n_stride, number, n, row_live, at_l, live, product, CONSTANT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, states,
):  # fmt: skip
    """A program's part of dB or dC: summed over its channels, or over its steps if constant."""
    if CONSTANT:
        tl.store(values + (at + n), sum_of(product, 1), mask=row_live)
    elif BLOCK_N == 1:
        tl.store(values + (at + number * n_stride) + at_l, sum_of(product, 0), mask=live)
    else:
        own = number + tl.arange(0, BLOCK_N)
        total = sum_of(tl.reshape(product, [BLOCK_N, BLOCK_D, BLOCK_L]), 1)
        tl.store(
            values + at + ((own * n_stride)[:, None] + at_l[None, :]), total,
            mask=(own < states)[:, None] & live[None, :],
        )  # fmt: skip


@triton.jit
def gradient_kernel(
    grad_out, grad_out_stride_b, grad_out_stride_d, grad_out_stride_l,
    u, u_stride_b, u_stride_k, u_stride_d, u_stride_l,
    delta, delta_stride_b, delta_stride_k, delta_stride_d, delta_stride_l,
    z, z_stride_b, z_stride_d, z_stride_l,
    B, B_stride_b, B_stride_k, B_stride_g, B_stride_n, B_stride_l,
    C, C_stride_b, C_stride_k, C_stride_g, C_stride_n, C_stride_l,
    A, A_stride_k, D, bias, parameter_stride_k, table, checkpoints, carried,
    du, du_stride_b, du_stride_k, du_stride_d, du_stride_l,
    ddelta, ddelta_stride_b, ddelta_stride_k, ddelta_stride_d, ddelta_stride_l,
    dz, dz_stride_b, dz_stride_d, dz_stride_l,
    dA, dD, dbias, dB, dC, part_length, part_start,
    directions, groups, block_count, per_group, length, states, chunks, first_batch, batches, first_chunk, part_chunks,
    SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, SKIP: tl.constexpr, GATED: tl.constexpr, GATE_GRADIENT: tl.constexpr,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr, TABLE: tl.constexpr, ORDERED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, BLOCK_L: tl.constexpr,
    INTERPRETER: tl.constexpr,
):  # fmt: skip
    """Of batch entries from first_batch, in part_chunks chunks from first_chunk.

    Parts: dA, and constant dB and dC, (batches, part_chunks, directions, channels, states); dD and dbias the same
    without states; dB and dC (blocks, batches, directions, groups, states, part_length), positions from part_start on.
    """
    accumulator: tl.constexpr = A.dtype.element_ty
    b, k, g, block, c = place_of(
        tl.program_id(0), directions, groups, block_count, first_batch, part_chunks, first_chunk
    )
    channel, inside, lane_n = channel_rows(block, g, per_group, BLOCK_N, BLOCK_D)
    channels = groups * per_group
    lane = tl.arange(0, BLOCK_L)
    step = c * CHUNK + lane
    live = step < length
    later = (lane < BLOCK_L - 1) & (step + 1 < length)
    earlier = (lane > 0) & live
    position = positions_of(table, k, step, live, length, TABLE)
    if ORDERED or not TABLE:
        source = step
        next_source = step + 1
        last_source = step - 1
    else:
        source = position
        next_source = positions_of(table, k, step + 1, later, length, TABLE)
        last_source = positions_of(table, k, step - 1, earlier, length, TABLE)

    tile = inside[:, None] & live[None, :]
    later_tile = inside[:, None] & later[None, :]
    earlier_tile = inside[:, None] & earlier[None, :]
    offset = channel_values(bias, k * parameter_stride_k + channel, inside, accumulator, BIAS)
    delta_at = delta + (b * delta_stride_b + k * delta_stride_k)
    delta_rows = channel * delta_stride_d
    dt, _ = time_steps(delta_at, delta_rows, source * delta_stride_l, offset, tile, SOFTPLUS)
    next_dt, _ = time_steps(delta_at, delta_rows, next_source * delta_stride_l, offset, later_tile, SOFTPLUS)
    last_dt, _ = time_steps(delta_at, delta_rows, last_source * delta_stride_l, offset, earlier_tile, SOFTPLUS)
    u_at = u + (b * u_stride_b + k * u_stride_k)
    u_rows = channel * u_stride_d
    entering = dt * load_tile(u_at, u_rows, source * u_stride_l, tile, accumulator)
    entered = last_dt * load_tile(u_at, u_rows, last_source * u_stride_l, earlier_tile, accumulator)
    grad_at = grad_out + b * grad_out_stride_b
    grad_y = load_tile(grad_at, channel * grad_out_stride_d, position * grad_out_stride_l, tile, accumulator)
    z_at = z
    if GATED:
        z_at = z + b * z_stride_b
        grad_y = grad_y * silu(load_tile(z_at, channel * z_stride_d, position * z_stride_l, tile, accumulator))

    row = (b * directions + k) * channels + channel
    chunk_at = (row * chunks + c) * states
    A_at = A + (k * A_stride_k + channel * states)
    part_b = b - first_batch
    part = ((part_b * part_chunks + (c - first_chunk)) * directions + k) * channels + channel
    shared = (((block * batches + part_b) * directions + k) * groups + g) * states * part_length
    B_at = projection_base(B_stride_b, B_stride_k, B_stride_g, b, k, g, channel, states, B_CONSTANT)
    C_at = projection_base(C_stride_b, C_stride_k, C_stride_g, b, k, g, channel, states, C_CONSTANT)
    if B_CONSTANT:
        dB_at = part * states
    else:
        dB_at = shared
    if C_CONSTANT:
        dC_at = part * states
    else:
        dC_at = shared
    y = entering * 0
    through_input = entering * 0
    through_step = entering * 0
    for begin in range(0, states, BLOCK_N):
        number = tl.full([], 0, tl.int64) + begin
        n = number + lane_n
        row_live = inside & (n < states)
        A_n = tl.load(A_at + n, mask=row_live, other=0)
        rate = (A_n * LOG2_E)[:, None]
        before = tl.load(checkpoints + (chunk_at + n), mask=row_live, other=0)
        after = tl.load(carried + (chunk_at + n), mask=row_live, other=0)
        B_n = projected(
            B, B_at, B_stride_n, number, n, row_live, source * B_stride_l, live, accumulator, B_CONSTANT, BLOCK_N
        )
        if B_CONSTANT:
            last_B = B_n
        else:
            last_at = last_source * B_stride_l
            last_B = projected(
                B, B_at, B_stride_n, number, n, row_live, last_at, earlier, accumulator, B_CONSTANT, BLOCK_N
            )
        decay = tl.exp2(dt * rate)
        product, kept = scan(decay, decay * (entered * last_B), False, INTERPRETER)
        kept += product * before[:, None]
        state = kept + entering * B_n
        C_n = projected(
            C, C_at, C_stride_n, number, n, row_live, source * C_stride_l, live, accumulator, C_CONSTANT, BLOCK_N
        )
        part_l = source - part_start
        store_projection_gradient(
            dC, dC_at, part_length, number, n, row_live, part_l, live, tl.where(tile, grad_y * state, 0),
            C_CONSTANT, BLOCK_N, BLOCK_D, BLOCK_L, states,
        )  # fmt: skip
        if GATE_GRADIENT:
            y += state * C_n
        product, grad_state = scan(tl.exp2(next_dt * rate), grad_y * C_n, True, INTERPRETER)
        grad_state += product * after[:, None]

        through_input += grad_state * B_n
        weighted = grad_state * kept
        through_step += weighted * A_n[:, None]
        tl.store(dA + (part * states + n), sum_of(weighted * dt, 1), mask=row_live)
        store_projection_gradient(
            dB, dB_at, part_length, number, n, row_live, part_l, live, tl.where(tile, grad_state * entering, 0),
            B_CONSTANT, BLOCK_N, BLOCK_D, BLOCK_L, states,
        )  # fmt: skip

    through_input = over_states(through_input, BLOCK_N, BLOCK_D, BLOCK_L)
    grad_delta = over_states(through_step, BLOCK_N, BLOCK_D, BLOCK_L)
    # The sequences once more, now a row per channel: cheaper than their registers during the loop.
    channel, inside, _ = channel_rows(block, g, per_group, 1, BLOCK_D)
    tile = inside[:, None] & live[None, :]
    offset = channel_values(bias, k * parameter_stride_k + channel, inside, accumulator, BIAS)
    dt, raw = time_steps(delta_at, channel * delta_stride_d, source * delta_stride_l, offset, tile, SOFTPLUS)
    value = load_tile(u_at, channel * u_stride_d, source * u_stride_l, tile, accumulator)
    grad = load_tile(grad_at, channel * grad_out_stride_d, position * grad_out_stride_l, tile, accumulator)
    grad_y = grad
    if GATED:
        gate = load_tile(z_at, channel * z_stride_d, position * z_stride_l, tile, accumulator)
        grad_y = grad * silu(gate)
    part = ((part_b * part_chunks + (c - first_chunk)) * directions + k) * channels + channel
    grad_u = through_input * dt
    if SKIP:
        skip = tl.load(D + (k * parameter_stride_k + channel), mask=inside, other=0)
        grad_u += grad_y * skip[:, None]
        tl.store(dD + part, sum_of(tl.where(tile, grad_y * value, 0), 1), mask=inside)
    du_at = du + (b * du_stride_b + k * du_stride_k)
    du_at += (channel * du_stride_d)[:, None] + (source * du_stride_l)[None, :]
    tl.store(du_at, rounded(grad_u, du.dtype.element_ty), mask=tile)
    grad_delta += through_input * value
    if SOFTPLUS:
        grad_delta = grad_delta * softplus_gradient(raw)
    ddelta_at = ddelta + (b * ddelta_stride_b + k * ddelta_stride_k)
    ddelta_at += (channel * ddelta_stride_d)[:, None] + (source * ddelta_stride_l)[None, :]
    tl.store(ddelta_at, rounded(grad_delta, ddelta.dtype.element_ty), mask=tile)
    if BIAS:
        tl.store(dbias + part, sum_of(tl.where(tile, grad_delta, 0), 1), mask=inside)
    if GATE_GRADIENT:
        y = over_states(y, BLOCK_N, BLOCK_D, BLOCK_L)
        if SKIP:
            y += value * skip[:, None]
        dz_at = dz + b * dz_stride_b + ((channel * dz_stride_d)[:, None] + (position * dz_stride_l)[None, :])
        tl.store(dz_at, rounded(grad * y * silu_gradient(gate), dz.dtype.element_ty), mask=tile)


gradient = fixed(gradient_kernel, 4)
