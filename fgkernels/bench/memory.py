# SPDX-License-Identifier: Apache-2.0
"""Extra peak memory of one call, from the kernel's own book-keeping (Linux).

Meant for a fresh process: inputs exist, a small warm-up has started thread pools and autograd, then the high-water mark
is reset, the call runs once, and the mark is read again. Nothing is traced, so memory of other libraries counts too.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass

ALLOCATOR_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536:glibc.malloc.trim_threshold=65536"}
"""Set for the measuring process: glibc then returns freed blocks at once, so no earlier block hides a later one."""


class MemoryNotMeasured(RuntimeError):
    """This system offers no resettable high-water mark; the text says what was missing."""


@dataclass(frozen=True)
class Peak:
    """Bytes. ``peak``: highest resident size during the call over that before it. ``returned``: tensors it returned."""

    peak: int
    returned: int

    @property
    def extra(self) -> int:
        """Peak memory beyond what the call returned; resident pages are counted in batches, so it can't be below 0."""
        return max(0, self.peak - self.returned)

    def as_dict(self) -> dict[str, int]:
        return {**asdict(self), "extra": self.extra}


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise MemoryNotMeasured(f"/proc/self/status has no {field}")


def _reset_high_water_mark() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as clear_refs:
        clear_refs.write("5")


def _tensors(output: object) -> list[object]:
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in _tensors(item)]
    return [output] if hasattr(output, "nbytes") else []


def tensor_bytes(value: object) -> int:
    """Bytes of all tensors and arrays in an output or a list of inputs."""
    return sum(int(tensor.nbytes) for tensor in _tensors(value))


def measure_peak(call: Callable[[], object]) -> Peak:
    """Run ``call`` once and return its peak.

    Raises:
        MemoryNotMeasured: not on Linux, or the kernel doesn't let a process reset its high-water mark.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        pass  # not glibc: freed blocks may stay resident and hide part of the peak
    try:
        _reset_high_water_mark()
        before = _status("VmRSS")
        output = call()
        after = _status("VmHWM")
    except OSError as error:
        raise MemoryNotMeasured(f"no resettable high-water mark here: {error}") from error
    return Peak(peak=max(0, after - before), returned=tensor_bytes(output))
