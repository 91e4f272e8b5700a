# SPDX-License-Identifier: Apache-2.0
"""Getting models out of Python: ahead-of-time packages, ONNX, and programs without our operators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.fx.experimental import proxy_tensor

from ..ops import _library
from ..ops._late_interaction_rules import index_dtype
from ..reference import causal_conv1d as conv
from ..reference import late_interaction as reference
from ..reference import mamba_chunk_scan as mamba
from ..reference import selective_scan as selective
from ..reference import selective_scan_2d as selective_2d
from . import _recurrences

__all__ = ["decompositions"]

_DECOMPOSED_IN_PLACE: set[OpOverload] = set()


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """Every forward operator of the compiled library, written in ATen operators and torch's `scan`.

    ``exported.run_decompositions(fgkernels.export.decompositions())`` gives a program that runs without our library;
    it materialises what the operators don't, such as similarities. Merge it into
    ``torch.export.default_decompositions()`` to lower ATen itself too. Empty without the compiled library, whose
    operators no program can then hold.
    """
    table = {
        "maxsim": _maxsim,
        "maxsim_fwd": lambda *args: reference.maxsim_core(*args)[0],
        "maxsim_varlen": _maxsim_varlen,
        "maxsim_varlen_fwd": lambda *args: reference.maxsim_varlen_core(*args)[0],
        "late_interaction": _late_interaction,
        "late_interaction_fwd": lambda *args: reference.late_interaction_core(*args)[:2],
        "selective_scan": _selective_scan,
        "selective_scan_fwd": lambda *args: _selective_scan(*args, keep=False)[:2],
        "selective_state_update": _selective_state_update,
        "selective_scan_2d": _selective_scan_2d,
        "selective_scan_2d_fwd": lambda *args: _selective_scan_2d(*args, keep=False)[0],
        "cross_scan": lambda *args: selective_2d.cross_scan_core(*args).contiguous(),
        "cross_merge": selective_2d.cross_merge_core,
        "causal_conv1d": _causal_conv1d,
        "causal_conv1d_update": conv.update_core,
        "mamba_chunk_scan": _mamba_chunk_scan,
        "mamba_chunk_scan_fwd": lambda *args: mamba.forward_core(*args, _recurrences.chunk_scan),
    }
    if not _library.LOADED:
        return {}
    decompositions = {_library.op(name): function for name, function in table.items()}
    for name in ("selective_state_update", "causal_conv1d_update"):
        _decompose_in_place(_library.op(name))
    return decompositions


def _decompose_in_place(op: OpOverload) -> None:
    """Has tracing look for a decomposition of `op`, which writes an argument, before it makes it functional.

    Afterwards it is too late: the operator is inside another one that says what it writes.
    """
    if op in _DECOMPOSED_IN_PLACE:
        return
    _DECOMPOSED_IN_PLACE.add(op)

    @op.py_impl(FunctionalTensorMode)
    def functionalize(mode: FunctionalTensorMode, *args: Any, **kwargs: Any) -> Any:
        # Torch before 2.13 has one table for all, later one per tracer.
        table = getattr(proxy_tensor.get_proxy_mode(), "decomposition_table", None)
        table = getattr(proxy_tensor, "CURRENT_DECOMPOSITION_TABLE", {}) if table is None else table
        if op not in table:
            return mode.__torch_dispatch__(op, (), args, kwargs)
        with mode:
            return table[op](*args, **kwargs)


def _maxsim(queries: Tensor, documents: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    scores, alignment = reference.maxsim_core(queries, documents, *args)
    return scores, alignment.to(index_dtype(documents.shape[-2]))


def _maxsim_varlen(queries: Tensor, documents: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    scores, alignment = reference.maxsim_varlen_core(queries, documents, *args)
    return scores, alignment.to(index_dtype(documents.shape[0]))


def _late_interaction(a: Tensor, b: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores_ab, scores_ba, alignment_ab, alignment_ba = reference.late_interaction_core(a, b, *args)
    return (
        scores_ab,
        scores_ba,
        alignment_ab.to(index_dtype(b.shape[1])),
        alignment_ba.to(index_dtype(a.shape[1])),
    )


def _selective_scan(*args: Any, keep: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    return selective.selective_scan_core(*args, functools.partial(_recurrences.selective_scan, keep=keep))


def _selective_scan_2d(*args: Any, keep: bool = True) -> tuple[Tensor, Tensor]:
    return selective_2d.selective_scan_2d_core(*args, functools.partial(_recurrences.selective_scan, keep=keep))


def _selective_state_update(state: Tensor, *args: Any) -> Tensor:
    *tensors, indices, dt_softplus = args
    places = None if indices is None else indices.to(torch.int64)
    rows = state if places is None else state.index_select(0, places)
    out, new = selective.state_update_core(rows, *tensors, dt_softplus)
    if places is None:
        state.copy_(new)
    else:
        state.index_copy_(0, places, new)
    return out


def _causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, initial_state: Tensor | None, silu: bool
) -> Tensor:
    """A convolution proper, which every runtime has, unless taps must know which sequence they read."""
    if seq_idx is not None:
        return conv.forward_core(x, weight, bias, seq_idx, initial_state, silu)
    padded = conv.with_past(x.to(weight.dtype), weight.shape[1], initial_state)
    out = F.conv1d(padded, weight.unsqueeze(1), bias, groups=x.shape[1])
    return (F.silu(out) if silu else out).to(x.dtype)


def _mamba_chunk_scan(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    out, final_states = mamba.forward_core(*args, _recurrences.chunk_scan)
    return out, final_states, mamba.forward_core(*args, _recurrences.chunk_scan_checkpoints)[1]
