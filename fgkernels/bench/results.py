# SPDX-License-Identifier: Apache-2.0
"""From readings to a result file. The JSON document:

    schema        "fgkernels.bench/1"
    environment   date, cpu, gpu (null on the CPU), isa, build (compiler, flags), versions, load average at the start
    settings      threads, budget (s), rounds, peers, compile, memory, tiny, device ("cpu" | "cuda")
    cases         a list of records:
        family, name, title, shape, dtype, cache ("warm" | "cold"), backward, status ("ok" | "FAILED"), problem
        flops, bytes, intensity (FLOP per compulsory byte)
        updates         state updates of a selective scan where they are what the compute probe counts, else null
        input_bytes     size of the inputs, null in a failed case
        gate            name -> passed, errors by output, problem
        refused         name -> why it wasn't run
        limit           kind ("compute" | "memory" | null), unit, value (median of the probe between the rounds),
                        fma (1e9 FLOP or updates a second) and read (GB/s) before the rounds, problem; on a GPU these
                        are torch.matmul of 8192 x 8192 matrices, null for updates, and a copy, which counts bytes
                        read and written
        implementations name -> group; seconds (median, q1, q3, minimum, maximum, count); samples (seconds a call, one
                        per round, of slow baselines in the first rounds only); calls_per_sample; warm_call (an
                        untimed call preceded each timed one); rate (1e9 FLOP or updates a second); bandwidth (GB/s of
                        compulsory traffic);
                        of_limit (median, q1, q3 ... of the round's rate over the round's probe, or null);
                        memory (peak, returned, extra bytes, or null); memory_problem
        ratios          name -> median, q1, q3 ... of baseline over ours, inside each round of the baseline
        fastest         group -> name of its fastest member; "all": of eager, compiled and peer
        bars            metric, target, against, value, met (null: not measured)

Names in ``gate``, ``implementations`` and ``ratios`` are those of the implementations; a baseline that fails
the gate is in ``refused`` too. Units: seconds, bytes, 1e9 FLOP/s, 1e9 state updates/s, 1e9 bytes/s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import timing
from .registry import RIVALS, Case

if TYPE_CHECKING:
    from .runner import Settings

SCHEMA = "fgkernels.bench/1"
Record = dict[str, Any]


def _head(case: Case, settings: Settings) -> Record:
    shape = case.tiny if settings.tiny else case.shape
    flops, traffic = case.flops(shape), case.bytes(shape)
    return {
        "family": case.family,
        "name": case.name,
        "title": case.title,
        "shape": dict(shape),
        "dtype": case.dtype,
        "cache": case.cache,
        "backward": case.backward,
        "status": "ok",
        "problem": None,
        "flops": flops,
        "bytes": traffic,
        "intensity": flops / traffic,
        "updates": case.updates(shape) if case.updates else None,
        "input_bytes": None,
        "gate": {},
        "refused": {},
        "limit": {"kind": None, "unit": None, "value": None, "fma": None, "read": None, "problem": None},
        "implementations": {},
        "ratios": {},
        "fastest": {},
        "bars": [],
    }


def failed_record(case: Case, settings: Settings, problem: str, refused: dict[str, str]) -> Record:
    """The record of a case without timings."""
    return {**_head(case, settings), "status": "FAILED", "problem": problem, "refused": refused}


def build_record(case: Case, settings: Settings, raw: Record) -> Record:
    """Summaries, ratios and fractions of the limit from a worker's readings."""
    record = {key: raw[key] for key in ("gate", "refused", "input_bytes")}
    record = {**_head(case, settings), **record}
    name = case.candidate.name
    wrong = {key: verdict["problem"] for key, verdict in raw["gate"].items() if not verdict["passed"]}
    # A ratio to a wrong answer means nothing: a wrong baseline isn't timed, a wrong candidate fails the case.
    record["refused"].update({key: f"FAILED the correctness gate: {text}" for key, text in wrong.items()})
    if raw["timings"] is None:
        return {**record, "status": "FAILED", "problem": record["refused"].get(name, "no timing")}
    timings, limits = raw["timings"], raw["limits"]
    amount = record["updates"] or record["flops"]
    work = amount if limits["kind"] == "compute" else record["bytes"]
    readings = timings["limit"]
    record["limit"] = {
        **limits,
        "unit": {"compute": rate_unit(record), "memory": "GB/s"}.get(limits["kind"]),
        "value": timing.summarize(readings).median if readings else None,
    }
    groups = {item.name: item.group for item in case.implementations}
    for key, samples in timings["seconds"].items():
        summary = timing.summarize(samples)
        of_limit = [work / 1e9 / second / limit for second, limit in zip(samples, readings, strict=False)]
        record["implementations"][key] = {
            "group": groups[key],
            "seconds": summary.as_dict(),
            "samples": [float(f"{sample:.6g}") for sample in samples],
            "calls_per_sample": timings["calls_per_sample"][key],
            "warm_call": timings["warm"][key],
            "rate": amount / 1e9 / summary.median,
            "bandwidth": record["bytes"] / 1e9 / summary.median,
            "of_limit": timing.summarize(of_limit).as_dict() if of_limit else None,
            "memory": None,
            "memory_problem": None,
        }
        if key != name:
            record["ratios"][key] = timing.paired(samples, timings["seconds"][name][: len(samples)]).as_dict()
    record["fastest"] = _fastest(record)
    return record


def _fastest(record: Record) -> dict[str, str]:
    """Group -> its member with the smallest ratio; "all" spans the rivals."""
    ratios = {key: ratio["median"] for key, ratio in record["ratios"].items()}
    group = {key: record["implementations"][key]["group"] for key in ratios}
    best = {}
    for wanted in (*RIVALS, "own"):
        members = [key for key in ratios if group[key] == wanted]
        if members:
            best[wanted] = min(members, key=ratios.__getitem__)
    rivals = [best[wanted] for wanted in RIVALS if wanted in best]
    if rivals:
        best["all"] = min(rivals, key=ratios.__getitem__)
    return best


def judge(record: Record, case: Case, settings: Settings) -> None:
    """Fill in ``bars``; at tiny shapes they are left open."""
    record["bars"] = []
    for bar in case.bars:
        if bar.device != settings.device:
            continue
        value = _bar_value(record, bar.metric, bar.against, case.candidate.name)
        met = None
        if value is not None and not settings.tiny:
            met = value <= bar.target if bar.metric == "memory" else value >= bar.target
        entry = {"metric": bar.metric, "target": bar.target, "against": bar.against, "value": value, "met": met}
        record["bars"].append(entry)


def _bar_value(record: Record, metric: str, against: str, ours: str) -> float | None:
    implementations = record["implementations"]
    if ours not in implementations:
        return None
    if metric == "limit":
        of_limit = implementations[ours]["of_limit"]
        return of_limit["median"] if of_limit else None
    mine = implementations[ours]["memory"]
    if metric == "memory" and against == "inputs":
        return mine["extra"] / record["input_bytes"] if mine else None
    rival = record["fastest"].get({"fastest": "all"}.get(against, against), against)
    if rival not in implementations:
        return None
    if metric == "ratio":
        return record["ratios"][rival]["median"]
    theirs = implementations[rival]["memory"]
    if metric == "memory":
        return mine["extra"] / theirs["extra"] if mine and theirs and theirs["extra"] else None
    raise ValueError(f'metric: expected "ratio", "limit" or "memory", got {metric!r}')


def ours(record: Record) -> Record | None:
    """The entry of our op, or None in a failed case."""
    return next((item for item in record["implementations"].values() if item["group"] == "candidate"), None)


def one_line(record: Record) -> str:
    """A record for the terminal while the run goes on."""
    entry = ours(record)
    if record["status"] != "ok" or entry is None:
        return f"FAILED: {record['problem']}"
    parts = [seconds(entry["seconds"]["median"])]
    for group in (*RIVALS, "own"):
        if group in record["fastest"]:
            name = record["fastest"][group]
            parts.append(f"{record['ratios'][name]['median']:.2f}x {name}")
    if entry["of_limit"]:
        parts.append(f"{100 * entry['of_limit']['median']:.0f} % of the {record['limit']['kind']} limit")
    parts.append(f"{entry['seconds']['count']} rounds")
    return ", ".join(parts)


def rate_unit(record: Record) -> str:
    """Unit of a rate: a scan's is in state updates, and integer operations aren't FLOPs."""
    # A file of an earlier version has no updates.
    if record.get("updates"):
        return "G updates/s"
    return "GOP/s" if record["dtype"] == "int8" else "GFLOP/s"


def seconds(value: float) -> str:
    """A time with three digits and its unit."""
    unit, factor = next((pair for pair in (("s", 1.0), ("ms", 1e3)) if value * pair[1] >= 1), ("µs", 1e6))
    return f"{value * factor:.3g} {unit}"


def size(value: float) -> str:
    """Bytes with their binary unit."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1024:.0f} KiB"


def save(document: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    """Read a result file; ValueError where it isn't one of this schema."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA!r}, got {found!r}")
    return document
