# SPDX-License-Identifier: Apache-2.0
"""What the sequence operators do with their arguments: errors, and memory for results in the arguments' layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def expect(condition: bool, error: type[Exception], message: Callable[[], str]) -> None:
    """Checks raise RuntimeError, as the compiled operators do."""
    if not condition:
        raise RuntimeError(message())


def checked_on_cpu(check: Callable[..., None], values: Tensor, *rest: object) -> None:
    """A check that reads values, which on another device would make the host wait."""
    if values.device.type == "cpu":
        try:
            check(values, *rest)
        except ValueError as error:
            raise RuntimeError(str(error)) from None


def strides(name: str, tensor: Tensor | None, axes: str) -> dict[str, Any]:
    """The arguments `name` and `name`_stride_* of a kernel; without a tensor its strides are 0."""
    steps = [0] * len(axes) if tensor is None else tensor.stride()
    return {name: tensor, **{f"{name}_stride_{axis}": step for axis, step in zip(axes, steps, strict=True)}}


def like(sequence: Tensor) -> Tensor:
    """Memory for a result (B, D, L): channel-last where the sequence is, else contiguous."""
    return _dense(sequence, sequence.stride(1) == 1 and sequence.stride(2) != 1)


def like_projection(projection: Tensor) -> Tensor:
    """Memory for the gradient of B or C (..., N, L): states last where they are in memory, else contiguous."""
    if projection.dim() < 3:
        return _dense(projection, False)
    return _dense(projection, projection.stride(-2) == 1 and projection.stride(-1) != 1)


def _dense(tensor: Tensor, swapped: bool) -> Tensor:
    if not swapped:
        return tensor.new_empty(tensor.shape)
    *outer, rows, columns = tensor.shape
    return tensor.new_empty(*outer, columns, rows).transpose(-2, -1)


def or_empty(gradient: Tensor | None, other: Tensor) -> Tensor:
    """An operator's output for the gradient of an optional input: (0,) of the dtype of `other` where it is absent."""
    return other.new_empty(0) if gradient is None else gradient
