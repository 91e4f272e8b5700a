# SPDX-License-Identifier: Apache-2.0
"""Kernels that take maps apart into sequences along directions and put them together again."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language import core  # noqa: F401 (the interpreter patches it only if it finds it here)

from ._scan_math import silu, silu_gradient
from ._selective_scan_forward import positions_of
from .device import Kernel, ceil_div, device_function, next_power_of_2, rounded


@device_function
def map_block(program, channels, length, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr):
    """(what is left of the program's number, channels and positions of its block)."""
    program = program.to(tl.int64)
    position_blocks = (length + BLOCK_L - 1) // BLOCK_L
    channel_blocks = (channels + BLOCK_D - 1) // BLOCK_D
    position = program % position_blocks * BLOCK_L + tl.arange(0, BLOCK_L)
    program = program // position_blocks
    channel = program % channel_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    return program // channel_blocks, channel, position


@triton.jit
def merge_kernel(
    y, y_stride_b, y_stride_k, y_stride_d, y_stride_l, z, z_stride_b, z_stride_d, z_stride_l,
    grad_out, grad_out_stride_b, grad_out_stride_d, grad_out_stride_l,
    out, out_stride_b, out_stride_d, out_stride_l, table, batch, directions, channels, length,
    WIDE: tl.constexpr, TABLE: tl.constexpr, GATED: tl.constexpr, GATE_GRADIENT: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """out = sum over k of y[k, table[k]], times silu(z) if GATED, or grad_out silu'(z) if GATE_GRADIENT."""
    accumulator: tl.constexpr = tl.float64 if WIDE else tl.float32
    b, channel, position = map_block(tl.program_id(0), channels, length, BLOCK_D, BLOCK_L)
    live = position < length
    tile = (channel < channels)[:, None] & live[None, :]
    total = tl.full([BLOCK_D, BLOCK_L], 0, accumulator)
    for number in range(0, directions):
        k = tl.full([], 0, tl.int64) + number
        source = positions_of(table, k, position, live, length, TABLE)
        y_at = y + (b * y_stride_b + k * y_stride_k) + channel[:, None] * y_stride_d + (source * y_stride_l)[None, :]
        total += tl.load(y_at, mask=tile, other=0).to(accumulator)
    if GATED:
        z_at = z + b * z_stride_b + channel[:, None] * z_stride_d + (position * z_stride_l)[None, :]
        gate = tl.load(z_at, mask=tile, other=0).to(accumulator)
        if GATE_GRADIENT:
            grad_at = grad_out + b * grad_out_stride_b + channel[:, None] * grad_out_stride_d
            grad = tl.load(grad_at + (position * grad_out_stride_l)[None, :], mask=tile, other=0)
            total = total * grad.to(accumulator) * silu_gradient(gate)
        else:
            total = total * silu(gate)
    out_at = out + b * out_stride_b + channel[:, None] * out_stride_d + (position * out_stride_l)[None, :]
    tl.store(out_at, rounded(total, out.dtype.element_ty), mask=tile)


@triton.jit
def gather_kernel(
    x, x_stride_b, x_stride_d, x_stride_l, out, table, batch, directions, channels, length,
    BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """out[b, k, c, t] = x[b, c, table[k, t]]."""
    outer, channel, step = map_block(tl.program_id(0), channels, length, BLOCK_D, BLOCK_L)
    b = outer // directions
    k = outer % directions
    live = step < length
    tile = (channel < channels)[:, None] & live[None, :]
    position = positions_of(table, k, step, live, length, True)
    value = tl.load(
        x + b * x_stride_b + channel[:, None] * x_stride_d + (position * x_stride_l)[None, :], mask=tile, other=0
    )
    tl.store(out + (outer * channels + channel)[:, None] * length + step[None, :], value, mask=tile)


def merge_programs(named: dict[str, Any]) -> int:
    blocks = ceil_div(named["channels"], named["BLOCK_D"]) * ceil_div(named["length"], named["BLOCK_L"])
    return named["batch"] * blocks


def gather_programs(named: dict[str, Any]) -> int:
    return merge_programs(named) * named["directions"]


def _kernel(function: Any) -> Kernel:
    configs = [
        triton.Config({"BLOCK_D": 8, "BLOCK_L": 128}, num_warps=4),
        triton.Config({"BLOCK_D": 32, "BLOCK_L": 32}),
    ]

    def interpreter_blocks(named: dict[str, Any]) -> dict[str, int]:
        return {
            "BLOCK_D": next_power_of_2(named["channels"], high=256),
            "BLOCK_L": next_power_of_2(named["length"], high=1024),
        }

    return Kernel(function, configs, ("channels", "length"), lambda *_: 0, interpreter_blocks)


merge = _kernel(merge_kernel)
gather = _kernel(gather_kernel)
