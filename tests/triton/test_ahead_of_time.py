# SPDX-License-Identifier: Apache-2.0
"""Every kernel, compiled for GPUs that aren't here with the first configuration that its tuner would try there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fgkernels.triton

pytestmark = pytest.mark.skipif(fgkernels.triton.refusal() is not None, reason=str(fgkernels.triton.refusal()))

KIB = 1024
SHARED = {"sm_80": 163 * KIB, "sm_90": 227 * KIB, "gfx942": 64 * KIB}
INSTRUCTION = {"sm_80": "mma.sync", "sm_90": "wgmma", "gfx942": "mfma"}


@pytest.mark.parametrize("target", SHARED)
def test_compiled_for(target: str, tmp_path: Path) -> None:
    """One test per target, so that parallel runs compile once: in a process without the interpreter, nothing cached."""
    environment = {name: value for name, value in os.environ.items() if name != fgkernels.triton.INTERPRETER_VARIABLE}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "fgkernels.triton.ahead_of_time", "--json", target]
    folder = Path(fgkernels.__file__).parent.parent
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    check_every_form(facts)
    check_matrix_instructions(target, facts)
    for fact in facts:
        # The assembler may trade a few bytes for one more block per multiprocessor.
        allowed = 16 if fact["kernel"] == "gradient" else 0
        assert fact["spills"] <= allowed or "fp64" in fact["case"], fact
        assert fact["shared"] <= SHARED[target], fact
        assert fact["narrow_offsets"] == 0, f"tensors may have more than 2^31 elements: {fact}"


def check_every_form(facts: list[dict]) -> None:
    """Late interaction: one and both directions, packed, all dtypes and int8 documents. Sequences: every kernel."""
    assert {fact["kernel"] for fact in facts} == {
        *("match", "reduce", "gather", "scatter"),
        *("summary", "passing", "output", "gradient", "merge", "state_update", "forward", "backward", "update"),
        *("steps", "input_gradient", "pairs", "projection_gradient", "step_gradient"),
    }
    matches = [fact["case"] for fact in facts if fact["kernel"] == "match"]
    for words in (
        "bf16 D128",
        "bf16 D256",
        "fp16",
        "fp32",
        "fp64",
        "int8",
        "varlen",
        "late_interaction",
        "scores only",
    ):
        assert any(words in case for case in matches), words


def check_matrix_instructions(target: str, facts: list[dict]) -> None:
    """16-bit products run on the target's own matrix unit: on Hopper that is wgmma.

    float32 stays off NVIDIA's, which round it to 11 bits; AMD's do not.
    """
    products = [fact for fact in facts if fact["kernel"] in ("match", "scatter")]
    products += [
        fact
        for fact in facts
        if fact["case"].startswith("mamba_chunk_scan") and fact["kernel"] not in ("steps", "passing", "step_gradient")
    ]
    narrow = [fact for fact in products if not re.search("fp32|fp64", fact["case"])]
    assert len(narrow) >= 18
    for fact in narrow:
        assert set(fact["instructions"]) == {INSTRUCTION[target]}, fact
    for fact in products:
        if "fp32" in fact["case"] and target != "gfx942":
            assert fact["instructions"] == {}, fact
