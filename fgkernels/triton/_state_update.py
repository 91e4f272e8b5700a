# SPDX-License-Identifier: Apache-2.0
"""Kernel of one decoding step, in place on the state: a program owns rows of (batch entry, head, channel)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language import core  # noqa: F401 (the interpreter patches it only if it finds it here)

from ._arguments import strides
from ._scan_math import LOG2_E, silu, softplus
from .device import INTERPRETED, ceil_div, fixed, next_power_of_2, rounded, sum_of


@triton.jit
def state_update_kernel(
    state, state_stride_e, state_stride_h, state_stride_d, state_stride_n,
    x, x_stride_b, x_stride_h, x_stride_d, dt, dt_stride_b, dt_stride_h, dt_stride_d,
    z, z_stride_b, z_stride_h, z_stride_d,
    A, A_stride_h, A_stride_d, A_stride_n, D, D_stride_h, D_stride_d, bias, bias_stride_h, bias_stride_d,
    B, B_stride_b, B_stride_g, B_stride_n, C, C_stride_b, C_stride_g, C_stride_n,
    entry_of, out, rows, heads, channels, entries, states, per_group,
    HEADS: tl.constexpr, ENTRY: tl.constexpr, SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, SKIP: tl.constexpr,
    GATED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """h = exp(dt A) h + dt B x, out = (C h + D x) silu(z). Groups are of heads if HEADS, else of channels.

    A batch entry whose row of the state doesn't exist leaves every state as it is.
    """
    accumulator: tl.constexpr = A.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    d = row % channels
    h = row // channels % heads
    b = row // channels // heads
    if HEADS:
        g = h // per_group
    else:
        g = d // per_group
    entry = b
    exists = inside
    if ENTRY:
        entry = tl.load(entry_of + b, mask=inside, other=0).to(tl.int64)
        exists = inside & (entry >= 0) & (entry < entries)
    x_r = tl.load(x + (b * x_stride_b + h * x_stride_h + d * x_stride_d), mask=inside, other=0).to(accumulator)
    step = tl.load(dt + (b * dt_stride_b + h * dt_stride_h + d * dt_stride_d), mask=inside, other=0).to(accumulator)
    if BIAS:
        step += tl.load(bias + (h * bias_stride_h + d * bias_stride_d), mask=inside, other=0)
    if SOFTPLUS:
        step = softplus(step)
    total = tl.full([BLOCK_R, BLOCK_N], 0, accumulator)
    for first in range(0, states, BLOCK_N):
        n = (tl.full([], 0, tl.int64) + first) + tl.arange(0, BLOCK_N)
        tile = inside[:, None] & (n < states)[None, :]
        kept = exists[:, None] & (n < states)[None, :]
        state_at = state + (entry * state_stride_e + h * state_stride_h + d * state_stride_d)[:, None]
        state_at += (n * state_stride_n)[None, :]
        A_at = A + (h * A_stride_h + d * A_stride_d)[:, None] + (n * A_stride_n)[None, :]
        B_at = B + (b * B_stride_b + g * B_stride_g)[:, None] + (n * B_stride_n)[None, :]
        C_at = C + (b * C_stride_b + g * C_stride_g)[:, None] + (n * C_stride_n)[None, :]
        decay = tl.exp2(step[:, None] * (tl.load(A_at, mask=tile, other=0) * LOG2_E))
        entering = (step * x_r)[:, None] * tl.load(B_at, mask=tile, other=0).to(accumulator)
        value = decay * tl.load(state_at, mask=kept, other=0).to(accumulator) + entering
        total += value * tl.load(C_at, mask=tile, other=0).to(accumulator)
        tl.store(state_at, rounded(value, state.dtype.element_ty), mask=kept)
    y = sum_of(total, 1)
    if SKIP:
        y += tl.load(D + (h * D_stride_h + d * D_stride_d), mask=inside, other=0) * x_r
    if GATED:
        y = y * silu(
            tl.load(z + (b * z_stride_b + h * z_stride_h + d * z_stride_d), mask=inside, other=0).to(accumulator)
        )
    tl.store(out + row, rounded(y, out.dtype.element_ty), mask=inside)


kernel = fixed(state_update_kernel, 4)


def state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, entry: Tensor | None, softplus: bool,
) -> Tensor:  # fmt: skip
    """out like x, contiguous; `state` (E, D, N) or (E, H, P, N) is updated in place."""
    out = x.new_empty(x.shape)
    if out.numel() == 0:
        return out
    heads = state.dim() == 4
    groups = B.shape[1] if B.dim() == 3 else C.shape[1] if C.dim() == 3 else 1

    def with_heads(value: Tensor | None, axis: int) -> Tensor | None:
        return value if value is None or heads else value.unsqueeze(axis)

    rows, states = x.numel(), state.shape[-1]
    block_n = next_power_of_2(states, high=2**16 if INTERPRETED else 128)
    block_r = next_power_of_2(rows, high=max(2**18 // block_n, 1)) if INTERPRETED else 1024 // block_n
    kernel.launch(
        x.device, lambda named: ceil_div(rows, block_r),
        **strides("state", with_heads(state, 1), "ehdn"), **strides("x", with_heads(x, 1), "bhd"),
        **strides("dt", with_heads(dt, 1), "bhd"), **strides("z", with_heads(z, 1), "bhd"),
        **strides("A", with_heads(A, 0), "hdn"), **strides("D", with_heads(D, 0), "hd"),
        **strides("bias", with_heads(dt_bias, 0), "hd"), **strides("B", B if B.dim() == 3 else B.unsqueeze(1), "bgn"),
        **strides("C", C if C.dim() == 3 else C.unsqueeze(1), "bgn"),
        entry_of=None if entry is None else entry.contiguous(), out=out, rows=rows,
        heads=state.shape[1] if heads else 1, channels=state.shape[-2], entries=state.shape[0], states=states,
        per_group=state.shape[1] // groups, HEADS=heads, ENTRY=entry is not None, SOFTPLUS=softplus,
        BIAS=dt_bias is not None, SKIP=D is not None, GATED=z is not None, BLOCK_R=block_r, BLOCK_N=block_n,
    )  # fmt: skip
    return out
