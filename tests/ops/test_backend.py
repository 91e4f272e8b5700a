# SPDX-License-Identifier: Apache-2.0
"""Choosing a back end: context manager, environment variable, and an installation without the compiled library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    environment = {**os.environ, "TRITON_INTERPRET": "0", **variables}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.compiled
def test_environment_variable() -> None:
    for name in ("cpu", "reference"):
        assert run(CALL, FGKERNELS_BACKEND=name).stdout.split() == ["True", name]
    assert run(CALL, FGKERNELS_BACKEND="").stdout.split() == ["True", "cpu"]


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["triton", "cuda-emulated"])
def test_environment_variable_chooses_a_stand_in(name: str) -> None:
    """Nothing is imported for it before the first call, and no later change of the variable counts."""
    reason = _backend._refusal(name, "cpu")
    if reason is not None:
        pytest.skip(reason)
    program = f"import os, sys, fgkernels\nprint('triton' in sys.modules)\ndel os.environ['FGKERNELS_BACKEND']\n{CALL}"
    done = run(program, FGKERNELS_BACKEND=name, TRITON_INTERPRET="1")
    assert done.stdout.split() == ["False", "True", name], done.stderr


def test_unknown_name_in_the_environment() -> None:
    """Importing works; the first call says which variable is wrong."""
    assert run("import fgkernels", FGKERNELS_BACKEND="gpu").returncode == 0
    failed = run(CALL, FGKERNELS_BACKEND="gpu")
    expected = f"ValueError: FGKERNELS_BACKEND: expected one of {', '.join(_backend.NAMES)}, got 'gpu'"
    assert expected in failed.stderr


@pytest.mark.compiled
def test_unusable_name_in_the_environment() -> None:
    """The error says why, also where no public function is between the caller and the operator."""
    for name in ("cuda", "triton"):
        failed = run(CALL, FGKERNELS_BACKEND=name)
        assert f'RuntimeError: maxsim: back end "{name}" was asked for, but it serves ' in failed.stderr
        reason = failed.stderr.rpartition(", but ")[2]
        assert "tensors only" in reason or "TRITON_INTERPRET=1" in reason
    program = CALL.replace("fgkernels.maxsim(a, b)", "torch.ops.fgkernels.maxsim_fwd(a, b, *[None] * 3, *[False] * 3)")
    failed = run(program, FGKERNELS_BACKEND="triton")
    assert 'RuntimeError: maxsim_fwd: back end "triton" cannot serve cpu tensors: ' in failed.stderr


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
for name in ("cpu", "cuda-emulated", "triton"):
    print(_backend.describe()[0].refused[name])
fgkernels.backend("cpu")
"""
    done = run(program)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["True reference", "{}", "True"]
    for line in lines[3:6]:
        assert line.startswith("libfgkernels") and str(tmp_path / "fgkernels") in line
    assert 'RuntimeError: backend("cpu"): libfgkernels' in done.stderr


def test_a_foreign_library_is_not_used(tmp_path: Path) -> None:
    """A file that is no library of ours leaves the reference in charge rather than breaking the import."""
    shutil.copytree(PACKAGE, tmp_path / "fgkernels", ignore=shutil.ignore_patterns("*.so", "*.dylib", "__pycache__"))
    name = "libfgkernels.dylib" if sys.platform == "darwin" else "libfgkernels.so"
    (tmp_path / "fgkernels" / name).write_bytes(b"not a library")
    done = run(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{CALL}\nprint(_backend.describe()[0].refused)")
    assert done.stdout.splitlines()[0] == "True reference"
    assert f"could not be loaded with torch {torch_version()}" in done.stdout


def torch_version() -> str:
    import torch

    return torch.__version__


@pytest.mark.compiled
def test_other_libraries_that_cannot_be_loaded(tmp_path: Path) -> None:
    """The reason is kept and given when it is asked for; everything else works."""
    shutil.copytree(PACKAGE, tmp_path / "fgkernels", ignore=shutil.ignore_patterns("*_cuda.*", "__pycache__"))
    (tmp_path / "fgkernels" / "libfgkernels_emulated.so").write_bytes(b"not a library")
    (tmp_path / "fgkernels" / "libfgkernels_cuda.so").write_bytes(b"not a library")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import torch
torch.version.cuda = "13.0"  # as if torch were a build with CUDA
{CALL}
print(_backend.describe()[0].refused["cuda-emulated"])
print({{row.device: row for row in _backend.describe()}}["cuda"].refused["cuda"])
"""
    lines = run(program).stdout.splitlines()
    assert lines[0] == "True cpu"
    for line, name in zip(lines[1:], ("emulated", "cuda"), strict=True):
        assert line.startswith(f"libfgkernels_{name}.so could not be loaded with torch {torch_version()}: ")


def test_import_is_light() -> None:
    """No heavy submodule, no compiler, no GPU at import."""
    program = """
import sys, fgkernels
heavy = [m for m in ("fgkernels.nn", "fgkernels.bench", "fgkernels.demo", "fgkernels.export", "triton", "matplotlib",
                     "onnx", "torch._dynamo", "torch._inductor.compile_fx") if m in sys.modules]
print(heavy, fgkernels.nn.__name__, "nn" in dir(fgkernels))
try:
    fgkernels.nothing
except AttributeError as error:
    print(error)
"""
    done = run(program)
    assert done.stdout.splitlines() == ["[] fgkernels.nn True", "module 'fgkernels' has no attribute 'nothing'"]
