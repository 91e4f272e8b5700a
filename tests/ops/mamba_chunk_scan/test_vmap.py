# SPDX-License-Identifier: Apache-2.0
"""vmap over every argument, and its compositions with grad, against a loop over the batch.

The rules fold arguments before any back end sees them, so the default one will do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import fgkernels

from .cases import TENSORS, Case, call, scan_inputs

pytestmark = pytest.mark.compiled

SAMPLES = 3
CASE = Case(2, 5, 4, 2, 2, 3, seq_idx=True)
NAMES = (*TENSORS, "seq_idx")

#: Batched arguments and where their batch dimension lies: each alone, then some together.
DIMS = [
    *({name: 0} for name in NAMES),
    {"x": 1, "dt": 2, "z": 3},
    {"B": 3, "C": 1, "initial_states": 2},
    {"A": 1, "D": 0, "dt_bias": 1, "x": 2},
    {"A": 0, "seq_idx": 1},
    {"x": 0, "B": 1, "seq_idx": 2},
    dict.fromkeys(NAMES, 0),
]


def looped(function: Callable, dims: tuple, arguments: tuple) -> tuple[Tensor, ...]:
    rows = [
        function(*(value if dim is None else value.select(dim, i) for value, dim in zip(arguments, dims, strict=True)))
        for i in range(SAMPLES)
    ]
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


def batched(value: Tensor, dim: int) -> Tensor:
    """SAMPLES different tensors like `value`, stacked at `dim`."""
    if value.is_floating_point():
        return torch.stack([value, value * 0.5, value + 0.1 * torch.randn_like(value).abs().neg()], dim)
    return torch.stack([value, value // 2, value.flip(0)], dim)


@pytest.mark.parametrize("absent", [(), ("D", "z", "dt_bias", "initial_states", "seq_idx")], ids=["all", "bare"])
@pytest.mark.parametrize("batch", DIMS, ids=lambda batch: "-".join(f"{name}{dim}" for name, dim in batch.items()))
def test_values_and_gradients(batch: dict[str, int], absent: tuple) -> None:
    """A sample's gradients are its own, also those of parameters that all share."""
    present = [name for name in NAMES if name not in absent]
    dims = tuple(batch.get(name) for name in present)
    if all(dim is None for dim in dims):
        return
    inputs = scan_inputs(CASE, torch.float64)
    arguments = tuple(
        inputs[name] if dim is None else batched(inputs[name], dim) for name, dim in zip(present, dims, strict=True)
    )
    leaves = [i for i, name in enumerate(present) if name in TENSORS]

    def function(*values: Any) -> tuple[Tensor, Tensor]:
        own = dict.fromkeys(NAMES) | dict(zip(present, values, strict=True))
        return call(fgkernels.mamba_chunk_scan_combined, own, CASE)

    def gradients(*values: Any) -> tuple[Tensor, ...]:
        def loss(inner: tuple[Tensor, ...]) -> Tensor:
            own = list(values)
            for i, leaf in zip(leaves, inner, strict=True):
                own[i] = leaf
            return sum(output.square().sum() for output in function(*own))

        return grad(loss)(tuple(values[i] for i in leaves))

    for check in (function, gradients):
        found, expected = vmap(check, dims)(*arguments), looped(check, dims, arguments)
        for value, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(value, truth)


def test_nested_and_empty() -> None:
    inputs = scan_inputs(CASE)
    x = torch.stack([torch.stack([inputs["x"], -inputs["x"]]), torch.stack([2 * inputs["x"], inputs["x"]])])

    def function(x: Tensor) -> Tensor:
        return call(fgkernels.mamba_chunk_scan_combined, inputs | {"x": x}, CASE)[0]

    found = vmap(vmap(function))(x)
    for i in range(2):
        for j in range(2):
            torch.testing.assert_close(found[i, j], function(x[i, j]))
    assert vmap(function)(x[0][:0]).shape == (0, *inputs["x"].shape)
