# SPDX-License-Identifier: Apache-2.0
"""Which back end serves a call: "cpu" (the compiled library), "cuda", "triton" or "reference" (plain PyTorch).

The choice depends on the device of the tensors, the environment variable FGKERNELS_BACKEND and the context manager
`backend`; it is plain Python state, so torch.compile decides at trace time and guards on it.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from .ops import _library

NAMES = ("cpu", "cuda", "triton", "reference")
VARIABLE = "FGKERNELS_BACKEND"

#: Back ends tried per device type, best first; a device that isn't listed gets the reference.
_PREFERENCE = {
    "cpu": ("cpu", "reference"),
    "cuda": ("cuda", "triton", "reference"),
    "xpu": ("triton", "reference"),
}

#: Operator -> back ends that have a kernel for it, besides the reference.
_KERNELS: dict[str, tuple[str, ...]] = {}

_forced: str | None = os.environ.get(VARIABLE) or None

#: True when CPU tensors go to the compiled library: the one flag that public functions read on their fast path.
native_cpu: bool = _library.LOADED and _forced in (None, "cpu")


class Row(NamedTuple):
    """One line of ``fgkernels info``."""

    op: str
    device: str
    backend: str
    refused: dict[str, str]  # back end that would come first -> why it doesn't serve


def declare(op: str, *backends: str) -> None:
    """Says which back ends have a kernel for `op`."""
    _KERNELS[op] = backends


class backend:
    """Context manager that makes every call of this process use one back end: ``with fgkernels.backend("reference"):``.

    Args:
        name: "cpu", "cuda", "triton" or "reference". It overrides FGKERNELS_BACKEND.

    Raises:
        ValueError: if the name is unknown.
        RuntimeError: if this installation cannot use the back end at all (the text says why); also at a call whose
            tensors live on a device that the back end doesn't serve.
    """

    def __init__(self, name: str) -> None:
        _check_name(name, "backend")
        reason = _refusal(name)
        if reason is not None:
            raise RuntimeError(f'backend("{name}"): {reason}')
        self.name = name
        self._previous: str | None = None

    def __enter__(self) -> backend:
        self._previous = _forced
        _force(self.name)
        return self

    def __exit__(self, *exception: object) -> None:
        _force(self._previous)


def forced() -> bool:
    """Whether the context manager or the environment variable chose the back end."""
    return _forced is not None


def resolve(op: str, device_type: str) -> str:
    """The back end that serves `op` on this device type; a forced one that cannot is an error, never a fallback."""
    if _forced is not None:
        _check_name(_forced, VARIABLE)
        reason = _refusal(_forced, op, device_type)
        if reason is not None:
            raise RuntimeError(f'{op}: back end "{_forced}" was asked for, but {reason}')
        return _forced
    for name in _PREFERENCE.get(device_type, ("reference",)):
        if _refusal(name, op, device_type) is None:
            return name
    return "reference"


def describe() -> list[Row]:
    """Per operator and device type: the back end that serves it and why the ones before it were refused."""
    devices = ["cpu", "cuda"]
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type not in devices:
        devices.append(accelerator.type)
    rows = []
    for op in _KERNELS:
        for device in devices:
            refused: dict[str, str] = {}
            try:
                served = resolve(op, device)
            except (RuntimeError, ValueError) as error:
                rows.append(Row(op, device, "none", {_forced or "": str(error)}))
                continue
            for name in _PREFERENCE.get(device, ("reference",)):
                if name == served:
                    break
                refused[name] = _refusal(name, op, device) or f'"{served}" was asked for'
            rows.append(Row(op, device, served, refused))
    return rows


def _force(name: str | None) -> None:
    global _forced, native_cpu
    _forced = name
    native_cpu = _library.LOADED and name in (None, "cpu")


def _check_name(name: str, where: str) -> None:
    if name not in NAMES:
        raise ValueError(f"{where}: expected one of {', '.join(NAMES)}, got {name!r}")


def _refusal(name: str, op: str | None = None, device_type: str | None = None) -> str | None:
    """Why a back end cannot serve (an operator on a device type), None if it can."""
    if name == "reference":
        return None
    if name == "cpu" and not _library.LOADED:
        return _library.ERROR
    if name == "cuda":
        return "this build has no CUDA library"
    if name == "triton":
        return "this version has no Triton kernels"
    if device_type is not None and device_type != name:
        return f"it serves {name} tensors only, and these are on {device_type}"
    if op is not None and name not in _KERNELS.get(op, ()):
        return f"it has no kernel for {op}"
    return None
