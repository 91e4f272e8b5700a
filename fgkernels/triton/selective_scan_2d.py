# SPDX-License-Identifier: Apache-2.0
"""Scans of maps along directions on Triton: one function per operator of the family, with its arguments and outputs.

:data:`KERNELS` holds them by operator name. Semantics are those of :mod:`fgkernels.reference.selective_scan_2d`; maps
are read and written through the table, and sums over directions are in their order. Bad arguments raise RuntimeError,
as from the compiled operators. That rows of a table are permutations is checked on the CPU; on a GPU, where reading
them would make the host wait, others give wrong results, but touch nothing outside the tensors.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..reference import _scan_checks as checks
from . import _selective_scan_calls as calls
from ._arguments import checked_on_cpu, expect, like, like_projection, or_empty


def _table(table: Tensor) -> Tensor:
    checked_on_cpu(checks.check_permutations, table)
    return table.contiguous()


def cross_scan(x: Tensor, table: Tensor) -> Tensor:
    """The operator `cross_scan`: x (B, C, L) at table (K, L), (B, K, C, L)."""
    checks.check_cross_scan(expect, x, table)
    return calls.gather(x, _table(table))


def cross_merge(y: Tensor, table: Tensor) -> Tensor:
    """The operator `cross_merge`: the sum over k of y (B, K, C, L) at table (K, L), (B, C, L)."""
    checks.check_cross_merge(expect, y, table)
    out = y.new_empty(y.shape[0], *y.shape[2:])
    return calls.merge(y, _table(table), None, None, out)


def _scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, table: Tensor, delta_softplus: bool, ordered: bool,
) -> calls.Scan:  # fmt: skip
    checks.check_selective_scan_2d(expect, x, delta, A, B, C, D, z, delta_bias, table, ordered)
    u = x.unsqueeze(1).expand(delta.shape) if x.dim() == 3 else x
    A, D, delta_bias = (None if value is None else value.contiguous() for value in (A, D, delta_bias))
    if A.dim() == 2:
        A, D, delta_bias = (None if value is None else value.unsqueeze(0) for value in (A, D, delta_bias))
    return calls.Scan(
        u, delta, A, B.unsqueeze(2), C.unsqueeze(2), D, z, delta_bias, None, _table(table), ordered, delta_softplus
    )


def selective_scan_2d(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, table: Tensor, delta_softplus: bool, ordered: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator `selective_scan_2d`: out (B, E, L) and checkpoints (B, K, E, chunks, N)."""
    scan = _scan(x, delta, A, B, C, D, z, delta_bias, table, delta_softplus, ordered)
    checkpoints, _ = calls.start(scan)
    batch, directions, channels, length = scan.shape
    out = x.new_empty(batch, channels, length)
    if directions == 1:
        calls.write_output(scan, checkpoints, out.unsqueeze(1))
    else:
        calls.merge(calls.output_of_directions(scan, checkpoints), None, z, None, out)
    return out, checkpoints


def selective_scan_2d_fwd(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, table: Tensor, delta_softplus: bool, ordered: bool,
) -> Tensor:  # fmt: skip
    """The operator `selective_scan_2d_fwd`: out alone."""
    return selective_scan_2d(x, delta, A, B, C, D, z, delta_bias, table, delta_softplus, ordered)[0]


def selective_scan_2d_backward(
    grad_out: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, table: Tensor, checkpoints: Tensor, delta_softplus: bool, ordered: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The operator `selective_scan_2d_backward`: gradients of x, delta, A, B, C, D, z and delta_bias.

    Those of B, C and z follow their memory, the others are contiguous.
    """
    scan = _scan(x, delta, A, B, C, D, z, delta_bias, table, delta_softplus, ordered)
    batch, directions, channels, length = scan.shape
    sizes = (batch, channels, length)
    checks.check_like(expect, "grad_out", grad_out, "(B, E, L)", sizes, "x", x.dtype, x.device)
    sizes = (batch, directions, channels, scan.chunks, scan.states)
    checks.check_like(expect, "checkpoints", checkpoints, "(B, K, E, chunks, N)", sizes, "x", A.dtype, x.device)
    checkpoints = checkpoints.contiguous()
    summed = x.dim() == 3 and directions > 1
    du = x.new_empty(scan.shape, dtype=scan.dtype if summed else x.dtype)
    ddelta, dB, dC = delta.new_empty(delta.shape), like_projection(B), like_projection(C)
    dz = None if z is None else like(z)
    found = calls.gradients(
        scan, grad_out, None, checkpoints, du, ddelta, dB.unsqueeze(2), dC.unsqueeze(2),
        dz if directions == 1 else None,
    )  # fmt: skip
    if dz is not None and directions > 1:
        calls.merge(calls.output_of_directions(scan, checkpoints), None, z, grad_out, dz)
    dx = calls.merge(du, None, None, None, x.new_empty(x.shape)) if summed else du.reshape(x.shape)
    dA, dD, ddelta_bias = found.dA, found.dD, found.ddelta_bias
    if A.dim() == 2:
        dA, dD, ddelta_bias = (None if value is None else value.sum(0) for value in (dA, dD, ddelta_bias))
    return dx, ddelta, dA, dB, dC, or_empty(dD, A), or_empty(dz, x), or_empty(ddelta_bias, A)


KERNELS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    function.__name__: function
    for function in (cross_scan, cross_merge, selective_scan_2d, selective_scan_2d_fwd, selective_scan_2d_backward)
}
