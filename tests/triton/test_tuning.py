# SPDX-License-Identifier: Apache-2.0
"""The way to a GPU, as far as it goes without one: what the tuner is given and tries, and what would be launched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fgkernels.triton

pytestmark = pytest.mark.skipif(fgkernels.triton.refusal() is not None, reason=str(fgkernels.triton.refusal()))

# A device with 100 KiB of shared memory per block, a clock that favours the second configuration, and no launch.
PROGRAM = """
import contextlib, json, torch
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction
from fgkernels.triton import device
from fgkernels.triton.late_interaction import KERNELS

device.shared_memory = lambda index: 100 * 1024
torch.accelerator.current_device_index = lambda: 0
torch.accelerator.device_index = lambda index: contextlib.nullcontext()
tried, launched = [], []

def bench(self, *args, config, **rest):
    tried.append([self.fn.fn.__name__, config.kwargs, config.num_warps, config.num_stages])
    return 1.0 if len(tried) != 2 else 0.5

def run(self, *args, grid, warmup, **named):
    missing = [parameter.name for parameter in self.params if parameter.name not in named]
    launched.append([self.fn.__name__, grid(named), named.get("BLOCK_N"), missing])

Autotuner._bench, JITFunction.run = bench, run
queries, documents = (torch.empty(n, 200, 256, dtype=torch.bfloat16, device="meta") for n in (8, 16))
for _ in range(2):
    KERNELS["maxsim_fwd"](queries, documents, None, None, None, False, False, False)
print(json.dumps([tried, launched]))
"""


def test_tuner_and_launch() -> None:
    environment = {name: value for name, value in os.environ.items() if name != fgkernels.triton.INTERPRETER_VARIABLE}
    folder = Path(fgkernels.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    tried, launched = json.loads(done.stdout)
    # 128 rows of 256 bfloat16 take 64 KiB, which leaves 36 KiB for the columns of all stages.
    assert {name for name, *_ in tried} == {"match_kernel"}
    assert len(tried) >= 2, "there has to be a choice"
    assert all(blocks["BLOCK_N"] * 512 * stages <= 36 * 1024 for _, blocks, _, stages in tried)
    assert len({json.dumps(entry) for entry in tried}) == len(tried), "the second call tunes nothing again"
    assert [name for name, *_ in launched] == ["match_kernel", "reduce_kernel"] * 2
    assert all(missing == [] for *_, missing in launched)
    assert launched[0][2] == tried[1][1]["BLOCK_N"], "the fastest is launched"
    assert launched[0][1][0] % 13 == 0, "13 tiles of 128 rows for each group of documents"
