# SPDX-License-Identifier: Apache-2.0
"""A result document as tables, and the files of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import results

GROUP_TITLES = {
    "eager": "PyTorch eager",
    "compiled": "torch.compile",
    "peer": "peer package",
    "own": "our op, sister case",
}
# Load per core at the start of a run, above which a report warns.
BUSY = 0.5
METHOD = (
    "Before anything is timed, our op and every baseline are compared with an fp64 reference on the shape that is "
    "timed; one that fails gets no time. Then all run in turn in one process (A B C, A B C, ...), and between the "
    "rounds a probe measures what the machine can do at that moment: fused multiply-adds a second in the same "
    "type on the same threads, or bytes read a second; for a selective scan, state updates a second, each an "
    "exponential with the multiply-adds that go with it. A ratio is the baseline's time over ours within a round; "
    "the table gives the median of the rounds, brackets give quartiles; a call of over two seconds takes part in the "
    "first rounds only, at least two. Where an expression can be written in "
    "several ways, the fastest one counts. FLOPs and bytes are the compulsory ones of the formula, so padding and "
    "intermediate tensors don't count as work. Warm: an untimed call of the same implementation comes first "
    "unless it takes over a quarter of a second; cold: more memory than the last-level "
    "cache holds is overwritten first. Extra memory is the highest resident size of a fresh process during one "
    "call, less the inputs and what the call returns. On a GPU time is that between two events on the stream, the "
    "limits are torch.matmul of 8192 × 8192 matrices in the same type and a copy (bytes read and written), and extra "
    "memory is the peak of torch's allocator."
)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # Numbers read best aligned right; the first column is text.
    lines = [
        "| " + " | ".join(header) + " |",
        "|" + "|".join([" --- "] + [" ---: "] * (len(header) - 1)) + "|",
    ]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def times(value: float) -> str:
    """`3.97×`, `115×`."""
    return f"{value:.2f}×" if value < 100 else f"{value:.0f}×"


def ratio_text(ratio: dict[str, float], quartiles: bool = False) -> str:
    text = times(ratio["median"])
    return f"{text} [{times(ratio['q1'])}–{times(ratio['q3'])}]" if quartiles else text


def limit_text(record: results.Record, entry: results.Record) -> str:
    """`96 % of 117 GFLOP/s`, or why there is no limit."""
    if not entry["of_limit"]:
        return "–"
    # A limit in state updates is a small number.
    value = record["limit"]["value"]
    shown = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return f"{100 * entry['of_limit']['median']:.0f} % of {shown} {record['limit']['unit']}"


def rate_text(record: results.Record, entry: results.Record) -> str:
    if record["limit"]["kind"] == "memory":
        return f"{entry['bandwidth']:.3g} GB/s"
    return f"{entry['rate']:.3g} {results.rate_unit(record)}"


def memory_text(record: results.Record) -> str:
    """Ours and that of the eager baseline: `1.2 MiB (eager 410 MiB)`."""
    entry = results.ours(record)
    if not entry or not entry["memory"]:
        return "not measured"
    eager = record["implementations"].get(record["fastest"].get("eager", ""))
    other = f" (eager {results.size(eager['memory']['extra'])})" if eager and eager["memory"] else ""
    return results.size(entry["memory"]["extra"]) + other


def bar_text(bar: results.Record) -> str:
    """`2.5× fastest: met`."""
    verdict = {True: "met", False: "MISSED", None: "not measured"}[bar["met"]]
    if bar["metric"] == "ratio":
        return f"≥ {bar['target']:.2g}× {bar['against']}: {verdict}"
    if bar["metric"] == "limit":
        return f"≥ {100 * bar['target']:.0f} % of limit: {verdict}"
    if bar["against"] == "inputs":
        return f"memory ≤ {bar['target']:g}× the inputs: {verdict}"
    return f"memory ≤ {100 * bar['target']:.0f} % of {bar['against']}'s: {verdict}"


def machine_text(document: dict[str, Any]) -> str:
    """One line on what the numbers were measured on."""
    env, settings = document["environment"], document["settings"]
    gpu = env.get("gpu")
    served = ", ".join(sorted(set(env["backends"].values())))
    machine = [f"{gpu['name']} (CUDA {gpu['cuda']})", f"our ops on {served}"] if gpu else []
    parts = [
        *machine,
        f"{env['cpu']} ({env['cores']} cores)",
        f"{settings['threads']} threads",
        f"ISA level {env['isa'] or 'unknown'}",
        f"torch {env['torch']}",
        f"fgkernels {env['fgkernels']}",
        env["date"][:10],
    ]
    return ", ".join([*parts, *warnings(document)])


def warnings(document: dict[str, Any]) -> list[str]:
    """What makes the numbers less than a measurement of our kernels on a quiet machine."""
    env, found = document["environment"], []
    if env["load_average"] is not None and env["load_average"] > BUSY * env["cores"]:
        found.append(f"BUSY MACHINE: load {env['load_average']:.1f} at the start")
    served = sorted(set(env["backends"].values()) - {"cpu", "cuda", "triton"})
    if served:
        found.append(f"OUR OPS WERE SERVED BY {', '.join(served).upper()}, not by a kernel")
    if document["settings"]["tiny"]:
        found.append("TINY SHAPES: a check of the harness, not a measurement")
    return found


def case_title(record: results.Record) -> str:
    return record["title"] + (", cold cache" if record["cache"] == "cold" else "")


def markdown(document: dict[str, Any], columns: Sequence[str] | None = None) -> str:
    """The table of a document; ``columns`` picks some of ``COLUMNS`` by key."""
    unknown = set(columns or ()) - set(COLUMNS)
    if unknown:
        raise ValueError(f"columns: expected some of {list(COLUMNS)}, got {sorted(unknown)}")
    keys = list(columns or COLUMNS)
    rows = []
    for record in document["cases"]:
        entry = results.ours(record)
        if record["status"] != "ok" or entry is None:
            rows.append([case_title(record), f"FAILED: {record['problem']}"] + [""] * (len(keys) - 1))
        else:
            rows.append([case_title(record)] + [COLUMNS[key][1](record, entry) for key in keys])
    table = _table(["case"] + [COLUMNS[key][0] for key in keys], rows)
    return f"{table}\n\n{machine_text(document)}"


def _group_cell(group: str) -> Callable[[results.Record, results.Record], str]:
    def cell(record: results.Record, entry: results.Record) -> str:
        name = record["fastest"].get(group)
        if name is None:
            return "–"
        text = ratio_text(record["ratios"][name])
        return text if group in ("eager", "compiled") else f"{text} {name}"

    return cell


COLUMNS: dict[str, tuple[str, Callable[[results.Record, results.Record], str]]] = {
    "time": ("ours", lambda record, entry: results.seconds(entry["seconds"]["median"])),
    "eager": ("vs eager", _group_cell("eager")),
    "compiled": ("vs torch.compile", _group_cell("compiled")),
    "peer": ("vs peer", _group_cell("peer")),
    "own": ("vs our sister case", _group_cell("own")),
    "rate": ("rate", rate_text),
    "limit": ("of the limit", limit_text),
    "memory": ("extra peak memory", lambda record, entry: memory_text(record)),
    "bars": ("bars", lambda record, entry: "; ".join(bar_text(bar) for bar in record["bars"]) or "–"),
}


def details(record: results.Record) -> list[list[str]]:
    """All implementations of a case: name, time with quartiles, ratio with quartiles, rate, of the limit, memory."""
    rows = []
    for name, entry in record["implementations"].items():
        timed, ratio, memory = entry["seconds"], record["ratios"].get(name), entry["memory"]
        rows.append(
            [
                name,
                f"{results.seconds(timed['median'])} [{results.seconds(timed['q1'])}–{results.seconds(timed['q3'])}]",
                ratio_text(ratio, quartiles=True) if ratio else "–",
                rate_text(record, entry),
                f"{100 * entry['of_limit']['median']:.0f} %" if entry["of_limit"] else "–",
                results.size(memory["extra"]) if memory else "–",
            ]
        )
    return rows


def quick_row(record: results.Record) -> dict[str, Any]:
    """A record reduced to what a short table needs."""
    entry = results.ours(record)
    row = {key: record[key] for key in ("name", "title", "status", "problem")}
    return {
        **row,
        "seconds": entry["seconds"]["median"] if entry else None,
        "ratios": {name: ratio["median"] for name, ratio in record["ratios"].items()},
        "rate": entry["rate"] if entry else None,
        "unit": results.rate_unit(record),
        "of_limit": entry["of_limit"]["median"] if entry and entry["of_limit"] else None,
        "limit": record["limit"]["kind"],
    }


def _change(old: dict[str, float] | None, new: dict[str, float] | None, percent: bool) -> str:
    if not old or not new:
        return "–"
    show = (lambda value: f"{100 * value:.0f} %") if percent else (lambda value: f"{value:.2f}×")
    apart = new["q1"] > old["q3"] or new["q3"] < old["q1"]
    word = ("better" if new["median"] > old["median"] else "worse") if apart else "within noise"
    return f"{show(old['median'])} → {show(new['median'])} ({word})"


def compare(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Ratios and fractions of the limit, earlier and now; "within noise" where the quartile ranges overlap."""
    before = {(record["family"], record["name"]): record for record in old["cases"]}
    rows = []
    for record in new["cases"]:
        earlier = before.get((record["family"], record["name"]))
        if earlier is None or earlier["shape"] != record["shape"]:
            rows.append([case_title(record), "no such case before", ""])
            continue
        rival = record["fastest"].get("all")
        mine, theirs = results.ours(record), results.ours(earlier)
        rows.append(
            [
                case_title(record),
                _change(earlier["ratios"].get(rival), record["ratios"].get(rival), percent=False) + f" {rival or ''}",
                _change(theirs and theirs["of_limit"], mine and mine["of_limit"], percent=True),
            ]
        )
    table = _table(["case", "ratio to the fastest baseline of now", "of the limit"], rows)
    return f"{table}\n\nbefore: {machine_text(old)}\nnow: {machine_text(new)}"


def write(document: dict[str, Any], folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Write results.json, results.md, results.html and, where matplotlib is installed, results.png."""
    from . import chart, page

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"results.{suffix}" for suffix in ("json", "md", "html")]
    results.save(document, paths[0])
    paths[1].write_text(markdown(document) + "\n", encoding="utf-8")
    paths[2].write_text(page.html(document), encoding="utf-8")
    try:
        paths.append(chart.png(document, folder / "results.png"))
    except chart.MatplotlibMissing as error:
        say(str(error))
    return paths
