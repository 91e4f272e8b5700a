# SPDX-License-Identifier: Apache-2.0
"""The Mamba-2 block and its gated normalisation, with the official parameter names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from ..ops.mamba_chunk_scan import mamba_chunk_scan_combined
from ..ops.selective_scan import selective_state_update
from ._one_row import project
from .selective_scan import (
    InferenceCacheMixin,
    accumulation,
    check_one_position,
    inverse_softplus_time_steps,
    remember,
    without_weight_decay,
)

__all__ = ["Mamba2", "RMSNormGated"]

_NO_LIMIT = (0.0, math.inf)


def rms_norm_gated(
    x: Tensor,
    weight: Tensor,
    z: Tensor | None = None,
    *,
    eps: float = 1e-5,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """Root-mean-square normalisation of groups of channels, times silu(z) after it or before it.

    Args:
        x: (..., C); computed in float32 (float64 for float64), returned in its dtype.
        weight: (C,).
        z: (..., C), the gate; None for none.
        eps: added to the mean square.
        group_size: channels that are normalised together, a divisor of C; None is C.
        norm_before_gate: norm(x) * silu(z), else norm(x * silu(z)).
    """
    values, gate = accumulation(x), None if z is None else F.silu(accumulation(z))
    if gate is not None and not norm_before_gate:
        values = values * gate
    size = x.shape[-1] if group_size is None else group_size
    values = F.rms_norm(values.unflatten(-1, (-1, size)), (size,), eps=eps).flatten(-2) * weight
    if gate is not None and norm_before_gate:
        values = values * gate
    return values.to(x.dtype)


class RMSNormGated(nn.Module):
    """mamba_ssm's gated RMSNorm: `rms_norm_gated` with a weight (hidden_size,), ones at first."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if group_size is not None and (group_size < 1 or hidden_size % group_size):
            raise ValueError(f"group_size: expected a divisor of hidden_size = {hidden_size}, got {group_size}")
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """(..., hidden_size) -> the same; z is the gate."""
        return rms_norm_gated(
            x, self.weight, z, eps=self.eps, group_size=self.group_size, norm_before_gate=self.norm_before_gate
        )

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}, group_size={self.group_size}, " + (
            f"norm_before_gate={self.norm_before_gate}"
        )


class Mamba2Parts(NamedTuple):
    """One in_proj of Mamba-2, cut: a gated MLP's two halves (empty mostly), gate, convolution's input, time steps."""

    mlp_gate: Tensor
    mlp: Tensor
    z: Tensor
    xBC: Tensor
    dt: Tensor


def split_projection(zxbcdt: Tensor, scanned: int, conv_channels: int, heads: int) -> Mamba2Parts:
    """Cuts (..., 2 d_mlp + d_ssm + conv_channels + heads) into its parts."""
    mlp = (zxbcdt.shape[-1] - scanned - conv_channels - heads) // 2
    return Mamba2Parts(*zxbcdt.split([mlp, mlp, scanned, conv_channels, heads], -1))


def scan_and_norm(
    parts: Mamba2Parts,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    *,
    head_dim: int,
    groups: int,
    norm: Callable[[Tensor, Tensor], Tensor] | None,
    activation: str | None = "silu",
    dt_limit: tuple[float, float] = _NO_LIMIT,
    conv_state: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    return_varlen_states: bool = False,
) -> tuple[Tensor, ...]:
    """What lies between in_proj and out_proj of a Mamba-2 block (Dao and Gu 2024, figure 6).

    Args:
        parts: of (B, L, ...).
        conv_weight, conv_bias: (conv_channels, W) and (conv_channels,).
        dt_bias, A, D: (H,); D also (H, P).
        head_dim, groups: P and G.
        norm: of (y, z); None gates with silu(z) in the scan.
        conv_state: (B, conv_channels, W - 1), positions before the first.
        initial_states: (B, H, P, N).

    Returns:
        (B, L, d_mlp + H * P), final states (B, H, P, N), and with return_varlen_states those of each sequence.
    """
    convolved = causal_conv1d(
        parts.xBC.transpose(1, 2),
        conv_weight,
        conv_bias,
        activation,
        initial_state=conv_state,
        seq_idx=seq_idx,
        cu_seqlens=cu_seqlens if seq_idx is None else None,
    ).transpose(1, 2)
    scanned = parts.z.shape[-1]
    projection = (convolved.shape[-1] - scanned) // 2
    x, B, C = convolved.split([scanned, projection, projection], -1)
    y, *states = mamba_chunk_scan_combined(
        x.unflatten(-1, (-1, head_dim)),
        parts.dt,
        A,
        B.unflatten(-1, (groups, -1)),
        C.unflatten(-1, (groups, -1)),
        chunk_size,
        D=D,
        z=parts.z.unflatten(-1, (-1, head_dim)) if norm is None else None,
        dt_bias=dt_bias,
        initial_states=initial_states,
        seq_idx=seq_idx,
        cu_seqlens=cu_seqlens,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
        return_varlen_states=return_varlen_states,
    )
    y = y.flatten(-2)
    return with_mlp(parts, y if norm is None else norm(y, parts.z)), *states


def with_mlp(parts: Mamba2Parts, y: Tensor) -> Tensor:
    """The gated MLP's channels before those of the scan."""
    return torch.cat([F.silu(parts.mlp_gate) * parts.mlp, y], -1) if parts.mlp.shape[-1] else y


class Mamba2(InferenceCacheMixin, nn.Module):
    """The Mamba-2 block (Dao and Gu 2024, figure 6): mamba_ssm's `Mamba2`, with its arguments and parameter names.

    With H heads of P = headdim channels, G groups and N states: in_proj gives z, x, B, C, dt at once; x, B and C go
    through a causal convolution and SiLU; `fgkernels.mamba_chunk_scan_combined` follows, then norm(y, z) and out_proj.

    Args:
        d_model: channels of input and output.
        d_state: N.
        d_conv: width of the causal convolution, 2 to 4.
        conv_init: the convolution's weights are uniform in [-conv_init, conv_init]; None is PyTorch's default.
        expand: inner channels / d_model.
        headdim: P, a divisor of d_ssm.
        d_ssm: channels that are scanned; the others make a gated MLP. None is all of them.
        ngroups: G, a divisor of H.
        A_init_range: -A is uniform in it.
        D_has_hdim: a skip weight per channel instead of per head.
        rmsnorm: `RMSNormGated` of groups of d_ssm / G channels; else the gate alone.
        norm_before_gate: see `rms_norm_gated`.
        dt_min, dt_max, dt_init_floor: initialisation of the time steps.
        dt_limit: (minimum, maximum) of the time steps.
        bias, conv_bias: biases of in_proj and out_proj, and of the convolution.
        chunk_size: accepted and checked; kernels choose their own.
        use_mem_eff_path: accepted for mamba_ssm's signature and ignored; see `fgkernels.backend`.
        layer_idx: key of this layer's states in `inference_params`.
        device, dtype: of the parameters.

    Raises:
        ValueError: for sizes that don't divide.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = _NO_LIMIT,
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        if self.d_ssm > self.d_inner:
            raise ValueError(f"d_ssm: expected at most expand * d_model = {self.d_inner}, got {d_ssm}")
        if self.d_ssm % headdim:
            raise ValueError(f"headdim: expected a divisor of d_ssm = {self.d_ssm}, got {headdim}")
        self.headdim, self.nheads, self.ngroups = headdim, self.d_ssm // headdim, ngroups
        if self.nheads % ngroups:
            raise ValueError(f"ngroups: expected a divisor of d_ssm / headdim = {self.nheads}, got {ngroups}")
        self.D_has_hdim, self.dt_limit, self.chunk_size, self.layer_idx = D_has_hdim, dt_limit, chunk_size, layer_idx
        self.conv_channels = self.d_ssm + 2 * ngroups * d_state
        inner = 2 * (self.d_inner - self.d_ssm) + self.d_ssm + self.conv_channels + self.nheads
        self.in_proj = nn.Linear(d_model, inner, bias=bias, **factory)
        self.conv1d = nn.Conv1d(
            self.conv_channels,
            self.conv_channels,
            d_conv,
            groups=self.conv_channels,
            padding=d_conv - 1,
            bias=conv_bias,
            **factory,
        )
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        self.dt_bias = without_weight_decay(
            inverse_softplus_time_steps(
                self.nheads, dt_min=dt_min, dt_max=dt_max, dt_init_floor=dt_init_floor, **factory
            )
        )
        low, high = A_init_range
        if not 0 < low <= high:
            raise ValueError(f"A_init_range: expected 0 < low <= high, got {A_init_range}")
        self.A_log = without_weight_decay(
            torch.empty(self.nheads, device=device).uniform_(low, high).log().to(self.dt_bias.dtype)
        )
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.D = without_weight_decay(torch.ones(self.d_ssm if D_has_hdim else self.nheads, device=device, dtype=wide))
        self.norm = (
            RMSNormGated(self.d_ssm, 1e-5, self.d_ssm // ngroups, norm_before_gate, **factory) if rmsnorm else None
        )
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory)

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        """Whole sequences, packed ones, or their continuation.

        Args:
            u: (B, L, d_model), or (B * L, d_model) with seqlen = L.
            seqlen: L where u has no axis of its own for it.
            seq_idx: int32 (B, L), the sequence that a position belongs to.
            cu_seqlens: (S + 1,), offsets of S sequences packed into B = 1; then the states are those of each.
            inference_params: as in `Mamba.forward`; with cu_seqlens only at the start.

        Returns:
            Shaped like u.
        """
        if seqlen is not None:
            u = u.unflatten(0, (-1, seqlen))
        states = initial = None
        if inference_params is not None:
            states = self.cached_states(inference_params, u.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1)
            if inference_params.seqlen_offset > 0:
                if cu_seqlens is not None:
                    raise ValueError("cu_seqlens: expected None once inference_params.seqlen_offset is positive")
                initial = states
                if u.shape[1] == 1 and not torch.is_grad_enabled():
                    out = self.step(u, *states)[0]
                    return out if seqlen is None else out.flatten(0, 1)
        parts = split_projection(self.in_proj(u), self.d_ssm, self.conv_channels, self.nheads)
        y, final_states, *each = scan_and_norm(
            parts,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.dt_bias,
            -torch.exp(accumulation(self.A_log)),
            self._skip(),
            self.chunk_size,
            head_dim=self.headdim,
            groups=self.ngroups,
            norm=self.norm,
            dt_limit=self.dt_limit,
            conv_state=None if initial is None else initial[0][..., 1:].clone(),
            initial_states=None if initial is None else initial[1].clone(),
            seq_idx=seq_idx,
            cu_seqlens=cu_seqlens,
            return_varlen_states=states is not None and cu_seqlens is not None,
        )
        if states is not None:
            conv_state, ssm_state = states
            if initial is None:
                conv_state.zero_()
            if cu_seqlens is None:
                remember(conv_state, parts.xBC.transpose(1, 2))
            else:
                offsets = cu_seqlens.tolist()
                for entry, (start, end) in enumerate(zip(offsets, offsets[1:], strict=False)):
                    remember(conv_state[entry : entry + 1], parts.xBC[:, start:end].transpose(1, 2))
            ssm_state.copy_((each[0] if each else final_states).detach())
        out = self.out_proj(y)
        return out if seqlen is None else out.flatten(0, 1)

    @torch.no_grad()
    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One position more, without gradient.

        Args:
            hidden_states: (B, 1, d_model).
            conv_state: (B, conv_channels, d_conv), changed in place.
            ssm_state: (B, H, P, N), changed in place.

        Returns:
            (B, 1, d_model), and the two states.

        Raises:
            ValueError: if there is more than one position.
        """
        check_one_position(hidden_states)
        parts = split_projection(
            project(self.in_proj, hidden_states.squeeze(1)), self.d_ssm, self.conv_channels, self.nheads
        )
        xBC = causal_conv1d_update(parts.xBC, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu")
        projection = self.ngroups * self.d_state
        x, B, C = xBC.split([self.d_ssm, projection, projection], -1)
        heads, dt, dt_bias = (self.nheads, self.headdim), parts.dt, self.dt_bias
        softplus = self.dt_limit == _NO_LIMIT
        if not softplus:  # the update has no limits of its own
            dt, dt_bias = F.softplus(accumulation(dt) + accumulation(dt_bias)).clamp(*self.dt_limit), None
        skip = self._skip()
        y = selective_state_update(
            ssm_state,
            x.unflatten(-1, heads),
            dt.unsqueeze(-1).expand(-1, *heads),
            -torch.exp(accumulation(self.A_log))[:, None, None].expand(*heads, self.d_state),
            B.unflatten(-1, (self.ngroups, -1)),
            C.unflatten(-1, (self.ngroups, -1)),
            skip if self.D_has_hdim else skip.unsqueeze(-1).expand(heads),
            z=parts.z.unflatten(-1, heads) if self.norm is None else None,
            dt_bias=None if dt_bias is None else dt_bias.unsqueeze(-1).expand(heads),
            dt_softplus=softplus,
        ).flatten(-2)
        y = with_mlp(parts, y if self.norm is None else self.norm(y, parts.z))
        return project(self.out_proj, y).unsqueeze(1), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Zero states for `step`: (B, conv_channels, d_conv), channel-last, and (B, H, P, N)."""
        device = self.in_proj.weight.device
        conv_state = torch.zeros(
            batch_size, self.d_conv, self.conv_channels, device=device, dtype=dtype or self.conv1d.weight.dtype
        )
        shape = (batch_size, self.nheads, self.headdim, self.d_state)
        ssm_state = torch.zeros(shape, device=device, dtype=dtype or self.in_proj.weight.dtype)
        return conv_state.transpose(1, 2), ssm_state

    def _skip(self) -> Tensor:
        return self.D.unflatten(0, (self.nheads, self.headdim)) if self.D_has_hdim else self.D
