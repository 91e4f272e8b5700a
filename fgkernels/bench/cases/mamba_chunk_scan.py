# SPDX-License-Identifier: Apache-2.0
"""Mamba-2's scan: the cases of mamba_chunk_scan_combined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import fgkernels

from ..implementations import baselines, candidate, double, forward, forward_backward
from ..registry import Call, Case, Inputs
from ..workloads import mamba_chunk_scan as work

FAMILY = "mamba_chunk_scan"
# What Mamba-2 layers ask for; our results don't depend on it.
CHUNK = 256


def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    return fgkernels.mamba_chunk_scan_combined(x, dt, A, B, C, CHUNK, D, z, bias, dt_softplus=True)


def _chunk_case(name: str, title: str, backward: bool = False, **options: Any) -> Case:
    """mamba_chunk_scan_combined with D, z, bias and softplus, forward or forward and backward."""
    leaves = len(work.NAMES)

    def make(function: Callable[..., Any]) -> Callable[[Inputs], Call]:
        return forward_backward(function, leaves, *work.NAMES) if backward else forward(function, *work.NAMES)

    return Case(
        FAMILY,
        name,
        title,
        shape={"B": 1, "L": 2048, "H": 24, "P": 64, "N": 128},
        tiny={"B": 2, "L": 2 * work.BLOCK, "H": 3, "P": 4, "N": 5},
        inputs=work.chunk_inputs(backward),
        outputs=("out", *(f"grad_{leaf}" for leaf in work.NAMES)) if backward else ("out",),
        # The recurrence itself, which the tests compare with, takes a minute in fp64.
        reference=double(make(work.blocks)),
        implementations=(candidate(make(_scan)), *baselines(make, {"blocks": work.blocks})),
        flops=work.chunk_train_flops if backward else work.chunk_flops,
        bytes=work.chunk_train_bytes if backward else work.chunk_bytes,
        grad_tolerance=1e-4,
        **options,
    )


CASES = (
    _chunk_case("chunk", "mamba_chunk_scan_combined fp32, B=1 L=2048 H=24 P=64 N=128, forward"),
    _chunk_case(
        "chunk-train",
        "mamba_chunk_scan_combined fp32, B=1 L=2048 H=24 P=64 N=128, forward and backward",
        backward=True,
    ),
)
