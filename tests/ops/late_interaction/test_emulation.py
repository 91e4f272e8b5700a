# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels in the emulator, in three orders of blocks and threads; the other tests draw one per launch.

First come first served hides a missing barrier that the reverse order shows, and the other way round. The shadow memory
is on, so races, unfinished copies and elements that nobody wrote end the launch with an error.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fgkernels
from fgkernels import _backend
from fgkernels.reference import late_interaction as reference

from .cases import FLOATS, grid_tokens, masks, names, tokens

pytestmark = pytest.mark.compiled
ORDERS = ["fifo", "lifo", "random:7"]


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch):
    reason = _backend._refusal("cuda-emulated", "cpu")
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("FGKERNELS_EMULATION_SHADOW", "1")
    with fgkernels.backend("cuda-emulated"):
        yield


def results(library, function: str, arguments: tuple, options: dict) -> list[Tensor]:
    """Scores, alignments and gradients."""
    leaves = [value.detach().requires_grad_() if value.is_floating_point() else value for value in arguments[:2]]
    outputs = getattr(library, function)(*leaves, *arguments[2:], return_alignment=True, **options)
    scores = [value for value in outputs if value.requires_grad]
    differentiated = [value for value in leaves if value.requires_grad]
    return [*outputs, *torch.autograd.grad([value.square().sum() for value in scores], differentiated)]


def case(form: str, dtype: torch.dtype, make) -> tuple[str, tuple, dict]:
    """More than one tile of tokens on each side, an odd depth, masks with holes, sequences of unequal length."""
    if form == "varlen":
        offsets = torch.tensor([0, 1, 1, 70, 75]), torch.tensor([0, 130, 131, 131, 150])
        return "maxsim_varlen", (make((75, 37), dtype), make((150, 37), dtype), *offsets), {}
    left, right = make((3, 70, 37), dtype), make((3, 131, 37), dtype)
    if form == "late_interaction":
        return form, (left, right, masks((3, 70)), masks((3, 131))), {"padding": "zero", "reduction": "sum"}
    if form == "int8":
        values, scales = fgkernels.quantize_documents(right)
        return "maxsim", (left, values, None, masks((3, 131))), {"document_scales": scales}
    return "maxsim", (left, right, masks((3, 70)), masks((3, 131))), {"paired": form == "paired"}


FORMS = ["all_pairs", "paired", "late_interaction", "varlen", "int8"]


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("form", FORMS)
def test_the_order_does_not_change_a_bit(form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    function, arguments, options = case(form, dtype, tokens)
    for order in ORDERS:
        monkeypatch.setenv("FGKERNELS_EMULATION_ORDER", order)
        runs.append(results(fgkernels, function, arguments, options))
    for other in runs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_order_gives_the_references_numbers(form: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small integers: sums are exact in any order, and ties are frequent."""
    monkeypatch.setenv("FGKERNELS_EMULATION_ORDER", order)
    function, arguments, options = case(form, torch.float32, grid_tokens)
    if form == "int8":
        values, scales = arguments[1], options["document_scales"]
        values.copy_(grid_tokens(values.shape, torch.int8)), scales.copy_(torch.randint(1, 4, scales.shape) / 2)
    ours, truth = (results(library, function, arguments, options) for library in (fgkernels, reference))
    assert all(torch.equal(one, two) for one, two in zip(ours, truth, strict=True))


def test_errors_of_the_emulator_reach_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """A C++ exception of a launch becomes an error with its text, and the next call works."""
    monkeypatch.setenv("FGKERNELS_EMULATION_ORDER", "backwards")
    queries, documents = tokens((2, 3, 4)), tokens((5, 6, 4))
    with pytest.raises((RuntimeError, ValueError), match="FGKERNELS_EMULATION_ORDER.*backwards"):
        fgkernels.maxsim(queries, documents)
    monkeypatch.setenv("FGKERNELS_EMULATION_ORDER", "fifo")
    torch.testing.assert_close(fgkernels.maxsim(queries, documents), reference.maxsim(queries, documents))
