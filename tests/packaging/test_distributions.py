# SPDX-License-Identifier: Apache-2.0
"""What the sdist and the wheel hold, and that the wheel's package works where there is nothing but Python and torch."""

from __future__ import annotations

import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import fgkernels

ROOT = Path(__file__).resolve().parents[2]

OPERATORS_AGREE = """
import torch
from fgkernels.ops import _library
assert _library.LOADED, _library.ERROR
generator = torch.Generator().manual_seed(0)
queries = torch.randn(3, 5, 16, generator=generator)
documents = torch.randn(4, 7, 16, generator=generator)
expected = torch.einsum("qid,njd->qnij", queries.double(), documents.double()).amax(-1).sum(-1)
got = fgkernels.maxsim(queries, documents)
torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
"""


def test_wheel_holds_the_package_and_its_libraries_only(distributions):
    names = zipfile.ZipFile(distributions.wheel).namelist()
    assert "fgkernels/libfgkernels.so" in names
    # A CUDA library is part of it where nvcc and a CUDA torch are found, what only tests use never.
    names = [name for name in names if name != "fgkernels/libfgkernels_cuda.so"]
    assert sum(name.startswith("fgkernels/_native.") and name.endswith(".so") for name in names) == 1
    assert sum(name.endswith(".so") for name in names) == 2
    assert "fgkernels/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fgkernels"}
    assert not [name for name in names if name.endswith((".cpp", ".h", ".pyc"))]


def test_wheel_holds_every_file_of_the_package(distributions):
    package = ROOT / "fgkernels"
    built = {".so", ".pyc"}
    files = {str(f.relative_to(ROOT)) for f in package.rglob("*") if f.is_file() and f.suffix not in built}
    assert files <= set(zipfile.ZipFile(distributions.wheel).namelist())


def test_wheel_metadata(distributions):
    (name,) = [n for n in zipfile.ZipFile(distributions.wheel).namelist() if n.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(zipfile.ZipFile(distributions.wheel).read(name).decode())
    assert metadata["Version"] == fgkernels.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    required = {r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r}
    assert required == {"torch>=2.10", "numpy", "safetensors"}
    assert set(metadata.get_all("Provides-Extra")) == {"triton", "vision", "demo", "edge", "dev", "peers"}


def test_sdist_holds_what_a_build_needs_and_nothing_built(distributions):
    names = {name.split("/", 1)[1] for name in tarfile.open(distributions.sdist).getnames() if "/" in name}
    needed = """
        CMakeLists.txt cmake/kernels.cmake cmake/exports.map setup.py pyproject.toml LICENSE Makefile
        requirements-dev.lock tools/build_backend.py csrc/capi/fgkernels.h csrc/kernels/cpu/isa.cpp
        csrc/ops/library.cpp
        csrc/ops/device_cuda.cpp csrc/kernels/cuda/device.cuh csrc/kernels/cuda/late_interaction.cu
        csrc/tests/cuda_emulation/device_emulated.cpp cmake/cuda.cmake tools/cuda_toolkit.py
        csrc/tests/check.h python/native.cpp fgkernels/_version.py fgkernels/py.typed tests/packaging/conftest.py
    """
    assert set(needed.split()) <= names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or name.startswith((".venv", "build"))]


def test_wheel_imports_and_computes_without_compiler_path_or_network(run_installed):
    run_installed(
        OPERATORS_AGREE
        + "from fgkernels import _native\nassert _native.build_info()['version'] == fgkernels.__version__"
    )


def test_operators_work_without_the_native_module(run_installed):
    hide = "import sys\nsys.modules['fgkernels._native'] = None\n"
    run_installed(hide + OPERATORS_AGREE)
    done = run_installed(hide + "from fgkernels.cli import main\nassert main(['info']) == 0")
    assert "fgkernels._native  not available" in done.stdout


def test_an_unusable_isa_level_is_an_error_at_the_first_call_not_at_import(run_installed):
    code = "import torch\nprint('imported', flush=True)\nfgkernels.maxsim(torch.ones(1, 2, 8), torch.ones(1, 3, 8))"
    done = run_installed(code, check=False, FGKERNELS_ISA="sse9")
    assert done.stdout.strip() == "imported"
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "RuntimeError" in last and "FGKERNELS_ISA" in done.stderr and "sse9" in done.stderr, done.stderr


def test_info_reports_an_unusable_isa_level(run_installed):
    done = run_installed("from fgkernels.cli import main\nassert main(['info']) == 0", FGKERNELS_ISA="sse9")
    assert "level in use" in done.stdout and "FGKERNELS_ISA" in done.stdout


def test_the_environment_names_the_level(run_installed):
    # Every level in turn: csrc/tests/test_isa.cpp and tests/ops.
    check = "from fgkernels import _native\nassert _native.isa() == 'baseline'\n"
    run_installed(OPERATORS_AGREE + check, FGKERNELS_ISA="baseline")


def test_sdist_holds_every_source_of_the_cuda_kernels_and_their_tests(distributions):
    names = {name.split("/", 1)[1] for name in tarfile.open(distributions.sdist).getnames() if "/" in name}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert any(name.endswith(".cuh") for name in sources) and sources <= names


def test_the_emulated_library_is_built_for_this_tree_only(distributions):
    """The wheel above came out of the same build folder, with the same options."""
    assert (ROOT / "build/dev/libfgkernels_emulated.so").is_file()
    assert (ROOT / "fgkernels/libfgkernels_emulated.so").is_file()
    assert "fgkernels/libfgkernels_emulated.so" not in zipfile.ZipFile(distributions.wheel).namelist()
