# SPDX-License-Identifier: Apache-2.0
"""The correctness gate: nothing is timed that does not compute the right thing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .registry import Case


@dataclass(frozen=True)
class Verdict:
    """Errors by output name; ``problem`` says what is wrong, or is None."""

    errors: dict[str, float]
    problem: str | None

    @property
    def passed(self) -> bool:
        return self.problem is None

    def as_dict(self) -> dict[str, Any]:
        # JSON has no infinity
        errors = {name: error if math.isfinite(error) else None for name, error in self.errors.items()}
        return {"passed": self.passed, "errors": errors, "problem": self.problem}


def as_tuple(output: Any) -> tuple[Any, ...]:
    return tuple(output) if isinstance(output, (tuple, list)) else (output,)


def score_error(value: Tensor, expected: Tensor) -> float:
    """Largest absolute error over the largest expected magnitude; infinite for NaN or Inf."""
    value, expected = value.double(), expected.double()
    if value.numel() == 0:
        return 0.0
    if not torch.isfinite(value).all():
        return math.inf
    return float((value - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def gradient_error(value: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the error over that of the expected gradient.

    In a near tie, rounding may choose the other token and move one token's gradient as a whole; among 1e5 maxima one
    such flip is 3e-3 of the norm. A largest error would fail a correct kernel.
    """
    value, expected = value.double(), expected.double()
    if not torch.isfinite(value).all():
        return math.inf
    return float((value - expected).norm() / expected.norm().clamp_min(1e-30))


def check(case: Case, output: Any, expected: Sequence[Tensor]) -> Verdict:
    """Compare one output of an implementation with the fp64 reference."""
    values = as_tuple(output)
    if len(values) != len(case.outputs):
        return Verdict({}, f"expected {len(case.outputs)} outputs {case.outputs}, got {len(values)}")
    errors, problems = {}, []
    for name, value, want in zip(case.outputs, values, expected, strict=True):
        value = torch.as_tensor(value).detach()
        # Peers drop dimensions of size one.
        if [size for size in value.shape if size != 1] != [size for size in want.shape if size != 1]:
            problems.append(f"{name}: expected shape {tuple(want.shape)}, got {tuple(value.shape)}")
            continue
        gradient = name.startswith("grad")
        tolerance = case.grad_tolerance if gradient else case.tolerance
        errors[name] = (gradient_error if gradient else score_error)(value.reshape(want.shape), want)
        if not errors[name] <= tolerance:
            problems.append(f"{name}: error {errors[name]:.2g} exceeds {tolerance:.2g}")
    return Verdict(errors, "; ".join(problems) or None)
