# SPDX-License-Identifier: Apache-2.0
"""Selective scans over feature maps: `selective_scan_2d`, and `cross_scan`, `cross_merge` for other ways to scan one.

What the operators need from Python (fake kernels, autograd, vmap) is in `_selective_scan_2d_rules`; the shapes that the
public functions accept are brought to the operators' by `reference.selective_scan_2d.prepare_2d`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _backend
from ..reference import _scan_checks as checks
from ..reference import selective_scan_2d as reference
from ..reference._scan_tables import CROSS, resolve_table, scan_table
from . import _library
from . import _selective_scan_2d_rules as _rules  # noqa: F401  (registers fake kernels, autograd and vmap)
from ._calls import forward_only, keeps, reference_call, runs_operators

__all__ = ["cross_merge", "cross_scan", "scan_table", "selective_scan_2d"]

_scan = _library.op("selective_scan_2d")
_scan_fwd = _library.op("selective_scan_2d_fwd")
_cross_scan = _library.op("cross_scan")
_cross_merge = _library.op("cross_merge")

_backend.declare(
    "selective_scan_2d",
    functions=("selective_scan_2d", "cross_scan", "cross_merge"),
    operators=(
        "selective_scan_2d", "selective_scan_2d_fwd", "selective_scan_2d_backward", "cross_scan", "cross_merge",
    ),
)  # fmt: skip


def cross_scan(x: Tensor, directions: Sequence[str] = CROSS, *, table: Tensor | None = None) -> Tensor:
    """The sequences of a feature map in several orders (VMamba, Liu et al. 2024, "cross-scan").

    ``out[b, k, c, t] = x[b, c].flatten()[table[k, t]]``. Its gradient is `cross_merge` of the same directions.

    Args:
        x: (B, C, H, W), float32, float64, bfloat16 or float16, any strides.
        directions: K names among h, v, d, a, h_flip, v_flip, d_flip, a_flip (see `scan_table`).
        table: int32 or int64 (K, H * W), each row a permutation, instead of names.

    Returns:
        (B, K, C, H * W), dtype of x.

    Raises:
        ValueError, TypeError, RuntimeError: with the argument's name, the expected shape and what came; also for rows
            that are no permutations, which is checked on the CPU.
    """
    if not runs_operators("cross_scan", x, x):
        return reference_call(reference.cross_scan, x, directions, table=table)
    x, table = reference.map_to_sequence(x, directions, table, trusted=True)
    return _cross_scan(x, table)


def cross_merge(
    y: Tensor, directions: Sequence[str] = CROSS, *, size: tuple[int, int], table: Tensor | None = None
) -> Tensor:
    """Sequences in several orders put back into their map and summed (VMamba, Liu et al. 2024, "cross-merge").

    ``out[b, c].flatten()[p] = sum_k y[b, k, c, t]`` with ``table[k, t] = p``. Its gradient is `cross_scan` of the same
    directions; ``cross_merge(cross_scan(x)) = K x``.

    Args:
        y: (B, K, C, H * W), float32, float64, bfloat16 or float16, any strides.
        directions: K names (see `cross_scan`).
        size: (H, W) of the map.
        table: int32 or int64 (K, H * W), each row a permutation, instead of names: the one of `cross_scan`.

    Returns:
        (B, C, H, W), dtype of y; the sum is taken in float32, or float64 for float64.

    Raises:
        ValueError, TypeError, RuntimeError: as `cross_scan`.
    """
    if not runs_operators("cross_merge", y, y):
        return reference_call(reference.cross_merge, y, directions, size=size, table=table)
    checks.check_float("y", y)
    height, width = checks.check_size(size)
    table = resolve_table(height, width, directions, table, y.device, inverted=True)
    return _cross_merge(y, table).unflatten(-1, (height, width))


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
    """Selective scans along K orders of a feature map, put back into the map and summed: SS2D in one call.

    Along direction k step t visits position ``table[k, t]`` of the map, and a `selective_scan` runs over the steps; out
    is the sum of the K results at each position, D's term included, times silu(z) (VMamba, Liu et al. 2024;
    FER-YOLO-Mamba for eight directions; Mamba-FSCIL for shared weights). The map is read and written in place of its
    sequences, none of which is stored. Differentiable in every float tensor.

    Args:
        x: (B, E, H, W), read by every direction, or (B, K, E, H, W), one map per direction; float32, float64,
            bfloat16 or float16. `ordered`: (B, K, E, L), with L = H * W.
        delta: (B, K, E, H, W) or (B, K, E, L), the step sizes.
        A: (K, E, N), or (K * E, N) as official checkpoints have it, or (E, N) shared by the directions; real.
        B: (B, K, N, H, W) or (B, K, N, L).
        C: likewise.
        D: (K, E), (K * E,), or (E,) shared by the directions. None: no skip connection.
        z: (B, E, H, W) or (B, E, L), the gate, at map positions. None: none.
        delta_bias: (K, E), (K * E,) or (E,). None: zero.
        delta_softplus: pass delta + delta_bias through softplus (the identity above 20).
        directions: K names among h, v, d, a, h_flip, v_flip, d_flip, a_flip (see `scan_table`).
        table: int32 or int64 (K, L), each row a permutation of the positions, instead of names.
        ordered: x, delta, B and C already are in scan order: their position t is step t. Otherwise they are maps, the
            values of step t at position table[k, t], as pointwise projections of a map are.
        size: (H, W); required if `ordered`.

    Returns:
        (B, E, H, W) in x's dtype, contiguous.

    Raises:
        ValueError, TypeError, RuntimeError: with the argument's name, the expected shape and what came; also for rows
            that are no permutations, which is checked on the CPU.

    Dtypes, autocast and special values are as for `selective_scan`.
    """
    if not runs_operators("selective_scan_2d", x, delta):
        return reference_call(
            reference.selective_scan_2d, x, delta, A, B, C, D, z, delta_bias, delta_softplus,
            directions=directions, table=table, ordered=ordered, size=size,
        )  # fmt: skip
    inputs, table, size = reference.prepare_2d(
        x, delta, A, B, C, D, z, delta_bias, directions, table, ordered, size, trusted=True
    )
    if keeps(*inputs):
        out, _ = _scan(*inputs, table, delta_softplus, ordered)
    else:
        out = forward_only(_scan_fwd, *inputs, table, delta_softplus, ordered)
    return checks.to(out, x.dtype).unflatten(-1, size)
