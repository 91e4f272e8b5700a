# SPDX-License-Identifier: Apache-2.0
"""hypothesis draws sizes, layouts, dtypes, masks, policies and mistakes: legal calls equal the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import fgkernels
from fgkernels.ops import _library
from fgkernels.reference import late_interaction as reference

from ..common import drawn, threads
from .cases import FLOATS, LAYOUTS, generator, lay_out

pytestmark = pytest.mark.compiled

SIZES = st.sampled_from([0, 1, 2, 3, 5, 8, 15, 16, 17, 33])
CHANNELS = st.sampled_from([0, 1, 2, 3, 7, 16, 31, 64, 65])
SPECIAL = [math.nan, math.inf, -math.inf]


def values(seed: int, shape: tuple[int, ...], dtype: torch.dtype, special: float | None = None) -> Tensor:
    """Small integers, exact in every dtype, a few of them replaced by `special`."""
    source = generator(seed)
    tokens = torch.randint(-2, 3, shape, generator=source).to(dtype)
    if special is not None and tokens.numel():
        tokens.view(-1)[torch.randint(tokens.numel(), (2,), generator=source)] = special
    return tokens


@st.composite
def token_tensors(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    special = draw(st.sampled_from([None, None, None, *SPECIAL]))
    tokens = values(draw(st.integers(0, 2**16)), shape, dtype, special)
    layout = draw(st.sampled_from([name for name in LAYOUTS if name != "expanded" or shape[0] > 0]))
    return lay_out(tokens, layout)


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor | None:
    if draw(st.booleans()):
        return None
    source = generator(draw(st.integers(0, 2**16)))
    return torch.rand(shape, generator=source) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))


def assert_same(function: str, arguments: tuple, options: dict) -> None:
    """Scores and alignment of the compiled call equal the reference's; gradients too where everything is finite."""
    ours = getattr(fgkernels, function)(*arguments, return_alignment=True, **options)
    truth = getattr(reference, function)(*arguments, return_alignment=True, **options)
    for value, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(value, expected, equal_nan=True)
    leaves = [value.detach().clone().requires_grad_() for value in arguments[:2] if value.is_floating_point()]
    if not all(value.isfinite().all() for value in leaves):
        return
    rest = arguments[len(leaves) :]
    pairs = []
    for library in (fgkernels, reference):
        scores = getattr(library, function)(*leaves, *rest, **options)
        scores = scores if isinstance(scores, tuple) else (scores,)
        pairs.append(torch.autograd.grad([s.sum() for s in scores], leaves))
    for value, expected in zip(*pairs, strict=True):
        # 1 / count isn't exact, and a gradient sums up to 33 * 33 of it, so terms * eps bounds the rounding.
        eps = torch.finfo(value.dtype).eps + 33 * 33 * torch.finfo(ours[0].dtype).eps
        size = expected.abs().max().item() if expected.numel() else 0.0
        torch.testing.assert_close(value, expected, rtol=0, atol=eps * size)


@drawn(st.data())
def test_maxsim(implementation, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    form = data.draw(st.sampled_from(["all_pairs", "paired", "rerank"]))
    query_count, query_length, document_count, document_length = (data.draw(SIZES) for _ in range(4))
    dim = data.draw(CHANNELS)
    shape = {
        "all_pairs": (document_count, document_length),
        "paired": (query_count, document_length),
        "rerank": (query_count, min(document_count, 3), document_length),
    }[form]
    queries = data.draw(token_tensors((query_count, query_length, dim), dtype))
    documents = data.draw(token_tensors((*shape, dim), dtype))
    options = {
        "reduction": data.draw(st.sampled_from(["sum", "mean"])),
        "padding": data.draw(st.sampled_from(["exclude", "zero"])),
        "paired": form == "paired",
    }
    if data.draw(st.booleans()):
        documents = documents.nan_to_num(0, 0, 0).to(torch.int8)
        options["document_scales"] = values(3, shape, torch.float32).abs() / 2
    query_mask, document_mask = data.draw(masks((query_count, query_length))), data.draw(masks(shape))
    with threads(data, implementation):
        assert_same("maxsim", (queries, documents, query_mask, document_mask), options)


@drawn(st.data())
def test_late_interaction(implementation, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    a_count, n, b_count, m = (data.draw(SIZES) for _ in range(4))
    dim = data.draw(CHANNELS)
    a, b = data.draw(token_tensors((a_count, n, dim), dtype)), data.draw(token_tensors((b_count, m, dim), dtype))
    options = {
        "reduction": data.draw(st.sampled_from(["sum", "mean"])),
        "padding": data.draw(st.sampled_from(["exclude", "zero"])),
    }
    with threads(data, implementation):
        assert_same("late_interaction", (a, b, data.draw(masks((a_count, n))), data.draw(masks((b_count, m)))), options)


def offsets(lengths: list[int], dtype: torch.dtype) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


@drawn(st.data())
def test_varlen(implementation, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    query_lengths = data.draw(st.lists(SIZES, max_size=5))
    document_lengths = data.draw(st.lists(SIZES, max_size=5))
    paired = data.draw(st.booleans())
    if paired:
        count = min(len(query_lengths), len(document_lengths))
        query_lengths, document_lengths = query_lengths[:count], document_lengths[:count]
    dim = data.draw(CHANNELS)
    layout = data.draw(st.sampled_from([name for name in LAYOUTS if name != "expanded"]))
    special = data.draw(st.sampled_from([None, None, *SPECIAL]))
    packed = [
        lay_out(values(i, (1, sum(lengths), dim), dtype, special), layout)[0]
        for i, lengths in enumerate((query_lengths, document_lengths))
    ]
    places = (offsets(lengths, data.draw(st.sampled_from([torch.int32, torch.int64])))
              for lengths in (query_lengths, document_lengths))  # fmt: skip
    options = {"reduction": data.draw(st.sampled_from(["sum", "mean"])), "paired": paired}
    with threads(data, implementation):
        assert_same("maxsim_varlen", (*packed, *places), options)


ANY_DTYPE = st.sampled_from([*FLOATS, torch.int8, torch.int32, torch.int64, torch.bool, torch.uint8, torch.complex64])


@st.composite
def anything(draw: st.DrawFn) -> Tensor | None:
    """A tensor of any rank, dtype and device, or None."""
    if draw(st.integers(0, 5)) == 0:
        return None
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=5))
    tensor = torch.zeros(shape, dtype=draw(ANY_DTYPE))
    return tensor.to(draw(st.sampled_from(["meta", "cpu"]))) if draw(st.integers(0, 9)) == 0 else tensor


@drawn(st.data())
def test_anything_returns_or_raises(implementation, data: st.DataObject) -> None:
    """Arbitrary tensors in every place of every operator: an exception is fine, a crash is not."""
    name = data.draw(
        st.sampled_from(
            [
                "maxsim", "maxsim_fwd", "maxsim_backward_queries", "maxsim_backward_documents",
                "maxsim_varlen", "maxsim_varlen_fwd", "maxsim_varlen_backward_queries",
                "maxsim_varlen_backward_documents", "late_interaction", "late_interaction_fwd",
                "late_interaction_backward_a", "late_interaction_backward_b",
            ]
        )
    )  # fmt: skip
    operator = _library.op(name)
    arguments = [
        data.draw(st.booleans()) if "bool" in str(argument.type) else data.draw(anything())
        for argument in operator._schema.arguments
    ]
    try:
        operator(*arguments)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        pass


@drawn(st.data())
def test_almost_right_raises(implementation, data: st.DataObject) -> None:
    """One thing wrong in an otherwise legal call is found every time."""
    queries, documents = torch.zeros(2, 3, 4), torch.zeros(5, 6, 4)
    query_mask, document_mask = torch.ones(2, 3).bool(), torch.ones(5, 6).bool()
    arguments = [queries, documents, query_mask, document_mask]
    place = data.draw(st.integers(0, 3))
    value = arguments[place]
    wrong = data.draw(
        st.sampled_from(
            [
                value[0], value.unsqueeze(0).unsqueeze(0), value.to(torch.int16), value.to("meta"),
                torch.cat([value, value], -1), value.to(torch.complex64),
            ]
        )
    )  # fmt: skip
    arguments[place] = wrong
    name = data.draw(st.sampled_from(["maxsim", "late_interaction"]))
    back_end = data.draw(st.sampled_from([implementation.backend, "reference"]))
    with pytest.raises((RuntimeError, ValueError, TypeError)), fgkernels.backend(back_end):
        getattr(fgkernels, name)(*arguments)


@drawn(
    st.tuples(
        st.lists(st.integers(-3, 12), max_size=6),
        st.sampled_from(["query", "document"]),
        st.sampled_from([torch.int32, torch.int64]),
    )
)
def test_any_offsets(implementation, example: tuple[list[int], str, torch.dtype]) -> None:
    """Offsets are accepted exactly when they start at 0, never fall and end at the token count.

    On the GPU nobody reads them on the host: there bad ones give NaN.
    """
    numbers, side, dtype = example
    tokens, good = torch.ones(8, 3), torch.tensor([0, 8])
    given_offsets = torch.tensor(numbers, dtype=dtype)
    legal = bool(numbers) and numbers[0] == 0 and numbers[-1] == 8 and numbers == sorted(numbers)
    arguments = (tokens, tokens, given_offsets, good) if side == "query" else (tokens, tokens, good, given_offsets)
    for name in (implementation.backend, "reference"):
        with fgkernels.backend(name):
            if legal:
                assert fgkernels.maxsim_varlen(*arguments).isfinite().all()
            elif numbers and implementation.device == "cuda" and name != "reference":
                assert fgkernels.maxsim_varlen(*arguments).isnan().all()
            else:
                with pytest.raises((RuntimeError, ValueError), match=f"{side}_offsets"):
                    fgkernels.maxsim_varlen(*arguments)
