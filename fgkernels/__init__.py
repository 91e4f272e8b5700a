# SPDX-License-Identifier: Apache-2.0
"""Kernels for fine-grained vision: torch operators on CPU, with a plain PyTorch reference everywhere else."""

from __future__ import annotations

import importlib
from types import ModuleType

from . import reference
from ._backend import backend
from ._version import __version__
from .ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from .ops.late_interaction import late_interaction, maxsim, maxsim_varlen, quantize_documents
from .ops.mamba_chunk_scan import mamba_chunk_scan_combined
from .ops.selective_scan import selective_scan, selective_state_update
from .ops.selective_scan_2d import cross_merge, cross_scan, scan_table, selective_scan_2d

__all__ = [
    "__version__",
    "backend",
    "causal_conv1d",
    "causal_conv1d_update",
    "cross_merge",
    "cross_scan",
    "late_interaction",
    "mamba_chunk_scan_combined",
    "maxsim",
    "maxsim_varlen",
    "quantize_documents",
    "reference",
    "scan_table",
    "selective_scan",
    "selective_scan_2d",
    "selective_state_update",
]

# Imported at first use: `import fgkernels` stays light.
_SUBMODULES = ("bench", "cli", "compat", "demo", "export", "integrations", "nn", "ops")


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
