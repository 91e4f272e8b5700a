# SPDX-License-Identifier: Apache-2.0
"""Calls of all operators' Triton functions, and the reference's results for them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgkernels.reference import late_interaction as reference


class Case(NamedTuple):
    """Inputs of one form; a, b are queries, documents of the one-directional forms."""

    form: str
    a: Tensor
    b: Tensor
    a_mask: Tensor | None = None
    b_mask: Tensor | None = None
    offsets: tuple[Tensor, Tensor] | None = None


def make_case(form: str, dtype: torch.dtype, exact: bool, masked: bool, n: int = 130, m: int = 70) -> Case:
    """Sides longer than a tile of 64 rows; `exact` tokens are small integers with many ties."""

    def tokens(*shape: int) -> Tensor:
        return (torch.randint(-2, 3, shape) if exact else torch.randn(shape, dtype=torch.float64)).to(dtype)

    def mask(*shape: int) -> Tensor | None:
        return torch.rand(shape) < 0.7 if masked else None

    channels = 40
    if form == "varlen":
        places = torch.tensor([0, n, n, n + 7]), torch.tensor([0, 0, m, m + 3])
        return Case(form, tokens(n + 7, channels), tokens(m + 3, channels), offsets=places)
    if form == "varlen paired":
        places = torch.tensor([0, n, n, n + 7]), torch.tensor([0, m, m, m + 3])
        return Case(form, tokens(n + 7, channels), tokens(m + 3, channels), offsets=places)
    b_shape = (3, 2, m) if form == "rerank" else (3, m)
    return Case(form, tokens(3, n, channels), tokens(*b_shape, channels), mask(3, n), mask(*b_shape))


def run(kernels: dict, case: Case, zero: bool = False, mean: bool = False) -> list[Tensor]:
    """Scores, alignments (int64) and the gradients of the scores weighted by 1, -2, 3, ..."""
    a, b = case.a, case.b
    if case.form == "late_interaction":
        args = (a, b, case.a_mask, case.b_mask)
        *scores, ab, ba = kernels["late_interaction"](*args, mean, zero)
        grads = [weights(score) for score in scores]
        gradients = [kernels[f"late_interaction_backward_{side}"](*grads, *args, ab, ba, mean) for side in "ab"]
        fast = kernels["late_interaction_fwd"](*args, mean, zero)
        assert torch.equal(fast[0], scores[0]) and torch.equal(fast[1], scores[1])
        return [*scores, ab.long(), ba.long(), *gradients]
    paired = case.form not in ("all_pairs", "varlen")
    if case.offsets is not None:
        args = (a, b, *case.offsets, None)
        name, flags = "maxsim_varlen", (mean, paired)
    else:
        args = (a, b, case.a_mask, case.b_mask, None)
        name, flags = "maxsim", (mean, zero, paired)
    scores, alignment = kernels[name](*args, *flags)
    assert torch.equal(kernels[f"{name}_fwd"](*args, *flags), scores)
    backward = args if case.offsets is not None else (a, b, case.a_mask, None)
    gradients = [
        kernels[f"{name}_backward_{side}"](weights(scores), *backward, alignment, mean, paired)
        for side in ("queries", "documents")
    ]
    return [scores, alignment.long(), *gradients]


def weights(scores: Tensor) -> Tensor:
    return (torch.arange(1, scores.numel() + 1) * (-1) ** torch.arange(scores.numel())).to(scores).view(scores.shape)


def expected(case: Case, zero: bool = False, mean: bool = False) -> list[Tensor]:
    """The same from the reference, in float64."""
    a, b = case.a.double().requires_grad_(), case.b.double().requires_grad_()
    options = {"reduction": "mean" if mean else "sum", "return_alignment": True}
    if case.offsets is not None:
        paired = case.form == "varlen paired"
        *outputs, alignment = reference.maxsim_varlen(a, b, *case.offsets, paired=paired, **options)
        alignments = [alignment]
    else:
        options["padding"] = "zero" if zero else "exclude"
        if case.form == "late_interaction":
            results = reference.late_interaction(a, b, case.a_mask, case.b_mask, **options)
            outputs, alignments = results[:2], results[2:]
        else:
            *outputs, alignment = reference.maxsim(
                a, b, case.a_mask, case.b_mask, paired=case.form == "paired", **options
            )
            alignments = [alignment]
    gradients = torch.autograd.grad(outputs, (a, b), [weights(out.detach()) for out in outputs])
    return [*(out.detach() for out in outputs), *alignments, *gradients]
