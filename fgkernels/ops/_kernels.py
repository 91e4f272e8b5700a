# SPDX-License-Identifier: Apache-2.0
"""Kernels of the operators that come from Python: Triton's, and those that stand in while a back end is chosen.

All of them are entries in torch's dispatcher, like those of the C++ libraries, so that autograd, fake kernels,
autocast, vmap and compiled programs are the same for every back end. They find their implementation at the first call:
importing this package imports no Triton and no emulation.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from . import _library

#: Back ends that stand in for a device's default kernels while they are chosen, and under which dispatch keys.
STAND_INS = {"cuda-emulated": ("CPU",), "triton": ("CPU", "CUDA", "XPU")}

#: Keys under which Triton's kernels are the default where no C++ library has any.
_TRITON_KEYS = ("CUDA", "XPU")

#: Keeps the default Triton kernels as long as the package.
_DEFAULTS = torch.library.Library(_library.NAMESPACE, "IMPL") if _library.LOADED else None


def _constant(function: Callable) -> Callable:
    """torch.compiler.assume_constant_result, without the import of torch._dynamo that it costs."""
    function._dynamo_marked_constant = True
    return function


@_constant
def triton_refusal(device_type: str | None) -> str | None:
    """Why Triton cannot serve this device type here (None: any at all), None if it can. Constant within a process."""
    triton = importlib.import_module("..triton", __package__)
    reason = triton.refusal()
    if reason is None and device_type == "cpu" and not triton.interpreted():
        return "it serves CPU tensors only in Triton's interpreter: set TRITON_INTERPRET=1 before triton is imported"
    return reason


@_constant
def emulated_refusal() -> str | None:
    """Why the emulated CUDA kernels cannot serve here, None if they can. Constant within a process."""
    return _library.emulated_error()


@functools.cache
def _triton_kernels(family: str) -> dict[str, Callable]:
    return importlib.import_module(f"..triton.{family}", __package__).KERNELS


def _find(backend: str, family: str, operator: str, device_type: str) -> Callable:
    """The implementation of an operator, or an error that says why there is none."""
    if backend == "triton":
        reason = triton_refusal(device_type)
        if reason is None:
            return _triton_kernels(family)[operator]
        if device_type == "cuda" and _library.CUDA_ERROR is not None:
            reason += f"; the compiled CUDA kernels: {_library.CUDA_ERROR}"
    else:
        reason = emulated_refusal()
        if reason is None:
            return _library.emulated_op(operator)
    raise RuntimeError(f'{operator}: back end "{backend}" cannot serve {device_type} tensors: {reason}')


def _kernel(backend: str, family: str, operator: str) -> Callable:
    """A dispatcher entry that finds the implementation of `operator` when it is called."""
    arguments = _library.op(operator)._schema.arguments
    names = [argument.name for argument in arguments]
    tensors = [i for i, argument in enumerate(arguments) if "Tensor" in str(argument.type)]
    required = {i for i in tensors if isinstance(arguments[i].type, torch.TensorType)}

    def kernel(*args: Any) -> Any:
        first = next(i for i in tensors if args[i] is not None)
        device = args[first].device
        for i in tensors:
            if args[i] is None:
                if i in required:  # torch lets None pass for a tensor
                    raise TypeError(f"{names[i]}: expected a Tensor, got None")
            elif args[i].device != device:
                raise ValueError(f"{names[i]}: expected device {device} like {names[first]}, got {args[i].device}")
        # An operator without a gradient of its own gets here with the Autograd keys on; none is wanted below.
        with torch._C._AutoDispatchBelowAutograd():
            return _find(backend, family, operator, device.type)(*args)

    return kernel


def register_defaults(family: str, operators: Iterable[str]) -> None:
    """Gives the operators Triton's kernels on the devices for which no C++ library has any."""
    if _DEFAULTS is None:
        return
    for operator in operators:
        for key in _TRITON_KEYS:
            if not _library.has_kernel(operator, key):
                _DEFAULTS.impl(operator, _kernel("triton", family, operator), key)


class StandIn:
    """Kernels of one back end in place of the default ones of these families, until `remove`."""

    def __init__(self, backend: str, families: dict[str, Iterable[str]]) -> None:
        self.backend = backend
        self._library = torch.library.Library(_library.NAMESPACE, "IMPL") if _library.LOADED else None
        for family, operators in families.items():
            self.add(family, operators)

    def add(self, family: str, operators: Iterable[str]) -> None:
        """Also for a family that is declared while the back end is chosen."""
        if self._library is None:
            return
        with warnings.catch_warnings():
            # torch says once per process that a kernel is overridden, which is the purpose here.
            warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
            for operator in operators:
                kernel = _kernel(self.backend, family, operator)
                for key in STAND_INS[self.backend]:
                    self._library.impl(operator, kernel, key, allow_override=True)

    def remove(self) -> None:
        """The kernels that were there before serve again."""
        if self._library is not None:
            self._library._destroy()
