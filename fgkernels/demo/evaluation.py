# SPDX-License-Identifier: Apache-2.0
"""Retrieval and localisation on held-out scenes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Scenes, Tokenizer, caption
from .towers import GRID, PATCH, ImageTextModel

KS = (1, 5)


def recall(scores: Tensor, k: int) -> float:
    """Share of queries whose own item is among the k highest: `scores` (N, N), row q a query, its item column q.

    An item that ties with the right one counts as ranked above it, so that a model without any opinion gets nothing.
    """
    own = scores.diagonal()[:, None]
    return ((scores >= own).sum(1) <= k).float().mean().item()


def retrieval(scores: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Recall@1 and @5 both ways, from (s^I, s^T), both (images, texts) with pairs on the diagonal."""
    image_to_text, text_to_image = scores
    result = {f"image_to_text@{k}": recall(image_to_text, k) for k in KS}
    return result | {f"text_to_image@{k}": recall(text_to_image.T, k) for k in KS}


def patch_centers() -> Tensor:
    """Centres (P, 2) of the patches as x, y in pixels, row by row."""
    center = (torch.arange(GRID) + 0.5) * PATCH
    y, x = torch.meshgrid(center, center, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2)


def inside(boxes: Tensor) -> Tensor:
    """Which patch centres lie in each box: boxes (..., 4) as x0, y0, x1, y1 -> bool (..., P)."""
    centers, boxes = patch_centers(), boxes[..., None, :]
    return ((centers >= boxes[..., :2]) & (centers < boxes[..., 2:])).all(-1)


def digit_words(scenes: Scenes, tokenizer: Tokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """All words that name a digit: scene (W,), position in the caption's tokens (W,), and the digit's box (W, 4)."""
    rows, positions, boxes = [], [], []
    for row, ids in enumerate(scenes.ids.tolist()):
        for position, token in enumerate(ids):
            digit = tokenizer.digit_of(token)
            if digit >= 0:
                rows.append(row)
                positions.append(position)
                boxes.append(scenes.boxes[row, scenes.digits[row].tolist().index(digit)])
    return torch.tensor(rows), torch.tensor(positions), torch.stack(boxes)


def pointing(best: Tensor, boxes: Tensor) -> tuple[float, float]:
    """Pointing game: share of words whose best patch (W,) has its centre in the word's box (W, 4), and chance.

    Chance is what a patch drawn at random would reach: the mean share of patch centres that lie in the box.
    """
    hits = inside(boxes)
    return hits.gather(1, best[:, None]).float().mean().item(), hits.float().mean().item()


@dataclass
class Evaluation:
    """Scores of one model: means over galleries, in [0, 1]."""

    retrieval: dict[str, float]
    pointing: float
    chance: float
    scenes: int
    words: int


@torch.no_grad()
def word_patch_similarity(model: ImageTextModel, scenes: Scenes, tokenizer: Tokenizer) -> Tensor:
    """For each word of :func:`digit_words` the similarity (W, P) of every patch of its scene.

    FILIP compares the word's token with the patch tokens, as in training. CLIP compares no words, so it is asked with
    the caption that names this digit alone ("a three"), and a patch scores what it adds to the similarity of image and
    caption: as the image's vector is the mean patch, scaled, that is the patch's own dot product.
    """
    rows, positions, _ = digit_words(scenes, tokenizer)
    if model.late:
        words = model.text(scenes.ids)[rows, positions]
    else:
        names = [caption([tokenizer.digit_of(token)]) for token in scenes.ids[rows, positions].tolist()]
        words = model.text(tokenizer(names))[:, 0]
    patches = model.image(scenes.images) if model.late else model.image.patches(scenes.images)
    return torch.einsum("wpd,wd->wp", patches[rows], words)


@torch.no_grad()
def evaluate(model: ImageTextModel, galleries: Iterable[Scenes], tokenizer: Tokenizer) -> Evaluation:
    """Retrieval inside each gallery, averaged over galleries; pointing over all their digit words."""
    retrievals, best, boxes, scenes = [], [], [], 0
    for gallery in galleries:
        retrievals.append(retrieval(model.scores(gallery.images, gallery.ids)))
        best.append(word_patch_similarity(model, gallery, tokenizer).argmax(1))
        boxes.append(digit_words(gallery, tokenizer)[2])
        scenes += len(gallery)
    accuracy, chance = pointing(torch.cat(best), torch.cat(boxes))
    mean = {key: sum(result[key] for result in retrievals) / len(retrievals) for key in retrievals[0]}
    return Evaluation(mean, accuracy, chance, scenes, sum(map(len, best)))


@torch.no_grad()
def patch_choices(model: ImageTextModel, scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """FILIP's alignment of each scene with its own caption.

    Returns the word that each patch chose (N, P), the patch that each word chose (N, L), -1 at padding, and the
    similarities (N, P, L).
    """
    mask = model.mask(scenes.ids)
    similarity = torch.einsum("npd,nld->npl", model.image(scenes.images), model.text(scenes.ids))
    chosen = similarity.masked_fill(~mask[:, None], -torch.inf).argmax(2)
    return chosen, similarity.argmax(1).masked_fill(~mask, -1), similarity
