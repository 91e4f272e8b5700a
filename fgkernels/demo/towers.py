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
from .data import CANVAS, Scenes, Tokenizer

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


class _Head(nn.Module):
    """Tokens (N, L, width) -> embeddings: of every token (N, L, D), or pooled to one a sample (N, 1, D).

    Pooling is the mean of a hidden layer, batch-normalised: without that, all means start out nearly alike, as most of
    a scene is background and most of a caption the same small words, and learning takes long to get going.
    """

    def __init__(self, config: TowerConfig, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        hidden = 2 * config.width if pooled else config.width
        self.hidden = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU()) if pooled else nn.Identity()
        self.norm = nn.BatchNorm1d(hidden) if pooled else nn.Identity()
        self.projection = nn.Linear(hidden, config.dim)

    def each(self, tokens: Tensor) -> Tensor:
        """Every token's embedding (N, L, D), not normalised; in evaluation mode the pooled one is their mean."""
        hidden = self.hidden(tokens)
        return self.projection(self.norm(hidden.flatten(0, 1)).view_as(hidden))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embeddings of unit length; `mask` (N, L) says which tokens are pooled."""
        if not self.pooled:
            return F.normalize(self.each(tokens), dim=-1)
        hidden = self.hidden(tokens)
        if mask is None:
            mean = hidden.mean(1)
        else:
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(self.projection(self.norm(mean)), dim=-1)[:, None]


class ImageEncoder(nn.Module):
    """Images (N, 1, 48, 48) -> L2-normalised tokens: FILIP's patches (N, 144, D) or CLIP's one vector (N, 1, D)."""

    def __init__(self, config: TowerConfig, *, pooled: bool) -> None:
        super().__init__()
        self.tower = ImageTower(config)
        self.head = _Head(config, pooled)

    def patches(self, images: Tensor) -> Tensor:
        """Embedding of every patch (N, 144, D), not normalised; in evaluation mode CLIP's vector is their mean."""
        return self.head.each(self.tower(images))

    def forward(self, images: Tensor) -> Tensor:
        """Tokens (N, 144, D) or (N, 1, D) of unit length."""
        return self.head(self.tower(images))


class TextEncoder(nn.Module):
    """Token ids (N, L) -> L2-normalised tokens: FILIP's words (N, L, D) or CLIP's one vector (N, 1, D)."""

    def __init__(self, config: TowerConfig, *, pooled: bool) -> None:
        super().__init__()
        self.tower = TextTower(config)
        self.head = _Head(config, pooled)

    def forward(self, ids: Tensor) -> Tensor:
        """Tokens (N, L, D) or (N, 1, D) of unit length; those of padding mean nothing."""
        return self.head(self.tower(ids), ids != Tokenizer.PAD)


class ImageTextModel(nn.Module):
    """Both encoders and the contrastive loss that trains them.

    Args:
        config: sizes of the towers.
        late: True is FILIP: all patches against all words that aren't padding. False is CLIP: one vector a side, which
            is late interaction with one token a side.
        temperature: initial temperature of the loss, by default that of both papers.
    """

    def __init__(self, config: TowerConfig, *, late: bool, temperature: float = 0.07) -> None:
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
