# SPDX-License-Identifier: Apache-2.0
"""Which back end serves a call.

    cpu            the compiled library's CPU kernels
    cuda           the compiled CUDA kernels
    triton         Triton kernels: CUDA, ROCm and XPU tensors, and CPU tensors in Triton's interpreter
    cuda-emulated  the CUDA kernels run on CPU tensors by the emulator of the tests (development builds)
    reference      plain PyTorch, on any device

The device of the tensors decides, unless the environment variable FGKERNELS_BACKEND or the context manager `backend`
does. All but the reference are kernels of the same operators, between which torch's dispatcher chooses when an operator
runs: one that is no device's default stands in for the default kernels while it is chosen. Whether a call becomes an
operator or the reference's formula is decided here, in Python, so torch.compile decides it while tracing; it guards on
the names below and traces again when they change.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .ops import _kernels, _library

NAMES = ("cpu", "cuda", "cuda-emulated", "triton", "reference")
VARIABLE = "FGKERNELS_BACKEND"

#: Device types that each back end can serve; the reference serves any.
_DEVICES = {"cpu": ("cpu",), "cuda": ("cuda",), "cuda-emulated": ("cpu",), "triton": ("cpu", "cuda", "xpu")}

#: Back ends tried per device type, best first; a device that isn't listed gets the reference. ROCm's is called cuda.
_PREFERENCE = {
    "cpu": ("cpu", "reference"),
    "cuda": ("triton", "reference") if torch.version.hip else ("cuda", "triton", "reference"),
    "xpu": ("triton", "reference"),
}

_LOCK = threading.RLock()

#: The name that the environment chooses, and the context managers that are entered, the innermost last.
_environment: str | None = os.environ.get(VARIABLE) or None
_entered: list[backend] = []

#: The name that is chosen, whether or not it can serve anything; None: each device's preference.
_forced: str | None = _environment

#: The back end whose kernels serve CPU tensors; None: the reference, or not known before the first call. All that the
#: public functions read on their fast path.
native_cpu: str | None = "cpu" if _library.LOADED and _forced in (None, "cpu") else None

#: Device type -> back end, as far as calls have asked for it.
_served: dict[str, str] = {}

#: Kernels that stand in for the default ones at this moment, and of which back end.
_stand_in: _kernels.StandIn | None = None
_stand_in_name: str | None = None


class Family(NamedTuple):
    """The public functions of an op family and its operators, forward and backward; each back end has all of them."""

    functions: tuple[str, ...]
    operators: tuple[str, ...]


_families: dict[str, Family] = {}


class Row(NamedTuple):
    """One line of ``fgkernels info``."""

    op: str
    device: str
    backend: str  # "none" where a chosen back end cannot serve this device
    on_request: tuple[str, ...]  # back ends that `backend` could choose instead
    refused: dict[str, str]  # back end for this device -> why it cannot serve here


def declare(family: str, functions: Sequence[str], operators: Sequence[str]) -> None:
    """Makes a family known, named as its modules (``fgkernels.triton.<family>``)."""
    _families[family] = Family(tuple(functions), tuple(operators))
    _kernels.register_defaults(family, operators)
    if _stand_in is not None:
        _stand_in.add(family, operators)


class backend:
    """Context manager that makes every call of this process use one back end: ``with fgkernels.backend("reference"):``.

    Args:
        name: "cpu", "cuda", "cuda-emulated", "triton" or "reference". It overrides FGKERNELS_BACKEND. Of nested ones
            the innermost counts; of those entered by several threads the latest that is still entered.

    Raises:
        ValueError: if the name is unknown.
        RuntimeError: if this installation cannot use the back end at all (the text says why); also at a call whose
            tensors live on a device that the back end doesn't serve. Inside a function that torch.compile or
            torch.export traces only "reference" can be entered: operators find their kernel when they run, by when
            the context is left.

    The choice holds for the whole process, and for a backward pass by the time at which it runs. "reference" speaks to
    the functions of this package: operators of a program that already holds them (exported, or calling torch.ops) keep
    running on kernels.
    """

    def __init__(self, name: str) -> None:
        _check_name(name, "backend")
        reason = _refusal(name)
        if reason is not None:
            raise RuntimeError(f'backend("{name}"): {reason}')
        self.name = name
        self._before: list[tuple[str | None, str | None] | None] = []

    def __enter__(self) -> backend:
        global _forced, native_cpu
        if torch.compiler.is_compiling():
            if self.name != "reference" and _standing_in(self.name) != _stand_in_name:
                raise RuntimeError(
                    f'backend("{self.name}") inside a traced function has no effect when its operators run: '
                    "enter it around the call of the compiled function"
                )
            self._before.append((_forced, native_cpu))
            _forced, native_cpu = self.name, None
        else:
            self._before.append(None)
            _untraced(_enter, self)
        return self

    def __exit__(self, *exception: object) -> None:
        global _forced, native_cpu
        # torch.compile may run a frame eagerly and trace this one, so what counts is how the context was entered.
        before = self._before.pop()
        if before is None:
            _untraced(_leave, self)
        else:
            _forced, native_cpu = before


def _enter(context: backend) -> None:
    with _LOCK:
        _entered.append(context)
        _update()


def _leave(context: backend) -> None:
    with _LOCK:
        del _entered[len(_entered) - 1 - _entered[::-1].index(context)]
        _update()


def _untraced(function: Callable, *args: Any) -> None:
    """Calls a function that torch.compile must not look into; torch.compiler.disable always imports torch._dynamo."""
    disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
    (function if disable is None else disable(function))(*args)


def forced() -> bool:
    """Whether the context manager or the environment variable chose the back end."""
    return _forced is not None


def has_kernels(function: str, left: Tensor, right: Tensor) -> bool:
    """Whether a call is for the operators (True) or for the reference, which also names a mismatch of devices.

    Raises:
        ValueError, RuntimeError: if FGKERNELS_BACKEND is unknown, or the chosen back end cannot serve the tensors.
    """
    global native_cpu
    device_type = left.device.type
    if torch.compiler.is_compiling():
        served = resolve(function, device_type)
    else:
        served = _served.get(device_type)
        if served is None:
            served = _served[device_type] = resolve(function, device_type)
            if device_type == "cpu" and served != "reference":
                native_cpu = served
    return served != "reference" and left.device == right.device


def resolve(function: str, device_type: str) -> str:
    """The back end that serves `function` on this device type; a chosen one that cannot is an error, not a fallback."""
    if _forced is not None:
        _check_name(_forced, VARIABLE)
        reason = _refusal(_forced, device_type)
        if reason is not None:
            raise RuntimeError(f'{function}: back end "{_forced}" was asked for, but {reason}')
        return _forced
    for name in _PREFERENCE.get(device_type, ("reference",)):
        if _refusal(name, device_type) is None:
            return name
    return "reference"


def describe() -> list[Row]:
    """Per function and device type: the back end that serves it, the others that could, and why the rest cannot."""
    devices = ["cpu", "cuda"]
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type not in devices:
        devices.append(accelerator.type)
    functions = [function for family in _families.values() for function in family.functions]
    return [_row(function, device) for function in functions for device in devices]


def _row(function: str, device: str) -> Row:
    error = None
    try:
        served = resolve(function, device)
    except (RuntimeError, ValueError) as raised:
        served, error = "none", str(raised)
    candidates = [name for name in NAMES if device in _DEVICES.get(name, (device,)) and name != served]
    refused = {name: reason for name in candidates if (reason := _refusal(name, device)) is not None}
    on_request = tuple(name for name in candidates if name not in refused)
    if error is not None:
        name = str(_forced)
        refused[name] = (_refusal(name, device) if name in NAMES else None) or error
    return Row(function, device, served, on_request, refused)


def _update() -> None:
    """Puts the innermost context manager's choice, or the environment's, in force."""
    global _forced, native_cpu
    _forced = _entered[-1].name if _entered else _environment
    _put_in_place(_forced)
    native_cpu = "cpu" if _library.LOADED and _forced in (None, "cpu") else None
    if _entered and _standing_in(_forced) and _refusal(_forced, "cpu") is None:
        native_cpu = _forced
    _served.clear()


def _standing_in(name: str | None) -> str | None:
    """The back end whose kernels must stand in for the default ones while `name` is chosen."""
    return name if name in _kernels.STAND_INS else None


def _put_in_place(name: str | None) -> None:
    """Has the dispatcher call the kernels of this back end; the reference has none and leaves things as they are."""
    global _stand_in, _stand_in_name
    wanted = _standing_in(name)
    if name == "reference" or wanted == _stand_in_name:
        return
    if _stand_in is not None:
        _stand_in.remove()
    operators = {family: members.operators for family, members in _families.items()}
    _stand_in = None if wanted is None else _kernels.StandIn(wanted, operators)
    _stand_in_name = wanted


def _check_name(name: str, where: str) -> None:
    if name not in NAMES:
        raise ValueError(f"{where}: expected one of {', '.join(NAMES)}, got {name!r}")


def _refusal(name: str, device_type: str | None = None) -> str | None:
    """Why a back end cannot serve a device type (None: any at all), None if it can."""
    if name == "reference":
        return None
    devices = _DEVICES[name]
    if device_type is not None and device_type not in devices:
        return f"it serves {' and '.join(devices)} tensors only, and these are on {device_type}"
    if _library.ERROR is not None:  # without operators there is nothing that kernels could serve
        return _library.ERROR
    if name == "cuda":
        return _library.CUDA_ERROR
    if name == "cuda-emulated":
        return _kernels.emulated_refusal()
    if name == "triton":
        return _triton_refusal(device_type)
    return None


def _triton_refusal(device_type: str | None) -> str | None:
    if device_type == "cuda" and not (torch.version.cuda or torch.version.hip):
        return f"torch {torch.__version__} is built without CUDA"
    return _kernels.triton_refusal(device_type)


_put_in_place(_forced)
