# SPDX-License-Identifier: Apache-2.0
"""Mamba-2's scan on Triton: one function per operator of the family, with the operator's arguments and outputs.

:data:`KERNELS` holds them by operator name. Semantics are those of :mod:`fgkernels.reference.mamba_chunk_scan`; sums
have float32's precision (float64's for float64), also those of products on the matrix units, and a fixed order. Bad
arguments raise RuntimeError, as from the compiled operators.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..reference import _scan_checks as scan_checks
from ..reference import mamba_chunk_scan as checks
from . import _mamba_chunk_scan_calls as calls
from ._arguments import expect, or_empty


def _scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, initial_states: Tensor | None, seq_idx: Tensor | None, dt_softplus: bool, dt_min: float,
    dt_max: float,
) -> calls.ChunkScan:  # fmt: skip
    checks.check_forward(expect, x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx)
    A, D, dt_bias, initial_states = (
        None if value is None else value.contiguous() for value in (A, D, dt_bias, initial_states)
    )
    if B.shape[3] == 0:
        # One state that stays zero is as good as none, and the kernels need not know.
        B, C = (value.new_zeros(*value.shape[:3], 1) for value in (B, C))
        initial_states = None
    return calls.ChunkScan(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, dt_softplus, dt_min, dt_max)


def mamba_chunk_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, initial_states: Tensor | None, seq_idx: Tensor | None, dt_softplus: bool, dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The operator `mamba_chunk_scan`: out (B, L, H, P), final_states and checkpoints (B, chunks, H, P, N)."""
    scan = _scan(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, dt_softplus, dt_min, dt_max)
    out = x.new_empty(x.shape)
    if out.numel() == 0:
        sizes = (x.shape[0], *x.shape[2:], B.shape[3])
        final_states = A.new_zeros(sizes) if initial_states is None else initial_states.clone()
        return out, final_states, A.new_empty(sizes[0], scan.chunks, *sizes[1:])
    steps = calls.steps_of(scan)
    checkpoints, final_states = calls.pass_states(scan, steps)
    calls.write_output(scan, steps, checkpoints, out)
    return out, *(states[..., : B.shape[3]] for states in (final_states, checkpoints))


def mamba_chunk_scan_fwd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, initial_states: Tensor | None, seq_idx: Tensor | None, dt_softplus: bool, dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator `mamba_chunk_scan_fwd`: out and final_states alone."""
    return mamba_chunk_scan(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, dt_softplus, dt_min, dt_max)[:2]


def mamba_chunk_scan_backward(
    grad_out: Tensor, grad_final_states: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, dt_bias: Tensor | None, initial_states: Tensor | None,
    seq_idx: Tensor | None, checkpoints: Tensor, dt_softplus: bool, dt_min: float, dt_max: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The operator `mamba_chunk_scan_backward`: gradients of x, dt, A, B, C, D, z, dt_bias and initial_states."""
    scan = _scan(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, dt_softplus, dt_min, dt_max)
    batch, _, heads, channels = x.shape
    scan_checks.check_like(expect, "grad_out", grad_out, "(B, L, H, P)", x.shape, "x", x.dtype, x.device)
    states = B.shape[3]
    sizes = (batch, heads, channels, states)
    if grad_final_states is not None:
        scan_checks.check_like(
            expect, "grad_final_states", grad_final_states, "(B, H, P, N)", sizes, "x and B", A.dtype, x.device
        )
        grad_final_states = grad_final_states.contiguous()
    sizes = (batch, scan.chunks, heads, channels, states)
    scan_checks.check_like(
        expect, "checkpoints", checkpoints, "(B, chunks, H, P, N)", sizes, "x and B", A.dtype, x.device
    )
    if x.numel() == 0:
        found = _of_nothing(scan, grad_final_states)
    elif states == 0:
        found = calls.gradients(scan, grad_out, None, scan.new_states(scan.chunks).zero_())
    else:
        found = calls.gradients(scan, grad_out, grad_final_states, checkpoints.contiguous())
    return (
        found.dx, found.ddt, found.dA, found.dB[..., :states], found.dC[..., :states],
        or_empty(found.dD, A), or_empty(found.dz, x), or_empty(found.ddt_bias, A),
        or_empty(None if initial_states is None else found.dinitial_states[..., :states], A),
    )  # fmt: skip


def _of_nothing(scan: calls.ChunkScan, grad_final_states: Tensor | None) -> calls.Gradients:
    """Gradients of a call without steps or channels: the initial states alone reach the result."""

    def zeros(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.new_zeros(value.shape)

    dinitial_states = zeros(scan.new_states()) if grad_final_states is None else grad_final_states.clone()
    return calls.Gradients(
        *(zeros(value) for value in (scan.x, scan.dt, scan.A, scan.B, scan.C, scan.D, scan.z, scan.dt_bias)),
        dinitial_states,
    )


KERNELS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    function.__name__: function for function in (mamba_chunk_scan, mamba_chunk_scan_fwd, mamba_chunk_scan_backward)
}
