# SPDX-License-Identifier: Apache-2.0
"""Values of `causal_conv1d` against torch's convolution in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fgkernels
from fgkernels.reference import causal_conv1d as reference

from ..common import FLOATS, LAYOUTS, names
from .cases import EMPTY, FORMS, SIZES, Case, assert_exact, call, conv_inputs, truth

pytestmark = pytest.mark.compiled


def check(case: Case, dtype: torch.dtype, layout: str = "contiguous") -> tuple[torch.Tensor, torch.Tensor]:
    inputs = conv_inputs(case, dtype, layout)
    found = call(fgkernels.causal_conv1d, inputs, case)
    eager = call(reference.causal_conv1d, inputs, case)
    for value, other, expected in zip(found, eager, truth(inputs, case), strict=True):
        assert value.dtype == dtype
        assert_exact(value, other, expected)
    return found


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("case", FORMS, ids=str)
def test_forms(implementation, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=names)
@pytest.mark.parametrize("layout", ["contiguous", "channels_strided"])
@pytest.mark.parametrize("case", SIZES, ids=str)
def test_sizes(implementation, case: Case, layout: str, dtype: torch.dtype) -> None:
    check(case, dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [Case(3, 18, 37), Case(2, 5, 21, 3, initial_state=True, seq_idx=True)], ids=str)
def test_layouts(implementation, case: Case, layout: str) -> None:
    """A channel-last x has a channel-last result; of everything else the result is contiguous."""
    out, _ = check(case, torch.float32, layout)
    assert (out.transpose(1, 2) if layout == "channels_strided" else out).is_contiguous()


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(implementation, case: Case) -> None:
    check(case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=names)
@pytest.mark.parametrize("cuts", [[1], [2, 3], [5, 11, 12], [0, 7]])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_streaming(implementation, width: int, cuts: list[int], dtype: torch.dtype) -> None:
    """A sequence in chunks, each with the state of the one before, gives the values of one call."""
    case = Case(length=13, width=width)
    inputs = conv_inputs(case, dtype)
    whole, last = call(fgkernels.causal_conv1d, inputs, case)
    state, parts = None, []
    for start, stop in zip([0, *cuts], [*cuts, 13], strict=True):
        part = inputs | {"x": inputs["x"][..., start:stop], "initial_state": state}
        out, state = call(fgkernels.causal_conv1d, part, case)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=0, atol=2 * torch.finfo(dtype).eps * 8)
    assert torch.equal(state, last)


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("offsets", [[0, 13], [0, 1, 2, 13], [0, 0, 5, 5, 12, 13, 13], [0, 4, 13, 13]])
def test_packed_sequences(implementation, offsets: list[int], with_states: bool) -> None:
    """Packed sequences, each with a state of its own or none, equal separate calls."""
    case = Case(batch=1, width=4)
    inputs = conv_inputs(case)
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    count = len(offsets) - 1
    states = torch.randn(count, case.channels, 3) if with_states else None
    out, final = fgkernels.causal_conv1d(
        x, weight, bias, "silu", initial_state=states, cu_seqlens=torch.tensor(offsets), return_final_state=True
    )
    assert final.shape == (count, case.channels, 3)
    for s, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        own = None if states is None else states[s : s + 1]
        alone, last = fgkernels.causal_conv1d(
            x[..., start:stop], weight, bias, "silu", initial_state=own, return_final_state=True
        )
        torch.testing.assert_close(out[..., start:stop], alone)
        assert torch.equal(final[s : s + 1], last)


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_parameters_of_another_dtype(implementation, dtype: torch.dtype) -> None:
    """weight, bias and state are converted to what sums have; the result keeps x's dtype."""
    case = Case(initial_state=True)
    inputs = conv_inputs(case, dtype)
    others = inputs | {name: inputs[name].to(torch.bfloat16) for name in ("weight", "bias", "initial_state")}
    wide = inputs["weight"].dtype
    same = others | {name: others[name].to(wide) for name in ("weight", "bias", "initial_state")}
    found, expected = (call(fgkernels.causal_conv1d, one, case) for one in (others, same))
    assert found[0].dtype == found[1].dtype == dtype
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_same_result_twice_and_with_any_thread_count(cpu_implementation) -> None:
    for layout in ("contiguous", "channels_strided"):
        case = Case(3, 70, 301, initial_state=True)
        inputs = conv_inputs(case, layout=layout)
        results = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(call(fgkernels.causal_conv1d, inputs, case)[0])
        assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])


@pytest.mark.parametrize("layout", ["contiguous", "channels_strided"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("seq_idx", [False, True])
def test_nan_and_inf_stay_within_their_taps(implementation, seq_idx: bool, value: float, layout: str) -> None:
    """A position reaches the W outputs from it on, of its own channel and sequence; all others are as without it."""
    case = Case(2, 21, 40, silu=False, seq_idx=seq_idx)
    inputs = conv_inputs(case, layout=layout)
    clean = call(fgkernels.causal_conv1d, inputs, case)[0]
    inputs["x"][1, 5, 17] = value
    found = call(fgkernels.causal_conv1d, inputs, case)[0]
    reached = torch.zeros(clean.shape, dtype=torch.bool)
    reached[1, 5, 17:21] = True
    if seq_idx:
        reached &= (inputs["seq_idx"] == inputs["seq_idx"][1, 17]).unsqueeze(1)
    assert not found[reached].isfinite().any()
    assert torch.equal(found[~reached], clean[~reached])


def test_silu_of_large_numbers(implementation) -> None:
    """Exact at both ends: x for large x, 0 for very negative x, and no NaN on the way."""
    x = torch.tensor([[[-3e38, -1e4, -104, -89, -88, -20, -1e-30, 0, 1e-30, 20, 88, 89, 104, 1e4, 3e38]]])
    out = fgkernels.causal_conv1d(x, torch.tensor([[0.0, 1.0]]), activation="silu")
    torch.testing.assert_close(out.double(), torch.nn.functional.silu(x.double()), rtol=1e-6, atol=1e-36)


def test_longer_than_any_tile(cpu_implementation) -> None:
    case = Case(1, 2, 20_001)
    for layout in ("contiguous", "channels_strided"):
        check(dataclasses.replace(case, initial_state=True), torch.float32, layout)
