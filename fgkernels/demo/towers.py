# SPDX-License-Identifier: Apache-2.0
"""Two small towers, and the two ways to compare them: CLIP's (one vector a side) and FILIP's (patches and words).

Patches and words stay local, so that a match between them says where something is. The image tower is convolutional: a
patch is 4 x 4 pixels and sees the 31 x 31 around it. All it learns of the rest of the scene are four numbers, the same
for every patch, enough to tell how crowded the scene is but not to spell out its digits. In the text tower a word knows
itself and its position, no other word; the position of the EOS token tells how many digits a caption names.

Both models have these towers. FILIP projects every token; CLIP pools each side to one vector, with a hidden layer more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import LateInteractionLoss, LateInteractionLossOutput
from ..ops.late_interaction import late_interaction
from .data import CANVAS, MAX_DIGITS, Scenes, Tokenizer

PATCH = 4
GRID = CANVAS // PATCH  # patches per side
MEAN, STD = 0.13, 0.31  # of the pixels


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of both towers."""

    width: int = 64  # channels
    depth: int = 3  # residual 3 x 3 convolutions after the stem
    dim: int = 64  # of the shared embedding space
    context: int = 4  # numbers about the whole scene that every patch is told
    vocabulary: int = len(Tokenizer())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.conv(x))


class _SceneContext(nn.Module):
    """Adds to every patch the same function of a few numbers drawn from the mean patch; starts as the identity."""

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, numbers)
        self.outer = nn.Linear(numbers, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        context = self.outer(self.inner(x.mean((2, 3))).tanh())
        return x + context[:, :, None, None]


class ImageTower(nn.Module):
    """Images (N, 1, 48, 48) in [0, 1] -> patches (N, 144, width), row by row."""

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
        self.context = _SceneContext(width, config.context)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Patches (N, 144, width)."""
        x = self.context(self.blocks(self.stem((images - MEAN) / STD)))
        return self.norm(x.flatten(2).transpose(1, 2))


class TextTower(nn.Module):
    """Token ids (N, L) -> words (N, L, width); those of padding mean nothing."""

    def __init__(self, config: TowerConfig, context_length: int = Tokenizer().context_length) -> None:
        super().__init__()
        width = config.width
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.position = nn.Parameter(0.1 * torch.randn(context_length, width))
        self.mix = _mlp(width, 2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        """Words (N, L, width)."""
        words = self.embedding(ids) + self.position[: ids.shape[1]]
        return self.norm(words + self.mix(words))


def _mlp(inner: int, hidden: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, hidden), nn.GELU(), nn.Linear(hidden, outer))


class ImageEncoder(nn.Module):
    """Images (N, 1, 48, 48) -> L2-normalised tokens: FILIP's patches (N, 144, D) or CLIP's mean patch (N, 1, D)."""

    def __init__(self, config: TowerConfig, *, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.tower = ImageTower(config)
        self.head = _mlp(config.width, 2 * config.width, config.dim) if pooled else nn.Linear(config.width, config.dim)

    def patches(self, images: Tensor) -> Tensor:
        """Projected patches (N, 144, D) before pooling and normalisation."""
        return self.head(self.tower(images))

    def forward(self, images: Tensor) -> Tensor:
        """Tokens (N, 144, D) or (N, 1, D) of unit length."""
        patches = self.patches(images)
        return F.normalize(patches.mean(1, keepdim=True) if self.pooled else patches, dim=-1)


class TextEncoder(nn.Module):
    """Token ids (N, L) -> L2-normalised tokens: FILIP's words (N, L, D) or CLIP's sum of words (N, 1, D)."""

    def __init__(self, config: TowerConfig, *, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.tower = TextTower(config)
        hidden = 2 * config.width
        self.gather = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU()) if pooled else nn.Identity()
        self.head = _mlp(hidden, hidden, config.dim) if pooled else nn.Linear(config.width, config.dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Tokens (N, L, D) or (N, 1, D) of unit length."""
        words = self.gather(self.tower(ids))
        if self.pooled:
            words = (words * (ids != Tokenizer.PAD)[..., None]).sum(1, keepdim=True) / MAX_DIGITS
        return F.normalize(self.head(words), dim=-1)


class ImageTextModel(nn.Module):
    """Both encoders and the contrastive loss that trains them.

    Args:
        config: sizes of the towers.
        late: True is FILIP: all patches against all words that aren't padding. False is CLIP: one vector a side, which
            is late interaction with one token a side.
        temperature: initial temperature of the loss.
    """

    def __init__(self, config: TowerConfig, *, late: bool, temperature: float = 0.05) -> None:
        super().__init__()
        self.late = late
        self.image = ImageEncoder(config, pooled=not late)
        self.text = TextEncoder(config, pooled=not late)
        self.criterion = LateInteractionLoss(temperature)

    def mask(self, ids: Tensor) -> Tensor | None:
        """Which text tokens take part: bool (N, L) for FILIP, None (all, it is one) for CLIP."""
        return ids != Tokenizer.PAD if self.late else None

    def forward(self, scenes: Scenes) -> LateInteractionLossOutput:
        """The loss of a batch of pairs."""
        return self.criterion(self.image(scenes.images), self.text(scenes.ids), None, self.mask(scenes.ids))

    def scores(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Image-to-text and text-to-image similarities, both (images, texts)."""
        return late_interaction(self.image(images), self.text(ids), None, self.mask(ids))
