# SPDX-License-Identifier: Apache-2.0
"""What `selective_scan` and `selective_state_update` need from Python: fake kernels, autograd and vmap rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import _scan_checks as checks
from . import _library
from ._registration import (
    autograd,
    differentiable_through,
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


@fake("selective_scan_fwd")
def _scan_fwd_fake(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    checks.check_selective_scan(expect, u, delta, A, B, C, D, z, delta_bias, initial_state)
    return empty_following(u), A.new_empty(u.shape[0], u.shape[1], A.shape[1])


@fake("selective_scan")
def _scan_fake(u: Tensor, delta: Tensor, A: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    out, last_state = _scan_fwd_fake(u, delta, A, *args)
    batch, channels, length = u.shape
    return out, last_state, A.new_empty(batch, 1, channels, checks.scan_chunks(length), A.shape[1])


def empty_gradient(value: Tensor | None, absent: torch.dtype, like: Tensor, follow: bool = True) -> Tensor:
    """Of a sequence or, without `follow`, a parameter; of an absent input nothing, of the dtype it would have."""
    if value is None:
        return like.new_empty(0, dtype=absent)
    return empty_following(value) if follow else value.new_empty(value.shape)


@fake("selective_scan_backward")
def _scan_backward_fake(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    checkpoints: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, ...]:
    checks.check_selective_scan(expect, u, delta, A, B, C, D, z, delta_bias, initial_state)
    return (
        empty_following(u),
        empty_following(delta),
        A.new_empty(A.shape),
        *(empty_gradient(value, value.dtype, u, value.dim() > 2) for value in (B, C)),
        empty_gradient(D, A.dtype, u, follow=False),
        empty_gradient(z, u.dtype, u),
        empty_gradient(delta_bias, A.dtype, u, follow=False),
        empty_gradient(initial_state, A.dtype, u, follow=False),
    )


@fake("selective_state_update")
def _update_fake(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state_batch_indices: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    checks.check_state_update(expect, state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices)
    return x.new_empty(x.shape)


# --- autograd ---------------------------------------------------------------------------------------------------------

_backward_op = _library.op("selective_scan_backward")


def _scan_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus = inputs
    checkpoints = output[2]
    ctx.set_materialize_grads(False)  # a last state that nobody used costs nothing
    ctx.mark_non_differentiable(checkpoints)
    ctx.save_for_backward(*tensors, checkpoints)


def _scan_backward(
    ctx: Any, grad_out: Tensor | None, grad_last_state: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    *tensors, checkpoints = ctx.saved_tensors
    if grad_out is None and grad_last_state is None:
        return (None,) * (len(tensors) + 1)
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0])
    gradients = _backward_op(grad_out, grad_last_state, *tensors, checkpoints, ctx.delta_softplus)
    return *asked_for(ctx, gradients), None


def asked_for(ctx: Any, gradients: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of inputs that need one: those of absent inputs don't."""
    return [value if needed else None for value, needed in zip(gradients, ctx.needs_input_grad, strict=False)]


autograd("selective_scan", _scan_backward, _scan_context)
differentiable_through("selective_scan_fwd", "selective_scan")
no_double_backward("selective_scan", "selective_scan_backward")
in_place("selective_state_update", written=(0,), refuse=checks.check_no_gradient)

# --- vmap: entries become samples of the batch where they share the parameters, else channels in groups of their own,
# --- and so in the backward, whose sums over the batch must not mix entries


def _rank(tensor: Tensor, dim: int | None) -> int:
    """Of one entry's tensor."""
    return tensor.dim() - (dim is not None)


def _constant(projection: Tensor, dim: int | None) -> bool:
    return _rank(projection, dim) == 2


def _fold_projection(projection: Tensor, dim: int | None, size: int) -> Tensor:
    """B or C of channels of all entries: each entry's groups are its own."""
    if _constant(projection, dim):
        return fold(projection, dim, size)
    if _rank(projection, dim) == 3:  # (B, N, L): one group, laid out as (B, 1, N, L)
        if dim is not None:
            projection, dim = projection.movedim(dim, 0), 0
        projection = projection.unsqueeze(-3)
    return fold(projection, dim, size, 1)


def _fold_channels(size: int, dims: Sequence[int | None], *tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors of a call, u to initial_state, with the entries of the batch as channels."""
    u, delta, A, B, C, D, z, delta_bias, initial_state = zip(tensors, dims, strict=True)
    return [
        fold(*u, size, 1), fold(*delta, size, 1), fold(*A, size), _fold_projection(*B, size),
        _fold_projection(*C, size), fold(*D, size), fold(*z, size, 1), fold(*delta_bias, size),
        fold(*initial_state, size, 1),
    ]  # fmt: skip


@vmap("selective_scan", "selective_scan_fwd")
def _scan_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    *tensors, delta_softplus = args
    dims = dims[: len(tensors)]
    parameters = [2, 5, 7, *(i for i in (3, 4) if _constant(tensors[i], dims[i]))]
    if all(dims[i] is None for i in parameters):
        folded = [t if i in parameters else fold(t, dims[i], size) for i, t in enumerate(tensors)]
        axes = (0, 0, 0)
    else:
        folded = _fold_channels(size, dims, *tensors)
        axes = (1, 1, 2)
    outputs = op(*folded, delta_softplus)
    axes = axes[: len(outputs)]
    return tuple(unfold(output, size, axis) for output, axis in zip(outputs, axes, strict=True)), axes


@vmap("selective_scan_backward")
def _scan_backward_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    grad_out, grad_last_state, *tensors, checkpoints, delta_softplus = args
    grad_out, grad_last_state = fold(grad_out, dims[0], size, 1), fold(grad_last_state, dims[1], size, 1)
    checkpoints = fold(checkpoints, dims[11], size, 2)
    dims = dims[2:11]
    gradients = op(grad_out, grad_last_state, *_fold_channels(size, dims, *tensors), checkpoints, delta_softplus)
    axes = [0 if t is None else 1 if i in (0, 1, 6, 8) else 0 for i, t in enumerate(tensors)]
    for i in (3, 4):
        axes[i] = 0 if _constant(tensors[i], dims[i]) else 1
    gradients = [unfold(gradient, size, axis) for gradient, axis in zip(gradients, axes, strict=True)]
    for i in (3, 4):
        if _rank(tensors[i], dims[i]) == 3:
            gradients[i] = gradients[i].squeeze(2)
    return tuple(gradients), tuple(axes)


@vmap("selective_state_update")
def _update_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    if dims[0] is None:
        raise RuntimeError("state: expected a batched tensor, as the other arguments are: it is written in place")
    return loop(op, size, dims, *args)
