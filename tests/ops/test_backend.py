# SPDX-License-Identifier: Apache-2.0
"""Choosing a back end: context manager, environment variable, and an installation without the compiled library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fgkernels
from fgkernels import _backend

PACKAGE = Path(fgkernels.__file__).parent

CALL = """
import torch, fgkernels
from fgkernels import _backend
a, b = torch.ones(2, 3, 4), torch.ones(5, 6, 4)
print(fgkernels.maxsim(a, b).tolist() == [[12] * 5] * 2, _backend.describe()[0].backend)
"""


def run(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)


def test_context_manager_nests_and_survives_errors() -> None:
    assert not _backend.forced()
    with fgkernels.backend("reference"):
        with pytest.raises(KeyError), fgkernels.backend("reference"):
            raise KeyError
        assert _backend.forced() and not _backend.native_cpu
    assert not _backend.forced()


@pytest.mark.compiled
def test_environment_variable() -> None:
    for name in ("cpu", "reference"):
        assert run(CALL, FGKERNELS_BACKEND=name).stdout.split() == ["True", name]
    assert run(CALL, FGKERNELS_BACKEND="").stdout.split() == ["True", "cpu"]


def test_unknown_name_in_the_environment() -> None:
    """Importing works; the first call says which variable is wrong."""
    assert run("import fgkernels", FGKERNELS_BACKEND="gpu").returncode == 0
    failed = run(CALL, FGKERNELS_BACKEND="gpu")
    assert "ValueError: FGKERNELS_BACKEND: expected one of cpu, cuda, triton, reference, got 'gpu'" in failed.stderr


def test_unusable_name_in_the_environment() -> None:
    failed = run(CALL, FGKERNELS_BACKEND="cuda")
    assert 'RuntimeError: maxsim: back end "cuda" was asked for, but this build has no CUDA library' in failed.stderr


def test_without_the_compiled_library(tmp_path: Path) -> None:
    """Everything imports and runs on the reference, and what was refused says why."""
    shutil.copytree(PACKAGE, tmp_path / "fgkernels", ignore=shutil.ignore_patterns("*.so", "*.dylib", "__pycache__"))
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
{CALL}
import fgkernels.nn, fgkernels.export, fgkernels.compat.pylate, fgkernels.compat.colpali_engine
print(fgkernels.export.decompositions())
print(fgkernels.nn.LateInteractionLoss()(a, b[:2]).loss.item() > 0)
print(_backend.describe()[0].refused["cpu"])
fgkernels.backend("cpu")
"""
    done = run(program)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["True reference", "{}", "True"]
    assert lines[3].startswith("libfgkernels") and str(tmp_path / "fgkernels") in lines[3]
    assert 'RuntimeError: backend("cpu"): libfgkernels' in done.stderr


def test_a_foreign_library_is_not_used(tmp_path: Path) -> None:
    """A file that is no library of ours leaves the reference in charge rather than breaking the import."""
    shutil.copytree(PACKAGE, tmp_path / "fgkernels", ignore=shutil.ignore_patterns("*.so", "*.dylib", "__pycache__"))
    name = "libfgkernels.dylib" if sys.platform == "darwin" else "libfgkernels.so"
    (tmp_path / "fgkernels" / name).write_bytes(b"not a library")
    done = run(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{CALL}\nprint(_backend.describe()[0].refused)")
    assert done.stdout.splitlines()[0] == "True reference"
    assert f"could not be loaded with torch {torch.__version__}" in done.stdout


def test_import_is_light() -> None:
    """No heavy submodule, no compiler, no GPU at import."""
    program = """
import sys, fgkernels
heavy = [m for m in ("fgkernels.nn", "fgkernels.bench", "fgkernels.demo", "fgkernels.export", "triton", "matplotlib",
                     "onnx", "torch._inductor.compile_fx") if m in sys.modules]
print(heavy, fgkernels.nn.__name__, "nn" in dir(fgkernels))
try:
    fgkernels.nothing
except AttributeError as error:
    print(error)
"""
    done = run(program)
    assert done.stdout.splitlines() == ["[] fgkernels.nn True", "module 'fgkernels' has no attribute 'nothing'"]
