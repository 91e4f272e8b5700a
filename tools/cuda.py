# SPDX-License-Identifier: Apache-2.0
"""`make cuda`: compiles the CUDA sources, links libfgkernels_cuda, loads it, and audits its machine code. Needs no GPU.

Compiles with nvcc in build/cuda, links against the CUDA build of torch of another interpreter, checks there that every
schema has its CUDA kernel, and compares registers, spills and instructions with benchmarks/results/ptxas.json
(tools/cuda_audit.py). Exit status 3: no nvcc here.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import cuda_audit  # noqa: E402
from build_backend import torch_dir  # noqa: E402
from cuda_toolkit import CudaError, architectures, find_nvcc, is_cuda_torch  # noqa: E402

BUILD = ROOT / "build/cuda"
ENVIRONMENT = ROOT / ".venv-cuda"
TORCH = "torch==2.14.1"
NO_NVCC = 3
WHERE_IS_TORCH = (
    "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
)


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], check=True, text=True, **options)


def program(name: str) -> str:
    """cmake or ninja: those of this interpreter's environment, else those on PATH."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=beside) or shutil.which(name)
    if not found:
        raise CudaError(f"{name} not found: pip install {name}")
    return found


def cuda_python(named: str) -> str:
    """The interpreter with a CUDA build of torch: the one named, else that of an environment made for it."""
    if named:
        return named
    python = ENVIRONMENT / "bin/python"
    stamp = ENVIRONMENT / f".{TORCH}"
    run("bash", ROOT / "tools/make_venv.sh", sys.executable, ENVIRONMENT)
    if not stamp.exists():
        run(python, "-m", "pip", "install", TORCH, "numpy")
        stamp.touch()
    return str(python)


def compile_sources(nvcc: str, torch: Path | None, link: bool) -> None:
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    chosen = architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    configure = [program("cmake"), "-S", ROOT, "-B", BUILD, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={program('ninja')}"]
    configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    configure += ["-DFGK_BUILD_TESTS=OFF", "-DFGK_BUILD_PYTHON=OFF", f"-DFGK_TORCH_DIR={torch or ''}"]
    configure += [f"-DFGK_CUDA={'ON' if link else 'OBJECTS'}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    configure += [f"-DFGK_CUDA_ARCHITECTURES={';'.join(chosen)}"]
    targets = ["fgkernels_cuda"] if link else ["fgk_cuda_kernels", "fgk_cuda_ops"]
    BUILD.mkdir(parents=True, exist_ok=True)
    run(*configure, stdout=subprocess.DEVNULL)
    run(program("cmake"), "--build", BUILD, "--parallel", jobs, "--target", *targets)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="", help="interpreter with a CUDA build of torch; default: makes one")
    parser.add_argument("--objects", action="store_true", help="only compile and audit: needs no CUDA build of torch")
    parser.add_argument("--optional", action="store_true", help="without nvcc, say so and succeed")
    parser.add_argument("--update", action="store_true", help="write the audit's results instead of comparing them")
    options = parser.parse_args(arguments)
    try:
        nvcc = find_nvcc()
        if nvcc is None:
            print("The CUDA sources were not compiled: no nvcc here (looked at CUDACXX, CUDA_HOME and PATH).")
            return 0 if options.optional else NO_NVCC
        if options.objects:
            compile_sources(nvcc, torch_dir(), link=False)
        else:
            python = cuda_python(options.python)
            found = run(python, "-c", WHERE_IS_TORCH, stdout=subprocess.PIPE).stdout.strip()
            if not found or not is_cuda_torch(Path(found)):
                raise CudaError(f"{python}: expected a CUDA build of torch, found {found or 'no torch'}")
            compile_sources(nvcc, Path(found), link=True)
            libraries = (ROOT / "fgkernels/libfgkernels.so", BUILD / "libfgkernels_cuda.so")
            run(python, ROOT / "tools/cuda_load.py", *libraries, "fgkernels")
    except CudaError as error:
        print(f"make cuda: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"make cuda: {Path(error.cmd[0]).name} failed with status {error.returncode}", file=sys.stderr)
        return 1
    return cuda_audit.main([str(BUILD), *(["--update"] if options.update else [])])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
