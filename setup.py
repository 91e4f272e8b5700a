# SPDX-License-Identifier: Apache-2.0
"""Hands the build over to CMake and Ninja. Honours MAX_JOBS, CMAKE_ARGS, FORCE_CUDA and TORCH_CUDA_ARCH_LIST."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))
from build_backend import torch_dir  # noqa: E402


def tool(name: str, attribute: str) -> str:
    """Path of cmake or ninja: the pip package's if it is importable, since its scripts need not be on PATH."""
    try:
        folder = Path(getattr(__import__(name), attribute))
    except (ImportError, AttributeError):
        found = shutil.which(name)
    else:
        found = shutil.which(name, path=str(folder))
    if not found:
        raise SystemExit(f"{name} not found: pip install {name}")
    return found


def refuse_cuda() -> None:
    for variable in ("FORCE_CUDA", "TORCH_CUDA_ARCH_LIST"):
        value = os.environ.get(variable, "")
        if variable == "FORCE_CUDA" and value not in ("", "0"):
            raise SystemExit(f"FORCE_CUDA={value}: the CUDA library is not part of this release; unset FORCE_CUDA.")
        if variable == "TORCH_CUDA_ARCH_LIST" and value:
            print(f"TORCH_CUDA_ARCH_LIST={value} has no effect: the CUDA library is not part of this release.")


class CMakeBuild(build_ext):
    """Builds everything with CMake, then installs libfgkernels and _native into the package folder."""

    def run(self) -> None:
        refuse_cuda()
        in_place = self.inplace or getattr(self, "editable_mode", False)
        destination = ROOT / "fgkernels" if in_place else Path(self.build_lib).resolve() / "fgkernels"
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build = ROOT / "build" / (("dev-" if in_place else "wheel-") + tag)
        self.cmake(build, destination)
        if in_place:
            shutil.copyfile(build / "compile_commands.json", ROOT / "compile_commands.json")

    def cmake(self, build: Path, destination: Path) -> None:
        cmake, ninja = tool("cmake", "CMAKE_BIN_DIR"), tool("ninja", "BIN_DIR")
        torch = torch_dir()
        # Everything that an isolated build puts elsewhere each time is said again, so that the cache can be reused.
        configure = [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DFGK_TORCH_DIR={torch or ''}"]
        try:
            import pybind11

            configure.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
        except ImportError:
            raise SystemExit("pybind11 not found: pip install pybind11") from None
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        if not jobs.isdigit() or jobs == "0":
            raise SystemExit(f"MAX_JOBS: expected a positive number, got {jobs!r}")
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", jobs], check=True)
        subprocess.run([cmake, "--install", str(build), "--prefix", str(destination)], check=True)

    # CMake decides which files there are; setuptools must not look for one per Extension.
    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(ext_modules=[Extension("fgkernels._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
