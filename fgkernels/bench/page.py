# SPDX-License-Identifier: Apache-2.0
"""A run as one HTML page that needs nothing else: inline style, inline SVG, the document itself as JSON."""

from __future__ import annotations

import html as markup
import json
import re
from typing import Any

from . import chart, report, results

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2024; --soft: #62696f; --line: #e3e6e8; --panel: #f6f7f8;
        --good: #18794e; --bad: #c0392b; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171a; --ink: #e8eaec; --soft: #9aa2a9; --line: #2c3237; --panel: #1c2125; --good: #4cc38a;
          --bad: #ff7b6b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 10px; }
p { max-width: 76ch; } .soft { color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: 8px; margin: 14px 0 0; padding: 0; list-style: none; }
.facts li { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 3px 10px;
            font-size: 13px; }
.facts b { font-weight: 600; color: var(--soft); margin-right: 5px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; margin: 0 0 8px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px; }
.wide { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 900px; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg .soft { fill: var(--soft); } svg .grid { stroke: var(--line); }
svg .axis { stroke: var(--ink); stroke-width: 1.2; } svg .limit { stroke: var(--bad); stroke-width: 1.6; }
svg .quartiles { stroke: var(--ink); stroke-width: 1.2; } svg .mark { stroke: var(--ground); }
svg .inside { fill: #fff; }
svg g.hit:hover > :not(text) { opacity: .72; }
table { border-collapse: collapse; font-size: 13.5px; width: 100%; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right;
         font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
#results td:first-child { min-width: 230px; } #results td { padding: 6px 7px; } td.wrap { min-width: 170px; }
#results td:nth-child(2) { white-space: nowrap; } #results td.bad { text-align: left; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
details { border: 1px solid var(--line); border-radius: 8px; margin: 8px 0; padding: 0 14px; }
summary { cursor: pointer; padding: 9px 0; font-weight: 600; } details > div { padding-bottom: 12px; }
"""


def _text(value: object) -> str:
    return markup.escape(str(value))


def _cell(value: str) -> str:
    """A number and its unit stay on one line."""
    return _text(re.sub(r"(?<=\d) (?=[A-Za-zµ%])", "\u00a0", value))


def _facts(document: dict[str, Any]) -> str:
    env, settings = document["environment"], document["settings"]
    facts = {
        **{f"GPU {name}": value for name, value in (env.get("gpu") or {}).items()},
        "CPU": f"{env['cpu']}, {env['cores']} cores",
        "threads": settings["threads"],
        "ISA level": env["isa"] or "unknown",
        "our ops run on": ", ".join(sorted(set(env["backends"].values()))),
        "torch": env["torch"],
        "fgkernels": env["fgkernels"],
        "Python": env["python"],
        "system": env["system"],
        "date": env["date"],
        "load at the start": env["load_average"],
        **{name: version for name, version in env["packages"].items() if version},
        **{f"build {name}": value for name, value in (env["build"] or {}).items() if isinstance(value, (str, int))},
    }
    items = "".join(f"<li><b>{_text(name)}</b>{_text(value)}</li>" for name, value in facts.items())
    return f'<ul class="facts">{items}</ul>'


def _legend(rows: list[chart.Row]) -> str:
    groups = [group for group in chart.COLORS if any(mark.group == group for row in rows for mark in row.marks)]
    items = "".join(
        f'<span><i style="background:{chart.COLORS[group]}"></i>{_text(chart.LABELS[group])}</span>' for group in groups
    )
    return f'<div class="legend">{items}<span><i style="background:var(--bad)"></i>limit of the machine</span></div>'


LABEL, LEFT, LEFT_WIDTH, RIGHT, RIGHT_WIDTH, WIDTH = 290, 302, 470, 832, 300, 1180
BAR, TOP = 18, 44


def _svg(rows: list[chart.Row]) -> str:
    """Two panels: ratios on a log scale; shares of the machine's limit."""
    ticks = chart.ratio_ticks(rows)

    def ratio_x(value: float) -> float:
        return LEFT + LEFT_WIDTH * chart.log_fraction(value, ticks)

    def limit_x(value: float) -> float:
        return RIGHT + RIGHT_WIDTH * min(1.15, value)

    heights = [max(len(row.baselines), len(chart.wrap_title(row.title)), 1) * BAR + 16 for row in rows]
    bottom = TOP + sum(heights)
    parts = [f'<text x="{LEFT}" y="14" font-weight="600">Time of the baseline over ours (log scale)</text>']
    parts.append(f'<text x="{RIGHT}" y="14" font-weight="600">Share of the machine’s limit at that moment</text>')
    for tick in ticks:
        x = ratio_x(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{TOP - 8}" text-anchor="middle">{tick:g}×</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = limit_x(share)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{TOP - 8}" text-anchor="middle">{100 * share:.0f} %</text>')
    y = float(TOP)
    for row, height in zip(rows, heights, strict=True):
        center = y + height / 2
        parts.append(f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>')
        lines = chart.wrap_title(row.title)
        for index, line in enumerate(lines):
            line_y = center + (index - (len(lines) - 1) / 2) * 16 + 4
            parts.append(f'<text x="{LABEL}" y="{line_y:.1f}" text-anchor="end">{_text(line)}</text>')
        for index, mark in enumerate(row.baselines):
            parts.append(_ratio_bar(mark, center + (index - (len(row.baselines) - 1) / 2) * BAR, ratio_x))
        parts.extend(_limit_marks(row, center, limit_x))
        y += height
    parts.append(f'<line class="axis" x1="{ratio_x(1):.1f}" x2="{ratio_x(1):.1f}" y1="{TOP}" y2="{bottom}"/>')
    parts.append(f'<line class="limit" x1="{limit_x(1):.1f}" x2="{limit_x(1):.1f}" y1="{TOP}" y2="{bottom}"/>')
    return f'<svg viewBox="0 0 {WIDTH} {bottom + 8:.0f}" role="img" aria-label="ratios">{"".join(parts)}</svg>'


def _ratio_bar(mark: chart.Mark, y: float, ratio_x: Any) -> str:
    start, end = sorted((ratio_x(1.0), ratio_x(mark.ratio)))
    label = max(end, ratio_x(mark.q3)) + 5
    return (
        f'<g class="hit"><title>{_text(chart.describe(mark))}</title>'
        f'<rect x="{start:.1f}" y="{y - 6.5:.1f}" width="{max(1.0, end - start):.1f}" height="13" rx="2" '
        f'fill="{chart.COLORS[mark.group]}"/>'
        f'<line class="quartiles" x1="{ratio_x(mark.q1):.1f}" x2="{ratio_x(mark.q3):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{label:.1f}" y="{y + 4:.1f}">{report.times(mark.ratio)}</text></g>'
    )


def _limit_marks(row: chart.Row, center: float, limit_x: Any) -> list[str]:
    parts = []
    for mark in row.marks:
        if mark.of_limit is None:
            continue
        title = f"<title>{_text(chart.describe(mark))}</title>"
        x, color = limit_x(mark.of_limit), chart.COLORS[mark.group]
        if mark.group == "candidate":
            label = f'<text x="{x + 6:.1f}" y="{center + 4:.1f}">'
            if mark.of_limit > chart.LABEL_INSIDE:
                label = f'<text class="inside" x="{x - 6:.1f}" y="{center + 4:.1f}" text-anchor="end">'
            parts.append(
                f'<g class="hit">{title}<rect x="{RIGHT}" y="{center - 7:.1f}" width="{x - RIGHT:.1f}" height="14" '
                f'rx="2" fill="{color}"/>{label}{100 * mark.of_limit:.0f} %</text></g>'
            )
        else:
            parts.append(
                f'<g class="hit">{title}<rect class="mark" x="{x - 4.5:.1f}" y="{center - 4.5:.1f}" width="9" '
                f'height="9" fill="{color}" transform="rotate(45 {x:.1f} {center:.1f})"/></g>'
            )
    if not parts:
        parts.append(
            f'<text class="soft" x="{RIGHT + 6}" y="{center + 4:.1f}">no limit applies or none was measured</text>'
        )
    return parts


def _results_table(document: dict[str, Any]) -> str:
    columns = report.COLUMNS
    rows = []
    for record in document["cases"]:
        entry = results.ours(record)
        title = f"<td>{_text(report.case_title(record))}</td>"
        if record["status"] != "ok" or entry is None:
            cells = f'<td class="bad wrap" colspan="{len(columns)}">FAILED: {_text(record["problem"])}</td>'
        else:
            cells = "".join(
                f'<td class="wrap">{_bars(record)}</td>' if key == "bars" else f"<td>{_cell(cell(record, entry))}</td>"
                for key, (_, cell) in columns.items()
            )
        rows.append(f"<tr>{title}{cells}</tr>")
    head = "<th>case</th>" + "".join(f"<th>{_text(title)}</th>" for title, _ in columns.values())
    body = "".join(rows)
    return f'<div class="wide"><table id="results"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _bars(record: results.Record) -> str:
    kinds = {True: "good", False: "bad", None: "soft"}
    lines = [f'<span class="{kinds[bar["met"]]}">{_text(report.bar_text(bar))}</span>' for bar in record["bars"]]
    return "<br>".join(lines) or "–"


def _details(record: results.Record) -> str:
    head = (
        "implementation",
        "time a call [quartiles]",
        "its time over ours [quartiles]",
        "rate",
        "of the limit",
        "extra memory",
    )
    table = "".join(f"<th>{_text(title)}</th>" for title in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>" for cells in report.details(record)
    )
    notes = [
        f"{record['dtype']}, {record['cache']} cache, {record['flops'] / 1e9:.4g} GFLOP, "
        f"{results.size(record['bytes'])} of compulsory traffic, {record['intensity']:.3g} FLOP/byte"
    ]
    if record.get("updates"):
        notes[0] += f", {record['updates'] / 1e9:.4g} G state updates"
    limit = record["limit"]
    if limit["kind"]:
        compute = f"{limit['fma']:.4g} {results.rate_unit(record)} and " if limit["fma"] else ""
        notes.append(
            f"bound by {limit['kind']}: before the rounds the probes gave {compute}{limit['read']:.4g} GB/s"
            + (f", a balance of {limit['fma'] / limit['read']:.3g} a byte" if limit["fma"] else "")
        )
    elif limit["problem"]:
        notes.append(f"no limit: {limit['problem']}")
    errors = [
        f"{name} {max((error for error in verdict['errors'].values() if error is not None), default=0):.1e}"
        for name, verdict in record["gate"].items()
    ]
    if errors:
        notes.append("largest error against fp64: " + ", ".join(errors))
    notes += [f"not run: {name}: {reason}" for name, reason in record["refused"].items()]
    paragraphs = "".join(f'<p class="soft">{_text(note)}</p>' for note in notes)
    return (
        f"<details><summary>{_text(record['name'])}</summary><div>{paragraphs}"
        f'<div class="wide"><table><thead><tr>{table}</tr></thead><tbody>{body}</tbody></table></div></div></details>'
    )


def html(document: dict[str, Any]) -> str:
    """The page."""
    rows = chart.rows(document)
    picture = f'{_legend(rows)}<div class="wide">{_svg(rows)}</div>' if rows else "<p>No case was timed.</p>"
    warnings = "".join(f'<p class="bad">{_text(warning)}</p>' for warning in report.warnings(document))
    # "<" is the only way out of a script element.
    data = json.dumps(document, ensure_ascii=False).replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>fgkernels bench</title>'
        f"<style>{STYLE}</style></head><body><main><h1>fgkernels bench</h1>"
        '<p class="soft">Our ops against what people use instead, and against what this machine can do.</p>'
        f"{warnings}{_facts(document)}<h2>Ratios and limits</h2>{picture}<h2>Table</h2>{_results_table(document)}"
        f"<h2>Method</h2><p>{_text(report.METHOD)}</p><h2>Each case</h2>"
        + "".join(_details(record) for record in document["cases"])
        + f'</main><script type="application/json" id="document">{data}</script></body></html>\n'
    )
