# SPDX-License-Identifier: Apache-2.0
"""Mamba-2's scan in plain PyTorch (state-space duality; Dao and Gu 2024, equation 16), one step after the other.

With dt = clamp(softplus?(dt + dt_bias), dt_limit), per head and channel p, state n:

    h[t, p, n] = exp(dt[t] A) h[t - 1, p, n] + dt[t] x[t, p] B[t, n],   y[t, p] = sum_n C[t, n] h[t, p, n] + D x[t, p]

and out = y silu(z). It is the recurrence itself, without chunks, so that it can judge formulas that have them. Sums and
states have the accumulation type: float64 for float64 sequences, else float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks, _sequences
from . import _scan_checks as checks
from ._checks import Expect

__all__ = ["mamba_chunk_scan_combined"]

#: The operators keep the state at the start of every this many steps (kChunkScanChunk of the kernels).
CHECKPOINT_STEPS = 128


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
    """Same contract as :func:`fgkernels.mamba_chunk_scan_combined`, in plain PyTorch."""
    dt_min, dt_max = check_options(chunk_size, dt_limit, cu_seqlens, return_varlen_states)
    arguments = operands(x, dt, A, B, C, D, z, dt_bias, initial_states)
    seq_idx = numbered(arguments[0], seq_idx, cu_seqlens)
    check_forward(_checks.raise_error, *arguments, seq_idx)
    states: list[Tensor] = []
    recur = functools.partial(one_by_one, states=states) if return_varlen_states else None
    out, final_states = forward_core(*arguments, seq_idx, dt_softplus, dt_min, dt_max, recur)
    outputs = [checks.to(out, x.dtype)]
    if return_final_states:
        outputs.append(final_states)
    if return_varlen_states:
        outputs.append(_states_after(cu_seqlens, states).detach())
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


# --- without checks: what exported programs are decomposed into -------------------------------------------------------


def forward_core(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    recur: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """The op `mamba_chunk_scan_fwd`: out and final_states. `recur` may run the steps otherwise than `one_by_one`."""
    dtype = checks.accumulation_dtype(x.dtype)
    values, steps = x.to(dtype), step_sizes(dt.to(dtype), dt_bias, dt_softplus, dt_min, dt_max)
    B, C = (by_head(value.to(dtype), x.shape[2], B.shape[2]) for value in (B, C))
    state = initial_states
    if state is None:
        state = values.new_zeros((x.shape[0], x.shape[2], x.shape[3], B.shape[3]))
    resets = None if seq_idx is None else starts(seq_idx)
    y, state = (recur or one_by_one)(state, resets, (steps * A).exp(), steps.unsqueeze(-1) * values, B, C)
    if D is not None:
        y = y + (D if D.dim() == 2 else D.unsqueeze(-1)) * values
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), state


def one_by_one(
    state: Tensor,
    resets: Tensor | None,
    decay: Tensor,
    inputs: Tensor,
    B: Tensor,
    C: Tensor,
    states: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """y and the last state from decay (B, L, H), inputs (B, L, H, P), B and C (B, L, H, N).

    `states` receives the state before each step and the last one.
    """
    rows = []
    for t in range(inputs.shape[1]):
        if states is not None:
            states.append(state)
        state, y = step(state, None if resets is None else resets[:, t], decay[:, t], inputs[:, t], B[:, t], C[:, t])
        rows.append(y)
    if states is not None:
        states.append(state)
    return (torch.stack(rows, 1) if rows else inputs), state


def step(
    state: Tensor, reset: Tensor | None, decay: Tensor, inputs: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor]:
    """State (B, H, P, N) after one step, and y (B, H, P)."""
    if reset is not None:
        state = torch.where(reset[:, None, None, None], 0, state)
    state = decay[:, :, None, None] * state + inputs.unsqueeze(-1) * B.unsqueeze(-2)
    return state, (state * C.unsqueeze(-2)).sum(-1)


def step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dt_min: float, dt_max: float) -> Tensor:
    """clamp(softplus?(dt + dt_bias)) (B, L, H), in the accumulation type."""
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = F.softplus(dt)
    return dt.clamp(dt_min, dt_max)


def by_head(projection: Tensor, heads: int, groups: int) -> Tensor:
    """B or C (..., G, N) as (..., H, N): head i reads group i / (H / G)."""
    return projection if groups == heads else projection.repeat_interleave(heads // groups, -2)


def starts(seq_idx: Tensor) -> Tensor:
    """bool (B, L): where the state counts as zero before the step. An initial state belongs to sequence 0."""
    return seq_idx != F.pad(seq_idx[:, :-1], (1, 0))


# --- shared with the compiled operators' public function --------------------------------------------------------------


def operands(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The tensors as the operators take them: sequences in one dtype, parameters and states to accumulate in."""
    sequences = {"x": x, "dt": dt, "B": B, "C": C, "z": z}
    parameters = {"A": A, "D": D, "dt_bias": dt_bias, "initial_states": initial_states}
    for name, tensor in (sequences | parameters).items():
        if tensor is not None or name in ("x", "dt", "A", "B", "C"):
            checks.check_float(name, tensor)
    dtype = checks.common_dtype(tuple(sequences.values()))
    wide = checks.accumulation_dtype(dtype)
    return (
        checks.to(x, dtype), checks.to(dt, dtype), checks.to(A, wide), checks.to(B, dtype), checks.to(C, dtype),
        checks.to(D, wide), checks.to(z, dtype), checks.to(dt_bias, wide), checks.to(initial_states, wide),
    )  # fmt: skip


def numbered(x: Tensor, seq_idx: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
    """seq_idx, made of cu_seqlens where only that is given."""
    seq_idx = _sequences.as_int32("seq_idx", seq_idx)
    if cu_seqlens is not None:
        checks.check_sequence(_checks.raise_error, "x", x, ["(B, L, H, P)"])
        _sequences.check_cu_seqlens(cu_seqlens, "x", x, 1)
        if seq_idx is None:
            return _sequences.sequence_numbers(cu_seqlens, x.shape[1])
    return seq_idx


def _states_after(cu_seqlens: Tensor, states: list[Tensor]) -> Tensor:
    """(S, H, P, N): the state after the last step of each packed sequence.

    An empty sequence has no step, so zeros, or the initial state if it is the first. states[t] is that before step t.
    """
    ends = cu_seqlens[1:].to(torch.int64)
    found = torch.cat(states).index_select(0, ends)
    empty = (cu_seqlens[1:] == cu_seqlens[:-1]) & (torch.arange(ends.shape[0], device=ends.device) > 0)
    return torch.where(empty[:, None, None, None], 0, found)


def check_options(
    chunk_size: int, dt_limit: tuple[float, float], cu_seqlens: Tensor | None, return_varlen_states: bool
) -> tuple[float, float]:
    """(dt_min, dt_max)."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int | torch.SymInt) or chunk_size < 1:
        raise ValueError(f"chunk_size: expected a positive int, got {chunk_size!r}")
    if return_varlen_states and cu_seqlens is None:
        raise ValueError("cu_seqlens: expected (S + 1,), required by return_varlen_states, got None")
    try:
        dt_min, dt_max = (float(limit) for limit in dt_limit)
    except (TypeError, ValueError):
        raise ValueError(f"dt_limit: expected (minimum, maximum), got {dt_limit!r}") from None
    if not dt_min <= dt_max:
        raise ValueError(f"dt_limit: expected minimum <= maximum, got {dt_limit!r}")
    return dt_min, dt_max


def check_forward(
    expect: Expect,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
) -> None:
    checks.check_sequence(expect, "x", x, ["(B, L, H, P)"])
    for name, value in (("dt", dt), ("A", A), ("B", B), ("C", C)):
        _checks.check_tensor(name, value)
    batch, length, heads, channels = x.shape
    dtype, wide, device = x.dtype, checks.accumulation_dtype(x.dtype), x.device
    checks.check_like(expect, "dt", dt, "(B, L, H)", (batch, length, heads), "x", dtype, device)
    checks.check_like(expect, "A", A, "(H,)", (heads,), "x", wide, device)
    checks.check_rank(expect, "B", B, 4, "(B, L, G, N)")
    groups, states = B.shape[2:]
    checks.check_like(expect, "B", B, "(B, L, G, N)", (batch, length, groups, states), "x", dtype, device)
    checks.check_groups(expect, "B", groups, "H", heads)
    checks.check_like(expect, "C", C, "(B, L, G, N)", (batch, length, groups, states), "B", dtype, device)
    if D is not None and D.dim() == 2:
        checks.check_like(expect, "D", D, "(H, P)", (heads, channels), "x", wide, device)
    elif D is not None:
        checks.check_rank(expect, "D", D, 1, "(H,) or (H, P)")
        checks.check_like(expect, "D", D, "(H,)", (heads,), "x", wide, device)
    if z is not None:
        checks.check_like(expect, "z", z, "(B, L, H, P)", x.shape, "x", dtype, device)
    if dt_bias is not None:
        checks.check_like(expect, "dt_bias", dt_bias, "(H,)", (heads,), "x", wide, device)
    if initial_states is not None:
        sizes = (batch, heads, channels, states)
        checks.check_like(expect, "initial_states", initial_states, "(B, H, P, N)", sizes, "x and B", wide, device)
    if seq_idx is not None:
        checks.check_like(expect, "seq_idx", seq_idx, "(B, L)", (batch, length), "x", torch.int32, device)
