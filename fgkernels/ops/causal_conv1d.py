# SPDX-License-Identifier: Apache-2.0
"""Causal depthwise convolution of a few taps: `causal_conv1d` and, for decoding, `causal_conv1d_update`.

What the operators need from Python (fake kernels, autograd, vmap) is in `_causal_conv1d_rules`.
"""

from __future__ import annotations

from torch import Tensor

from .. import _backend
from ..reference import causal_conv1d as reference
from . import _causal_conv1d_rules as _rules  # noqa: F401  (registers fake kernels, autograd and vmap)
from . import _library
from ._calls import reference_call, runs_operators

__all__ = ["causal_conv1d", "causal_conv1d_update"]

_causal_conv1d = _library.op("causal_conv1d")
_causal_conv1d_update = _library.op("causal_conv1d_update")

_backend.declare(
    "causal_conv1d",
    functions=("causal_conv1d", "causal_conv1d_update"),
    operators=("causal_conv1d", "causal_conv1d_backward", "causal_conv1d_update"),
)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal depthwise convolution of 2 to 4 taps, the short convolution of Mamba, with its activation.

    ``out[b, c, t] = act(bias[c] + sum_j weight[c, j] x[b, c, t - (W - 1) + j])`` for j = 0 .. W - 1, where positions
    before the first come from the initial state, or are zero (Gu and Dao 2023, figure 3; causal_conv1d's
    `causal_conv1d_fn`). Differentiable in x, weight, bias and initial_state, also through the final state.

    Args:
        x: (B, D, L), float32, float64, bfloat16 or float16, any strides; channel-last (stride 1 in D) is read in
            place and gives a channel-last result.
        weight: (D, W) with W from 2 to 4, any of the four dtypes: it is read in float32, or float64 for float64 x.
        bias: (D,), likewise.
        activation: None, or "silu" (also called "swish").
        initial_state: (B, D, W - 1), the positions before the first, newest last: what return_final_state gave for
            the sequence so far. With cu_seqlens (S, D, W - 1), one for each packed sequence.
        seq_idx: int32 or int64 (B, L), which sequence a position belongs to. A tap on a position with another number
            counts as zero; the initial state goes before the sequence of position 0.
        cu_seqlens: int32 or int64 (S + 1,), instead of seq_idx: sequence s is positions
            ``cu_seqlens[s]:cu_seqlens[s + 1]`` of a batch of one. From 0 to L, never falling, which is checked on the
            CPU; elsewhere other values give a result of no meaning.
        return_final_state: also return the last W - 1 positions.

    Returns:
        out: (B, D, L) in x's dtype. Sums are float32, or float64 for float64 x.
        final_state (with return_final_state): (B, D, W - 1) in x's dtype; with seq_idx that of the last position's
        sequence, with cu_seqlens (S, D, W - 1). Positions before the sequence are its initial state's, or zero.

    Raises:
        ValueError, TypeError, RuntimeError: with the argument's name, the expected shape and what came.

    A sequence in chunks, each with the final state of the one before, gives what one call gives.
    """
    if not runs_operators("causal_conv1d", x, weight):
        return reference_call(
            reference.causal_conv1d, x, weight, bias, activation, initial_state=initial_state, seq_idx=seq_idx,
            cu_seqlens=cu_seqlens, return_final_state=return_final_state,
        )  # fmt: skip
    silu = reference.check_activation(activation)
    weight, bias, seq_idx, initial_state = reference.operands(x, weight, bias, seq_idx, initial_state)
    if cu_seqlens is None:
        out = _causal_conv1d(x, weight, bias, seq_idx, initial_state, silu)
    else:
        packed = reference.Packed(x, weight, seq_idx, initial_state, cu_seqlens)
        out = packed.unpack(_causal_conv1d(packed.x, weight, bias, packed.seq_idx, packed.initial_state, silu))
    if return_final_state:
        return out, reference.final_state(x, weight, seq_idx, initial_state, cu_seqlens)
    return out


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """New steps of a causal depthwise convolution, in place on its state (causal_conv1d's `causal_conv1d_update`).

    The result is that of :func:`causal_conv1d` on what the state holds followed by x. Decoding has no gradient.

    Args:
        x: (B, D), one step, or (B, D, S); float32, float64, bfloat16 or float16, any strides.
        conv_state: (B, D, state_len) in x's dtype with state_len >= W - 1, the latest positions, newest last; changed
            in place. With conv_state_indices (E, D, state_len).
        weight: (D, W) with W from 2 to 4, any of the four dtypes.
        bias: (D,), likewise.
        activation: None, or "silu" (also called "swish").
        cache_seqlens: int32 or int64 (B,), not negative. With it the state is a ring buffer: position t of a sequence
            is at ``t % state_len``, and x comes at positions cache_seqlens, cache_seqlens + 1, ...
        conv_state_indices: int32 or int64 (B,), the row of conv_state that each batch entry uses, in [0, E) and all
            different, which is checked on the CPU; other rows stay as they are.

    Returns:
        out: x's shape and dtype.

    Raises:
        ValueError, TypeError, RuntimeError: with the argument's name, the expected shape and what came; RuntimeError
            also if an input requires grad while grad is enabled.
    """
    if not runs_operators("causal_conv1d_update", x, weight):
        return reference_call(
            reference.causal_conv1d_update, x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices
        )
    silu = reference.check_activation(activation)
    arguments = reference.update_operands(x, conv_state, weight, bias, cache_seqlens, conv_state_indices)
    out = _causal_conv1d_update(*arguments, silu)
    return out.squeeze(-1) if x.dim() == 2 else out
