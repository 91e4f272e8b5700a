# SPDX-License-Identifier: Apache-2.0
"""Where a case runs, CPU or GPU: how its calls are timed, what limits them, how their memory is counted."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import environment, memory, timing

if TYPE_CHECKING:
    from .registry import Case, Inputs

DEVICES = ("cpu", "cuda")
Probe = Callable[[], float]

PROBE_SECONDS = 0.05
FLUSH_MINIMUM_BYTES = 64 << 20
#: Rows of the square matrix product whose rate is a GPU's compute limit.
MATRIX_SIZE = 8192
COPY_BYTES = 1 << 30


class NoLimits(RuntimeError):
    """The limits of this device cannot be measured; the text says why."""


class Cpu:
    """Host memory, wall-clock time, limits from the probes of fgkernels._native, memory from the kernel's marks."""

    def place(self, inputs: Inputs) -> Inputs:
        return inputs

    def time_calls(self, call: Callable[[], object], repeats: int) -> float:
        return timing.time_calls(call, repeats)

    def probes(self, case: Case, threads: int) -> tuple[Probe | None, Probe]:
        """Readings of the compute limit (1e9 FLOP or state updates a second) and of the memory limit (GB/s)."""
        module = environment.native()
        if module is None:
            raise NoLimits("fgkernels._native, which holds the probes, isn't built")
        return (
            lambda: module.probe_fma(case.probe, threads, PROBE_SECONDS),
            lambda: module.probe_read(threads=threads, seconds=PROBE_SECONDS),
        )

    def flusher(self) -> Callable[[], object]:
        """Overwrites more than the last-level cache holds, on all threads."""
        size = max(FLUSH_MINIMUM_BYTES, 2 * (environment.last_level_cache_bytes() or 0))
        buffer = torch.zeros(size // 4)
        return lambda: buffer.add_(1.0)

    def measure_peak(self, call: Callable[[], object]) -> memory.Peak:
        return memory.measure_peak(call)

    def facts(self) -> dict[str, Any] | None:
        return None


class Cuda:
    """The current CUDA device: time between events, limits by torch itself, memory from torch's allocator.

    Args:
        api: torch.cuda, or what stands in for it in tests.
        device, matrix_size, copy_bytes: where tensors are put, and the size of the probes.
    """

    def __init__(
        self,
        api: ModuleType | Any = torch.cuda,
        device: str = "cuda",
        matrix_size: int = MATRIX_SIZE,
        copy_bytes: int = COPY_BYTES,
    ) -> None:
        self.api = api
        self.device = device
        self.matrix_size = matrix_size
        self.copy_bytes = copy_bytes

    def place(self, inputs: Inputs) -> Inputs:
        """The inputs on the device; leaves stay leaves."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.detach().to(self.device).requires_grad_(value.requires_grad)

        return {name: move(value) for name, value in inputs.items()}

    def time_calls(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds per call between two events on the current stream, which is idle before the first."""
        start, end = self.api.Event(enable_timing=True), self.api.Event(enable_timing=True)
        self.api.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats

    def probes(self, case: Case, threads: int) -> tuple[Probe | None, Probe]:
        """torch.matmul of square matrices in the case's dtype, and a copy, which counts bytes read and written.

        No operator of torch shows how many exponentials a GPU can take: state updates have the memory limit alone.
        """
        source = torch.zeros(self.copy_bytes, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)

        def traffic() -> float:
            return 2 * self.copy_bytes / 1e9 / self.time_calls(lambda: target.copy_(source), 3)

        if case.probe == "exp_fma":
            return None, traffic
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}.get(case.dtype)
        # int8 documents meet float32 queries; without TF32, which no exact kernel may use.
        shape = (self.matrix_size, self.matrix_size)
        a = torch.ones(shape, dtype=dtype or torch.float32, device=self.device)
        b, product = torch.ones_like(a), torch.empty_like(a)

        def compute() -> float:
            return 2 * self.matrix_size**3 / 1e9 / self.time_calls(lambda: torch.matmul(a, b, out=product), 3)

        torch.matmul(a, b, out=product)  # the first product chooses its kernel
        return compute, traffic

    def flusher(self) -> Callable[[], object]:
        cache = getattr(self.api.get_device_properties(self.device), "L2_cache_size", 0)
        buffer = torch.zeros(max(FLUSH_MINIMUM_BYTES, 2 * cache) // 4, device=self.device)
        return lambda: buffer.add_(1.0)

    def measure_peak(self, call: Callable[[], object]) -> memory.Peak:
        """Peak of torch's allocator during one call over what was allocated before it."""
        self.api.synchronize()
        self.api.reset_peak_memory_stats()
        before = self.api.memory_allocated()
        output = call()
        self.api.synchronize()
        return memory.Peak(self.api.max_memory_allocated() - before, memory.tensor_bytes(output))

    def facts(self) -> dict[str, Any]:
        """Name, multiprocessors and memory of the GPU, and the CUDA that torch was built for."""
        properties = self.api.get_device_properties(self.device)
        return {
            "name": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }


Device = Cpu | Cuda


def find(name: str) -> Device:
    """The device of this name.

    Raises:
        ValueError: unknown, or torch sees none.
    """
    if name not in DEVICES:
        raise ValueError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}")
    if name == "cpu":
        return Cpu()
    if not torch.cuda.is_available():
        raise ValueError(f"device: torch {torch.__version__} sees no CUDA device here")
    return Cuda()
