# SPDX-License-Identifier: Apache-2.0
"""The reference against worked numbers, loops over single numbers, and its own derivatives of every kind."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import fgkernels
from fgkernels.reference import selective_scan as reference

from .cases import EMPTY, FORMS, TENSORS, Case, by_hand, call, gradients, scan_inputs

DOUBLE = torch.float64


def golden() -> dict[str, Tensor]:
    """The worked example of Mamba-FSCIL's scan: dt = ln 2 everywhere."""
    values = {
        "u": [[[1, 2, 3]]], "delta": [[[0, 0, 0]]], "A": [[-1, -2]], "B": [[[1, 0, 1], [0, 1, 1]]],
        "C": [[[1, 1, 1], [1, 0, 1]]], "D": [0.5], "z": [[[0, 1, -1]]], "delta_bias": [0],
    }  # fmt: skip
    return {name: torch.tensor(value, dtype=DOUBLE) for name, value in values.items()} | {"initial_state": None}


GOLDEN_GRADIENTS = {
    "u": [[[0.206762, 0.318925, -0.507303]]],
    "delta": [[[0.149147, -0.170616, -0.690314]]],
    "A": [[0.111013, -0.129214 / 2]],  # published for log(-A), whose gradient is that of A times A
    "B": [[[0.206762, 0.827046, -0.559248], [-0.011651, -0.093208, -0.559248]]],
    "C": [[[0, 0.253366, -0.605852], [0, 1.013462, -0.652456]]],
    "D": [0.655293],
    "z": [[[0.596574, 1.249177, 0.446905]]],
    "delta_bias": [-0.711783],
}


def test_worked_example(served) -> None:
    """Value and all gradients of u = [1, 2, 3] through two states, a gate and a skip connection."""
    inputs = {name: None if value is None else value.to(torch.get_default_device()) for name, value in golden().items()}
    y, _ = call(fgkernels.selective_scan, inputs | {"z": None}, True)
    assert y.flatten().tolist() == pytest.approx([1.193147, 1.346574, 6.178743], abs=1e-6)
    out, _ = call(fgkernels.selective_scan, inputs, True)
    assert out.flatten().tolist() == pytest.approx([0, 0.984424, -1.661720], abs=1e-6)
    found = gradients(fgkernels.selective_scan, inputs, True, (torch.ones_like(out), None))
    for name, expected in GOLDEN_GRADIENTS.items():
        torch.testing.assert_close(found[name].cpu(), torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=1e-6)


def test_scalar(served) -> None:
    """A = -1, dt = 1, u = B = C = 1: each step adds one and the past decays by 1/e."""
    ones = torch.ones(1, 1, 3)
    delta = torch.full((1, 1, 3), math.log(math.e - 1))  # softplus gives 1
    out = fgkernels.selective_scan(ones, delta, -torch.ones(1, 1), ones, ones, delta_softplus=True)
    e = math.exp(-1)
    assert out.flatten().tolist() == pytest.approx([1, 1 + e, 1 + e + e * e], rel=1e-6)


@pytest.mark.parametrize("case", [*FORMS, Case(1, 1, 1, 1, 1), Case(1, 2, 66, 1, 1)], ids=str)
def test_against_loops_over_numbers(case: Case) -> None:
    """Values and gradients, also through the last state, from the published equations."""
    inputs = scan_inputs(case, DOUBLE)
    out, last = call(reference.selective_scan, inputs, case.delta_softplus)
    grads = torch.randn_like(out), torch.randn_like(last)
    expected = by_hand(inputs, case.delta_softplus, grads)
    torch.testing.assert_close(out, expected["out"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, expected["last_state"], rtol=1e-12, atol=1e-12)
    for name, value in gradients(reference.selective_scan, inputs, case.delta_softplus, grads).items():
        torch.testing.assert_close(value, expected[f"d{name}"], rtol=1e-11, atol=1e-11)


def test_softplus_is_linear_above_20() -> None:
    """As torch.nn.functional.softplus: from there on the difference is below float32's precision."""
    delta = torch.tensor([[[19.9, 20.0, 20.1, 40.0, 800.0]]], dtype=DOUBLE, requires_grad=True)
    dt = reference.time_steps(delta, None, True, DOUBLE)
    assert torch.equal(dt[..., 2:], delta[..., 2:]) and (dt[..., :2] > delta[..., :2]).all()
    (slope,) = torch.autograd.grad(dt.sum(), delta)
    assert (slope[..., 2:] == 1).all() and (slope[..., :2] < 1).all()


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(case: Case) -> None:
    """No elements, or states that add nothing to the skip connection; without steps the state stays."""
    inputs = scan_inputs(case)
    out, last = call(reference.selective_scan, inputs, True)
    assert out.shape == inputs["u"].shape and last.shape == (case.batch, case.channels, case.states)
    if case.length == 0:
        assert torch.equal(last, torch.zeros_like(last) if inputs["initial_state"] is None else inputs["initial_state"])
    if case.states == 0:
        y = inputs["D"].unsqueeze(-1) * inputs["u"]
        torch.testing.assert_close(out, y * torch.nn.functional.silu(inputs["z"]))


def small(case: Case) -> tuple[list[str], list[Tensor], object]:
    """Names, tensors and the function of them, for derivatives by finite differences."""
    inputs = scan_inputs(dataclasses.replace(case, batch=2, channels=2, length=3, states=2, groups=1), DOUBLE)
    present = [name for name in TENSORS if inputs[name] is not None]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = inputs | dict(zip(present, tensors, strict=True))
        return call(reference.selective_scan, given, case.delta_softplus)

    return present, [inputs[name].requires_grad_() for name in present], function


@pytest.mark.parametrize("case", [FORMS[0], FORMS[1], FORMS[2], FORMS[-1]], ids=str)
def test_second_and_forward_derivatives(case: Case) -> None:
    """It is made of ATen operators: differentiable twice, and in forward mode."""
    _, tensors, function = small(case)
    torch.autograd.gradcheck(function, tensors, check_forward_ad=True)
    torch.autograd.gradgradcheck(function, tensors)


def test_vmap() -> None:
    """Over every tensor at once."""
    _, tensors, function = small(FORMS[0])
    stacked = [torch.stack([t.detach(), 2 * t.detach(), t.detach() - 1]) for t in tensors]
    found = torch.func.vmap(function)(*stacked)
    for i in range(3):
        for value, expected in zip(found, function(*(t[i] for t in stacked)), strict=True):
            torch.testing.assert_close(value[i], expected)


def test_promotion() -> None:
    """Sequences run in their common dtype, out has u's, states the accumulation type."""
    inputs = scan_inputs(FORMS[0], torch.bfloat16)
    wide = {name: value.float() for name, value in inputs.items()}
    mixed = inputs | {"delta": wide["delta"], "A": inputs["A"].double()}
    out, last = call(reference.selective_scan, mixed, True)
    expected, expected_last = call(reference.selective_scan, wide, True)
    assert out.dtype == torch.bfloat16 and last.dtype == torch.float32
    assert torch.equal(out, expected.bfloat16()) and torch.equal(last, expected_last)
