# SPDX-License-Identifier: Apache-2.0
"""hypothesis draws sizes, forms, layouts, dtypes and mistakes: legal calls equal float64, others are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import fgkernels
from fgkernels.reference import selective_scan as reference

from ..common import FLOATS, LAYOUTS, drawn, lay_out, threads
from .cases import TENSORS, Case, assert_exact, call, doubled, gradients, scan_inputs

pytestmark = pytest.mark.compiled

KINDS = st.sampled_from(["shared", "grouped", "constant"])


@st.composite
def cases(draw: st.DrawFn, simulated: bool) -> Case:
    """Sizes around those of vectors, tiles and chunks; simulated kernels get the short ones."""
    groups, per_group = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([0, 1, 2, 5, 8, 17]))
    B, C = draw(KINDS), draw(KINDS)
    if "shared" in (B, C):
        groups = 1
    return Case(
        draw(st.sampled_from([0, 1, 1, 2, 3])),
        groups * per_group,
        draw(st.sampled_from([0, 1, 2, 3, 5, 8, 16, 17] + ([] if simulated else [31, 63, 64, 65, 129]))),
        draw(st.sampled_from([0, 1, 2, 3, 4, 8, 16, 17] + ([] if simulated else [64, 100]))),
        groups, B, C,
        *(draw(st.booleans()) for _ in range(5)),
    )  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn, case: Case, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Each sequence in a layout of its own."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    inputs = scan_inputs(case, dtype)
    for name in ("u", "delta", "z", "B", "C"):
        value = inputs[name]
        if value is not None and value.dim() > 2 and value.numel():
            inputs[name] = lay_out(value, draw(st.sampled_from(LAYOUTS)))
    return inputs


@drawn(st.data())
def test_legal_calls(implementation, data: st.DataObject) -> None:
    case = data.draw(cases(implementation.simulated))
    dtype = data.draw(st.sampled_from(FLOATS))
    inputs = data.draw(tensors(case, dtype))
    terms = max(case.batch * case.channels * case.length * case.states, 1)
    with threads(data, implementation):
        found = call(fgkernels.selective_scan, inputs, case.delta_softplus)
        eager = call(reference.selective_scan, inputs, case.delta_softplus)
        truth = call(reference.selective_scan, doubled(inputs), case.delta_softplus)
        for value, other, expected in zip(found, eager, truth, strict=True):
            assert_exact(value, other, expected, terms)
        grads = [torch.randn(output.shape).to(output.dtype) for output in found]
        if data.draw(st.booleans()):
            grads[data.draw(st.integers(0, 1))] = None
        slopes = (
            gradients(fgkernels.selective_scan, inputs, case.delta_softplus, grads),
            gradients(reference.selective_scan, inputs, case.delta_softplus, grads),
            gradients(reference.selective_scan, doubled(inputs), case.delta_softplus, grads),
        )
    for name, value in slopes[0].items():
        assert_exact(value, slopes[1][name], slopes[2][name], terms)


@drawn(st.data())
def test_illegal_shapes(implementation, data: st.DataObject) -> None:
    """One size of one argument is wrong: refused by name, whatever else the call is."""
    case = data.draw(cases(simulated=True))
    inputs = scan_inputs(case)
    present = [name for name in TENSORS if inputs[name] is not None and inputs[name].dim() > 0]
    name = data.draw(st.sampled_from(present))
    axis = data.draw(st.integers(0, inputs[name].dim() - 1))
    shape = list(inputs[name].shape)
    shape[axis] += data.draw(st.sampled_from([1, 2, 7]))
    bad = inputs | {name: torch.zeros(shape)}
    if legal(bad):
        return
    with pytest.raises((ValueError, RuntimeError), match=r"^(Exception: )?\w+: expected "):
        call(fgkernels.selective_scan, bad, True)


def legal(inputs: dict[str, Tensor | None]) -> bool:
    """Whether the reference, whose messages tests of their own check, takes the call."""
    try:
        call(reference.selective_scan, inputs, True)
    except ValueError:
        return False
    return True
