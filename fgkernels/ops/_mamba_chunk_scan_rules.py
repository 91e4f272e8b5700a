# SPDX-License-Identifier: Apache-2.0
"""What the operators of Mamba-2's scan need from Python: fake kernels, autograd and vmap rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..reference import _checks
from ..reference import mamba_chunk_scan as reference
from . import _library
from ._registration import (
    asked_for,
    autograd,
    differentiable_through,
    expect,
    fake,
    fold,
    loop,
    no_double_backward,
    unfold,
    vmap,
)

# Arguments of the forward operators, in order: x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, dt_softplus,
# dt_min, dt_max. The backward has two gradients before them and the checkpoints after seq_idx.
_TENSORS = 10

# --- fake kernels: outputs are contiguous -----------------------------------------------------------------------------


@fake("mamba_chunk_scan_fwd")
def _forward_fake(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    reference.check_forward(expect, x, dt, A, B, *args[: _TENSORS - 4])
    batch, _, heads, channels = x.shape
    return x.new_empty(x.shape), A.new_empty((batch, heads, channels, B.shape[3]))


@fake("mamba_chunk_scan")
def _kept_fake(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    out, final_states = _forward_fake(x, dt, A, B, *args)
    chunks = (x.shape[1] + reference.CHECKPOINT_STEPS - 1) // reference.CHECKPOINT_STEPS
    return out, final_states, A.new_empty((x.shape[0], chunks, *final_states.shape[1:]))


@fake("mamba_chunk_scan_backward")
def _backward_fake(grad_out: Tensor, grad_final_states: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    _checks.check_tensor("grad_out", grad_out)
    tensors = args[:_TENSORS]
    reference.check_forward(expect, *tensors)
    x, _, A, *_ = tensors
    wide = ("D", "dt_bias", "initial_states")
    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
    return tuple(
        (A if name in wide else x).new_empty((0,)) if value is None else value.new_empty(value.shape)
        for name, value in zip(names, tensors[:-1], strict=True)
    )


# --- autograd ---------------------------------------------------------------------------------------------------------

_backward_op = _library.op("mamba_chunk_scan_backward")


def _context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    out, _, checkpoints = output
    ctx.mark_non_differentiable(checkpoints)
    ctx.set_materialize_grads(False)  # the final states' gradient is often absent
    ctx.save_for_backward(*inputs[:_TENSORS], checkpoints)
    ctx.options = inputs[_TENSORS:]


def _backward(
    ctx: Any, grad_out: Tensor | None, grad_final_states: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    *tensors, checkpoints = ctx.saved_tensors
    if grad_out is None and grad_final_states is None:
        return (None,) * (_TENSORS + 3)
    if grad_out is None:
        grad_out = tensors[0].new_zeros(tensors[0].shape)
    gradients = _backward_op(grad_out, grad_final_states, *tensors, checkpoints, *ctx.options)
    return *asked_for(ctx, gradients), None, None, None, None


autograd("mamba_chunk_scan", _backward, _context)
differentiable_through("mamba_chunk_scan_fwd", "mamba_chunk_scan")
no_double_backward("mamba_chunk_scan_combined", "mamba_chunk_scan_backward")

# --- vmap: samples are folded into the batch, or, where each has parameters or their gradients of its own, into the
# --- heads; then sequence numbers, which all heads share, must be shared too

#: Axis of the heads or groups in x, dt, A, B, C, D, z, dt_bias, initial_states.
_HEAD_AXES = (2, 2, 0, 2, 2, 0, 2, 0, 1)
_PARAMETERS = (2, 5, 7)
_SEQ_IDX = 9


@vmap("mamba_chunk_scan", "mamba_chunk_scan_fwd")
def _forward_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    if all(dims[i] is None for i in _PARAMETERS):
        folded = [arg if i in _PARAMETERS else fold(arg, dims[i], size) for i, arg in enumerate(args[:_TENSORS])]
        outputs = op(*folded, *args[_TENSORS:])
        return tuple(unfold(output, size) for output in outputs), (0,) * len(outputs)
    if dims[_SEQ_IDX] is not None:
        return loop(op, size, dims, *args)
    outputs = op(*_in_heads(size, dims, args), *args[_SEQ_IDX:])
    axes = (2, 1, 2)[: len(outputs)]
    return tuple(unfold(output, size, axis) for output, axis in zip(outputs, axes, strict=True)), axes


@vmap("mamba_chunk_scan_backward")
def _backward_vmap(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    tensors, tensor_dims = args[2 : 2 + _SEQ_IDX], dims[2 : 2 + _SEQ_IDX]
    seq_idx, checkpoints, *options = args[2 + _SEQ_IDX :]
    if dims[2 + _SEQ_IDX] is not None:
        return loop(op, size, dims, *args)
    outputs = op(
        fold(args[0], dims[0], size, 2), fold(args[1], dims[1], size, 1), *_in_heads(size, tensor_dims, tensors),
        seq_idx, fold(checkpoints, dims[3 + _SEQ_IDX], size, 2), *options,
    )  # fmt: skip
    axes = tuple(0 if value is None else axis for value, axis in zip(tensors, _HEAD_AXES, strict=True))
    return tuple(unfold(output, size, axis) for output, axis in zip(outputs, axes, strict=True)), axes


def _in_heads(size: int, dims: Sequence[int | None], tensors: Sequence[Any]) -> list[Tensor | None]:
    """The tensors before seq_idx with the heads, and the groups, of all samples."""
    return [fold(value, dim, size, axis) for value, dim, axis in zip(tensors, dims, _HEAD_AXES, strict=False)]
