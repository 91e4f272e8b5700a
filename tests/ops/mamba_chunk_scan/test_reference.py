# SPDX-License-Identifier: Apache-2.0
"""The reference against worked numbers, the published equation and its matrix form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fgkernels.reference import mamba_chunk_scan as reference

from .cases import EMPTY, FORMS, SIZES, TENSORS, Case, by_hand, call, gradients, scan_inputs


def test_worked_numbers() -> None:
    """A = log(1/2) and steps of 1 halve the state: 4, then 4/2 + 6 = 8, seen through C = 1 and C = 10."""
    x, dt, A = torch.tensor([4.0, 6.0]).view(1, 2, 1, 1), torch.ones(1, 2, 1), torch.tensor([0.5]).log()
    B, C = torch.ones(1, 2, 1, 1), torch.tensor([1.0, 10.0]).view(1, 2, 1, 1)
    scan = reference.mamba_chunk_scan_combined
    assert scan(x, dt, A, B, C, 1).flatten().tolist() == [4, 80]
    out, state = scan(x, dt, A, B, C, 1, D=torch.tensor([100.0]), return_final_states=True)
    assert out.flatten().tolist() == [404, 680] and state.item() == 8
    start = torch.full((1, 1, 1, 1), 16.0)
    assert scan(x, dt, A, B, C, 1, initial_states=start).flatten().tolist() == [12, 120]
    numbers = torch.tensor([[0, 1]])
    assert scan(x, dt, A, B, C, 1, initial_states=start, seq_idx=numbers).flatten().tolist() == [12, 60]
    assert scan(x, dt, A, B, C, 1, initial_states=start, seq_idx=numbers + 1).flatten().tolist() == [4, 60]
    assert scan(x, dt, A, B, C, 1, dt_limit=(0.0, 0.0)).flatten().tolist() == [0, 0]
    assert scan(x, dt - 2, A, B, C, 1).flatten().tolist() == [0, 0]  # step sizes below zero are none by default
    gate = scan(x, dt, A, B, C, 1, z=torch.full((1, 2, 1, 1), 2.0)).flatten()
    assert gate.tolist() == pytest.approx([4 * 2 / (1 + math.exp(-2)), 80 * 2 / (1 + math.exp(-2))])


@pytest.mark.parametrize("case", FORMS, ids=str)
def test_published_equation_and_its_gradients(case: Case) -> None:
    inputs = scan_inputs(case, torch.float64)
    grads = torch.randn(inputs["x"].shape), torch.randn(case.batch, case.heads, case.channels, case.states)
    expected = by_hand(inputs, case, grads)
    out, final_states = call(reference.mamba_chunk_scan_combined, inputs, case)
    torch.testing.assert_close(out, expected["out"])
    torch.testing.assert_close(final_states, expected["final_states"])
    for name, value in gradients(reference.mamba_chunk_scan_combined, inputs, case, grads).items():
        torch.testing.assert_close(value, expected[f"d{name}"], msg=lambda text, name=name: f"d{name}: {text}")


@pytest.mark.parametrize("case", SIZES, ids=str)
def test_matrix_form(case: Case) -> None:
    """The dual form (Dao and Gu 2024, equation 6): a product with the lower triangle of C B^T exp(sums of dt A)."""
    inputs = scan_inputs(case, torch.float64)
    x, dt, A, B, C, D, z, bias, initial = (inputs[name] for name in TENSORS)
    repeat = case.heads // case.groups
    B, C = B.repeat_interleave(repeat, 2), C.repeat_interleave(repeat, 2)
    steps = dt if bias is None else dt + bias
    steps = (F.softplus(steps) if case.dt_softplus else steps).clamp(*case.dt_limit)
    sums = (steps * A).cumsum(1)  # (B, L, H)
    owner = torch.zeros(x.shape[:2]) if inputs["seq_idx"] is None else inputs["seq_idx"]
    same = (owner[:, :, None] == owner[:, None, :]).tril().unsqueeze(-1)
    decay = torch.where(same, (sums[:, :, None] - sums[:, None, :]).exp(), 0)  # (B, L, L, H), row: to, column: from
    y = torch.einsum("btsh,bthn,bshn,bsh,bshp->bthp", decay, C, B, steps, x)
    last = torch.einsum("bsh,bshn,bsh,bshp->bhpn", decay[:, -1], B, steps, x)
    if initial is not None:
        carried = torch.where((owner == 0).unsqueeze(-1), sums.exp(), 0)
        y = y + torch.einsum("bth,bthn,bhpn->bthp", carried, C, initial)
        last = last + carried[:, -1, :, None, None] * initial
    if D is not None:
        y = y + (D if D.dim() == 2 else D.unsqueeze(-1)) * x
    y = y if z is None else y * F.silu(z)
    out, final_states = call(reference.mamba_chunk_scan_combined, inputs, case)
    torch.testing.assert_close(out, y)
    torch.testing.assert_close(final_states, last)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(case: Case) -> None:
    inputs = scan_inputs(case, torch.float64)
    out, final_states = call(reference.mamba_chunk_scan_combined, inputs, case)
    assert out.shape == inputs["x"].shape
    assert final_states.shape == (case.batch, case.heads, case.channels, case.states)
    if case.length == 0 and case.initial_states:
        assert torch.equal(final_states, inputs["initial_states"])
    if case.states == 0:
        skip = inputs["D"].unsqueeze(-1) * inputs["x"]
        torch.testing.assert_close(out, skip * F.silu(inputs["z"]))


@pytest.mark.parametrize("offsets", [[0, 9], [0, 0, 2, 9, 9], [0, 4, 4, 9]])
@pytest.mark.parametrize("initial_states", [False, True])
def test_states_of_packed_sequences(initial_states: bool, offsets: list[int]) -> None:
    """Each is the final state of a separate call; the initial state is that of the first sequence."""
    case = Case(batch=1, initial_states=initial_states)
    inputs = scan_inputs(case, torch.float64)
    x, dt, A, B, C, D, z, bias, initial = (inputs[name] for name in TENSORS)
    scan = reference.mamba_chunk_scan_combined
    out, final, states = scan(
        x, dt, A, B, C, 4, D, z, bias, initial, None, torch.tensor(offsets), True,
        return_final_states=True, return_varlen_states=True,
    )  # fmt: skip
    for s, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        part = slice(start, stop)
        alone, last = scan(
            x[:, part], dt[:, part], A, B[:, part], C[:, part], 4, D, z[:, part], bias, initial if s == 0 else None,
            None, None, True, return_final_states=True,
        )  # fmt: skip
        torch.testing.assert_close(out[:, part], alone)
        torch.testing.assert_close(states[s : s + 1], last)
    if offsets[-1] > offsets[-2]:
        torch.testing.assert_close(final, states[-1:])


def test_derivatives_of_every_kind() -> None:
    """Second derivatives, forward mode and vmap, which the compiled operators leave to the reference."""
    case = Case(1, 3, 2, 2, 1, 2, seq_idx=True)
    inputs = scan_inputs(case, torch.float64)
    tensors = [inputs[name].requires_grad_() for name in TENSORS]

    def function(*values):
        return call(
            reference.mamba_chunk_scan_combined, inputs | dict(zip(TENSORS, values, strict=True)), case
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, tensors)
