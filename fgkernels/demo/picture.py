# SPDX-License-Identifier: Apache-2.0
"""The picture: scenes, and on them the patches that chose each digit word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .data import CANVAS
from .towers import GRID, PATCH
from .views import SceneView

#: One colour per digit of a caption; told apart by people with any colour vision (Okabe and Ito).
COLORS = ("#E69F00", "#56B4E9", "#F062A6")
GROUND, INK, SOFT = "#14171a", "#e8eaec", "#9aa2a9"


def _rgb(color: str) -> np.ndarray:
    return np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _blend(view: SceneView) -> np.ndarray:
    """The scene (48, 48, 3) with the patches of every digit word tinted."""
    picture = np.repeat(view.image.numpy()[..., None], 3, -1)
    for word in view.words:
        if word.color >= 0:
            for patch in word.patches:
                y, x = divmod(patch, GRID)
                part = (slice(y * PATCH, (y + 1) * PATCH), slice(x * PATCH, (x + 1) * PATCH))
                picture[part] = 0.5 * picture[part] + 0.5 * _rgb(COLORS[word.color])
    return picture


def draw(views: Sequence[SceneView], path: Path, columns: int = 4) -> None:
    """Write the PNG `path`: each scene, its caption in the words' colours, a ring where each word matches best."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(views) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.0 * columns, 3.42 * rows + 0.9), squeeze=False, facecolor=GROUND
    )
    figure.subplots_adjust(
        left=0.015, right=0.985, bottom=0.075 / rows, top=1 - 0.9 / (3.42 * rows + 0.9), hspace=0.14, wspace=0.05
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, view in zip(axes.flat, views, strict=False):
        axis.imshow(_blend(view), extent=(0, CANVAS, CANVAS, 0), interpolation="nearest")
        for word in view.words:
            if word.color >= 0:
                y, x = divmod(word.best, GRID)
                center = ((x + 0.5) * PATCH, (y + 0.5) * PATCH)
                axis.plot(*center, "o", ms=11, mfc="none", mec="black", mew=4)
                axis.plot(*center, "o", ms=11, mfc="none", mec=COLORS[word.color], mew=2)
        _caption(axis, view)
    top = 1 - 0.38 / (3.42 * rows + 0.9)
    figure.text(0.02, top, "Where FILIP finds the words of a caption", color=INK, fontsize=15, fontweight="bold")
    note = "tinted: patches that chose the word · ring: the word's best patch · the first scenes of the test gallery"
    figure.text(0.02, 1 - 0.66 / (3.42 * rows + 0.9), note, color=SOFT, fontsize=10)
    figure.savefig(path, dpi=110, facecolor=GROUND)
    pyplot.close(figure)


def _caption(axis, view: SceneView) -> None:
    """The caption under the scene, word by word, each in its colour."""
    words = [word for word in view.words if not word.text.startswith("<")]
    size, gap = 9.5, 0.028
    renderer = axis.figure.canvas.get_renderer()
    width = axis.get_window_extent(renderer).width
    texts, spans = [], []
    for word in words:
        color = COLORS[word.color] if word.color >= 0 else SOFT
        weight = "bold" if word.color >= 0 else "normal"
        text = axis.text(
            0, -0.035, word.text, transform=axis.transAxes, color=color, fontsize=size, weight=weight, va="top"
        )
        texts.append(text)
        spans.append(text.get_window_extent(renderer).width / width)
    gaps = [0.0 if word.text == "," else gap for word in words]
    x = 0.5 - (sum(spans) + sum(gaps[1:])) / 2
    for text, span, space in zip(texts, spans, [0.0, *gaps[1:]], strict=True):
        x += space
        text.set_x(x)
        x += span
