# SPDX-License-Identifier: Apache-2.0
"""Inputs and brute force of the late-interaction tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..common import (  # noqa: F401  (every test of the family gets its helpers from here)
    FLOATS,
    LAYOUTS,
    assert_as_exact_as_torch,
    error,
    generator,
    lay_out,
    names,
    to_default_device,
)

# (Nq, Lq, Nd, Ld, D): nothing is a multiple of a vector or tile, then single elements, then powers of two.
SHAPES = [
    (3, 5, 4, 7, 19),
    (2, 33, 3, 70, 65),
    (1, 1, 1, 1, 1),
    (1, 8, 4, 8, 64),
    (2, 16, 2, 32, 128),
    (5, 3, 1, 130, 3),
]


def tokens(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Tensor:
    return lay_out(torch.randn(shape, dtype=torch.float64).to(dtype), layout)


def grid_tokens(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Small integers: every dtype computes exactly and ties are frequent."""
    return torch.randint(-2, 3, shape).to(dtype)


def masks(shape: tuple[int, ...], valid: float = 0.6) -> Tensor:
    """Random holes, not just a padded tail; the first sample keeps nothing, the last everything."""
    mask = torch.rand(shape) < valid
    if shape[0] > 2:
        mask[0] = False
        mask[-1] = True
    return mask


def eager_maxsim(
    queries: Tensor,
    documents: Tensor,
    query_mask: Tensor | None = None,
    document_mask: Tensor | None = None,
    mean: bool = False,
    zero: bool = False,
    paired: bool = False,
) -> Tensor:
    """What a user writes in the inputs' dtype: the yardstick of the tolerance rule."""
    documents = documents if paired or documents.dim() == 4 else documents.unsqueeze(0)
    if documents.dim() == 3:
        documents = documents.unsqueeze(1)
        document_mask = None if document_mask is None else document_mask.unsqueeze(1)
    similarities = queries.unsqueeze(1) @ documents.transpose(-1, -2)
    if document_mask is not None:
        similarities = similarities.masked_fill(~document_mask.unsqueeze(-2), 0 if zero else -math.inf)
        empty = ~document_mask.any(-1).unsqueeze(-1)
    maxima = similarities.amax(-1)
    if document_mask is not None:
        maxima = maxima.masked_fill(empty, 0)
    if query_mask is not None:
        maxima = maxima.masked_fill(~query_mask.unsqueeze(1), 0)
    scores = maxima.sum(-1)
    if mean:
        count = torch.full((len(queries),), queries.shape[1]) if query_mask is None else query_mask.sum(-1)
        scores = scores / count.clamp(min=1).unsqueeze(1)
    return scores.squeeze(1) if paired and documents.shape[1] == 1 else scores


def brute_force(
    queries: Tensor,
    documents: Tensor,
    query_mask: Tensor | None = None,
    document_mask: Tensor | None = None,
    mean: bool = False,
    zero: bool = False,
) -> tuple[Tensor, Tensor]:
    """All-pairs scores and alignment by loops over single tokens, in float64."""
    query_count, query_length, _ = queries.shape
    document_count, document_length, _ = documents.shape
    scores = torch.zeros(query_count, document_count, dtype=torch.float64)
    alignment = torch.full((query_count, document_count, query_length), -1)
    for x in range(query_count):
        valid = [i for i in range(query_length) if query_mask is None or query_mask[x, i]]
        for y in range(document_count):
            allowed = [t for t in range(document_length) if document_mask is None or document_mask[y, t]]
            total = 0.0
            for i in valid:
                best, winner = -math.inf, None
                for t in range(document_length):
                    if t in allowed:
                        value = sum(float(p) * float(q) for p, q in zip(queries[x, i], documents[y, t], strict=True))
                    elif zero and allowed:
                        value = 0.0
                    else:
                        continue
                    if winner is None or value > best:
                        best, winner = value, t
                if winner is None:
                    continue
                total += best
                alignment[x, y, i] = winner if winner in allowed else -1
            scores[x, y] = total / max(len(valid), 1) if mean else total
    return scores, alignment
