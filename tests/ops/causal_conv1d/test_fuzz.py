# SPDX-License-Identifier: Apache-2.0
"""hypothesis draws sizes, layouts, dtypes, sequences and chunks: legal calls equal the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st

import fgkernels
from fgkernels.reference import causal_conv1d as reference

from ..common import FLOATS, LAYOUTS, drawn, generator, lay_out, threads
from .cases import TENSORS, Case, assert_exact, call, conv_inputs, doubled, gradients

pytestmark = pytest.mark.compiled

SIZES = st.sampled_from([0, 1, 2, 3, 5, 8, 15, 16, 17, 33, 70])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(
        batch=draw(st.sampled_from([0, 1, 1, 2, 3])),
        channels=draw(SIZES),
        length=draw(SIZES),
        width=draw(st.integers(2, 4)),
        silu=draw(st.booleans()),
        bias=draw(st.booleans()),
        initial_state=draw(st.booleans()),
        seq_idx=draw(st.booleans()),
    )


@drawn(st.data())
def test_values_and_gradients(implementation, data: st.DataObject) -> None:
    case, dtype = data.draw(cases()), data.draw(st.sampled_from(FLOATS))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    inputs = conv_inputs(case, dtype, data.draw(st.sampled_from(LAYOUTS)))
    with threads(data, implementation):
        found = call(fgkernels.causal_conv1d, inputs, case)
        eager, truth = call(reference.causal_conv1d, inputs, case), call(reference.causal_conv1d, doubled(inputs), case)
        for value, other, expected in zip(found, eager, truth, strict=True):
            assert_exact(value, other, expected)
        grad = lay_out(torch.randn(inputs["x"].shape).to(dtype), "contiguous")
        grads = grad, torch.randn(found[1].shape).to(dtype)
        ours = gradients(fgkernels.causal_conv1d, inputs, case, grads)
        eager = gradients(reference.causal_conv1d, inputs, case, grads)
        truth = gradients(reference.causal_conv1d, doubled(inputs), case, [grad.double() for grad in grads])
        for name in TENSORS:
            if inputs[name] is not None:
                assert_exact(ours[name], eager[name], truth[name])


@drawn(st.data())
def test_steps(implementation, data: st.DataObject) -> None:
    """Random streams of steps leave output and state of the reference, bit by bit in the state."""
    dtype, width = data.draw(st.sampled_from(FLOATS)), data.draw(st.integers(2, 4))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    batch, channels = data.draw(st.sampled_from([1, 2, 3])), data.draw(SIZES)
    entries = batch + data.draw(st.integers(0, 2))
    source = generator(data.draw(st.integers(0, 2**16)))
    state_len = width - 1 + data.draw(st.integers(0, 3))
    state = torch.randn(entries, channels, state_len, generator=source).to(dtype)
    if channels:
        state = lay_out(state, data.draw(st.sampled_from(["contiguous", "channels_strided", "every_second"])))
    weight = torch.randn(channels, width, generator=source).to(wide)
    rows = torch.randperm(entries, generator=source)[:batch].to(torch.int32)
    if entries == batch and data.draw(st.booleans()):
        rows = None
    counts = torch.randint(0, 9, (batch,), generator=source) if data.draw(st.booleans()) else None
    other = state.clone()
    with threads(data, implementation):
        for steps in data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)):
            x = torch.randn(batch, channels, steps, generator=source).to(dtype)
            arguments = (weight, None, "silu", counts, rows)
            found = fgkernels.causal_conv1d_update(x, state, *arguments)
            before = other.clone()
            eager = reference.causal_conv1d_update(x, other, *arguments)
            truth = reference.causal_conv1d_update(x.double(), before.double(), weight.double(), *arguments[1:])
            assert_exact(found, eager, truth)
            assert torch.equal(state, other)
            counts = None if counts is None else counts + steps
