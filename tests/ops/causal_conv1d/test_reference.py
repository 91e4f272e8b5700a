# SPDX-License-Identifier: Apache-2.0
"""The reference against worked numbers, torch's convolution and the published definitions of the step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fgkernels.reference import causal_conv1d as reference

from .cases import EMPTY, FORMS, SIZES, Case, call, conv_inputs, gradients, torch_conv, truth


def test_worked_numbers() -> None:
    """x = 1, 2, 3 with taps 10, 1: each position and ten times the one before; the state's -1 comes first."""
    x, weight = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[10.0, 1.0]])
    assert reference.causal_conv1d(x, weight).tolist() == [[[1, 12, 23]]]
    assert reference.causal_conv1d(x, weight, torch.tensor([0.5])).tolist() == [[[1.5, 12.5, 23.5]]]
    out, state = reference.causal_conv1d(
        x, weight, initial_state=torch.tensor([[[-1.0]]]), return_final_state=True
    )  # fmt: skip
    assert out.tolist() == [[[-9, 12, 23]]] and state.tolist() == [[[3]]]
    numbers = torch.tensor([[7, 7, 4]])
    assert reference.causal_conv1d(x, weight, seq_idx=numbers).tolist() == [[[1, 12, 3]]]
    assert reference.causal_conv1d(x, weight, cu_seqlens=torch.tensor([0, 1, 3])).tolist() == [[[1, 2, 23]]]
    silu = reference.causal_conv1d(x, weight, activation="swish")[0, 0, 1].item()
    assert silu == pytest.approx(12 / (1 + math.exp(-12)))


def test_final_state_of_a_short_sequence() -> None:
    """Fewer positions than the state holds: the initial state moves up, or zeros do."""
    x, weight = torch.tensor([[[5.0]]]), torch.ones(1, 4)
    assert reference.causal_conv1d(x, weight, return_final_state=True)[1].tolist() == [[[0, 0, 5]]]
    state = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert reference.causal_conv1d(x, weight, initial_state=state, return_final_state=True)[1].tolist() == [[[2, 3, 5]]]
    nothing = reference.causal_conv1d(x[..., :0], weight, initial_state=state, return_final_state=True)[1]
    assert nothing.tolist() == state.tolist()


@pytest.mark.parametrize("case", [*FORMS, *SIZES, *EMPTY], ids=str)
def test_torch_convolution(case: Case) -> None:
    inputs = conv_inputs(case, torch.float64)
    for found, expected in zip(call(reference.causal_conv1d, inputs, case), truth(inputs, case), strict=True):
        torch.testing.assert_close(found, expected)
    if case in EMPTY:
        return
    grads = torch.randn(inputs["x"].shape), torch.randn(case.batch, case.channels, case.width - 1)
    found = gradients(reference.causal_conv1d, inputs, case, grads)
    expected = gradients(torch_conv, inputs, case, grads)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"d{name}: {text}")


def test_derivatives_of_every_kind() -> None:
    """Second derivatives, forward mode and vmap, which the compiled operators leave to the reference."""
    inputs = conv_inputs(Case(1, 2, 5, 3, initial_state=True), torch.float64)
    tensors = [inputs[name].requires_grad_() for name in ("x", "weight", "bias", "initial_state")]

    def function(x, weight, bias, state):
        return reference.causal_conv1d(x, weight, bias, "silu", initial_state=state, return_final_state=True)

    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("state_len", [3, 4, 7])
def test_steps_are_the_convolution_of_state_and_steps(state_len: int, steps: int) -> None:
    """Without and with a ring buffer, for one or several rows of a larger state."""
    x, weight, bias = torch.randn(2, 5, steps).double(), torch.randn(5, 4).double(), torch.randn(5).double()
    held = torch.randn(2, 5, state_len).double()
    longer = torch.cat([held, x], 2)
    expected = F.silu(F.conv1d(longer[..., state_len - 3 :], weight.unsqueeze(1), bias, groups=5)) if steps else x
    state = held.clone()
    torch.testing.assert_close(reference.causal_conv1d_update(x, state, weight, bias, "silu"), expected)
    assert torch.equal(state, longer[..., steps:])
    filled = torch.tensor([1, 3 * state_len + 2])  # position t is at t % state_len
    ring = torch.stack([torch.roll(row, int(count) % state_len, -1) for row, count in zip(held, filled, strict=True)])
    rows = torch.randn(4, 5, state_len).double()
    rows[3], rows[1] = ring[0], ring[1]
    untouched = rows[[0, 2]].clone()
    out = reference.causal_conv1d_update(x, rows, weight, bias, "silu", filled, torch.tensor([3, 1]))
    torch.testing.assert_close(out, expected)
    for row, count, after in zip(rows[[3, 1]], filled, longer[..., steps:], strict=True):
        assert torch.equal(torch.roll(row, -(int(count) + steps) % state_len, -1), after)
    assert torch.equal(rows[[0, 2]], untouched)
