# SPDX-License-Identifier: Apache-2.0
"""How public functions choose between operators and reference, in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _backend

# Looked up once: every call asks both.
_is_grad_enabled = torch.is_grad_enabled
_in_functorch = torch._C._are_functorch_transforms_active


def runs_operators(function: str, left: Tensor, right: Tensor) -> bool:
    """Whether a call with these two required arguments, tensors or not, is for the operators."""
    return (
        isinstance(left, Tensor)
        and isinstance(right, Tensor)
        and ((_backend.native_cpu and left.is_cpu and right.is_cpu) or _backend.has_kernels(function, left, right))
        and forward_ad._current_level < 0
    )


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether autograd must see the call. Inside torch.func transforms requires_grad may read False, so they count."""
    if _is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return _in_functorch()


def keeps(*tensors: Tensor | None) -> bool:
    """Whether the operator that keeps something for a backward must run.

    Exported programs get the forward-only one (see `differentiable_through`): what the other keeps has a size that
    would restrict the lengths for which the program is good.
    """
    return differentiated(*tensors) and not torch.compiler.is_exporting()


def forward_only(op: Callable, *args: Any) -> Any:
    """A call that keeps nothing, past the operator's rules for autograd, which cost a third of a small one.

    Traced and transformed programs need them: they decide later.
    """
    if torch.compiler.is_compiling() or _in_functorch():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def reference_call(function: Callable, *args: Any, **options: Any) -> Any:
    """The call on the reference back end; an error where a back end without forward-mode derivatives was chosen."""
    if forward_ad._current_level >= 0 and _backend.forced() and isinstance(args[0], Tensor):
        served = _backend.resolve(function.__name__, args[0].device.type)
        if served != "reference":
            raise RuntimeError(f'{function.__name__}: back end "{served}" has no forward-mode derivatives')
    return function(*args, **options)
