# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the compiled operator library, which needs no Python of its own.

Its absence is no import error: the reference then serves every op, and ``fgkernels info`` prints `ERROR`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch._ops import OpOverload

#: Namespace of the operators in torch.ops; builds that rename it change this line alone.
NAMESPACE = "fgkernels"

PATH = Path(__file__).resolve().parent.parent / f"libfgkernels.{'dylib' if sys.platform == 'darwin' else 'so'}"


def _load() -> str | None:
    """Loads the library; what stopped it, else None."""
    if not PATH.is_file():
        return f"{PATH.name} is not in {PATH.parent}: the package was installed without its compiled library"
    try:
        torch.ops.load_library(PATH)
    except OSError as error:
        return f"{PATH.name} could not be loaded with torch {torch.__version__}: {error}"
    if not torch._C._dispatch_has_kernel(f"{NAMESPACE}::maxsim"):
        return f"{PATH} holds no operators of the namespace {NAMESPACE!r}: it belongs to another build"
    return None


#: Why the compiled library is absent, None when it is loaded.
ERROR: str | None = _load()
LOADED = ERROR is None


def op(name: str) -> OpOverload | None:
    """The operator `name`, None without the compiled library."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default if LOADED else None
