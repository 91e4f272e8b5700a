# SPDX-License-Identifier: Apache-2.0
"""vmap over every argument, and its compositions with grad, against a loop over the batch.

The rules fold arguments before any back end sees them, so the default one will do but for what is written in place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import fgkernels

from .cases import Case, conv_inputs

pytestmark = pytest.mark.compiled

SAMPLES = 3


def looped(function: Callable, dims: tuple, arguments: tuple) -> tuple[Tensor, ...]:
    rows = [
        function(*(value if dim is None else value.select(dim, i) for value, dim in zip(arguments, dims, strict=True)))
        for i in range(SAMPLES)
    ]
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


def batched(value: Tensor | None, dim: int | None) -> Any:
    """SAMPLES different tensors like `value`, stacked at `dim`."""
    if dim is None or value is None:
        return value
    if value.is_floating_point():
        return torch.stack([torch.randn_like(value) for _ in range(SAMPLES)], dim)
    return torch.stack([value.flip(1).cummax(1).values, value, value // 2], dim)


#: Batch dimensions of x, weight, bias, initial_state, seq_idx: each alone, and some together.
DIMS = [
    *(tuple(0 if i == j else None for i in range(5)) for j in range(5)),
    (1, 2, None, 0, None), (2, None, None, 3, 1), (None, 0, 1, None, 0), (0, 0, 0, 0, 0), (0, None, None, 0, 2),
]  # fmt: skip


@pytest.mark.parametrize("absent", [(), (2, 3), (4,)], ids=["all", "no bias or state", "no seq_idx"])
@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_values_and_gradients(dims: tuple, absent: tuple) -> None:
    """A sample's gradients are its own, also those of parameters that all share."""
    if all(dim is None for i, dim in enumerate(dims) if i not in absent):
        return
    inputs = conv_inputs(Case(2, 3, 6, 3, initial_state=True, seq_idx=True), torch.float64)
    names = ("x", "weight", "bias", "initial_state", "seq_idx")
    arguments = tuple(None if i in absent else batched(inputs[name], dims[i]) for i, name in enumerate(names))
    dims = tuple(None if i in absent else dim for i, dim in enumerate(dims))

    def function(x: Tensor, weight: Tensor, bias: Any, state: Any, seq_idx: Any) -> tuple[Tensor, Tensor]:
        return fgkernels.causal_conv1d(
            x, weight, bias, "silu", initial_state=state, seq_idx=seq_idx, return_final_state=True
        )

    present = [i for i in range(4) if i not in absent]

    def gradients(*values: Any) -> tuple[Tensor, ...]:
        def loss(leaves: tuple[Tensor, ...]) -> Tensor:
            own = list(values)
            for i, leaf in zip(present, leaves, strict=True):
                own[i] = leaf
            return sum(output.square().sum() for output in function(*own))

        return grad(loss)(tuple(values[i] for i in present))

    for check in (function, gradients):
        found, expected = vmap(check, dims)(*arguments), looped(check, dims, arguments)
        for value, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(value, truth)


def test_nested_and_empty() -> None:
    x, weight = torch.randn(2, 3, 1, 4, 6), torch.randn(3, 4, 2)
    found = vmap(vmap(fgkernels.causal_conv1d), (0, None))(x, weight)
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(found[i, j], fgkernels.causal_conv1d(x[i, j], weight[j]))
    assert vmap(fgkernels.causal_conv1d, (0, None))(x[:0, 0], weight[0]).shape == (0, 1, 4, 6)


def test_step_of_each_sample(operators) -> None:
    """Each sample's state moves on in place, wherever the batch dimension lies; a shared one can't."""
    x, state, weight = torch.randn(SAMPLES, 2, 5), torch.randn(2, SAMPLES, 5, 4), torch.randn(5, 4)
    other = state.clone()
    found = vmap(fgkernels.causal_conv1d_update, (0, 1, None))(x, state, weight)
    for i in range(SAMPLES):
        own = other[:, i]
        torch.testing.assert_close(found[i], fgkernels.causal_conv1d_update(x[i], own, weight))
    assert torch.equal(state, other)
    with pytest.raises(RuntimeError, match="conv_state"):
        vmap(fgkernels.causal_conv1d_update, (0, None, None))(x, state[:, 0], weight)
