# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the compiled operator libraries, which need no Python of their own.

The absence of one is no import error: other back ends then serve its devices, and ``fgkernels info`` prints why.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
from torch._ops import OpOverload

#: Namespace of the operators in torch.ops; builds that rename it change this line alone.
NAMESPACE = "fgkernels"

#: Namespace of the same operators whose CUDA kernels run on CPU tensors in the emulator of the tests.
EMULATED_NAMESPACE = f"{NAMESPACE}_emulated"


def _file(name: str) -> Path:
    return Path(__file__).resolve().parent.parent / f"{name}.{'dylib' if sys.platform == 'darwin' else 'so'}"


PATH = _file("libfgkernels")
CUDA_PATH = _file("libfgkernels_cuda")
EMULATED_PATH = _file("libfgkernels_emulated")


def _load(path: Path, absent: str, namespace: str, key: str) -> str | None:
    """Loads a library that must register `key` kernels in `namespace`; what stopped it, else None."""
    if not path.is_file():
        return f"{path.name} is not in {path.parent}: {absent}"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} could not be loaded with torch {torch.__version__}: {error}"
    # Asking for a kernel of an operator that has no schema would be an error.
    if not (torch._C._dispatch_has_kernel(f"{namespace}::maxsim") and has_kernel("maxsim", key, namespace)):
        return f"{path} holds no {key} operators of the namespace {namespace!r}: it belongs to another build"
    return None


def has_kernel(name: str, key: str, namespace: str = NAMESPACE) -> bool:
    """Whether the operator `name` has a kernel of its own under this dispatch key."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", key)


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built {'for ROCm' if torch.version.hip else 'without CUDA'}"
    if ERROR is not None:
        return ERROR
    return _load(CUDA_PATH, "this build has no CUDA library", NAMESPACE, "CUDA")


#: Why the compiled library is absent, None when it is loaded.
ERROR: str | None = _load(PATH, "the package was installed without its compiled library", NAMESPACE, "CPU")
LOADED = ERROR is None

#: Why the CUDA kernels are absent, None when they are loaded. Whether there is a GPU plays no part.
CUDA_ERROR: str | None = _load_cuda()


@functools.cache
def emulated_error() -> str | None:
    """Why the emulated CUDA kernels are absent, None when they are loaded, which the first call does."""
    if ERROR is not None:
        return ERROR
    absent = "the emulation of the CUDA kernels is part of development builds only (CMake option FGK_BUILD_TESTS)"
    return _load(EMULATED_PATH, absent, EMULATED_NAMESPACE, "CPU")


def op(name: str) -> OpOverload | None:
    """The operator `name`, None without the compiled library."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default if LOADED else None


def emulated_op(name: str) -> OpOverload:
    """The emulated operator `name`; only where `emulated_error` is None."""
    return getattr(getattr(torch.ops, EMULATED_NAMESPACE), name).default
