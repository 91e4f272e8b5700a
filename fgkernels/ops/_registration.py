# SPDX-License-Identifier: Apache-2.0
"""What every family registers for its C++ operators, in one place: fake kernels, autograd, autocast and vmap.

Without the compiled library there is nothing to register and all of it is a no-op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function

from ..reference import _autocast
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


def empty_following(tensor: Tensor) -> Tensor:
    """Output like `tensor` (..., C, L) of the operators on sequences: channel-last where it is, else contiguous."""
    if tensor.dim() > 1 and tensor.stride(-1) != 1 and tensor.stride(-2) == 1:
        return tensor.new_empty((*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])).transpose(-1, -2)
    return tensor.new_empty(tensor.shape)


def autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    """Attaches a gradient: `setup_context(ctx, inputs, output)` and `backward(ctx, *grads) -> one gradient per input`.

    torch.library.register_autograd does the same but refuses torch.func.grad, since its autograd.Function lets
    functorch intercept `apply`. A kernel of the Autograd key already runs at one functorch level, which is what
    _SingleLevelFunction is for.
    """
    if _LIBRARY is None:
        return
    op = _library.op(name)

    class Gradient(torch.autograd.function._SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *inputs, keys = args
            output = below(keys, inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            return *backward(ctx, *grads), None

    Gradient.__name__ = Gradient.__qualname__ = f"{name}_gradient"

    def below(keys: torch._C.DispatchKeySet, inputs: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keys & torch._C._after_autograd_keyset, *inputs)

    def kernel(keys: torch._C.DispatchKeySet, *inputs: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            if torch._C._are_functorch_transforms_active():
                with enable_single_level_autograd_function():
                    return Gradient.apply(*inputs, keys)
            return Gradient.apply(*inputs, keys)
        return below(keys, inputs)

    _LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)


def asked_for(ctx: Any, gradients: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of inputs that need one: those of absent inputs don't."""
    return [value if needed else None for value, needed in zip(gradients, ctx.needs_input_grad, strict=False)]


def differentiable_through(name: str, kept: str) -> None:
    """Gradients of the forward-only operator `name`: where one is asked for, the operator `kept` runs instead.

    `kept` returns what `name` returns and after it what its own backward needs.
    """
    if _LIBRARY is None:
        return
    op, kept_op = _library.op(name), _library.op(kept)
    outputs = len(op._schema.returns)

    def kernel(keys: torch._C.DispatchKeySet, *inputs: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            found = kept_op(*inputs)
            return found[0] if outputs == 1 else found[:outputs]
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keys & torch._C._after_autograd_keyset, *inputs)

    _LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)


def no_double_backward(function: str, *names: str) -> None:
    """Gradients of these backward operators raise instead of being dropped."""

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"{function}: second derivatives are not supported by the compiled operators; "
            'use fgkernels.backend("reference") for them'
        )

    for name in names:
        autograd(name, backward, lambda ctx, inputs, output: None)


def in_place(name: str, written: Sequence[int], refuse: Callable[..., None]) -> None:
    """An operator that writes its arguments at the positions `written` and has no gradient.

    `refuse(*tensors)` raises where one would have to be kept. Autograd learns that the written tensors have changed.
    """
    if _LIBRARY is None:
        return
    op = _library.op(name)

    def autograd_kernel(keys: torch._C.DispatchKeySet, *args: Any) -> Any:
        refuse(*(arg for arg in args if isinstance(arg, Tensor)))
        return op.redispatch(keys & torch._C._after_autograd_keyset, *args)

    def version_kernel(keys: torch._C.DispatchKeySet, *args: Any) -> Any:
        for i in written:
            torch.autograd.graph.increment_version(args[i])
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return op.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *args)

    _LIBRARY.impl(name, autograd_kernel, "Autograd", with_keyset=True)
    _LIBRARY.impl(name, version_kernel, "ADInplaceOrView", with_keyset=True)


def autocast(*names: str, cast: Sequence[int]) -> None:
    """In a CPU, CUDA or XPU autocast region the tensors at positions `cast` take the region's dtype, as matmul's would.

    float64 and integer tensors stay as they are, and so does every other argument. (torch.library.register_autocast
    would cast all tensors, and to one dtype fixed beforehand.)
    """
    if _LIBRARY is None:
        return
    for name in names:
        for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA"), ("xpu", "AutocastXPU")):
            _LIBRARY.impl(name, _autocast_kernel(_library.op(name), device_type, key, cast), key)


def _autocast_kernel(op: Callable, device_type: str, key: str, cast: Sequence[int]) -> Callable:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args: Any) -> Any:
        args = _autocast.cast(device_type, args, cast)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*args)

    return kernel


# --- vmap -------------------------------------------------------------------------------------------------------------


def vmap(*names: str) -> Callable[[Callable], Callable]:
    """Decorator: `rule(op, size, dims, *args) -> (outputs, dims)` batches each of these operators."""

    def register(rule: Callable) -> Callable:
        if _LIBRARY is not None:
            for name in names:
                torch.library.register_vmap(_qualified(name), _batching(_library.op(name), rule), lib=_LIBRARY)
        return rule

    return register


def _batching(op: Callable, rule: Callable) -> Callable:
    def batched(info: Any, dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        return rule(op, info.batch_size, dims, *args) if info.batch_size > 0 else _empty_batch(op, dims, args)

    return batched


def _empty_batch(op: Callable, dims: Sequence[int | None], args: Sequence[Any]) -> tuple[Any, Any]:
    """Outputs of a batch without entries: the fake kernel knows the shape of one."""
    device = next(arg.device for arg in args if isinstance(arg, Tensor))

    def sample(arg: Any, dim: int | None) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        return arg.new_empty([n for i, n in enumerate(arg.shape) if i != dim], device="meta")

    outputs = op(*(sample(arg, dim) for arg, dim in zip(args, dims, strict=True)))
    if isinstance(outputs, Tensor):
        return outputs.new_empty((0, *outputs.shape), device=device), 0
    return tuple(out.new_empty((0, *out.shape), device=device) for out in outputs), (0,) * len(outputs)


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
