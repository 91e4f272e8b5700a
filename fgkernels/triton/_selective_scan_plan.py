# SPDX-License-Identifier: Apache-2.0
"""How a selective scan is cut into blocks, and how much scratch memory its backward holds at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..reference._scan_checks import CHUNK
from .device import INTERPRETED, next_power_of_2

#: Bytes of partial sums of dB and dC that a backward may hold where the inputs are small.
SCRATCH_BYTES = 2**26


def step_block(length: int) -> int:
    return next_power_of_2(length, low=16, high=CHUNK)


class Blocks(NamedTuple):
    """Channels, states and steps that a program scans at a time."""

    channels: int
    states: int
    steps: int


def blocks(per_group: int, states: int, length: int, dtype: torch.dtype, sums: bool) -> Blocks:
    """As many elements as registers hold; `sums` over channels are the fewer the more of them a program has.

    One state after the other, unless steps or channels are few.
    """
    steps = step_block(length)
    if INTERPRETED:
        channels = next_power_of_2(per_group, high=1024)
        return Blocks(channels, next_power_of_2(states, high=max(4096 // channels, 1)), steps)
    many = states > 64
    rows = (1024 if sums else 512) // steps // (2 if dtype == torch.float64 else 1)
    channels = next_power_of_2(per_group, high=min((16 if sums else 8) // (2 if many else 1), rows))
    return Blocks(channels, next_power_of_2(states, high=min(rows // channels, 8)), steps)


def passing_blocks(elements: int, chunks: int) -> tuple[int, int]:
    """(elements, chunks) of a program of `passing`."""
    if INTERPRETED:
        return next_power_of_2(elements, high=2**16), next_power_of_2(chunks, high=64)
    turns = next_power_of_2(chunks, high=16)
    return 1024 // turns, turns


def parts(batch: int, chunks: int, bytes_per_chunk: int, input_bytes: int, split_chunks: bool) -> tuple[int, int]:
    """(batch entries, chunks) of a launch whose partial sums stay within twice the inputs, or SCRATCH_BYTES."""
    budget = max(2 * input_bytes, SCRATCH_BYTES)
    entries = budget // max(bytes_per_chunk * chunks, 1)
    if entries >= 1 or not split_chunks:
        return max(min(entries, batch), 1), chunks
    return 1, max(min(budget // max(bytes_per_chunk, 1), chunks), 1)
