# SPDX-License-Identifier: Apache-2.0
"""``fgkernels bench``: our ops against what people use instead, beside the limits of the machine.

Correctness is checked first; then our op and the baselines are timed in turn in one process, with the machine's limits
probed between the rounds. :mod:`fgkernels.bench.results` documents the JSON file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (1 where a case failed the correctness gate)."""
    from .cli import main as run

    return run(argv)


def quick_table(seconds: float = 20.0) -> list[dict[str, Any]]:
    """Measure the short list within about ``seconds`` and return one row a case.

    Without torch.compile and memory. Each row: name, title, status ("ok" or "FAILED"), problem, seconds (median of our
    op), ratios (baseline's name -> its time over ours), rate and its unit, of_limit (fraction of the limit measured
    between the rounds, or None), limit ("compute", "memory" or None).
    """
    from .cli import quick_rows

    return quick_rows(seconds)


__all__ = ["main", "quick_table"]
