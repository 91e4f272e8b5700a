# SPDX-License-Identifier: Apache-2.0
"""Build backend: setuptools, plus torch as a build requirement only where no torch is in sight.

The library needs torch's headers and libtorch_cpu to link, nothing else of it, and runs with every torch >= 2.10
whichever one it was built against (LibTorch stable ABI). So an isolated build takes the torch of the environment that
pip installs into, and a second torch is downloaded only if that environment has none that can be found.
"""

from __future__ import annotations

import re
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_wheel,
)

if hasattr(build_meta, "build_editable"):
    from setuptools.build_meta import build_editable, prepare_metadata_for_build_editable  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
OLDEST_TORCH = (2, 10)


def torch_dir() -> Path | None:
    """The package folder of a usable torch: one this process imports, else the target environment's."""
    # In pip's isolated build sys.path hides the target environment, but sysconfig still names its folders.
    folders = [*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    for folder in folders:
        package = Path(folder or ".") / "torch"
        if (package / "include/torch/csrc/stable/library.h").is_file() and _version(package) >= OLDEST_TORCH:
            return package.resolve()
    return None


def _version(package: Path) -> tuple[int, int]:
    try:
        found = re.search(r"__version__ = ['\"](\d+)\.(\d+)", (package / "version.py").read_text())
    except OSError:
        found = None
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _torch_requirement() -> list[str]:
    return [] if torch_dir() else ["torch>=" + ".".join(map(str, OLDEST_TORCH))]


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None) -> str:
    # setuptools leaves its copies of the modules in build/lib*, and would pack those that are no longer in the tree.
    for folder in (ROOT / "build").glob("lib*"):
        shutil.rmtree(folder)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
