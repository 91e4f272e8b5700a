# SPDX-License-Identifier: Apache-2.0
"""NaN and Inf in tokens that are read propagate as in the reference; masked tokens are never read."""

from __future__ import annotations

import math

import pytest
import torch

import fgkernels
from fgkernels.reference import late_interaction as reference

from .cases import FLOATS, grid_tokens, masks, names, tokens

pytestmark = pytest.mark.compiled


def assert_same(ours, truth) -> None:
    for value, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(value, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("side", ["queries", "documents"])
def test_one_nan(implementation, threads: int, side: str, dtype: torch.dtype) -> None:
    """Every score that reads the token is NaN, the others are not, and the first NaN is the winner."""
    for sample, token, channel in ((0, 0, 0), (1, 16, 3), (2, 36, 11)):
        queries, documents = grid_tokens((3, 37, 12), dtype), grid_tokens((4, 37, 12), dtype)
        (queries if side == "queries" else documents)[sample, token, channel] = math.nan
        scores, alignment = fgkernels.maxsim(queries, documents, return_alignment=True)
        hit = scores[sample] if side == "queries" else scores[:, sample]
        assert hit.isnan().all()
        assert scores.isnan().sum() == hit.numel()
        assert_same((scores, alignment), reference.maxsim(queries, documents, return_alignment=True))
        winners = alignment[sample, :, token] if side == "queries" else alignment[:, sample]
        assert (winners == (0 if side == "queries" else token)).all()
        assert_same(
            fgkernels.late_interaction(queries, documents, return_alignment=True),
            reference.late_interaction(queries, documents, return_alignment=True),
        )


@pytest.mark.parametrize("padding", ["exclude", "zero"])
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scattered(implementation, value: float, dtype: torch.dtype, padding: str) -> None:
    """Many bad entries, masks and ties: scores and alignment equal the reference's."""
    queries, documents = grid_tokens((4, 19, 7), dtype), grid_tokens((5, 40, 7), dtype)
    queries[torch.rand(queries.shape) < 0.01] = value
    documents[torch.rand(documents.shape) < 0.004] = value
    query_mask, document_mask = masks((4, 19)), masks((5, 40))
    for arguments in ((queries, documents), (queries, documents, query_mask, document_mask)):
        for name in ("maxsim", "late_interaction"):
            options = {"padding": padding, "return_alignment": True}
            assert_same(
                getattr(fgkernels, name)(*arguments, **options), getattr(reference, name)(*arguments, **options)
            )
    places = torch.tensor([0, 19, 30, 76]), torch.tensor([0, 0, 33, 200])
    packed = queries.flatten(0, 1), documents.flatten(0, 1)
    assert_same(
        fgkernels.maxsim_varlen(*packed, *places, return_alignment=True),
        reference.maxsim_varlen(*packed, *places, return_alignment=True),
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_every_similarity_minus_infinity(implementation, dtype: torch.dtype) -> None:
    """Then the first valid token wins, not a masked one before it."""
    queries, documents = torch.ones(1, 2, 3, dtype=dtype), torch.full((1, 4, 3), -math.inf, dtype=dtype)
    mask = torch.tensor([[False, False, True, True]])
    scores, alignment = fgkernels.maxsim(queries, documents, None, mask, return_alignment=True)
    assert scores.item() == -math.inf
    assert alignment.flatten().tolist() == [2, 2]
    assert_same(
        fgkernels.late_interaction(documents, queries, mask, None, return_alignment=True),
        reference.late_interaction(documents, queries, mask, None, return_alignment=True),
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_masked_tokens_are_not_read(implementation, dtype: torch.dtype, value: float) -> None:
    queries, documents = tokens((4, 9, 8), dtype), tokens((4, 11, 8), dtype)
    query_mask, document_mask = masks((4, 9)), masks((4, 11))
    clean = fgkernels.maxsim(queries, documents, query_mask, document_mask)
    clean_both = fgkernels.late_interaction(queries, documents, query_mask, document_mask)
    queries[~query_mask], documents[~document_mask] = value, value
    assert torch.equal(fgkernels.maxsim(queries, documents, query_mask, document_mask), clean)
    assert_same(fgkernels.late_interaction(queries, documents, query_mask, document_mask), clean_both)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["queries", "scales"])
def test_int8(implementation, where: str, value: float) -> None:
    queries = tokens((3, 19, 32))
    documents, scales = fgkernels.quantize_documents(tokens((4, 40, 32)))
    (queries[1, 3] if where == "queries" else scales[2])[5] = value
    ours = fgkernels.maxsim(queries, documents, document_scales=scales, return_alignment=True)
    truth = reference.maxsim(queries, documents, document_scales=scales, return_alignment=True)
    torch.testing.assert_close(ours[0], truth[0], equal_nan=True, rtol=1e-5, atol=1e-5)
    assert truth[0].isfinite().logical_not().any()
    bad = ~truth[0].isfinite().unsqueeze(-1).expand(truth[1].shape)
    bad_tokens = bad & (torch.arange(19) == 3) if where == "queries" else bad
    assert torch.equal(ours[1][bad_tokens], truth[1][bad_tokens])


def test_overflow_to_infinity(implementation) -> None:
    """Products beyond float32 give Inf as in the reference, also from 16-bit inputs."""
    for dtype, size in ((torch.float32, 1e30), (torch.bfloat16, 1e30)):
        queries, documents = torch.full((1, 2, 4), size, dtype=dtype), torch.full((1, 3, 4), size, dtype=dtype)
        assert fgkernels.maxsim(queries, documents).item() == math.inf
        assert fgkernels.maxsim(queries, -documents).item() == -math.inf


def test_subnormal_products_keep_order(implementation) -> None:
    """Similarities far below 1 are still compared (normal float32 results; tokens of any scale)."""
    queries, documents = torch.full((1, 1, 2), 1e-15), torch.full((1, 3, 2), 1e-15)
    documents[0, 1] *= 1.5
    _, alignment = fgkernels.maxsim(queries, documents, return_alignment=True)
    assert alignment.item() == 1
