# SPDX-License-Identifier: Apache-2.0
"""The shared library as a file: what it needs, what it shows, what it must not contain."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fgkernels.ops import _library

ROOT = Path(__file__).resolve().parents[2]

needs_binutils = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("readelf"), reason="needs readelf and ELF files"
)


def dynamic_section(path: Path) -> dict[str, list[str]]:
    """Tag -> values, such as {"NEEDED": ["libc.so.6"]}."""
    text = subprocess.run(["readelf", "-d", str(path)], check=True, capture_output=True, text=True).stdout
    tags: dict[str, list[str]] = {}
    for tag, value in re.findall(r"\((\w+)\).*?\[(.*)\]", text):
        tags.setdefault(tag, []).append(value)
    return tags


@needs_binutils
def test_the_library_needs_torch_cpu_and_no_other_part_of_torch_or_python():
    tags = dynamic_section(_library.PATH)
    assert "libtorch_cpu.so" in tags["NEEDED"]
    assert not [name for name in tags["NEEDED"] if re.search(r"python|c10|libtorch\.|torch_python|cuda", name)]
    assert "RPATH" not in tags and "RUNPATH" not in tags


@needs_binutils
def test_the_native_module_finds_the_library_beside_it():
    native = pytest.importorskip("fgkernels._native")
    tags = dynamic_section(Path(native.__file__))
    assert _library.PATH.name in tags["NEEDED"]
    assert tags.get("RPATH", []) + tags.get("RUNPATH", []) == ["$ORIGIN"]


@needs_binutils
def test_the_library_shows_the_c_api_only():
    text = subprocess.run(
        ["nm", "-D", "--defined-only", str(_library.PATH)], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split()[-1] for line in text.splitlines()}
    declared = set(re.findall(r"\bfgk_\w+(?=\()", (ROOT / "csrc/capi/fgkernels.h").read_text()))
    assert names == declared


def test_no_path_of_the_build_machine_is_in_the_library():
    assert str(ROOT).encode() not in _library.PATH.read_bytes()


def test_the_c_api_answers_without_python_objects():
    library = ctypes.CDLL(str(_library.PATH))
    library.fgk_version.restype = ctypes.c_char_p
    library.fgk_last_error.restype = ctypes.c_char_p
    library.fgk_probe_fma.restype = ctypes.c_double
    library.fgk_probe_fma.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double]
    import fgkernels

    assert library.fgk_version().decode() == fgkernels.__version__
    assert library.fgk_isa_set(b"sse9") == -1
    assert library.fgk_probe_fma(0, -1, 0.1) < 0
    assert b"threads" in library.fgk_last_error()


def test_kernels_include_no_torch_header():
    include = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10|pybind11|Python\.h)', re.MULTILINE)
    sources = [path for path in (ROOT / "csrc/kernels").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert len(sources) >= 4
    assert not [str(path) for path in sources if include.search(path.read_text())]


def test_nothing_in_a_file_compiled_per_level_is_shared_between_levels():
    """An inline function outside the level's namespace could be kept by the linker in its AVX-512 form for all."""
    archive = ROOT / "build/dev/libfgk_kernels.a"
    if not shutil.which("nm") or not archive.exists():
        pytest.skip("needs nm and a development build")
    text = subprocess.run(["nm", "-C", str(archive)], check=True, capture_output=True, text=True).stdout
    level, shared = None, []
    for line in text.splitlines():
        if line.endswith(":"):
            level = "_isa.cpp.o" in line
        elif level and (fields := line.split(maxsplit=2)) and len(fields) == 3 and fields[1] in "WVu":
            if not re.search(r"fgk::(baseline|avx2|avx512|avx512_bf16|neon)::", fields[2]):
                shared.append(fields[2])
    assert not shared


@pytest.mark.parametrize("path", [_library.CUDA_PATH, _library.EMULATED_PATH], ids=lambda path: path.name)
@needs_binutils
def test_the_other_operator_libraries_show_nothing_and_name_no_folder(path):
    if not path.is_file():
        pytest.skip(f"{path.name} was not built here")
    tags = dynamic_section(path)
    assert "RPATH" not in tags and "RUNPATH" not in tags
    assert not [name for name in tags["NEEDED"] if re.search(r"python|c10|libtorch\.|torch_python|cudart", name)]
    text = subprocess.run(["nm", "-D", "--defined-only", str(path)], check=True, capture_output=True, text=True).stdout
    assert text == ""
    assert str(ROOT).encode() not in path.read_bytes()
