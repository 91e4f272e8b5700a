# SPDX-License-Identifier: Apache-2.0
"""How late interaction is cut into tiles, as far as that isn't tuned: it decides shapes of scratch memory and grids.

None of it changes an alignment. On a GPU tiles have the matrix units' sizes; the interpreter is fastest with few
programs that take as much as there is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .device import INTERPRETED, ceil_div, multiprocessors, next_power_of_2


def row_block(length: int, samples: int, element_size: int, paired: bool, both: bool) -> tuple[int, int]:
    """(BLOCK_M, SAMPLE_ROWS) of `samples` times `length` row tokens: on a GPU 64 or 128 rows, whichever idle less."""
    low, high = (16, 2048) if INTERPRETED else (16, 128 if element_size <= 2 else 256 // element_size)
    if not (paired or both):
        return next_power_of_2(samples * length, low, high), 0
    if INTERPRETED or length <= high // 2:
        rows = next_power_of_2(length, low if paired else 1, high)
        return (rows if paired else next_power_of_2(rows * samples, low, high)), rows
    block = min(64, high) if -length % 64 < -length % high else high
    return block, block


def channel_block(channels: int, element_size: int) -> tuple[int, bool]:
    """(BLOCK_K, WHOLE): wide types are multiplied without tensor cores, in small blocks."""
    if INTERPRETED:
        return next_power_of_2(channels, low=16), True
    if element_size >= 4:
        return 16, False
    return (next_power_of_2(channels, low=16), True) if channels <= 256 else (64, False)


def owner_block(length: int, channels: int, element_size: int) -> tuple[int, int]:
    """(BLOCK_M, BLOCK_C) of `scatter` for samples of `length` tokens."""
    if INTERPRETED:
        return next_power_of_2(length, 16, 2048), next_power_of_2(channels, 16)
    wide = 256 // element_size
    return next_power_of_2(length, 16, min(64, wide)), next_power_of_2(channels, 16, min(128, wide))


def column_group(row_tiles: int, column_samples: int, device: torch.device) -> int:
    """Column samples that one program streams: many, to read the rows once, but some programs per multiprocessor."""
    if INTERPRETED:
        return column_samples
    return max(1, min(column_samples, row_tiles * column_samples // (8 * multiprocessors(device))))


def swap_sides(a: Tensor, b: Tensor) -> bool:
    """Whether two-way similarity should take its rows from b, because that leaves less of the tiles idle."""
    return not INTERPRETED and _work(b, a) < _work(a, b)


def _work(rows: Tensor, columns: Tensor) -> float:
    """Work per useful product when `rows` fill the tiles."""
    block, sample_rows = row_block(rows.shape[1], rows.shape[0], rows.element_size(), False, True)
    padded = sample_rows if block > sample_rows else ceil_div(rows.shape[1], block) * block
    return padded / rows.shape[1] * (ceil_div(columns.shape[1], 32) * 32 / columns.shape[1])
