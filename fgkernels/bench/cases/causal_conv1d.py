# SPDX-License-Identifier: Apache-2.0
"""Causal depthwise convolution: the cases of causal_conv1d and causal_conv1d_update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import fgkernels

from ..implementations import baselines, candidate, compiled, double, forward, forward_backward
from ..registry import Bar, Call, Case, Implementation, Inputs
from ..workloads import causal_conv1d as work

FAMILY = "causal_conv1d"


def _conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return fgkernels.causal_conv1d(x, weight, bias, "silu")


def _conv_case(name: str, title: str, backward: bool = False, **options: Any) -> Case:
    """causal_conv1d with bias and SiLU, forward or forward and backward."""
    functions = {"conv1d": work.conv_grouped, "shifted sum": work.conv_sum}
    leaves = len(work.NAMES)

    def make(function: Callable[..., Any]) -> Callable[[Inputs], Call]:
        return forward_backward(function, leaves, *work.NAMES) if backward else forward(function, *work.NAMES)

    return Case(
        FAMILY,
        name,
        title,
        shape={"B": 2, "D": 768, "L": 2048, "W": 4},
        tiny={"B": 2, "D": 3, "L": 20, "W": 4},
        inputs=work.conv_inputs(backward),
        outputs=("out", *(f"grad_{leaf}" for leaf in work.NAMES)) if backward else ("out",),
        reference=double(make(work.conv_sum)),
        implementations=(candidate(make(_conv)), *baselines(make, functions)),
        flops=work.conv_train_flops if backward else work.conv_flops,
        bytes=work.conv_train_bytes if backward else work.conv_bytes,
        grad_tolerance=1e-4,
        **options,
    )


def _step(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return fgkernels.causal_conv1d_update(x, state, weight, bias, "silu")


def _stepping(function: Callable[..., Tensor]) -> Callable[[Inputs], Call]:
    """A call on a state of its own; gives output and state."""

    def prepare(inputs: Inputs) -> Call:
        state = inputs["state"].clone()
        return lambda: (function(inputs["x"], state, inputs["weight"], inputs["bias"]), state)

    return prepare


STEP = Case(
    FAMILY,
    "conv-step",
    "causal_conv1d_update fp32, one token of a Mamba layer, D=1536 width 4",
    shape={"B": 1, "D": 1536, "W": 4},
    tiny={"B": 2, "D": 3, "W": 4},
    inputs=work.step_inputs,
    outputs=("out", "state"),
    reference=double(_stepping(work.step_formula)),
    implementations=(
        candidate(_stepping(_step)),
        Implementation("eager formula", "eager", _stepping(work.step_formula)),
        compiled("formula", _stepping, work.step_formula),
    ),
    flops=work.step_flops,
    bytes=work.step_bytes,
    overhead=True,
    measure_memory=False,
)

CASES = (
    _conv_case("conv-forward", "causal_conv1d fp32 with SiLU, B=2 D=768 L=2048 width 4, forward"),
    _conv_case(
        "conv-train",
        "causal_conv1d fp32 with SiLU, B=2 D=768 L=2048 width 4, forward and backward",
        backward=True,
        quick=True,
        bars=(Bar("ratio", 3.0, "eager conv1d"), Bar("ratio", 3.0, "compiled conv1d")),
    ),
    STEP,
)
