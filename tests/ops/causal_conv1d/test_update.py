# SPDX-License-Identifier: Apache-2.0
"""`causal_conv1d_update`: steps in place on a state, against the whole convolution and the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fgkernels
from fgkernels.reference import causal_conv1d as reference

from ..common import FLOATS, lay_out, names
from .cases import assert_exact

pytestmark = pytest.mark.compiled


def expected_steps(x: Tensor, held: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> tuple[Tensor, Tensor]:
    """Of state and steps laid one after the other: the convolution at the steps in float64, and the new state."""
    longer = torch.cat([held, x], 2)
    past, steps = weight.shape[1] - 1, x.shape[2]
    window = longer[..., held.shape[2] - past :].double()
    out = F.conv1d(window, weight.double().unsqueeze(1), None if bias is None else bias.double(), groups=x.shape[1])
    return (F.silu(out) if silu else out), longer[..., steps:]


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("steps", [None, 1, 2, 6])
@pytest.mark.parametrize(("width", "extra"), [(2, 0), (3, 0), (4, 0), (4, 1), (2, 3)])
def test_values_and_state(implementation, width: int, extra: int, steps: int | None, dtype: torch.dtype) -> None:
    """One step (B, D) or several (B, D, S), on states that hold W - 1 positions or more."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    batch, channels, silu = 3, 19, steps != 2
    x = torch.randn(batch, channels, *([] if steps is None else [steps]), dtype=torch.float64).to(dtype)
    held = torch.randn(batch, channels, width - 1 + extra, dtype=torch.float64).to(dtype)
    weight = torch.randn(channels, width, dtype=torch.float64).to(wide)
    bias = torch.randn(channels, dtype=torch.float64).to(wide) if extra == 0 else None
    activation = "silu" if silu else None
    state, other = held.clone(), held.clone()
    found = fgkernels.causal_conv1d_update(x, state, weight, bias, activation)
    eager = reference.causal_conv1d_update(x, other, weight, bias, activation)
    expected, after = expected_steps(x.reshape(batch, channels, -1), held, weight, bias, silu)
    assert_exact(found, eager, expected.reshape(x.shape))
    assert torch.equal(state, after)


@pytest.mark.parametrize("layout", ["contiguous", "channels_strided"])
@pytest.mark.parametrize("state_len", [3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=names)
def test_decoding_continues_a_prefill(implementation, dtype: torch.dtype, state_len: int, layout: str) -> None:
    """After a prefill every step gives what the convolution of the whole sequence gives there."""
    x = lay_out(torch.randn(2, 21, 12).to(dtype), layout)
    weight, bias = torch.randn(21, 4), torch.randn(21)
    whole = fgkernels.causal_conv1d(x, weight, bias, "silu")
    _, tail = fgkernels.causal_conv1d(x[..., :5], weight, bias, "silu", return_final_state=True)
    state = torch.zeros(2, 21, state_len, dtype=dtype)
    state[..., -3:] = tail
    for t in range(5, 12):
        out = fgkernels.causal_conv1d_update(x[..., t], state, weight, bias, "silu")
        torch.testing.assert_close(out, whole[..., t], rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 7])
@pytest.mark.parametrize("state_len", [3, 4, 5])
def test_ring_buffer(implementation, state_len: int, steps: int) -> None:
    """Position t of a sequence is at t % state_len, so that nothing moves; steps go round as often as they must."""
    counts = torch.tensor([0, 2, 4 * state_len + 1], dtype=torch.int32)
    x, weight, bias = torch.randn(3, 9, steps), torch.randn(9, 4), torch.randn(9)
    held = torch.randn(3, 9, state_len)
    ring = torch.stack([torch.roll(row, int(n) % state_len, -1) for row, n in zip(held, counts, strict=True)])
    expected, after = expected_steps(x, held, weight, bias, True)
    for index in (counts, counts.to(torch.int64)):
        state = ring.clone()
        found = fgkernels.causal_conv1d_update(x, state, weight, bias, "silu", index)
        torch.testing.assert_close(found, expected.float())
        for row, n, own in zip(state, counts, after, strict=True):
            assert torch.equal(torch.roll(row, -((int(n) + steps) % state_len), -1), own)


@pytest.mark.parametrize("ring", [False, True])
def test_rows_of_a_larger_state(implementation, ring: bool) -> None:
    """conv_state_indices name the row of each batch entry; all others stay as they are, bit by bit."""
    x, weight = torch.randn(3, 17, 2), torch.randn(17, 3)
    rows = torch.tensor([4, 0, 2], dtype=torch.int32)
    counts = torch.tensor([3, 5, 0], dtype=torch.int32) if ring else None
    state = torch.randn(6, 17, 4)
    state[[1, 3, 5]] = float("nan")
    own = state[rows.long()].clone()
    for index in (rows, rows.to(torch.int64)):
        whole = state.clone()
        found = fgkernels.causal_conv1d_update(
            x, whole, weight, None, "silu", cache_seqlens=counts, conv_state_indices=index
        )
        alone = own.clone()
        expected = fgkernels.causal_conv1d_update(x, alone, weight, None, "silu", cache_seqlens=counts)
        assert torch.equal(found, expected) and torch.equal(whole[rows.long()], alone)
        assert whole[[1, 3, 5]].isnan().all()


@pytest.mark.parametrize("layout", ["transposed", "channels_strided", "sliced", "every_second"])
def test_strided_states_and_steps(implementation, layout: str) -> None:
    """State and x are read and written where they are; what lies between their elements isn't touched."""
    values, weight = torch.randn(3, 10, 5), torch.randn(10, 4)
    x = lay_out(torch.randn(3, 10, 2), layout)
    state = lay_out(values, layout)
    dense = values.clone()
    expected = fgkernels.causal_conv1d_update(x.contiguous(), dense, weight)
    assert torch.equal(fgkernels.causal_conv1d_update(x, state, weight), expected)
    assert torch.equal(state, dense)
    if layout in ("sliced", "every_second"):
        assert state._base.isnan().sum() == state._base.numel() - state.numel()


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (2, 4, 0), (0, 4, 3)])
def test_empty(implementation, shape: tuple[int, ...]) -> None:
    x, state = torch.randn(shape), torch.randn(shape[0], shape[1], 3)
    before = state.clone()
    out = fgkernels.causal_conv1d_update(x, state, torch.randn(shape[1], 4))
    assert out.shape == x.shape and torch.equal(state, before)


def test_gradients_are_refused(served) -> None:
    """The state changes in place, so a gradient would be wrong or lost; under no_grad all is well."""
    x, state, weight = torch.randn(2, 4), torch.randn(2, 4, 3), torch.randn(4, 4)
    for place in range(3):
        arguments = [x, state.clone(), weight]
        arguments[place] = arguments[place].requires_grad_()
        with pytest.raises(RuntimeError, match=r"causal_conv1d_update: it has no gradient.*no_grad"):
            fgkernels.causal_conv1d_update(*arguments)
        with torch.no_grad():
            fgkernels.causal_conv1d_update(*arguments)
        arguments[place].requires_grad_(False)


def test_autograd_knows_that_the_state_changed(operators) -> None:
    """A graph that saved the state refuses to run backward with the new one."""
    state, weight = torch.randn(2, 4, 3), torch.randn(4, 4)
    leaf = torch.randn(2, 4, 3).requires_grad_()
    loss = (leaf * state).sum()
    fgkernels.causal_conv1d_update(torch.randn(2, 4), state, weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
