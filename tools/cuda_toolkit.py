# SPDX-License-Identifier: Apache-2.0
"""What a build of the CUDA library needs and whether it is there: nvcc, a CUDA build of torch, GPU architectures.

Nothing here imports torch or asks for a GPU: a machine without one builds the same library.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

#: In the syntax of CMake's CUDA_ARCHITECTURES: machine code for A100 and H100, PTX for what comes after them.
DEFAULT_ARCHITECTURES = ("80-real", "90a-real", "90-virtual")
#: cp.async and bf16 tensor cores.
OLDEST_ARCHITECTURE = 80

#: Names that torch's own builds take in TORCH_CUDA_ARCH_LIST, as far as these kernels run there.
NAMED_ARCHITECTURES = {
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;10.3;12.0+PTX",
}


class CudaError(Exception):
    """What is missing or wrong, in one line for the person who builds."""


def find_nvcc(environment: Mapping[str, str] = os.environ) -> str | None:
    """Path of nvcc: $CUDACXX, else that of $CUDA_HOME or $CUDA_PATH, else the one on PATH, else None.

    Raises:
        CudaError: if one of the variables names something that isn't there.
    """
    path = environment.get("PATH")
    if named := environment.get("CUDACXX"):
        found = shutil.which(named, path=path)
        if not found:
            raise CudaError(f"CUDACXX: expected the CUDA compiler, got {named}, which cannot be run")
        return found
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := environment.get(variable):
            found = shutil.which("nvcc", path=str(Path(home) / "bin"))
            if not found:
                raise CudaError(f"{variable}: expected the folder of a CUDA toolkit, got {home}, which has no bin/nvcc")
            return found
    return shutil.which("nvcc", path=path)


def is_cuda_torch(torch_dir: Path | None) -> bool:
    """Whether this torch package was built for CUDA."""
    return torch_dir is not None and (torch_dir / "lib" / "libtorch_cuda.so").is_file()


def architectures(arch_list: str, say: Callable[[str], None] = print) -> list[str]:
    """Turns TORCH_CUDA_ARCH_LIST, such as "8.0;9.0a+PTX" or "Ampere Hopper", into CMake's CUDA_ARCHITECTURES.

    "+PTX" adds PTX that newer GPUs can take: for 9.0a that of 9.0, since PTX of an "a" architecture runs nowhere else.
    Architectures that the kernels cannot use are left out, which `say` is told. An empty list means the default.

    Raises:
        CudaError: if an entry is no architecture or none is left.
    """
    entries = [entry for entry in re.split(r"[;,\s]+", arch_list) if entry]
    if not entries:
        return list(DEFAULT_ARCHITECTURES)
    known = {name.lower(): meaning for name, meaning in NAMED_ARCHITECTURES.items()}
    expanded = ";".join(known.get(entry.lower(), entry) for entry in entries).split(";")
    found: list[str] = []
    for entry in expanded:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if not match:
            names = ", ".join(NAMED_ARCHITECTURES)
            raise CudaError(f'TORCH_CUDA_ARCH_LIST: expected such as "8.0;9.0a+PTX" or {names}, got {entry!r}')
        number, special, ptx = match[1] + match[2], match[3], match[4]
        if int(number) < OLDEST_ARCHITECTURE:
            say(f"TORCH_CUDA_ARCH_LIST: {entry} is left out, the kernels need compute capability 8.0 or newer")
            continue
        found.append(f"{number}{special}-real")
        if ptx:
            found.append(f"{number}-virtual")
    if not found:
        raise CudaError(f"TORCH_CUDA_ARCH_LIST: expected 8.0 or newer, got {arch_list!r}")
    return list(dict.fromkeys(found))


def cmake_options(
    torch_dir: Path | None, environment: Mapping[str, str] = os.environ, say: Callable[[str], None] = print
) -> list[str]:
    """CMake's options for (or against) the CUDA library, as FORCE_CUDA says; unset, it is built where it can be.

    Raises:
        CudaError: if FORCE_CUDA=1 and something is missing, or a variable makes no sense.
    """
    force = environment.get("FORCE_CUDA", "")
    if force not in ("", "0", "1"):
        raise CudaError(f"FORCE_CUDA: expected 0, 1 or nothing, got {force!r}")
    if force == "0":
        return ["-DFGK_CUDA=OFF"]
    nvcc = find_nvcc(environment)
    missing = []
    if nvcc is None:
        missing.append("no nvcc (looked at CUDACXX, CUDA_HOME and PATH)")
    if not is_cuda_torch(torch_dir):
        missing.append(f"no CUDA build of torch (found {torch_dir or 'no torch'})")
    if missing:
        if force == "1":
            raise CudaError(f"FORCE_CUDA=1: {', and '.join(missing)}")
        say(f"libfgkernels_cuda is left out, the CUDA sources were not compiled: {', and '.join(missing)}")
        return ["-DFGK_CUDA=OFF"]
    chosen = architectures(environment.get("TORCH_CUDA_ARCH_LIST", ""), say)
    say(f"libfgkernels_cuda: {nvcc} for {' '.join(chosen)}")
    return ["-DFGK_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DFGK_CUDA_ARCHITECTURES={';'.join(chosen)}"]
