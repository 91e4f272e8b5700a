# SPDX-License-Identifier: Apache-2.0
"""maxsim and late_interaction on every implementation, dtype, layout and thread count against the float64 reference."""

from __future__ import annotations

import pytest
import torch

import fgkernels
from fgkernels.reference import late_interaction as reference

from .cases import (
    FLOATS,
    LAYOUTS,
    SHAPES,
    assert_as_exact_as_torch,
    eager_maxsim,
    grid_tokens,
    lay_out,
    masks,
    names,
    tokens,
)

pytestmark = pytest.mark.compiled


def check_maxsim(queries, documents, query_mask=None, document_mask=None, mean=False, zero=False, paired=False) -> None:
    options = {"reduction": "mean" if mean else "sum", "padding": "zero" if zero else "exclude", "paired": paired}
    truth = reference.maxsim(queries.double(), documents.double(), query_mask, document_mask, **options)
    eager = eager_maxsim(queries, documents, query_mask, document_mask, mean, zero, paired)
    scores = fgkernels.maxsim(queries, documents, query_mask, document_mask, **options)
    assert scores.dtype == (torch.float64 if queries.dtype == torch.float64 else torch.float32)
    assert_as_exact_as_torch(scores, eager, truth, queries.dtype)
    kept, alignment = fgkernels.maxsim(queries, documents, query_mask, document_mask, return_alignment=True, **options)
    assert torch.equal(kept, scores), "the operator that keeps the alignment computes the same scores"
    check_alignment(alignment, queries, documents, query_mask, document_mask, mean, zero, paired, scores)


def check_alignment(alignment, queries, documents, query_mask, document_mask, mean, zero, paired, scores) -> None:
    """The winners that the operator names give its scores (which of two near-equal ones it names is rounding)."""
    queries, documents = queries.double(), documents.double()
    assert alignment.dtype == torch.int64
    assert alignment.min() >= -1 and alignment.max() < documents.shape[-2]
    if documents.dim() == 3 and paired:
        documents, alignment, scores = documents.unsqueeze(1), alignment.unsqueeze(1), scores.unsqueeze(1)
        document_mask = None if document_mask is None else document_mask.unsqueeze(1)
    elif documents.dim() == 3:
        documents = documents.expand(len(queries), *documents.shape)
        document_mask = None if document_mask is None else document_mask.expand(documents.shape[:-1])
    places = alignment.clamp(min=0)
    if document_mask is not None:
        assert document_mask.gather(2, places)[alignment >= 0].all(), "a masked token won"
    chosen = documents.gather(2, places.unsqueeze(-1).expand(*places.shape, documents.shape[-1]))
    values = (chosen * queries.unsqueeze(1)).sum(-1) * (alignment >= 0)
    total = values.sum(-1)
    if mean:
        counts = torch.tensor(queries.shape[1]) if query_mask is None else query_mask.sum(-1, keepdim=True)
        total = total / counts.clamp(min=1)
    eps = 1e-5 if scores.dtype == torch.float32 else 1e-13
    torch.testing.assert_close(scores.double(), total, rtol=eps, atol=eps * max(1.0, queries.shape[1]))
    if query_mask is not None:
        assert (alignment.movedim(1, 2)[~query_mask] == -1).all()


@pytest.mark.parametrize("shape", SHAPES, ids=names)
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_all_pairs(implementation, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    query_count, query_length, document_count, document_length, dim = shape
    queries = tokens((query_count, query_length, dim), dtype)
    documents = tokens((document_count, document_length, dim), dtype)
    check_maxsim(queries, documents)


@pytest.mark.parametrize("dim", [257, 1024, 4096])
def test_long_depth_keeps_its_digits(implementation, dim: int) -> None:
    """One long chain of float32 additions would be less exact than torch's blocked matrix product."""
    queries, documents = torch.randn(1, 20, dim), torch.randn(6, 30, dim)
    check_maxsim(queries, documents)
    a, b = fgkernels.late_interaction(queries, documents)
    truth = reference.late_interaction(queries.double(), documents.double())
    eager = reference.late_interaction(queries, documents)
    for value, torch_value, exact in zip((a, b), eager, truth, strict=True):
        assert_as_exact_as_torch(value, torch_value, exact, torch.float32)


@pytest.mark.parametrize("zero", [False, True], ids=["exclude", "zero"])
@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_masks(implementation, dtype: torch.dtype, mean: bool, zero: bool) -> None:
    """Holes in the middle, a sample without any valid token and one without any masked token, on both sides."""
    queries, documents = tokens((4, 21, 40), dtype), tokens((5, 37, 40), dtype)
    check_maxsim(queries, documents, masks((4, 21)), masks((5, 37)), mean, zero)
    check_maxsim(queries, documents, None, masks((5, 37)), mean, zero)
    check_maxsim(queries, documents, masks((4, 21)), None, mean, zero)


@pytest.mark.parametrize("zero", [False, True], ids=["exclude", "zero"])
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_paired_and_rerank(implementation, dtype: torch.dtype, zero: bool) -> None:
    queries = tokens((4, 9, 24), dtype)
    check_maxsim(queries, tokens((4, 13, 24), dtype), masks((4, 9)), masks((4, 13)), zero=zero, paired=True)
    check_maxsim(queries, tokens((4, 3, 13, 24), dtype), masks((4, 9)), masks((4, 3, 13)), zero=zero, mean=True)


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_threads_do_not_change_a_bit(cpu_implementation, dtype: torch.dtype) -> None:
    queries, documents = tokens((7, 45, 33), dtype), tokens((9, 70, 33), dtype)
    query_mask, document_mask = masks((7, 45)), masks((9, 70))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(
            (
                *fgkernels.maxsim(queries, documents, query_mask, document_mask, return_alignment=True),
                *fgkernels.late_interaction(queries, documents, query_mask, document_mask, return_alignment=True),
            )
        )
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_layouts(implementation, threads: int, dtype: torch.dtype, layout: str) -> None:
    queries, documents = tokens((3, 10, 18), dtype, layout), tokens((4, 12, 18), dtype, layout)
    query_mask, document_mask = masks((3, 20))[:, ::2], masks((4, 24))[:, ::2]
    check_maxsim(queries, documents)
    check_maxsim(queries, documents, query_mask, document_mask, mean=True, zero=True)
    candidates = lay_out(torch.randn(3, 2, 12, 18, dtype=torch.float64).to(dtype), layout)
    check_maxsim(queries, candidates)
    check_late_interaction(queries, documents, query_mask, document_mask)


def test_masks_with_any_strides(implementation) -> None:
    queries, documents = tokens((4, 6, 8)), tokens((5, 9, 8))
    expanded = masks((1, 9)).expand(5, 9)
    transposed = masks((6, 4)).T
    check_maxsim(queries, documents, transposed, expanded)
    check_late_interaction(queries, documents, transposed, expanded)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5, 6), (2, 0, 4, 5, 6), (2, 3, 0, 5, 6), (2, 3, 4, 0, 6), (2, 3, 4, 5, 0)])
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_zero_sizes(implementation, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Every size may be 0. Without document tokens or channels the scores are 0."""
    query_count, query_length, document_count, document_length, dim = shape
    queries = tokens((query_count, query_length, dim), dtype)
    documents = tokens((document_count, document_length, dim), dtype)
    for reduction in ("sum", "mean"):
        for options in ({}, {"padding": "zero"}):
            scores, alignment = fgkernels.maxsim(
                queries, documents, reduction=reduction, return_alignment=True, **options
            )
            assert scores.shape == (query_count, document_count)
            assert (scores == 0).all()
            assert alignment.shape == (query_count, document_count, query_length)
            assert (alignment == (0 if dim == 0 and document_length else -1)).all()
            forth, back = fgkernels.late_interaction(queries, documents, reduction=reduction, **options)
            assert (forth == 0).all() and (back == 0).all()
            assert forth.shape == back.shape == (query_count, document_count)


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_ties_go_to_the_lowest_index(implementation, threads: int, dtype: torch.dtype) -> None:
    """Small integers are exact in every dtype, so the alignment has to be the reference's in every place."""
    for shape in ((3, 17, 4, 75, 5), (2, 40, 3, 33, 2)):
        query_count, query_length, document_count, document_length, dim = shape
        queries = grid_tokens((query_count, query_length, dim), dtype)
        documents = grid_tokens((document_count, document_length, dim), dtype)
        query_mask, document_mask = masks((query_count, query_length)), masks((document_count, document_length))
        for padding in ("exclude", "zero"):
            arguments = (queries, documents, query_mask, document_mask)
            options = {"padding": padding, "return_alignment": True}
            for name in ("maxsim", "late_interaction"):
                expected = getattr(reference, name)(*arguments, **options)
                for ours, theirs in zip(getattr(fgkernels, name)(*arguments, **options), expected, strict=True):
                    torch.testing.assert_close(ours, theirs)


def test_documents_longer_than_int16(implementation) -> None:
    """32767 tokens are numbered in 16 bits, more in 32, and both as int64 to the caller."""
    queries = torch.ones(1, 2, 1)
    for length in (32767, 32768, 70000):
        documents = torch.zeros(1, length, 1)
        documents[0, length - 1] = 1
        scores, alignment = fgkernels.maxsim(queries, documents, return_alignment=True)
        assert scores.item() == 2
        assert alignment.flatten().tolist() == [length - 1] * 2
        back = fgkernels.late_interaction(documents, queries, return_alignment=True)[3]
        assert back.flatten().tolist() == [length - 1] * 2


def check_late_interaction(a, b, a_mask=None, b_mask=None, mean=True, zero=False) -> None:
    options = {"reduction": "mean" if mean else "sum", "padding": "zero" if zero else "exclude"}
    truth_ab, truth_ba = reference.late_interaction(a.double(), b.double(), a_mask, b_mask, **options)
    ab, ba = fgkernels.late_interaction(a, b, a_mask, b_mask, **options)
    assert_as_exact_as_torch(ab, eager_maxsim(a, b, a_mask, b_mask, mean, zero), truth_ab, a.dtype)
    assert_as_exact_as_torch(ba, eager_maxsim(b, a, b_mask, a_mask, mean, zero).T, truth_ba, a.dtype)
    kept = fgkernels.late_interaction(a, b, a_mask, b_mask, return_alignment=True, **options)
    assert torch.equal(kept[0], ab) and torch.equal(kept[1], ba)
    check_alignment(kept[2], a, b, a_mask, b_mask, mean, zero, False, ab)
    check_alignment(kept[3].transpose(0, 1), b, a, b_mask, a_mask, mean, zero, False, ba.T)


@pytest.mark.parametrize("shape", SHAPES, ids=names)
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_late_interaction(implementation, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    a_count, n, b_count, m, dim = shape
    check_late_interaction(tokens((a_count, n, dim), dtype), tokens((b_count, m, dim), dtype))


@pytest.mark.parametrize("zero", [False, True], ids=["exclude", "zero"])
@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_late_interaction_masks(implementation, threads: int, dtype: torch.dtype, mean: bool, zero: bool) -> None:
    a, b = tokens((4, 33, 20), dtype), tokens((5, 18, 20), dtype)
    check_late_interaction(a, b, masks((4, 33)), masks((5, 18)), mean, zero)
    check_late_interaction(a, b, None, masks((5, 18)), mean, zero)
    check_late_interaction(a, b, masks((4, 33)), None, mean, zero)


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_both_directions_agree_with_maxsim(implementation, dtype: torch.dtype) -> None:
    a, b = tokens((3, 21, 16), dtype), tokens((4, 11, 16), dtype)
    ab, ba = fgkernels.late_interaction(a, b, reduction="sum")
    eps = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(ab, fgkernels.maxsim(a, b), rtol=eps, atol=eps)
    torch.testing.assert_close(ba, fgkernels.maxsim(b, a).T, rtol=eps, atol=eps)
