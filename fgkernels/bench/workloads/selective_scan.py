# SPDX-License-Identifier: Apache-2.0
"""Selective scans: input makers, the formulas that people write, and FLOP, byte and update counts.

Shapes in letters: u, delta, z (B, D, L), A (D, N), B and C (B, N, L), D and bias (D,). A step is one call of decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..registry import Call, Inputs, Shape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: The order of a scan's operands in every formula, and what is differentiable.
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "bias")
LONG_NAMES = ("u", "delta", "A", "B", "C", "D", "bias")
STEP_NAMES = ("state", "x", "dt", "A", "B", "C", "D", "z", "bias")
#: Calls that one long sequence is cut into, for comparison.
PARTS = 10


# Inputs ---------------------------------------------------------------------------------------------------------------


def step_bias(generator: torch.Generator, *shape: int) -> Tensor:
    """Biases whose softplus is spread evenly in the logarithm over 0.001 to 0.1, as Mamba starts."""
    low, high = math.log(1e-3), math.log(1e-1)
    step = torch.exp(low + (high - low) * torch.rand(*shape, generator=generator))
    return step + torch.log(-torch.expm1(-step))


def decay_rates(channels: int, states: int) -> Tensor:
    """A = -1, -2, ..., -N in every channel, as Mamba starts."""
    return -torch.arange(1.0, states + 1).repeat(channels, 1)


def scan_inputs(dtype: str = "float32", backward: bool = False) -> Callable[[Shape], Inputs]:
    """A Mamba layer's scan; where ``backward``, every operand is a leaf and "grad" the output's gradient."""

    def make(shape: Shape) -> Inputs:
        generator = torch.Generator().manual_seed(0)

        def draw(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator)

        sequence, states = (shape["B"], shape["D"], shape["L"]), (shape["B"], shape["N"], shape["L"])
        inputs = {
            "u": draw(*sequence).to(DTYPES[dtype]),
            "delta": (0.5 * draw(*sequence)).to(DTYPES[dtype]),
            "A": decay_rates(shape["D"], shape["N"]),
            "B": draw(*states).to(DTYPES[dtype]),
            "C": draw(*states).to(DTYPES[dtype]),
            "D": draw(shape["D"]),
            "z": draw(*sequence).to(DTYPES[dtype]),
            "bias": step_bias(generator, shape["D"]),
        }
        if backward:
            inputs = {name: value.requires_grad_() for name, value in inputs.items()}
            inputs["grad"] = draw(*sequence).to(DTYPES[dtype])
        return inputs

    return make


def long_inputs(shape: Shape) -> Inputs:
    """One sequence without a gate; nothing but sequences is large."""
    return {name: value for name, value in scan_inputs()(shape).items() if name != "z"}


def step_inputs(shape: Shape) -> Inputs:
    """State (B, D, N), the rest one position of a Mamba layer."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    batch, channels, states = shape["B"], shape["D"], shape["N"]
    return {
        "state": draw(batch, channels, states),
        "x": draw(batch, channels),
        "dt": 0.5 * draw(batch, channels),
        "A": decay_rates(channels, states),
        "B": draw(batch, states),
        "C": draw(batch, states),
        "D": draw(channels),
        "z": draw(batch, channels),
        "bias": step_bias(generator, channels),
    }


def head_step_inputs(shape: Shape) -> Inputs:
    """State (B, H, P, N) of Mamba-2: one decay, step and skip per head, expanded and never copied."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    batch, heads, channels, states = (shape[name] for name in "BHPN")
    return {
        "state": draw(batch, heads, channels, states),
        "x": draw(batch, heads, channels),
        "dt": (0.5 * draw(batch, heads, 1)).expand(-1, -1, channels),
        "A": -torch.linspace(1.0, 16.0, heads)[:, None, None].expand(-1, channels, states),
        "B": draw(batch, 1, states),
        "C": draw(batch, 1, states),
        "D": draw(heads, 1).expand(-1, channels),
        "z": draw(batch, heads, channels),
        "bias": step_bias(generator, heads, 1).expand(-1, channels),
    }


# What people write ----------------------------------------------------------------------------------------------------


def scan_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """Both factors of every step at once, (B, D, L, N), then a loop that reads them step by step."""
    dtype = u.dtype
    u, B, C = u.to(A.dtype), B.to(A.dtype), C.to(A.dtype)
    dt = F.softplus(delta + bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", dt, B, u)
    state = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + drive[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    y = torch.stack(outputs, dim=2) + D[:, None] * u
    return (y * F.silu(z)).to(dtype)


def scan_unbound(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """The same with steps in front and unbound once: its backward doesn't write a full array for every step."""
    dtype = u.dtype
    u, B, C = u.to(A.dtype), B.to(A.dtype), C.to(A.dtype)
    dt = F.softplus(delta + bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->lbdn", dt, A))
    drive = torch.einsum("bdl,bnl->lbdn", dt * u, B)
    states, _ = _recurrence(decay, drive, torch.zeros_like(drive[0]))
    y = torch.einsum("lbdn,bnl->bdl", states, C) + D[:, None] * u
    return (y * F.silu(z)).to(dtype)


def _recurrence(decay: Tensor, drive: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """All states of h = decay h + drive along the first axis, and the last one."""
    states = []
    for a, x in zip(decay.unbind(0), drive.unbind(0), strict=True):
        state = a * state + x
        states.append(state)
    return torch.stack(states), state


def scan_chunks(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """Chunks of at most 16 steps: all chunks at once step by step, then chunk by chunk what each inherits."""
    dtype = u.dtype
    chunk = next(size for size in range(16, 0, -1) if u.shape[2] % size == 0)
    u, B, C = u.to(A.dtype), B.to(A.dtype), C.to(A.dtype)
    y, _ = chunk_states(u, F.softplus(delta + bias[:, None]), A, B, C, u.new_zeros(u.shape[0], *A.shape), chunk)
    return ((y + D[:, None] * u) * F.silu(z)).to(dtype)


def chunk_states(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """y = C h of the recurrence from ``state`` on, and the last state."""
    dt, scaled, B, C = (value.unflatten(2, (-1, chunk)) for value in (dt, dt * u, B, C))
    decay = torch.exp(torch.einsum("bdcq,dn->qcbdn", dt, A))
    drive = torch.einsum("bdcq,bncq->qcbdn", scaled, B)
    local, ends = _recurrence(decay, drive, torch.zeros_like(drive[0]))
    reach, whole = _recurrence(decay, torch.zeros_like(drive), torch.ones_like(drive[0]))
    starts = []
    for a, x in zip(whole.unbind(0), ends.unbind(0), strict=True):
        starts.append(state)
        state = a * state + x
    states = local + reach * torch.stack(starts)
    return torch.einsum("qcbdn,bncq->bdcq", states, C).flatten(2), state


def scan_associative(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """torch's associative scan of (decay, drive) pairs; only for torch.compile."""
    dtype = u.dtype
    u, B, C = u.to(A.dtype), B.to(A.dtype), C.to(A.dtype)
    dt = F.softplus(delta + bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    states = associative_states(decay, torch.einsum("bdl,bnl->bdln", dt * u, B), dim=2)
    y = torch.einsum("bdln,bnl->bdl", states, C) + D[:, None] * u
    return (y * F.silu(z)).to(dtype)


def associative_states(decay: Tensor, drive: Tensor, dim: int) -> Tensor:
    """All states of h = decay h + drive along ``dim``."""
    from torch._higher_order_ops.associative_scan import associative_scan

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    mode = "pointwise" if drive.is_cuda else "generic"
    return associative_scan(combine, (decay, drive), dim=dim, combine_mode=mode)[1]


def scan_mambapy(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """mambapy's parallel scan as its Mamba block calls it: sequences (B, L, D), B and C (B, L, N)."""
    from mambapy.pscan import pscan

    dtype = u.dtype
    u, B, C = u.to(A.dtype), B.to(A.dtype), C.to(A.dtype)
    dt = F.softplus(delta + bias)
    states = pscan(torch.exp(dt[..., None] * A), (dt * u)[..., None] * B[:, :, None])
    y = (states @ C[..., None]).squeeze(3) + D * u
    return (y * F.silu(z)).to(dtype)


def step_formula(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """One step, in place on the state; B and C are the same for all channels and heads."""
    dt = F.softplus(dt + bias)
    if state.dim() == 3:
        B, C = B[:, None], C[:, None]
    else:
        B, C = B[:, :, None], C[:, :, None]
    state.copy_(torch.exp(dt[..., None] * A) * state + (dt * x)[..., None] * B)
    return ((state * C).sum(-1) + D * x) * F.silu(z)


# Sister workloads and references --------------------------------------------------------------------------------------


def as_float(inputs: Inputs) -> dict[str, Tensor]:
    return {name: value.detach().float().requires_grad_(value.requires_grad) for name, value in inputs.items()}


def channel_last(inputs: Inputs) -> dict[str, Tensor]:
    """Sequences laid out (B, L, ·), contiguous; leaves stay leaves, and "grad" follows."""
    changed = ("u", "delta", "B", "C", "z", "grad")
    return {
        name: value.detach().transpose(1, 2).contiguous().requires_grad_(value.requires_grad)
        if name in changed
        else value
        for name, value in inputs.items()
    }


def channel_first(prepare: Callable[[Inputs], Call], outputs: tuple[str, ...]) -> Callable[[Inputs], Call]:
    """``prepare`` on :func:`channel_last` inputs, its sequences given back as (B, D, L) views."""
    moved = [name in ("out", "grad_u", "grad_delta", "grad_B", "grad_C", "grad_z") for name in outputs]

    def prepared(inputs: Inputs) -> Call:
        call = prepare(channel_last(inputs))

        def run() -> tuple[Tensor, ...]:
            values = call()
            values = values if isinstance(values, tuple) else (values,)
            return tuple(value.transpose(1, 2) if move else value for value, move in zip(values, moved, strict=True))

        return run

    return prepared


def long_reference(inputs: Inputs) -> tuple[Tensor, ...]:
    """The long case's expected parts in fp64, a piece at a time: all its states at once would be gigabytes."""
    A, D, bias = (inputs[name].double() for name in ("A", "D", "bias"))
    length = inputs["u"].shape[2]
    chunk = math.gcd(length, 1000)
    size = chunk * min(2, length // chunk)  # stays in the cache
    state, outputs = A.new_zeros(inputs["u"].shape[0], *A.shape), []
    for start in range(0, length, size):
        u, delta, B, C = (inputs[name][..., start : start + size].double() for name in ("u", "delta", "B", "C"))
        y, state = chunk_states(u, F.softplus(delta + bias[:, None]), A, B, C, state, math.gcd(chunk, 100))
        outputs.append(y + D[:, None] * u)
    return torch.cat(outputs, dim=2).split(length // PARTS, dim=2)


# FLOP, byte and update counts -----------------------------------------------------------------------------------------


def scan_updates(shape: Shape) -> int:
    """B D L N: one exponential and its multiply-adds for each state and step."""
    return shape["B"] * shape["D"] * shape["L"] * shape["N"]


def scan_train_updates(shape: Shape) -> int:
    """Twice the forward's: a backward that doesn't store all states computes them once more."""
    return 2 * scan_updates(shape)


def scan_flops(shape: Shape) -> int:
    """6 B D L N: dt A, the two products and the sum of the state, the product and the sum of the output."""
    return 6 * scan_updates(shape)


def scan_train_flops(shape: Shape) -> int:
    """The forward, the states again (4), and 15 for the state's gradient and the six sums that it enters."""
    return 25 * scan_updates(shape)


def scan_bytes(item: int, gate: bool = True) -> Callable[[Shape], int]:
    """u, delta, z, out, B and C once; parameters."""

    def count(shape: Shape) -> int:
        rows = (3 + gate) * shape["D"] + 2 * shape["N"]
        return item * shape["B"] * shape["L"] * rows + 4 * shape["D"] * (shape["N"] + 2)

    return count


def scan_train_bytes(item: int) -> Callable[[Shape], int]:
    """The forward's, its inputs and the output's gradient read, and every gradient written."""

    def count(shape: Shape) -> int:
        again = item * shape["B"] * shape["L"] * (7 * shape["D"] + 4 * shape["N"]) + 8 * shape["D"] * (shape["N"] + 2)
        return scan_bytes(item)(shape) + again

    return count


def step_updates(shape: Shape) -> int:
    """B D N: one for each entry of the state."""
    return shape["B"] * shape["D"] * shape["N"]


def step_flops(shape: Shape) -> int:
    return 6 * step_updates(shape)


def step_bytes(shape: Shape) -> int:
    """The state read and written; x, dt, z and out; B and C; A, D and the bias."""
    rows = 4 * shape["D"] + 2 * shape["N"]
    return 8 * step_updates(shape) + 4 * (shape["B"] * rows + shape["D"] * (shape["N"] + 2))


def head_step_flops(shape: Shape) -> int:
    """5 B H P N: a head's decay is one number, so dt A is as good as free."""
    return 5 * shape["B"] * shape["H"] * shape["P"] * shape["N"]


def head_step_bytes(shape: Shape) -> int:
    """As :func:`step_bytes`, with dt, A, D and the bias once per head."""
    batch, heads, channels, states = (shape[name] for name in "BHPN")
    rows = heads * (3 * channels + 1) + 2 * states
    return 8 * batch * heads * channels * states + 4 * (batch * rows + 3 * heads)
