# SPDX-License-Identifier: Apache-2.0
"""Causal depthwise convolution on Triton: one function per operator of the family, with its arguments and outputs.

:data:`KERNELS` holds them by operator name. Semantics are those of :mod:`fgkernels.reference.causal_conv1d`; sums are
float32 (float64 for float64) and in a fixed order. Bad arguments raise RuntimeError, as from the compiled operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..reference import _scan_checks as scan_checks
from ..reference import causal_conv1d as checks
from . import _causal_conv1d as kernels
from ._arguments import checked_on_cpu, expect, like, or_empty, strides
from .device import INTERPRETED, ceil_div, next_power_of_2


def _blocks(x: Tensor, elements: int) -> tuple[int, int]:
    """(channels, positions) of a program, along what is dense in memory."""
    _, channels, length = x.shape
    if INTERPRETED:
        positions = next_power_of_2(length, high=4096)
        return next_power_of_2(channels, high=2**17 // positions), positions
    if x.stride(1) == 1 and x.stride(2) != 1:
        rows = next_power_of_2(channels, high=64)
        return rows, next_power_of_2(length, high=elements // rows)
    positions = next_power_of_2(length, high=256)
    return next_power_of_2(channels, high=elements // positions), positions


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, initial_state: Tensor | None, silu: bool
) -> dict[str, Any]:
    """What the kernels of whole sequences take."""
    bias, seq_idx, initial_state = (
        None if value is None else value.contiguous() for value in (bias, seq_idx, initial_state)
    )
    return {
        **strides("x", x, "bdl"), "weight": weight.contiguous(), "bias": bias, "seq_idx": seq_idx,
        "state": initial_state, "channels": x.shape[1], "length": x.shape[2], "WIDTH": weight.shape[1], "SILU": silu,
        "BIAS": bias is not None, "SEQUENCES": seq_idx is not None, "STATE": initial_state is not None,
    }  # fmt: skip


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, initial_state: Tensor | None, silu: bool
) -> Tensor:
    """The operator `causal_conv1d`: out (B, D, L), in memory as x."""
    checks.check_forward(expect, x, weight, bias, seq_idx, initial_state)
    out = like(x)
    if out.numel():
        rows, positions = _blocks(x, 2048)
        programs = x.shape[0] * ceil_div(x.shape[1], rows) * ceil_div(x.shape[2], positions)
        kernels.forward.launch(
            x.device, lambda named: programs,
            **_arguments(x, weight, bias, seq_idx, initial_state, silu), **strides("out", out, "bdl"),
            BLOCK_D=rows, BLOCK_L=positions,
        )  # fmt: skip
    return out


def causal_conv1d_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None,
    initial_state: Tensor | None, silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The operator `causal_conv1d_backward`: gradients of x (in memory as x), weight, bias and initial_state."""
    checks.check_forward(expect, x, weight, bias, seq_idx, initial_state)
    scan_checks.check_like(expect, "grad_out", grad_out, "(B, D, L)", x.shape, "x", x.dtype, x.device)
    dx = like(x)
    dstate = None if initial_state is None else weight.new_empty(initial_state.shape)
    if dx.numel() == 0:
        dbias = None if bias is None else weight.new_zeros(bias.shape)
        dstate = None if dstate is None else dstate.zero_()
        return dx, weight.new_zeros(weight.shape), or_empty(dbias, weight), or_empty(dstate, weight)
    rows, positions = _blocks(x, 1024)
    blocks = ceil_div(x.shape[2], positions)
    programs = x.shape[0] * ceil_div(x.shape[1], rows) * blocks
    part_weight = weight.new_empty(x.shape[0], blocks, *weight.shape)
    part_bias = None if bias is None else weight.new_empty(x.shape[0], blocks, *bias.shape)
    kernels.backward.launch(
        x.device, lambda named: programs,
        **strides("grad", grad_out, "bdl"), **_arguments(x, weight, bias, seq_idx, initial_state, silu),
        **strides("dx", dx, "bdl"), dweight=part_weight, dbias=part_bias, dstate=dstate,
        BLOCK_D=rows, BLOCK_L=positions,
    )  # fmt: skip
    dbias = None if part_bias is None else part_bias.sum((0, 1))
    return dx, part_weight.sum((0, 1)), or_empty(dbias, weight), or_empty(dstate, weight)


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None, silu: bool,
) -> Tensor:  # fmt: skip
    """The operator `causal_conv1d_update`: out (B, D, S); conv_state is updated in place."""
    checks.check_update(expect, x, conv_state, weight, bias, cache_seqlens, conv_state_indices)
    checked_on_cpu(lambda state: checks.check_values(state.shape[0], cache_seqlens, conv_state_indices), conv_state)
    batch, channels, steps = x.shape
    out = x.new_empty(x.shape)
    if out.numel() == 0:
        return out
    rows = batch * channels
    state_length = conv_state.shape[2]
    block_s = next_power_of_2(state_length, high=1024 if INTERPRETED else 16)
    block_r = next_power_of_2(rows, high=2**14 if INTERPRETED else 128)
    bias, cache_seqlens, conv_state_indices = (
        None if value is None else value.contiguous() for value in (bias, cache_seqlens, conv_state_indices)
    )
    kernels.update.launch(
        x.device, lambda named: ceil_div(rows, block_r),
        **strides("x", x, "bdl"), **strides("state", conv_state, "bdl"), weight=weight.contiguous(), bias=bias,
        first=cache_seqlens, entry_of=conv_state_indices, out=out, rows=rows, channels=channels, steps=steps,
        entries=conv_state.shape[0], state_length=state_length, WIDTH=weight.shape[1], SILU=silu,
        BIAS=bias is not None, RING=cache_seqlens is not None, ENTRY=conv_state_indices is not None,
        BLOCK_R=block_r, BLOCK_S=block_s,
    )  # fmt: skip
    following = like(x)  # the kernel writes a dense out, which a step's one position mostly is
    return out if following.is_contiguous() else following.copy_(out)


KERNELS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    function.__name__: function for function in (causal_conv1d, causal_conv1d_backward, causal_conv1d_update)
}
