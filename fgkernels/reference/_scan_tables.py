# SPDX-License-Identifier: Apache-2.0
"""Named scan orders of a feature map as tables of permutations: step t of a direction visits position table[k, t]."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import check_tensor, raise_error
from ._scan_checks import check_permutations, check_table, values_can_be_read

NAMES = ("h", "v", "d", "a")
DIRECTIONS = (*NAMES, *(f"{name}_flip" for name in NAMES))

#: VMamba's four.
CROSS = ("h", "v", "h_flip", "v_flip")


def scan_table(height: int, width: int, directions: Sequence[str], *, device: torch.device | None = None) -> Tensor:
    """The orders in which named directions visit a map's positions, which are numbered row by row.

        name  order                                                                 of 2 rows and 3 columns
        "h"   row after row                                                         0 1 2 3 4 5
        "v"   column after column                                                   0 3 1 4 2 5
        "d"   diagonals that wrap: step j H + i visits row i, column (i + j) mod W  0 4 1 5 2 3
        "a"   anti-diagonals that wrap: row i, column (j - i) mod W                 0 5 1 3 2 4

    and each of them with "_flip" appended, which is the reversed order (VMamba, Liu et al. 2024, uses the first two
    and their reversals; FER-YOLO-Mamba, Ma et al. 2024, all eight).

    Args:
        height, width: of the map, H and W.
        directions: K names.
        device: of the table; by default torch's default device.

    Returns:
        int32 (K, H * W), each row a permutation. It is kept for the next call: copy it before you change it.

    Raises:
        ValueError: for a name that isn't among these, no name, or a size below 0 or of 2^31 positions and more.
    """
    return _named(height, width, directions, device, inverted=False)


def resolve_table(
    height: int,
    width: int,
    directions: Sequence[str],
    table: Tensor | None,
    device: torch.device,
    *,
    inverted: bool = False,
    trusted: bool = False,
) -> Tensor:
    """The int32 (K, L) table that a call means: its own, or its named directions', or the inverses of either.

    `trusted` leaves the check that the caller's rows are permutations to the operator.
    """
    if table is None:
        return _named(height, width, directions, device, inverted)
    check_tensor("table", table)
    if table.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"table: expected dtype torch.int32 or torch.int64, got {table.dtype}")
    if table.dtype == torch.int64:
        table = table.clamp(-1, 2**31 - 1).to(torch.int32)
    check_table(raise_error, table, height * width, device)
    if not trusted and values_can_be_read(table):
        check_permutations(table)
    return inverse(table) if inverted else table


def inverse(table: Tensor) -> Tensor:
    """int32 (K, L): the step at which each direction visits a position."""
    return table.argsort(-1).to(torch.int32)


def _named(height: int, width: int, directions: Sequence[str], device: torch.device | None, inverted: bool) -> Tensor:
    if isinstance(directions, str) or not directions:
        raise ValueError(f"directions: expected names, one or more, got {directions!r}")
    for name in directions:
        if name not in DIRECTIONS:
            raise ValueError(f"directions: expected names among {', '.join(DIRECTIONS)}, got {name!r}")
    if height < 0 or width < 0 or height * width >= 2**31:
        raise ValueError(f"size: expected (H, W) with 0 <= H * W < 2^31, got ({height}, {width})")
    device = torch.get_default_device() if device is None else torch.device(device)
    # While something traces or intercepts torch's calls, a tensor belongs to that and must not outlive it.
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return _build(height, width, tuple(directions), device, inverted)
    return _cached(height, width, tuple(directions), device, inverted)


@functools.lru_cache(maxsize=256)
def _cached(height: int, width: int, directions: tuple[str, ...], device: torch.device, inverted: bool) -> Tensor:
    with torch.inference_mode(False):  # else autograd could not save it later
        return _build(height, width, directions, device, inverted)


def _build(height: int, width: int, directions: tuple[str, ...], device: torch.device, inverted: bool) -> Tensor:
    table = torch.stack([_order(height, width, name, device) for name in directions])
    return inverse(table) if inverted else table


def _order(height: int, width: int, name: str, device: torch.device) -> Tensor:
    row = torch.arange(height, device=device, dtype=torch.int32)
    column = torch.arange(width, device=device, dtype=torch.int32).unsqueeze(1)
    if name[0] == "h":
        order = torch.arange(height * width, device=device, dtype=torch.int32)
    elif name[0] == "v":
        order = (row * width + column).flatten()
    elif height * width == 0:  # no remainder by 0
        order = row.new_empty(0)
    else:
        shift = column + row if name[0] == "d" else column - row
        order = (row * width + shift.remainder(width)).flatten()
    return order.flip(0) if name.endswith("_flip") else order
