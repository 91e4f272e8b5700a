# SPDX-License-Identifier: Apache-2.0
"""Mamba-2's scan (state-space duality): `mamba_chunk_scan_combined`.

Without gradients it is a forward-only operator. What the operators need from Python (fake kernels, autograd, vmap) is
in `_mamba_chunk_scan_rules`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _backend
from ..reference import _scan_checks as checks
from ..reference import mamba_chunk_scan as reference
from . import _library
from . import _mamba_chunk_scan_rules as _rules  # noqa: F401  (registers fake kernels, autograd and vmap)
from ._calls import keeps, reference_call, runs_operators

__all__ = ["mamba_chunk_scan_combined"]

_LARGEST = torch.finfo(torch.float32).max

_mamba_chunk_scan = _library.op("mamba_chunk_scan")
_mamba_chunk_scan_fwd = _library.op("mamba_chunk_scan_fwd")

_backend.declare(
    "mamba_chunk_scan",
    functions=("mamba_chunk_scan_combined",),
    operators=("mamba_chunk_scan", "mamba_chunk_scan_fwd", "mamba_chunk_scan_backward"),
)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Mamba-2's scan, one decay per head (state-space duality; Dao and Gu 2024, equation 16).

    With ``dt = clamp(softplus?(dt + dt_bias), *dt_limit)``, per head with channels p and states n:
    ``h[t, p, n] = exp(dt[t] A) h[t - 1, p, n] + dt[t] x[t, p] B[t, n]``,
    ``y[t, p] = sum_n C[t, n] h[t, p, n] + D x[t, p]`` and ``out = y silu(z)``. Nothing of size B L H P N is stored.
    Signature and meaning are those of mamba_ssm's function of this name. Differentiable in every floating-point
    argument, also through the final states.

    Args:
        x: (B, L, H, P), float32, float64, bfloat16 or float16, any strides.
        dt: (B, L, H), step sizes.
        A: (H,), as a rule negative. With D, dt_bias and the states it is read in float32, or float64 for float64.
        B, C: (B, L, G, N) with G that divides H: head i reads group i // (H / G).
        chunk_size: a positive int. It has no influence on the result: how the sequence is cut is the kernels' choice.
        D: (H,) or (H, P), the skip connection.
        z: (B, L, H, P), the gate.
        dt_bias: (H,).
        initial_states: (B, H, P, N), the states before the first step.
        seq_idx: int32 or int64 (B, L), which sequence a step belongs to: where it changes, and at step 0 where it is
            not 0, the state before the step counts as zero.
        cu_seqlens: int32 or int64 (S + 1,): sequence s is steps ``cu_seqlens[s]:cu_seqlens[s + 1]`` of a batch of
            one; seq_idx is made of it where it isn't given (mamba_ssm wants both). Its values, from 0 to L and never
            falling, are checked on the CPU; elsewhere others give a result of no meaning.
        dt_softplus: whether softplus is applied to dt.
        dt_limit: (minimum, maximum) of the step sizes. Where a limit is active no gradient passes.
        return_final_states: also return the states after the last step.
        return_varlen_states: also return the states after the last step of each sequence of cu_seqlens. They carry no
            gradient.

    Returns:
        out: (B, L, H, P) in x's dtype.
        final_states (with return_final_states): (B, H, P, N), float32, or float64 for float64 sequences.
        varlen_states (with return_varlen_states): (S, H, P, N), likewise. Of a sequence without steps they are zero;
            of the first sequence, if it has none, the initial states.

    Raises:
        ValueError, TypeError, RuntimeError: with the argument's name, the expected shape and what came.

    Sequences of different dtypes (x, dt, B, C, z) are promoted to a common one. A sequence in parts, each from the
    final states of the one before, gives what one call gives.
    """
    if not runs_operators("mamba_chunk_scan_combined", x, dt):
        return reference_call(
            reference.mamba_chunk_scan_combined, x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx,
            cu_seqlens, dt_softplus, dt_limit, return_final_states, return_varlen_states,
        )  # fmt: skip
    limits = reference.check_options(chunk_size, dt_limit, cu_seqlens, return_varlen_states)
    if torch.compiler.is_exporting():  # packages have no way to write an infinite argument
        limits = tuple(max(-_LARGEST, min(limit, _LARGEST)) for limit in limits)
    tensors = reference.operands(x, dt, A, B, C, D, z, dt_bias, initial_states)
    seq_idx = reference.numbered(x, seq_idx, cu_seqlens)
    arguments = (*tensors, seq_idx, dt_softplus, *limits)
    checkpoints = None
    if return_varlen_states or keeps(*tensors):
        out, final_states, checkpoints = _mamba_chunk_scan(*arguments)
    else:
        out, final_states = _mamba_chunk_scan_fwd(*arguments)
    outputs = [checks.to(out, x.dtype)]
    if return_final_states:
        outputs.append(final_states)
    if return_varlen_states:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            outputs.append(
                _states_after(
                    cu_seqlens.to(torch.int64),
                    tensors,
                    dt_softplus,
                    limits,
                    checkpoints,
                )
            )
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _states_after(
    cu_seqlens: Tensor,
    tensors: tuple[Tensor | None, ...],
    dt_softplus: bool,
    limits: tuple[float, float],
    checkpoints: Tensor,
) -> Tensor:
    """(S, H, P, N): the states after each packed sequence, from the checkpoint before its end and the steps since."""
    x, dt, A, B, _, _, _, dt_bias, initial_states = tensors
    _, length, heads, channels = x.shape
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    first = torch.arange(ends.shape[0], device=ends.device) == 0
    if length == 0:
        states = A.new_zeros((ends.shape[0], heads, channels, B.shape[3]))
        return states if initial_states is None else torch.where(first[:, None, None, None], initial_states, states)
    chunk = (ends - 1).clamp(min=0) // reference.CHECKPOINT_STEPS
    base = chunk * reference.CHECKPOINT_STEPS
    places = base.unsqueeze(1) + torch.arange(reference.CHECKPOINT_STEPS, device=ends.device)
    inside = (places >= starts.unsqueeze(1)) & (places < ends.unsqueeze(1))  # (S, 128)

    def gathered(sequence: Tensor) -> Tensor:
        """(S, 128, ...) in the accumulation type, zero outside the sequence, whatever is there."""
        rows = sequence[0].index_select(0, places.clamp(max=length - 1).flatten()).unflatten(0, places.shape)
        return torch.where(inside.view(*inside.shape, *[1] * (rows.dim() - 2)), rows, 0).to(A.dtype)

    steps = reference.step_sizes(gathered(dt), dt_bias, dt_softplus, *limits)
    steps = torch.where(inside.unsqueeze(-1), steps, 0)
    # Sums from the end: exact where the decay is not yet negligible.
    remaining = (steps * A).flip(1).cumsum(1).flip(1)
    decay = torch.cat([remaining[:, 1:], torch.zeros_like(remaining[:, :1])], 1).exp()
    inputs = (decay * steps).unsqueeze(-1) * gathered(x)
    added = inputs.permute(0, 2, 3, 1) @ reference.by_head(gathered(B), heads, B.shape[2]).transpose(1, 2)
    carried = remaining[:, 0].exp()[:, :, None, None] * checkpoints[0].index_select(0, chunk)
    return torch.where(((starts < base) | first)[:, None, None, None], carried, 0) + added
