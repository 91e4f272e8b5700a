# SPDX-License-Identifier: Apache-2.0
"""Two small towers, and the two ways to compare them: CLIP's (one vector a side) and FILIP's (patches and words).

Patches and words stay local, so that a match between them says where something is. The image tower is convolutional: a
patch is 4 x 4 pixels and sees 31 x 31 around it; one gated summary of the whole scene is added at the end, which tells a
patch how crowded the scene is. In the text tower a word sees itself only, and the EOS token sees the whole caption, as in
CLIP. The same towers serve both models: CLIP averages the patches and takes EOS, FILIP keeps all tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import LateInteractionLoss, LateInteractionLossOutput
from ..ops.late_interaction import late_interaction
from .data import CANVAS, Scenes, Tokenizer

PATCH = 4
GRID = CANVAS // PATCH  # patches per side


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of both towers."""

    width: int = 64  # channels
    depth: int = 3  # residual 3 x 3 convolutions after the stem
    dim: int = 64  # of the shared embedding space
    vocabulary: int = len(Tokenizer())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.conv(x))


class _SceneContext(nn.Module):
    """Adds to every patch the same function of the mean patch; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        context = self.outer(F.gelu(self.inner(x.mean((2, 3)))))
        return x + context[:, :, None, None]


class ImageTower(nn.Module):
    """Images (N, 1, 48, 48) in [0, 1] -> L2-normalised patch tokens (N, 144, D), row by row."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.width
        self.stem = nn.Sequential(
            nn.Conv2d(1, 24, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(24, width, 3, stride=2, padding=1),
            nn.GELU(),
        )
        self.blocks = nn.Sequential(*[_Residual(width) for _ in range(config.depth)])
        self.context = _SceneContext(width)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.dim)

    def features(self, images: Tensor) -> Tensor:
        """The patch tokens (N, 144, D) before normalisation."""
        x = self.context(self.blocks(self.stem((images - 0.13) / 0.31)))
        return self.projection(self.norm(x.flatten(2).transpose(1, 2)))

    def forward(self, images: Tensor) -> Tensor:
        """Patch tokens (N, 144, D) of unit length."""
        return F.normalize(self.features(images), dim=-1)


class TextTower(nn.Module):
    """Token ids (N, L) -> L2-normalised word tokens (N, L, D)."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.width
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.gather = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
        self.summarize = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Word tokens (N, L, D) of unit length; those of padding mean nothing."""
        words = self.embedding(ids)
        summary = (self.gather(words) * (ids != Tokenizer.PAD)[..., None]).sum(1)
        words = torch.where((ids == Tokenizer.EOS)[..., None], self.summarize(summary)[:, None], words)
        return F.normalize(self.projection(self.norm(words)), dim=-1)


class ImageTextModel(nn.Module):
    """Both towers and the contrastive loss that trains them.

    Args:
        config: sizes of the towers.
        late: True is FILIP: all patches against all words that aren't padding. False is CLIP: the mean patch against the
            EOS token, which is late interaction with one token a side.
        temperature: initial temperature of the loss.
    """

    def __init__(self, config: TowerConfig, *, late: bool, temperature: float = 0.07) -> None:
        super().__init__()
        self.late = late
        self.image = ImageTower(config)
        self.text = TextTower(config)
        self.criterion = LateInteractionLoss(temperature)

    def image_tokens(self, images: Tensor) -> Tensor:
        """FILIP: (N, 144, D); CLIP: (N, 1, D)."""
        if self.late:
            return self.image(images)
        return F.normalize(self.image.features(images).mean(1, keepdim=True), dim=-1)

    def text_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and their mask; FILIP: (N, L, D) and (N, L); CLIP: (N, 1, D) and (N, 1)."""
        words = self.text(ids)
        if self.late:
            return words, ids != Tokenizer.PAD
        eos = words[torch.arange(len(ids)), (ids == Tokenizer.EOS).int().argmax(1)]
        return eos[:, None], torch.ones(len(ids), 1, dtype=torch.bool)

    def forward(self, scenes: Scenes) -> LateInteractionLossOutput:
        """The loss of a batch of pairs."""
        words, mask = self.text_tokens(scenes.ids)
        return self.criterion(self.image_tokens(scenes.images), words, None, mask)

    def scores(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Image-to-text and text-to-image similarities, both (images, texts)."""
        words, mask = self.text_tokens(ids)
        return late_interaction(self.image_tokens(images), words, None, mask)
