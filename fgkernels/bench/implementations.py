# SPDX-License-Identifier: Apache-2.0
"""Building blocks of cases: turn functions into timed calls, and expressions into baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .registry import Call, Implementation, Inputs

Prepare = Callable[[Inputs], Call]


def forward(function: Callable[..., Any], *names: str) -> Prepare:
    """A call of ``function`` on the inputs with these names."""

    def prepare(inputs: Inputs) -> Call:
        arguments = [inputs[name] for name in names]
        return lambda: function(*arguments)

    return prepare


def forward_backward(function: Callable[..., Any], leaves: int, *names: str) -> Prepare:
    """The same, then the gradients of the first ``leaves`` inputs; inputs named "grad..." are the scores' gradients.

    The call returns the scores, then the gradients.
    """

    def prepare(inputs: Inputs) -> Call:
        arguments = [inputs[name] for name in names]
        upstream = [value for name, value in inputs.items() if name.startswith("grad")]

        def call() -> tuple[Tensor, ...]:
            scores = function(*arguments)
            scores = scores if isinstance(scores, tuple) else (scores,)
            gradients = torch.autograd.grad(scores, arguments[:leaves], upstream)
            return (*(score.detach() for score in scores), *gradients)

        return call

    return prepare


def chain(change: Callable[[Inputs], Inputs], prepare: Callable[[Inputs], Any]) -> Callable[[Inputs], Any]:
    """``prepare`` on changed inputs (padded, converted, regrouped)."""
    return lambda inputs: prepare(change(inputs))


def double(prepare: Prepare) -> Callable[[Inputs], tuple[Tensor, ...]]:
    """The outputs of a plain expression in fp64: what the gate compares with."""

    def outputs(inputs: Inputs) -> tuple[Tensor, ...]:
        doubled = {
            name: value.detach().double().requires_grad_(value.requires_grad) if value.is_floating_point() else value
            for name, value in inputs.items()
        }
        result = prepare(doubled)()
        return result if isinstance(result, tuple) else (result,)

    return outputs


def candidate(prepare: Prepare) -> Implementation:
    """Our op."""
    return Implementation("fgkernels", "candidate", prepare)


def baselines(
    make: Callable[[Callable[..., Any]], Prepare], expressions: Mapping[str, Callable[..., Any]]
) -> tuple[Implementation, ...]:
    """Each expression as written (eager) and under torch.compile; one named "reference" is only compiled.

    Args:
        make: function -> ``prepare``.
        expressions: name -> function; the faster of a group is the one that counts.
    """
    eager = (
        Implementation(f"eager {name}", "eager", make(f)) for name, f in expressions.items() if name != "reference"
    )
    return (*eager, *(compiled(name, make, f) for name, f in expressions.items()))


def compiled(name: str, make: Callable[[Callable[..., Any]], Prepare], function: Callable[..., Any]) -> Implementation:
    """``function`` under torch.compile."""

    # One torch.compile per prepare: the warm-up and the measured shape may not share a recompile limit.
    def prepare(inputs: Inputs) -> Call:
        return make(torch.compile(function, dynamic=False))(inputs)

    return Implementation(f"compiled {name}", "compiled", prepare, compiles=True)
