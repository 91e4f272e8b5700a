# SPDX-License-Identifier: Apache-2.0
"""causal-conv1d's functions: same arguments, same numbers, on every device.

Differences: any memory layout is fine, and `seq_idx` may come with `initial_states`, which go before the sequence of
position 0, and with `return_final_states`, which are those of the last sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import causal_conv1d as family

__all__ = ["causal_conv1d_fn", "causal_conv1d_update", "causal_conv1d_varlen_states"]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal depthwise convolution, see `fgkernels.causal_conv1d`.

    Args:
        x: (B, D, L).
        weight: (D, W), W from 2 to 4.
        bias: (D,).
        seq_idx: (B, L) integers, the sequence that a position belongs to; negative: padding, whose result is 0.
        initial_states: (B, D, W - 1), the positions before the first.
        return_final_states: also return the last W - 1 positions.
        final_states_out: (B, D, W - 1), written to and returned in place of a fresh tensor.
        activation: None, "silu" or "swish".

    Returns:
        out (B, D, L), dtype of x; with return_final_states also the final states, dtype of x.

    Raises:
        NotImplementedError: for another activation.
        ValueError, TypeError: as `fgkernels.causal_conv1d`; also for `final_states_out` without `return_final_states`.
    """
    _check_activation(activation)
    if final_states_out is not None and not return_final_states:
        raise ValueError("final_states_out: expected None without return_final_states=True")
    result = family.causal_conv1d(
        x,
        weight,
        bias,
        activation,
        initial_state=initial_states,
        seq_idx=None if seq_idx is None else seq_idx.to(torch.int32),
        return_final_state=return_final_states,
    )
    out, *final_states = result if return_final_states else (result,)
    if seq_idx is not None:
        out = out.masked_fill((seq_idx < 0).unsqueeze(1), 0)
    if not return_final_states:
        return out
    return out, final_states[0] if final_states_out is None else final_states_out.copy_(final_states[0])


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The convolution of new positions, in place on conv_state, see `fgkernels.causal_conv1d_update`. No gradient.

    Args:
        x: (B, D) or (B, D, S).
        conv_state: (E, D, state_len), changed in place.
        weight: (D, W); bias: (D,).
        activation: None, "silu" or "swish".
        cache_seqlens: int32 (B,), makes conv_state a ring buffer.
        conv_state_indices: int32 (B,), the row of conv_state for each batch entry; negative: padding, whose result is 0
            and which touches no state. On a GPU, looking for padding waits for the device.

    Returns:
        Shaped like x.

    Raises:
        NotImplementedError: for another activation.
        ValueError, TypeError, RuntimeError: as `fgkernels.causal_conv1d_update`.
    """
    _check_activation(activation)
    if conv_state_indices is not None and (conv_state_indices < 0).any():
        used = (conv_state_indices >= 0).nonzero().squeeze(1)
        out = x.new_zeros(x.shape)
        lengths = None if cache_seqlens is None else cache_seqlens[used]
        out[used] = causal_conv1d_update(
            x[used], conv_state, weight, bias, activation, lengths, conv_state_indices[used]
        )
        return out
    return family.causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)


@torch.no_grad()
def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last positions of each of several packed sequences, as `causal_conv1d_update` wants them. No gradient.

    Args:
        x: (T, D), the sequences one after the other.
        cu_seqlens: (B + 1,) integers from 0 to T that never fall.
        state_len: how many positions to keep; those before a sequence's start are 0.

    Returns:
        (B, D, state_len), dtype of x, channel-last in memory.

    Raises:
        ValueError: if x isn't (T, D) or cu_seqlens isn't (B + 1,).
    """
    if x.dim() != 2:
        raise ValueError(f"x: expected (T, D), got {tuple(x.shape)}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"cu_seqlens: expected (B + 1,), got {tuple(cu_seqlens.shape)}")
    ends = cu_seqlens[1:].long().unsqueeze(1)
    positions = ends + torch.arange(-state_len, 0, device=x.device)  # (B, state_len)
    inside = positions >= cu_seqlens[:-1].long().unsqueeze(1)
    # A row of zeros after the last token stands for every position outside.
    rows = torch.where(inside, positions, x.shape[0])
    return F.pad(x, (0, 0, 0, 1))[rows].transpose(1, 2)


def _check_activation(activation: str | None) -> None:
    if activation not in (None, "silu", "swish"):
        raise NotImplementedError(f'activation: expected None, "silu" or "swish", got {activation!r}')
