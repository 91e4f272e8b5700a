# SPDX-License-Identifier: Apache-2.0
"""Causal depthwise convolution of a few taps: `causal_conv1d` and, for decoding, `causal_conv1d_update`."""

from __future__ import annotations

from torch import Tensor

from ..reference import causal_conv1d as reference

__all__ = ["causal_conv1d", "causal_conv1d_update"]


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
    """Causal depthwise convolution (B, D, L) with 2 to 4 taps."""
    return reference.causal_conv1d(
        x, weight, bias, activation, initial_state=initial_state, seq_idx=seq_idx, cu_seqlens=cu_seqlens,
        return_final_state=return_final_state,
    )  # fmt: skip


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """New steps (B, D) or (B, D, S) of a causal convolution; conv_state (E, D, state_len) moves on in place."""
    return reference.causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)
