# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: speed-ups on a log scale, and every implementation against the machine's limit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import report, results

# Okabe-Ito colours: told apart by colour-blind readers, on light and dark ground.
COLORS = {
    "candidate": "#0072b2",
    "eager": "#e69f00",
    "compiled": "#cc79a7",
    "peer": "#009e73",
    "own": "#8a8a8a",
}
LABELS = {"candidate": "fgkernels", **report.GROUP_TITLES}


# A bar longer than this share of the axis carries its label inside.
LABEL_INSIDE = 0.3


class MatplotlibMissing(RuntimeError):
    """The PNG needs matplotlib; the text says how to get it."""


@dataclass(frozen=True)
class Mark:
    """One implementation of a case. ``ratio``, quartiles: its time over ours (None for our op)."""

    group: str
    name: str
    seconds: float
    ratio: float | None
    q1: float | None
    q3: float | None
    of_limit: float | None


@dataclass(frozen=True)
class Row:
    """A case in the picture: our op first, then the fastest baseline of each kind."""

    title: str
    limit: str | None
    marks: tuple[Mark, ...]

    @property
    def baselines(self) -> tuple[Mark, ...]:
        return tuple(mark for mark in self.marks if mark.ratio is not None)


def rows(document: dict[str, Any]) -> list[Row]:
    """The cases that were timed."""
    found = []
    for record in document["cases"]:
        if record["status"] != "ok":
            continue
        chosen = {name for group, name in record["fastest"].items() if group != "all"}
        marks = []
        for name, entry in record["implementations"].items():
            ratio = record["ratios"].get(name)
            if entry["group"] == "candidate" or name in chosen:
                quantiles = [ratio[key] for key in ("median", "q1", "q3")] if ratio else [None] * 3
                # A sister case may have another limit, fp32 beside bf16.
                applies = entry["of_limit"] and entry["group"] != "own"
                of_limit = entry["of_limit"]["median"] if applies else None
                marks.append(Mark(entry["group"], name, entry["seconds"]["median"], *quantiles, of_limit))
        found.append(Row(report.case_title(record), record["limit"]["kind"], tuple(marks)))
    return found


def ratio_ticks(chart_rows: list[Row]) -> list[float]:
    """Ticks of the ratio axis: round numbers that enclose all ratios and 1."""
    ratios = [mark.ratio for row in chart_rows for mark in row.baselines] + [1.0]
    # Over more than a hundredfold, powers of ten alone.
    bases = (1, 2, 5) if max(ratios) / min(ratios) < 100 else (1,)
    steps = [base * 10.0**power for power in range(-4, 7) for base in bases]
    low = max(step for step in steps if step <= min(ratios))
    high = min((step for step in steps if step >= max(ratios)), default=max(ratios))
    ticks = [step for step in steps if low <= step <= high]
    return ticks if len(ticks) > 1 else [low, 2 * low]


def wrap_title(title: str, width: int = 40) -> list[str]:
    """A title in lines of at most ``width`` characters."""
    lines = [""]
    for word in title.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def png(document: dict[str, Any], path: Path) -> Path:
    """Draw the picture; MatplotlibMissing without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise MatplotlibMissing("no PNG: matplotlib isn't installed (pip install matplotlib)") from error
    chart_rows = rows(document)
    heights = [max(1, len(row.baselines)) * 0.24 + 0.24 for row in chart_rows]
    figure = Figure(figsize=(12.5, max(2.0, sum(heights)) + 1.75), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.5, 1], "wspace": 0.05}, sharey=True)
    position, ticks, separators = 0.0, [], []
    for row, height in zip(chart_rows, heights, strict=True):
        center = position + height / 2
        ticks.append(center)
        for index, mark in enumerate(row.baselines):
            y = center + (index - (len(row.baselines) - 1) / 2) * 0.24
            left.barh(y, mark.ratio - 1, 0.18, left=1, color=COLORS[mark.group], zorder=2)
            left.plot([mark.q1, mark.q3], [y, y], color="#222222", linewidth=1, zorder=3)
            left.annotate(
                report.times(mark.ratio),
                (max(mark.ratio, mark.q3, 1), y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        for mark in row.marks:
            if mark.of_limit is None:
                continue
            if mark.group == "candidate":
                right.barh(center, 100 * mark.of_limit, 0.2, color=COLORS["candidate"], zorder=2)
                inside = mark.of_limit > LABEL_INSIDE
                right.annotate(
                    f"{100 * mark.of_limit:.0f} %",
                    (100 * mark.of_limit, center),
                    xytext=(-4 if inside else 4, 0),
                    textcoords="offset points",
                    ha="right" if inside else "left",
                    va="center",
                    fontsize=8,
                    color="white" if inside else "black",
                    zorder=5,
                )
            else:
                right.plot(
                    100 * mark.of_limit, center, "D", color=COLORS[mark.group], markersize=5.5, zorder=4, mec="white"
                )
        if all(mark.of_limit is None for mark in row.marks):
            right.annotate(
                "no limit applies or none was measured",
                (2, center),
                va="center",
                fontsize=8,
                color="#777777",
            )
        position += height
        separators.append(position)
    for axis in (left, right):
        axis.set_ylim(position, 0)
        axis.grid(axis="x", color="#dddddd", linewidth=0.7, zorder=0)
        axis.tick_params(length=0, labelsize=8.5)
        axis.spines[:].set_visible(False)
        for separator in separators[:-1]:
            axis.axhline(separator, color="#eeeeee", linewidth=0.8, zorder=0)
    left.set_yticks(ticks, ["\n".join(wrap_title(row.title)) for row in chart_rows])
    values = ratio_ticks(chart_rows)
    left.set_xscale("log")
    # Room for the last label
    left.set_xlim(values[0], values[-1] * (values[-1] / values[0]) ** 0.08)
    left.set_xticks(values, [f"{value:g}×" for value in values])
    left.minorticks_off()
    left.axvline(1, color="#222222", linewidth=1.2, zorder=4)
    left.set_title("Time of the baseline over ours (log scale; thin line: quartiles)", fontsize=10, loc="left")
    right.axvline(100, color="#c0392b", linewidth=1.6, zorder=4)
    right.set_xlim(0, 118)
    right.set_xticks(range(0, 101, 25), [f"{value} %" for value in range(0, 101, 25)])
    right.set_title("Share of the machine's limit at that moment", fontsize=10, loc="left")
    groups = [group for group in COLORS if any(mark.group == group for row in chart_rows for mark in row.marks)]
    handles = [Line2D([], [], marker="s", linestyle="", markersize=8, color=COLORS[group]) for group in groups]
    handles.append(Line2D([], [], color="#c0392b", linewidth=1.6))
    names = [LABELS[group] for group in groups] + ["limit of the machine"]
    figure.legend(handles, names, loc="lower center", ncols=len(names), frameon=False, fontsize=9)
    figure.suptitle("fgkernels bench", x=0.012, ha="left", fontsize=14, fontweight="bold")
    inches = figure.get_figheight()
    figure.text(0.012, 1 - 0.52 / inches, report.machine_text(document), fontsize=8.5, color="#555555", va="top")
    figure.subplots_adjust(left=0.265, right=0.985, top=1 - 1.05 / inches, bottom=0.72 / inches)
    figure.savefig(path)
    return path


def log_fraction(value: float, ticks: list[float]) -> float:
    """Where ``value`` lies on a log axis from the first to the last tick, 0 to 1."""
    low, high = math.log(ticks[0]), math.log(ticks[-1])
    return min(1.0, max(0.0, (math.log(value) - low) / (high - low)))


def describe(mark: Mark) -> str:
    """A sentence for a tooltip."""
    text = f"{mark.name}: {results.seconds(mark.seconds)}"
    if mark.ratio is not None:
        text += f", {mark.ratio:.2f}× ours (quartiles {mark.q1:.2f}–{mark.q3:.2f})"
    if mark.of_limit is not None:
        text += f", {100 * mark.of_limit:.0f} % of the limit"
    return text
