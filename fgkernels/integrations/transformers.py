# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers: its Mamba, Mamba-2, Falcon-Mamba and Jamba mixers on fgkernels' operators.

    patch = fgkernels.integrations.transformers.patch_mamba(model)   # this model's mixers
    patch.undo()

    with fgkernels.integrations.transformers.patch_mamba():          # every model's, within the context
        ...

Importing this module patches nothing and doesn't import transformers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn._one_row import project
from ..nn.selective_scan import time_steps_of_sequence
from ..ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from ..ops.mamba_chunk_scan import mamba_chunk_scan_combined
from ..ops.selective_scan import selective_scan, selective_state_update

__all__ = ["MambaPatch", "patch_mamba"]


def patch_mamba(model: nn.Module | None = None) -> MambaPatch:
    """Makes Mamba mixers of transformers compute with fgkernels, in prefill, decoding and training.

    Weights, caches, padding and everything outside the mixers stay transformers'. Results are those of its PyTorch
    path up to rounding, with one deliberate difference: Mamba, Falcon-Mamba and Jamba given several tokens and a cache
    that holds earlier ones go on from the cached state, as one call of all tokens does (transformers starts its scan
    from zeros there).

    Args:
        model: the mixers of this model, or of any module; None: of every model, those not made yet included. Models
            that accelerate has put hooks on before have to be named.

    Returns:
        The patch, in force already: call `undo`, or use it as a context manager.

    Raises:
        ImportError: if transformers isn't installed, or is a version with another cache (5.24 is tested).
        ValueError: if the model has no such mixer.
    """
    forwards = _forwards()
    if model is None:
        return MambaPatch([(kind, "forward", forward) for kind, forward in forwards.items()])
    places = []
    for mixer in model.modules():
        for kind, forward in forwards.items():
            if isinstance(mixer, kind):
                # Where accelerate has put hooks on a module, its own forward is kept under another name.
                name = "_old_forward" if "_old_forward" in mixer.__dict__ else "forward"
                places.append((mixer, name, MethodType(forward, mixer)))
    if not places:
        names = ", ".join(kind.__name__ for kind in forwards)
        raise ValueError(f"model: expected a module with a mixer among {names}, got a {type(model).__name__} without")
    return MambaPatch(places)


class MambaPatch:
    """Attributes set on mixers or their classes until `undo` or the end of the context."""

    def __init__(self, places: list[tuple[Any, str, Callable]]) -> None:
        self._before = [(owner, name, owner.__dict__.get(name)) for owner, name, _ in places]
        for owner, name, forward in places:
            setattr(owner, name, forward)

    def undo(self) -> None:
        """Puts back what was there before; the second time does nothing. Undo nested patches innermost first."""
        for owner, name, before in self._before:
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        self._before = []

    def __enter__(self) -> MambaPatch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"MambaPatch({len(self._before)} in force)"


#: transformers' module -> its mixer, our forward, and the children whose weights that forward uses directly.
_MIXERS = {
    "mamba": ("MambaMixer", "_forward_mamba", ["conv1d", "dt_proj"]),
    "falcon_mamba": ("FalconMambaMixer", "_forward_mamba", ["conv1d", "dt_proj"]),
    "jamba": ("JambaMambaMixer", "_forward_mamba", ["conv1d", "dt_proj"]),
    "mamba2": ("Mamba2Mixer", "_forward_mamba2", ["conv1d"]),
}


def _forwards() -> dict[type, Callable]:
    """Mixer class -> its forward on fgkernels."""
    import transformers
    from transformers.cache_utils import Cache

    if not hasattr(Cache, "get_recurrent_state"):
        raise ImportError(
            f"transformers {transformers.__version__}: expected a version whose Cache has get_recurrent_state, say 5.24"
        )
    from transformers.integrations.accelerate import force_accelerate_hooks

    forwards = {}
    for model, (name, forward, children) in _MIXERS.items():
        kind = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name)
        forwards[kind] = wraps(kind.forward)(force_accelerate_hooks(children)(globals()[forward]))
    return forwards


def _forward_mamba(
    self: nn.Module,
    hidden_states: Tensor,
    cache: Any = None,
    attention_mask: Tensor | None = None,
    cache_params: Any = None,
    **kwargs: Any,
) -> Tensor:
    """Forward of MambaMixer, FalconMambaMixer and JambaMambaMixer: (B, L, C) -> (B, L, C)."""
    cache = cache_params if cache is None else cache
    _refuse_packed(kwargs)
    length = hidden_states.shape[1]
    conv_state, recurrent_state = _states(self, cache)
    if attention_mask is not None:
        hidden_states = _masked(hidden_states, attention_mask)
    weight, bias, activation = self.conv1d.weight.squeeze(1), self.conv1d.bias, _fused(self.activation)
    A = _decay(self)
    if _decodes(self, cache, conv_state, recurrent_state, length):
        x, z = project(self.in_proj, hidden_states.squeeze(1)).chunk(2, -1)
        x = causal_conv1d_update(x, conv_state, weight, bias, activation)
        x = x if activation is not None else self.act(x)
        if attention_mask is not None:
            x = _masked(x.unsqueeze(1), attention_mask).squeeze(1)
        low, B, C = _projections(self, x)
        y = selective_state_update(
            recurrent_state, x, _time_steps(self, low), A, B, C, self.D, z, self.dt_proj.bias, True
        )
        return project(self.out_proj, y).unsqueeze(1)

    x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, 1)
    x = causal_conv1d(_with_cached_past(self, x, cache), weight, bias, activation)[..., -length:]
    x = x if activation is not None else self.act(x)
    if attention_mask is not None:
        x = _masked(x.transpose(1, 2), attention_mask).transpose(1, 2)
    low, B, C = _projections(self, x.transpose(1, 2))
    y, last_state = selective_scan(
        x, _time_steps(self, low), A, B.transpose(1, 2), C.transpose(1, 2), self.D, z, self.dt_proj.bias, True, True,
        initial_state=_before_update(recurrent_state),
    )  # fmt: skip
    if cache is not None:
        cache.update_recurrent_state(last_state, self.layer_idx)
    return self.out_proj(y.transpose(1, 2))


def _forward_mamba2(
    self: nn.Module,
    hidden_states: Tensor,
    cache: Any = None,
    attention_mask: Tensor | None = None,
    cache_params: Any = None,
    seq_idx: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Forward of Mamba2Mixer: (B, L, C) -> (B, L, C)."""
    cache = cache_params if cache is None else cache
    _refuse_packed(kwargs)
    batch, length, _ = hidden_states.shape
    conv_state, recurrent_state = _states(self, cache)
    if attention_mask is not None:
        hidden_states = _masked(hidden_states, attention_mask)
    weight, bias, activation = self.conv1d.weight.squeeze(1), self.conv1d.bias, _fused(self.activation)
    heads, states = (self.num_heads, self.head_dim), self.ssm_state_size
    parts = [self.intermediate_size, self.n_groups * states, self.n_groups * states]
    inner = [self.intermediate_size, self.conv_dim, self.num_heads]
    A = _decay(self)
    if _decodes(self, cache, conv_state, recurrent_state, length):
        z, xBC, dt = project(self.in_proj, hidden_states.squeeze(1)).split(inner, -1)
        xBC = causal_conv1d_update(xBC, conv_state, weight, bias, activation)
        xBC = xBC if activation is not None else self.act(xBC)
        if attention_mask is not None:
            xBC = _masked(xBC.unsqueeze(1), attention_mask).squeeze(1)
        x, B, C = xBC.split(parts, -1)
        y = selective_state_update(
            recurrent_state,
            x.view(batch, *heads),
            dt.unsqueeze(-1).expand(batch, *heads),
            A[:, None, None].expand(*heads, states),
            B.view(batch, self.n_groups, states),
            C.view(batch, self.n_groups, states),
            self.D.unsqueeze(-1).expand(heads),
            dt_bias=self.dt_bias.unsqueeze(-1).expand(heads),
            dt_softplus=True,
        )
        return project(self.out_proj, self.norm(y.flatten(1), z).to(hidden_states.dtype)).unsqueeze(1)

    z, xBC, dt = self.in_proj(hidden_states).split(inner, -1)
    xBC = _with_cached_past(self, xBC.transpose(1, 2), cache)
    if seq_idx is not None and cache is not None:
        raise ValueError("seq_idx: expected None with a cache")
    xBC = causal_conv1d(xBC, weight, bias, activation, seq_idx=seq_idx)[..., -length:].transpose(1, 2)
    xBC = xBC if activation is not None else self.act(xBC)
    x, B, C = (xBC if attention_mask is None else _masked(xBC, attention_mask)).split(parts, -1)
    y, last_state = mamba_chunk_scan_combined(
        x.unflatten(-1, heads),
        dt,
        A,
        B.unflatten(-1, (self.n_groups, states)),
        C.unflatten(-1, (self.n_groups, states)),
        self.chunk_size,
        D=self.D,
        dt_bias=self.dt_bias,
        initial_states=_before_update(recurrent_state),
        seq_idx=seq_idx,
        dt_softplus=True,
        dt_limit=self.time_step_limit,
        return_final_states=True,
    )
    if cache is not None:
        cache.update_recurrent_state(last_state, self.layer_idx)
    return self.out_proj(self.norm(y.flatten(2), z).to(hidden_states.dtype))


def _states(self: nn.Module, cache: Any) -> tuple[Tensor | None, Tensor | None]:
    """The cached states that precede these positions; None each where there is none."""
    if cache is None:
        return None, None
    return cache.get_conv_state(self.layer_idx), cache.get_recurrent_state(self.layer_idx)


def _decay(self: nn.Module) -> Tensor:
    """A of the state-space model, from its logarithm, in float32."""
    values = torch.exp(self.A_log.float())
    return -values if torch.is_grad_enabled() else values.neg_()  # a backward of exp wants its result


def _decodes(
    self: nn.Module, cache: Any, conv_state: Tensor | None, recurrent_state: Tensor | None, length: int
) -> bool:
    """Whether one step on the cached states, in place, is all there is to do: that has no gradient."""
    return (
        length == 1
        and conv_state is not None
        and recurrent_state is not None
        and not torch.is_grad_enabled()
        and not cache.is_recording_past(self.layer_idx)
    )


def _with_cached_past(self: nn.Module, x: Tensor, cache: Any) -> Tensor:
    """x (B, D, L) after the positions before it that the cache holds, which then holds the latest."""
    if cache is None:
        return x
    return cache.update_conv_state(x, self.layer_idx, conv_kernel_size=self.conv_kernel_size)


def _before_update(state: Tensor | None) -> Tensor | None:
    """The state that a scan starts from, kept for its backward while the cache is overwritten."""
    return state.clone() if state is not None and torch.is_grad_enabled() else state


def _projections(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Low-rank time steps, B and C of x (..., E); Falcon-Mamba and Jamba normalise what x_proj gives."""
    low, B, C = self.x_proj(x).split([self.time_step_rank, self.ssm_state_size, self.ssm_state_size], -1)
    if "dt_layernorm" in self._modules:
        low, B, C = self.dt_layernorm(low), self.b_layernorm(B), self.c_layernorm(C)
    return low, B, C


def _time_steps(self: nn.Module, low: Tensor) -> Tensor:
    """Time steps without their bias: (B, E) of (B, R), (B, E, L) of (B, L, R)."""
    single = low.dim() == 2
    if hasattr(self.config, "_is_quantized"):  # the weight is then not one to multiply by
        steps = self.dt_proj(low) - self.dt_proj.bias
        return steps if single else steps.transpose(1, 2)
    return F.linear(low, self.dt_proj.weight) if single else time_steps_of_sequence(self.dt_proj.weight, low)


def _fused(activation: str) -> str | None:
    """The activation, if the convolution can apply it."""
    return "silu" if activation in ("silu", "swish") else None


def _masked(values: Tensor, attention_mask: Tensor) -> Tensor:
    """Positions of (B, L, D) that the mask (B, L) calls padding become zero."""
    if attention_mask.shape != values.shape[:2]:
        raise ValueError(
            f"attention_mask: expected (B, L) = {tuple(values.shape[:2])} like the new tokens, "
            f"got {tuple(attention_mask.shape)}"
        )
    return (values * attention_mask.unsqueeze(-1)).to(values.dtype)


def _refuse_packed(options: dict[str, Any]) -> None:
    """What would keep packed sequences apart must not be ignored."""
    for name in ("seq_idx", "cu_seqlens"):
        if options.get(name) is not None:
            raise ValueError(f"{name}: expected None, this mixer cannot keep packed sequences apart")
