# SPDX-License-Identifier: Apache-2.0
"""hypothesis draws sizes, layouts, dtypes and sequences: legal calls equal the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st

import fgkernels
from fgkernels.reference import mamba_chunk_scan as reference

from ..common import FLOATS, LAYOUTS, drawn, threads
from .cases import TENSORS, Case, assert_exact, call, doubled, gradients, scan_inputs

pytestmark = pytest.mark.compiled


@st.composite
def cases(draw: st.DrawFn, simulated: bool) -> Case:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    lengths = [0, 1, 2, 7, 16, 33] if simulated else [0, 1, 2, 7, 33, 127, 128, 129, 200]
    softplus = draw(st.booleans())
    return Case(
        batch=draw(st.sampled_from([0, 1, 1, 2])),
        length=draw(st.sampled_from(lengths)),
        heads=groups * draw(st.integers(1, 2)),
        channels=draw(st.sampled_from([0, 1, 3, 8, 17, 33])),
        groups=groups,
        states=draw(st.sampled_from([0, 1, 2, 5, 16, 31])),
        D=draw(st.sampled_from(["", "head", "channel"])),
        z=draw(st.booleans()),
        dt_bias=draw(st.booleans()),
        initial_states=draw(st.booleans()),
        seq_idx=draw(st.booleans()),
        dt_softplus=softplus,
        dt_limit=draw(st.sampled_from([(0.0, math.inf), (0.0, math.inf), (0.1, 0.7), (-math.inf, math.inf)])),
    )


@drawn(st.data())
def test_values_and_gradients(implementation, data: st.DataObject) -> None:
    case, dtype = data.draw(cases(implementation.simulated)), data.draw(st.sampled_from(FLOATS))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    inputs = scan_inputs(case, dtype, data.draw(st.sampled_from(LAYOUTS)))
    scan, terms = fgkernels.mamba_chunk_scan_combined, max(case.length * case.states, 1)
    with threads(data, implementation):
        found = call(scan, inputs, case)
        eager = call(reference.mamba_chunk_scan_combined, inputs, case)
        truth = call(reference.mamba_chunk_scan_combined, doubled(inputs), case)
        for value, other, expected in zip(found, eager, truth, strict=True):
            assert_exact(value, other, expected, terms)
        grads = torch.randn(found[0].shape).to(dtype), torch.randn(found[1].shape).to(found[1].dtype)
        ours = gradients(scan, inputs, case, grads)
        eager = gradients(reference.mamba_chunk_scan_combined, inputs, case, grads)
        truth = gradients(reference.mamba_chunk_scan_combined, doubled(inputs), case, grads)
        for name in TENSORS:
            if inputs[name] is not None:
                assert_exact(ours[name], eager[name], truth[name], terms * max(case.batch * case.channels, 1))
