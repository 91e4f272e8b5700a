# SPDX-License-Identifier: Apache-2.0
"""Kernels in Triton, for GPUs of several makers and, under its interpreter, for CPU tensors.

Importing this package imports no Triton; the modules beside it do, and are imported at the first call that needs them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

#: The Triton of the oldest torch that the package supports (2.10).
MINIMUM_VERSION = (3, 6)

INTERPRETER_VARIABLE = "TRITON_INTERPRET"


def refusal() -> str | None:
    """Why the Triton kernels cannot be used in this installation, None if they can. Imports no Triton."""
    try:
        spec = importlib.util.find_spec("triton")
    except (ImportError, ValueError):  # a half-initialised or blocked module
        spec = None
    if spec is None or spec.origin is None:
        return "Triton isn't installed (pip install triton)"
    version = _version(Path(spec.origin))
    if version is None:
        return f"the module triton at {spec.origin} names no version, so it isn't Triton"
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
        wanted = ".".join(map(str, MINIMUM_VERSION))
        return f"Triton {version} is too old, {wanted} or later is needed (pip install 'triton>={wanted}')"
    return None


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter (TRITON_INTERPRET=1), which serves CPU tensors.

    Triton decides when its kernels are defined: later changes of the variable have no effect.
    """
    kernels = sys.modules.get(f"{__name__}.device")
    if kernels is not None:
        return kernels.INTERPRETED
    return os.environ.get(INTERPRETER_VARIABLE, "").lower() in ("1", "true", "on", "yes", "y")


def _version(init: Path) -> str | None:
    """`__version__` as the package's text has it: its distributions go by several names, and importing it is slow."""
    try:
        found = re.search(r"^__version__\s*=\s*[\"'](\d+\.\d+[^\"']*)", init.read_text("utf-8"), re.MULTILINE)
    except OSError:
        return None
    return found.group(1) if found else None
