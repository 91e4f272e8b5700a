# SPDX-License-Identifier: Apache-2.0
"""compat.colbert against ColBERT's way: masked similarities overwritten with -9999, maximum over tokens, sum."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fgkernels.compat.colbert import colbert_score, colbert_score_packed


def formula(queries: Tensor, documents: Tensor, mask: Tensor) -> Tensor:
    similarities = torch.matmul(documents, queries.to(documents.dtype).mT)  # (N, Ld, Lq)
    return similarities.masked_fill(~mask.reshape(*documents.shape[:2], 1).bool(), -9999).amax(1).sum(1)


@pytest.mark.parametrize("query_count", [1, 4])
@pytest.mark.parametrize("trailing", [False, True])
def test_score(backend: str, trailing: bool, query_count: int) -> None:
    queries, documents, mask = torch.randn(query_count, 5, 8), torch.randn(4, 7, 8), torch.rand(4, 7) < 0.5
    mask[0], mask[1] = False, True
    given = mask.unsqueeze(-1) if trailing else mask
    for kind in (given, given.float(), given.long()):
        torch.testing.assert_close(colbert_score(queries, documents, kind), formula(queries, documents, mask))


def test_dtype_follows_the_documents(backend: str) -> None:
    queries, documents = torch.randn(1, 5, 8), torch.randn(4, 7, 8).half()
    mask = torch.ones(4, 7).bool()
    scores = colbert_score(queries, documents, mask)
    assert scores.dtype == torch.float16
    truth = formula(queries.half().double(), documents.double(), mask)
    torch.testing.assert_close(scores.double(), truth, rtol=2e-3, atol=2e-3)


def test_packed(backend: str) -> None:
    query, lengths = torch.randn(1, 5, 8), torch.tensor([3, 0, 6, 1])
    packed = torch.randn(10, 8)
    padded, mask = torch.zeros(4, 6, 8), torch.arange(6) < lengths.unsqueeze(1)
    padded[mask] = packed
    expected = formula(query, padded, mask)
    torch.testing.assert_close(colbert_score_packed(query, packed, lengths), expected)
    torch.testing.assert_close(colbert_score_packed(query[0], packed, lengths), expected)


def test_other_interactions_are_refused() -> None:
    config = SimpleNamespace(interaction="flipr")
    with pytest.raises(NotImplementedError, match="flipr"):
        colbert_score(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.ones(1, 2), config)
