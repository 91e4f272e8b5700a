# SPDX-License-Identifier: Apache-2.0
"""Results in words and plain-text tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .evaluation import Evaluation
from .exporting import ExportRow

MEASURES = {
    "image_to_text@1": "right caption first (image to text, recall@1)",
    "image_to_text@5": "right caption in the first five (recall@5)",
    "text_to_image@1": "right scene first (text to image, recall@1)",
    "text_to_image@5": "right scene in the first five (recall@5)",
}


def percent(share: float) -> str:
    """0.9123 -> 91.2 %."""
    return f"{100 * share:.1f} %"


def clearly_better(a: float, b: float, count: int) -> int:
    """1 if share `a` of `count` trials is above `b` by more than two standard errors, -1 if below, else 0."""
    error = math.sqrt((a * (1 - a) + b * (1 - b)) / count)
    return 0 if abs(a - b) <= 2 * error else (1 if a > b else -1)


def verdict(filip: Evaluation, clip: Evaluation) -> str:
    """Which model is better at what, in two or three sentences."""
    clauses: dict[int, list[str]] = {1: [], 0: [], -1: []}
    tasks = {"finding the caption of a scene": "image_to_text@1", "finding the scene of a caption": "text_to_image@1"}
    for task, key in tasks.items():
        a, b = filip.retrieval[key], clip.retrieval[key]
        clauses[clearly_better(a, b, filip.scenes)].append(f"{task} ({percent(a)} against {percent(b)})")
    parts = []
    if clauses[1]:
        parts.append("FILIP is better at " + " and at ".join(clauses[1]) + ".")
    if clauses[-1]:
        swapped = [_swap(clause) for clause in clauses[-1]]
        parts.append("CLIP is better at " + " and at ".join(swapped) + ".")
    if clauses[0]:
        parts.append("Neither is clearly better at " + " and at ".join(clauses[0]) + ", FILIP first.")
    points = f"{percent(filip.pointing)} of FILIP's digit words lie on their digit"
    against = f"CLIP, asked digit by digit, reaches {percent(clip.pointing)}, and chance {percent(filip.chance)}"
    winner = clearly_better(filip.pointing, clip.pointing, filip.words)
    start = {1: "FILIP is better at pointing", 0: "They point equally well", -1: "CLIP is better at pointing"}[winner]
    parts.append(f"{start}: {points}; {against}.")
    return " ".join(parts)


def _swap(clause: str) -> str:
    task, numbers = clause[:-1].split(" (")
    first, second = numbers.split(" against ")
    return f"{task} ({second} against {first})"


def duration(seconds: float) -> str:
    """Seconds with a unit that suits them."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def results_cells(filip: Evaluation, clip: Evaluation) -> list[tuple[str, str, str]]:
    """Rows of measure, FILIP, CLIP."""
    rows = [(MEASURES[key], percent(filip.retrieval[key]), percent(clip.retrieval[key])) for key in MEASURES]
    rows.append(
        (
            f"best patch in the digit's box (chance {percent(filip.chance)})",
            percent(filip.pointing),
            percent(clip.pointing),
        )
    )
    return rows


EXPORT_HEAD = ("form", "file", "size", "16 scenes", "speed", "max error", "mean cosine", "recall@1 i→t", "t→i")


def export_cells(rows: Sequence[ExportRow]) -> list[tuple[str, ...]]:
    """Rows under :data:`EXPORT_HEAD`."""
    return [
        (
            row.name,
            row.file,
            f"{row.size / 1000:.0f} kB",
            duration(row.latency.median),
            f"{row.latency.ratio:.2f}×",
            f"{row.agreement.max_abs_error:.1e}",
            f"{row.agreement.mean_cosine:.5f}",
            percent(row.retrieval["image_to_text@1"]),
            percent(row.retrieval["text_to_image@1"]),
        )
        for row in rows
    ]


BENCH_HEAD = ("case", "ours", "rate", "of the machine's limit", "time of others over ours")


def bench_cells(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows under :data:`BENCH_HEAD`, from `fgkernels.bench.quick_table`."""
    cells = []
    for row in rows:
        if row["status"] != "ok":
            cells.append((row["title"], "FAILED", "", "", str(row["problem"])))
            continue
        ratios = ", ".join(f"{name} {ratio:.2f}×" for name, ratio in row["ratios"].items())
        limit = f"{100 * row['of_limit']:.0f} % ({row['limit']})" if row["of_limit"] else "–"
        rate = f"{row['rate']:.4g} {row['unit']}" if row["rate"] else "–"
        cells.append((row["title"], duration(row["seconds"]), rate, limit, ratios or "–"))
    return cells


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  " + "  ".join(cells).rstrip()

    return "\n".join([line(head), "  " + "─" * (sum(widths) + 2 * len(widths) - 2), *map(line, rows)])
