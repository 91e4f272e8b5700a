# SPDX-License-Identifier: Apache-2.0
"""Gradients of `mamba_chunk_scan_combined` through out and final_states, against float64."""

from __future__ import annotations

import math

import pytest
import torch

import fgkernels
from fgkernels.reference import mamba_chunk_scan as reference

from ..common import FLOATS, LAYOUTS, lay_out, names
from .cases import EMPTY, FORMS, SIZES, TENSORS, Case, assert_exact, call, doubled, gradients, scan_inputs

pytestmark = pytest.mark.compiled


def check(case: Case, dtype: torch.dtype, layout: str = "contiguous", through: str = "both") -> dict:
    inputs = scan_inputs(case, dtype, layout)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grad_out = torch.randn(inputs["x"].shape).to(dtype)
    grad_final = torch.randn(case.batch, case.heads, case.channels, case.states).to(wide)
    grads = grad_out if through != "final_states" else None, grad_final if through != "out" else None
    found = gradients(fgkernels.mamba_chunk_scan_combined, inputs, case, grads)
    eager = gradients(reference.mamba_chunk_scan_combined, inputs, case, grads)
    truth = gradients(reference.mamba_chunk_scan_combined, doubled(inputs), case, grads)
    terms = case.batch * case.channels * case.length * case.states
    for name, value in found.items():
        assert value.dtype == inputs[name].dtype and value.is_contiguous(), name
        try:
            assert_exact(value, eager[name], truth[name], terms)
        except AssertionError as error:
            raise AssertionError(f"d{name}: {error}") from error
    return found


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("case", FORMS, ids=str)
def test_forms(implementation, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("through", ["out", "final_states"])
@pytest.mark.parametrize("case", [Case(), Case(seq_idx=True), FORMS[-1]], ids=str)
def test_through_one_output(implementation, case: Case, through: str) -> None:
    """An output that isn't used has no gradient, which must count as zero."""
    found = check(case, torch.float32, through=through)
    if through == "final_states":
        for name in {"C", "D", "z"} & set(found):
            assert (found[name] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=names)
@pytest.mark.parametrize("case", SIZES, ids=str)
def test_sizes(implementation, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
def test_layouts(implementation, layout: str) -> None:
    check(Case(3, 37, 4, 6, 2, 9, seq_idx=True), torch.float32, layout)


@pytest.mark.parametrize("layout", ["channels_strided", "every_second"])
def test_gradients_of_another_layout(operators, layout: str) -> None:
    """What comes back from the layer above may lie in any order, or, of a sum, in one place of memory."""
    case = Case(2, 12, 4, 5, 2, 6)
    inputs, grad_out, grad_final = scan_inputs(case), torch.randn(2, 12, 4, 5), torch.randn(2, 4, 5, 6)
    expected = gradients(fgkernels.mamba_chunk_scan_combined, inputs, case, (grad_out, grad_final))
    strided = lay_out(grad_out, layout), lay_out(grad_final, layout)
    found = gradients(fgkernels.mamba_chunk_scan_combined, inputs, case, strided)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    ones = torch.ones(()).expand(grad_out.shape), torch.ones(()).expand(grad_final.shape)
    found = gradients(fgkernels.mamba_chunk_scan_combined, inputs, case, ones)
    dense = tuple(grad.contiguous() for grad in ones)
    for name, value in gradients(fgkernels.mamba_chunk_scan_combined, inputs, case, dense).items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(implementation, case: Case) -> None:
    check(case, torch.float32)


@pytest.mark.parametrize("needed", TENSORS)
def test_only_what_is_asked_for(operators, needed: str) -> None:
    """One gradient at a time equals that of all at once."""
    case = Case()
    inputs, grads = scan_inputs(case), (torch.randn(2, 9, 4, 5), torch.randn(2, 4, 5, 6))
    expected = gradients(fgkernels.mamba_chunk_scan_combined, inputs, case, grads)[needed]
    leaf = inputs[needed].clone().requires_grad_()
    outputs = call(fgkernels.mamba_chunk_scan_combined, inputs | {needed: leaf}, case)
    (found,) = torch.autograd.grad(outputs, leaf, grads)
    assert torch.equal(found, expected)


def test_streaming(operators) -> None:
    """Gradients of a sequence in parts are those of one call: they pass through the states."""
    case = Case(1, 140, 2, 3, 1, 4)
    inputs = scan_inputs(case, torch.float64)
    grads = torch.randn(1, 140, 2, 3).double(), torch.randn(1, 2, 3, 4).double()
    expected = gradients(fgkernels.mamba_chunk_scan_combined, inputs, case, grads)
    leaves = {name: inputs[name].detach().requires_grad_() for name in TENSORS}
    states, parts = leaves["initial_states"], []
    for start, stop in ((0, 1), (1, 30), (30, 135), (135, 140)):
        own = {name: leaves[name][:, start:stop] for name in ("x", "dt", "B", "C", "z")}
        part = inputs | leaves | own | {"initial_states": states}
        out, states = call(fgkernels.mamba_chunk_scan_combined, part, case)
        parts.append(out)
    found = torch.autograd.grad([torch.cat(parts, 1), states], list(leaves.values()), grads)
    for name, value in zip(leaves, found, strict=True):
        torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"d{name}: {text}")


@pytest.mark.parametrize("given", ["seq_idx", "cu_seqlens", "both"])
def test_packed_sequences(operators, given: str) -> None:
    """Gradients of packed sequences are those of separate calls; states of sequences carry none."""
    case, offsets = Case(1, 140, 2, 3, 1, 4), [0, 3, 130, 140]
    inputs = scan_inputs(case, torch.float64)
    leaves = {name: inputs[name].requires_grad_() for name in TENSORS}
    x, dt, A, B, C, D, z, bias, initial = leaves.values()
    numbers = torch.repeat_interleave(torch.arange(3), torch.tensor(offsets).diff()).unsqueeze(0)
    seq_idx = None if given == "cu_seqlens" else numbers
    cu_seqlens = None if given == "seq_idx" else torch.tensor(offsets)
    out, final, *states = fgkernels.mamba_chunk_scan_combined(
        x, dt, A, B, C, 64, D, z, bias, initial, seq_idx, cu_seqlens, True,
        return_final_states=True, return_varlen_states=cu_seqlens is not None,
    )  # fmt: skip
    assert not any(value.requires_grad for value in states)
    grads = torch.randn(out.shape).double(), torch.randn(final.shape).double()
    found = torch.autograd.grad([out, final], list(leaves.values()), grads)
    parts = []
    for s, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        own = {name: leaves[name][:, start:stop] for name in ("x", "dt", "B", "C", "z")}
        own["initial_states"] = initial if s == 0 else None
        parts.append(call(fgkernels.mamba_chunk_scan_combined, inputs | leaves | own, case))
    outputs = [torch.cat([part[0] for part in parts], 1), parts[-1][1]]
    expected = torch.autograd.grad(outputs, list(leaves.values()), grads)
    for name, value, truth in zip(leaves, found, expected, strict=True):
        torch.testing.assert_close(value, truth, msg=lambda text, name=name: f"d{name}: {text}")


def test_active_limits_pass_no_gradient(implementation) -> None:
    """As of torch.clamp: at a limit itself the gradient passes, beyond it is 0."""
    case = Case(1, 6, 1, 2, 1, 3, dt_softplus=False, dt_bias=False, dt_limit=(0.25, 0.5))
    inputs = scan_inputs(case)
    inputs["dt"] = torch.tensor([0.0, 0.25, 0.3, 0.5, 0.6, -1.0]).view(1, 6, 1)
    found = gradients(fgkernels.mamba_chunk_scan_combined, inputs, case, (torch.randn(1, 6, 1, 2), None))
    assert ((found["dt"] != 0).flatten() == torch.tensor([False, True, True, True, False, False])).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=names)
def test_long_products_stay_finite(implementation, dtype: torch.dtype) -> None:
    """Decays from none at all to one that leaves nothing: gradients are those of float64."""
    case = Case(1, 260, 6, 4, 2, 4, dt_softplus=False, dt_bias=False, z=False)
    inputs = scan_inputs(case, dtype)
    inputs["A"] = torch.tensor([0.0, -1e-6, -1.0, -10.0, -80.0, -1000.0])
    inputs["dt"] = torch.ones(1, 260, 6, dtype=dtype)
    grads = torch.randn(1, 260, 6, 4).to(dtype), torch.randn(1, 6, 4, 4)
    found = gradients(fgkernels.mamba_chunk_scan_combined, inputs, case, grads)
    eager = gradients(reference.mamba_chunk_scan_combined, inputs, case, grads)
    truth = gradients(reference.mamba_chunk_scan_combined, doubled(inputs), case, grads)
    heads = {"x": 2, "dt": 2, "A": 0, "D": 0, "initial_states": 1}
    for name, value in found.items():
        assert value.isfinite().all(), name
        for i in range(6 if name in heads else 1):  # each head has a size of its own
            own = [one.select(heads[name], i) if name in heads else one for one in (value, eager[name], truth[name])]
            assert_exact(*own, 260 * 16)


@pytest.mark.parametrize("case", [Case(1, 4, 2, 2, 1, 3, seq_idx=True, D="channel"), Case(2, 3, 2, 2, 2, 2)], ids=str)
def test_gradcheck(cpu_implementation, case: Case) -> None:
    inputs = scan_inputs(case, torch.float64)

    def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return call(fgkernels.mamba_chunk_scan_combined, inputs | dict(zip(TENSORS, tensors, strict=True)), case)

    leaves = [inputs[name].requires_grad_() for name in TENSORS]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_same_gradients_with_any_thread_count(cpu_implementation) -> None:
    """Sums over the batch, heads and steps are split in the same way whoever computes them."""
    case = Case(3, 270, 6, 7, 2, 16)
    inputs, grads = scan_inputs(case), (torch.randn(3, 270, 6, 7), torch.randn(3, 6, 7, 16))
    results = []
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        results.append(gradients(fgkernels.mamba_chunk_scan_combined, inputs, case, grads))
    for name in TENSORS:
        assert torch.equal(results[0][name], results[1][name]), name
        assert torch.equal(results[1][name], results[2][name]), name


@pytest.mark.parametrize("seq_idx", [False, True])
def test_nan_stays_where_it_belongs(implementation, seq_idx: bool) -> None:
    """A NaN in the gradient of one output reaches the x before it in its own head, channel and sequence.

    By products of matrices, as for values, it may reach other steps of its head and channel too.
    """
    case = Case(2, 150, 2, 5, 1, 4, z=False)
    inputs, grad = scan_inputs(case), torch.randn(2, 150, 2, 5)
    if seq_idx:
        inputs["seq_idx"] = (torch.arange(150) // 40).to(torch.int32).expand(2, 150)
    clean = gradients(fgkernels.mamba_chunk_scan_combined, inputs, case, (grad, None))
    grad[1, 90, 1, 3] = math.nan
    found = gradients(fgkernels.mamba_chunk_scan_combined, inputs, case, (grad, None))
    reached = torch.zeros(grad.shape, dtype=torch.bool)
    reached[1, 80 if seq_idx else 0 : 91, 1, 3] = True
    if implementation.is_cpu_build:
        assert torch.equal(found["x"].isnan(), reached)
        assert torch.equal(found["initial_states"].isnan().any(-1), reached[:, 0])
    else:
        assert found["x"][1, 90, 1, 3].isnan()
        reached[1, :, 1, 3] = True
    assert found["A"].isnan().tolist() == [False, True]
    torch.testing.assert_close(found["x"][~reached], clean["x"][~reached])


def test_second_derivatives_are_refused(operators) -> None:
    case = Case()
    inputs = scan_inputs(case)
    x = inputs["x"].requires_grad_()
    out, _ = call(fgkernels.mamba_chunk_scan_combined, inputs, case)
    (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"mamba_chunk_scan_combined: second derivatives are not supported"):
        gradient.sum().backward()
