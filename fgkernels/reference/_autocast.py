# SPDX-License-Identifier: Apache-2.0
"""What torch.autocast means for our operators: inputs are cast as matmul's would be, accumulation stays float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Asked once: torch 2.10 cannot trace the question.
_DEVICE_TYPES = frozenset(
    name for name in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "maia", "xla", "privateuseone")
    if torch.amp.is_autocast_available(name)
)  # fmt: skip


def cast(device_type: str, args: Sequence[Any], positions: Sequence[int]) -> list[Any]:
    """`args` with the tensors at `positions` in the dtype of the active autocast region of `device_type`.

    float64 and integer tensors, and those on other devices, stay as they are.
    """
    dtype = torch.get_autocast_dtype(device_type)
    args = list(args)
    for i in positions:
        if args[i].is_floating_point() and args[i].dtype != torch.float64 and args[i].device.type == device_type:
            args[i] = args[i].to(dtype)
    return args


def autocast_inputs(function: Callable) -> Callable:
    """Decorator: in an autocast region the first two arguments are cast and `function` runs with autocast disabled."""

    @functools.wraps(function)
    def wrapper(first: Tensor, second: Tensor, *args: Any, **options: Any) -> Any:
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            device_type = first.device.type
            if device_type in _DEVICE_TYPES and torch.is_autocast_enabled(device_type):
                first, second = cast(device_type, (first, second), (0, 1))
                with torch.autocast(device_type, enabled=False):
                    return function(first, second, *args, **options)
        return function(first, second, *args, **options)

    return wrapper
