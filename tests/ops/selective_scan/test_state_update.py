# SPDX-License-Identifier: Apache-2.0
"""`selective_state_update`, one step in place: against the scan, loops over numbers, and float64 in every form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fgkernels
from fgkernels.reference import selective_scan as reference

from ..common import FLOATS, names
from .cases import Case, assert_exact, call, scan_inputs

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")


def step_inputs(
    shape: tuple[int, ...],
    states: int,
    groups: int | None = None,
    dtype: torch.dtype = torch.float32,
    state_dtype: torch.dtype | None = None,
    entries: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(state, the other tensors); shape (B, D) or (B, H, P), B and C (B, N) or with groups (B, G, N)."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    batch, *channels = shape

    def parameter(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=torch.float64).to(wide)

    sequence = (batch, states) if groups is None else (batch, groups, states)
    inputs = {
        "x": parameter(*shape).to(dtype), "dt": (parameter(*shape) - 1).to(dtype),
        "A": -parameter(*channels, states).exp(), "B": parameter(*sequence).to(dtype),
        "C": parameter(*sequence).to(dtype), "D": parameter(*channels), "z": parameter(*shape).to(dtype),
        "dt_bias": parameter(*channels) / 4,
    }  # fmt: skip
    state = parameter(batch if entries is None else entries, *channels, states).to(state_dtype or wide)
    return state, inputs


def update(function, state: Tensor, inputs: dict, softplus: bool = True, indices: Tensor | None = None) -> Tensor:
    return function(state, *(inputs[name] for name in NAMES), softplus, indices)


def check(state: Tensor, inputs: dict, softplus: bool = True, indices: Tensor | None = None) -> Tensor:
    """Output and new state against float64; returns the output."""
    results = []
    for function, convert in (
        (fgkernels.selective_state_update, lambda t: t),
        (reference.selective_state_update, lambda t: t),
        (reference.selective_state_update, lambda t: None if t is None else t.double()),
    ):
        new = convert(state).clone(memory_format=torch.preserve_format)
        given = {name: convert(value) for name, value in inputs.items()}
        results.append((update(function, new, given, softplus, indices), new))
    for value, eager, expected in zip(*results, strict=True):
        assert_exact(value, eager, expected, terms=state.shape[-1])
    assert not torch.equal(results[0][1], state)
    return results[0][0]


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize(
    ("shape", "states", "groups"),
    [((2, 6), 5, None), ((3, 34), 16, None), ((2, 6), 5, 3), ((1, 1), 1, None), ((1, 4), 256, None),
     ((2, 4, 6), 5, None), ((2, 4, 6), 16, 2), ((1, 6, 17), 17, 6), ((3, 1, 5), 4, 1), ((1, 2, 3), 128, 1)],
    ids=str,
)  # fmt: skip
def test_forms(implementation, shape: tuple[int, ...], states: int, groups: int | None, dtype: torch.dtype) -> None:
    state, inputs = step_inputs(shape, states, groups, dtype)
    out = check(state, inputs)
    assert out.dtype == dtype and out.shape == shape and out.is_contiguous()


@pytest.mark.compiled
@pytest.mark.parametrize("state_dtype", FLOATS, ids=names)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=names)
def test_dtype_of_the_state(implementation, dtype: torch.dtype, state_dtype: torch.dtype) -> None:
    """The state keeps the dtype in which it is stored, whatever the sequences have."""
    check(*step_inputs((2, 10), 4, dtype=dtype, state_dtype=state_dtype))


@pytest.mark.compiled
@pytest.mark.parametrize("absent", ["D", "z", "dt_bias"])
@pytest.mark.parametrize("softplus", [False, True])
def test_what_may_be_absent(operators, absent: str, softplus: bool) -> None:
    for shape in ((2, 6), (2, 3, 4)):
        state, inputs = step_inputs(shape, 5)
        if not softplus:
            inputs["dt"] = inputs["dt"].abs() / 4
        check(state, inputs | {absent: None}, softplus)


@pytest.mark.compiled
def test_strides(implementation) -> None:
    """Parameters expanded from one value per head as Mamba-2 has them, a state laid out otherwise, sliced sequences."""
    state, inputs = step_inputs((2, 4, 6), 5, 2)
    expected_state, expanded = state.clone(), dict(inputs)
    for name in ("A", "D", "dt_bias"):
        expanded[name] = inputs[name][:, :1].expand(4, 6) if name != "A" else inputs[name][:, :1, :1].expand(4, 6, 5)
    expanded["dt"] = inputs["dt"][..., :1].expand(2, 4, 6)
    dense = {name: value.contiguous() for name, value in expanded.items()}
    expected = update(fgkernels.selective_state_update, expected_state, dense)
    block = torch.full((2, 6, 5, 8), math.nan)
    strided = block.permute(0, 3, 1, 2)[:, 2:6]
    strided.copy_(state)
    sliced = dict(expanded)
    for name in ("x", "z", "B", "C"):
        wide = torch.full((*inputs[name].shape[:-1], 2 * inputs[name].shape[-1]), math.nan)
        sliced[name] = wide[..., ::2].copy_(inputs[name])
    found = update(fgkernels.selective_state_update, strided, sliced)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(strided, expected_state)
    assert block.permute(0, 3, 1, 2)[:, :2].isnan().all() and block.permute(0, 3, 1, 2)[:, 6:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=names)
def test_rows_of_a_cache(served, dtype: torch.dtype) -> None:
    """Each batch entry uses the row that its index names, and the other rows stay."""
    state, inputs = step_inputs((3, 6), 5, entries=5)
    indices = torch.tensor([4, 0, 2], dtype=dtype)
    rows = state[indices.long()].clone()
    before = state.clone()
    expected = update(fgkernels.selective_state_update, rows, inputs)
    found = update(fgkernels.selective_state_update, state, inputs, indices=indices)
    assert torch.equal(found, expected) and torch.equal(state[indices.long()], rows)
    assert torch.equal(state[[1, 3]], before[[1, 3]])


def test_steps_are_the_scan(served) -> None:
    """One step after the other gives what one call of selective_scan gives, out and state."""
    case = Case(2, 6, 7, 5, 2)
    inputs = scan_inputs(case)
    expected, expected_last = call(fgkernels.selective_scan, inputs, True)
    state = inputs["initial_state"].clone()
    for t in range(case.length):
        out = fgkernels.selective_state_update(
            state, inputs["u"][..., t], inputs["delta"][..., t], inputs["A"], inputs["B"][..., t], inputs["C"][..., t],
            inputs["D"], inputs["z"][..., t], inputs["delta_bias"], True,
        )  # fmt: skip
        torch.testing.assert_close(out, expected[..., t], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, expected_last, rtol=1e-5, atol=1e-5)


def test_by_hand(served) -> None:
    """h = exp(dt A) h + dt B x, out = (C h + D x) silu(z), for one number each."""
    state = torch.tensor([[[2.0]]])
    one = torch.ones(1, 1)
    out = fgkernels.selective_state_update(
        state, 3 * one, math.log(2) * one, -one, 5 * one, 7 * one, 11 * one[0], torch.zeros(1, 1) + 1
    )
    h = 2 / 2 + math.log(2) * 15
    assert state.item() == pytest.approx(h, rel=1e-6)
    assert out.item() == pytest.approx((7 * h + 33) / (1 + math.exp(-1)), rel=1e-6)


def test_empty(served) -> None:
    """No entries, no channels; without states only the skip connection is left."""
    for shape, states in (((0, 6), 5), ((2, 0), 5), ((2, 3, 0), 5), ((0, 2, 3), 4)):
        state, inputs = step_inputs(shape, states)
        assert update(fgkernels.selective_state_update, state, inputs).shape == shape
    state, inputs = step_inputs((2, 6), 0)
    out = update(fgkernels.selective_state_update, state, inputs)
    torch.testing.assert_close(out, inputs["D"] * inputs["x"] * torch.nn.functional.silu(inputs["z"]))


def test_promotion(served) -> None:
    """The sequences' common dtype, parameters of any float dtype, out in x's dtype."""
    state, inputs = step_inputs((2, 6), 5, dtype=torch.bfloat16)
    mixed = inputs | {"dt": inputs["dt"].float(), "A": inputs["A"].double(), "D": inputs["D"].bfloat16()}
    wide = {name: value.float() for name, value in mixed.items()}
    states = state.clone(), state.clone()
    out = update(fgkernels.selective_state_update, states[0], mixed)
    expected = update(fgkernels.selective_state_update, states[1], wide)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected.bfloat16()) and torch.equal(*states)


def test_nan_stays_in_its_row(served) -> None:
    state, inputs = step_inputs((2, 6), 5)
    clean, clean_state = dict(inputs), state.clone()
    expected = update(fgkernels.selective_state_update, clean_state, clean)
    inputs["x"] = inputs["x"].clone()
    inputs["x"][1, 2] = math.nan
    out = update(fgkernels.selective_state_update, state, inputs)
    touched = torch.zeros(2, 6, dtype=torch.bool)
    touched[1, 2] = True
    assert out[touched].isnan().all() and torch.equal(out[~touched], expected[~touched])
    assert state[touched].isnan().all() and torch.equal(state[~touched], clean_state[~touched])


# --- autograd: a step in place has no gradient ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["state", *NAMES])
def test_gradients_are_refused(served, name: str) -> None:
    state, inputs = step_inputs((2, 6), 5)
    inputs["state"] = state
    inputs[name].requires_grad_()
    with pytest.raises(RuntimeError, match=r"selective_state_update: .*torch\.no_grad\(\)"):
        update(fgkernels.selective_state_update, state, inputs)
    with torch.no_grad():
        update(fgkernels.selective_state_update, state, inputs)


def test_autograd_learns_of_the_change(served) -> None:
    """A backward that needs the state as it was says so instead of using the new one."""
    state, inputs = step_inputs((2, 6), 5)
    leaf = torch.ones(2, 6, 5, requires_grad=True)
    product = leaf * state
    update(fgkernels.selective_state_update, state, inputs)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.compiled
def test_autograd_learns_of_it_from_the_operator_too(operators) -> None:
    from fgkernels.ops import _library

    state, inputs = step_inputs((2, 6), 5)
    arguments = [*(inputs[name] for name in NAMES), None, True]
    version = state._version
    _library.op("selective_state_update")(state, *arguments)
    assert state._version == version + 1
    with pytest.raises(RuntimeError, match=r"torch\.no_grad\(\)"):
        _library.op("selective_state_update")(state, inputs["x"].requires_grad_(), *arguments[1:])


def test_inference_mode(served) -> None:
    state, inputs = step_inputs((2, 6), 5)
    expected_state = state.clone()
    expected = update(fgkernels.selective_state_update, expected_state, inputs)
    with torch.inference_mode():
        inside = state.clone()
        assert torch.equal(update(fgkernels.selective_state_update, inside, inputs), expected)
        assert torch.equal(update(fgkernels.selective_state_update, state, inputs), expected)
    assert torch.equal(inside, expected_state) and torch.equal(state, expected_state)
