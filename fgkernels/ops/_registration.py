# SPDX-License-Identifier: Apache-2.0
"""What every family registers for its C++ operators, in one place: fake kernels, autograd, autocast and vmap.

Without the compiled library there is nothing to register and all of it is a no-op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _library

#: Keeps the registrations alive as long as the package.
_LIBRARY = torch.library.Library(_library.NAMESPACE, "FRAGMENT") if _library.LOADED else None


def _qualified(name: str) -> str:
    return f"{_library.NAMESPACE}::{name}"


def fake(*names: str) -> Callable[[Callable], Callable]:
    """Decorator: the function gives shapes, dtypes, devices and strides of these operators' outputs."""

    def register(function: Callable) -> Callable:
        if _LIBRARY is not None:
            for name in names:
                torch.library.register_fake(_qualified(name), function, lib=_LIBRARY)
        return function

    return register


def expect(condition: bool, error: type[Exception], message: Callable[[], str]) -> None:
    """`expect` (see reference._checks) of fake kernels: RuntimeError as from C++; the condition may be symbolic."""
    torch._check(condition, message)


def autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    if _LIBRARY is not None:
        torch.library.register_autograd(_qualified(name), backward, setup_context=setup_context, lib=_LIBRARY)


def no_double_backward(function: str, *names: str) -> None:
    """Gradients of these backward operators raise instead of being dropped."""

    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"{function}: second derivatives are not supported by the compiled operators; "
            'use fgkernels.backend("reference") for them'
        )

    for name in names:
        autograd(name, backward, lambda ctx, inputs, output: None)


def autocast(*names: str, cast: Sequence[int]) -> None:
    """In a CPU or CUDA autocast region the tensors at positions `cast` take the region's dtype, as matmul's would.

    float64 and integer tensors stay as they are, and so does every other argument. (torch.library.register_autocast
    would cast all tensors, and to one dtype fixed beforehand.)
    """
    if _LIBRARY is None:
        return
    for name in names:
        for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _LIBRARY.impl(name, _autocast_kernel(_library.op(name), device_type, key, cast), key)


def _autocast_kernel(op: Callable, device_type: str, key: str, cast: Sequence[int]) -> Callable:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args: Any) -> Any:
        args = cast_for_autocast(device_type, args, cast)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*args)

    return kernel


def cast_for_autocast(device_type: str, args: Sequence[Any], cast: Sequence[int]) -> list[Any]:
    """`args` with the tensors at positions `cast` in the dtype of the active autocast region."""
    dtype = torch.get_autocast_dtype(device_type)
    args = list(args)
    for i in cast:
        if args[i].is_floating_point() and args[i].dtype != torch.float64 and args[i].device.type == device_type:
            args[i] = args[i].to(dtype)
    return args


# --- vmap -------------------------------------------------------------------------------------------------------------


def vmap(*names: str) -> Callable[[Callable], Callable]:
    """Decorator: `rule(op, size, dims, *args) -> (outputs, dims)` batches each of these operators."""

    def register(rule: Callable) -> Callable:
        if _LIBRARY is not None:
            for name in names:
                op = _library.op(name)
                torch.library.register_vmap(
                    _qualified(name),
                    lambda info, dims, *args, op=op: rule(op, info.batch_size, dims, *args),
                    lib=_LIBRARY,
                )
        return rule

    return register


def place(tensor: Tensor | None, dim: int | None, size: int, axis: int = 0) -> Tensor | None:
    """Moves the batch dimension `dim` (None: the tensor is repeated) to `axis`."""
    if tensor is None:
        return None
    if dim is None:
        return tensor.unsqueeze(axis).expand(*tensor.shape[:axis], size, *tensor.shape[axis:])
    return tensor.movedim(dim, axis)


def fold(tensor: Tensor | None, dim: int | None, size: int, axis: int = 0) -> Tensor | None:
    """Merges the batch dimension `dim` (None: the tensor is repeated) into `axis` of the sample: index b * n + i."""
    return None if tensor is None else place(tensor, dim, size, axis).flatten(axis, axis + 1)


def unfold(tensor: Tensor, size: int, axis: int = 0) -> Tensor:
    """Undoes `fold`: the batch dimension comes back at `axis`."""
    return tensor.unflatten(axis, (size, tensor.shape[axis] // size))


def loop(op: Callable, size: int, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    """Batches `op` by one call per sample, where folding would copy a whole side per sample."""
    samples = [
        op(*(arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, dims, strict=True)))
        for i in range(size)
    ]
    if isinstance(samples[0], Tensor):
        return torch.stack(samples), 0
    return tuple(torch.stack(parts) for parts in zip(*samples, strict=True)), (0,) * len(samples[0])
