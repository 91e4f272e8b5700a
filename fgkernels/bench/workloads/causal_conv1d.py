# SPDX-License-Identifier: Apache-2.0
"""Causal depthwise convolution: input makers, the expressions that people write, and FLOP and byte formulas.

Shapes in letters: x (B, D, L), weight (D, W), bias (D,), state (B, D, W - 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..registry import Inputs, Shape

NAMES = ("x", "weight", "bias")


def conv_inputs(backward: bool) -> Callable[[Shape], Inputs]:
    def make(shape: Shape) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        size = (shape["B"], shape["D"], shape["L"])
        inputs = {
            "x": torch.randn(*size, generator=generator).requires_grad_(backward),
            "weight": (0.5 * torch.randn(shape["D"], shape["W"], generator=generator)).requires_grad_(backward),
            "bias": torch.randn(shape["D"], generator=generator).requires_grad_(backward),
        }
        if backward:
            inputs["grad"] = torch.randn(*size, generator=generator)
        return inputs

    return make


def step_inputs(shape: Shape) -> Inputs:
    """One position and the W - 1 before it."""
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(shape["B"], shape["D"], generator=generator),
        "state": torch.randn(shape["B"], shape["D"], shape["W"] - 1, generator=generator),
        "weight": 0.5 * torch.randn(shape["D"], shape["W"], generator=generator),
        "bias": torch.randn(shape["D"], generator=generator),
    }


def conv_grouped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.conv1d with as many groups as channels, padded on both sides, its end cut off."""
    width = weight.shape[1]
    out = F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=x.shape[1])
    return F.silu(out[..., : x.shape[2]])


def conv_sum(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A sum of shifted copies, which torch.compile fuses."""
    width, length = weight.shape[1], x.shape[2]
    padded = F.pad(x, (width - 1, 0))
    out = sum(weight[:, tap, None] * padded[..., tap : tap + length] for tap in range(width))
    return F.silu(out + bias[:, None])


def step_formula(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One position, in place on the state."""
    window = torch.cat([state, x[..., None]], dim=-1)
    state.copy_(window[..., 1:])
    return F.silu((window * weight).sum(-1) + bias)


def conv_flops(shape: Shape) -> int:
    """2 B D L W: one multiply-add per output and tap."""
    return 2 * shape["B"] * shape["D"] * shape["L"] * shape["W"]


def conv_train_flops(shape: Shape) -> int:
    """The forward, what went into the activation once more, and both gradients."""
    return 4 * conv_flops(shape)


def conv_bytes(shape: Shape) -> int:
    """x read, out written; weight and bias."""
    return 4 * (2 * shape["B"] * shape["D"] * shape["L"] + shape["D"] * (shape["W"] + 1))


def conv_train_bytes(shape: Shape) -> int:
    """x and out, then x and the output's gradient read and x's gradient written; weight, bias and their gradients."""
    return 4 * (5 * shape["B"] * shape["D"] * shape["L"] + 3 * shape["D"] * (shape["W"] + 1))


def step_flops(shape: Shape) -> int:
    return 2 * shape["B"] * shape["D"] * shape["W"]


def step_bytes(shape: Shape) -> int:
    """x and out, the state read and written; weight and bias."""
    rows = shape["B"] * shape["D"]
    return 4 * (2 * rows + 2 * rows * (shape["W"] - 1) + shape["D"] * (shape["W"] + 1))
