# SPDX-License-Identifier: Apache-2.0
"""torch.func.vmap over any of the arguments equals a loop over the batch, for values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import fgkernels

from ..common import left_out
from .cases import TENSORS, Case, call, scan_inputs
from .test_state_update import NAMES, step_inputs

pytestmark = pytest.mark.compiled

BATCH = 3

#: Which arguments have a batch, and where: all sequences; those and some parameters; parameters alone; one alone.
DIMS = {
    "sequences": {"u": 0, "delta": 2, "B": 1, "C": 0, "z": 3},
    "state": {"initial_state": 1},
    "u alone": {"u": 1},
    "everything": dict.fromkeys(TENSORS, 0),
    "parameters": {"A": 2, "D": 1, "delta_bias": 0},
    "A alone": {"A": 0},
    "u and A": {"u": 2, "A": 1},
    "projections": {"B": 2, "C": 0},
    "C alone": {"C": 1},
}
FORMS = {
    "grouped": Case(2, 4, 5, 3, 2),
    "shared": Case(2, 4, 5, 3, 1, B="shared", C="shared"),
    "mixed": Case(2, 4, 5, 3, 2, B="constant"),
    "bare": Case(2, 4, 5, 3, 1, B="shared", C="constant", D=False, z=False, delta_bias=False, initial_state=False),
}


def batched(case: Case, places: dict[str, int]) -> tuple[list[Tensor], list[int | None]]:
    """The tensors that are there, those named with a batch at its place, and vmap's dims."""
    samples = [scan_inputs(case) for _ in range(BATCH)]
    present = [name for name in TENSORS if samples[0][name] is not None]
    tensors, dims = [], []
    for name in present:
        dim = places.get(name)
        if dim is not None:
            dim = min(dim, samples[0][name].dim())
        stacked = samples[0][name] if dim is None else torch.stack([sample[name] for sample in samples], dim)
        tensors.append(stacked), dims.append(dim)
    return tensors, dims


def function_of(case: Case):
    present = [name for name in TENSORS if getattr(case, name, True)]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return call(fgkernels.selective_scan, dict.fromkeys(TENSORS) | dict(zip(present, tensors, strict=True)), True)

    return function


def loss_of(case: Case):
    def loss(*tensors: Tensor) -> Tensor:
        out, last = function_of(case)(*tensors)
        return out.square().sum() + last.square().sum()

    return loss


def entry(tensors: list[Tensor], dims: list[int | None], i: int) -> list[Tensor]:
    return [t if dim is None else t.select(dim, i) for t, dim in zip(tensors, dims, strict=True)]


def check(function, tensors: list[Tensor], dims: list[int | None]) -> None:
    found = vmap(function, tuple(dims))(*tensors)
    expected = [function(*entry(tensors, dims, i)) for i in range(BATCH)]
    for i, value in enumerate(found):
        truth = torch.stack([outputs[i] for outputs in expected])
        torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-5)


def any_batched(dims: list[int | None]) -> bool:
    return any(dim is not None for dim in dims)


@pytest.mark.parametrize("places", DIMS)
@pytest.mark.parametrize("form", FORMS)
def test_forward(operators, form: str, places: str) -> None:
    if left_out(operators, form == "grouped"):
        return
    tensors, dims = batched(FORMS[form], DIMS[places])
    if not any_batched(dims):
        pytest.skip("this form has none of these arguments")
    check(function_of(FORMS[form]), tensors, dims)


@pytest.mark.parametrize("places", DIMS)
@pytest.mark.parametrize("form", FORMS)
def test_gradients(operators, form: str, places: str) -> None:
    """vmap(grad): one gradient per entry, also of what all entries share; grad(vmap): their sum."""
    if left_out(operators, form == "grouped" and places in ("sequences", "everything")):
        return
    tensors, dims = batched(FORMS[form], DIMS[places])
    if not any_batched(dims):
        pytest.skip("this form has none of these arguments")
    loss, every = loss_of(FORMS[form]), tuple(range(len(tensors)))
    check(grad(loss, argnums=every), tensors, dims)
    found = grad(lambda *values: vmap(loss, tuple(dims))(*values).sum(), argnums=every)(*tensors)
    expected = grad(lambda *v: sum(loss(*entry(v, dims, i)) for i in range(BATCH)), argnums=every)(*tensors)
    for value, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-5)


def test_nested(operators) -> None:
    inputs = scan_inputs(Case(2, 4, 5, 3, 2))
    u = torch.randn(2, BATCH, 2, 4, 5)
    function = lambda u: call(fgkernels.selective_scan, inputs | {"u": u}, True)[0]  # noqa: E731
    expected = torch.stack([torch.stack([function(u[i, j]) for j in range(BATCH)]) for i in range(2)])
    torch.testing.assert_close(vmap(vmap(function))(u), expected)


def test_empty_batch(operators) -> None:
    inputs = scan_inputs(Case(2, 4, 5, 3, 2))
    function = lambda u: call(fgkernels.selective_scan, inputs | {"u": u}, True)  # noqa: E731
    out, last = vmap(function)(torch.zeros(0, 2, 4, 5))
    assert out.shape == (0, 2, 4, 5) and last.shape == (0, 2, 4, 3)


def test_update(operators) -> None:
    """Each entry's state is written; a state that all entries would share is refused."""
    samples = [step_inputs((2, 4), 3) for _ in range(BATCH)]
    inputs = samples[0][1]
    states, x = torch.stack([s for s, _ in samples], 1), torch.stack([i["x"] for _, i in samples])
    expected = states.clone()

    def function(state: Tensor, x: Tensor) -> Tensor:
        return fgkernels.selective_state_update(state, *((inputs | {"x": x})[name] for name in NAMES), True)

    outs = torch.stack([function(expected[:, i], x[i]) for i in range(BATCH)])
    torch.testing.assert_close(vmap(function, (1, 0))(states, x), outs)
    torch.testing.assert_close(states, expected)
    with pytest.raises(RuntimeError, match="state: expected a batched tensor"):
        vmap(function, (None, 0))(samples[0][0], x)
