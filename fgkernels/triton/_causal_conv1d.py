# SPDX-License-Identifier: Apache-2.0
"""Kernels of the causal depthwise convolution: a program owns a block of channels and positions of one batch entry."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import core  # noqa: F401 (the interpreter patches it only if it finds it here)

from ._scan_math import silu, silu_gradient
from .device import device_function, fixed, rounded, sum_of


@device_function
def conv_block(program, channels, length, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr):
    """(batch entry, block of positions, channels, positions) of a program; neighbours share channels."""
    program = program.to(tl.int64)
    position_blocks = (length + BLOCK_L - 1) // BLOCK_L
    channel_blocks = (channels + BLOCK_D - 1) // BLOCK_D
    position_block = program % position_blocks
    program = program // position_blocks
    channel = program % channel_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    return program // channel_blocks, position_block, channel, position_block * BLOCK_L + tl.arange(0, BLOCK_L)


@device_function
def owners(seq_idx, b, t, length):
    """Which sequence positions belong to; that of position 0 before it, and none after the last."""
    place = tl.minimum(tl.maximum(t, 0), length - 1)
    return tl.load(seq_idx + (b * length + place))


@device_function
def tap(
    x, x_stride_b, x_stride_d, x_stride_l, state, b, channel, t, owner, seq_idx, channels, length, mask,
    accumulator: tl.constexpr, WIDTH: tl.constexpr, SEQUENCES: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """x at positions t (from 1 - WIDTH on) as an output of sequence `owner` sees them: before 0 lies the state."""
    seen = mask
    if SEQUENCES:
        seen = mask & (owners(seq_idx, b, t, length) == owner)[None, :]
    at = x + b * x_stride_b + ((channel * x_stride_d)[:, None] + (t * x_stride_l)[None, :])
    value = tl.load(at, mask=seen & (t >= 0)[None, :], other=0).to(accumulator)
    if STATE:
        at = state + (b * channels + channel)[:, None] * (WIDTH - 1) + (t + (WIDTH - 1))[None, :]
        value += tl.load(at, mask=seen & (t < 0)[None, :], other=0)
    return value


@device_function
def sums(
    x, x_stride_b, x_stride_d, x_stride_l, weight, bias, seq_idx, state, b, channel, t, owner, inside, live, channels,
    length, accumulator: tl.constexpr, WIDTH: tl.constexpr, BIAS: tl.constexpr, SEQUENCES: tl.constexpr,
    STATE: tl.constexpr,
):  # fmt: skip
    """The convolution at positions t, before the activation."""
    mask = inside[:, None] & live[None, :]
    if BIAS:
        start = tl.load(bias + channel, mask=inside, other=0)
    else:
        start = (channel * 0).to(accumulator)
    total = start[:, None] + (t * 0).to(accumulator)[None, :]
    for j in tl.static_range(WIDTH):
        w = tl.load(weight + (channel * WIDTH + j), mask=inside, other=0)
        total += w[:, None] * tap(
            x, x_stride_b, x_stride_d, x_stride_l, state, b, channel, t + (j - (WIDTH - 1)), owner, seq_idx, channels,
            length, mask, accumulator, WIDTH, SEQUENCES, STATE,
        )  # fmt: skip
    return total


@triton.jit
def forward_kernel(
    x, x_stride_b, x_stride_d, x_stride_l, weight, bias, seq_idx, state,
    out, out_stride_b, out_stride_d, out_stride_l, channels, length,
    WIDTH: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr, SEQUENCES: tl.constexpr, STATE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """out = act(bias + sum over j of weight[j] x[t - (WIDTH - 1) + j])."""
    accumulator: tl.constexpr = weight.dtype.element_ty
    b, _, channel, t = conv_block(tl.program_id(0), channels, length, BLOCK_D, BLOCK_L)
    inside = channel < channels
    live = t < length
    owner = t
    if SEQUENCES:
        owner = owners(seq_idx, b, t, length)
    total = sums(
        x, x_stride_b, x_stride_d, x_stride_l, weight, bias, seq_idx, state, b, channel, t, owner, inside, live,
        channels, length, accumulator, WIDTH, BIAS, SEQUENCES, STATE,
    )  # fmt: skip
    if SILU:
        total = silu(total)
    at = out + b * out_stride_b + ((channel * out_stride_d)[:, None] + (t * out_stride_l)[None, :])
    tl.store(at, rounded(total, out.dtype.element_ty), mask=inside[:, None] & live[None, :])


@device_function
def gradient_of_sums(
    grad, grad_stride_b, grad_stride_d, grad_stride_l, x, x_stride_b, x_stride_d, x_stride_l, weight, bias, seq_idx,
    state, b, channel, t, inside, channels, length, accumulator: tl.constexpr, WIDTH: tl.constexpr,
    SILU: tl.constexpr, BIAS: tl.constexpr, SEQUENCES: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """(gradient of the sums at positions t, 0 where there is none; which sequence they belong to)."""
    exists = (t >= 0) & (t < length)
    owner = t
    if SEQUENCES:
        owner = owners(seq_idx, b, t, length)
    at = grad + b * grad_stride_b + ((channel * grad_stride_d)[:, None] + (t * grad_stride_l)[None, :])
    g = tl.load(at, mask=inside[:, None] & exists[None, :], other=0).to(accumulator)
    if SILU:
        total = sums(
            x, x_stride_b, x_stride_d, x_stride_l, weight, bias, seq_idx, state, b, channel, t, owner, inside, exists,
            channels, length, accumulator, WIDTH, BIAS, SEQUENCES, STATE,
        )  # fmt: skip
        g = g * silu_gradient(total)
    return g, owner


@device_function
def gradient_of_positions(
    grad, grad_stride_b, grad_stride_d, grad_stride_l, x, x_stride_b, x_stride_d, x_stride_l, weight, bias, seq_idx,
    state, b, channel, t, owner, inside, channels, length, accumulator: tl.constexpr, WIDTH: tl.constexpr,
    SILU: tl.constexpr, BIAS: tl.constexpr, SEQUENCES: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """The sum over outputs s of sequence `owner`, from t on, of weight[WIDTH - 1 - (s - t)] times their gradient."""
    total = (channel * 0).to(accumulator)[:, None] + (t * 0).to(accumulator)[None, :]
    for later in tl.static_range(WIDTH):
        w = tl.load(weight + (channel * WIDTH + (WIDTH - 1 - later)), mask=inside, other=0)[:, None]
        g, output_owner = gradient_of_sums(
            grad, grad_stride_b, grad_stride_d, grad_stride_l, x, x_stride_b, x_stride_d, x_stride_l, weight, bias,
            seq_idx, state, b, channel, t + later, inside, channels, length, accumulator, WIDTH, SILU, BIAS,
            SEQUENCES, STATE,
        )  # fmt: skip
        if SEQUENCES:
            total += tl.where((output_owner == owner)[None, :], w * g, 0)
        else:
            total += w * g
    return total


@device_function
def store_state_gradient(
    dstate, grad, grad_stride_b, grad_stride_d, grad_stride_l, x, x_stride_b, x_stride_d, x_stride_l, weight, bias,
    seq_idx, state, b, channel, inside, channels, length, accumulator: tl.constexpr, WIDTH: tl.constexpr,
    SILU: tl.constexpr, BIAS: tl.constexpr, SEQUENCES: tl.constexpr,
):  # fmt: skip
    """The gradient of the initial state, whose WIDTH - 1 positions come before 0."""
    lane = tl.arange(0, 4).to(tl.int64)
    t = lane - (WIDTH - 1)
    owner = t
    if SEQUENCES:
        owner = owners(seq_idx, b, t, length)
    value = gradient_of_positions(
        grad, grad_stride_b, grad_stride_d, grad_stride_l, x, x_stride_b, x_stride_d, x_stride_l, weight, bias,
        seq_idx, state, b, channel, t, owner, inside, channels, length, accumulator, WIDTH, SILU, BIAS, SEQUENCES,
        True,
    )  # fmt: skip
    at = dstate + ((b * channels + channel) * (WIDTH - 1))[:, None] + lane[None, :]
    tl.store(at, value, mask=inside[:, None] & (lane < WIDTH - 1)[None, :])


@triton.jit
def backward_kernel(
    grad, grad_stride_b, grad_stride_d, grad_stride_l, x, x_stride_b, x_stride_d, x_stride_l,
    weight, bias, seq_idx, state, dx, dx_stride_b, dx_stride_d, dx_stride_l, dweight, dbias, dstate,
    channels, length,
    WIDTH: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr, SEQUENCES: tl.constexpr, STATE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """dx, and each block's part of dweight (batch, position blocks, channels, WIDTH) and dbias (without WIDTH).

    The first block of positions also takes the gradient of the initial state, which lies before it.
    """
    accumulator: tl.constexpr = weight.dtype.element_ty
    b, block, channel, t = conv_block(tl.program_id(0), channels, length, BLOCK_D, BLOCK_L)
    inside = channel < channels
    tile = inside[:, None] & (t < length)[None, :]
    owner = t
    if SEQUENCES:
        owner = owners(seq_idx, b, t, length)
    grad_x = gradient_of_positions(
        grad, grad_stride_b, grad_stride_d, grad_stride_l, x, x_stride_b, x_stride_d, x_stride_l, weight, bias,
        seq_idx, state, b, channel, t, owner, inside, channels, length, accumulator, WIDTH, SILU, BIAS, SEQUENCES,
        STATE,
    )  # fmt: skip
    at = dx + b * dx_stride_b + ((channel * dx_stride_d)[:, None] + (t * dx_stride_l)[None, :])
    tl.store(at, rounded(grad_x, dx.dtype.element_ty), mask=tile)

    g, _ = gradient_of_sums(
        grad, grad_stride_b, grad_stride_d, grad_stride_l, x, x_stride_b, x_stride_d, x_stride_l, weight, bias,
        seq_idx, state, b, channel, t, inside, channels, length, accumulator, WIDTH, SILU, BIAS, SEQUENCES, STATE,
    )  # fmt: skip
    part = (b * ((length + BLOCK_L - 1) // BLOCK_L) + block) * channels + channel
    if BIAS:
        tl.store(dbias + part, sum_of(g, 1), mask=inside)
    for j in tl.static_range(WIDTH):
        seen = tap(
            x, x_stride_b, x_stride_d, x_stride_l, state, b, channel, t + (j - (WIDTH - 1)), owner, seq_idx, channels,
            length, tile, accumulator, WIDTH, SEQUENCES, STATE,
        )  # fmt: skip
        tl.store(dweight + (part * WIDTH + j), sum_of(tl.where(tile, g * seen, 0), 1), mask=inside)
    if STATE:
        if block == 0:
            store_state_gradient(
                dstate, grad, grad_stride_b, grad_stride_d, grad_stride_l, x, x_stride_b, x_stride_d, x_stride_l,
                weight, bias, seq_idx, state, b, channel, inside, channels, length, accumulator, WIDTH, SILU, BIAS,
                SEQUENCES,
            )  # fmt: skip


@triton.jit
def update_kernel(
    x, x_stride_b, x_stride_d, x_stride_l, state, state_stride_b, state_stride_d, state_stride_l,
    weight, bias, first, entry_of, out, rows, channels, steps, entries, state_length,
    WIDTH: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr, RING: tl.constexpr, ENTRY: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """`steps` new positions of rows of (batch entry, channel), one after the other, then the state in place.

    RING: position p of a batch entry lies in slot p % state_length and `first` says how many there have been. Else the
    slots move on, the newest last. A batch entry whose row of the state doesn't exist leaves every state as it is.
    """
    accumulator: tl.constexpr = weight.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    channel = row % channels
    b = row // channels
    entry = b
    exists = inside
    if ENTRY:
        entry = tl.load(entry_of + b, mask=inside, other=0).to(tl.int64)
        exists = inside & (entry >= 0) & (entry < entries)
    if RING:
        count = tl.maximum(tl.load(first + b, mask=inside, other=0).to(tl.int64), 0)
    else:
        count = b * 0 + state_length
    x_at = x + (b * x_stride_b + channel * x_stride_d)
    state_at = state + (entry * state_stride_b + channel * state_stride_d)
    for number in range(0, steps):
        s = tl.full([], 0, tl.int64) + number
        total = (row * 0).to(accumulator)
        if BIAS:
            total += tl.load(bias + channel, mask=inside, other=0)
        for j in tl.static_range(WIDTH):
            # Of the positions before the first new one, the last is number count - 1.
            back = s + (j - (WIDTH - 1))
            slot = count + tl.minimum(back, -1)
            if RING:
                slot = (slot + state_length) % state_length
            new = tl.load(x_at + tl.maximum(back, 0) * x_stride_l, mask=inside & (back >= 0), other=0).to(accumulator)
            old = tl.load(state_at + slot * state_stride_l, mask=exists & (back < 0), other=0).to(accumulator)
            total += tl.load(weight + (channel * WIDTH + j), mask=inside, other=0) * (new + old)
        if SILU:
            total = silu(total)
        tl.store(out + (row * steps + s), rounded(total, out.dtype.element_ty), mask=inside)
    # Slots move towards the front, so a block is read before anything that comes later is written.
    for begin in range(0, state_length, BLOCK_S):
        slot = (tl.full([], 0, tl.int64) + begin) + tl.arange(0, BLOCK_S)
        tile = exists[:, None] & (slot < state_length)[None, :]
        if RING:
            # The last new position that falls into a slot.
            last = (count + (steps - 1))[:, None]
            step = (steps - 1) - (last + state_length - slot[None, :]) % state_length
            kept = tile & (step < 0)
            source = tl.where(step < 0, slot[None, :], 0)
        else:
            step = slot[None, :] + (steps - state_length)
            kept = tile & (step < 0)
            source = tl.where(step < 0, slot[None, :] + steps, 0)
        new = tl.load(x_at[:, None] + tl.maximum(step, 0) * x_stride_l, mask=tile & (step >= 0), other=0)
        old = tl.load(state_at[:, None] + source * state_stride_l, mask=kept, other=0)
        tl.debug_barrier()
        tl.store(state_at[:, None] + (slot * state_stride_l)[None, :], tl.where(step >= 0, new, old), mask=tile)
        tl.debug_barrier()


forward = fixed(forward_kernel, 4)
backward = fixed(backward_kernel, 4)
update = fixed(update_kernel, 4)
