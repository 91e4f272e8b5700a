# SPDX-License-Identifier: Apache-2.0
"""The reference against numbers worked by hand and against loops over single tokens."""

from __future__ import annotations

import math

import pytest
import torch

from fgkernels.reference import late_interaction as reference

from .cases import brute_force, grid_tokens, masks, tokens

F64 = torch.float64
PAD = (7.0, 7.0)
IMAGES = torch.tensor([[(1, 0), (0, 1)], [(0.6, 0.8), (-1, 0)]], dtype=F64)
TEXTS = torch.tensor([[(1, 0), (0, 1), PAD], [(0.8, 0.6), PAD, PAD]], dtype=F64)
TEXT_MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_filip_worked_example() -> None:
    """Two images of two patches and two texts of two and one words, similarities by hand."""
    s_image, s_text = reference.late_interaction(IMAGES, TEXTS, None, TEXT_MASK)
    torch.testing.assert_close(s_image, torch.tensor([[1, 0.7], [0.4, 0.08]], dtype=F64))
    torch.testing.assert_close(s_text, torch.tensor([[1, 0.8], [0.7, 0.96]], dtype=F64))


def test_filip_worked_example_with_zero_padding() -> None:
    """Image 2's patch (-1, 0) meets -0.8 at best in text 2; its padding, a zero vector, lifts that to 0."""
    s_image, s_text = reference.late_interaction(IMAGES, TEXTS, None, TEXT_MASK, padding="zero")
    torch.testing.assert_close(s_image, torch.tensor([[1, 0.7], [0.4, 0.48]], dtype=F64))
    torch.testing.assert_close(s_text, torch.tensor([[1, 0.8], [0.7, 0.96]], dtype=F64))


def test_maxsim_worked_example() -> None:
    """The same images as queries: sums instead of means, and which word won."""
    scores, alignment = reference.maxsim(IMAGES, TEXTS, None, TEXT_MASK, return_alignment=True)
    torch.testing.assert_close(scores, torch.tensor([[2, 1.4], [0.8, 0.16]], dtype=F64))
    assert alignment.tolist() == [[[0, 1], [0, 0]], [[1, 1], [0, 0]]]
    zero, alignment = reference.maxsim(IMAGES, TEXTS, None, TEXT_MASK, padding="zero", return_alignment=True)
    torch.testing.assert_close(zero, torch.tensor([[2, 1.4], [0.8, 0.96]], dtype=F64))
    assert alignment.tolist() == [[[0, 1], [0, 0]], [[1, 1], [0, -1]]]


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("make", [tokens, grid_tokens])
def test_against_loops(make, zero: bool, mean: bool) -> None:
    queries, documents = make((4, 5, 3), F64), make((3, 6, 3), F64)
    query_mask, document_mask = masks((4, 5)), masks((3, 6))
    options = {"reduction": "mean" if mean else "sum", "padding": "zero" if zero else "exclude"}
    for q_mask in (None, query_mask):
        for d_mask in (None, document_mask):
            scores, alignment = reference.maxsim(queries, documents, q_mask, d_mask, return_alignment=True, **options)
            expected, winners = brute_force(queries, documents, q_mask, d_mask, mean, zero)
            torch.testing.assert_close(scores, expected)
            assert torch.equal(alignment, winners)
            forth, back, winners_ab, winners_ba = reference.late_interaction(
                queries, documents, q_mask, d_mask, return_alignment=True, **options
            )
            torch.testing.assert_close(forth, expected)
            assert torch.equal(winners_ab, winners)
            expected, winners = brute_force(documents, queries, d_mask, q_mask, mean, zero)
            torch.testing.assert_close(back, expected.T)
            assert torch.equal(winners_ba, winners.transpose(0, 1))


def test_paired_and_rerank_are_parts_of_all_pairs() -> None:
    queries, documents = tokens((4, 5, 3), F64), tokens((4, 2, 6, 3), F64)
    query_mask, document_mask = masks((4, 5)), masks((4, 2, 6))
    options = {"reduction": "mean", "padding": "zero", "return_alignment": True}
    rerank, rerank_alignment = reference.maxsim(queries, documents, query_mask, document_mask, **options)
    for k in range(2):
        scores, alignment = reference.maxsim(queries, documents[:, k], query_mask, document_mask[:, k], **options)
        paired, paired_alignment = reference.maxsim(
            queries, documents[:, k], query_mask, document_mask[:, k], paired=True, **options
        )
        torch.testing.assert_close(paired, scores.diagonal())
        torch.testing.assert_close(rerank[:, k], scores.diagonal())
        assert torch.equal(paired_alignment, alignment[range(4), range(4)])
        assert torch.equal(rerank_alignment[:, k], alignment[range(4), range(4)])


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_varlen_is_padded_without_padding(reduction: str, paired: bool) -> None:
    query_lengths, document_lengths = [2, 0, 5, 1], [3, 7, 0, 2]
    queries, documents = grid_tokens((8, 3), F64), grid_tokens((12, 3), F64)
    query_offsets, document_offsets = torch.tensor([0, 2, 2, 7, 8]), torch.tensor([0, 3, 10, 10, 12])
    scores, alignment = reference.maxsim_varlen(
        queries, documents, query_offsets, document_offsets, reduction=reduction, paired=paired, return_alignment=True
    )
    padded = [torch.nn.utils.rnn.pad_sequence(t.split(n), True) for t, n in
              ((queries, query_lengths), (documents, document_lengths))]  # fmt: skip
    valid = [torch.arange(max(n)) < torch.tensor(n).unsqueeze(1) for n in (query_lengths, document_lengths)]
    expected, winners = reference.maxsim(*padded, *valid, reduction=reduction, paired=paired, return_alignment=True)
    torch.testing.assert_close(scores, expected)
    winners = winners[valid[0]] if paired else winners.transpose(0, 1)[:, valid[0]]
    assert torch.equal(alignment, winners)


@pytest.mark.parametrize("padding", ["exclude", "zero"])
def test_no_nan_in_gradients_of_masked_and_empty(padding: str) -> None:
    """Masked tokens that hold NaN and Inf, an empty document and an empty query: gradients are 0 there, finite else."""
    queries, documents = tokens((3, 4, 5), F64), tokens((3, 6, 5), F64)
    query_mask, document_mask = masks((3, 4)), masks((3, 6))
    queries[~query_mask] = math.nan
    documents[~document_mask] = math.inf
    queries.requires_grad_(), documents.requires_grad_()
    scores = reference.maxsim(queries, documents, query_mask, document_mask, padding=padding, reduction="mean")
    back = reference.late_interaction(queries, documents, query_mask, document_mask, padding=padding)[1]
    (scores.sum() + back.sum()).backward()
    for gradient, mask in ((queries.grad, query_mask), (documents.grad, document_mask)):
        assert gradient.isfinite().all()
        assert (gradient[~mask] == 0).all()
        assert gradient[mask].abs().sum() > 0


def test_gradient_goes_to_the_lowest_of_a_tie() -> None:
    queries = torch.ones(1, 1, 2, dtype=F64)
    documents = torch.ones(1, 3, 2, dtype=F64, requires_grad=True)
    reference.maxsim(queries, documents).sum().backward()
    assert documents.grad.tolist() == [[[1, 1], [0, 0], [0, 0]]]
    packed = torch.ones(3, 2, dtype=F64, requires_grad=True)
    reference.maxsim_varlen(queries[0], packed, torch.tensor([0, 1]), torch.tensor([0, 3])).sum().backward()
    assert packed.grad.tolist() == [[1, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize("function", ["maxsim", "late_interaction", "maxsim_varlen"])
def test_gradcheck(function: str) -> None:
    queries = tokens((3, 4, 3), F64).requires_grad_()
    documents = tokens((2, 5, 3), F64).requires_grad_()
    if function == "maxsim_varlen":
        offsets = torch.tensor([0, 4, 4, 12]), torch.tensor([0, 3, 10])
        assert torch.autograd.gradcheck(
            lambda q, d: reference.maxsim_varlen(q.flatten(0, 1), d.flatten(0, 1), *offsets), (queries, documents)
        )
        return
    call = getattr(reference, function)
    query_mask, document_mask = masks((3, 4)), masks((2, 5))
    assert torch.autograd.gradcheck(lambda q, d: call(q, d, query_mask, document_mask), (queries, documents))
    assert torch.autograd.gradgradcheck(lambda q, d: call(q, d, query_mask, document_mask), (queries, documents))


def test_half_inputs_are_computed_in_float32() -> None:
    """4096 + 1 is 4096 in bfloat16 and float16: only wider accumulation keeps the 1."""
    for dtype in (torch.bfloat16, torch.float16):
        queries = torch.tensor([[[64.0, 1.0]]], dtype=dtype)
        assert reference.maxsim(queries, queries).item() == 4097
        assert reference.maxsim(queries, queries).dtype == torch.float32
