# SPDX-License-Identifier: Apache-2.0
"""Packed sequences and sequence numbers, shared by the operators that take them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._checks import shape
from ._scan_checks import values_can_be_read


def as_int32(name: str, index: Tensor | None) -> Tensor | None:
    """An int64 index as the operators take it."""
    if index is None:
        return None
    _checks.check_tensor(name, index)
    return index.to(torch.int32) if index.dtype == torch.int64 else index


def check_cu_seqlens(cu_seqlens: Tensor, owner: str, packed: Tensor, axis: int) -> None:
    """Cumulative lengths (S + 1,) of sequences packed one after the other along `axis` of a batch of one.

    Their values are read on the CPU only: elsewhere that would wait for the device.
    """
    _checks.check_offsets(_checks.raise_error, "cu_seqlens", cu_seqlens, "(S + 1,)", packed)
    if packed.shape[0] != 1:
        raise ValueError(f"{owner}: expected a batch of B = 1 with cu_seqlens, got {shape(packed)}")
    if cu_seqlens.device.type == "cpu" and values_can_be_read(cu_seqlens):
        _checks.check_offset_values("cu_seqlens", cu_seqlens, packed.movedim(axis, 0))


def sequence_numbers(cu_seqlens: Tensor, length: int) -> Tensor:
    """int32 (1, length): which of the packed sequences each position belongs to."""
    positions = torch.arange(length, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return (torch.searchsorted(cu_seqlens, positions, right=True) - 1).to(torch.int32).unsqueeze(0)
