# SPDX-License-Identifier: Apache-2.0
"""ColBERT's scoring functions (colbert.modeling.colbert): same arguments, same numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.late_interaction import maxsim, maxsim_varlen

__all__ = ["colbert_score", "colbert_score_packed"]

#: What ColBERT writes over the similarity of a masked document token.
_MASKED = -9999


def colbert_score(Q: Tensor, D_padded: Tensor, D_mask: Tensor, config: Any = None) -> Tensor:
    """Score of each document against the one query, or of document i against query i: (N,), dtype of the documents.

    Args:
        Q: (1, Lq, D) or (N, Lq, D).
        D_padded: (N, Ld, D).
        D_mask: (N, Ld) or (N, Ld, 1), non-zero at valid tokens. A document without any gives -9999 per query token.
        config: ColBERT's configuration; only the interaction "colbert" is offered.

    Raises:
        NotImplementedError: for another interaction.
        ValueError, TypeError, RuntimeError: as `fgkernels.maxsim`.
    """
    _check_interaction(config)
    mask = D_mask.reshape(D_padded.shape[:2]) != 0
    queries = Q.to(D_padded.dtype)
    if Q.shape[0] == 1:
        scores = maxsim(queries, D_padded, None, mask).squeeze(0)
    else:
        scores = maxsim(queries, D_padded, None, mask, paired=True)
    return torch.where(mask.any(1), scores, _MASKED * Q.shape[1]).to(D_padded.dtype)


def colbert_score_packed(Q: Tensor, D_packed: Tensor, D_lengths: Tensor, config: Any = None) -> Tensor:
    """Score of each packed document against one query: (N,), dtype of the documents.

    Args:
        Q: (1, Lq, D) or (Lq, D).
        D_packed: (T, D), the documents' tokens one after the other.
        D_lengths: (N,) integers that sum to T. A document without tokens gives -9999 per query token, as ColBERT's GPU
            path does (its CPU path starts every maximum at 0 instead).
        config: ColBERT's configuration; only the interaction "colbert" is offered.
    """
    _check_interaction(config)
    query = Q.squeeze(0).to(D_packed.dtype)
    offsets = torch.cat([D_lengths.new_zeros(1), D_lengths]).cumsum(0)
    whole = torch.tensor([0, query.shape[0]], device=query.device)
    scores = maxsim_varlen(query, D_packed, whole, offsets).squeeze(0)
    return torch.where(D_lengths > 0, scores, _MASKED * query.shape[0]).to(D_packed.dtype)


def _check_interaction(config: Any) -> None:
    interaction = getattr(config, "interaction", "colbert")
    if interaction != "colbert":
        raise NotImplementedError(f'config.interaction: expected "colbert", got {interaction!r}')
