# SPDX-License-Identifier: Apache-2.0
"""Hands the build over to CMake and Ninja. Honours MAX_JOBS, CMAKE_ARGS, FORCE_CUDA and TORCH_CUDA_ARCH_LIST."""

from __future__ import annotations

import fcntl
import filecmp
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))
from build_backend import torch_dir  # noqa: E402
from cuda_toolkit import CudaError, cmake_options  # noqa: E402

#: Built or not, as this machine and the options have it. One that was not built now is of an earlier build.
SOMETIMES_BUILT = ("libfgkernels_cuda.so", "libfgkernels_emulated.so")


def tool(name: str, attribute: str) -> str:
    """Path of cmake or ninja: the pip package's, whose scripts need not be on PATH, else the one on PATH."""
    try:
        folder = getattr(__import__(name), attribute)
    except (ImportError, AttributeError):
        folder = ""
    found = shutil.which(name, path=folder) or shutil.which(name)
    if not found:
        raise SystemExit(f"{name} not found: pip install {name}")
    return found


def cmake_build(build: Path, development: bool) -> None:
    """Configures and builds in the folder `build`; what belongs into the package lies in build/stage then.

    With `development` also what only tests of this tree use.
    """
    cmake = tool("cmake", "CMAKE_BIN_DIR")
    try:
        import pybind11
    except ImportError:
        raise SystemExit("pybind11 not found: pip install pybind11") from None
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    if not jobs.isdigit() or jobs == "0":
        raise SystemExit(f"MAX_JOBS: expected a positive number, got {jobs!r}")

    # Everything that an isolated build keeps elsewhere each time is said again, so that its cache can be reused.
    torch = torch_dir()
    try:
        options = cmake_options(torch) + shlex.split(os.environ.get("CMAKE_ARGS", ""))
    except CudaError as error:
        raise SystemExit(str(error)) from None
    setting = "\n".join([str(ROOT), sys.executable, *options])
    stamp = build / ".setting"
    if not stamp.exists() or stamp.read_text() != setting:
        (build / "CMakeCache.txt").unlink(missing_ok=True)  # but keep the objects: most of them will still be right
        stamp.write_text(setting)
    configure = [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'BIN_DIR')}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DFGK_TORCH_DIR={torch or ''}"]
    configure += options
    shutil.rmtree(build / "stage", ignore_errors=True)
    subprocess.run(configure, check=True)
    subprocess.run([cmake, "--build", str(build), "--parallel", jobs], check=True)
    install = [cmake, "--install", str(build), "--prefix", str(build / "stage"), "--component"]
    for component in ("package", "development") if development else ("package",):
        subprocess.run([*install, component], check=True)


def replace_if_changed(source: Path, destination: Path) -> None:
    """Copies by renaming, since a running process may have the old library mapped into its memory."""
    if destination.exists() and filecmp.cmp(source, destination, shallow=False):
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}")
    shutil.copy2(source, temporary)
    os.replace(temporary, destination)


class CMakeBuild(build_ext):
    """Builds everything with CMake, then puts libfgkernels and _native into the package folder."""

    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        destination = ROOT / "fgkernels" if in_place else Path(self.build_lib).resolve() / "fgkernels"
        build = ROOT / "build" / "dev"
        build.mkdir(parents=True, exist_ok=True)
        with open(build / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            cmake_build(build, development=in_place)
            for built in (build / "stage").iterdir():
                replace_if_changed(built, destination / built.name)
            for name in SOMETIMES_BUILT:
                if not (build / "stage" / name).exists():
                    (destination / name).unlink(missing_ok=True)
        if in_place:
            replace_if_changed(build / "compile_commands.json", ROOT / "compile_commands.json")

    # CMake decides which files there are; setuptools must not look for one per Extension.
    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(ext_modules=[Extension("fgkernels._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
