# SPDX-License-Identifier: Apache-2.0
"""Selective scans on Triton: one function per operator of the family, with the operator's arguments and outputs.

:data:`KERNELS` holds them by operator name. Semantics are those of :mod:`fgkernels.reference.selective_scan`; sums are
float32 (float64 for float64) and in a fixed order. Bad arguments raise RuntimeError, as from the compiled operators.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..reference import _scan_checks as checks
from . import _selective_scan_calls as calls
from ._arguments import checked_on_cpu, expect, like, like_projection, or_empty
from ._state_update import state_update


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, delta_softplus: bool,
) -> calls.Scan:  # fmt: skip
    checks.check_selective_scan(expect, u, delta, A, B, C, D, z, delta_bias, initial_state)
    A, D, delta_bias = (None if value is None else value.contiguous().unsqueeze(0) for value in (A, D, delta_bias))
    if initial_state is not None:
        initial_state = initial_state.contiguous().unsqueeze(1)
    return calls.Scan(
        u.unsqueeze(1), delta.unsqueeze(1), A, _projection(B), _projection(C), D, z, delta_bias, initial_state, None,
        False, delta_softplus,
    )  # fmt: skip


def _projection(value: Tensor) -> Tensor:
    """B or C as `Scan` has it: (B, 1, G, N, L), or constant (1, D, N)."""
    if value.dim() == 2:
        return value.contiguous().unsqueeze(0)
    return (value.unsqueeze(1) if value.dim() == 3 else value).unsqueeze(1)


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The operator `selective_scan`: out (B, D, L), last_state (B, D, N), checkpoints (B, 1, D, chunks, N)."""
    scan = _scan(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)
    checkpoints, last_state = calls.start(scan)
    out = like(u)
    calls.write_output(scan, checkpoints, out.unsqueeze(1))
    return out, last_state.squeeze(1), checkpoints


def selective_scan_fwd(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, delta_softplus: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator `selective_scan_fwd`: out and last_state alone."""
    return selective_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)[:2]


def selective_scan_backward(
    grad_out: Tensor, grad_last_state: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, initial_state: Tensor | None, checkpoints: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The operator `selective_scan_backward`: gradients of u, delta, A, B, C, D, z, delta_bias and initial_state."""
    scan = _scan(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)
    batch, channels, _ = u.shape
    device = u.device
    checks.check_like(expect, "grad_out", grad_out, "(B, D, L)", u.shape, "u", u.dtype, device)
    sizes = (batch, channels, scan.states)
    if grad_last_state is not None:
        checks.check_like(expect, "grad_last_state", grad_last_state, "(B, D, N)", sizes, "A", A.dtype, device)
        grad_last_state = grad_last_state.contiguous().unsqueeze(1)
    sizes = (batch, 1, channels, scan.chunks, scan.states)
    checks.check_like(expect, "checkpoints", checkpoints, "(B, 1, D, chunks, N)", sizes, "u", A.dtype, device)
    du, ddelta, dz = like(u), like(delta), None if z is None else like(z)
    dB, dC = like_projection(B), like_projection(C)
    found = calls.gradients(
        scan, grad_out, grad_last_state, checkpoints.contiguous(), du.unsqueeze(1), ddelta.unsqueeze(1),
        _projection(dB), _projection(dC), dz,
    )  # fmt: skip
    dD, ddelta_bias = (None if value is None else value.squeeze(0) for value in (found.dD, found.ddelta_bias))
    dinitial_state = None if initial_state is None else found.dinitial_state.squeeze(1)
    return (
        du, ddelta, found.dA.squeeze(0), found.dB.squeeze(0) if B.dim() == 2 else dB,
        found.dC.squeeze(0) if C.dim() == 2 else dC, or_empty(dD, A), or_empty(dz, u), or_empty(ddelta_bias, A),
        or_empty(dinitial_state, A),
    )  # fmt: skip


def selective_state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, state_batch_indices: Tensor | None, dt_softplus: bool,
) -> Tensor:  # fmt: skip
    """The operator `selective_state_update`: out like x; the state is updated in place."""
    checks.check_state_update(expect, state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices)
    if state_batch_indices is not None:
        checked_on_cpu(checks.check_entries, state_batch_indices, state.shape[0])
    return state_update(state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices, dt_softplus)


KERNELS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    function.__name__: function
    for function in (selective_scan, selective_scan_fwd, selective_scan_backward, selective_state_update)
}
