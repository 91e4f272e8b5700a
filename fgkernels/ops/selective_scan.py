# SPDX-License-Identifier: Apache-2.0
"""Selective scans over sequences: `selective_scan` and, for decoding, `selective_state_update`.

The public functions bring their arguments to the dtypes of the operators and choose between these and the reference;
without gradients they call the operator that keeps nothing. What the operators need from Python is in
`_selective_scan_rules`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend
from ..reference import _scan_checks as checks
from ..reference import selective_scan as reference
from . import _library
from . import _selective_scan_rules as _rules  # noqa: F401  (registers fake kernels, autograd and vmap)
from ._calls import forward_only, keeps, reference_call, runs_operators

__all__ = ["selective_scan", "selective_state_update"]

_scan = _library.op("selective_scan")
_scan_fwd = _library.op("selective_scan_fwd")
_update = _library.op("selective_state_update")
_in_functorch = torch._C._are_functorch_transforms_active

_backend.declare(
    "selective_scan",
    functions=("selective_scan", "selective_state_update"),
    operators=("selective_scan", "selective_scan_fwd", "selective_scan_backward", "selective_state_update"),
)


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
    """The selective state-space recurrence of Mamba (Gu and Dao 2023, algorithm 2), with its gate.

    Per batch entry and channel d, with dt = delta + delta_bias, through softplus where asked, and h[-1] the initial
    state:  ``h[t, n] = exp(dt[t] A[d, n]) h[t-1, n] + dt[t] B[t, n] u[t]``,
    ``y[t] = sum_n C[t, n] h[t, n] + D[d] u[t]``,  ``out[t] = y[t] silu(z[t])``. Signature and semantics are those of
    mamba_ssm's `selective_scan_fn`; the initial state is new, and both states have gradients. Nothing of size
    B x D x L x N is stored, also not for the backward. Differentiable in every tensor.

    Args:
        u: (B, D, L), float32, float64, bfloat16 or float16, any strides.
        delta: (B, D, L), the step sizes.
        A: (D, N), real; a complex one is refused. The usual ones are negative.
        B: (B, N, L), (B, G, N, L) for G groups of D / G neighbouring channels each, or constant (D, N).
        C: likewise, independently of B; where both have groups, equally many.
        D: (D,), the skip connection. None: none.
        z: (B, D, L), the gate. None: none.
        delta_bias: (D,). None: zero.
        delta_softplus: pass delta + delta_bias through softplus (the identity above 20).
        return_last_state: also return h[L-1].
        initial_state: (B, D, N), the state before the first step, say the last state of the chunk before. None: zeros.

    Returns:
        out: (B, D, L) in u's dtype, channel-last in memory where u is.
        last_state (with return_last_state): (B, D, N), float32, or float64 for float64 sequences; the initial state
        where L = 0.

    Raises:
        ValueError, TypeError, RuntimeError: with the argument's name, the expected shape and what came.

    Sequences (u, delta, z, and B and C unless constant) run in their common dtype; parameters, states and all sums are
    float32, or float64 for float64 sequences. Autocast changes nothing: bfloat16 sequences with float32 parameters are
    the usual mixed precision. NaN and Inf stay in their batch entry and channel.
    """
    if not runs_operators("selective_scan", u, delta):
        return reference_call(
            reference.selective_scan, u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state,
            initial_state=initial_state,
        )  # fmt: skip
    inputs = checks.promote_scan(u, delta, A, B, C, D, z, delta_bias, initial_state)
    if keeps(*inputs):
        out, last_state, _ = _scan(*inputs, delta_softplus)
    else:
        out, last_state = forward_only(_scan_fwd, *inputs, delta_softplus)
    out = checks.to(out, u.dtype)
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
    """One step of `selective_scan` for decoding; the state is changed in place.

    Signature and semantics are those of mamba_ssm's `selective_state_update`. With heads (Mamba-2) every tensor has a
    heads dimension H of P channels each; A, D and dt_bias may be expanded from one value per head and are then not
    copied.

    Args:
        state: (E, D, N) or (E, H, P, N), any float dtype, any strides; changed in place. E = B, unless
            `state_batch_indices` says which row belongs to whom.
        x: (B, D) or (B, H, P), float32, float64, bfloat16 or float16.
        dt: like x, the step sizes.
        A: (D, N) or (H, P, N).
        B: (B, N), or (B, G, N) for G groups of neighbouring heads (without heads: channels).
        C: likewise.
        D: (D,) or (H, P). None: no skip connection.
        z: like x, the gate. None: none.
        dt_bias: (D,) or (H, P). None: zero.
        dt_softplus: pass dt + dt_bias through softplus (the identity above 20).
        state_batch_indices: int32 or int64 (B,) in [0, E), none of them twice: the row of the state that each batch
            entry uses; the other rows stay. Checked on the CPU; elsewhere rows out of range are left alone.

    Returns:
        out: like x.

    Raises:
        ValueError, TypeError, RuntimeError: with the argument's name, the expected shape and what came; RuntimeError
            where an input requires a gradient and gradients are enabled, since a step in place has none.

    The step is computed in float32, or float64 where x is, and rounded to the state's dtype.
    """
    if not runs_operators("selective_state_update", state, x):
        return reference_call(
            reference.selective_state_update, state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices
        )
    inputs = checks.promote_update(state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices)
    if torch.compiler.is_compiling() or _in_functorch():
        out = _update(*inputs, dt_softplus)
    else:  # what the operator's rules for autograd do, without the detour through them
        checks.check_no_gradient(*inputs)
        with torch._C._AutoDispatchBelowADInplaceOrView():
            out = _update(*inputs, dt_softplus)
        if not state.is_inference():
            torch.autograd.graph.increment_version(state)
    return checks.to(out, x.dtype)
