# SPDX-License-Identifier: Apache-2.0
"""vmap over every argument, and its compositions with grad, against a loop over the batch."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

import fgkernels

from .cases import grid_tokens, masks

pytestmark = pytest.mark.compiled

BATCH = 3


def check(function, arguments: tuple, dims: tuple) -> None:
    """vmap(function) equals the stack of calls on each batch entry."""
    found = vmap(function, dims)(*arguments)
    rows = [
        function(*(value if dim is None else value.select(dim, i) for value, dim in zip(arguments, dims, strict=True)))
        for i in range(BATCH)
    ]
    if isinstance(found, tuple):
        for j, value in enumerate(found):
            torch.testing.assert_close(value, torch.stack([row[j] for row in rows]))
    else:
        torch.testing.assert_close(found, torch.stack(rows))


def batched(shape: tuple[int, ...], dim: int | None, make=grid_tokens):
    """A tensor whose batch dimension, if any, lies at `dim`."""
    if dim is None:
        return make(shape)
    return make((BATCH, *shape)).movedim(0, dim)


# Batch dimensions of (queries, documents, query_mask, document_mask).
DIMS = [
    (0, None, None, None), (1, None, 0, None), (None, None, 1, None), (None, 0, None, None), (None, 2, None, 1),
    (None, None, None, 0), (0, 0, None, None), (2, 1, 1, 0), (None, 0, 0, None),
]  # fmt: skip
FORMS = ["all_pairs", "paired", "rerank", "late_interaction"]


def setting(form: str, dims: tuple):
    """The function of a form, without and with alignment, and its arguments."""
    documents = (2, 3, 6, 5) if form == "rerank" else (2, 6, 5)
    arguments = (
        batched((2, 4, 5), dims[0]), batched(documents, dims[1]),
        batched((2, 4), dims[2], masks), batched(documents[:-1], dims[3], masks),
    )  # fmt: skip
    name = "late_interaction" if form == "late_interaction" else "maxsim"
    options = {"reduction": "mean", "padding": "zero"} | ({"paired": True} if form == "paired" else {})

    def function(*values, alignment: bool = False):
        return getattr(fgkernels, name)(*values, return_alignment=alignment, **options)

    return function, arguments


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_forward(operators, form: str, dims: tuple) -> None:
    function, arguments = setting(form, dims)
    check(function, arguments, dims)
    check(lambda *values: function(*values, alignment=True), arguments, dims)


@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gradient_per_entry(operators, form: str, dims: tuple, argument: int) -> None:
    """vmap(grad(...)): one gradient per batch entry, also of an argument that all entries share."""
    function, arguments = setting(form, dims)

    def loss(*values):
        scores = function(*values)
        return sum(s.square().sum() for s in scores) if isinstance(scores, tuple) else scores.square().sum()

    check(grad(loss, argnums=argument), arguments, dims)


@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gradient_of_vmap(operators, form: str, dims: tuple, argument: int) -> None:
    """grad(vmap(...)), through torch.func and through ordinary autograd, against the loop's gradient."""
    function, arguments = setting(form, dims)

    def total(outputs):
        return sum(s.square().sum() for s in outputs) if isinstance(outputs, tuple) else outputs.square().sum()

    def looped(*values):
        return sum(
            total(function(*(v if d is None else v.select(d, i) for v, d in zip(values, dims, strict=True))))
            for i in range(BATCH)
        )

    expected = grad(looped, argnums=argument)(*arguments)
    torch.testing.assert_close(
        grad(lambda *values: total(vmap(function, dims)(*values)), argument)(*arguments), expected
    )
    leaf = arguments[argument].clone().requires_grad_()
    arguments = *arguments[:argument], leaf, *arguments[argument + 1 :]
    (found,) = torch.autograd.grad(total(vmap(function, dims)(*arguments)), leaf)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", ["all_pairs", "paired", "rerank"])
@pytest.mark.parametrize("dims", [(0, None, None), (None, 0, 0), (0, 1, 1), (None, None, 0)], ids=str)
def test_int8(operators, form: str, dims: tuple) -> None:
    documents = (2, 3, 6, 5) if form == "rerank" else (2, 6, 5)
    arguments = (
        batched((2, 4, 5), dims[0]),
        batched(documents, dims[1]).to(torch.int8),
        batched(documents[:-1], dims[2], torch.rand),
    )

    def function(queries, values, scales):
        return fgkernels.maxsim(queries, values, document_scales=scales, paired=form == "paired")

    check(function, arguments, dims)
    check(grad(lambda *values: function(*values).square().sum()), arguments, dims)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(
    "dims",
    [(0, None, None, None), (None, 1, None, None), (1, 0, None, None), (None, None, 0, None), (0, 0, 0, 0),
     (None, None, None, 1), (None, 0, 0, None)],
    ids=str,
)  # fmt: skip
def test_varlen(operators, dims: tuple, paired: bool) -> None:
    """Offsets may differ between batch entries, as long as the token count is the same."""
    query_offsets, document_offsets = torch.tensor([0, 2, 2, 7]), torch.tensor([0, 4, 9, 10])
    arguments = [batched((7, 5), dims[0]), batched((10, 5), dims[1]), query_offsets, document_offsets]
    for i, dim in ((2, dims[2]), (3, dims[3])):
        if dim is not None:
            last = arguments[i][-1].item()
            rows = [arguments[i], torch.tensor([0, 0, 3, last]), torch.tensor([0, last, last, last])]
            arguments[i] = torch.stack(rows, dim)

    def function(*values):
        return fgkernels.maxsim_varlen(*values, paired=paired, reduction="mean")

    check(function, tuple(arguments), dims)
    check(
        lambda *values: fgkernels.maxsim_varlen(*values, paired=paired, return_alignment=True), tuple(arguments), dims
    )
    for argument in (0, 1):
        check(grad(lambda *values: function(*values).square().sum(), argnums=argument), tuple(arguments), dims)


def test_folded_varlen_alignment_keeps_its_dtype(operators) -> None:
    """A batch of documents that together need 32-bit indices, each of which needs 16."""
    queries, documents = torch.ones(1, 1), torch.zeros(BATCH, 20000, 1)
    documents[:, 19999] = torch.arange(1.0, BATCH + 1).unsqueeze(1)
    from fgkernels.ops import _library

    offsets = torch.tensor([0, 1]), torch.tensor([0, 20000])
    scores, alignment = vmap(
        lambda d: _library.op("maxsim_varlen")(queries, d, *offsets, None, False, False)
    )(documents)  # fmt: skip
    assert scores.flatten().tolist() == [1, 2, 3]
    assert alignment.dtype == torch.int16
    assert (alignment == 19999).all()


def test_nested_vmap(operators) -> None:
    queries, documents = grid_tokens((2, BATCH, 2, 4, 5)), grid_tokens((3, 6, 5))
    found = vmap(vmap(lambda q: fgkernels.maxsim(q, documents)))(queries)
    assert torch.equal(found, fgkernels.maxsim(queries.flatten(0, 2), documents).unflatten(0, (2, BATCH, 2)))


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0)], ids=str)
def test_empty_batch(operators, dims: tuple) -> None:
    """A batch without entries gives outputs without entries, as torch's own functions do."""
    queries = torch.zeros((0, 2, 3, 4) if dims[0] == 0 else (2, 3, 4))
    documents = torch.zeros((0, 5, 6, 4) if dims[1] == 0 else (5, 6, 4))
    scores, alignment = vmap(lambda q, d: fgkernels.maxsim(q, d, return_alignment=True), dims)(queries, documents)
    assert scores.shape == (0, 2, 5) and alignment.shape == (0, 2, 5, 3)
    assert scores.device == queries.device and alignment.dtype == torch.int64
    gradient = vmap(grad(lambda q, d: fgkernels.maxsim(q, d).sum()), dims)(queries, documents)
    assert gradient.shape == (0, 2, 3, 4)
