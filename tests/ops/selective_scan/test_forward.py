# SPDX-License-Identifier: Apache-2.0
"""Values of `selective_scan` against float64: dtypes, forms, sizes, layouts, chunks, extremes, special numbers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import fgkernels
from fgkernels.reference import selective_scan as reference

from ..common import FLOATS, LAYOUTS, left_out, names
from .cases import EMPTY, FORMS, SIZES, Case, assert_exact, call, scan_inputs, truth

pytestmark = pytest.mark.compiled


def check(case: Case, dtype: torch.dtype, layout: str = "contiguous") -> tuple[Tensor, Tensor]:
    inputs = scan_inputs(case, dtype, layout)
    found = call(fgkernels.selective_scan, inputs, case.delta_softplus)
    eager = call(reference.selective_scan, inputs, case.delta_softplus)
    for value, other, expected in zip(found, eager, truth(inputs, case.delta_softplus), strict=True):
        assert_exact(value, other, expected, terms=max(case.length, case.states))
    out = fgkernels.selective_scan(*(inputs[name] for name in list(inputs)[:-1]), case.delta_softplus,
                                   initial_state=inputs["initial_state"])  # fmt: skip
    assert torch.equal(out, found[0]), "asking for the state changes the output"
    return found


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("case", FORMS, ids=str)
def test_forms(implementation, case: Case, dtype: torch.dtype) -> None:
    if left_out(implementation, dtype == torch.float32 or case is FORMS[0]):
        return
    out, last = check(case, dtype)
    assert out.dtype == dtype and last.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=names)
@pytest.mark.parametrize("case", SIZES, ids=str)
def test_sizes(implementation, case: Case, dtype: torch.dtype) -> None:
    if left_out(implementation, dtype == torch.float32):
        return
    check(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=names)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [Case(3, 18, 37, 5, 2), Case(2, 5, 70, 4, 1, B="shared", C="constant")], ids=str)
def test_layouts(implementation, case: Case, layout: str, dtype: torch.dtype) -> None:
    """Sequences of any strides, with NaN in the gaps; out is channel-last where u is."""
    if left_out(implementation, dtype == torch.float32):
        return
    out, _ = check(case, dtype, layout)
    if layout == "channels_strided":
        assert out.transpose(1, 2).is_contiguous()
    else:
        assert out.is_contiguous()


def test_parameters_of_any_strides(implementation) -> None:
    inputs = scan_inputs(Case())
    expected = call(fgkernels.selective_scan, inputs, True)
    strided = {
        "A": inputs["A"].T.contiguous().T,
        "D": inputs["D"].repeat_interleave(2)[::2],
        "delta_bias": inputs["delta_bias"].repeat_interleave(3)[::3],
        "initial_state": inputs["initial_state"].transpose(0, 2).contiguous().transpose(0, 2),
    }
    for value, other in zip(call(fgkernels.selective_scan, inputs | strided, True), expected, strict=True):
        assert torch.equal(value, other)
    shared = inputs | {"A": inputs["A"][:1].expand(6, -1), "D": inputs["D"][:1].expand(6)}
    dense = {name: None if value is None else value.contiguous() for name, value in shared.items()}
    for value, other in zip(*(call(fgkernels.selective_scan, x, True) for x in (shared, dense)), strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(implementation, case: Case) -> None:
    check(case, torch.float32)


def test_one_group_is_the_shared_form(implementation) -> None:
    inputs = scan_inputs(Case(groups=1))
    shared = inputs | {"B": inputs["B"].squeeze(1), "C": inputs["C"].squeeze(1)}
    for value, other in zip(*(call(fgkernels.selective_scan, x, True) for x in (inputs, shared)), strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize("cuts", [(1,), (7, 13), (64,), (63, 65, 70)], ids=str)
def test_streaming(implementation, cuts: tuple[int, ...]) -> None:
    """Chunks of any length that hand on their state give what one call gives."""
    case = Case(2, 6, 20 if implementation.simulated else 150, 4)
    inputs = scan_inputs(case)
    expected, expected_last = call(fgkernels.selective_scan, inputs, True)
    state, parts, start = inputs["initial_state"], [], 0
    for end in (*cuts, case.length):
        end = min(end, case.length)
        chunk = {name: v[..., start:end] if name in ("u", "delta", "B", "C", "z") else v for name, v in inputs.items()}
        out, state = call(fgkernels.selective_scan, chunk | {"initial_state": state}, True)
        parts.append(out)
        start = end
    torch.testing.assert_close(torch.cat(parts, -1), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, expected_last, rtol=1e-5, atol=1e-5)


def test_same_result_on_any_number_of_threads(cpu_implementation) -> None:
    for case in (Case(2, 70, 65, 16, 2), Case(1, 3, 200, 5, 1), Case(1, 5, 25, 256, 1)):
        inputs = scan_inputs(case)
        results = []
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            results.append(call(fgkernels.selective_scan, inputs, True))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# --- extremes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=names)
def test_long_products(implementation, dtype: torch.dtype) -> None:
    """A delta from -80 a step, where nothing is left of the past, to 0, where nothing is lost: finite and exact."""
    length = 30
    delta = torch.linspace(0, 1, 9, dtype=dtype).reshape(1, 9, 1).expand(1, 9, length)
    A = torch.tensor([[-80.0, -1.0, -1e-6, 0.0]], dtype=dtype).expand(9, 4)
    B, C = torch.randn(2, 1, 4, length, dtype=dtype)
    u = torch.randn(1, 9, length, dtype=dtype)
    inputs = dict.fromkeys(("D", "z", "delta_bias", "initial_state")) | {"u": u, "delta": delta, "A": A, "B": B, "C": C}
    inputs["initial_state"] = torch.randn(1, 9, 4, dtype=dtype)
    inputs = {name: inputs[name] for name in scan_inputs(Case(D=False, z=False, delta_bias=False))}
    found = call(fgkernels.selective_scan, inputs, False)
    for value, eager, expected in zip(
        found, call(reference.selective_scan, inputs, False), truth(inputs, False), strict=True
    ):
        assert value.isfinite().all()
        assert_exact(value, eager, expected, terms=length)


def test_softplus_tail(implementation) -> None:
    """Steps far below zero keep six digits: the state is exp(delta) exactly where 1 + exp(delta) rounds to 1."""
    delta = torch.cat([torch.linspace(-80, 20, 401), torch.tensor([20.5, 30.0])]).reshape(1, -1, 1)
    count = delta.shape[1]
    ones = torch.ones(1, count, 1)
    C = torch.ones(1, 1, 1)
    out, last = fgkernels.selective_scan(
        ones, delta, torch.zeros(count, 1), C, C, delta_softplus=True, return_last_state=True
    )
    wide = delta.double()
    expected = torch.where(wide > 20, wide, torch.log1p(wide.exp()))
    for value in (out, last):
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)


def test_gate_far_from_zero(implementation) -> None:
    """silu(z) is z above, and vanishes below, without overflow on the way."""
    z = torch.tensor([-1e4, -200.0, -90.0, -20.0, 0.0, 20.0, 200.0, 1e4]).reshape(1, 8, 1)
    ones = torch.ones(1, 8, 1)
    one = torch.ones(1, 1, 1)
    out = fgkernels.selective_scan(ones, ones, torch.zeros(8, 1), one, one, z=z)
    torch.testing.assert_close(out.double(), torch.nn.functional.silu(z.double()), rtol=1e-5, atol=1e-30)


# --- special numbers --------------------------------------------------------------------------------------------------

SPECIAL = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("name", ["u", "delta", "z", "A", "D", "delta_bias", "initial_state"])
def test_special_numbers_stay_in_their_channel(implementation, name: str, special: float) -> None:
    """Elsewhere nothing changes by a bit, nor before the step that holds it; there it is as in the reference."""
    case = Case(2, 18, 12, 3, 2)
    clean = scan_inputs(case)
    dirty = {key: None if value is None else value.clone() for key, value in clean.items()}
    batch, channel, step = 1, 10, 5
    if name in ("u", "delta", "z"):
        dirty[name][batch, channel, step] = special
    elif name == "initial_state":
        dirty[name][batch, channel, 1] = special
    else:
        dirty[name][channel] = special
    expected = call(fgkernels.selective_scan, clean, True)
    found = call(fgkernels.selective_scan, dirty, True)
    touched = torch.zeros(2, 18, dtype=torch.bool)
    touched[slice(None) if name in ("A", "D", "delta_bias") else batch, channel] = True
    for value, other in zip(found, expected, strict=True):
        assert torch.equal(value[~touched], other[~touched])
    if name in ("u", "delta", "z"):
        assert torch.equal(found[0][batch, channel, :step], expected[0][batch, channel, :step])
    if name == "A" and math.isinf(special) and not implementation.is_cpu_build:
        return  # a GPU multiplies decays before states: 0 times infinity where one step after the other has none
    for value, other in zip(found, call(reference.selective_scan, dirty, True), strict=True):
        torch.testing.assert_close(value[touched], other[touched], rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("name", ["B", "C"])
def test_nan_in_a_projection_stays_in_its_group(implementation, name: str) -> None:
    case = Case(2, 18, 12, 3, 2)
    clean = scan_inputs(case)
    dirty = clean | {name: clean[name].clone()}
    dirty[name][1, 1, 2, 5] = math.nan
    (out, last), (clean_out, clean_last) = (call(fgkernels.selective_scan, x, True) for x in (dirty, clean))
    touched = torch.zeros(2, 18, 12, dtype=torch.bool)
    touched[1, 9:, 5 : 12 if name == "B" else 6] = True
    assert out[touched].isnan().all() and torch.equal(out[~touched], clean_out[~touched])
    states = torch.zeros(2, 18, 3, dtype=torch.bool)
    states[1, 9:, 2] = name == "B"
    assert last[states].isnan().all() and torch.equal(last[~states], clean_last[~states])


def test_promotion(served) -> None:
    """Sequences run in their common dtype, as transformers passes them under autocast; out has u's."""
    inputs = scan_inputs(dataclasses.replace(FORMS[0], B="constant"), torch.bfloat16)
    wide = {name: value.float() for name, value in inputs.items()}
    mixed = inputs | {"delta": wide["delta"], "C": wide["C"], "A": inputs["A"].double(), "D": inputs["D"].bfloat16()}
    wide["D"] = mixed["D"].float()
    expected, expected_last = call(fgkernels.selective_scan, wide, True)
    with torch.autocast(served.device, dtype=torch.bfloat16):
        out, last = call(fgkernels.selective_scan, mixed, True)
    assert out.dtype == torch.bfloat16 and last.dtype == torch.float32
    assert torch.equal(out, expected.bfloat16()) and torch.equal(last, expected_last)
    half = inputs | {"u": inputs["u"].half()}
    assert call(fgkernels.selective_scan, half, True)[0].dtype == torch.float16
