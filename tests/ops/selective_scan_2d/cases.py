# SPDX-License-Identifier: Apache-2.0
"""Inputs of the tests of scans over maps, and the same scans one direction at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from fgkernels.reference import selective_scan as one_dimensional
from fgkernels.reference import selective_scan_2d as reference

from ..common import lay_out

TENSORS = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias")
ALL = ("h", "v", "h_flip", "v_flip", "d", "a", "d_flip", "a_flip")


@dataclasses.dataclass(frozen=True)
class Case:
    """A call. x is "shared" by the directions or per direction; `parameters` are "shared", "own" or "official"."""

    batch: int = 2
    channels: int = 3
    size: tuple[int, int] = (3, 5)
    states: int = 4
    directions: tuple[str, ...] = ALL
    x: str = "shared"
    parameters: str = "own"
    ordered: bool = False
    D: bool = True
    z: bool = True
    delta_bias: bool = True
    delta_softplus: bool = True

    @property
    def length(self) -> int:
        return self.size[0] * self.size[1]

    def __str__(self) -> str:
        sizes = "x".join(str(n) for n in (self.batch, self.channels, *self.size, self.states, len(self.directions)))
        absent = [f"no_{n}" for n in ("D", "z", "delta_bias", "delta_softplus") if not getattr(self, n)]
        return "-".join([sizes, self.x, self.parameters, *(["ordered"] if self.ordered else []), *absent])


#: Every combination of what the directions share, and of what may be absent.
FORMS = [
    Case(x=x, parameters=parameters, ordered=ordered, z=z)
    for x, ordered in (("shared", False), ("own", False), ("own", True))
    for parameters in ("shared", "own")
    for z in (False, True)
] + [Case(parameters="official"), Case(D=False), Case(delta_bias=False), Case(delta_softplus=False)]

SIZES = [
    Case(1, 1, (1, 1), 1, ("h",)),
    Case(1, 5, (1, 6), 3, ("v", "d")),
    Case(2, 4, (6, 1), 2, ("a", "h_flip", "v")),
    Case(1, 18, (4, 4), 5),
    Case(1, 6, (9, 8), 16, ("h", "v", "h_flip", "v_flip")),
    Case(1, 3, (13, 11), 3, ("d", "h")),
    Case(1, 8, (5, 5), 64, ("h", "v", "h_flip", "v_flip"), "own", "shared", True),
    Case(1, 2, (2, 3), 256, ("h", "v"), "own", "own"),
]

EMPTY = [Case(batch=0), Case(channels=0), Case(size=(0, 4)), Case(size=(3, 0)), Case(states=0)]


def map_inputs(case: Case, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> dict[str, Tensor | None]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    directions = len(case.directions)

    def sequence(*shape: int, values: Callable[[Tensor], Tensor] = lambda v: v) -> Tensor:
        value = values(torch.randn(shape, dtype=torch.float64)).to(dtype)
        return lay_out(value, layout) if value.numel() else value

    def parameter(*rest: int) -> Tensor:
        first = {"shared": (case.channels,), "own": (directions, case.channels)}.get(
            case.parameters, (directions * case.channels,)
        )
        return torch.randn(*first, *rest, dtype=torch.float64).to(wide)

    positions = (case.length,) if case.ordered else case.size
    each = (case.batch, directions)
    x = (case.batch, case.channels) if case.x == "shared" else (*each, case.channels)
    return {
        "x": sequence(*x, *positions),
        "delta": sequence(
            *each, case.channels, *positions, values=lambda v: v - 1 if case.delta_softplus else v.abs() / 4
        ),
        "A": -parameter(case.states).exp(),
        "B": sequence(*each, case.states, *positions),
        "C": sequence(*each, case.states, *positions),
        "D": parameter() if case.D else None,
        "z": sequence(case.batch, case.channels, *case.size) if case.z else None,
        "delta_bias": parameter() / 4 if case.delta_bias else None,
    }


def call(function: Callable, inputs: dict[str, Tensor | None], case: Case, **options: object) -> Tensor:
    options = {"directions": case.directions, "ordered": case.ordered, "size": case.size} | options
    return function(*(inputs[name] for name in TENSORS), case.delta_softplus, **options)


def one_direction_at_a_time(inputs: dict[str, Tensor | None], case: Case) -> Tensor:
    """K one-dimensional scans over gathered maps, put back position by position and summed."""
    directions, channels = len(case.directions), case.channels
    table = reference.scan_table(*case.size, case.directions, device=inputs["x"].device).long()

    def own(name: str, k: int) -> Tensor | None:
        value = inputs[name]
        if value is None or case.parameters == "shared":
            return value
        return value.reshape(directions, channels, *value.shape[(2 if case.parameters == "own" else 1) :])[k]

    def walked(name: str, k: int) -> Tensor:
        value = inputs[name]
        value = value if case.x == "shared" and name == "x" else value[:, k]
        return value if case.ordered else value.flatten(2)[:, :, table[k]]

    dtype = torch.float64 if inputs["x"].dtype == torch.float64 else torch.float32
    total = torch.zeros(case.batch, channels, case.length, dtype=dtype)
    for k in range(directions):
        tensors = [walked(name, k).to(dtype) for name in ("x", "delta", "B", "C")]
        y = one_dimensional.selective_scan(
            *tensors[:2], own("A", k), *tensors[2:], own("D", k), None, own("delta_bias", k), case.delta_softplus
        )
        total = total.index_add(2, table[k], y)
    out = total.unflatten(2, case.size)
    if inputs["z"] is not None:
        out = out * torch.nn.functional.silu(inputs["z"].to(dtype))
    return out.to(inputs["x"].dtype)


def gradients(function: Callable, inputs: dict[str, Tensor | None], grad: Tensor) -> dict[str, Tensor]:
    """Of every tensor that is there; `function` takes the dict of inputs."""
    leaves = {name: None if value is None else value.detach().requires_grad_() for name, value in inputs.items()}
    present = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    out = function(leaves)
    values = torch.autograd.grad(
        out, list(present.values()), grad.to(out.dtype), allow_unused=True, materialize_grads=True
    )
    return dict(zip(present, values, strict=True))
