# SPDX-License-Identifier: Apache-2.0
"""When the CUDA library is built, for which architectures, and what is said where it cannot be."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import cuda_toolkit  # noqa: E402
from cuda_toolkit import CudaError  # noqa: E402


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder with bin/nvcc that can be run."""
    nvcc = tmp_path / "toolkit/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IEXEC)
    return tmp_path / "toolkit"


@pytest.fixture
def cuda_torch(tmp_path: Path) -> Path:
    library = tmp_path / "torch/lib/libtorch_cuda.so"
    library.parent.mkdir(parents=True)
    library.touch()
    return tmp_path / "torch"


@pytest.mark.parametrize(
    ("arch_list", "expected"),
    [
        ("", ["80-real", "90a-real", "90-virtual"]),
        ("8.0", ["80-real"]),
        ("8.0;9.0a", ["80-real", "90a-real"]),
        ("8.0 8.6+PTX", ["80-real", "86-real", "86-virtual"]),
        ("8.0,9.0a+PTX", ["80-real", "90a-real", "90-virtual"]),
        ("10.0f+PTX", ["100f-real", "100-virtual"]),
        ("12.0", ["120-real"]),
        ("Ampere;hopper", ["80-real", "86-real", "86-virtual", "90-real", "90-virtual"]),
        ("8.0;8.0", ["80-real"]),
    ],
)
def test_arch_list_in_torchs_syntax(arch_list, expected):
    assert cuda_toolkit.architectures(arch_list, pytest.fail) == expected


def test_architectures_that_the_kernels_cannot_use_are_left_out_and_named():
    said = []
    assert cuda_toolkit.architectures("7.0;7.5+PTX;8.0", said.append) == ["80-real"]
    assert len(said) == 2 and "7.0 is left out" in said[0] and "8.0 or newer" in said[0]
    with pytest.raises(CudaError, match="expected 8.0 or newer, got '7.5'"):
        cuda_toolkit.architectures("7.5", said.append)


@pytest.mark.parametrize("entry", ["sm_80", "80", "8", "8.0+ptx", "Volta", "8.0x", "-gencode"])
def test_an_entry_that_is_no_architecture_is_an_error(entry):
    with pytest.raises(CudaError, match=f"TORCH_CUDA_ARCH_LIST: expected such as .* got '{entry.replace('+', '.')}'"):
        cuda_toolkit.architectures(f"8.0;{entry}", pytest.fail)


def test_where_nvcc_is_looked_for(toolkit):
    nvcc = str(toolkit / "bin/nvcc")
    assert cuda_toolkit.find_nvcc({"PATH": "/nowhere"}) is None
    assert cuda_toolkit.find_nvcc({"PATH": str(toolkit / "bin")}) == nvcc
    assert cuda_toolkit.find_nvcc({"CUDA_HOME": str(toolkit), "PATH": "/nowhere"}) == nvcc
    assert cuda_toolkit.find_nvcc({"CUDACXX": nvcc, "CUDA_HOME": "/nowhere"}) == nvcc
    with pytest.raises(CudaError, match="CUDA_HOME: expected the folder of a CUDA toolkit, got /nowhere"):
        cuda_toolkit.find_nvcc({"CUDA_HOME": "/nowhere", "PATH": str(toolkit / "bin")})
    with pytest.raises(CudaError, match="CUDACXX: expected the CUDA compiler, got /nowhere/nvcc"):
        cuda_toolkit.find_nvcc({"CUDACXX": "/nowhere/nvcc"})


def test_the_library_is_built_where_nvcc_and_a_cuda_torch_are_found(toolkit, cuda_torch):
    for force in ({}, {"FORCE_CUDA": "1"}, {"FORCE_CUDA": ""}):
        said = []
        options = cuda_toolkit.cmake_options(cuda_torch, {"CUDA_HOME": str(toolkit), **force}, said.append)
        assert options == [
            "-DFGK_CUDA=ON",
            f"-DCMAKE_CUDA_COMPILER={toolkit}/bin/nvcc",
            "-DFGK_CUDA_ARCHITECTURES=80-real;90a-real;90-virtual",
        ]
        assert len(said) == 1
    environment = {"CUDA_HOME": str(toolkit), "TORCH_CUDA_ARCH_LIST": "9.0a"}
    assert "-DFGK_CUDA_ARCHITECTURES=90a-real" in cuda_toolkit.cmake_options(cuda_torch, environment, said.append)


def test_force_0_builds_none(toolkit, cuda_torch):
    environment = {"FORCE_CUDA": "0", "CUDA_HOME": str(toolkit)}
    assert cuda_toolkit.cmake_options(cuda_torch, environment, pytest.fail) == ["-DFGK_CUDA=OFF"]


def test_what_is_missing_is_said_once_or_with_force_1_an_error(toolkit, cuda_torch, tmp_path):
    without_nvcc = {"PATH": "/nowhere"}
    with_nvcc = {"CUDA_HOME": str(toolkit)}
    cpu_torch = tmp_path / "cpu/torch"
    for environment, torch, expected in [
        (without_nvcc, cuda_torch, ["no nvcc"]),
        (with_nvcc, cpu_torch, [f"no CUDA build of torch (found {cpu_torch})"]),
        (without_nvcc, None, ["no nvcc", "no CUDA build of torch (found no torch)"]),
    ]:
        said = []
        assert cuda_toolkit.cmake_options(torch, environment, said.append) == ["-DFGK_CUDA=OFF"]
        assert len(said) == 1 and all(text in said[0] for text in expected)
        with pytest.raises(CudaError) as error:
            cuda_toolkit.cmake_options(torch, {**environment, "FORCE_CUDA": "1"}, pytest.fail)
        assert str(error.value).startswith("FORCE_CUDA=1: ") and all(text in str(error.value) for text in expected)
    with pytest.raises(CudaError, match="FORCE_CUDA: expected 0, 1 or nothing, got 'yes'"):
        cuda_toolkit.cmake_options(cuda_torch, {"FORCE_CUDA": "yes"}, pytest.fail)


def test_the_build_stops_with_one_line_where_force_cuda_cannot_be_met():
    environment = {**os.environ, "FORCE_CUDA": "1", "CUDA_HOME": "/nowhere"}
    environment.pop("CUDACXX", None)
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("CUDA_HOME: expected the folder of a CUDA toolkit")


def cuda_program(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(folder), "HOME": str(folder)}
    command = [sys.executable, str(ROOT / "tools/cuda.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_make_cuda_without_nvcc_says_so_and_has_a_status_of_its_own(tmp_path):
    done = cuda_program(folder=tmp_path)
    assert done.returncode == 3 and "The CUDA sources were not compiled: no nvcc here" in done.stdout
    done = cuda_program("--objects", "--optional", folder=tmp_path)
    assert done.returncode == 0 and "not compiled" in done.stdout


def test_make_cuda_refuses_an_interpreter_without_a_cuda_torch(toolkit):
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this interpreter has a CUDA torch")
    done = cuda_program("--python", sys.executable, folder=toolkit / "bin")
    assert done.returncode == 1
    assert "expected a CUDA build of torch, found" in done.stderr


def test_the_compilers_output_is_kept_beside_the_object_and_errors_are_shown(tmp_path):
    script = ROOT / "tools/keep_output.sh"
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'ptxas info    : Used 12 registers'\necho 'x.cu(3): error: no' >&2\nexit 7\n")
    compiler.chmod(0o755)
    thing = tmp_path / "x.cu.o"
    done = subprocess.run(["bash", script, compiler, "-c", "x.cu", "-o", thing], capture_output=True, text=True)
    assert done.returncode == 7
    assert done.stderr == "x.cu(3): error: no\n"
    assert "Used 12 registers" in (tmp_path / "x.cu.o.log").read_text()


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_has_the_target():
    done = subprocess.run(["make", "-n", "cuda"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "tools/cuda.py" in done.stdout
