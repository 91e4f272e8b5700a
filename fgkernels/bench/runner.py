# SPDX-License-Identifier: Apache-2.0
"""Runs cases: one worker process times a case, further ones measure memory, and the readings become a record."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import environment, memory, results
from .registry import RIVALS, Case, Implementation

WORKER_TIMEOUT_SECONDS = 1800


@dataclass(frozen=True)
class Settings:
    """How to measure. ``rounds`` None: as many as fit ``budget`` seconds a case, at least ``min_rounds``."""

    threads: int
    budget: float = 12.0
    rounds: int | None = None
    min_rounds: int = 5
    peers: bool = True
    compile: bool = True
    memory: bool = True
    tiny: bool = False
    device: str = "cpu"


class WorkerFailed(RuntimeError):
    """A worker ended without a result. ``running`` names what it was doing."""

    def __init__(self, reason: str, running: str) -> None:
        super().__init__(reason)
        self.running = running


def _worker_environment(threads: int) -> dict[str, str]:
    variables = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        variables[name] = str(threads)
    # No pool of compiler processes stays behind to disturb the timing.
    variables["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    root = str(Path(__file__).resolve().parents[2])
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [root, variables.get("PYTHONPATH")]))
    return variables


def _ending(code: int, stderr: str) -> str:
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"ended with code {code}"


def run_worker(
    mode: str, module: str, case: Case, implementations: Iterable[Implementation], settings: Settings
) -> dict[str, Any]:
    """One worker's result; raises WorkerFailed where it ends without one."""
    chosen = list(implementations)
    preload = sorted({item.module for item in chosen if item.module})
    # Peers come before torch: their runtimes clash with torch's when loaded after it.
    code = "".join(f"import {name}\n" for name in preload) + "from fgkernels.bench.worker import main\nmain()\n"
    variables = _worker_environment(settings.threads)
    if mode == "memory" and settings.device == "cpu":
        variables.update(memory.ALLOCATOR_ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="fgkernels-bench-") as folder:
        files = {name: Path(folder, name) for name in ("job", "result", "note")}
        job = {
            "mode": mode,
            "module": module,
            "case": case.name,
            "names": [item.name for item in chosen],
            "threads": settings.threads,
            "budget": settings.budget,
            "rounds": settings.rounds,
            "min_rounds": settings.min_rounds,
            "tiny": settings.tiny,
            "device": settings.device,
            "result": str(files["result"]),
            "note": str(files["note"]),
        }
        files["job"].write_text(json.dumps(job), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-c", code, str(files["job"])],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=WORKER_TIMEOUT_SECONDS,
            )
            reason = _ending(done.returncode, done.stderr) if done.returncode else "left no result"
        except subprocess.TimeoutExpired:
            reason = f"took over {WORKER_TIMEOUT_SECONDS} s"
        if not files["result"].exists():
            running = files["note"].read_text(encoding="utf-8") if files["note"].exists() else "starting"
            raise WorkerFailed(reason, running)
        return json.loads(files["result"].read_text(encoding="utf-8"))


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _sort_out(case: Case, settings: Settings) -> tuple[list[Implementation], dict[str, str]]:
    """The implementations to run, and name -> reason of those that can't be."""
    shape = case.tiny if settings.tiny else case.shape
    chosen, refused = [], {}
    for item in case.implementations:
        if item.group == "peer" and not settings.peers or item.group == "compiled" and not settings.compile:
            continue
        reason = item.refuse(shape)
        if reason is None and settings.device not in item.devices:
            reason = f"computes on {', '.join(item.devices)} only"
        if reason is None and item.module and not _installed(item.module):
            reason = f"{item.module} isn't installed"
        if reason:
            refused[item.name] = reason
        else:
            chosen.append(item)
    return chosen, refused


def _without(chosen: list[Implementation], running: str) -> list[Implementation]:
    """What is left to try after a crash: all but the culprit; a crash while timing or starting is put on the peers."""
    left = [item for item in chosen if item.name != running]
    if len(left) == len(chosen):
        left = [item for item in chosen if item.group != "peer"]
    return left


def run_case(module: str, case: Case, settings: Settings) -> dict[str, Any]:
    """Measure one case and return its record (see :mod:`fgkernels.bench.results`)."""
    chosen, refused = _sort_out(case, settings)
    while True:
        try:
            raw = run_worker("time", module, case, chosen, settings)
            break
        except WorkerFailed as error:
            left = _without(chosen, error.running)
            if case.candidate not in left or len(left) == len(chosen):
                return results.failed_record(case, settings, f"{error} (while: {error.running})", refused)
            refused.update({item.name: str(error) for item in chosen if item not in left})
            chosen = left
    raw["refused"] = {**refused, **raw["refused"]}
    record = results.build_record(case, settings, raw)
    if record["status"] == "ok" and settings.memory and case.measure_memory:
        _add_memory(record, module, case, settings)
    results.judge(record, case, settings)
    return record


def _add_memory(record: dict[str, Any], module: str, case: Case, settings: Settings) -> None:
    """Peaks of our op and of the fastest baseline of each kind."""
    names = {case.candidate.name, *(name for group, name in record["fastest"].items() if group in RIVALS)}
    for item in case.implementations:
        if item.name not in names:
            continue
        entry = record["implementations"][item.name]
        try:
            measured = run_worker("memory", module, case, [item], settings)
        except WorkerFailed as error:
            measured = {"memory": None, "problem": str(error)}
        entry["memory"], entry["memory_problem"] = measured["memory"], measured.get("problem")


def run(
    selected: list[tuple[str, Case]], settings: Settings, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Measure all selected cases; ``progress`` gets one line before and one after each.

    A case that requires a package is left out where that isn't installed, or where ``settings`` leave peers out.
    """
    document = {
        "schema": results.SCHEMA,
        "environment": environment.collect(settings.device),
        "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
        "cases": [],
    }
    for index, (module, case) in enumerate(selected, 1):
        progress(f"[{index}/{len(selected)}] {case.family}/{case.name}: {case.title}")
        if case.requires and not (settings.peers and _installed(case.requires)):
            progress(f"    left out: it needs {case.requires}" + ("" if settings.peers else ", and peers are left out"))
            continue
        record = run_case(module, case, settings)
        document["cases"].append(record)
        progress("    " + results.one_line(record))
    return document
