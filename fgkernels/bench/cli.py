# SPDX-License-Identifier: Apache-2.0
"""The command line of ``fgkernels bench``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import devices, registry, report, results
from .runner import Settings, run

QUICK_BUDGET_SECONDS = 3.0
QUICK_ROUNDS = 3
# Starting a worker, making inputs and the gate, on two cores.
QUICK_OVERHEAD_SECONDS = 4.0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fgkernels bench",
        description="Times our ops and their alternatives in turn, once they agree, beside the machine's limits.",
    )
    choose = parser.add_argument_group("what")
    choose.add_argument("--family", action="append", default=[], help="an op family (repeatable; default: all)")
    choose.add_argument("--case", action="append", default=[], metavar="GLOB", help="cases by name (repeatable)")
    choose.add_argument("--list", action="store_true", help="list the cases and stop")
    choose.add_argument("--quick", action="store_true", help="a short list, few rounds, no torch.compile, no memory")
    choose.add_argument("--no-peers", action="store_true", help="leave other packages out")
    choose.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    choose.add_argument("--no-memory", action="store_true", help="leave extra peak memory out")
    how = parser.add_argument_group("how")
    how.add_argument("--device", choices=devices.DEVICES, default="cpu", help="where tensors live (default: cpu)")
    how.add_argument("--threads", type=_positive, default=os.cpu_count() or 1, help="threads (default: all cores)")
    how.add_argument("--rounds", type=_positive, help="a fixed number of rounds instead of a budget")
    how.add_argument("--budget", type=float, help="seconds of rounds per case (default: 12, quick: 3)")
    how.add_argument("--tiny", action="store_true", help="tiny shapes: a check of the harness, not a measurement")
    out = parser.add_argument_group("output")
    out.add_argument(
        "--out", type=Path, default=Path("bench-output"), help="folder for results (default: bench-output)"
    )
    out.add_argument("--json", action="store_true", help="print the JSON document instead of the table")
    out.add_argument("--compare", type=Path, metavar="OLD.JSON", help="print the change against an earlier run")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        threads=options.threads,
        budget=options.budget or (QUICK_BUDGET_SECONDS if options.quick else Settings.budget),
        rounds=options.rounds,
        min_rounds=QUICK_ROUNDS if options.quick else Settings.min_rounds,
        peers=not options.no_peers,
        compile=not (options.no_compile or options.quick),
        memory=not (options.no_memory or options.quick),
        tiny=options.tiny,
        device=options.device,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        selected = registry.select(options.family, options.case, options.quick, options.device)
        old = results.load(options.compare) if options.compare else None
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if not selected:
        parser.error(f"--case: no case matches {options.case}")
    if options.list:
        for _, case in selected:
            print(f"{case.family}/{case.name:<20} {case.cache:<5} {case.title}")
        return 0
    try:
        devices.find(options.device)
    except ValueError as error:
        parser.error(f"--{error}")
    document = run(selected, _settings(options), _say)
    written = report.write(document, options.out, _say)
    if options.json:
        print(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        print("\n" + report.markdown(document))
        if old:
            print("\n" + report.compare(old, document))
        print("\n" + "\n".join(f"{path}" for path in written))
    return 1 if any(record["status"] != "ok" for record in document["cases"]) else 0


def quick_rows(seconds: float) -> list[dict[str, Any]]:
    """The rows of :func:`fgkernels.bench.quick_table`."""
    selected = registry.select(quick=True)
    budget = max(0.5, seconds / len(selected) - QUICK_OVERHEAD_SECONDS)
    settings = Settings(
        threads=os.cpu_count() or 1, budget=budget, min_rounds=QUICK_ROUNDS, compile=False, memory=False
    )
    return [report.quick_row(record) for record in run(selected, settings)["cases"]]
