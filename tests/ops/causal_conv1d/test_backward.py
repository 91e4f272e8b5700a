# SPDX-License-Identifier: Apache-2.0
"""Gradients of `causal_conv1d` through out and final_state, against torch's convolution in float64."""

from __future__ import annotations

import pytest
import torch

import fgkernels
from fgkernels.reference import causal_conv1d as reference

from ..common import FLOATS, LAYOUTS, names
from .cases import EMPTY, FORMS, SIZES, TENSORS, Case, assert_exact, call, conv_inputs, doubled, gradients, torch_conv

pytestmark = pytest.mark.compiled


def check(case: Case, dtype: torch.dtype, layout: str = "contiguous", through: str = "both") -> dict:
    inputs = conv_inputs(case, dtype, layout)
    grad_out = torch.randn(case.batch, case.channels, case.length).to(dtype)
    grad_final = torch.randn(case.batch, case.channels, case.width - 1).to(dtype)
    grads = grad_out if through != "final_state" else None, grad_final if through != "out" else None
    found = gradients(fgkernels.causal_conv1d, inputs, case, grads)
    eager = gradients(reference.causal_conv1d, inputs, case, grads)
    truth = gradients(torch_conv, doubled(inputs), case, [None if grad is None else grad.double() for grad in grads])
    for name, value in found.items():
        assert value.dtype == inputs[name].dtype
        try:
            assert_exact(value, eager[name], truth[name])
        except AssertionError as error:
            raise AssertionError(f"d{name}: {error}") from error
    return found


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("case", FORMS, ids=str)
def test_forms(implementation, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("through", ["out", "final_state"])
def test_through_one_output(operators, through: str) -> None:
    case = Case(initial_state=True, length=2)
    found = check(case, torch.float32, through=through)
    if through == "final_state":
        assert (found["weight"] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=names)
@pytest.mark.parametrize("layout", ["contiguous", "channels_strided"])
@pytest.mark.parametrize("case", SIZES, ids=str)
def test_sizes(implementation, case: Case, layout: str, dtype: torch.dtype) -> None:
    check(case, dtype, layout)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
@pytest.mark.parametrize("case", [Case(3, 18, 37), Case(2, 5, 21, 3, initial_state=True, seq_idx=True)], ids=str)
def test_layouts(implementation, case: Case, layout: str) -> None:
    """x's gradient lies in memory as x does."""
    inputs = conv_inputs(case, layout=layout)
    x = inputs["x"].detach().requires_grad_()
    out = fgkernels.causal_conv1d(x, inputs["weight"], seq_idx=inputs["seq_idx"])
    (found,) = torch.autograd.grad(out.square().sum(), x)
    assert (found.transpose(1, 2) if layout == "channels_strided" else found).is_contiguous()
    check(case, torch.float32, layout)


@pytest.mark.parametrize("x_layout", ["contiguous", "channels_strided"])
@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_strided", "every_second"])
def test_gradient_of_another_layout(implementation, grad_layout: str, x_layout: str) -> None:
    """What comes back from the layer above may lie otherwise than x, or, of a sum, in one place of memory."""
    from ..common import lay_out

    case = Case(2, 19, 33, initial_state=True)
    inputs = conv_inputs(case, layout=x_layout)
    dense = torch.randn(2, 19, 33)
    expected = gradients(fgkernels.causal_conv1d, inputs, case, (dense, None))
    found = gradients(fgkernels.causal_conv1d, inputs, case, (lay_out(dense, grad_layout), None))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    ones = gradients(fgkernels.causal_conv1d, inputs, case, (torch.ones(()).expand(2, 19, 33), None))
    expected = gradients(fgkernels.causal_conv1d, inputs, case, (torch.ones(2, 19, 33), None))
    for name, value in ones.items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(implementation, case: Case) -> None:
    inputs = conv_inputs(case)
    grads = torch.randn(case.batch, case.channels, case.length), torch.randn(case.batch, case.channels, case.width - 1)
    found = gradients(fgkernels.causal_conv1d, inputs, case, grads)
    for name, value in found.items():
        assert value.shape == inputs[name].shape
    assert (found["weight"] == 0).all() and (found["bias"] == 0).all()
    if case.length == 0 and case.initial_state:
        assert torch.equal(found["initial_state"], grads[1])


@pytest.mark.parametrize("needed", TENSORS)
def test_only_what_is_asked_for(operators, needed: str) -> None:
    """One gradient at a time equals that of all at once."""
    case = Case(initial_state=True)
    inputs = conv_inputs(case)
    grads = torch.randn(2, 7, 13), torch.randn(2, 7, 3)
    expected = gradients(fgkernels.causal_conv1d, inputs, case, grads)[needed]
    leaf = inputs[needed].clone().requires_grad_()
    outputs = [
        output for output in call(fgkernels.causal_conv1d, inputs | {needed: leaf}, case) if output.requires_grad
    ]
    (found,) = torch.autograd.grad(outputs, leaf, grads[: len(outputs)])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("seq_idx", [False, True])
def test_streaming(operators, seq_idx: bool) -> None:
    """Gradients of a sequence in chunks are those of one call: they pass through the states."""
    case = Case(length=11, initial_state=True)
    inputs = {name: value if value is None else value.double() for name, value in conv_inputs(case).items()}
    grad = torch.randn(2, 7, 11).double()
    expected = gradients(fgkernels.causal_conv1d, inputs, case, (grad, None))
    leaves = {name: inputs[name].detach().requires_grad_() for name in TENSORS}
    state, parts = leaves["initial_state"], []
    for start, stop in ((0, 1), (1, 3), (3, 9), (9, 11)):
        out, state = fgkernels.causal_conv1d(
            leaves["x"][..., start:stop], leaves["weight"], leaves["bias"], "silu", initial_state=state,
            return_final_state=True,
        )  # fmt: skip
        parts.append(out)
    found = torch.autograd.grad(torch.cat(parts, 2), list(leaves.values()), grad)
    for name, value in zip(leaves, found, strict=True):
        torch.testing.assert_close(value, expected[name])


def test_packed_sequences_with_states(operators) -> None:
    """Gradients of packed sequences, and of each one's state, are those of separate calls."""
    offsets, case = [0, 2, 2, 9, 13], Case(batch=1)
    inputs = conv_inputs(case, torch.float64)
    leaves = [inputs[name].requires_grad_() for name in ("x", "weight", "bias")]
    states = torch.randn(4, 7, 3).double().requires_grad_()
    grads = torch.randn(1, 7, 13).double(), torch.randn(4, 7, 3).double()
    packed = fgkernels.causal_conv1d(
        *leaves, "silu", initial_state=states, cu_seqlens=torch.tensor(offsets), return_final_state=True
    )
    found = torch.autograd.grad(packed, [*leaves, states], grads)
    x, weight, bias = leaves
    parts = [
        fgkernels.causal_conv1d(
            x[..., start:stop], weight, bias, "silu", initial_state=states[s : s + 1], return_final_state=True
        )
        for s, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True))
    ]
    outputs = torch.cat([out for out, _ in parts], 2), torch.cat([state for _, state in parts])
    for value, expected in zip(found, torch.autograd.grad(outputs, [*leaves, states], grads), strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("case", [Case(1, 2, 5, 3, initial_state=True, seq_idx=True), Case(2, 3, 4)], ids=str)
def test_gradcheck(implementation, case: Case) -> None:
    inputs = conv_inputs(case, torch.float64)
    names = [name for name in TENSORS if inputs[name] is not None]

    def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return call(fgkernels.causal_conv1d, inputs | dict(zip(names, tensors, strict=True)), case)

    leaves = [inputs[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_same_gradients_with_any_thread_count(cpu_implementation) -> None:
    """Sums over the batch and positions are split in the same way whoever computes them."""
    for layout in ("contiguous", "channels_strided"):
        case = Case(5, 37, 301, initial_state=True)
        inputs, grad = conv_inputs(case, layout=layout), torch.randn(5, 37, 301)
        results = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(gradients(fgkernels.causal_conv1d, inputs, case, (grad, None)))
        for name in TENSORS:
            assert torch.equal(results[0][name], results[1][name]), name
            assert torch.equal(results[1][name], results[2][name]), name


@pytest.mark.parametrize("layout", ["contiguous", "channels_strided"])
def test_nan_stays_within_its_taps(implementation, layout: str) -> None:
    """A NaN in the gradient of one position reaches the W positions before it and its channel's parameters."""
    case = Case(2, 21, 40, silu=False)
    inputs, grad = conv_inputs(case, layout=layout), torch.randn(2, 21, 40)
    grad[1, 5, 17] = float("nan")
    found = gradients(fgkernels.causal_conv1d, inputs, case, (grad, None))
    expected = torch.zeros(2, 21, 40, dtype=torch.bool)
    expected[1, 5, 14:18] = True
    assert torch.equal(found["x"].isnan(), expected)
    assert found["weight"].isnan().any(1).nonzero().flatten().tolist() == [5]
    assert found["bias"].isnan().nonzero().flatten().tolist() == [5]


def test_second_derivatives_are_refused(operators) -> None:
    inputs = conv_inputs(Case())
    x = inputs["x"].requires_grad_()
    (gradient,) = torch.autograd.grad(fgkernels.causal_conv1d(x, inputs["weight"]).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"causal_conv1d: second derivatives are not supported"):
        gradient.sum().backward()
