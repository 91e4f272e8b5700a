# SPDX-License-Identifier: Apache-2.0
"""Mamba-2's scan: input makers, the formula that people write, and FLOP and byte counts.

Shapes in letters: x and z (B, L, H, P), dt (B, L, H), A, D and bias (H,), B and C (B, L, G, N) with one group here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..registry import Inputs, Shape
from .selective_scan import step_bias

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "bias")
#: Steps of a block of the formula; L has to be a multiple.
BLOCK = 64


def chunk_inputs(backward: bool) -> Callable[[Shape], Inputs]:
    """A Mamba-2 layer's scan."""

    def make(shape: Shape) -> Inputs:
        generator = torch.Generator().manual_seed(0)

        def draw(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator)

        batch, length, heads, channels, states = (shape[name] for name in "BLHPN")
        inputs = {
            "x": draw(batch, length, heads, channels),
            "dt": 0.5 * draw(batch, length, heads),
            "A": -torch.linspace(1.0, 16.0, heads),
            "B": draw(batch, length, 1, states),
            "C": draw(batch, length, 1, states),
            "D": draw(heads),
            "z": draw(batch, length, heads, channels),
            "bias": step_bias(generator, heads),
        }
        if backward:
            inputs = {name: value.requires_grad_() for name, value in inputs.items()}
            inputs["grad"] = draw(batch, length, heads, channels)
        return inputs

    return make


def _decays(log: Tensor) -> Tensor:
    """(..., T) -> (..., T, T): exp of the sum of ``log`` over (j, i] for j <= i, and 0 above the diagonal."""
    size = log.shape[-1]
    summed = log[..., None].expand(*log.shape, size).tril(-1).cumsum(-2)
    seen = torch.ones(size, size, dtype=torch.bool, device=log.device).tril()
    return summed.masked_fill(~seen, -torch.inf).exp()


def blocks(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """State-space duality in blocks (Dao and Gu 2024, listing 1): products inside a block, states between blocks."""
    dt = F.softplus(dt + bias)
    scaled = (x * dt[..., None]).unflatten(1, (-1, BLOCK))
    B, C = (value.squeeze(2).unflatten(1, (-1, BLOCK)) for value in (B, C))
    log = (dt * A).unflatten(1, (-1, BLOCK)).permute(0, 3, 1, 2)
    summed = log.cumsum(-1)
    inside = torch.einsum("bcln,bcsn,bhcls,bcshp->bclhp", C, B, _decays(log), scaled)
    ends = torch.einsum("bcln,bhcl,bclhp->bchpn", B, (summed[..., -1:] - summed).exp(), scaled)
    ends = torch.cat([torch.zeros_like(ends[:, :1]), ends], dim=1)
    between = _decays(F.pad(summed[..., -1], (1, 0)))
    starts = torch.einsum("bhij,bjhpn->bihpn", between, ends)[:, :-1]
    inherited = torch.einsum("bcln,bchpn,bhcl->bclhp", C, starts, summed.exp())
    y = (inside + inherited).flatten(1, 2) + D[:, None] * x
    return y * F.silu(z)


def recurrence(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """Step after step, as the scan is defined."""
    dt = F.softplus(dt + bias)
    state = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1])
    outputs = []
    for t in range(x.shape[1]):
        drive = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        state = (dt[:, t] * A).exp()[..., None, None] * state + drive
        outputs.append((state * C[:, t, :, None]).sum(-1))
    return (torch.stack(outputs, dim=1) + D[:, None] * x) * F.silu(z)


def chunk_flops(shape: Shape) -> int:
    """4 B L H P N: a multiply-add into every entry of the state and one out of it, in every step."""
    return 4 * shape["B"] * shape["L"] * shape["H"] * shape["P"] * shape["N"]


def chunk_train_flops(shape: Shape) -> int:
    """The forward; in the backward the state again, its gradient, and those of x, B and C: five multiply-adds."""
    return 14 * shape["B"] * shape["L"] * shape["H"] * shape["P"] * shape["N"]


def chunk_bytes(shape: Shape) -> int:
    """x, z, out, dt, B and C once; parameters."""
    row = shape["H"] * (3 * shape["P"] + 1) + 2 * shape["N"]
    return 4 * (shape["B"] * shape["L"] * row + 3 * shape["H"])


def chunk_train_bytes(shape: Shape) -> int:
    """The forward's, inputs and the output's gradient read, gradients written."""
    row = shape["H"] * (5 * shape["P"] + 2) + 4 * shape["N"]
    return chunk_bytes(shape) + 4 * (shape["B"] * shape["L"] * row + 6 * shape["H"])
