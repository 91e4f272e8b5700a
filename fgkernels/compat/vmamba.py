# SPDX-License-Identifier: Apache-2.0
"""VMamba's scan functions (csm_triton.py, csms6s.py): same arguments, same numbers, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.selective_scan import selective_scan
from ..ops.selective_scan_2d import cross_merge, cross_scan

__all__ = ["cross_merge_fn", "cross_scan_fn", "selective_scan_fn"]

#: VMamba's `scans` -> directions.
_SCANS = {0: ("h", "v", "h_flip", "v_flip"), 1: ("h", "h", "h", "h"), 2: ("h", "h", "h_flip", "h_flip")}


def cross_scan_fn(
    x: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int = 0,
    force_torch: bool = False,
) -> Tensor:
    """A map read in four directions.

    Args:
        x: (B, C, H, W), or (B, H, W, C) if not `in_channel_first`; with `one_by_one` a map of its own per direction,
            (B, 4, C, H, W) or (B, H, W, 4, C).
        in_channel_first: layout of x.
        out_channel_first: layout of the result.
        scans: 0 rows, columns and both reversed; 1 rows, four times; 2 rows twice and reversed rows twice.
        force_torch: accepted for VMamba's signature and ignored; see `fgkernels.backend`.

    Returns:
        (B, 4, C, H * W), or (B, H * W, 4, C) if not `out_channel_first`; contiguous.

    Raises:
        ValueError: for another `scans`; else as `fgkernels.cross_scan`.
    """
    directions = _directions(scans)
    if one_by_one:
        maps = x if in_channel_first else x.permute(0, 3, 4, 1, 2)
        y = torch.cat([cross_scan(maps[:, k], (direction,)) for k, direction in enumerate(directions)], 1)
    else:
        y = cross_scan(x if in_channel_first else x.permute(0, 3, 1, 2), directions)
    return (y if out_channel_first else y.permute(0, 3, 1, 2)).contiguous()


def cross_merge_fn(
    y: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int = 0,
    force_torch: bool = False,
) -> Tensor:
    """The sum of what four directions hold for each place of the map; the adjoint of `cross_scan_fn`.

    Args:
        y: (B, 4, C, H, W), or (B, H, W, 4, C) if not `out_channel_first`, where H * W runs in scan order.
        in_channel_first: layout of the result, as that of `cross_scan_fn`'s input.
        out_channel_first: layout of y, as that of `cross_scan_fn`'s result.
        one_by_one: undo each direction's order without summing.
        scans: see `cross_scan_fn`.
        force_torch: accepted for VMamba's signature and ignored; see `fgkernels.backend`.

    Returns:
        (B, C, H * W) or (B, H * W, C); with `one_by_one` (B, 4, C, H * W) or (B, H * W, 4, C); contiguous.
    """
    directions = _directions(scans)
    y = y if out_channel_first else y.permute(0, 3, 4, 1, 2)
    size = (y.shape[3], y.shape[4])
    y = y.flatten(3)
    if one_by_one:
        maps = [cross_merge(y[:, k : k + 1], (direction,), size=size) for k, direction in enumerate(directions)]
        x = torch.stack(maps, 1).flatten(3)
        return (x if in_channel_first else x.permute(0, 3, 1, 2)).contiguous()
    x = cross_merge(y, directions, size=size).flatten(2)
    return (x if in_channel_first else x.transpose(1, 2)).contiguous()


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    oflex: bool = True,
    backend: str | None = None,
) -> Tensor:
    """`fgkernels.selective_scan` of K groups of channels, without a gate.

    Args:
        u: (B, K * C, L).
        delta: (B, K * C, L).
        A: (K * C, N).
        B: (B, K, N, L).
        C: (B, K, N, L).
        D: (K * C,).
        delta_bias: (K * C,).
        delta_softplus: True here, where mamba_ssm has False.
        oflex: return float32 for 16-bit inputs.
        backend: accepted for VMamba's signature and ignored; see `fgkernels.backend`.

    Returns:
        (B, K * C, L), dtype of u, or float32 (see `oflex`).
    """
    if oflex and u.dtype in (torch.bfloat16, torch.float16):
        u, delta, B, C = u.float(), delta.float(), B.float(), C.float()
    return selective_scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus)


def _directions(scans: int) -> tuple[str, ...]:
    if scans not in _SCANS:
        raise ValueError(f"scans: expected 0, 1 or 2, got {scans!r}")
    return _SCANS[scans]
