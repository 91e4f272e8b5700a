# SPDX-License-Identifier: Apache-2.0
"""What the causal convolution's operators need from Python: fake kernels, autograd and vmap rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..reference import _checks
from ..reference import causal_conv1d as reference
from . import _library
from ._registration import (
    asked_for,
    autograd,
    empty_following,
    expect,
    fake,
    fold,
    in_place,
    loop,
    no_double_backward,
    unfold,
    vmap,
)

# --- fake kernels -----------------------------------------------------------------------------------------------------


@fake("causal_conv1d")
def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, initial_state: Tensor | None, silu: bool
) -> Tensor:
    reference.check_forward(expect, x, weight, bias, seq_idx, initial_state)
    return empty_following(x)


@fake("causal_conv1d_backward")
def _backward_fake(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_state: Tensor | None,
    silu: bool,
) -> tuple[Tensor, ...]:
    _checks.check_tensor("grad_out", grad_out)
    reference.check_forward(expect, x, weight, bias, seq_idx, initial_state)
    gradients = (weight, bias, initial_state)
    return empty_following(x), *(weight.new_empty((0,) if value is None else value.shape) for value in gradients)


@fake("causal_conv1d_update")
def _update_fake(x: Tensor, conv_state: Tensor, weight: Tensor, *args: Any) -> Tensor:
    reference.check_update(expect, x, conv_state, weight, *args[:-1])
    return empty_following(x)


# --- autograd ---------------------------------------------------------------------------------------------------------

_backward_op = _library.op("causal_conv1d_backward")


def _context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias, dinitial_state = _backward_op(grad_out, *ctx.saved_tensors, ctx.silu)
    return *asked_for(ctx, (dx, dweight, dbias, None, dinitial_state)), None


autograd("causal_conv1d", _backward, _context)
no_double_backward("causal_conv1d", "causal_conv1d_backward")
in_place("causal_conv1d_update", written=(1,), refuse=reference.check_no_gradient)

# --- vmap: samples are folded into the batch, or, where each has parameters or their gradients of its own, into the
# --- channels; then sequence numbers, which all channels share, must be shared too


@vmap("causal_conv1d")
def _forward_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Tensor, int]:
    if dims[1] is None and dims[2] is None:
        folded = [fold(args[i], dims[i], size) for i in (0, 3, 4)]
        return unfold(op(folded[0], args[1], args[2], *folded[1:], args[5]), size), 0
    if dims[3] is not None:
        return loop(op, size, dims, *args)
    return unfold(op(*_in_channels(size, dims, args)), size, 1), 1


@vmap("causal_conv1d_backward")
def _backward_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    if dims[4] is not None:
        return loop(op, size, dims, *args)
    grad_out = fold(args[0], dims[0], size, 1)
    dx, dweight, dbias, dinitial_state = op(grad_out, *_in_channels(size, dims[1:], args[1:]))
    state_axis = 0 if args[5] is None else 1
    outputs = unfold(dx, size, 1), unfold(dweight, size), unfold(dbias, size), unfold(dinitial_state, size, state_axis)
    return outputs, (1, 0, 0, state_axis)


def _in_channels(size: int, dims: Sequence[int | None], args: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of the operator whose channels are those of all samples; seq_idx is shared."""
    x, weight, bias, seq_idx, initial_state, silu = args
    return (
        fold(x, dims[0], size, 1), fold(weight, dims[1], size), fold(bias, dims[2], size), seq_idx,
        fold(initial_state, dims[4], size, 1), silu,
    )  # fmt: skip


@vmap("causal_conv1d_update")
def _update_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    if dims[1] is None:
        raise RuntimeError("causal_conv1d_update: under vmap each sample needs a conv_state of its own to change")
    return loop(op, size, dims, *args)  # samples are views: a folded copy of the state would change instead of it
