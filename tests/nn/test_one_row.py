# SPDX-License-Identifier: Apache-2.0
"""Projections of a single row on several threads."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from fgkernels.nn._one_row import project


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_is_the_layer(threads: int, rows: int, dtype: torch.dtype) -> None:
    torch.set_num_threads(threads)
    for out_features in (6, 7):
        for bias in (True, False):
            layer = nn.Linear(5, out_features, bias=bias, dtype=dtype)
            x = torch.randn(rows, 5, dtype=dtype)
            with torch.no_grad():
                torch.testing.assert_close(project(layer, x), layer(x))
            torch.testing.assert_close(project(layer, x), layer(x))
            assert project(layer, x).requires_grad


def test_layers_that_do_more_are_called() -> None:
    """Hooks, replaced forwards, parametrised and other layers keep what they do."""
    torch.set_num_threads(2)
    x = torch.randn(1, 4)
    hooked, before, replaced, other, masked = (nn.Linear(4, 6) for _ in range(5))
    hooked.register_forward_hook(lambda module, inputs, output: output + 1)
    before.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    replaced.forward = lambda x: torch.ones(1, 6)
    parametrize.register_parametrization(masked, "weight", nn.Tanh())
    other = nn.Sequential(other, nn.Tanh())
    with torch.no_grad():
        for layer in (hooked, before, replaced, other, masked):
            torch.testing.assert_close(project(layer, x), layer(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert project(nn.Linear(4, 6), x).dtype == torch.bfloat16
