# SPDX-License-Identifier: Apache-2.0
"""Inputs of the selective-scan tests, and the recurrence with its gradients by loops over single numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fgkernels.reference import selective_scan as reference

from ..common import error, lay_out

#: The tensors of a call in the order of its signature, initial_state last.
TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: sizes, and what is there. B and C are "shared" (B, N, L), "grouped" (B, G, N, L) or "constant" (D, N)."""

    batch: int = 2
    channels: int = 6
    length: int = 9
    states: int = 5
    groups: int = 2
    B: str = "grouped"
    C: str = "grouped"
    D: bool = True
    z: bool = True
    delta_bias: bool = True
    initial_state: bool = True
    delta_softplus: bool = True

    def __str__(self) -> str:
        sizes = "x".join(str(n) for n in (self.batch, self.channels, self.length, self.states, self.groups))
        absent = [n for n in ("D", "z", "delta_bias", "initial_state", "delta_softplus") if not getattr(self, n)]
        return "-".join([sizes, self.B, self.C, *(f"no_{name}" for name in absent)])


#: Every way to leave something out, at sizes that are multiples of nothing.
FORMS = [
    Case(),
    Case(B="shared", C="shared", groups=1),
    Case(B="constant", C="constant", groups=1),
    Case(B="constant", C="grouped", groups=3),
    Case(B="grouped", C="constant", groups=3),
    Case(B="shared", C="grouped", groups=1),
    Case(D=False),
    Case(z=False),
    Case(delta_bias=False),
    Case(initial_state=False),
    Case(delta_softplus=False),
    Case(B="shared", C="shared", groups=1, D=False, z=False, delta_bias=False, initial_state=False,
         delta_softplus=False),
]  # fmt: skip

#: Sizes at which vectors, tiles and chunks begin and end: one element, more channels than lanes, several chunks of 64.
SIZES = [
    Case(1, 1, 1, 1, 1),
    Case(1, 3, 64, 2, 1, B="shared", C="shared"),
    Case(2, 5, 65, 16, 1),
    Case(1, 34, 129, 3, 2),
    Case(3, 8, 4, 16, 4),
    Case(1, 16, 17, 16, 1, B="shared", C="shared"),
    Case(1, 7, 200, 17, 1),
    Case(1, 4, 4, 256, 1, B="shared", C="shared"),
    Case(2, 3, 25, 256, 1),
    Case(1, 70, 33, 8, 10),
]

#: Nothing to do, or no state.
EMPTY = [Case(batch=0), Case(channels=0, groups=1), Case(length=0), Case(states=0), Case(length=0, initial_state=False)]


def scan_inputs(case: Case, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> dict[str, Tensor | None]:
    """The tensors of a call whose states neither die nor grow within a few steps."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    batch, channels, length, states = case.batch, case.channels, case.length, case.states

    def sequence(values: Tensor) -> Tensor:
        values = values.to(dtype)
        return lay_out(values, layout) if values.numel() else values

    def projection(kind: str) -> Tensor:
        if kind == "constant":
            return torch.randn(channels, states, dtype=torch.float64).to(wide)
        shape = (batch, states, length) if kind == "shared" else (batch, case.groups, states, length)
        return sequence(torch.randn(shape, dtype=torch.float64))

    def parameter(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(wide)

    random = torch.randn(2, batch, channels, length, dtype=torch.float64)
    delta = random[1] - 1 if case.delta_softplus else random[1].abs() / 4
    return {
        "u": sequence(random[0]),
        "delta": sequence(delta),
        "A": -parameter(channels, states).exp(),
        "B": projection(case.B),
        "C": projection(case.C),
        "D": parameter(channels) if case.D else None,
        "z": sequence(torch.randn(batch, channels, length, dtype=torch.float64)) if case.z else None,
        "delta_bias": parameter(channels) / 4 if case.delta_bias else None,
        "initial_state": parameter(batch, channels, states) if case.initial_state else None,
    }


def call(function: Callable, inputs: dict[str, Tensor | None], delta_softplus: bool) -> tuple[Tensor, Tensor]:
    """(out, last_state) of a public function."""
    tensors = [inputs[name] for name in TENSORS]
    return function(*tensors[:-1], delta_softplus, True, initial_state=tensors[-1])


def doubled(inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The same numbers in float64: the truth of every dtype is computed from them."""
    return {name: None if value is None else value.detach().double() for name, value in inputs.items()}


def truth(inputs: dict[str, Tensor | None], delta_softplus: bool) -> tuple[Tensor, Tensor]:
    return call(reference.selective_scan, doubled(inputs), delta_softplus)


def gradients(
    function: Callable,
    inputs: dict[str, Tensor | None],
    delta_softplus: bool,
    grads: Sequence[Tensor | None],
) -> dict[str, Tensor]:
    """Of every tensor that is there, given the gradients of out and last_state (None: that output isn't used)."""
    leaves = {name: None if value is None else value.detach().requires_grad_() for name, value in inputs.items()}
    outputs = call(function, leaves, delta_softplus)
    pairs = zip(outputs, grads, strict=True)
    used = [(output, grad.to(output.dtype)) for output, grad in pairs if grad is not None and output.requires_grad]
    present = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    if not used:  # without steps the reference's last state is no function of anything
        return {name: torch.zeros_like(leaf) for name, leaf in present.items()}
    roots, given = zip(*used, strict=True)
    values = torch.autograd.grad(roots, list(present.values()), given, allow_unused=True, materialize_grads=True)
    return dict(zip(present, values, strict=True))


def assert_exact(value: Tensor, eager: Tensor, expected: Tensor, terms: int = 1) -> None:
    """err(kernel) <= 2 err(reference in the same dtype) + tiny, both against float64.

    Tiny is some roundings at the size of the largest value: of a sum of `terms` terms where float64 is the truth
    itself.
    """
    assert value.shape == expected.shape and value.dtype == eager.dtype
    size = expected.abs().max().item() if expected.numel() else 0.0
    # A sum of many terms that cancel is a random walk of their roundings; eager may come out exact by chance.
    roundings = 16 * math.sqrt(terms) if value.dtype == torch.float64 else 32 + math.sqrt(terms)
    tiny = roundings * torch.finfo(value.dtype).eps * max(size, 1.0)
    assert error(value, expected) <= 2 * error(eager, expected) + tiny


# --- by loops over single numbers, with nothing of torch but the numbers ----------------------------------------------


def by_hand(inputs: dict[str, Any], delta_softplus: bool, grads: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """out, last_state and, as "du" and so on, the gradients of all tensors, in float64 from the published equations.

    Forward: dt = softplus(delta + bias), h = exp(dt A) h + dt B u, y = sum_n C h + D u, out = y silu(z).
    Backward, with g = dout silu(z) and from the last step to the first dh = C g + exp(dt' A) dh' (a prime: next step).
    """
    lists = {name: None if value is None else value.double().tolist() for name, value in inputs.items()}
    zeros = {f"d{name}": torch.zeros_like(value).double() for name, value in inputs.items() if value is not None}
    u, delta, A, B, C = (lists[name] for name in TENSORS[:5])
    batch, channels, length = inputs["u"].shape
    states = inputs["A"].shape[1]
    grad_out, grad_last = (grad.double().tolist() for grad in grads)
    out = torch.zeros(batch, channels, length, dtype=torch.float64)
    last = torch.zeros(batch, channels, states, dtype=torch.float64)

    def place(name: str, b: int, d: int, n: int, t: int) -> tuple[int, ...]:
        rank = inputs[name].dim()
        group = d // (channels // inputs[name].shape[1]) if rank == 4 else 0
        return {2: (d, n), 3: (b, n, t), 4: (b, group, n, t)}[rank]

    def read(values: Any, where: tuple[int, ...]) -> float:
        for i in where:
            values = values[i]
        return values

    for b in range(batch):
        for d in range(channels):
            skip = 0.0 if lists["D"] is None else lists["D"][d]
            bias = 0.0 if lists["delta_bias"] is None else lists["delta_bias"][d]
            raw = [delta[b][d][t] + bias for t in range(length)]
            dt = [(x if x > 20 else math.log1p(math.exp(x))) if delta_softplus else x for x in raw]
            y = [skip * u[b][d][t] for t in range(length)]
            gate, g = [1.0] * length, [0.0] * length
            history = []
            for n in range(states):
                h = [0.0 if lists["initial_state"] is None else lists["initial_state"][b][d][n]]
                for t in range(length):
                    h.append(math.exp(dt[t] * A[d][n]) * h[-1] + dt[t] * read(B, place("B", b, d, n, t)) * u[b][d][t])
                    y[t] += read(C, place("C", b, d, n, t)) * h[-1]
                history.append(h)
                last[b, d, n] = h[-1]
            for t in range(length):
                if lists["z"] is not None:
                    z = lists["z"][b][d][t]
                    sigmoid = 1 / (1 + math.exp(-z))
                    gate[t] = z * sigmoid
                    zeros["dz"][b, d, t] = grad_out[b][d][t] * y[t] * sigmoid * (1 + z * (1 - sigmoid))
                out[b, d, t] = y[t] * gate[t]
                g[t] = grad_out[b][d][t] * gate[t]
                zeros["du"][b, d, t] += skip * g[t]
                if "dD" in zeros:
                    zeros["dD"][d] += g[t] * u[b][d][t]
            ddt = [0.0] * length
            for n in range(states):
                h, dh = history[n], grad_last[b][d][n]
                for t in reversed(range(length)):
                    dh += read(C, place("C", b, d, n, t)) * g[t]
                    decay, b_t = math.exp(dt[t] * A[d][n]), read(B, place("B", b, d, n, t))
                    zeros["du"][b, d, t] += dh * dt[t] * b_t
                    zeros["dB"][place("B", b, d, n, t)] += dh * dt[t] * u[b][d][t]
                    zeros["dC"][place("C", b, d, n, t)] += g[t] * h[t + 1]
                    ddt[t] += dh * (A[d][n] * decay * h[t] + b_t * u[b][d][t])
                    zeros["dA"][d, n] += dh * dt[t] * decay * h[t]
                    dh *= decay
                if "dinitial_state" in zeros:
                    zeros["dinitial_state"][b, d, n] = dh
            for t in range(length):
                slope = 1 / (1 + math.exp(-raw[t])) if delta_softplus and raw[t] <= 20 else 1.0
                zeros["ddelta"][b, d, t] = ddt[t] * slope
                if "ddelta_bias" in zeros:
                    zeros["ddelta_bias"][d] += ddt[t] * slope
    return {"out": out, "last_state": last, **zeros}
