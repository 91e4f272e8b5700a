# SPDX-License-Identifier: Apache-2.0
"""compat.causal_conv1d against grouped F.conv1d and slices."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgkernels.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update, causal_conv1d_varlen_states


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, silu: bool) -> Tensor:
    past = x.new_zeros(*x.shape[:2], weight.shape[1] - 1) if past is None else past
    out = F.conv1d(torch.cat([past, x], -1), weight.unsqueeze(1), bias, groups=x.shape[1])
    return F.silu(out) if silu else out


def inputs(width: int = 4, length: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.randn(2, 5, length), torch.randn(5, width), torch.randn(5), torch.randn(2, 5, width - 1)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_function(backend: str, width: int, activation: str | None) -> None:
    x, weight, bias, past = inputs(width)
    silu = activation is not None
    torch.testing.assert_close(
        causal_conv1d_fn(x, weight, bias, activation=activation), convolution(x, weight, bias, None, silu)
    )
    out, final = causal_conv1d_fn(x, weight, None, None, past, True, None, activation)
    torch.testing.assert_close(out, convolution(x, weight, None, past, silu))
    assert torch.equal(final, x[..., 1 - width :])


@pytest.mark.parametrize("length", [0, 1, 2, 9])
def test_final_states(backend: str, length: int) -> None:
    x, weight, bias, past = inputs(4, length)
    expected = torch.cat([past, x], -1)[..., -3:]
    given = torch.full((2, 3, 5), torch.nan).transpose(1, 2)
    _, final = causal_conv1d_fn(x, weight, bias, None, past, True, given)
    assert final is given and torch.equal(given, expected)
    _, fresh = causal_conv1d_fn(x, weight, bias, initial_states=past, return_final_states=True)
    assert torch.equal(fresh, expected)
    with pytest.raises(ValueError, match="final_states_out: expected None without return_final_states=True"):
        causal_conv1d_fn(x, weight, bias, final_states_out=given)


def test_sequences(backend: str) -> None:
    x, weight, bias, _ = inputs()
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]] * 2)
    out = causal_conv1d_fn(x, weight, bias, seq_idx, activation="silu")
    parts = [convolution(part, weight, bias, None, True) for part in x.split([3, 2, 4], -1)]
    torch.testing.assert_close(out, torch.cat(parts, -1))


def test_padding(backend: str) -> None:
    """Negative sequence numbers and state rows are padding: 0 comes out, no state changes, no gradient flows."""
    x, weight, bias, _ = inputs()
    x.requires_grad_()
    seq_idx = torch.tensor([[0] * 5 + [1] * 4, [2] * 3 + [-1] * 6], dtype=torch.int32)
    out = causal_conv1d_fn(x, weight, bias, seq_idx, activation="silu")
    whole = causal_conv1d_fn(x, weight, bias, seq_idx.where(seq_idx >= 0, 3), activation="silu")
    assert (out[1, :, 3:] == 0).all() and torch.equal(out[0], whole[0]) and torch.equal(out[1, :, :3], whole[1, :, :3])
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert (gradient[1, :, 3:] == 0).all() and (gradient[0] != 0).all()

    steps, state = torch.randn(3, 5, 2), torch.randn(4, 5, 3)
    expected, rows = state.clone(), torch.tensor([2, -1, 0], dtype=torch.int32)
    for lengths in (None, torch.tensor([7, 1, 3], dtype=torch.int32)):
        used = torch.tensor([2, 0], dtype=torch.int32)
        some = causal_conv1d_update(
            steps[[0, 2]], expected, weight, bias, "silu", None if lengths is None else lengths[[0, 2]], used
        )
        every = causal_conv1d_update(steps, state, weight, bias, "silu", lengths, rows)
        assert torch.equal(every[[0, 2]], some) and (every[1] == 0).all() and torch.equal(state, expected)


def test_gradients(backend: str) -> None:
    """Also through the initial and the final states."""
    leaves = [value.double().requires_grad_() for value in inputs()]
    x, weight, bias, past = leaves
    out, final = causal_conv1d_fn(x, weight, bias, None, past, True, activation="silu")
    expected = convolution(x, weight, bias, past, True), x[..., -3:]
    weights = torch.randn_like(out), torch.randn_like(final)
    gradients = torch.autograd.grad((out * weights[0]).sum() + (final * weights[1]).sum(), leaves)
    formula = torch.autograd.grad((expected[0] * weights[0]).sum() + (expected[1] * weights[1]).sum(), leaves)
    for value, wanted in zip(gradients, formula, strict=True):
        torch.testing.assert_close(value, wanted)


def test_update(backend: str) -> None:
    x, weight, bias, _ = inputs()
    weight.requires_grad_()  # as a module's is; the update has no gradient
    state = torch.randn(2, 5, 4)
    past = state[..., -3:].clone()
    rows = [causal_conv1d_update(x[..., t], state, weight, bias, "silu") for t in range(9)]
    assert not rows[0].requires_grad
    torch.testing.assert_close(torch.stack(rows, -1), convolution(x, weight.detach(), bias, past, True))
    assert torch.equal(state, x[..., -4:])


@pytest.mark.parametrize("state_len", [1, 3, 6])
def test_varlen_states(state_len: int) -> None:
    x, offsets = torch.randn(9, 5), torch.tensor([0, 4, 4, 5, 9], dtype=torch.int32)
    states = causal_conv1d_varlen_states(x, offsets, state_len)
    assert states.shape == (4, 5, state_len) and states.stride(1) == 1
    for entry, (start, end) in enumerate([(0, 4), (4, 4), (4, 5), (5, 9)]):
        padded = torch.cat([torch.zeros(state_len, 5), x[start:end]])
        assert torch.equal(states[entry], padded[-state_len:].T)
    with pytest.raises(ValueError, match=r"x: expected \(T, D\), got \(1, 9, 5\)"):
        causal_conv1d_varlen_states(x.unsqueeze(0), offsets, 3)
    with pytest.raises(ValueError, match=r"cu_seqlens: expected \(B \+ 1,\), got \(\)"):
        causal_conv1d_varlen_states(x, torch.tensor(9), 3)


def test_signatures() -> None:
    """The arguments that causal-conv1d 1.6 has, in its order."""
    assert list(inspect.signature(causal_conv1d_fn).parameters) == [
        "x", "weight", "bias", "seq_idx", "initial_states", "return_final_states", "final_states_out", "activation",
    ]  # fmt: skip
    assert list(inspect.signature(causal_conv1d_update).parameters) == [
        "x", "conv_state", "weight", "bias", "activation", "cache_seqlens", "conv_state_indices",
    ]  # fmt: skip


def test_other_activations_are_refused() -> None:
    x, weight, bias, _ = inputs()
    with pytest.raises(NotImplementedError, match="gelu"):
        causal_conv1d_fn(x, weight, bias, activation="gelu")
    with pytest.raises(NotImplementedError, match="gelu"):
        causal_conv1d_update(x[..., 0], x[..., :3].clone(), weight, bias, "gelu")
