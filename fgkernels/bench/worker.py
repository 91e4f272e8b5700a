# SPDX-License-Identifier: Apache-2.0
"""The process that measures one case: the gate and the timing of all implementations in turn, or one peak of memory.

It is a process of its own, so that a peer that crashes takes nothing with it; the note file names what was running.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import devices, gate, memory, registry, timing


def _failure(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _grad_mode(case: registry.Case) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if case.backward else torch.no_grad()


class Limits:
    """The device's limits for one case: which one binds, and its probe."""

    def __init__(self, case: registry.Case, shape: registry.Shape, device: devices.Device, threads: int) -> None:
        self.kind: str | None = None
        self.fma: float | None = None
        self.read: float | None = None
        self.problem: str | None = None
        self.probes: dict[str, Callable[[], float]] = {}
        if case.overhead:
            self.problem = "too small: the cost of a call is measured"
            return
        try:
            compute, read = device.probes(case, threads)
        except devices.NoLimits as error:
            self.problem = str(error)
            return
        self.fma, self.read = compute() if compute else None, read()
        binds = compute is not None and case.work(shape) / case.bytes(shape) >= self.fma / self.read
        self.kind = "compute" if binds else "memory"
        self.probes = {"limit": compute if binds else read}


def time_case(case: registry.Case, job: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Gate, then interleaved timing of everything that passed."""
    shape = case.tiny if job["tiny"] else case.shape
    device = devices.find(job["device"])
    inputs = device.place(case.inputs(shape))
    with _grad_mode(case):
        note("reference")
        expected = case.reference(inputs)
        verdicts, refused, calls, first = {}, {}, {}, {}
        for implementation in case.implementations:
            name = implementation.name
            if name not in job["names"]:
                continue
            note(name)
            try:
                call = implementation.prepare(inputs)
                start = time.perf_counter()
                output = call()
                if not implementation.compiles:
                    first[name] = time.perf_counter() - start
            except Exception as error:  # whatever it raises is reported
                refused[name] = _failure(error)
                continue
            wanted = implementation.reference(inputs) if implementation.reference else expected
            verdict = gate.check(case, output, wanted)
            del output, wanted
            verdicts[name] = verdict.as_dict()
            if verdict.passed:
                calls[name] = call
        del expected
        operands = [value for name, value in inputs.items() if not name.startswith("grad")]
        result: dict[str, Any] = {
            "gate": verdicts,
            "refused": refused,
            "input_bytes": memory.tensor_bytes(operands),
            "timings": None,
        }
        if case.candidate.name not in calls:
            return result
        note("timing")
        limits = Limits(case, shape, device, job["threads"])
        timings = timing.measure(
            calls,
            limits.probes,
            budget=job["budget"],
            rounds=job["rounds"],
            min_rounds=job["min_rounds"],
            flush=device.flusher() if case.cache == "cold" else None,
            timer=device.time_calls,
            known=first,
        )
    result["timings"] = {
        "seconds": timings.seconds,
        "limit": timings.probes.get("limit", []),
        "rounds": timings.rounds,
        "calls_per_sample": timings.repeats,
        "warm": timings.warm,
    }
    result["limits"] = {"kind": limits.kind, "fma": limits.fma, "read": limits.read, "problem": limits.problem}
    return result


def measure_memory(case: registry.Case, job: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Extra peak memory of one implementation in this process."""
    (name,) = job["names"]
    implementation = next(item for item in case.implementations if item.name == name)
    note(name)
    device = devices.find(job["device"])
    with _grad_mode(case):
        if not implementation.compiles:
            implementation.prepare(device.place(case.inputs(case.tiny)))()
        call = implementation.prepare(device.place(case.inputs(case.tiny if job["tiny"] else case.shape)))
        if implementation.compiles:
            # Compiling, which happens at the real shape, isn't the call's memory.
            call()
        try:
            return {"memory": device.measure_peak(call).as_dict()}
        except memory.MemoryNotMeasured as error:
            return {"memory": None, "problem": str(error)}


def main() -> None:
    """Run the job whose JSON file is the first argument."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    case = next(item for item in registry.load(job["module"]) if item.name == job["case"])
    note = Path(job["note"])
    run = {"time": time_case, "memory": measure_memory}[job["mode"]]
    result = run(case, job, lambda text: note.write_text(text, encoding="utf-8"))
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")
