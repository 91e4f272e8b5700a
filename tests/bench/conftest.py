# SPDX-License-Identifier: Apache-2.0
"""A document built from made-up readings, so that reports are tested without timing anything."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fgkernels.bench import registry, results
from fgkernels.bench.runner import Settings

SETTINGS = Settings(threads=2)
ENVIRONMENT = {
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "Example CPU <9000>",
    "cores": 2,
    "last_level_cache_bytes": 32 << 20,
    "system": "Linux x86_64",
    "isa": "avx512",
    "build": {"compiler": "gcc 12.2.0"},
    "backends": {"maxsim": "cpu"},
    "fgkernels": "0.1.0",
    "python": "3.11.0",
    "torch": "2.13.0",
    "packages": {"numpy": "2.0", "maxsim-cpu": None},
    "load_average": 0.1,
}


def reading(case: registry.Case, slower: dict[str, float], rounds: int = 9, share: float = 0.9) -> dict[str, Any]:
    """What a worker returns for a case whose baselines are ``slower[group]`` times slower than our op.

    Our op reaches ``share`` of the limit. The machine drifts by 30 % from round to round, for all alike.
    """
    draw = random.Random(case.name)
    drift = [draw.uniform(1.0, 1.3) for _ in range(rounds)]
    fma, read = 120.0, 20.0
    compute = case.work(case.shape) / case.bytes(case.shape) >= fma / read
    limit = fma if compute else read
    work = case.work(case.shape) if compute else case.bytes(case.shape)
    ours = work / 1e9 / limit / share
    seconds = {}
    for position, item in enumerate(case.implementations):
        # The second way to write an expression is a little slower.
        factor = slower.get(item.group, 1.0) * (1 + 0.01 * position if item.group != "candidate" else 1)
        if item.group == "candidate" or item.group in slower:
            seconds[item.name] = [ours * factor * change for change in drift]
    return {
        "gate": {name: {"passed": True, "errors": {"scores": 1e-7}, "problem": None} for name in seconds},
        "refused": {},
        "input_bytes": 1 << 20,
        "timings": {
            "seconds": seconds,
            "limit": [] if case.overhead else [limit / change for change in drift],
            "rounds": rounds,
            "calls_per_sample": dict.fromkeys(seconds, 1),
            "warm": dict.fromkeys(seconds, True),
        },
        "limits": {
            "kind": None if case.overhead else "compute" if compute else "memory",
            "fma": fma,
            "read": read,
            "problem": "too small" if case.overhead else None,
        },
    }


def make_document(slower: dict[str, float]) -> dict[str, Any]:
    records = []
    for _, case in registry.select(["late_interaction"]):
        record = results.build_record(case, SETTINGS, reading(case, slower))
        for name, megabytes in (("candidate", 2), ("eager", 400), ("compiled", 300)):
            member = record["fastest"].get(name, case.candidate.name)
            if case.measure_memory:
                peak = megabytes << 20
                record["implementations"][member]["memory"] = {"peak": peak, "returned": 0, "extra": peak}
        results.judge(record, case, SETTINGS)
        records.append(record)
    settings = {name: getattr(SETTINGS, name) for name in SETTINGS.__dataclass_fields__}
    return {"schema": results.SCHEMA, "environment": ENVIRONMENT, "settings": settings, "cases": records}


@pytest.fixture(scope="session")
def document() -> dict[str, Any]:
    """All cases of late_interaction, eager 4, compiled 3, the peer 3.5 times slower than our op."""
    return make_document({"eager": 4.0, "compiled": 3.0, "peer": 3.5, "own": 2.2})
