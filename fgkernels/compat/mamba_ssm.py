# SPDX-License-Identifier: Apache-2.0
"""mamba_ssm's functions: same arguments, same numbers, on every device.

Differences: gradients flow through states too; A is real; `chunk_size` is checked and otherwise left to the kernels.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..nn.mamba2 import rms_norm_gated, scan_and_norm, split_projection
from ..ops import mamba_chunk_scan
from ..ops import selective_scan as family
from ..ops.causal_conv1d import causal_conv1d
from ..ops.selective_scan import selective_scan

__all__ = [
    "mamba_chunk_scan_combined",
    "mamba_inner_fn",
    "mamba_split_conv1d_scan_combined",
    "selective_scan_fn",
    "selective_scan_ref",
    "selective_state_update",
]


def selective_scan_fn(
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
) -> Tensor | tuple[Tensor, Tensor]:
    """The selective scan, see `fgkernels.selective_scan`."""
    return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def selective_scan_ref(
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
) -> Tensor | tuple[Tensor, Tensor]:
    """The same step by step in plain PyTorch, see `fgkernels.reference.selective_scan`."""
    return reference.selective_scan.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
    )


@torch.no_grad()
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
    """One step, in place on the state, see `fgkernels.selective_state_update`. No gradient."""
    return family.selective_state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """A Mamba block from behind in_proj on: convolution, projections, scan, out_proj.

    Args:
        xz: (B, 2 E, L), the scanned half and the gate.
        conv1d_weight: (E, 1, W); conv1d_bias: (E,).
        x_proj_weight: (R + 2 N, E), where B or C isn't given fewer rows of N.
        delta_proj_weight: (E, R).
        out_proj_weight: (d_model, E); out_proj_bias: (d_model,).
        A: (E, N).
        B, C: constant (E, N), or (B, N, L) or (B, G, N, L); None takes them from x_proj.
        D, delta_bias: (E,).
        B_proj_bias, C_proj_bias: (N,), added to what x_proj gives.
        checkpoint_lvl: accepted for mamba_ssm's signature; the backward keeps what it needs.
        b_rms_weight, c_rms_weight, dt_rms_weight: (N,), (N,) and (E,): weights of RMS norms of B, C and delta.
        b_c_dt_rms_eps: of these norms.

    Returns:
        (B, L, d_model).
    """
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d(x, conv1d_weight.squeeze(1), conv1d_bias, "silu")
    rank, states = delta_proj_weight.shape[1], A.shape[-1]
    projected = F.linear(x.transpose(1, 2), x_proj_weight)
    delta = F.linear(projected[..., :rank], delta_proj_weight)
    norm = partial(F.rms_norm, eps=b_c_dt_rms_eps)
    if B is None:
        B = projected[..., rank : rank + states]
        B = B if B_proj_bias is None else B + B_proj_bias.to(B.dtype)
        B = (B if b_rms_weight is None else norm(B, (states,), b_rms_weight)).transpose(1, 2)
    if C is None:
        C = projected[..., -states:]
        C = C if C_proj_bias is None else C + C_proj_bias.to(C.dtype)
        C = (C if c_rms_weight is None else norm(C, (states,), c_rms_weight)).transpose(1, 2)
    if dt_rms_weight is not None:
        delta = norm(delta, delta.shape[-1:], dt_rms_weight)
    y = selective_scan(x, delta.transpose(1, 2), A, B, C, D, z, delta_bias, delta_softplus)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


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
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Mamba-2's scan, see `fgkernels.mamba_chunk_scan_combined`.

    As in mamba_ssm, cu_seqlens counts with `return_varlen_states` only; seq_idx is what keeps sequences apart.
    `state_dtype` is accepted for the signature: states are float32, float64 for float64 inputs.
    """
    return mamba_chunk_scan.mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states,
        None if seq_idx is None else seq_idx.to(torch.int32),
        cu_seqlens if return_varlen_states else None,
        dt_softplus, dt_limit, return_final_states, return_varlen_states,
    )  # fmt: skip


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """A Mamba-2 block from behind in_proj on: convolution, scan, gated norm, out_proj.

    Args:
        zxbcdt: (B, L, 2 d_mlp + H P + conv_channels + H), where conv_channels = H P + 2 G N.
        conv1d_weight: (conv_channels, W); conv1d_bias: (conv_channels,).
        dt_bias, A: (H,).
        D: (H, P), or (H,) with headdim.
        initial_states: (B, H, P, N).
        seq_idx: (B, L) integers, the sequence that a position belongs to.
        rmsnorm_weight: (H P,); None gates without a norm.
        rmsnorm_eps, norm_before_gate: of the gated norm, which has groups of H P / G channels.
        outproj_weight: (d_model, d_mlp + H P); outproj_bias: (d_model,).
        headdim: P.
        ngroups: G.
        state_dtype: as in `mamba_chunk_scan_combined`.

    Returns:
        (B, L, d_model), or (B, L, d_mlp + H P) without outproj_weight; with return_final_states also (B, H, P, N).

    Raises:
        ValueError: for D (H,) without headdim; else as the functions that this is made of.
    """
    heads = D.shape[0]
    if D.dim() == 2:
        headdim = D.shape[1]
    elif headdim is None:
        raise ValueError("headdim: expected P with D (H,), got None")
    norm = None
    if rmsnorm_weight is not None:

        def norm(y: Tensor, z: Tensor) -> Tensor:
            group = y.shape[-1] // ngroups
            return rms_norm_gated(
                y, rmsnorm_weight, z, eps=rmsnorm_eps, group_size=group, norm_before_gate=norm_before_gate
            )

    y, final_states = scan_and_norm(
        split_projection(zxbcdt, heads * headdim, conv1d_weight.shape[0], heads),
        conv1d_weight,
        conv1d_bias,
        dt_bias,
        A,
        D,
        chunk_size,
        head_dim=headdim,
        groups=ngroups,
        norm=norm,
        activation=activation,
        dt_limit=dt_limit,
        initial_states=initial_states,
        seq_idx=None if seq_idx is None else seq_idx.to(torch.int32),
    )
    out = y if outproj_weight is None else F.linear(y, outproj_weight, outproj_bias)
    return (out, final_states) if return_final_states else out
