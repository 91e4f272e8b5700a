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


@pytest.fixture(scope="module", params=SHARED)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict]]:
    """(target, facts) from a process without the interpreter, and with nothing in Triton's cache."""
    environment = {name: value for name, value in os.environ.items() if name != fgkernels.triton.INTERPRETER_VARIABLE}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    command = [sys.executable, "-m", "fgkernels.triton.ahead_of_time", "--json", request.param]
    folder = Path(fgkernels.__file__).parent.parent
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return request.param, json.loads(done.stdout)


def test_every_kernel_compiles(compiled: tuple[str, list[dict]]) -> None:
    """In every form that users meet: one and both directions, packed, all dtypes and int8 documents."""
    _, facts = compiled
    assert {fact["kernel"] for fact in facts} == {"match", "reduce", "gather", "scatter"}
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


def test_matrix_instructions(compiled: tuple[str, list[dict]]) -> None:
    """16-bit similarities and document gradients run on the target's own matrix unit: on Hopper that is wgmma."""
    target, facts = compiled
    products = [f for f in facts if f["kernel"] in ("match", "scatter") and not re.search("fp32|fp64", f["case"])]
    assert len(products) >= 10
    for fact in products:
        assert set(fact["instructions"]) == {INSTRUCTION[target]}, fact


def test_float32_keeps_its_precision(compiled: tuple[str, list[dict]]) -> None:
    """No NVIDIA matrix unit multiplies float32 without rounding it to 11 bits; AMD's does."""
    target, facts = compiled
    for fact in facts:
        if "fp32" in fact["case"] and target != "gfx942":
            assert fact["instructions"] == {}, fact


def test_no_spills_and_shared_memory_that_fits(compiled: tuple[str, list[dict]]) -> None:
    target, facts = compiled
    for fact in facts:
        assert fact["spills"] == 0, fact
        assert fact["shared"] <= SHARED[target], fact


def test_addresses_are_64_bit(compiled: tuple[str, list[dict]]) -> None:
    """Tensors may have more than 2^31 elements."""
    for fact in compiled[1]:
        assert fact["narrow_offsets"] == 0, fact
