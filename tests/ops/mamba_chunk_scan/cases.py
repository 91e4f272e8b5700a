# SPDX-License-Identifier: Apache-2.0
"""Inputs of the Mamba-2 tests, and the scan with its gradients by loops over single numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fgkernels.reference import mamba_chunk_scan as reference

from ..common import error, lay_out

#: The tensors with a gradient, in the order of the operator's arguments.
TENSORS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: sizes, and what is there. D is "head" (H,), "channel" (H, P) or absent."""

    batch: int = 2
    length: int = 9
    heads: int = 4
    channels: int = 5
    groups: int = 2
    states: int = 6
    D: str = "head"
    z: bool = True
    dt_bias: bool = True
    initial_states: bool = True
    seq_idx: bool = False
    dt_softplus: bool = True
    dt_limit: tuple[float, float] = (0.0, math.inf)

    def __str__(self) -> str:
        sizes = (self.batch, self.length, self.heads, self.channels, self.groups, self.states)
        absent = [n for n in ("D", "z", "dt_bias", "initial_states", "dt_softplus") if not getattr(self, n)]
        extra = ["seq_idx"] * self.seq_idx + ["D_per_channel"] * (self.D == "channel")
        limits = [] if self.dt_limit == (0.0, math.inf) else ["dt_limit"]
        return "-".join(["x".join(map(str, sizes)), *(f"no_{name}" for name in absent), *extra, *limits])


#: Every way to leave something out, at sizes that are multiples of nothing.
FORMS = [
    Case(),
    Case(D="channel", groups=1),
    Case(D="", groups=4),
    Case(z=False),
    Case(dt_bias=False),
    Case(initial_states=False),
    Case(dt_softplus=False),
    Case(seq_idx=True),
    Case(seq_idx=True, initial_states=False, D="channel"),
    Case(dt_limit=(0.2, 0.9)),
    Case(dt_limit=(0.3, 0.6), dt_softplus=False, seq_idx=True),
    Case(D="", z=False, dt_bias=False, initial_states=False, dt_softplus=False, groups=1),
]

#: Sizes at which vectors, tiles and chunks begin and end: one element, several chunks of 128, more than a tile of all.
SIZES = [
    Case(1, 1, 1, 1, 1, 1),
    Case(1, 128, 2, 3, 1, 2, z=False),
    Case(1, 129, 2, 8, 2, 4),
    Case(2, 140, 3, 16, 1, 17, seq_idx=True),
    Case(1, 300, 1, 5, 1, 16, D="channel", seq_idx=True),
    Case(1, 33, 2, 64, 1, 64, D="", dt_bias=False),
    Case(1, 17, 6, 33, 3, 130, z=False),
    Case(3, 64, 8, 4, 4, 16, initial_states=False),
]

#: Nothing to do, or no state.
EMPTY = [
    Case(batch=0),
    Case(length=0),
    Case(length=0, initial_states=False, seq_idx=True),
    Case(channels=0),
    Case(states=0),
    Case(states=0, initial_states=False, seq_idx=True),
]


def scan_inputs(case: Case, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> dict[str, Tensor | None]:
    """The tensors of a call whose states neither die nor grow within a few steps."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    batch, length, heads, channels, states = case.batch, case.length, case.heads, case.channels, case.states

    def sequence(*shape: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
        values = (torch.randn(shape, dtype=torch.float64) * scale + shift).to(dtype)
        return lay_out(values, layout) if values.numel() else values

    def parameter(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(wide)

    numbers = None
    if case.seq_idx:  # runs of a few steps; the first entry begins with 0, where an initial state counts, others with 1
        numbers = (torch.rand(batch, length) < 0.3).cumsum(1)
        if length:
            numbers = (numbers - numbers[:, :1] + (torch.arange(batch) > 0).unsqueeze(1)).to(torch.int32)
        numbers = numbers.to(torch.int32)
    D = {"head": (heads,), "channel": (heads, channels)}.get(case.D)
    return {
        "x": sequence(batch, length, heads, channels),
        "dt": sequence(
            batch, length, heads, shift=-1.0 if case.dt_softplus else 0.3, scale=1.0 if case.dt_softplus else 0.3
        ),
        "A": -parameter(heads).exp(),
        "B": sequence(batch, length, case.groups, states),
        "C": sequence(batch, length, case.groups, states),
        "D": None if D is None else parameter(*D),
        "z": sequence(batch, length, heads, channels) if case.z else None,
        "dt_bias": parameter(heads) / 4 if case.dt_bias else None,
        "initial_states": parameter(batch, heads, channels, states) if case.initial_states else None,
        "seq_idx": numbers,
    }


def call(function: Callable, inputs: dict[str, Tensor | None], case: Case, chunk_size: int = 64) -> tuple:
    """(out, final_states) of a public function."""
    x, dt, A, B, C, D, z, dt_bias, initial_states = (inputs[name] for name in TENSORS)
    return function(
        x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, inputs["seq_idx"], None, case.dt_softplus,
        case.dt_limit, True,
    )  # fmt: skip


def doubled(inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The same numbers in float64: the truth of every dtype is computed from them."""
    return {
        name: value.detach().double() if value is not None and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def truth(inputs: dict[str, Tensor | None], case: Case) -> tuple[Tensor, Tensor]:
    return call(reference.mamba_chunk_scan_combined, doubled(inputs), case)


def gradients(
    function: Callable, inputs: dict[str, Tensor | None], case: Case, grads: Sequence[Tensor | None]
) -> dict[str, Tensor]:
    """Of every tensor that is there, given the gradients of out and final_states (None: that output isn't used)."""
    leaves = {name: None if value is None else value.detach() for name, value in inputs.items()}
    present = {name: leaves[name].requires_grad_() for name in TENSORS if leaves[name] is not None}
    outputs = call(function, leaves, case)
    pairs = [(output, grad.to(output.dtype)) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    roots, given = zip(*[pair for pair in pairs if pair[0].requires_grad], strict=True)
    values = torch.autograd.grad(roots, list(present.values()), given, allow_unused=True, materialize_grads=True)
    return dict(zip(present, values, strict=True))


def assert_exact(value: Tensor, eager: Tensor, expected: Tensor, terms: int = 1) -> None:
    """err(kernel) <= 2 err(reference in the same dtype) + tiny, both against float64.

    Tiny is some roundings at the size of the largest value: of a sum of `terms` terms where float64 is the truth
    itself.
    """
    assert value.shape == expected.shape and value.dtype == eager.dtype
    size = expected.abs().max().item() if expected.numel() else 0.0
    # A sum of many terms that cancel is a random walk of their roundings; a single one may come out exact by chance.
    roundings = 16 * math.sqrt(terms) if value.dtype == torch.float64 else 32 + math.sqrt(terms)
    tiny = roundings * torch.finfo(value.dtype).eps * max(size, 1.0)
    assert error(value, expected) <= 2 * error(eager, expected) + tiny


# --- by loops over single numbers, with nothing of torch but the numbers ----------------------------------------------


def by_hand(inputs: dict[str, Any], case: Case, grads: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """out, final_states and, as "dx" and so on, the gradients of all tensors, in float64 from the published equation.

    With g = dout silu(z), from the last step to the first: dh = C g + exp(dt' A) dh' (a prime: next step, 0 if that
    begins a sequence).
    """
    lists = {name: None if value is None else value.double().tolist() for name, value in inputs.items()}
    result = {f"d{name}": torch.zeros_like(inputs[name]).double() for name in TENSORS if inputs[name] is not None}
    x, dt_raw, A, B, C, D, z, bias, initial = (lists[name] for name in TENSORS)
    low, high = case.dt_limit
    grad_out, grad_final = (grad.double().tolist() for grad in grads)
    result["out"] = torch.zeros(inputs["x"].shape, dtype=torch.float64)
    shape = (case.batch, case.heads, case.channels, case.states)
    result["final_states"] = torch.zeros(shape, dtype=torch.float64)

    for b in range(case.batch):
        for i in range(case.heads):
            group = i // (case.heads // case.groups)
            dt, slope, fresh = [], [], []
            for t in range(case.length):
                raw = dt_raw[b][t][i] + (0.0 if bias is None else bias[i])
                soft = raw if raw > 20 or not case.dt_softplus else math.log1p(math.exp(raw))
                own = 1 / (1 + math.exp(-raw)) if case.dt_softplus and raw <= 20 else 1.0
                dt.append(min(max(soft, low), high))
                slope.append(own if low <= soft <= high else 0.0)
                number = 0 if lists["seq_idx"] is None else lists["seq_idx"][b][t]
                before = 0 if lists["seq_idx"] is None or t == 0 else lists["seq_idx"][b][t - 1]
                fresh.append(number != before)
            ddt = [0.0] * case.length
            for p in range(case.channels):
                skip = 0.0 if D is None else D[i] if inputs["D"].dim() == 1 else D[i][p]
                h = [[0.0] * case.states if initial is None else initial[b][i][p]]
                g = []
                for t in range(case.length):
                    old = [0.0] * case.states if fresh[t] else h[-1]
                    decay = math.exp(dt[t] * A[i])
                    new = [decay * old[n] + dt[t] * x[b][t][i][p] * B[b][t][group][n] for n in range(case.states)]
                    h.append(new)
                    y = sum(C[b][t][group][n] * new[n] for n in range(case.states)) + skip * x[b][t][i][p]
                    gate = 1.0
                    if z is not None:
                        sigmoid = 1 / (1 + math.exp(-z[b][t][i][p]))
                        gate = z[b][t][i][p] * sigmoid
                        slope_z = sigmoid * (1 + z[b][t][i][p] * (1 - sigmoid))
                        result["dz"][b, t, i, p] = grad_out[b][t][i][p] * y * slope_z
                    result["out"][b, t, i, p] = y * gate
                    g.append(grad_out[b][t][i][p] * gate)
                    result["dx"][b, t, i, p] += skip * g[t]
                    if "dD" in result:
                        result["dD"][(i, p) if inputs["D"].dim() == 2 else (i,)] += g[t] * x[b][t][i][p]
                for n in range(case.states):
                    result["final_states"][b, i, p, n] = h[-1][n]
                    dh = grad_final[b][i][p][n]
                    for t in reversed(range(case.length)):
                        dh += C[b][t][group][n] * g[t]
                        decay, old = math.exp(dt[t] * A[i]), 0.0 if fresh[t] else h[t][n]
                        result["dx"][b, t, i, p] += dh * dt[t] * B[b][t][group][n]
                        result["dB"][b, t, group, n] += dh * dt[t] * x[b][t][i][p]
                        result["dC"][b, t, group, n] += g[t] * h[t + 1][n]
                        ddt[t] += dh * (A[i] * decay * old + B[b][t][group][n] * x[b][t][i][p])
                        result["dA"][i] += dh * dt[t] * decay * old
                        dh = 0.0 if fresh[t] else dh * decay
                    if "dinitial_states" in result:
                        result["dinitial_states"][b, i, p, n] = dh
            for t in range(case.length):
                result["ddt"][b, t, i] = ddt[t] * slope[t]
                if "ddt_bias" in result:
                    result["ddt_bias"][i] += ddt[t] * slope[t]
    return result
