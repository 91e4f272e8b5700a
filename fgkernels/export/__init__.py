# SPDX-License-Identifier: Apache-2.0
"""Getting models out of Python: ahead-of-time packages, ONNX, and programs without our operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from ..ops import _library
from ..ops._late_interaction_rules import index_dtype
from ..reference import late_interaction as reference

__all__ = ["decompositions"]


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """Every forward operator of the compiled library, written in ATen operators.

    ``exported.run_decompositions(fgkernels.export.decompositions())`` gives a program that runs without our library;
    it materialises the similarities that the operators don't. Merge it into ``torch.export.default_decompositions()``
    to lower ATen itself too. Empty without the compiled library, whose operators no program can then hold.
    """
    table = {
        "maxsim": _maxsim,
        "maxsim_fwd": lambda *args: reference.maxsim_core(*args)[0],
        "maxsim_varlen": _maxsim_varlen,
        "maxsim_varlen_fwd": lambda *args: reference.maxsim_varlen_core(*args)[0],
        "late_interaction": _late_interaction,
        "late_interaction_fwd": lambda *args: reference.late_interaction_core(*args)[:2],
    }
    return {_library.op(name): function for name, function in table.items()} if _library.LOADED else {}


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
