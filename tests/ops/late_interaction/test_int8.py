# SPDX-License-Identifier: Apache-2.0
"""int8 documents: equal to float32 queries with dequantised documents, up to float32 rounding."""

from __future__ import annotations

import math

import pytest
import torch

import fgkernels
from fgkernels.reference import late_interaction as reference

from .cases import FLOATS, LAYOUTS, assert_as_exact_as_torch, eager_maxsim, error, lay_out, masks, names, tokens

F32 = torch.float32


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_quantize(dtype: torch.dtype) -> None:
    documents = tokens((3, 7, 20), dtype)
    documents[1, 2] = 0
    values, scales = fgkernels.quantize_documents(documents)
    assert values.dtype == torch.int8 and values.shape == documents.shape
    assert scales.dtype == F32 and scales.shape == (3, 7)
    assert values.min() >= -127
    torch.testing.assert_close(scales.double(), documents.double().abs().amax(-1) / 127)
    assert (values.abs().amax(-1)[scales > 0] == 127).all()
    assert scales[1, 2] == 0 and (values[1, 2] == 0).all()
    restored = reference.dequantize_documents(values, scales, torch.float64)
    assert ((restored - documents.double()).abs() <= scales.double().unsqueeze(-1) * 0.5001).all()


def test_quantize_edges() -> None:
    documents = torch.tensor([[1.0, math.nan], [math.inf, 1.0], [1e-44, 0.0], [3e38, -3e38]])
    restored = reference.dequantize_documents(*fgkernels.quantize_documents(documents))
    assert restored[0].isnan().all() and restored[1].isnan().all()
    assert restored[2].tolist() == [0, 0]
    torch.testing.assert_close(restored[3], documents[3])
    assert fgkernels.quantize_documents(torch.zeros(2, 0, 4))[1].shape == (2, 0)
    assert fgkernels.quantize_documents(torch.zeros(2, 3, 0))[1].tolist() == [[0, 0, 0]] * 2
    with pytest.raises(TypeError, match="documents: expected float32, float64, bfloat16 or float16, got torch.int32"):
        fgkernels.quantize_documents(torch.zeros(2, 3, dtype=torch.int32))


@pytest.mark.compiled
@pytest.mark.parametrize("form", ["all_pairs", "masked", "zero", "paired", "rerank"])
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("dim", [1, 3, 4, 31, 64, 128])
def test_equals_dequantised(implementation, dim: int, dtype: torch.dtype, form: str) -> None:
    queries = tokens((3, 21, dim), dtype)
    shape = (3, 2, 40, dim) if form == "rerank" else (3, 40, dim)
    values, scales = fgkernels.quantize_documents(tokens(shape))
    query_mask, document_mask = (None, None) if form == "all_pairs" else (masks((3, 21)), masks(shape[:-1]))
    options = {"paired": form == "paired", "padding": "zero" if form == "zero" else "exclude"}
    restored = reference.dequantize_documents(values, scales, torch.float64)
    truth = reference.maxsim(queries.double(), restored, query_mask, document_mask, **options)
    wide = torch.float64 if dtype == torch.float64 else F32
    eager = eager_maxsim(
        queries.to(wide), reference.dequantize_documents(values, scales, wide), query_mask, document_mask,
        zero=form == "zero", paired=form == "paired",
    )  # fmt: skip
    scores, alignment = fgkernels.maxsim(
        queries, values, query_mask, document_mask, document_scales=scales, return_alignment=True, **options
    )
    assert_as_exact_as_torch(scores, eager, truth, dtype)
    plain = fgkernels.maxsim(queries, values, query_mask, document_mask, document_scales=scales, **options)
    assert torch.equal(plain, scores)
    assert alignment.max() < 40 and alignment.min() >= -1


@pytest.mark.compiled
@pytest.mark.parametrize("extreme", ["equal", "near_ties", "large_scales", "tiny_scales", "mixed_scales", "minus_128"])
def test_screening_never_loses_the_winner(implementation, threads: int, extreme: str) -> None:
    """Where a coarse integer screen is tempted to drop the best token: the alignment is float32's or as good."""
    dim, length = 96, 300
    queries = tokens((2, 19, dim))
    values = torch.randint(-127, 128, (5, length, dim), dtype=torch.int8)
    scales = torch.full((5, length), 0.01)
    if extreme == "equal":
        values[:] = values[:1, :1]
    elif extreme == "near_ties":
        values[:] = values[:, :1]
        values[:, :, 0] = torch.arange(length).remainder(7).to(torch.int8)
    elif extreme == "large_scales":
        scales *= 1e30
    elif extreme == "tiny_scales":
        scales *= 1e-30
    elif extreme == "mixed_scales":
        scales = 10.0 ** torch.randint(-20, 5, (5, length)).float()
    else:
        values[torch.rand(values.shape) < 0.3] = -128
        queries[:, ::3] *= 1e-3
        queries[:, 1::3, 5] = 1000
    restored = reference.dequantize_documents(values, scales, torch.float64)
    truth, winners = reference.maxsim(queries.double(), restored, return_alignment=True)
    scores, alignment = fgkernels.maxsim(queries, values, document_scales=scales, return_alignment=True)
    eager = eager_maxsim(queries, reference.dequantize_documents(values, scales))
    assert error(scores, truth) <= 2 * error(eager, truth) + 16 * torch.finfo(F32).eps * truth.abs().max().item()
    similarities = torch.einsum("qid,ytd->qyit", queries.double(), restored)
    best, chosen = (similarities.gather(3, t.unsqueeze(-1)).squeeze(-1) for t in (winners, alignment))
    assert ((best - chosen) <= 64 * torch.finfo(F32).eps * (similarities.abs().amax(-1))).all()
    if extreme == "equal":
        assert (alignment == 0).all()


@pytest.mark.compiled
def test_threads_do_not_change_a_bit(cpu_implementation) -> None:
    queries = tokens((5, 45, 64))
    values, scales = fgkernels.quantize_documents(tokens((9, 170, 64)))
    runs = []
    for count in (1, 2):
        torch.set_num_threads(count)
        runs.append(fgkernels.maxsim(queries, values, document_scales=scales, return_alignment=True))
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


@pytest.mark.compiled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(implementation, layout: str) -> None:
    values, scales = fgkernels.quantize_documents(tokens((4, 12, 18)))
    values = lay_out(values, layout)
    scales = lay_out(scales.unsqueeze(0), layout).squeeze(0)
    queries = tokens((3, 10, 18))
    truth = reference.maxsim(queries, values, document_scales=scales)
    torch.testing.assert_close(fgkernels.maxsim(queries, values, document_scales=scales), truth, rtol=1e-5, atol=1e-5)


def test_varlen(served) -> None:
    values, scales = fgkernels.quantize_documents(tokens((30, 18)))
    queries = tokens((9, 18))
    places = torch.tensor([0, 4, 4, 9]), torch.tensor([0, 11, 30, 30])
    scores = fgkernels.maxsim_varlen(queries, values, *places, document_scales=scales)
    restored = reference.dequantize_documents(values, scales)
    torch.testing.assert_close(scores, reference.maxsim_varlen(queries, restored, *places), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("form", ["all_pairs", "paired", "rerank", "varlen"])
def test_gradient_of_queries(served, form: str, dtype: torch.dtype) -> None:
    """The queries' gradient is that of dequantised documents; the documents get none."""
    queries = tokens((3, 5, 8), dtype).requires_grad_()
    values, scales = fgkernels.quantize_documents(tokens((3, 2, 6, 8) if form == "rerank" else (3, 6, 8)))
    if form == "varlen":
        places = torch.tensor([0, 5, 15]), torch.tensor([0, 2, 18])
        scores = fgkernels.maxsim_varlen(
            queries.flatten(0, 1), values.flatten(0, 1), *places, document_scales=scales.flatten()
        )
    else:
        scores = fgkernels.maxsim(queries, values, document_scales=scales, paired=form == "paired")
    (gradient,) = torch.autograd.grad(scores.sum(), queries)
    restored = reference.dequantize_documents(values, scales, torch.float64)
    wide = queries.detach().double().requires_grad_()
    if form == "varlen":
        truth = reference.maxsim_varlen(wide.flatten(0, 1), restored.flatten(0, 1), *places)
    else:
        truth = reference.maxsim(wide, restored, paired=form == "paired")
    (expected,) = torch.autograd.grad(truth.sum(), wide)
    assert gradient.dtype == dtype
    assert (gradient.double() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max() + 1e-6


def test_no_gradient_for_documents_and_scales(served) -> None:
    values, scales = fgkernels.quantize_documents(tokens((3, 6, 8)))
    queries = tokens((2, 5, 8))
    with pytest.raises(ValueError, match="document_scales: gradients are not supported"):
        fgkernels.maxsim(queries, values, document_scales=scales.requires_grad_())
    with pytest.raises(RuntimeError, match="floating point"):  # torch's own: an int8 tensor can't require grad
        values.requires_grad_()


@pytest.mark.compiled
def test_operator_refuses_gradients_of_scales_and_int8(operators) -> None:
    """Also for callers of torch.ops, who skip the public function."""
    from fgkernels.ops import _library

    values, scales = fgkernels.quantize_documents(tokens((3, 6, 8)))
    queries = tokens((3, 5, 8))
    with pytest.raises(ValueError, match="document_scales: gradients are not supported"):
        _library.op("maxsim")(queries, values, None, None, scales.clone().requires_grad_(), False, False, False)
    scores, alignment = _library.op("maxsim")(queries, values, None, None, scales, False, False, False)
    with pytest.raises(RuntimeError, match="documents: int8 documents take no gradient"):
        _library.op("maxsim_backward_documents")(scores, queries, values, None, scales, alignment, False, False)
