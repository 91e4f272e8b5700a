# SPDX-License-Identifier: Apache-2.0
"""Selective scan in plain PyTorch: the state-space recurrence of Mamba (Gu and Dao 2023, algorithm 2).

Per batch entry and channel d, with dt = delta + delta_bias, through softplus where asked, and h[-1] = initial_state:

    h[t, n] = exp(dt[t] A[d, n]) h[t - 1, n] + dt[t] B[t, n] u[t]
    y[t]    = sum_n C[t, n] h[t, n] + D[d] u[t]
    out[t]  = y[t] silu(z[t])

One step after the other, in float32, or float64 for float64 sequences. Everything is differentiable ATen, as often as
one likes: it is the truth of the tests, the decomposition of exported programs and the back end of devices without a
kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _scan_checks as checks
from ._checks import check_tensor, raise_error

__all__ = ["selective_scan", "selective_state_update"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Same contract as :func:`fgkernels.selective_scan`, in plain PyTorch."""
    checks.check_float("u", u)
    dtype = u.dtype
    arguments = checks.promote_scan(u, delta, A, B, C, D, z, delta_bias, initial_state)
    checks.check_selective_scan(raise_error, *arguments)
    out, last_state, _ = selective_scan_core(*arguments, delta_softplus)
    out = checks.to(out, dtype)
    return (out, last_state) if return_last_state else out


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """Same contract as :func:`fgkernels.selective_state_update`, in plain PyTorch; also in place on `state`."""
    check_tensor("x", x)
    dtype = x.dtype
    arguments = checks.promote_update(state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices)
    checks.check_state_update(raise_error, *arguments)
    state, *rest, indices = arguments
    checks.check_no_gradient(state, *rest)
    if indices is not None and checks.values_can_be_read(indices):
        checks.check_entries(indices, state.shape[0])
    rows = state if indices is None else state[indices.to(torch.int64)]
    out, new = state_update_core(rows, *rest, dt_softplus)
    if indices is None:
        state.copy_(new)
    else:
        state[indices.to(torch.int64)] = new.to(state.dtype)
    return checks.to(out, dtype)


# --- without checks: what exported programs are decomposed into -------------------------------------------------------


def selective_scan_core(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    run: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, last_state, checkpoints) of the op `selective_scan`; `run` may run the steps otherwise than `scan`."""
    dtype, wide = u.dtype, A.dtype
    u = u.to(wide)
    state = A.new_zeros(*u.shape[:2], A.shape[1]) if initial_state is None else initial_state
    dt = time_steps(delta, delta_bias, delta_softplus, wide)
    y, last_state, checkpoints = (run or scan)(u, dt, A, B, C, state)
    if D is not None:
        y = y + D.unsqueeze(-1) * u
    return gated(y, z).to(dtype), last_state, checkpoints.unsqueeze(1)


def time_steps(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, dtype: torch.dtype) -> Tensor:
    """dt (..., D, L): delta with its bias, through softplus where asked (which is the identity above 20)."""
    dt = delta.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.unsqueeze(-1)
    return F.softplus(dt) if delta_softplus else dt


def gated(y: Tensor, z: Tensor | None) -> Tensor:
    return y if z is None else y * F.silu(z.to(y.dtype))


def scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence alone: y (B, D, L), the state after the last step, the states at the start of every chunk.

    All arguments but B and C have the accumulation type; these are converted.
    """
    channels, length = u.shape[1:]
    checkpoints, outputs = [], []
    steps = zip(
        u.unbind(-1), dt.unbind(-1), _steps(B, channels, length, u.dtype), _steps(C, channels, length, u.dtype),
        strict=True,
    )  # fmt: skip
    for t, (u_t, dt_t, B_t, C_t) in enumerate(steps):
        if t % checks.CHUNK == 0:
            checkpoints.append(state)
        state = torch.exp(dt_t.unsqueeze(-1) * A) * state + (dt_t * u_t).unsqueeze(-1) * B_t
        outputs.append((state * C_t).sum(-1))
    if not outputs:  # torch.stack takes no empty list
        return u, state, state.unsqueeze(2)[:, :, :0]
    return torch.stack(outputs, -1), state, torch.stack(checkpoints, 2)


def _steps(projection: Tensor, channels: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    """B or C at each step, shaped to meet states (B, D, N)."""
    projection = projection.to(dtype)
    if projection.dim() == 2:
        return [projection] * length
    if projection.dim() == 3:
        return [step.unsqueeze(1) for step in projection.unbind(-1)]
    per_group = channels // projection.shape[1]
    return [step.repeat_interleave(per_group, 1) for step in projection.unbind(-1)]


def state_update_core(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """out (x's dtype) and new states (state's dtype) of one step, for rows (B, ...) of the state."""
    dtype = A.dtype
    channels = x.shape[1]
    u, dt = x.to(dtype), dt.to(dtype)
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = F.softplus(dt)
    B, C = (_per_row(projection.to(dtype), channels, x.dim()) for projection in (B, C))
    new = torch.exp(dt.unsqueeze(-1) * A) * state.to(dtype) + (dt * u).unsqueeze(-1) * B
    y = (new * C).sum(-1)
    if D is not None:
        y = y + D * u
    return gated(y, z).to(x.dtype), new.to(state.dtype)


def _per_row(projection: Tensor, channels: int, rank: int) -> Tensor:
    """B or C (B, N) or (B, G, N) of one step, shaped to meet states (B, D, N) or (B, H, P, N)."""
    if projection.dim() == 2:
        projection = projection.unsqueeze(1)
    else:
        projection = projection.repeat_interleave(channels // projection.shape[1], 1)
    return projection if rank == 2 else projection.unsqueeze(2)
