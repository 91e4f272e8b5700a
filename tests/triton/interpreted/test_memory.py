# SPDX-License-Identifier: Apache-2.0
"""Addresses: none outside the tensors, also with offsets that only the device checks, and elements beyond 32 bits."""

from __future__ import annotations

import pytest
import torch

from fgkernels.reference import late_interaction as reference

from .calls import Case, make_case, run


@pytest.fixture
def kernels(checked_memory) -> dict:
    from fgkernels.triton.late_interaction import KERNELS

    return KERNELS


@pytest.mark.parametrize("sizes", [(1, 1), (17, 33), (70, 20)], ids=str)
@pytest.mark.parametrize("form", ["all_pairs", "paired", "rerank", "late_interaction", "varlen", "varlen paired"])
def test_nothing_outside_the_tensors(kernels: dict, monkeypatch, form: str, sizes: tuple[int, int]) -> None:
    from fgkernels.triton import _late_interaction_plan

    case = make_case(form, torch.float32, exact=True, masked=True, n=sizes[0], m=sizes[1])
    run(kernels, case)
    monkeypatch.setattr(_late_interaction_plan, "INTERPRETED", False)
    run(kernels, case)


@pytest.mark.parametrize("bad", [-2, -32768, 90, 32767])
def test_foreign_alignment_reads_nothing(kernels: dict, bad: int) -> None:
    for form in ("all_pairs", "rerank", "late_interaction", "varlen", "varlen paired"):
        case = make_case(form, torch.float32, exact=True, masked=False, n=9, m=11)
        foreign = {}
        for name, function in kernels.items():
            foreign[name] = function
            if "backward" in name:
                foreign[name] = lambda *args, function=function: function(
                    *(arg.fill_(bad) if torch.is_tensor(arg) and arg.dtype == torch.int16 else arg for arg in args)
                )
        count = 2 if form == "late_interaction" else 1
        assert all((gradient == 0).all() for gradient in run(foreign, case)[2 * count :])


OFFSETS = {
    "start": [1, 4, 9],
    "negative": [-3, 4, 9],
    "end": [0, 4, 8],
    "beyond": [0, 4, 10],
    "falling": [0, 7, 3, 9],
    "huge": [0, 2**62, 9],
    "far below": [0, -(2**62), 9],
}


@pytest.mark.parametrize("side", ["query", "document"])
@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
def test_illegal_offsets_on_a_device(kernels: dict, monkeypatch, offsets: list[int], side: str) -> None:
    """As on a GPU, where nobody reads them on the host: NaN in scores and gradients, alignment -1."""
    from fgkernels.triton import late_interaction
    from fgkernels.triton._packed import packed_on_device

    monkeypatch.setattr(
        late_interaction, "packed", lambda qo, q, do, d: packed_on_device(qo, q.shape[0], do, d.shape[0])
    )
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # its NaN would do
    tokens, illegal = torch.randn(9, 4), torch.tensor(offsets)
    legal = torch.tensor([*range(len(offsets) - 1), 9])
    places = (illegal, legal) if side == "query" else (legal, illegal)
    for form in ("varlen", "varlen paired"):
        count = len(offsets) - 1
        scores_shape = (count,) if form == "varlen paired" else (count, count)
        scores, fast, alignment, *gradients = outputs(kernels, Case(form, tokens, tokens, offsets=places))
        assert scores.shape == fast.shape == scores_shape
        for value in (scores, fast, *gradients):
            assert value.isnan().all()
        assert (alignment == -1).all()


def outputs(kernels: dict, case: Case) -> list[torch.Tensor]:
    paired = case.form == "varlen paired"
    args = (case.a, case.b, *case.offsets, None)
    scores, alignment = kernels["maxsim_varlen"](*args, False, paired)
    fast = kernels["maxsim_varlen_fwd"](*args, False, paired)
    back = [
        kernels[f"maxsim_varlen_backward_{side}"](torch.ones_like(scores), *args, alignment, False, paired)
        for side in ("queries", "documents")
    ]
    return [scores, fast, alignment, *back]


def test_device_check_accepts_what_is_legal(kernels: dict) -> None:
    from fgkernels.triton._packed import packed_on_device

    for dtype in (torch.int32, torch.int64):
        sides = packed_on_device(torch.tensor([0, 0, 4], dtype=dtype), 4, torch.tensor([0, 3, 3], dtype=dtype), 3)
        assert [side.offsets.tolist() for side in sides] == [[0, 0, 4], [0, 3, 3]]
        assert all(side.legal.item() == 1 for side in sides)
    kernels["maxsim_fwd"](torch.ones(1, 1, 1), torch.ones(1, 1, 1), None, None, None, False, False, False)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_elements_beyond_32_bits(kernels: dict, monkeypatch: pytest.MonkeyPatch, axis: int) -> None:
    """The last sample, token or channel lies 2^31 elements from the first; memory in between is never touched."""
    monkeypatch.setattr(torch.UntypedStorage, "copy_", lambda self, source, *_: self)  # the interpreter writes it back
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    shape, strides = (3, 4, 5), [64, 8, 1]
    strides[axis] = -(-(2**31) // (shape[axis] - 1))
    try:
        storage = torch.empty(2**31 + 4096, dtype=torch.float16)
    except RuntimeError as error:
        pytest.skip(f"no address space for 4 GiB: {error}")
    far = storage.as_strided(shape, strides).copy_(torch.randint(-2, 3, shape))
    near, close = far.clone(), torch.randint(-2, 3, shape).half()
    for a, b, dense in ((far, close, (near, close)), (close, far, (close, near))):
        for value, truth in zip(
            run(kernels, Case("all_pairs", a, b)), run(kernels, Case("all_pairs", *dense)), strict=True
        ):
            assert torch.equal(value, truth)
    scores = kernels["maxsim_fwd"](close, far, None, None, None, False, False, False)
    assert torch.equal(scores, reference.maxsim(close, near))
