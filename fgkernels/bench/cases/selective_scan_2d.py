# SPDX-License-Identifier: Apache-2.0
"""Scans over feature maps: the cases of selective_scan_2d."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..implementations import candidate, chain, compiled, double, forward, forward_backward
from ..registry import Bar, Call, Case, Implementation, Inputs
from ..workloads import selective_scan_2d as work

FAMILY = "selective_scan_2d"
TINY = {"B": 2, "E": 3, "H": 3, "W": 4, "N": 2}
LOOP, COMPOSED = "eager loop", "our cross_scan, scan, cross_merge"


def _map_case(name: str, title: str, states: int, backward: bool = False, **options: Any) -> Case:
    """selective_scan_2d with weights per direction, of one 56 x 56 map; the others get delta, B and C in scan order."""
    leaves = len(work.NAMES)
    outputs = ("out", *(f"grad_{leaf}" for leaf in work.NAMES)) if backward else ("out",)

    def make(function: Callable[..., Any]) -> Callable[[Inputs], Call]:
        return forward_backward(function, leaves, *work.NAMES) if backward else forward(function, *work.NAMES)

    def ordered(function: Callable[..., Any]) -> Callable[[Inputs], Call]:
        return chain(work.in_scan_order, make(function))

    # Gradients of delta, B and C come in the order of delta, B and C.
    expected = double(ordered(work.map_unbound)) if backward else None
    others = (
        Implementation(LOOP, "eager", ordered(work.map_loop)),
        Implementation("eager unbound loop", "eager", ordered(work.map_unbound)),
        compiled("associative scan", ordered, work.map_associative),
        Implementation(COMPOSED, "own", ordered(work.composed)),
    )
    return Case(
        FAMILY,
        name,
        title,
        shape={"B": 1, "E": 192, "H": 56, "W": 56, "N": states},
        tiny={**TINY, "N": min(states, TINY["N"])},
        inputs=work.map_inputs(backward),
        outputs=outputs,
        reference=double(make(work.map_in_map_order)),
        implementations=(
            candidate(make(work.fused)),
            # The backward of the loop writes all steps of an array for every step: minutes here.
            *(replace(other, reference=expected) for other in others if not (backward and other.name == LOOP)),
        ),
        flops=work.map_train_flops if backward else work.map_flops,
        bytes=work.map_train_bytes if backward else work.map_bytes,
        probe="exp_fma",
        updates=work.map_train_updates if backward else work.map_updates,
        grad_tolerance=1e-4,
        **options,
    )


SHARED = Case(
    FAMILY,
    "scan2d-orders",
    "selective_scan_2d fp32, Mamba-FSCIL, four orders that share weights, B=1 D=640 5×5 N=256, forward",
    shape={"B": 1, "E": 640, "H": 5, "W": 5, "N": 256},
    tiny=TINY,
    inputs=work.shared_inputs,
    outputs=("out",),
    reference=double(forward(work.shared_loop, *work.SHARED_NAMES)),
    implementations=(
        candidate(forward(work.fused_shared, *work.SHARED_NAMES)),
        Implementation(LOOP, "eager", forward(work.shared_loop, *work.SHARED_NAMES)),
        compiled("loop", lambda function: forward(function, *work.SHARED_NAMES), work.shared_loop),
        Implementation("our scan, cross_merge", "own", forward(work.composed_shared, *work.SHARED_NAMES)),
    ),
    flops=work.map_flops,
    bytes=work.shared_bytes,
    probe="exp_fma",
    updates=work.map_updates,
    bars=(Bar("ratio", 40, LOOP),),
)

_TITLE = "selective_scan_2d fp32, four directions, E=192 56×56 N={}, {}"
_TRAIN = "forward and backward"

CASES = (
    _map_case("scan2d", _TITLE.format(16, "forward"), 16, bars=(Bar("ratio", 1.7, COMPOSED), Bar("ratio", 50, LOOP))),
    _map_case("scan2d-train", _TITLE.format(16, _TRAIN), 16, backward=True, bars=(Bar("ratio", 1.7, COMPOSED),)),
    _map_case("scan2d-one", _TITLE.format(1, "forward"), 1, bars=(Bar("ratio", 1.7, COMPOSED), Bar("ratio", 50, LOOP))),
    _map_case("scan2d-one-train", _TITLE.format(1, _TRAIN), 1, backward=True, bars=(Bar("ratio", 1.7, COMPOSED),)),
    SHARED,
)
