# SPDX-License-Identifier: Apache-2.0
"""Gradients of `selective_scan` through out and last_state, against float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import fgkernels
from fgkernels.reference import selective_scan as reference

from ..common import FLOATS, LAYOUTS, left_out, names
from .cases import EMPTY, FORMS, SIZES, TENSORS, Case, assert_exact, call, doubled, gradients, scan_inputs

pytestmark = pytest.mark.compiled


def check(case: Case, dtype: torch.dtype, layout: str = "contiguous", through: str = "both") -> dict:
    inputs = scan_inputs(case, dtype, layout)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grad_out = torch.randn(case.batch, case.channels, case.length).to(dtype)
    grad_last = torch.randn(case.batch, case.channels, case.states).to(wide)
    grads = grad_out if through != "last_state" else None, grad_last if through != "out" else None
    found = gradients(fgkernels.selective_scan, inputs, case.delta_softplus, grads)
    eager = gradients(reference.selective_scan, inputs, case.delta_softplus, grads)
    truth = gradients(reference.selective_scan, doubled(inputs), case.delta_softplus, grads)
    terms = case.batch * case.channels * case.length * case.states
    for name, value in found.items():
        assert value.dtype == inputs[name].dtype
        try:
            assert_exact(value, eager[name], truth[name], terms)
        except AssertionError as error:
            raise AssertionError(f"d{name}: {error}") from error
    return found


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("case", FORMS, ids=str)
def test_forms(implementation, case: Case, dtype: torch.dtype) -> None:
    if left_out(implementation, dtype == torch.float32 or case is FORMS[0]):
        return
    check(case, dtype)


@pytest.mark.parametrize("through", ["out", "last_state"])
@pytest.mark.parametrize("case", [FORMS[0], FORMS[3], FORMS[-1]], ids=str)
def test_through_one_output(implementation, case: Case, through: str) -> None:
    """An output that isn't used has no gradient, which must count as zero."""
    found = check(case, torch.float32, through=through)
    if through == "last_state":
        for name in {"C", "D", "z"} & set(found):
            assert (found[name] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=names)
@pytest.mark.parametrize("case", SIZES, ids=str)
def test_sizes(implementation, case: Case, dtype: torch.dtype) -> None:
    if left_out(implementation, dtype == torch.float32):
        return
    check(case, dtype)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
@pytest.mark.parametrize("case", [Case(3, 18, 37, 5, 2), Case(2, 5, 70, 4, 1, B="shared", C="constant")], ids=str)
def test_layouts(implementation, case: Case, layout: str) -> None:
    """Gradients of sequences lie in memory as these do."""
    found = check(case, torch.float32, layout)
    for name in ("u", "delta", "z", *(n for n in ("B", "C") if getattr(case, n) != "constant")):
        value = found[name].transpose(-1, -2) if layout == "channels_strided" else found[name]
        assert value.is_contiguous(), name


def test_expanded_inputs_and_gradients(implementation) -> None:
    """Tensors that repeat one sample, and the gradient of a sum, whose elements share one place in memory."""
    inputs = scan_inputs(Case(3, 6, 20, 4, 2), layout="expanded")
    grads = torch.ones(()).expand(3, 6, 20), torch.ones(()).expand(3, 6, 4)
    dense = {name: value.contiguous() for name, value in inputs.items()}
    found = gradients(fgkernels.selective_scan, inputs, True, grads)
    expected = gradients(fgkernels.selective_scan, dense, True, tuple(grad.contiguous() for grad in grads))
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(implementation, case: Case) -> None:
    check(case, torch.float32)


@pytest.mark.parametrize("needed", TENSORS)
def test_only_what_is_asked_for(operators, needed: str) -> None:
    """One gradient at a time equals that of all at once."""
    inputs = scan_inputs(Case())
    grads = torch.randn(2, 6, 9), torch.randn(2, 6, 5)
    expected = gradients(fgkernels.selective_scan, inputs, True, grads)[needed]
    leaf = inputs[needed].clone().requires_grad_()
    outputs = call(fgkernels.selective_scan, inputs | {needed: leaf}, True)
    (found,) = torch.autograd.grad(outputs, leaf, grads)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("case", [FORMS[0], FORMS[1], FORMS[3], FORMS[-1], Case(length=66)], ids=str)
def test_gradcheck(implementation, case: Case) -> None:
    """By finite differences of the kernels' own values, in float64."""
    small = dataclasses.replace(case, batch=2, channels=2, length=case.length if case.length > 64 else 3, states=2)
    small = dataclasses.replace(small, groups=1)
    if small.length > 64:
        if implementation.simulated:
            pytest.skip("finite differences take thousands of calls")
        small = dataclasses.replace(small, batch=1, channels=1, states=1)
    inputs = scan_inputs(small, torch.float64)
    present = [name for name in TENSORS if inputs[name] is not None]

    def function(*tensors):
        return call(fgkernels.selective_scan, inputs | dict(zip(present, tensors, strict=True)), small.delta_softplus)

    tensors = [inputs[name].requires_grad_() for name in present]
    # Whole Jacobians for compiled kernels; of simulated ones, which are slow, one random direction.
    torch.autograd.gradcheck(function, tensors, fast_mode=implementation.simulated)


@pytest.mark.parametrize("cuts", [(7, 13), (63, 65)], ids=str)
def test_streaming(implementation, cuts: tuple[int, ...]) -> None:
    """Gradients flow through the states between chunks: they are those of one call."""
    case = Case(2, 6, 20 if implementation.simulated else 150, 4)
    inputs = scan_inputs(case)
    grads = torch.randn(2, 6, case.length), torch.randn(2, 6, 4)
    expected = gradients(fgkernels.selective_scan, inputs, True, grads)

    def chunked(u, delta, A, B, C, D, z, bias, softplus, return_last_state, *, initial_state):
        state, parts, start = initial_state, [], 0
        for end in (*cuts, case.length):
            here = slice(start, min(end, case.length))
            out, state = fgkernels.selective_scan(
                u[..., here], delta[..., here], A, B[..., here], C[..., here], D, z[..., here], bias, softplus, True,
                initial_state=state,
            )  # fmt: skip
            parts.append(out)
            start = here.stop
        return torch.cat(parts, -1), state

    for name, value in gradients(chunked, inputs, True, grads).items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"d{name}: {m}"
        )


def test_same_gradients_on_any_number_of_threads(cpu_implementation) -> None:
    for case in (Case(2, 70, 65, 16, 2), Case(1, 3, 200, 5, 1), Case(1, 5, 25, 256, 1), Case(4, 33, 9, 4, 1)):
        inputs = scan_inputs(case)
        grads = torch.randn(case.batch, case.channels, case.length), torch.randn(case.batch, case.channels, case.states)
        results = []
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            results.append(gradients(fgkernels.selective_scan, inputs, True, grads))
        for other in results[1:]:
            for name, value in results[0].items():
                assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=names)
def test_long_products(implementation, dtype: torch.dtype) -> None:
    """Where nothing or everything is left of the past, gradients are finite and exact."""
    length = 30
    inputs = {
        "u": torch.randn(1, 9, length, dtype=dtype),
        "delta": torch.linspace(0, 1, 9, dtype=dtype).reshape(1, 9, 1).repeat(1, 1, length),
        "A": torch.tensor([[-80.0, -1.0, -1e-6, 0.0]], dtype=dtype).repeat(9, 1),
        "B": torch.randn(1, 4, length, dtype=dtype),
        "C": torch.randn(1, 4, length, dtype=dtype),
        "D": None,
        "z": None,
        "delta_bias": None,
        "initial_state": torch.randn(1, 9, 4, dtype=dtype),
    }
    grads = torch.randn(1, 9, length, dtype=dtype), torch.randn(1, 9, 4, dtype=dtype)
    found = gradients(fgkernels.selective_scan, inputs, False, grads)
    eager = gradients(reference.selective_scan, inputs, False, grads)
    truth = gradients(reference.selective_scan, doubled(inputs), False, grads)
    for name, value in found.items():
        assert value.isfinite().all()
        assert_exact(value, eager[name], truth[name], terms=9 * length * 4)


def test_softplus_slope(implementation) -> None:
    """d delta in the tail is exp(delta) to six digits, and exactly the slope 1 above 20."""
    delta = torch.cat([torch.linspace(-80, 20, 401), torch.tensor([20.5, 30.0])]).reshape(1, -1, 1).requires_grad_()
    count, one = delta.shape[1], torch.ones(1, 1, 1)
    out = fgkernels.selective_scan(torch.ones(1, count, 1), delta, torch.zeros(count, 1), one, one, delta_softplus=True)
    (found,) = torch.autograd.grad(out.sum(), delta)
    wide = delta.detach().double()
    torch.testing.assert_close(found.double(), torch.where(wide > 20, 1.0, wide.sigmoid()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["u", "delta", "z"])
def test_nan_stays_in_its_channel(implementation, name: str) -> None:
    """Gradients of other batch entries and channels don't change by a bit; those that sum over it are NaN."""
    clean = scan_inputs(Case(2, 18, 12, 3, 2))
    dirty = clean | {name: clean[name].clone()}
    dirty[name][1, 10, 5] = math.nan
    grads = torch.randn(2, 18, 12), torch.randn(2, 18, 3)
    found, expected = (gradients(fgkernels.selective_scan, inputs, True, grads) for inputs in (dirty, clean))
    others = torch.ones(2, 18, dtype=torch.bool)
    others[1, 10] = False
    for key in ("u", "delta", "z", "initial_state"):
        assert torch.equal(found[key][others], expected[key][others]), key
    for key in ("A", "D", "delta_bias"):
        keep = torch.arange(18) != 10
        assert torch.equal(found[key][keep], expected[key][keep]), key
    for key in ("B", "C"):
        assert torch.equal(found[key][0], expected[key][0]) and torch.equal(found[key][1, 0], expected[key][1, 0])
    assert found["delta"][1, 10].isnan().any() and found["delta_bias"][10].isnan()


def test_second_derivatives_are_refused(operators) -> None:
    inputs = scan_inputs(Case())
    leaf = inputs["u"].requires_grad_()
    out, _ = call(fgkernels.selective_scan, inputs, True)
    (gradient,) = torch.autograd.grad(out.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="selective_scan: second derivatives are not supported"):
        gradient.sum().backward()


def test_backward_on_another_back_end(operators) -> None:
    """All keep the same states for it."""
    inputs = scan_inputs(Case(length=70))
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    outputs = call(fgkernels.selective_scan, leaves, True)
    grads = [torch.ones_like(output) for output in outputs]
    expected = torch.autograd.grad(outputs, list(leaves.values()), grads, retain_graph=True)
    if operators.device == "cpu":
        with fgkernels.backend("cpu"):
            found = torch.autograd.grad(outputs, list(leaves.values()), grads)
        for value, other in zip(found, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)
