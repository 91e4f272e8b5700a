# SPDX-License-Identifier: Apache-2.0
"""Inputs of the causal-convolution tests, and the truth: torch's convolution in float64, one sequence at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common import assert_as_exact_as_torch, lay_out

#: The tensors with a gradient, in the order of the operator's arguments.
TENSORS = ("x", "weight", "bias", "initial_state")


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: sizes, and what is there."""

    batch: int = 2
    channels: int = 7
    length: int = 13
    width: int = 4
    silu: bool = True
    bias: bool = True
    initial_state: bool = False
    seq_idx: bool = False

    def __str__(self) -> str:
        sizes = "x".join(str(n) for n in (self.batch, self.channels, self.length, self.width))
        there = [name for name in ("silu", "bias", "initial_state", "seq_idx") if getattr(self, name)]
        return "-".join([sizes, *there])

    @property
    def activation(self) -> str | None:
        return "silu" if self.silu else None


#: Every width with and without each part.
FORMS = [
    *(Case(width=width) for width in (2, 3, 4)),
    *(Case(width=width, silu=False, bias=False) for width in (2, 3, 4)),
    *(Case(width=width, initial_state=True) for width in (2, 3, 4)),
    *(Case(width=width, seq_idx=True) for width in (2, 3, 4)),
    Case(silu=False),
    Case(bias=False, initial_state=True, seq_idx=True),
    Case(width=3, initial_state=True, seq_idx=True),
]

#: One element, fewer positions than taps, more channels than lanes, several tiles of positions.
SIZES = [
    Case(1, 1, 1, 4),
    Case(1, 1, 1, 2, initial_state=True),
    Case(3, 5, 2, 4, initial_state=True),
    Case(2, 33, 3, 4),
    Case(1, 16, 64, 4),
    Case(2, 70, 9, 3, seq_idx=True),
    Case(1, 3, 300, 4),
    Case(1, 130, 65, 2),
    Case(2, 8, 257, 4, initial_state=True, seq_idx=True),
]

EMPTY = [
    Case(batch=0),
    Case(channels=0, initial_state=True),
    Case(length=0),
    Case(length=0, initial_state=True, seq_idx=True),
]


def conv_inputs(case: Case, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> dict[str, Tensor | None]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(case.batch, case.channels, case.length, dtype=torch.float64).to(dtype)
    seq_idx = None
    if case.seq_idx:  # runs of one to a few positions
        seq_idx = (torch.rand(case.batch, case.length) < 0.4).cumsum(1).to(torch.int32)
    state = (case.batch, case.channels, case.width - 1)
    return {
        "x": lay_out(x, layout) if x.numel() else x,
        "weight": torch.randn(case.channels, case.width, dtype=torch.float64).to(wide),
        "bias": torch.randn(case.channels, dtype=torch.float64).to(wide) if case.bias else None,
        "initial_state": torch.randn(state, dtype=torch.float64).to(wide) if case.initial_state else None,
        "seq_idx": seq_idx,
    }


def call(function: Callable, inputs: dict[str, Tensor | None], case: Case) -> tuple[Tensor, Tensor]:
    """(out, final_state) of a public function."""
    return function(
        inputs["x"], inputs["weight"], inputs["bias"], case.activation, initial_state=inputs["initial_state"],
        seq_idx=inputs["seq_idx"], return_final_state=True,
    )  # fmt: skip


def torch_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    *,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    return_final_state: bool = True,
) -> tuple[Tensor, Tensor]:
    """torch's convolution of each sequence with zeros in place of all others."""
    batch, channels, length = x.shape
    past = weight.shape[1] - 1
    state = x.new_zeros(batch, channels, past) if initial_state is None else initial_state.to(x.dtype)
    longer = torch.cat([state, x], 2)
    if seq_idx is None or length == 0:
        owner = torch.zeros(batch, length + past, dtype=torch.int32)
    else:
        owner = torch.cat([seq_idx[:, :1].expand(batch, past), seq_idx], 1)
    out = torch.zeros(batch, channels, length, dtype=x.dtype)
    for number in owner.unique().tolist() if x.numel() else []:
        own = (owner == number).unsqueeze(1)
        found = F.conv1d(torch.where(own, longer, 0), weight.to(x.dtype).unsqueeze(1), groups=channels)
        out = out + torch.where(own[..., past:], found, 0)
    if bias is not None:
        out = out + bias.to(x.dtype).unsqueeze(-1)
    final = longer[..., length:]
    if seq_idx is not None and length:
        final = torch.where((owner[:, length:] == seq_idx[:, -1:]).unsqueeze(1), final, 0)
    return (F.silu(out) if activation else out), final


def doubled(inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The same numbers in float64: the truth of every dtype is computed from them."""
    return {
        name: value.detach().double() if value is not None and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def truth(inputs: dict[str, Tensor | None], case: Case) -> tuple[Tensor, Tensor]:
    return call(torch_conv, doubled(inputs), case)


def gradients(
    function: Callable, inputs: dict[str, Tensor | None], case: Case, grads: Sequence[Tensor | None]
) -> dict[str, Tensor]:
    """Of every tensor that is there, given the gradients of out and final_state (None: that output isn't used)."""
    leaves = {name: None if value is None else value.detach() for name, value in inputs.items()}
    present = {name: leaves[name].requires_grad_() for name in TENSORS if leaves[name] is not None}
    outputs = call(function, leaves, case)
    pairs = [(output, grad.to(output.dtype)) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    roots, given = zip(*[pair for pair in pairs if pair[0].requires_grad], strict=True)
    values = torch.autograd.grad(roots, list(present.values()), given, allow_unused=True, materialize_grads=True)
    return dict(zip(present, values, strict=True))


def assert_exact(value: Tensor, eager: Tensor, expected: Tensor) -> None:
    assert value.dtype == eager.dtype
    assert_as_exact_as_torch(value, eager, expected, value.dtype)
