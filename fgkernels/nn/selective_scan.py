# SPDX-License-Identifier: Apache-2.0
"""Modules of the selective-scan family: the Mamba block and SS2D, with the official parameter names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from ..ops.selective_scan import selective_scan, selective_state_update
from ..ops.selective_scan_2d import cross_scan, selective_scan_2d
from ._one_row import project

__all__ = ["SS2D", "Mamba"]


def accumulation(parameter: Tensor) -> Tensor:
    """The parameter in float32, or in float64 if that is its dtype: the precision of decays and time steps."""
    return parameter if parameter.dtype == torch.float64 else parameter.float()


def inverse_softplus_time_steps(
    *shape: int, dt_min: float, dt_max: float, dt_init_floor: float, **factory: Any
) -> Tensor:
    """Biases whose softplus is log-uniform in [dt_min, dt_max], at least dt_init_floor (Mamba, section 3.6)."""
    low, high = math.log(dt_min), math.log(dt_max)
    steps = torch.exp(low + (high - low) * torch.rand(shape, **factory)).clamp(min=dt_init_floor)
    return steps + torch.log(-torch.expm1(-steps))


def init_time_step_weight(weight: Tensor, dt_rank: int, dt_init: str, dt_scale: float) -> None:
    """Keeps the variance of the low-rank time steps (Mamba, section 3.6)."""
    bound = dt_rank**-0.5 * dt_scale
    if dt_init == "constant":
        nn.init.constant_(weight, bound)
    elif dt_init == "random":
        nn.init.uniform_(weight, -bound, bound)
    else:
        raise ValueError(f'dt_init: expected "random" or "constant", got {dt_init!r}')


def time_steps_of_sequence(weight: Tensor, low: Tensor) -> Tensor:
    """weight (E, R) times low (B, L, R) as (B, E, L): with so few columns faster than its transpose, and no copy."""
    return torch.bmm(weight.expand(low.shape[0], -1, -1), low.transpose(1, 2))


def without_weight_decay(values: Tensor) -> nn.Parameter:
    """A parameter carrying the mark that mamba_ssm's training recipes look for."""
    parameter = nn.Parameter(values)
    parameter._no_weight_decay = True
    return parameter


@torch.no_grad()
def remember(conv_state: Tensor, x: Tensor) -> None:
    """Makes conv_state (B, D, K) hold the latest K positions of itself followed by x (B, D, L)."""
    conv_state.copy_(torch.cat([conv_state, x.to(conv_state.dtype)], -1)[..., -conv_state.shape[-1] :])


class InferenceCacheMixin:
    """What the decoding interface of mamba_ssm's blocks has in common."""

    layer_idx: int | None

    def cached_states(self, inference_params: Any, batch_size: int) -> tuple[Tensor, Tensor]:
        """This layer's (conv_state, ssm_state) in `inference_params.key_value_memory_dict`, zeros at first."""
        if self.layer_idx is None:
            raise ValueError("layer_idx: expected a number with inference_params, under which the states are kept")
        memory = inference_params.key_value_memory_dict
        if self.layer_idx not in memory:
            memory[self.layer_idx] = self.allocate_inference_cache(batch_size, 0)
        return memory[self.layer_idx]


class Mamba(InferenceCacheMixin, nn.Module):
    """The Mamba block (Gu and Dao 2023, figure 3): mamba_ssm's `Mamba`, with its arguments and parameter names.

    With E = expand * d_model and R = dt_rank, per sequence of d_model channels:

        x, z = in_proj(u);  x = silu(conv1d(x));  dt, B, C = x_proj(x)
        y = selective_scan(x, dt_proj(dt), -exp(A_log), B, C, D) * silu(z);  out_proj(y)

    Args:
        d_model: channels of input and output.
        d_state: N, states per channel.
        d_conv: width of the causal convolution, 2 to 4.
        expand: E / d_model.
        dt_rank: R; "auto" is ceil(d_model / 16).
        dt_min, dt_max, dt_init, dt_scale, dt_init_floor: initialisation of the time steps (section 3.6).
        conv_bias, bias: biases of the convolution, and of in_proj and out_proj.
        use_fast_path: accepted for mamba_ssm's signature and ignored; see `fgkernels.backend`.
        layer_idx: key of this layer's states in `inference_params`.
        device, dtype: of the parameters. A_log and D have float32, or float64 if that is the dtype.
        use_out_proj: False leaves the E channels as they are, without parameters (Mamba-FSCIL, Li et al. 2024).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        use_out_proj: bool = True,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.layer_idx = layer_idx
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **factory)
        self.conv1d = nn.Conv1d(
            self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1, bias=conv_bias, **factory
        )
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **factory)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, **factory)
        init_time_step_weight(self.dt_proj.weight, self.dt_rank, dt_init, dt_scale)
        with torch.no_grad():
            self.dt_proj.bias.copy_(
                inverse_softplus_time_steps(
                    self.d_inner, dt_min=dt_min, dt_max=dt_max, dt_init_floor=dt_init_floor, device=device
                )
            )
        self.dt_proj.bias._no_reinit = True
        wide = {"device": device, "dtype": torch.float64 if dtype == torch.float64 else torch.float32}
        self.A_log = without_weight_decay(torch.arange(1, d_state + 1, **wide).log().repeat(self.d_inner, 1))
        self.D = without_weight_decay(torch.ones(self.d_inner, **wide))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory) if use_out_proj else nn.Identity()

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """Whole sequences, or their continuation.

        Args:
            hidden_states: (B, L, d_model).
            inference_params: mamba_ssm's `InferenceParams` or an object with its `key_value_memory_dict` and
                `seqlen_offset`. The states kept there are updated in place; where `seqlen_offset` is positive they
                also precede these positions, however many: chunks give what one call gives.

        Returns:
            (B, L, d_model), or (B, L, E) without out_proj.
        """
        states = initial = None
        if inference_params is not None:
            states = self.cached_states(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                initial = states
                if hidden_states.shape[1] == 1 and not torch.is_grad_enabled():
                    return self.step(hidden_states, *states)[0]
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, 1)
        past = None if initial is None else initial[0][..., 1:].clone()
        convolved = causal_conv1d(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu", initial_state=past)
        delta, B, C = self._projections(convolved)
        y, last_state = selective_scan(
            convolved,
            delta,
            -torch.exp(accumulation(self.A_log)),
            B,
            C,
            self.D,
            z,
            self.dt_proj.bias,
            delta_softplus=True,
            return_last_state=True,
            initial_state=None if initial is None else initial[1].clone(),
        )
        if states is not None:
            conv_state, ssm_state = states
            if initial is None:
                conv_state.zero_()
            remember(conv_state, x)
            ssm_state.copy_(last_state.detach())
        return self.out_proj(y.transpose(1, 2))

    def forward_2d(self, feature_map: Tensor, directions: Sequence[str] = ("h", "h_flip", "v", "v_flip")) -> Tensor:
        """The block run along several scan orders of a map with the same weights, summed before out_proj.

        The convolution is causal in each order, so it sees other neighbours in each. As Mamba-FSCIL does it (Li et
        al. 2024), with one scan for all orders.

        Args:
            feature_map: (B, H, W, d_model).
            directions: names of scan orders, see `fgkernels.scan_table`.

        Returns:
            (B, H, W, d_model), or (B, H, W, E) without out_proj.
        """
        batch, height, width, _ = feature_map.shape
        x, z = self.in_proj(feature_map).permute(0, 3, 1, 2).chunk(2, 1)
        orders = cross_scan(x, directions)  # (B, K, E, L)
        convolved = causal_conv1d(orders.flatten(0, 1), self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu")
        delta, B, C = (value.unflatten(0, (batch, -1)) for value in self._projections(convolved))
        y = selective_scan_2d(
            convolved.unflatten(0, (batch, -1)),
            delta,
            -torch.exp(accumulation(self.A_log)),
            B,
            C,
            self.D,
            z,
            self.dt_proj.bias,
            delta_softplus=True,
            directions=directions,
            ordered=True,
            size=(height, width),
        )
        return self.out_proj(y.permute(0, 2, 3, 1))

    @torch.no_grad()
    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One position more, without gradient.

        Args:
            hidden_states: (B, 1, d_model).
            conv_state: (B, E, d_conv), changed in place.
            ssm_state: (B, E, N), changed in place.

        Returns:
            (B, 1, d_model) or (B, 1, E), and the two states.

        Raises:
            ValueError: if there is more than one position.
        """
        check_one_position(hidden_states)
        x, z = project(self.in_proj, hidden_states.squeeze(1)).chunk(2, -1)
        x = causal_conv1d_update(x, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu")
        low, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        y = selective_state_update(
            ssm_state,
            x,
            F.linear(low, self.dt_proj.weight),
            -torch.exp(accumulation(self.A_log)),
            B,
            C,
            self.D,
            z,
            self.dt_proj.bias,
            dt_softplus=True,
        )
        return project(self.out_proj, y).unsqueeze(1), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Zero states for `step`: conv_state (B, E, d_conv) and ssm_state (B, E, N); their size needs no max_seqlen."""
        device = self.in_proj.weight.device
        return (
            torch.zeros(batch_size, self.d_inner, self.d_conv, device=device, dtype=dtype or self.conv1d.weight.dtype),
            torch.zeros(
                batch_size, self.d_inner, self.d_state, device=device, dtype=dtype or self.dt_proj.weight.dtype
            ),
        )

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """delta (B, E, L), B and C (B, N, L) of x (B, E, L)."""
        low, B, C = self.x_proj(x.transpose(1, 2)).split([self.dt_rank, self.d_state, self.d_state], -1)
        # The bias is left to the scan, which adds it in the precision that it accumulates in.
        return time_steps_of_sequence(self.dt_proj.weight, low), B.transpose(1, 2), C.transpose(1, 2)


def check_one_position(hidden_states: Tensor) -> None:
    if hidden_states.dim() != 3 or hidden_states.shape[1] != 1:
        raise ValueError(f"hidden_states: expected (B, 1, d_model), got {tuple(hidden_states.shape)}")


#: forward_type = base, then what follows the scan, then switches.
_FORWARD_TYPE = re.compile(r"(v2|v01)_?(none|dwconv3|softmax|sigmoid|)_?(nozact|)_?(noz|)_?(no32|)")


class SS2D(nn.Module):
    """2-D selective scan (VMamba, Liu et al. 2024): the official parameter names, any list of scan orders.

    With E = ssm_ratio * d_model, K directions of weights of their own, positions p of the map:

        x, z = in_proj(u);  x = silu(conv2d(x));  per direction k: dt, B, C = x_proj_weight[k] x[p]
        y = sum_k scan_k(x, dt_projs_weight[k] dt, -exp(A_logs[k]), B, C, Ds[k]);  out_proj(out_norm(y) * silu(z))

    Args:
        d_model: channels of input and output.
        d_state: N, states per channel.
        ssm_ratio: E / d_model.
        dt_rank: R; "auto" is ceil(d_model / 16).
        d_conv: width of the depthwise convolution, odd; below 2 there is none.
        conv_bias, bias: biases of the convolution, and of in_proj and out_proj.
        dropout: after out_proj.
        dt_min, dt_max, dt_init, dt_scale, dt_init_floor: initialisation of the time steps, see `Mamba`.
        initialize: "v0" as Mamba; "v1" A_logs, time-step weights and biases standard normal; "v2" the same with A_logs
            0. D is 1 in all.
        forward_type: "v2", followed by what takes the LayerNorm's place after the scan: "none", "dwconv3" (depthwise
            3x3), "softmax" (over the positions), "sigmoid"; then "nozact" (z without SiLU), "noz" (no gate), "no32".
            Say "v2", "v2noz", "v2softmaxnozact". The scan takes its inputs to float32; only with "v01" as base and
            "no32" it reads and writes 16-bit ones as they are (it accumulates in float32 in any case).
        use_out_norm, use_out_proj: False for neither (Mamba-FSCIL has no out_proj).
        directions: names of the K scan orders, see `fgkernels.scan_table`; VMamba's four by default, FER-YOLO-Mamba's
            eight are ("h", "v", "h_flip", "v_flip", "d", "a", "d_flip", "a_flip").

    Raises:
        ValueError: for an option that isn't among these.
    """

    def __init__(
        self,
        d_model: int = 96,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | str = "auto",
        d_conv: int = 3,
        conv_bias: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        initialize: str = "v0",
        forward_type: str = "v2",
        *,
        use_out_norm: bool = True,
        use_out_proj: bool = True,
        directions: Sequence[str] = ("h", "v", "h_flip", "v_flip"),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        parsed = _FORWARD_TYPE.fullmatch(forward_type)
        if parsed is None:
            raise ValueError(
                'forward_type: expected "v2" or "v01", then one of "none", "dwconv3", "softmax", "sigmoid" or nothing, '
                f'then any of "nozact", "noz", "no32" in this order, got {forward_type!r}'
            )
        if initialize not in ("v0", "v1", "v2"):
            raise ValueError(f'initialize: expected "v0", "v1" or "v2", got {initialize!r}')
        if d_conv > 1 and d_conv % 2 == 0:
            raise ValueError(f"d_conv: expected an odd width, or below 2 for no convolution, got {d_conv}")
        base, after, nozact, noz, no32 = parsed.groups()
        factory = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_inner = d_model, d_state, int(ssm_ratio * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.directions = tuple(directions)
        self.gate = None if noz else nn.Identity() if nozact else nn.SiLU()
        self.force_fp32 = base == "v2" or not no32
        count = len(self.directions)
        self.in_proj = nn.Linear(d_model, self.d_inner * (1 if noz else 2), bias=bias, **factory)
        self.conv2d = (
            nn.Conv2d(
                self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv // 2, bias=conv_bias, **factory
            )
            if d_conv > 1
            else nn.Identity()
        )
        projections = [nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **factory) for _ in range(count)]
        self.x_proj_weight = nn.Parameter(torch.stack([one.weight.detach() for one in projections]))
        self.out_norm = _after_scan(after, self.d_inner, factory) if use_out_norm else nn.Identity()
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory) if use_out_proj else nn.Identity()
        self.dropout = nn.Dropout(dropout)

        wide = {"device": device, "dtype": torch.float64 if dtype == torch.float64 else torch.float32}
        shape = (count, self.d_inner)
        weight, bias = torch.empty(*shape, self.dt_rank, **factory), torch.empty(shape, **factory)
        if initialize == "v0":
            init_time_step_weight(weight, self.dt_rank, dt_init, dt_scale)
            bias.copy_(
                inverse_softplus_time_steps(
                    *shape, dt_min=dt_min, dt_max=dt_max, dt_init_floor=dt_init_floor, device=device
                )
            )
            decays = torch.arange(1, d_state + 1, **wide).log().repeat(count * self.d_inner, 1)
        else:
            nn.init.normal_(weight), nn.init.normal_(bias)
            decays = torch.zeros(count * self.d_inner, d_state, **wide)
            if initialize == "v1":
                nn.init.normal_(decays)
        self.dt_projs_weight, self.dt_projs_bias = nn.Parameter(weight), nn.Parameter(bias)
        self.A_logs = without_weight_decay(decays)
        self.Ds = without_weight_decay(torch.ones(count * self.d_inner, **wide))

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, H, W, d_model) -> (B, H, W, d_model), or (B, H, W, E) without out_proj."""
        x, z = self.in_proj(feature_map), None
        if self.gate is not None:
            x, z = x.chunk(2, -1)
            z = self.gate(z)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2)))
        y = self.scan(x).to(feature_map.dtype)
        return self.dropout(self.out_proj(y if z is None else y * z))

    def scan(self, x: Tensor) -> Tensor:
        """The scans of all directions and out_norm: (B, E, H, W) -> (B, H, W, E)."""
        batch, channels, height, width = x.shape
        count, rank, states = len(self.directions), self.dt_rank, self.d_state
        # A projection of single positions commutes with the order in which they are read: no copy per direction.
        projected = self.x_proj_weight.flatten(0, 1) @ x.flatten(2)
        low, B, C = projected.unflatten(1, (count, -1)).split([rank, states, states], 2)
        delta = self.dt_projs_weight @ low
        if self.force_fp32:
            x, delta, B, C = (accumulation(value) for value in (x, delta, B, C))
        y = selective_scan_2d(
            x,
            delta,
            -torch.exp(accumulation(self.A_logs)).unflatten(0, (count, channels)),
            B,
            C,
            self.Ds.unflatten(0, (count, channels)),
            delta_bias=self.dt_projs_bias,
            delta_softplus=True,
            directions=self.directions,
        )
        return self.out_norm(y.permute(0, 2, 3, 1).to(self.in_proj.weight.dtype))

    def extra_repr(self) -> str:
        return f"d_state={self.d_state}, dt_rank={self.dt_rank}, directions={self.directions}"


class _Softmax(nn.Module):
    """Over the positions of (B, H, W, E)."""

    def forward(self, y: Tensor) -> Tensor:
        return y.flatten(1, 2).softmax(1).view_as(y)


class _ChannelLast(nn.Conv2d):
    """A convolution of (B, H, W, E)."""

    def forward(self, y: Tensor) -> Tensor:
        return super().forward(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _after_scan(name: str, channels: int, factory: dict[str, Any]) -> nn.Module:
    """What SS2D applies to the sum of its scans (B, H, W, E)."""
    if name == "none":
        return nn.Identity()
    if name == "dwconv3":
        return _ChannelLast(channels, channels, 3, padding=1, groups=channels, bias=False, **factory)
    if name == "softmax":
        return _Softmax()
    if name == "sigmoid":
        return nn.Sigmoid()
    return nn.LayerNorm(channels, **factory)
