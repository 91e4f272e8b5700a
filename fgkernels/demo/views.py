# SPDX-License-Identifier: Apache-2.0
"""What the picture and the report show of a scene."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .data import Scenes, Tokenizer
from .evaluation import inside, patch_choices
from .towers import ImageTextModel


@dataclass
class Word:
    """A token of a caption and where FILIP found it."""

    text: str
    color: int  # 0, 1, 2 for the caption's digits, -1 for other words
    best: int  # the patch most like the word
    patches: list[int]  # the patches that chose the word among all words of the caption
    similarity: list[float]  # of every patch, cosine
    box: list[int] | None  # x0, y0, x1, y1 of a digit's ink
    hit: bool | None  # whether the best patch's centre lies in the box


@dataclass
class SceneView:
    """A held-out scene with FILIP's alignment, and the caption that each model ranks first."""

    image: torch.Tensor  # float (48, 48) in [0, 1]
    caption: str
    words: list[Word]
    first: dict[str, str]  # model's name -> its first caption


def scene_views(
    filip: ImageTextModel, clip: ImageTextModel, scenes: Scenes, tokenizer: Tokenizer, count: int
) -> list[SceneView]:
    """Views of the first `count` scenes; the models rank the captions of all `scenes`."""
    chosen, best, similarity = patch_choices(filip, scenes)
    with torch.no_grad():
        first = {
            name: model.scores(scenes.images[:count], scenes.ids)[0].argmax(1).tolist()
            for name, model in (("FILIP", filip), ("CLIP", clip))
        }
    views = []
    for row in range(min(count, len(scenes))):
        hits = inside(scenes.boxes[row])
        digits = scenes.digits[row].tolist()
        words = []
        for position, token in enumerate(scenes.ids[row].tolist()):
            if token == Tokenizer.PAD:
                continue
            digit = tokenizer.digit_of(token)
            slot = digits.index(digit) if digit >= 0 else -1
            patch = int(best[row, position])
            words.append(
                Word(
                    text=tokenizer.vocabulary[token],
                    color=slot,
                    best=patch,
                    patches=(chosen[row] == position).nonzero().flatten().tolist(),
                    similarity=[round(value, 3) for value in similarity[row, :, position].tolist()],
                    box=scenes.boxes[row, slot].tolist() if digit >= 0 else None,
                    hit=bool(hits[slot, patch]) if digit >= 0 else None,
                )
            )
        ranked = {name: scenes.captions[tops[row]] for name, tops in first.items()}
        views.append(SceneView(scenes.images[row, 0], scenes.captions[row], words, ranked))
    return views
