# SPDX-License-Identifier: Apache-2.0
"""Gradients of the operators: gradcheck in float64, the reference's autograd, determinism to the bit."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

import fgkernels
from fgkernels.reference import late_interaction as reference

from .cases import FLOATS, LAYOUTS, generator, grid_tokens, lay_out, masks, names, tokens

pytestmark = pytest.mark.compiled
F64 = torch.float64


def gradients(function, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a weighted sum of the scores; the weights are the same at every call."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    source = generator(3)
    weights = [torch.randint(-3, 4, out.shape, generator=source).to(out.dtype) for out in outputs]
    return torch.autograd.grad(outputs, leaves, weights)


def gradcheck(implementation, function, inputs: tuple[Tensor, ...]) -> bool:
    """Finite differences of every entry; of simulated GPU kernels along random directions, with far fewer calls."""
    return torch.autograd.gradcheck(function, inputs, fast_mode=implementation.simulated)


def spread(shape: tuple[int, ...]) -> Tensor:
    """float64 tokens whose similarities lie further apart than gradcheck's step."""
    return tokens(shape, F64) * 3


@pytest.mark.parametrize("padding", ["exclude", "zero"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_maxsim(implementation, masked: bool, reduction: str, padding: str) -> None:
    options = {"reduction": reduction, "padding": padding}
    for queries, documents, paired in (
        (spread((3, 4, 5)), spread((2, 6, 5)), False),
        (spread((3, 4, 5)), spread((3, 6, 5)), True),
        (spread((3, 4, 5)), spread((3, 2, 3, 5)), False),
    ):
        query_mask, document_mask = (masks((3, 4)), masks(documents.shape[:-1])) if masked else (None, None)
        assert gradcheck(
            implementation,
            partial(fgkernels.maxsim, query_mask=query_mask, document_mask=document_mask, paired=paired, **options),
            (queries.requires_grad_(), documents.requires_grad_()),
        )


@pytest.mark.parametrize("padding", ["exclude", "zero"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_late_interaction(implementation, masked: bool, padding: str) -> None:
    a, b = spread((3, 4, 5)).requires_grad_(), spread((2, 6, 5)).requires_grad_()
    a_mask, b_mask = (masks((3, 4)), masks((2, 6))) if masked else (None, None)
    for reduction in ("sum", "mean"):
        options = {"a_mask": a_mask, "b_mask": b_mask, "reduction": reduction, "padding": padding}
        assert gradcheck(implementation, partial(fgkernels.late_interaction, **options), (a, b))


def test_gradcheck_varlen(implementation) -> None:
    queries, documents = spread((7, 4)).requires_grad_(), spread((9, 4)).requires_grad_()
    places = {"query_offsets": torch.tensor([0, 2, 2, 7]), "document_offsets": torch.tensor([0, 4, 9, 9])}
    for paired in (False, True):
        for reduction in ("sum", "mean"):
            function = partial(fgkernels.maxsim_varlen, **places, reduction=reduction, paired=paired)
            assert gradcheck(implementation, function, (queries, documents))


FORMS = ["all_pairs", "paired", "rerank", "late_interaction", "varlen"]


def call(library, form: str, query_mask, document_mask, options):
    """`library`'s function of queries and documents for one form; varlen takes the padded tensors' tokens as packed."""
    if form == "late_interaction":
        return lambda q, d: library.late_interaction(q, d, query_mask, document_mask, **options)
    if form == "varlen":
        query_offsets, document_offsets = torch.tensor([0, 5, 5, 26, 36]), torch.tensor([0, 30, 31, 44])
        return lambda q, d: library.maxsim_varlen(
            q.flatten(0, 1), d.flatten(0, 1), query_offsets, document_offsets, reduction=options["reduction"]
        )
    return lambda q, d: library.maxsim(q, d, query_mask, document_mask, paired=form == "paired", **options)


@pytest.mark.parametrize("padding", ["exclude", "zero"])
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("form", FORMS)
def test_against_the_reference(implementation, form: str, dtype: torch.dtype, padding: str) -> None:
    """Small integers: forward and gradient are exact in every dtype, ties included, so the two must be equal."""
    queries = grid_tokens((4, 9, 12), dtype)
    documents = grid_tokens({"paired": (4, 11, 12), "rerank": (4, 3, 11, 12)}.get(form, (4, 11, 12)), dtype)
    query_mask, document_mask = masks((4, 9)), masks(documents.shape[:-1])
    for reduction in ("sum", "mean"):
        options = {"reduction": reduction, "padding": padding}
        ours = gradients(call(fgkernels, form, query_mask, document_mask, options), queries, documents)
        truth = gradients(call(reference, form, query_mask, document_mask, options), queries, documents)
        for value, expected in zip(ours, truth, strict=True):
            assert value.dtype == dtype
            if reduction == "sum":
                assert torch.equal(value, expected)
            else:
                torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("form", FORMS)
def test_random_values(implementation, form: str, dtype: torch.dtype) -> None:
    """Real-valued tokens against the float64 reference: one rounding to the input's dtype, winners well apart."""
    queries, documents = tokens((4, 9, 32), dtype), tokens((4, 11, 32), dtype)
    if form == "rerank":
        documents = tokens((4, 3, 11, 32), dtype)
    options = {"reduction": "mean", "padding": "exclude"}
    ours = gradients(call(fgkernels, form, None, None, options), queries, documents)
    truth = gradients(call(reference, form, None, None, options), queries.double(), documents.double())
    for value, expected in zip(ours, truth, strict=True):
        size = expected.abs().max().item()
        tiny = 4 * torch.finfo(dtype).eps * size + 1e-6 * size * (dtype != F64)
        assert (value.double() - expected).abs().max() <= tiny


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=names)
def test_layouts_of_inputs_and_incoming_gradient(implementation, threads: int, dtype: torch.dtype, layout: str) -> None:
    queries, documents = lay_out(grid_tokens((3, 6, 8), dtype), layout), lay_out(grid_tokens((4, 7, 8), dtype), layout)
    options = {"reduction": "sum", "padding": "exclude"}
    for form in ("all_pairs", "late_interaction"):
        expected = gradients(call(reference, form, None, None, options), queries, documents)
        for value, truth in zip(
            gradients(call(fgkernels, form, None, None, options), queries, documents), expected, strict=True
        ):
            assert torch.equal(value, truth)
    queries, documents = queries.detach().requires_grad_(), documents.detach().requires_grad_()
    for incoming in (torch.ones(()).expand(3, 4), torch.randint(-3, 4, (4, 3)).float().T, torch.ones(6, 8)[::2, ::2]):
        ours = torch.autograd.grad(fgkernels.maxsim(queries, documents), (queries, documents), incoming)
        truth = torch.autograd.grad(reference.maxsim(queries, documents), (queries, documents), incoming)
        assert all(torch.equal(value, expected) for value, expected in zip(ours, truth, strict=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("form", FORMS)
def test_deterministic_to_the_bit(implementation, form: str, dtype: torch.dtype) -> None:
    """Repeated, with other threads of the CPU build and another order of emulated blocks; sums have many terms."""
    queries = tokens((4, 9, 16), dtype)
    documents = tokens((4, 3, 11, 16) if form == "rerank" else (4, 11, 16), dtype)
    function = call(fgkernels, form, None, None, {"reduction": "mean", "padding": "exclude"})
    runs = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        runs.append(gradients(function, queries, documents))
    for other in runs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("padding", ["exclude", "zero"])
@pytest.mark.parametrize("form", ["all_pairs", "paired", "late_interaction"])
def test_masked_tokens_get_zero(implementation, form: str, padding: str) -> None:
    """Also when they hold NaN or Inf; samples without a valid token get and give nothing."""
    queries, documents = tokens((4, 9, 8)), tokens((4, 11, 8))
    query_mask, document_mask = masks((4, 9)), masks((4, 11))
    queries[~query_mask], documents[~document_mask] = math.nan, -math.inf
    options = {"reduction": "mean", "padding": padding}
    found = gradients(call(fgkernels, form, query_mask, document_mask, options), queries, documents)
    for gradient, mask in zip(found, (query_mask, document_mask), strict=True):
        assert gradient.isfinite().all()
        assert (gradient[~mask] == 0).all()
        assert (gradient[0] == 0).all()
        assert gradient[-1].abs().sum() > 0


def test_only_the_gradients_asked_for(operators, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other side's backward operator isn't called."""
    from fgkernels.ops import _late_interaction_rules as rules

    def forbidden(*args: object) -> None:
        raise AssertionError("computed a gradient that nobody asked for")

    queries, documents = tokens((2, 3, 4)), tokens((2, 5, 4))
    monkeypatch.setattr(rules, "_maxsim_backward_documents", forbidden)
    monkeypatch.setattr(rules, "_backward_b", forbidden)
    leaf = queries.clone().requires_grad_()
    (fgkernels.maxsim(leaf, documents).sum() + fgkernels.late_interaction(leaf, documents)[0].sum()).backward()
    assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(0, 3, 4, 5, 6), (2, 0, 4, 5, 6), (2, 3, 0, 5, 6), (2, 3, 4, 0, 6), (2, 3, 4, 5, 0)])
def test_zero_sizes(implementation, shape: tuple[int, ...]) -> None:
    query_count, query_length, document_count, document_length, dim = shape
    queries = tokens((query_count, query_length, dim))
    documents = tokens((document_count, document_length, dim))
    for form in ("all_pairs", "late_interaction"):
        found = gradients(
            call(fgkernels, form, None, None, {"reduction": "mean", "padding": "exclude"}), queries, documents
        )
        for gradient, value in zip(found, (queries, documents), strict=True):
            assert gradient.shape == value.shape
            assert (gradient == 0).all()


def test_long_documents_keep_wide_indices(implementation) -> None:
    queries = torch.ones(1, 2, 1)
    documents = torch.zeros(1, 40000, 1)
    documents[0, 39999] = 1
    options = {"reduction": "sum", "padding": "exclude"}
    for form in ("all_pairs", "late_interaction"):
        _, gradient = gradients(call(fgkernels, form, None, None, options), queries, documents)
        truth = gradients(call(reference, form, None, None, options), queries, documents)[1]
        assert torch.equal(gradient, truth)


def test_second_derivatives_are_refused(operators) -> None:
    """A clear error, not a silently missing term."""
    queries, documents = tokens((2, 3, 4)).requires_grad_(), tokens((2, 5, 4)).requires_grad_()
    for outputs in ((fgkernels.maxsim(queries, documents),), fgkernels.late_interaction(queries, documents)):
        (first,) = torch.autograd.grad([out.square().sum() for out in outputs], (queries,), create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives are not supported"):
            first.sum().backward()
    with fgkernels.backend("reference"):
        (first,) = torch.autograd.grad(fgkernels.maxsim(queries, documents).square().sum(), queries, create_graph=True)
        assert torch.autograd.grad(first.sum(), documents)[0].abs().sum() > 0
