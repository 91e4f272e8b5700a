# SPDX-License-Identifier: Apache-2.0
"""What a benchmark case is, and where the cases are found.

A family is one module in :mod:`fgkernels.bench.cases` with a tuple ``CASES``; adding a family is adding that one file.
"""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Shape = Mapping[str, int]
Inputs = Mapping[str, Any]
Call = Callable[[], Any]

GROUPS = ("candidate", "eager", "compiled", "peer", "own")
"""Who an implementation is: our op, plain PyTorch, torch.compile, another package, or our op on a sister workload."""

RIVALS = ("eager", "compiled", "peer")
"""The groups that "the fastest baseline" is chosen from."""


@dataclass(frozen=True)
class Implementation:
    """One way to compute a case.

    Args:
        name: shown in tables.
        group: one of ``GROUPS``.
        prepare: inputs -> a call without arguments that does the work and returns a tensor or a tuple. What ``prepare``
            does (layout, padding, compilation) is neither timed nor counted as memory.
        refuse: case shape -> why this implementation can't run it, or None.
        module: a package it needs, imported before torch; without it the implementation is reported as absent.
        reference: the expected outputs, where they differ from the case's (a sister workload).
        compiles: the first call at a shape compiles, so a warm-up has to use the real shape.
        devices: where it can compute.
    """

    name: str
    group: str
    prepare: Callable[[Inputs], Call]
    refuse: Callable[[Shape], str | None] = lambda shape: None
    module: str | None = None
    reference: Callable[[Inputs], tuple[Any, ...]] | None = None
    compiles: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"group: expected one of {GROUPS}, got {self.group!r}")


@dataclass(frozen=True)
class Bar:
    """A target.

    metric "ratio": time of ``against`` over ours, at least ``target``; ``against`` is a group, an implementation's name
    or "fastest". metric "limit": our fraction of the binding machine limit, at least ``target``. metric "memory": our
    extra peak memory over that of ``against``, or over the size of the inputs where that is "inputs", at most
    ``target``. It holds on ``device``.
    """

    metric: str
    target: float
    against: str = "fastest"
    device: str = "cpu"


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        name: unique in its family, selected by ``--case``.
        title: what it is, with its shape, for people.
        shape, tiny: sizes in letters; ``tiny`` is the same case at a size for warming up and for testing the harness.
        inputs: shape -> tensors, from a fixed seed; names that start with "grad" are the outputs' gradients.
        outputs: names of what a call returns; names that start with "grad" are gradients.
        reference: inputs -> the expected outputs in fp64.
        implementations: our op (group "candidate") first, then the baselines.
        flops, bytes: shape -> arithmetic and compulsory traffic of one call.
        probe: what limits its arithmetic: multiply-adds in "float32", "float64", "bfloat16" or "int8", or "exp_fma",
            state updates of a selective scan, one exponential and its multiply-adds each.
        updates: shape -> state updates of one call; given exactly where ``probe`` is "exp_fma".
        tolerance: largest accepted error of scores (maximum error over the largest score), ``grad_tolerance`` of
            gradients (Frobenius norm of the error over that of the gradient).
        cache: "warm" (an untimed call of the same implementation comes first) or "cold" (caches are flushed first).
        overhead: the call is too small for the machine's limits to mean anything.
        devices: where it is worth running.
        measure_memory, quick: whether extra peak memory is measured; whether ``--quick`` includes the case.
        requires: a package without which the case is left out.
    """

    family: str
    name: str
    title: str
    shape: Shape
    tiny: Shape
    inputs: Callable[[Shape], Inputs]
    outputs: tuple[str, ...]
    reference: Callable[[Inputs], tuple[Any, ...]]
    implementations: tuple[Implementation, ...]
    flops: Callable[[Shape], int]
    bytes: Callable[[Shape], int]
    dtype: str = "float32"
    probe: str = "float32"
    updates: Callable[[Shape], int] | None = None
    tolerance: float = 1e-5
    grad_tolerance: float = 1e-2
    cache: str = "warm"
    overhead: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    measure_memory: bool = True
    quick: bool = False
    requires: str | None = None
    bars: tuple[Bar, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.implementations or self.implementations[0].group != "candidate":
            raise ValueError(f"{self.name}: the first implementation must be the candidate")
        if self.cache not in ("warm", "cold"):
            raise ValueError(f'{self.name}: cache: expected "warm" or "cold", got {self.cache!r}')
        if (self.probe == "exp_fma") != (self.updates is not None):
            raise ValueError(f'{self.name}: updates: expected with probe "exp_fma" and no other, got {self.probe!r}')

    def work(self, shape: Shape) -> int:
        """What a second of the compute probe counts: state updates or FLOPs."""
        return self.updates(shape) if self.updates else self.flops(shape)

    @property
    def backward(self) -> bool:
        """Whether the timed call includes the backward pass."""
        return any(name.startswith("grad") for name in self.outputs)

    @property
    def candidate(self) -> Implementation:
        return self.implementations[0]


def families() -> dict[str, str]:
    """Family name -> module that holds its cases."""
    package = importlib.import_module("fgkernels.bench.cases")
    return {info.name: f"{package.__name__}.{info.name}" for info in pkgutil.iter_modules(package.__path__)}


def load(module: str) -> tuple[Case, ...]:
    """The cases of one module, names checked to be unique."""
    cases = tuple(importlib.import_module(module).CASES)
    names = [case.name for case in cases]
    if len(set(names)) != len(names):
        raise ValueError(f"{module}: two cases have the same name")
    return cases


def select(
    family: Iterable[str] = (), case: Iterable[str] = (), quick: bool = False, device: str = "cpu"
) -> list[tuple[str, Case]]:
    """(module, case) pairs of a device that match: families by name (none: all), cases by glob (none: all)."""
    known = families()
    for name in family:
        if name not in known:
            raise ValueError(f"family: expected one of {sorted(known)}, got {name!r}")
    wanted, globs = list(family) or list(known), list(case)
    chosen = [(known[name], item) for name in wanted for item in load(known[name]) if device in item.devices]
    if globs:
        chosen = [(m, c) for m, c in chosen if any(fnmatch.fnmatchcase(c.name, glob) for glob in globs)]
    elif quick:
        chosen = [(m, c) for m, c in chosen if c.quick]
    return chosen
