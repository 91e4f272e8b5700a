# SPDX-License-Identifier: Apache-2.0
"""The sdist and the wheel, built once for all tests of this folder, and a way to run Python away from this tree."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]

BUILD = """
import sys
sys.path.insert(0, "tools")
import build_backend
folder = sys.argv[1]
build_backend.build_sdist(folder)
build_backend.build_wheel(folder)
"""


class Distributions(NamedTuple):
    sdist: Path
    wheel: Path
    unpacked: Path  # the wheel's files, as an installer lays them


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    # Test processes running side by side share the folder above their own; the first one builds.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
    folder = tmp_path_factory.getbasetemp().parent / f"distributions-{run}"
    folder.mkdir(exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "unpacked").exists():
            done = subprocess.run(
                [sys.executable, "-c", BUILD, str(folder)],
                cwd=ROOT,
                env={"CMAKE_ARGS": "-DFGK_BUILD_TESTS=ON", **os.environ},  # as in the Makefile: shares its build
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert done.returncode == 0, done.stdout.decode(errors="replace")[-4000:]
            (wheel,) = folder.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / "unpacked")
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return Distributions(sdist, wheel, folder / "unpacked")


@pytest.fixture
def run_installed(distributions: Distributions, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code with the wheel's package, no compiler, no PATH and no network; fails the test if the code fails."""

    def run(code: str, *, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        guard = (
            "import socket\n"
            "def refuse(*a, **k): raise AssertionError('network used')\n"
            "socket.socket.connect = refuse\n"
            "import fgkernels\n"
            f"assert fgkernels.__file__.startswith({str(distributions.unpacked)!r}), fgkernels.__file__\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", guard + code],
            cwd=tmp_path,
            env={"PATH": "", "PYTHONPATH": str(distributions.unpacked), "HOME": str(tmp_path), **environment},
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run
