# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers: a Mamba language model as it is, and on our operators by `patch_mamba`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..implementations import candidate
from ..registry import Bar, Call, Case, Implementation, Inputs, Shape
from ..workloads import transformers as work

FAMILY = "transformers"


def _model_case(
    name: str,
    title: str,
    length: int,
    run: Callable[[Callable[[Inputs], Any]], Callable[[Inputs], Call]],
    flops: Callable[[Shape], int],
    tokens: slice,
    target: float,
) -> Case:
    """One way to call the model: patched, and both slow paths of the model as it is."""
    return Case(
        FAMILY,
        name,
        title,
        shape={"B": 1, "L": length, "E": 768, "layers": 24, "V": 50280},
        tiny={"B": 2, "L": 12, "E": 32, "layers": 2, "V": 40},
        inputs=work.token_inputs,
        outputs=("logits",),
        reference=work.expected(tokens),
        implementations=(
            candidate(run(work.patched)),
            Implementation("unpatched", "eager", run(work.unpatched)),
            Implementation("unpatched, mambapy", "peer", run(work.with_mambapy), module="mambapy"),
        ),
        flops=flops,
        bytes=work.weight_bytes,
        # fp32 rounding through all layers, in another order each time.
        tolerance=1e-3,
        measure_memory=False,
        requires="transformers",
        bars=(Bar("ratio", target),),
    )


_TITLE = "transformers Mamba fp32, 768 wide, 24 layers, batch 1, "

CASES = (
    _model_case(
        "mamba-prefill",
        _TITLE + "prefill of 512 tokens",
        512,
        work.prefill,
        work.prefill_flops,
        slice(None, -1),
        5.0,
    ),
    # A token costs the same after any number of others.
    _model_case("mamba-decode", _TITLE + "one token after 64", 64, work.decode, work.decode_flops, slice(None), 1.3),
)
