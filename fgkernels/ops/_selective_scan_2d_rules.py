# SPDX-License-Identifier: Apache-2.0
"""What the scans over maps need from Python: fake kernels, autograd and vmap rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..reference import _scan_checks as checks
from ..reference._scan_tables import inverse
from . import _library
from ._registration import (
    autograd,
    differentiable_through,
    empty_following,
    expect,
    fake,
    fold,
    loop,
    no_double_backward,
    unfold,
    vmap,
)
from ._selective_scan_rules import asked_for, empty_gradient

# --- fake kernels -----------------------------------------------------------------------------------------------------


@fake("cross_scan")
def _cross_scan_fake(x: Tensor, table: Tensor) -> Tensor:
    checks.check_cross_scan(expect, x, table)
    return x.new_empty(x.shape[0], table.shape[0], *x.shape[1:])


@fake("cross_merge")
def _cross_merge_fake(y: Tensor, table: Tensor) -> Tensor:
    checks.check_cross_merge(expect, y, table)
    return y.new_empty(y.shape[0], *y.shape[2:])


@fake("selective_scan_2d_fwd")
def _scan_fwd_fake(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    table: Tensor,
    delta_softplus: bool,
    ordered: bool,
) -> Tensor:
    checks.check_selective_scan_2d(expect, x, delta, A, B, C, D, z, delta_bias, table, ordered)
    return x.new_empty(x.shape[0], *x.shape[-2:])


@fake("selective_scan_2d")
def _scan_fake(x: Tensor, delta: Tensor, A: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    out = _scan_fwd_fake(x, delta, A, *args)
    batch, directions, channels, length = delta.shape
    return out, A.new_empty(batch, directions, channels, checks.scan_chunks(length), A.shape[-1])


@fake("selective_scan_2d_backward")
def _scan_backward_fake(
    grad_out: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    table: Tensor,
    checkpoints: Tensor,
    delta_softplus: bool,
    ordered: bool,
) -> tuple[Tensor, ...]:
    checks.check_selective_scan_2d(expect, x, delta, A, B, C, D, z, delta_bias, table, ordered)
    return (
        x.new_empty(x.shape),
        delta.new_empty(delta.shape),
        A.new_empty(A.shape),
        empty_following(B),
        empty_following(C),
        empty_gradient(D, A.dtype, x, follow=False),
        empty_gradient(z, x.dtype, x),
        empty_gradient(delta_bias, A.dtype, x, follow=False),
    )


# --- autograd: gathering and merging are each other's gradient --------------------------------------------------------

_cross_scan = _library.op("cross_scan")
_cross_merge = _library.op("cross_merge")
_backward_op = _library.op("selective_scan_2d_backward")


def _table_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _cross_scan_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _cross_merge(grad, inverse(*ctx.saved_tensors)), None


def _cross_merge_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _cross_scan(grad, inverse(*ctx.saved_tensors)), None


def _scan_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus, ctx.ordered = inputs
    checkpoints = output[1]
    ctx.set_materialize_grads(False)  # no zeros for the checkpoints
    ctx.mark_non_differentiable(checkpoints)
    ctx.save_for_backward(*tensors, checkpoints)


def _scan_backward(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 11
    gradients = _backward_op(grad_out, *ctx.saved_tensors, ctx.delta_softplus, ctx.ordered)
    return *asked_for(ctx, gradients), None, None, None


autograd("cross_scan", _cross_scan_backward, _table_context)
autograd("cross_merge", _cross_merge_backward, _table_context)
autograd("selective_scan_2d", _scan_backward, _scan_context)
differentiable_through("selective_scan_2d_fwd", "selective_scan_2d")
no_double_backward("selective_scan_2d", "selective_scan_2d_backward")

# --- vmap: entries become samples of the batch where they share table and parameters; a gradient's sums over the batch
# --- must not mix entries, so there the op runs once per entry


@vmap("cross_scan", "cross_merge")
def _cross_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    x, table = args
    if dims[1] is not None:
        return loop(op, size, dims, *args)
    return unfold(op(fold(x, dims[0], size), table), size), 0


@vmap("selective_scan_2d", "selective_scan_2d_fwd")
def _scan_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    shared = (2, 5, 7, 8)
    if any(dims[i] is not None for i in shared):
        return loop(op, size, dims, *args)
    outputs = op(*(fold(t, dims[i], size) if i in (0, 1, 3, 4, 6) else t for i, t in enumerate(args)))
    if isinstance(outputs, Tensor):
        return unfold(outputs, size), 0
    return tuple(unfold(output, size) for output in outputs), (0, 0)


@vmap("selective_scan_2d_backward")
def _scan_backward_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    return loop(op, size, dims, *args)
