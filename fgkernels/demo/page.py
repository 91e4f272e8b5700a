# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML page that needs nothing else, pictures, style and script inside."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from torch import Tensor

from . import summary
from .exporting import LATENCY_BATCH
from .towers import GRID, PATCH
from .training import History
from .views import SceneView

if TYPE_CHECKING:
    from .pipeline import Results

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 230, 44, 30, 12


def _text(value: object) -> str:
    return html.escape(str(value))


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _png(image: Tensor) -> str:
    """A grey image (H, W) in [0, 1] as a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((image * 255).round().byte().numpy()).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    best: Sequence[int | None] | None = None,
    wrap: Sequence[int] = (),
) -> str:
    """`best[i]` is the column of row i that is set in bold; `wrap` the columns whose cells may break."""
    body = []
    for index, row in enumerate(rows):
        cells = []
        for column, cell in enumerate(row):
            names = [name for name, on in (("best", best and best[index] == column), ("text", column in wrap)) if on]
            style = f' class="{" ".join(names)}"' if names else ""
            cells.append(f"<td{style}>{_text(cell)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    titles = "".join(f"<th>{_text(title)}</th>" for title in head)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _results(results: Results) -> str:
    filip, clip = results.evaluations["FILIP"], results.evaluations["CLIP"]
    rows = summary.results_cells(filip, clip)
    pairs = [(filip.retrieval[key], clip.retrieval[key], filip.scenes) for key in summary.MEASURES]
    pairs.append((filip.pointing, clip.pointing, filip.words))
    winners = [{1: 1, -1: 2, 0: None}[summary.clearly_better(*pair)] for pair in pairs]
    return _table(("held-out scenes", "FILIP", "CLIP"), rows, winners, wrap=(0,))


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Trailing mean over at most `window` values."""
    result, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        result.append(total / min(index + 1, window))
    return result


def _chart(title: str, histories: dict[str, History], field: str, top: float, form: str) -> str:
    """Curves over seconds of training, one per model, as inline SVG; the vertical axis starts at 0."""
    longest = max((history.seconds[-1] for history in histories.values() if history.seconds), default=1.0)

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - 60) * seconds / longest

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(value, top) / top)

    parts = []
    for step in range(5):
        value = top * step / 4
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 60}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{format(value, form)}</text>')
    for step in range(3):
        seconds = longest * step / 2
        label = f"{seconds:.0f} s" if longest >= 4 else f"{seconds:.1f} s"
        parts.append(f'<text x="{x(seconds):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>')
    labels = []
    for name, history in histories.items():
        values = smooth(getattr(history, field), max(1, history.steps // 40))
        stride = max(1, history.steps // 300)
        points = [*range(0, history.steps, stride)][:-1] + [history.steps - 1]
        line = " L".join(f"{x(history.seconds[i]):.1f} {y(values[i]):.1f}" for i in points)
        parts.append(f'<path class="{name.lower()}" d="M{line}"/>')
        labels.append((y(values[-1]), name))
    labels.sort()
    for index, (height, name) in enumerate(labels):
        apart = 0 if len(labels) < 2 else max(0.0, 14 - (labels[1][0] - labels[0][0])) / 2 * (2 * index - 1)
        parts.append(f'<text class="{name.lower()}" x="{WIDTH - 54}" y="{height + apart + 4:.1f}">{name}</text>')
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(title)}">{"".join(parts)}</svg>'
    return f"<div><b>{_text(title)}</b>{picture}</div>"


def _curves(results: Results) -> str:
    losses = [loss for history in results.histories.values() for loss in history.loss]
    return (
        '<div class="charts">'
        + _chart("Pairs of the batch put together rightly", results.histories, "accuracy", 1.0, ".0%")
        + _chart("Contrastive loss", results.histories, "loss", max([*losses, 1.0]), ".1f")
        + "</div>"
    )


def _scene(view: SceneView, index: int) -> str:
    words = []
    for word in view.words:
        style = f' class="w{word.color}"' if word.color >= 0 else ""
        label = {"<bos>": "⊢", "<eos>": "⊣"}.get(word.text, word.text)
        spoken = {"<bos>": "start of caption", "<eos>": "end of caption", ",": "comma"}.get(word.text, word.text)
        words.append(f'<button type="button"{style} aria-pressed="false" aria-label="{spoken}">{_text(label)}</button>')
    ranks = []
    for name, caption in view.first.items():
        right = sorted(caption.replace(",", "").split()) == sorted(view.caption.replace(",", "").split())
        kind, sign = ("", "✓") if right else (' class="wrong"', "✗")
        ranks.append(f"<div><b>{name}</b> <span{kind}>{sign} {_text(caption)}</span></div>")
    return (
        f'<figure class="scene"><div class="canvas"><img alt="scene {index + 1}: {_text(view.caption)}" '
        f'src="{_png(view.image)}"><svg viewBox="0 0 {GRID * PATCH} {GRID * PATCH}" aria-hidden="true"></svg></div>'
        f'<figcaption><div class="words">{"".join(words)}</div><p class="told" aria-live="polite"></p>'
        f'<div class="ranks">{"".join(ranks)}</div></figcaption></figure>'
    )


def _scene_data(views: Sequence[SceneView]) -> str:
    data = {
        "grid": GRID,
        "patch": PATCH,
        "scenes": [{"words": [asdict(word) for word in view.words]} for view in views],
    }
    # "<" is the only way out of a script element.
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _facts(facts: dict[str, str]) -> str:
    return '<ul class="facts">' + "".join(f"<li><b>{_text(k)}</b>{_text(v)}</li>" for k, v in facts.items()) + "</ul>"


def _bench(results: Results) -> str:
    if not results.bench:
        return "<p>Left out in a quick run.</p>"
    note = (
        "As <code>fgkernels bench --quick</code>: ours and the others in turn in one process, medians; the limit of "
        "the machine is measured between the rounds."
    )
    return f'{_table(summary.BENCH_HEAD, summary.bench_cells(results.bench), wrap=(0, 4))}<p class="soft">{note}</p>'


def render(results: Results) -> str:
    """The page."""
    filip = results.evaluations["FILIP"]
    runs = (
        f"{name} made {history.steps:,} steps in {history.seconds[-1]:.0f} s, {results.parameters[name]:,} parameters"
        for name, history in results.histories.items()
    )
    training = f"{'; '.join(runs)}. A step is {results.recipe.batch_size} new scenes with different captions."
    return Template(_asset("page.html")).substitute(
        style=_asset("page.css"),
        script=_asset("page.js"),
        verdict=_text(results.verdict),
        results=_results(results),
        scene_count=f"{filip.scenes:,}",
        gallery_size=results.gallery_size,
        word_count=f"{filip.words:,}",
        view_count=len(results.views),
        scenes="".join(_scene(view, index) for index, view in enumerate(results.views)),
        training=training,
        curves=_curves(results),
        latency_batch=LATENCY_BATCH,
        exports=_table(summary.EXPORT_HEAD, summary.export_cells(results.exports)),
        bench=_bench(results),
        facts=_facts(results.facts),
        scene_data=_scene_data(results.views),
    )
