# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the Triton kernels: the interpreter, and a check of every address that it reads or writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import fgkernels.triton


@pytest.fixture
def interpreter() -> None:
    """Skips where the kernels aren't interpreted (tests/conftest.py asks for it where there is no GPU)."""
    reason = fgkernels.triton.refusal()
    if reason is not None:
        pytest.skip(reason)
    if not fgkernels.triton.interpreted():
        pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported")


class _CheckedMemory:
    """Stands for the interpreter's memory functions; every active lane has to lie in a tensor of the launch."""

    def __init__(self, functions: Any) -> None:
        self._functions = functions
        self.ranges: list[tuple[int, int]] = []
        self.checked = 0

    def allow(self, arguments: dict[str, Any]) -> None:
        tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor) and value.numel()]
        spans = [sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)) + 1 for t in tensors]
        self.ranges = [
            (t.data_ptr(), t.data_ptr() + span * t.element_size()) for t, span in zip(tensors, spans, strict=True)
        ]

    def _check(self, pointers: np.ndarray, mask: np.ndarray, size: int) -> None:
        active = pointers[np.broadcast_to(mask, pointers.shape).astype(bool)].astype(np.int64)
        inside = np.zeros(active.shape, bool)
        for low, high in self.ranges:
            inside |= (active >= low) & (active + size <= high)
        assert inside.all(), f"{(~inside).sum()} of {inside.size} addresses lie outside every tensor of the launch"
        self.checked += active.size

    def load(self, pointers: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: np.dtype) -> np.ndarray:
        self._check(pointers, mask, np.dtype(dtype).itemsize)
        return self._functions.load(pointers, mask, other, dtype)

    def store(self, pointers: np.ndarray, value: np.ndarray, mask: np.ndarray) -> None:
        self._check(pointers, mask, value.dtype.itemsize)
        return self._functions.store(pointers, value, mask)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._functions, name)


@pytest.fixture
def checked_memory(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[_CheckedMemory]:
    from triton.runtime import interpreter as runtime

    from fgkernels.triton.device import Kernel

    memory = _CheckedMemory(runtime._interpreter)
    launch = Kernel.launch

    def checked_launch(kernel: Kernel, device: torch.device, blocks: Any, **arguments: Any) -> None:
        memory.allow(arguments)
        launch(kernel, device, blocks, **arguments)

    monkeypatch.setattr(runtime, "_interpreter", memory)
    monkeypatch.setattr(Kernel, "launch", checked_launch)
    yield memory
    assert memory.checked > 0
