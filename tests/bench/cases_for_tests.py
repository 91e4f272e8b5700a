# SPDX-License-Identifier: Apache-2.0
"""A family for tests of the harness: a sum of squares, right and wrong, and implementations that misbehave."""

from __future__ import annotations

import os
import signal
import time

import torch

from fgkernels.bench.registry import Case, Implementation


def _inputs(shape):
    return {"x": torch.arange(shape["N"], dtype=torch.float32), "grad": torch.ones(())}


def _crash(inputs):
    return lambda: os.kill(os.getpid(), signal.SIGSEGV)


def _raise(inputs):
    raise RuntimeError("it does not start\nand more lines")


def _allocate(inputs):
    def call():
        scratch = torch.ones(64 << 20, dtype=torch.uint8)
        return scratch[:1].float().sum() - 1 + (inputs["x"] ** 2).sum()

    return call


def _slow(inputs):
    def call():
        time.sleep(0.004)
        return (inputs["x"] ** 2).sum()

    return call


RIGHT = Implementation("ours", "candidate", lambda inputs: lambda: (inputs["x"] ** 2).sum())
WRONG = Implementation("ours", "candidate", lambda inputs: lambda: (inputs["x"] ** 2).sum() * 1.001)
SLOW = Implementation("eager slow", "eager", _slow)
WRONG_PEER = Implementation("wrong peer", "peer", lambda inputs: lambda: inputs["x"].sum())
CRASHING_PEER = Implementation("crashing peer", "peer", _crash)
RAISING = Implementation("raising", "compiled", _raise)
REFUSED = Implementation("refused", "peer", _raise, refuse=lambda shape: f"N = {shape['N']} is too small")
ABSENT = Implementation("absent", "peer", _raise, module="a_module_that_is_not_there")
GREEDY = Implementation("ours", "candidate", _allocate)


def _case(name: str, *implementations: Implementation, **options: object) -> Case:
    return Case(
        "test",
        name,
        name,
        shape={"N": 1000},
        tiny={"N": 4},
        inputs=_inputs,
        outputs=("total",),
        reference=lambda inputs: ((inputs["x"].double() ** 2).sum(),),
        implementations=implementations,
        flops=lambda shape: 2 * shape["N"],
        bytes=lambda shape: 4 * shape["N"],
        **options,
    )


CASES = (
    _case("right", RIGHT, SLOW, WRONG_PEER, CRASHING_PEER, RAISING, REFUSED, ABSENT),
    _case("wrong", WRONG, SLOW),
    _case("greedy", GREEDY, SLOW),
    _case("crash", Implementation("ours", "candidate", _crash), SLOW),
)
