# SPDX-License-Identifier: Apache-2.0
"""Kernels for fine-grained vision: torch operators on CPU, with a plain PyTorch reference everywhere else."""

from __future__ import annotations

import importlib
from types import ModuleType

from . import reference
from ._backend import backend
from ._version import __version__
from .ops.late_interaction import late_interaction, maxsim, maxsim_varlen, quantize_documents

__all__ = [
    "__version__",
    "backend",
    "late_interaction",
    "maxsim",
    "maxsim_varlen",
    "quantize_documents",
    "reference",
]

# Imported at first use: `import fgkernels` stays light.
_SUBMODULES = ("bench", "cli", "compat", "demo", "export", "nn", "ops")


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
