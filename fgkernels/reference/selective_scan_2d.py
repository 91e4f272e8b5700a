# SPDX-License-Identifier: Apache-2.0
"""Selective scans over feature maps in plain PyTorch: SS2D (VMamba, Liu et al. 2024) for any list of scan orders.

A direction k is a permutation of the map's positions, row k of a table: step t visits position table[k, t]. One
selective scan runs along each direction; the results are put back into the map and summed:

    out[p] = silu(z[p]) sum_k y_k[t]   with table[k, t] = p

The sequences of all directions are materialised here, which the fused kernels avoid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import _scan_checks as checks
from ._checks import check_tensor, raise_error, shape
from ._scan_checks import check_float, check_rank
from ._scan_tables import CROSS, inverse, resolve_table, scan_table
from .selective_scan import gated, scan, time_steps

__all__ = ["cross_merge", "cross_scan", "scan_table", "selective_scan_2d"]


def cross_scan(x: Tensor, directions: Sequence[str] = CROSS, *, table: Tensor | None = None) -> Tensor:
    """Same contract as :func:`fgkernels.cross_scan`, in plain PyTorch."""
    x, table = map_to_sequence(x, directions, table)
    checks.check_cross_scan(raise_error, x, table)
    return cross_scan_core(x, table)


def cross_merge(
    y: Tensor, directions: Sequence[str] = CROSS, *, size: tuple[int, int], table: Tensor | None = None
) -> Tensor:
    """Same contract as :func:`fgkernels.cross_merge`, in plain PyTorch."""
    check_float("y", y)
    height, width = checks.check_size(size)
    table = resolve_table(height, width, directions, table, y.device, inverted=True)
    checks.check_cross_merge(raise_error, y, table)
    return cross_merge_core(y, table).unflatten(-1, (height, width))


def selective_scan_2d(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    directions: Sequence[str] = CROSS,
    table: Tensor | None = None,
    ordered: bool = False,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Same contract as :func:`fgkernels.selective_scan_2d`, in plain PyTorch."""
    check_tensor("x", x)
    dtype = x.dtype
    arguments, table, size = prepare_2d(x, delta, A, B, C, D, z, delta_bias, directions, table, ordered, size)
    checks.check_selective_scan_2d(raise_error, *arguments, table, ordered)
    out, _ = selective_scan_2d_core(*arguments, table, delta_softplus, ordered)
    return checks.to(out, dtype).unflatten(-1, size)


# --- without checks: what exported programs are decomposed into -------------------------------------------------------


def cross_scan_core(x: Tensor, table: Tensor) -> Tensor:
    """(B, C, L) -> (B, K, C, L), of the op `cross_scan`."""
    return x[:, :, table.to(torch.int64)].transpose(1, 2)


def cross_merge_core(y: Tensor, table: Tensor) -> Tensor:
    """(B, K, C, L) -> (B, C, L), of the op `cross_merge`, whose table holds the inverse permutations."""
    return _put_back(y.to(checks.accumulation_dtype(y.dtype)), table).to(y.dtype)


def _put_back(y: Tensor, table: Tensor) -> Tensor:
    """The sum over directions in map order, given inverse permutations."""
    places = table.to(torch.int64)[:, None, :].expand(y.shape)
    return y.gather(-1, places).sum(1)


def selective_scan_2d_core(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    table: Tensor,
    delta_softplus: bool,
    ordered: bool,
    run: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, checkpoints) of the op `selective_scan_2d`: one scan whose channels are those of all directions.

    `run` may run the steps otherwise than `scan`.
    """
    dtype = A.dtype
    batch, directions, channels, length = delta.shape
    if x.dim() == 3:
        x = x.unsqueeze(1).expand(delta.shape)
    u = x.to(dtype)
    dt = time_steps(delta, delta_bias, delta_softplus, dtype)
    if not ordered:
        places = table.to(torch.int64)[:, None, :]
        u, dt, B, C = (t.gather(-1, places.expand(t.shape)) for t in (u, dt, B, C))
    if A.dim() == 2:
        A = A.expand(directions, -1, -1)
    u, dt, A = u.flatten(1, 2), dt.flatten(1, 2), A.flatten(0, 1)
    y, _, checkpoints = (run or scan)(u, dt, A, B, C, A.new_zeros(batch, *A.shape))
    y, u = y.unflatten(1, (directions, channels)), u.unflatten(1, (directions, channels))
    if D is not None:
        y = y + D.unsqueeze(-1) * u
    out = gated(_put_back(y, inverse(table)), z).to(x.dtype)
    return out, checkpoints.unflatten(1, (directions, channels))


# --- shapes of the public functions -----------------------------------------------------------------------------------


def map_to_sequence(
    x: Tensor, directions: Sequence[str], table: Tensor | None, *, trusted: bool = False
) -> tuple[Tensor, Tensor]:
    """A map (B, C, H, W) as (B, C, H * W), and the table of its directions."""
    check_float("x", x)
    check_rank(raise_error, "x", x, 4, "(B, C, H, W)")
    height, width = x.shape[2:]
    return x.flatten(2), resolve_table(height, width, directions, table, x.device, trusted=trusted)


def prepare_2d(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    directions: Sequence[str],
    table: Tensor | None,
    ordered: bool,
    size: tuple[int, int] | None,
    *,
    trusted: bool = False,
) -> tuple[tuple[Tensor | None, ...], Tensor, tuple[int, int]]:
    """What the operator takes, the table, and the map's (H, W).

    Arguments are promoted, maps flattened, and A, D and delta_bias all per direction or all shared.
    """
    x, delta, A, B, C, D, z, delta_bias, _ = checks.promote_scan(x, delta, A, B, C, D, z, delta_bias, first="x")
    if ordered:
        check_rank(raise_error, "x", x, 4, "(B, K, E, L), since ordered,")
        if size is None:
            raise ValueError("size: expected (H, W), required when ordered, got None")
    elif x.dim() not in (4, 5):
        raise ValueError(f"x: expected (B, E, H, W) or (B, K, E, H, W), got {shape(x)}")
    height, width = size = tuple(x.shape[-2:]) if size is None else checks.check_size(size)
    table = resolve_table(height, width, directions, table, x.device, trusted=trusted)
    if ordered:
        expected = "(B, K, {}, L), since ordered,"
    else:
        check_ends_with(x, size)
        x = x.flatten(-2)
        expected = "(B, K, {0}, H, W) or (B, K, {0}, L)"
    delta = _sequence("delta", delta, 4, expected.format("E"), size, ordered)
    B, C = (_sequence(name, value, 4, expected.format("N"), size, ordered) for name, value in (("B", B), ("C", C)))
    if z is not None:
        z = _sequence("z", z, 3, "(B, E, H, W) or (B, E, L)", size, False)
    return (x, delta, *_per_direction(A, B, C, D, z, delta_bias, table.shape[0], x.shape[-2])), table, size


def check_ends_with(x: Tensor, size: tuple[int, int]) -> None:
    if tuple(x.shape[-2:]) != tuple(size):
        raise ValueError(f"size: expected (H, W) = {tuple(x.shape[-2:])} like x, got {tuple(size)}")


def _sequence(name: str, value: Tensor, rank: int, letters: str, size: tuple[int, int], ordered: bool) -> Tensor:
    """`value` with its last axis L = H * W."""
    if value.dim() == rank:
        return value
    fits = not ordered and value.dim() == rank + 1 and tuple(value.shape[-2:]) == tuple(size)
    raise_error(fits, ValueError, lambda: f"{name}: expected {letters} with (H, W) = {tuple(size)}, got {shape(value)}")
    return value.flatten(-2)


def _per_direction(
    A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, directions: int,
    channels: int,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """A (K, E, N), D and delta_bias (K, E); or, if the directions share all of them, (E, N) and (E,)."""
    A, D, delta_bias = (
        None if value is None else _parameter(name, value, letters, directions, channels)
        for name, value, letters in (("A", A, "E, N"), ("D", D, "E"), ("delta_bias", delta_bias, "E"))
    )
    parameters = [(A, 2), (D, 1), (delta_bias, 1)]
    if any(value is not None and value.dim() > rank for value, rank in parameters):
        A, D, delta_bias = (
            value if value is None or value.dim() > rank else value.expand(directions, *value.shape)
            for value, rank in parameters
        )
    return A, B, C, D, z, delta_bias


def _parameter(name: str, value: Tensor, letters: str, directions: int, channels: int) -> Tensor:
    """(K, E, ...) from that or the official (K * E, ...); (E, ...) stays."""
    rank = letters.count(",") + 1
    if value.dim() == rank:
        if value.shape[0] == channels:
            return value
        if value.shape[0] == directions * channels:
            return value.unflatten(0, (directions, channels))
    elif value.dim() == rank + 1 and tuple(value.shape[:2]) == (directions, channels):
        return value
    single = f"({letters})" if rank > 1 else f"({letters},)"
    raise ValueError(
        f"{name}: expected (K, {letters}), (K * {letters}) or, if the directions share it, {single} "
        f"with K = {directions} and E = {channels}, got {shape(value)}"
    )
