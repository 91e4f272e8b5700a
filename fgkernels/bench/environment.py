# SPDX-License-Identifier: Apache-2.0
"""What a result was measured on: CPU, ISA level, versions, compiler flags, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("numpy", "maxsim-cpu", "mambapy", "transformers")


def native() -> ModuleType | None:
    """fgkernels._native, or None where it wasn't built."""
    try:
        from fgkernels import _native
    except ImportError:
        return None
    return _native


def cpu_name() -> str:
    """The processor's name as the system states it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def last_level_cache_bytes() -> int | None:
    """Size of the largest cache of the first core, or None where the system doesn't tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG")) * factor)
    return max(sizes, default=None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def collect(device: str = "cpu") -> dict[str, Any]:
    """The environment block of a result file."""
    import torch

    from fgkernels import _backend
    from fgkernels._version import __version__

    from . import devices

    module = native()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "gpu": devices.find(device).facts(),
        "cores": os.cpu_count(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "isa": module.isa() if module else None,
        "build": module.build_info() if module else None,
        "backends": {row.op: row.backend for row in _backend.describe() if row.device == device},
        "fgkernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
