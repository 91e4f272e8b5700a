# SPDX-License-Identifier: Apache-2.0
"""AOTInductor packages: one file holding a model's weights and its code, compiled for this kind of machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fgkernels.ops  # noqa: F401  registers our operators, which a package may call

__all__ = ["load", "package"]


def _require_compiler() -> None:
    compiler = os.environ.get("CXX", "").split(" ")[0]
    if not any(shutil.which(name) for name in (compiler, "g++", "clang++", "c++") if name):
        raise RuntimeError(
            "aoti: packaging compiles C++, and no compiler (g++ or clang++) was found; install one or name it in CXX"
        )


def package(
    model: nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str],
    dynamic_shapes: Any | None = None,
) -> Path:
    """Compile `model` ahead of time into the package `path`.

    Args:
        model: the module; exported in evaluation mode and without gradients, its mode is put back afterwards.
        args: example inputs, a tuple; their dtypes and static sizes become part of the package.
        path: file to write, ending in .pt2; overwritten.
        dynamic_shapes: sizes that stay free, as `torch.export.export` takes them.

    Returns:
        `path` as a Path.

    Raises:
        ValueError: if `path` doesn't end in .pt2.
        RuntimeError: if there is no C++ compiler.

    The package holds native code for this processor's instruction set. Our operators stay calls into libfgkernels,
    which must be loaded where the package runs (`load` sees to it).
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"path: expected a name that ends in .pt2, got {path.name!r}")
    _require_compiler()
    training = model.training
    try:
        with torch.no_grad():
            program = torch.export.export(model.eval(), args, dynamic_shapes=dynamic_shapes)
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    finally:
        model.train(training)
    return path


def load(path: str | os.PathLike[str]) -> Callable[..., Any]:
    """The model in the package `path`, as a callable that takes and returns what the original did.

    A package is native code: loading it runs it, with your rights. Load only packages that you made yourself or whose
    maker you trust as you would trust a program. Raises FileNotFoundError if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no such package: {path}")
    return torch._inductor.aoti_load_package(str(path))
