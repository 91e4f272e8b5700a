# SPDX-License-Identifier: Apache-2.0
"""compat.pylate against PyLate's formula: similarities times masks, maximum, sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fgkernels.compat.pylate import colbert_kd_scores, colbert_scores, colbert_scores_pairwise

QUERIES = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
DOCUMENTS = torch.randn(4, 7, 8, generator=torch.Generator().manual_seed(1))
CANDIDATES = torch.randn(3, 2, 7, 8, generator=torch.Generator().manual_seed(2))


def formula(queries: Tensor, documents: Tensor, query_mask=None, document_mask=None) -> Tensor:
    """Every similarity is weighted by both masks; the unweighted maximum over tokens, zeros included, is summed."""
    documents = documents if documents.dim() == 4 else documents[None]
    products = torch.matmul(queries[:, None], documents.mT)
    if query_mask is not None:
        products = products * query_mask[:, None, :, None]
    if document_mask is not None:
        products = products * (document_mask if document_mask.dim() == 3 else document_mask[None])[:, :, None, :]
    return products.amax(3).sum(2)


def random_masks(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    query_mask, document_mask = torch.rand(3, 5) < 0.6, torch.rand(shape) < 0.5
    document_mask[0] = False
    return query_mask.to(dtype), document_mask.to(dtype)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32])
def test_scores(backend: str, mask_dtype: torch.dtype) -> None:
    query_mask, document_mask = random_masks(mask_dtype, (4, 7))
    for masks in ((None, None), (query_mask, None), (None, document_mask), (query_mask, document_mask)):
        torch.testing.assert_close(colbert_scores(QUERIES, DOCUMENTS, *masks), formula(QUERIES, DOCUMENTS, *masks))
    named = colbert_scores(
        queries_embeddings=QUERIES,
        documents_embeddings=DOCUMENTS,
        queries_mask=query_mask,
        documents_mask=document_mask,
    )
    torch.testing.assert_close(named, formula(QUERIES, DOCUMENTS, query_mask, document_mask))


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32])
def test_kd_scores(backend: str, mask_dtype: torch.dtype) -> None:
    query_mask, document_mask = random_masks(mask_dtype, (3, 2, 7))
    for masks in ((None, None), (query_mask, document_mask)):
        torch.testing.assert_close(colbert_kd_scores(QUERIES, CANDIDATES, *masks), formula(QUERIES, CANDIDATES, *masks))


def test_weights(backend: str) -> None:
    """Masks of other numbers weigh, negative ones too."""
    query_mask, document_mask = torch.randn(3, 5), torch.randn(4, 7)
    query_mask[0, 1] = document_mask[2, 3] = 0
    torch.testing.assert_close(
        colbert_scores(QUERIES, DOCUMENTS, query_mask, document_mask),
        formula(QUERIES, DOCUMENTS, query_mask, document_mask),
    )


def test_padding_floors_at_zero(backend: str) -> None:
    """A masked document token counts as similarity 0: with all others negative the score is 0, not negative."""
    queries, documents = torch.ones(1, 2, 3), -torch.ones(1, 4, 3)
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert colbert_scores(queries, documents).item() == -6
    assert colbert_scores(queries, documents, None, mask).item() == 0


def test_pairwise(backend: str) -> None:
    expected = formula(QUERIES, DOCUMENTS[:3]).diagonal()
    torch.testing.assert_close(colbert_scores_pairwise(QUERIES, DOCUMENTS[:3]), expected)
    torch.testing.assert_close(colbert_scores_pairwise(QUERIES, DOCUMENTS), expected)  # the shorter side decides
    queries = [QUERIES[0, :2], QUERIES[1], QUERIES[2, :1]]
    documents = [DOCUMENTS[0], DOCUMENTS[1, :3], DOCUMENTS[2, :6]]
    ragged = torch.stack([(q @ d.T).amax(1).sum() for q, d in zip(queries, documents, strict=True)])
    torch.testing.assert_close(colbert_scores_pairwise(queries, documents), ragged)
    with pytest.raises(ValueError, match="at least one pair"):
        colbert_scores_pairwise([], [])


def test_lists_and_arrays(backend: str) -> None:
    expected = formula(QUERIES, DOCUMENTS)
    array = QUERIES.numpy(), DOCUMENTS.numpy()
    for queries, documents in (
        array,
        (list(QUERIES), list(DOCUMENTS)),
        (list(array[0]), list(array[1])),
        (QUERIES.tolist(), DOCUMENTS.tolist()),
    ):
        torch.testing.assert_close(colbert_scores(queries, documents), expected)
    mask = np.ones((4, 7), dtype=np.float32)
    torch.testing.assert_close(colbert_scores(*array, documents_mask=mask), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtype_of_the_result(backend: str, dtype: torch.dtype) -> None:
    """The tokens' dtype, promoted by a floating mask, as products of tensors are."""
    queries, documents = QUERIES.to(dtype), DOCUMENTS.to(dtype)
    for mask_dtype in (torch.bool, torch.int64, torch.float32):
        mask = torch.ones(4, 7, dtype=mask_dtype)
        truth = formula(queries.double(), documents.double(), None, mask)
        scores = colbert_scores(queries, documents, None, mask)
        assert scores.dtype == formula(queries, documents, None, mask).dtype
        assert (scores.double() - truth).abs().max() <= torch.finfo(scores.dtype).eps * truth.abs().max() * 2 + 1e-5


def test_gradient(backend: str) -> None:
    query_mask, document_mask = random_masks(torch.float32, (4, 7))
    query_mask, document_mask = query_mask * 0.5, document_mask * 2
    results = []
    for function in (colbert_scores, formula):
        leaves = [QUERIES.clone().requires_grad_(), DOCUMENTS.clone().requires_grad_()]
        function(*leaves, query_mask, document_mask).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for value, expected in zip(*results, strict=True):
        torch.testing.assert_close(value, expected)


def test_kd_wants_candidates() -> None:
    with pytest.raises(ValueError, match=r"documents_embeddings: expected \(Nq, K, Ld, D\), got \(4, 7, 8\)"):
        colbert_kd_scores(QUERIES, DOCUMENTS)
