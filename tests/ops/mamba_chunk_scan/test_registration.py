# SPDX-License-Identifier: Apache-2.0
"""What torch's transformations see of the scan's operators: opcheck, compile, export, autocast, forward AD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fgkernels
from fgkernels.ops import _library
from fgkernels.reference import mamba_chunk_scan as reference

from ..common import FLOATS, names
from .cases import TENSORS, Case, call, scan_inputs

pytestmark = pytest.mark.compiled

FORMS = {
    "bare": Case(D="", z=False, dt_bias=False, initial_states=False, dt_softplus=False),
    "all": Case(1, 140, 2, 3, 1, 4, D="channel", seq_idx=True, dt_limit=(0.01, 3.0)),
    "empty": Case(length=0),
    "one": Case(1, 1, 1, 1, 1, 1),
}


def forward_arguments(case: Case, dtype: torch.dtype, layout: str = "contiguous", requires_grad: bool = False) -> tuple:
    inputs = scan_inputs(case, dtype, layout)
    if requires_grad:
        for name in TENSORS:
            if inputs[name] is not None:
                inputs[name].requires_grad_()
    return (*(inputs[name] for name in (*TENSORS, "seq_idx")), case.dt_softplus, *case.dt_limit)


def checks(slow: bool) -> list[str]:
    usual = ["test_schema", "test_autograd_registration", "test_faketensor"]
    return [*usual, "test_aot_dispatch_dynamic"] if slow else usual


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every_second"])
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_opcheck(operators, dtype: torch.dtype, layout: str, form: str) -> None:
    """Schema, fake kernel with strides, autograd registration and AOT dispatch with dynamic shapes."""
    slow = dtype == torch.float32 and form == "all" and layout == "contiguous"
    arguments = forward_arguments(FORMS[form], dtype, layout, requires_grad=True)
    for name in ("mamba_chunk_scan", "mamba_chunk_scan_fwd"):
        torch.library.opcheck(_library.op(name), arguments, test_utils=checks(slow))
    arguments = tuple(value.detach() if isinstance(value, Tensor) else value for value in arguments)
    out, final_states, checkpoints = _library.op("mamba_chunk_scan")(*arguments)
    for grad_final in (None, torch.randn_like(final_states)):
        backward = (torch.randn_like(out), grad_final, *arguments[:10], checkpoints, *arguments[10:])
        torch.library.opcheck(_library.op("mamba_chunk_scan_backward"), backward, test_utils=checks(slow))


def test_checkpoints_are_the_states_before_each_chunk(operators) -> None:
    """Every back end keeps the same, since another one may run the backward."""
    case = Case(1, 300, 2, 3, 1, 4)
    arguments = forward_arguments(case, torch.float32)
    _, final_states, checkpoints = _library.op("mamba_chunk_scan")(*arguments)
    assert checkpoints.shape == (1, 3, 2, 3, 4)
    inputs = dict(zip(TENSORS, arguments, strict=False)) | {"seq_idx": None}
    for chunk, length in enumerate((0, 128, 256)):
        own = {name: inputs[name][:, :length] for name in ("x", "dt", "B", "C", "z")}
        _, expected = call(reference.mamba_chunk_scan_combined, inputs | own, case)
        torch.testing.assert_close(checkpoints[:, chunk], expected, rtol=1e-5, atol=1e-5)
    fwd = _library.op("mamba_chunk_scan_fwd")(*arguments)
    assert torch.equal(fwd[1], final_states)


def test_backward_on_another_back_end(operators) -> None:
    """The back end may change between forward and backward: what one keeps the other understands."""
    case = Case(1, 140, 2, 3, 1, 4, seq_idx=True)
    inputs = scan_inputs(case)
    leaves = {name: inputs[name].requires_grad_() for name in TENSORS}
    grads = torch.randn(1, 140, 2, 3), torch.randn(1, 2, 3, 4)
    outputs = call(fgkernels.mamba_chunk_scan_combined, inputs, case)
    expected = torch.autograd.grad(outputs, list(leaves.values()), grads, retain_graph=True)
    if operators.device != "cpu":
        pytest.skip("the CPU's kernels can't run where these tensors live")
    with fgkernels.backend("cpu"):
        found = torch.autograd.grad(outputs, list(leaves.values()), grads)
    for name, value, truth in zip(leaves, found, expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"d{name}: {text}")


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "requires_grad"), [("plain", False), ("plain", True), ("seq_idx", True), ("packed", False)]
)
def test_compile_once_for_all_sizes(form: str, requires_grad: bool) -> None:
    """One graph without breaks, values and gradients of eager, and no recompilation for a new size."""
    torch._dynamo.reset()

    def function(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, index: Tensor | None) -> Tensor:
        option = {"seq_idx": index} if form == "seq_idx" else {}
        if form == "packed":
            option = {"cu_seqlens": index, "return_varlen_states": True}
        out, final, *rest = fgkernels.mamba_chunk_scan_combined(
            x, dt, A, B, B, 64, dt_softplus=True, return_final_states=True, **option
        )
        return out.sum((0, 1)) + final.sum((0, 3)) + sum(states.sum((0, 3)) for states in rest)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    A = -torch.rand(4)
    for i, (batch, length) in enumerate([(6, 20), (7, 33), (8, 60)]):
        batch = 1 if form == "packed" else batch
        x, dt, B = torch.randn(batch, length, 4, 3), torch.randn(batch, length, 4), torch.randn(batch, length, 2, 5)
        index = None
        if form == "seq_idx":
            index = (torch.rand(batch, length) < 0.2).cumsum(1).to(torch.int32)
        if form == "packed":
            index = torch.tensor([0, *range(3, 10 + i), length])
        x.requires_grad_(requires_grad)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            found = compiled(x, dt, A, B, index)
        expected = function(x, dt, A, B, index)
        torch.testing.assert_close(found, expected)
        if requires_grad:
            pairs = [torch.autograd.grad(value.square().sum(), x)[0] for value in (found, expected)]
            torch.testing.assert_close(*pairs)


def test_compile_with_inductor() -> None:
    torch._dynamo.reset()
    case = Case()
    inputs = scan_inputs(case)

    def function(x: Tensor) -> Tensor:
        return call(fgkernels.mamba_chunk_scan_combined, inputs | {"x": x.sin()}, case)[0].softmax(-1)

    x = inputs["x"].requires_grad_()
    found, expected = torch.compile(function, fullgraph=True)(x), function(x)
    torch.testing.assert_close(found, expected)
    pairs = [torch.autograd.grad(value.square().sum(), x)[0] for value in (found, expected)]
    torch.testing.assert_close(*pairs)


# --- torch.export -----------------------------------------------------------------------------------------------------


class Scans(nn.Module):
    """The scan in every form, with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.D, self.bias = (nn.Parameter(value) for value in (-torch.rand(4), torch.randn(4), torch.randn(4)))
        self.register_buffer("states", torch.randn(2, 4, 3, 5))

    def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, seq_idx: Tensor) -> tuple[Tensor, ...]:
        scan = fgkernels.mamba_chunk_scan_combined
        return (
            *scan(x, dt, self.A, B, C, 64, self.D, x, self.bias, self.states, None, None, True,
                  return_final_states=True),
            scan(x, dt, self.A, B, C, 64, seq_idx=seq_idx, dt_limit=(0.0, 2.0)),
        )  # fmt: skip


def program_arguments(length: int) -> tuple[Tensor, ...]:
    B, C = torch.randn(2, 2, length, 2, 5)
    numbers = (torch.rand(2, length) < 0.2).cumsum(1).to(torch.int32)
    return torch.randn(2, length, 4, 3), torch.randn(2, length, 4), B, C, numbers


@pytest.mark.parametrize(("strict", "gradients"), [(False, False), (False, True), (True, True)])
def test_export_and_decompose(strict: bool, gradients: bool) -> None:
    """The exported program holds our operator for any length; decomposed, it holds none and gives the same."""
    model, length = Scans(), torch.export.Dim("length", min=2, max=100_000)
    with torch.set_grad_enabled(gradients):
        exported = torch.export.export(
            model, program_arguments(9), dynamic_shapes=({1: length},) * 5, strict=strict
        )  # fmt: skip
    assert f"{_library.NAMESPACE}.mamba_chunk_scan_fwd" in str(exported.graph)
    decomposed = exported.run_decompositions(fgkernels.export.decompositions())
    assert _library.NAMESPACE not in str(decomposed.graph)
    for steps in (9, 5, 140):
        values = program_arguments(steps)
        for program in (exported, decomposed):
            for value, truth in zip(program.module()(*values), model(*values), strict=True):
                torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-4)


def test_exported_program_can_be_trained() -> None:
    """It holds the forward-only operator, whose gradient runs the one that keeps what a backward needs."""
    model, values = Scans(), program_arguments(9)
    program = torch.export.export(model, values).module()
    for found, expected in zip(gradients_of(program, values), gradients_of(model, values), strict=True):
        torch.testing.assert_close(found, expected)


def gradients_of(model: nn.Module, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    loss = sum(output.square().sum() for output in model(*values))
    return torch.autograd.grad(loss, [parameter for _, parameter in sorted(model.named_parameters())])


def test_decompositions_give_what_the_operators_give(operators) -> None:
    """Checkpoints included."""
    table = fgkernels.export.decompositions()
    for form in ("bare", "all", "empty"):
        arguments = forward_arguments(FORMS[form], torch.float64)
        for name in ("mamba_chunk_scan", "mamba_chunk_scan_fwd"):
            found, expected = table[_library.op(name)](*arguments), _library.op(name)(*arguments)
            for value, truth in zip(found, expected, strict=True):
                torch.testing.assert_close(value, truth)


# --- autocast, forward mode and the rest ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=names)
def test_autocast_changes_nothing(served, dtype: torch.dtype) -> None:
    """Sequences keep their dtype and states theirs, also those of packed sequences, which take matrix products."""
    case = Case(1, 140, 2, 4, 1, 5)
    inputs = scan_inputs(case)
    x, dt, A, B, C, D, z, bias, initial = (inputs[name] for name in TENSORS)
    arguments = x, dt, A, B, C, 64, D, z, bias, initial, None, torch.tensor([0, 30, 140]), True, (0.0, 3.0), True, True
    expected = fgkernels.mamba_chunk_scan_combined(*arguments)
    with torch.autocast(served.device, dtype=dtype):
        found = fgkernels.mamba_chunk_scan_combined(*arguments)
    for value, truth in zip(found, expected, strict=True):
        assert value.dtype == torch.float32 and torch.equal(value, truth)


def test_forward_mode() -> None:
    """Forward-mode derivatives take the reference, which has them, rather than dropping the tangent."""
    case = Case(1, 5, 2, 2, 1, 2)
    inputs = scan_inputs(case, torch.float64)
    tangent = torch.randn_like(inputs["dt"])

    def function(dt: Tensor) -> Tensor:
        return call(fgkernels.mamba_chunk_scan_combined, inputs | {"dt": dt}, case)[0]

    _, ours = torch.func.jvp(function, (inputs["dt"],), (tangent,))
    step = 1e-6
    plain = (function(inputs["dt"] + step * tangent) - function(inputs["dt"] - step * tangent)) / (2 * step)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)


def test_chosen_back_ends_refuse_forward_mode(operators) -> None:
    case = Case(1, 3, 2, 2, 1, 2)
    inputs = scan_inputs(case)
    with pytest.raises(RuntimeError, match=f'back end "{operators.backend}" has no forward-mode'):
        torch.func.jvp(
            lambda x: call(fgkernels.mamba_chunk_scan_combined, inputs | {"x": x}, case)[0],
            (inputs["x"],),
            (inputs["x"],),
        )


def test_fast_path_only_without_gradients(operators, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients the operator that keeps no states runs, with them the other."""
    from fgkernels.ops import mamba_chunk_scan as module

    called = []
    for name in ("_mamba_chunk_scan", "_mamba_chunk_scan_fwd"):
        operator = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, n=name, op=operator: (called.append(n), op(*args))[1])
    case = Case()
    inputs = scan_inputs(case)
    call(fgkernels.mamba_chunk_scan_combined, inputs, case)
    inputs["A"].requires_grad_()
    with torch.no_grad():
        call(fgkernels.mamba_chunk_scan_combined, inputs, case)
    assert called == ["_mamba_chunk_scan_fwd"] * 2
    assert call(fgkernels.mamba_chunk_scan_combined, inputs, case)[1].requires_grad
    assert called[2:] == ["_mamba_chunk_scan"]


def test_reference_on_the_meta_device() -> None:
    """Where no back end but the reference is at home, shapes come out without computing."""
    case = Case(1, 3, 2, 2, 1, 2)
    inputs = {name: value if value is None else value.to("meta") for name, value in scan_inputs(case).items()}
    out, states = call(fgkernels.mamba_chunk_scan_combined, inputs, case)
    assert out.shape == (1, 3, 2, 2) and states.shape == (1, 2, 2, 2)
