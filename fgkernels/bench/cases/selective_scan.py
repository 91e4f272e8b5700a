# SPDX-License-Identifier: Apache-2.0
"""Selective scans over sequences: the cases of selective_scan and selective_state_update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import fgkernels

from ..implementations import candidate, chain, compiled, double, forward, forward_backward
from ..registry import Bar, Call, Case, Implementation, Inputs, Shape
from ..workloads import selective_scan as work

FAMILY = "selective_scan"
# Largest errors of outputs and of gradients: fp32 rounding of up to a million decaying sums; PyTorch rounds outputs to
# bf16.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
GRAD_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
TINY = {"B": 2, "D": 6, "L": 40, "N": 4}

LOOP, MAMBAPY = "eager loop", "mambapy"


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None, bias: Tensor
) -> Tensor:
    """Our op, as a Mamba layer calls it."""
    return fgkernels.selective_scan(u, delta, A, B, C, D, z, bias, True)


def _scan_case(
    name: str,
    title: str,
    shape: Shape,
    dtype: str = "float32",
    backward: bool = False,
    baselines: tuple[str, ...] = ("loop", "unbound", "chunks", "associative", "mambapy"),
    **options: Any,
) -> Case:
    """selective_scan with D, z, bias and softplus, forward or forward and backward, against the named baselines."""
    leaves = len(work.NAMES)
    outputs = ("out", *(f"grad_{leaf}" for leaf in work.NAMES)) if backward else ("out",)

    def make(function: Callable[..., Any]) -> Callable[[Inputs], Call]:
        return forward_backward(function, leaves, *work.NAMES) if backward else forward(function, *work.NAMES)

    mambapy = work.channel_first(make(work.scan_mambapy), outputs)
    known = {
        "loop": Implementation(LOOP, "eager", make(work.scan_loop)),
        "unbound": Implementation("eager unbound loop", "eager", make(work.scan_unbound)),
        "chunks": compiled("chunks", make, work.scan_chunks),
        "associative": compiled("associative scan", make, work.scan_associative),
        "mambapy": Implementation(MAMBAPY, "peer", mambapy, module="mambapy"),
    }
    sisters: tuple[Implementation, ...] = ()
    if dtype != "float32":
        sisters = (Implementation("own fp32", "own", chain(work.as_float, make(scan))),)
    item = work.DTYPES[dtype].itemsize
    return Case(
        FAMILY,
        name,
        title,
        shape=shape,
        tiny=TINY,
        inputs=work.scan_inputs(dtype, backward),
        outputs=outputs,
        reference=double(make(work.scan_unbound)),
        implementations=(candidate(make(scan)), *(known[baseline] for baseline in baselines), *sisters),
        flops=work.scan_train_flops if backward else work.scan_flops,
        bytes=(work.scan_train_bytes if backward else work.scan_bytes)(item),
        dtype=dtype,
        probe="exp_fma",
        updates=work.scan_train_updates if backward else work.scan_updates,
        tolerance=TOLERANCE[dtype],
        grad_tolerance=GRAD_TOLERANCE[dtype],
        **options,
    )


# One sequence of a million steps --------------------------------------------------------------------------------------


def _long(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    out = scan(u, delta, A, B, C, D, None, bias)
    return out.split(out.shape[2] // work.PARTS, dim=2)


def _long_parts(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    """The same in calls of a tenth, each from the state that the one before left."""
    size, state, outputs = u.shape[2] // work.PARTS, None, []
    for pieces in zip(*(value.split(size, dim=2) for value in (u, delta, B, C)), strict=True):
        u, delta, B, C = pieces
        out, state = fgkernels.selective_scan(u, delta, A, B, C, D, None, bias, True, True, initial_state=state)
        outputs.append(out)
    return tuple(outputs)


LONG = Case(
    FAMILY,
    "scan-long",
    "selective_scan fp32, B=1 D=64 L=1,000,000 N=16, forward",
    shape={"B": 1, "D": 64, "L": 1_000_000, "N": 16},
    tiny={"B": 1, "D": 6, "L": 50, "N": 4},
    inputs=work.long_inputs,
    outputs=tuple(f"out_{part}" for part in range(work.PARTS)),
    reference=work.long_reference,
    implementations=(
        candidate(forward(_long, *work.LONG_NAMES)),
        Implementation("ten calls of a tenth", "own", forward(_long_parts, *work.LONG_NAMES)),
    ),
    flops=work.scan_flops,
    bytes=work.scan_bytes(4, gate=False),
    probe="exp_fma",
    updates=work.scan_updates,
    # Linear: a step of the long call costs what a step of a short one does, within 15 %.
    bars=(Bar("ratio", 1 / 1.15, "ten calls of a tenth"), Bar("memory", 0.01, "inputs")),
)


# Decoding -------------------------------------------------------------------------------------------------------------


def _step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    return fgkernels.selective_state_update(state, x, dt, A, B, C, D, z, bias, True)


def _stepping(function: Callable[..., Tensor]) -> Callable[[Inputs], Call]:
    """A call on a state of its own, which moves on from call to call and stays bounded; gives output and state."""

    def prepare(inputs: Inputs) -> Call:
        state, *rest = (inputs[name] for name in work.STEP_NAMES)
        state = state.clone()
        return lambda: (function(state, *rest), state)

    return prepare


def _step_case(name: str, title: str, shape: Shape, **options: Any) -> Case:
    heads = "H" in shape
    return Case(
        FAMILY,
        name,
        title,
        shape=shape,
        tiny={"B": 2, "H": 2, "P": 5, "N": 4} if heads else {"B": 2, "D": 6, "N": 4},
        inputs=work.head_step_inputs if heads else work.step_inputs,
        outputs=("out", "state"),
        reference=double(_stepping(work.step_formula)),
        implementations=(
            candidate(_stepping(_step)),
            Implementation("eager formula", "eager", _stepping(work.step_formula)),
            compiled("formula", _stepping, work.step_formula),
        ),
        flops=work.head_step_flops if heads else work.step_flops,
        bytes=work.head_step_bytes if heads else work.step_bytes,
        probe="float32" if heads else "exp_fma",
        updates=None if heads else work.step_updates,
        measure_memory=False,
        **options,
    )


# Cases ----------------------------------------------------------------------------------------------------------------

_WIDE = {"B": 1, "D": 1536, "L": 1024, "N": 16}
_DEEP = {"B": 2, "D": 384, "L": 1024, "N": 16}
_VIM = {"B": 1, "D": 384, "L": 196, "N": 16}
_GPU = {"B": 8, "D": 1536, "L": 4096, "N": 16}
_FAST = (Bar("ratio", 50, LOOP), Bar("ratio", 50, MAMBAPY), Bar("limit", 0.5))
_VIM_BARS = (Bar("ratio", 10, LOOP), Bar("ratio", 10, MAMBAPY))

CASES = (
    _scan_case("scan-forward", "selective_scan fp32, B=2 D=384 L=1024 N=16, forward", _DEEP, bars=_FAST),
    _scan_case(
        "scan-wide",
        "selective_scan fp32, B=1 D=1536 L=1024 N=16, forward",
        _WIDE,
        baselines=("loop", "unbound", "associative", "mambapy"),
        bars=_FAST,
    ),
    _scan_case(
        "scan-train",
        "selective_scan fp32, B=2 D=384 L=1024 N=16, forward and backward",
        _DEEP,
        backward=True,
        bars=(Bar("ratio", 300, LOOP), Bar("ratio", 30, MAMBAPY), Bar("memory", 3.0, "inputs")),
    ),
    _scan_case(
        "scan-bf16",
        "selective_scan bf16, B=2 D=384 L=1024 N=16, forward",
        _DEEP,
        "bfloat16",
        baselines=("unbound", "associative", "mambapy"),
    ),
    _scan_case(
        "scan-vim",
        "selective_scan fp32, a Vim layer, B=1 D=384 L=196 N=16, forward",
        _VIM,
        quick=True,
        bars=_VIM_BARS,
    ),
    _scan_case(
        "scan-vim-train",
        "selective_scan fp32, a Vim layer, B=1 D=384 L=196 N=16, forward and backward",
        _VIM,
        backward=True,
        bars=_VIM_BARS,
    ),
    LONG,
    _step_case(
        "step",
        "selective_state_update fp32, one token of a Mamba layer, D=1536 N=16",
        {"B": 1, "D": 1536, "N": 16},
        overhead=True,
    ),
    _step_case(
        "step-batch",
        "selective_state_update fp32, 64 tokens of a Mamba layer, D=1536 N=16",
        {"B": 64, "D": 1536, "N": 16},
    ),
    _step_case(
        "step-heads",
        "selective_state_update fp32, one token of a Mamba-2 layer, H=24 P=64 N=128",
        {"B": 1, "H": 24, "P": 64, "N": 128},
        overhead=True,
    ),
    _scan_case(
        "scan-gpu",
        "selective_scan bf16, B=8 D=1536 L=4096 N=16, forward",
        _GPU,
        "bfloat16",
        baselines=("unbound", "associative", "mambapy"),
        devices=("cuda",),
    ),
    _scan_case(
        "scan-gpu-train",
        "selective_scan bf16, B=8 D=1536 L=4096 N=16, forward and backward",
        _GPU,
        "bfloat16",
        backward=True,
        baselines=("mambapy",),
        devices=("cuda",),
    ),
)
