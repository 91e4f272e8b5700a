# SPDX-License-Identifier: Apache-2.0
"""Modules of the late-interaction family: FILIP's contrastive loss and MaxSim as a layer."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..ops.late_interaction import late_interaction, maxsim

__all__ = ["LateInteractionLoss", "LateInteractionLossOutput", "MaxSim"]


class LateInteractionLossOutput(NamedTuple):
    """What `LateInteractionLoss` returns; everything but `loss` is for monitoring and keeps its graph."""

    loss: Tensor  #: (), the mean of the two directions' losses
    loss_ab: Tensor  #: (), cross-entropy of choosing b given a (image to text)
    loss_ba: Tensor  #: (), cross-entropy of choosing a given b (text to image)
    accuracy_ab: Tensor  #: (), share of a whose own b scores highest
    accuracy_ba: Tensor  #: (), share of b whose own a scores highest
    scores_ab: Tensor  #: (B, B), s^I of FILIP, rows a, before the temperature
    scores_ba: Tensor  #: (B, B), s^T of FILIP, rows a, before the temperature


class LateInteractionLoss(nn.Module):
    """Symmetric contrastive loss over token-wise similarities (FILIP, Yao et al. 2022, equations 2 to 5).

    With (s_ab, s_ba) = late_interaction(a, b), sample k of a belonging to sample k of b and temperature tau:

        L = 1/2 mean_k [ -log softmax_y(s_ab[k, y] / tau)_{y=k} - log softmax_x(s_ba[x, k] / tau)_{x=k} ]

    Args:
        temperature: initial tau. The parameter is `log_scale` = log(1 / tau), a scalar.
        learnable: False keeps tau fixed (`log_scale` is then a buffer).
        max_scale: upper limit of 1 / tau, None for none. CLIP uses 100. The gradient is 0 beyond it.
        normalize: L2-normalise every token first; leave False when the encoders do.
        padding: "exclude" or "zero", see `fgkernels.late_interaction`.
        chunk_size: score blocks of chunk_size x chunk_size samples, and recompute each in the backward pass. Memory
            beyond the (B, B) scores then doesn't depend on B, on any back end; the result is the same. None scores
            all pairs at once, which on the compiled back end stores 2 (or 4) bytes per token and opposite sample, and
            on the reference every similarity.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learnable: bool = True,
        max_scale: float | None = 100.0,
        normalize: bool = False,
        padding: str = "exclude",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        if max_scale is not None and not max_scale > 0:
            raise ValueError(f"max_scale: expected a positive number or None, got {max_scale}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size: expected a positive number of samples or None, got {chunk_size}")
        if padding not in ("exclude", "zero"):
            raise ValueError(f'padding: expected "exclude" or "zero", got {padding!r}')
        log_scale = torch.tensor(-math.log(temperature))
        if learnable:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.max_scale = max_scale
        self.normalize = normalize
        self.padding = padding
        self.chunk_size = chunk_size

    @property
    def scale(self) -> Tensor:
        """1 / tau, limited by max_scale."""
        scale = self.log_scale.exp()
        return scale if self.max_scale is None else scale.clamp(max=self.max_scale)

    def forward(
        self, a: Tensor, b: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None
    ) -> LateInteractionLossOutput:
        """Loss of a batch of pairs.

        Args:
            a: (B, n, D) tokens, say image patches; float32, float64, bfloat16 or float16.
            b: (B, m, D) tokens, say words; dtype of a.
            a_mask: bool (B, n), True at valid tokens.
            b_mask: bool (B, m), likewise.

        Raises:
            ValueError: if a and b differ in B; else as `fgkernels.late_interaction`.
        """
        if a.shape[0] != b.shape[0]:
            raise ValueError(f"b: expected (B, m, D) with B = {a.shape[0]} like a, got {tuple(b.shape)}")
        if self.normalize:
            a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
        scores_ab, scores_ba = self.scores(a, b, a_mask, b_mask)
        logits_ab, logits_ba = scores_ab * self.scale, scores_ba.T * self.scale
        target = torch.arange(a.shape[0], device=a.device)
        loss_ab, loss_ba = F.cross_entropy(logits_ab, target), F.cross_entropy(logits_ba, target)
        return LateInteractionLossOutput(
            loss=(loss_ab + loss_ba) / 2,
            loss_ab=loss_ab,
            loss_ba=loss_ba,
            accuracy_ab=(logits_ab.argmax(1) == target).float().mean(),
            accuracy_ba=(logits_ba.argmax(1) == target).float().mean(),
            scores_ab=scores_ab,
            scores_ba=scores_ba,
        )

    def scores(
        self, a: Tensor, b: Tensor, a_mask: Tensor | None = None, b_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(s_ab, s_ba), both (Na, Nb), in blocks where chunk_size asks for them."""
        if self.chunk_size is None:
            return late_interaction(a, b, a_mask, b_mask, padding=self.padding)
        rows = [
            [self._block(a_part, b_part, a_part_mask, b_part_mask) for b_part, b_part_mask in self._parts(b, b_mask)]
            for a_part, a_part_mask in self._parts(a, a_mask)
        ]
        return tuple(torch.cat([torch.cat([block[i] for block in row], 1) for row in rows]) for i in (0, 1))

    def _parts(self, tokens: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        parts = tokens.split(self.chunk_size)
        masks = [None] * len(parts) if mask is None else mask.split(self.chunk_size)
        return list(zip(parts, masks, strict=True))

    def _block(self, a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return late_interaction(a, b, a_mask, b_mask, padding=self.padding)
        return checkpoint(
            late_interaction, a, b, a_mask, b_mask, padding=self.padding, use_reentrant=False, preserve_rng_state=False
        )

    def extra_repr(self) -> str:
        return (
            f"max_scale={self.max_scale}, normalize={self.normalize}, padding={self.padding!r}, "
            f"chunk_size={self.chunk_size}"
        )


class MaxSim(nn.Module):
    """`fgkernels.maxsim` as a layer without parameters: queries (Nq, Lq, D), documents (Nd, Ld, D) -> (Nq, Nd)."""

    def __init__(self, *, reduction: str = "sum", padding: str = "exclude", paired: bool = False) -> None:
        super().__init__()
        self.reduction = reduction
        self.padding = padding
        self.paired = paired

    def forward(
        self,
        queries: Tensor,
        documents: Tensor,
        query_mask: Tensor | None = None,
        document_mask: Tensor | None = None,
        document_scales: Tensor | None = None,
    ) -> Tensor:
        """Scores, see `fgkernels.maxsim`."""
        return maxsim(
            queries,
            documents,
            query_mask,
            document_mask,
            reduction=self.reduction,
            padding=self.padding,
            paired=self.paired,
            document_scales=document_scales,
        )

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, padding={self.padding!r}, paired={self.paired}"
