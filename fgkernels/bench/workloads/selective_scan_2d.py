# SPDX-License-Identifier: Apache-2.0
"""Scans over feature maps: input makers, the formulas that people write, and FLOP, byte and update counts.

Shapes in letters: a map x (B, E, H, W) of L = H W positions, read in K orders; delta (B, K, E, L), A (K, E, N), B and C
(B, K, N, L), D and bias (K, E). With several orders that share weights: x and delta (B, K, E, L) in scan order, A (E,
N), D and bias (E,), and a gate z (B, E, H, W) in map order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import fgkernels

from ..registry import Inputs, Shape
from .selective_scan import associative_states, decay_rates, step_bias

#: Order of the operands in every formula, and what is differentiable.
NAMES = ("x", "delta", "A", "B", "C", "D", "bias")
SHARED_NAMES = ("x", "delta", "A", "B", "C", "D", "z", "bias")
#: VMamba's four directions; the order in which Mamba-FSCIL reads its map is another, the set is the same.
DIRECTIONS = ("h", "v", "h_flip", "v_flip")


# Inputs ---------------------------------------------------------------------------------------------------------------


def map_inputs(backward: bool) -> Callable[[Shape], Inputs]:
    """One SS2D layer: delta, B and C in map order, weights of their own for each direction."""

    def make(shape: Shape) -> Inputs:
        generator = torch.Generator().manual_seed(0)

        def draw(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator)

        batch, channels, states, height, width = (shape[name] for name in "BENHW")
        count, length = len(DIRECTIONS), height * width
        inputs = {
            "x": draw(batch, channels, height, width),
            "delta": 0.5 * draw(batch, count, channels, length),
            "A": decay_rates(channels, states).repeat(count, 1, 1),
            "B": draw(batch, count, states, length),
            "C": draw(batch, count, states, length),
            "D": draw(count, channels),
            "bias": step_bias(generator, count, channels),
        }
        if backward:
            inputs = {name: value.requires_grad_() for name, value in inputs.items()}
            inputs["grad"] = draw(batch, channels, height, width)
        return inputs

    return make


def shared_inputs(shape: Shape) -> Inputs:
    """One Mamba block on four orders: each order has a convolution behind it, so x, delta, B and C differ."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    batch, channels, states, height, width = (shape[name] for name in "BENHW")
    count, length = len(DIRECTIONS), height * width
    return {
        "x": draw(batch, count, channels, length),
        "delta": 0.5 * draw(batch, count, channels, length),
        "A": decay_rates(channels, states),
        "B": draw(batch, count, states, length),
        "C": draw(batch, count, states, length),
        "D": draw(channels),
        "z": draw(batch, channels, height, width),
        "bias": step_bias(generator, channels),
    }


def in_scan_order(inputs: Inputs) -> dict[str, Tensor]:
    """The same map with delta, B and C given in the order of each direction, as projections of a cross scan are."""
    height, width = inputs["x"].shape[-2:]
    return {
        name: _ordered(value, height, width).detach().requires_grad_(value.requires_grad)
        if name in ("delta", "B", "C")
        else value
        for name, value in inputs.items()
    }


def _ordered(value: Tensor, height: int, width: int) -> Tensor:
    """(B, K, ·, L) in map order -> in the order of each direction."""
    places = torch.stack(
        [order.flatten() for order in _four_ways(torch.arange(height * width).view(1, 1, height, width))[0]]
    )
    return value.gather(-1, places.to(value.device)[:, None].expand(value.shape))


# What people write ----------------------------------------------------------------------------------------------------


def _four_ways(x: Tensor) -> Tensor:
    """(B, E, H, W) -> (B, 4, E, L): rows, columns, and both backwards."""
    forward = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], dim=1)
    return torch.cat([forward, forward.flip(-1)], dim=1)


def _put_back(y: Tensor, height: int, width: int) -> Tensor:
    """(B, 4, E, L) -> (B, E, H, W), the sum of the four."""
    y = y[:, :2] + y[:, 2:].flip(-1)
    return y[:, 0].unflatten(-1, (height, width)) + y[:, 1].unflatten(-1, (width, height)).transpose(2, 3)


def map_loop(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """Sequences of all directions, a loop over both factors of every step, a merge; delta, B and C in scan order."""
    u, dt = _four_ways(x), F.softplus(delta + bias[..., None])
    decay = torch.exp(torch.einsum("bkel,ken->bkeln", dt, A))
    drive = torch.einsum("bkel,bknl,bkel->bkeln", dt, B, u)
    state, outputs = torch.zeros_like(decay[:, :, :, 0]), []
    for t in range(u.shape[-1]):
        state = decay[:, :, :, t] * state + drive[:, :, :, t]
        outputs.append(torch.einsum("bken,bkn->bke", state, C[..., t]))
    return _put_back(torch.stack(outputs, dim=-1) + D[..., None] * u, *x.shape[-2:])


def map_unbound(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """The same with steps in front and unbound once."""
    u, dt = _four_ways(x), F.softplus(delta + bias[..., None])
    decay = torch.exp(torch.einsum("bkel,ken->lbken", dt, A))
    drive = torch.einsum("bkel,bknl->lbken", dt * u, B)
    state, states = torch.zeros_like(decay[0]), []
    for a, b in zip(decay.unbind(0), drive.unbind(0), strict=True):
        state = a * state + b
        states.append(state)
    y = torch.einsum("lbken,bknl->bkel", torch.stack(states), C)
    return _put_back(y + D[..., None] * u, *x.shape[-2:])


def map_associative(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """The same with torch's associative scan; only for torch.compile."""
    u, dt = _four_ways(x), F.softplus(delta + bias[..., None])
    decay = torch.exp(torch.einsum("bkel,ken->bkeln", dt, A))
    states = associative_states(decay, torch.einsum("bkel,bknl->bkeln", dt * u, B), dim=3)
    y = torch.einsum("bkeln,bknl->bkel", states, C)
    return _put_back(y + D[..., None] * u, *x.shape[-2:])


def map_in_map_order(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """The formula of an op that takes delta, B and C in map order."""
    delta, B, C = (_ordered(value, *x.shape[-2:]) for value in (delta, B, C))
    return map_unbound(x, delta, A, B, C, D, bias)


def shared_loop(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """One scan after another for the four orders, each gated in its own order, un-permuted and summed."""
    height, width = z.shape[-2:]
    gates = F.silu(_four_ways(z))
    outputs = []
    for k in range(len(DIRECTIONS)):
        dt = F.softplus(delta[:, k] + bias[:, None])
        decay = torch.exp(torch.einsum("bel,en->beln", dt, A))
        drive = torch.einsum("bel,bnl,bel->beln", dt, B[:, k], x[:, k])
        state, steps = torch.zeros_like(decay[:, :, 0]), []
        for t in range(dt.shape[-1]):
            state = decay[:, :, t] * state + drive[:, :, t]
            steps.append(torch.einsum("ben,bn->be", state, C[:, k, :, t]))
        outputs.append((torch.stack(steps, dim=-1) + D[:, None] * x[:, k]) * gates[:, k])
    return _put_back(torch.stack(outputs, dim=1), height, width)


# Our op, and our own parts put together -------------------------------------------------------------------------------


def fused(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    return fgkernels.selective_scan_2d(x, delta, A, B, C, D, None, bias, True, directions=DIRECTIONS)


def composed(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """cross_scan, one grouped selective_scan, cross_merge; delta, B and C in scan order."""
    u = fgkernels.cross_scan(x, DIRECTIONS)
    y = fgkernels.selective_scan(
        u.flatten(1, 2), delta.flatten(1, 2), A.flatten(0, 1), B, C, D.flatten(), None, bias.flatten(), True
    )
    return fgkernels.cross_merge(y.view_as(u), DIRECTIONS, size=tuple(x.shape[-2:]))


def fused_shared(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    return fgkernels.selective_scan_2d(
        x, delta, A, B, C, D, z, bias, True, directions=DIRECTIONS, ordered=True, size=tuple(z.shape[-2:])
    )


def composed_shared(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """The orders as entries of a batch of one selective_scan, cross_merge, and the gate."""
    y = fgkernels.selective_scan(
        *(value.flatten(0, 1) for value in (x, delta)),
        A,
        *(value.flatten(0, 1) for value in (B, C)),
        D,
        None,
        bias,
        True,
    )
    return fgkernels.cross_merge(y.view_as(x), DIRECTIONS, size=tuple(z.shape[-2:])) * F.silu(z)


# FLOP, byte and update counts -----------------------------------------------------------------------------------------


def map_updates(shape: Shape) -> int:
    """K B E L N."""
    return len(DIRECTIONS) * shape["B"] * shape["E"] * shape["H"] * shape["W"] * shape["N"]


def map_train_updates(shape: Shape) -> int:
    """Twice the forward's: a backward that doesn't store all states computes them once more."""
    return 2 * map_updates(shape)


def map_flops(shape: Shape) -> int:
    """6 a state update, as in one scan."""
    return 6 * map_updates(shape)


def map_train_flops(shape: Shape) -> int:
    return 25 * map_updates(shape)


def _per_position(shape: Shape, maps: int, sequences: int, projections: int) -> int:
    """fp32 bytes of so many maps (E), arrays of K sequences (E) and of K projections (N)."""
    count = len(DIRECTIONS)
    rows = (maps + count * sequences) * shape["E"] + count * projections * shape["N"]
    return 4 * shape["B"] * shape["H"] * shape["W"] * rows


def map_bytes(shape: Shape) -> int:
    """x and out, delta, B and C once; parameters."""
    return _per_position(shape, 2, 1, 2) + 4 * len(DIRECTIONS) * shape["E"] * (shape["N"] + 2)


def map_train_bytes(shape: Shape) -> int:
    """The forward's, inputs and the output's gradient read, gradients written."""
    return map_bytes(shape) + _per_position(shape, 3, 2, 4) + 8 * len(DIRECTIONS) * shape["E"] * (shape["N"] + 2)


def shared_bytes(shape: Shape) -> int:
    """x and delta of every order, B and C, z and out once; parameters."""
    return _per_position(shape, 2, 2, 2) + 4 * shape["E"] * (shape["N"] + 2)
