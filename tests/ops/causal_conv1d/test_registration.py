# SPDX-License-Identifier: Apache-2.0
"""What torch's transformations see of the convolution's operators: opcheck, compile, export, autocast, forward AD."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fgkernels
from fgkernels.ops import _library
from fgkernels.reference import causal_conv1d as reference

from ..common import FLOATS, lay_out, names
from .cases import Case, conv_inputs

pytestmark = pytest.mark.compiled

FORMS = {
    "bare": Case(silu=False, bias=False),
    "all": Case(width=3, initial_state=True, seq_idx=True),
    "empty": Case(length=0, initial_state=True),
    "one": Case(1, 1, 1, 2),
}


def forward_arguments(case: Case, dtype: torch.dtype, layout: str = "contiguous", requires_grad: bool = False) -> tuple:
    inputs = conv_inputs(case, dtype, layout)
    if requires_grad:
        for value in inputs.values():
            if value is not None and value.is_floating_point():
                value.requires_grad_()
    return tuple(inputs[name] for name in ("x", "weight", "bias", "seq_idx", "initial_state")) + (case.silu,)


def update_arguments(rows: bool, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> tuple:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, weight = torch.randn(2, 6, 3).to(dtype), torch.randn(6, 4).to(wide)
    state = lay_out(torch.randn(5 if rows else 2, 6, 4).to(dtype), layout)
    index = torch.tensor([3, 1], dtype=torch.int32) if rows else None
    return lay_out(x, layout), state, weight, None if rows else torch.randn(6).to(wide), index, index, rows


def checks(slow: bool) -> list[str]:
    usual = ["test_schema", "test_autograd_registration", "test_faketensor"]
    return [*usual, "test_aot_dispatch_dynamic"] if slow else usual


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_strided", "every_second"])
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_opcheck(operators, dtype: torch.dtype, layout: str, form: str) -> None:
    """Schema, fake kernel with strides, autograd registration and AOT dispatch with dynamic shapes."""
    slow = dtype == torch.float32 and form == "all"
    arguments = forward_arguments(FORMS[form], dtype, layout, requires_grad=True)
    torch.library.opcheck(_library.op("causal_conv1d"), arguments, test_utils=checks(slow))
    arguments = tuple(value.detach() if isinstance(value, Tensor) else value for value in arguments)
    grad = torch.randn_like(arguments[0])
    backward = _library.op("causal_conv1d_backward")
    torch.library.opcheck(backward, (grad, *arguments), test_utils=checks(slow))


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_strided"])
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_opcheck_of_the_step(operators, dtype: torch.dtype, layout: str, rows: bool) -> None:
    arguments = update_arguments(rows, dtype, layout)
    utils = checks(dtype == torch.float32 and layout == "contiguous")
    torch.library.opcheck(_library.op("causal_conv1d_update"), arguments, test_utils=utils)


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "requires_grad"), [("plain", False), ("plain", True), ("seq_idx", True), ("packed", False)]
)
def test_compile_once_for_all_sizes(form: str, requires_grad: bool) -> None:
    """One graph without breaks, values and gradients of eager, and no recompilation for a new size."""
    torch._dynamo.reset()

    def function(x: Tensor, weight: Tensor, index: Tensor | None) -> Tensor:
        option = {"seq_idx": index} if form == "seq_idx" else {"cu_seqlens": index} if form == "packed" else {}
        out, state = fgkernels.causal_conv1d(x, weight, None, "silu", return_final_state=True, **option)
        return out.sum(-1) + state.sum(-1).sum(0)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    weight = torch.randn(6, 4)
    for i, (batch, length) in enumerate([(2, 9), (5, 17), (3, 33)]):
        x, index = torch.randn(1 if form == "packed" else batch, 6, length), None
        if form == "seq_idx":
            index = (torch.rand(batch, length) < 0.3).cumsum(1).to(torch.int32)
        if form == "packed":
            index = torch.tensor([0, *range(3, 5 + 2 * batch, 2), length])
        x.requires_grad_(requires_grad)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            found = compiled(x, weight, index)
        expected = function(x, weight, index)
        torch.testing.assert_close(found, expected)
        if requires_grad:
            pairs = [torch.autograd.grad(value.square().sum(), x)[0] for value in (found, expected)]
            torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("layout", ["contiguous", "channels_strided"])
def test_compile_with_inductor(layout: str) -> None:
    torch._dynamo.reset()
    inputs = conv_inputs(Case(), layout=layout)

    def function(x: Tensor) -> Tensor:
        return fgkernels.causal_conv1d(x * 2, inputs["weight"], inputs["bias"], "silu").transpose(1, 2).softmax(-1)

    x = inputs["x"].requires_grad_()
    found, expected = torch.compile(function, fullgraph=True)(x), function(x)
    torch.testing.assert_close(found, expected)
    pairs = [torch.autograd.grad(value.square().sum(), x)[0] for value in (found, expected)]
    torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_step_changes_its_state(operators, compiler: str) -> None:
    """Functionalisation sees the write: the state moves on, and readers of the old one get the old one."""
    torch._dynamo.reset()

    def function(x: Tensor, state: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        before = state.sum()
        first = fgkernels.causal_conv1d_update(x, state, weight, None, "silu")
        return before, first + fgkernels.causal_conv1d_update(first, state, weight)

    x, state, weight = torch.randn(2, 6), torch.randn(2, 6, 4), torch.randn(6, 4)
    compiled, other = torch.compile(function, fullgraph=True, backend=compiler), state.clone()
    for _ in range(3):
        found, expected = compiled(x, state, weight), function(x, other, weight)
        for value, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(value, truth)
        torch.testing.assert_close(state, other)


# --- torch.export -----------------------------------------------------------------------------------------------------


class Convolutions(nn.Module):
    """Every form, with a state that it keeps for decoding."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))
        self.register_buffer("state", torch.randn(2, 6, 3))

    def forward(self, x: Tensor, seq_idx: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, ...]:
        conv, weight, bias = fgkernels.causal_conv1d, self.weight, self.bias
        return (
            *conv(x, weight, bias, "silu", initial_state=self.state, return_final_state=True),
            *conv(x, weight, seq_idx=seq_idx, return_final_state=True),
            *conv(x[:1], weight, cu_seqlens=cu_seqlens, return_final_state=True),
        )


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.register_buffer("state", torch.randn(2, 6, 4))

    def forward(self, x: Tensor, rows: Tensor, ring: Tensor) -> tuple[Tensor, Tensor]:
        first = fgkernels.causal_conv1d_update(x, self.state, self.weight, None, "silu")
        return first, fgkernels.causal_conv1d_update(first, ring, self.weight, None, None, rows, rows)


@pytest.mark.parametrize(("strict", "gradients"), [(False, False), (False, True), (True, True)])
def test_export_and_decompose(strict: bool, gradients: bool) -> None:
    """The exported program holds our operator for any length; decomposed, it holds none and gives the same."""
    model, auto = Convolutions(), torch.export.Dim.AUTO

    def arguments(length: int) -> tuple[Tensor, ...]:
        numbers = (torch.rand(2, length) < 0.3).cumsum(1).to(torch.int32)
        return torch.randn(2, 6, length), numbers, torch.tensor([0, 2, 2, length - 1, length])

    with torch.set_grad_enabled(gradients):
        exported = torch.export.export(model, arguments(9), dynamic_shapes=({2: auto}, {1: auto}, None), strict=strict)
    assert f"{_library.NAMESPACE}.causal_conv1d" in str(exported.graph)
    decomposed = exported.run_decompositions(fgkernels.export.decompositions())
    assert _library.NAMESPACE not in str(decomposed.graph) and "aten.conv" in str(decomposed.graph)
    for length in (9, 5, 33):
        values = arguments(length)
        for program in (exported, decomposed):
            for value, truth in zip(program.module()(*values), model(*values), strict=True):
                torch.testing.assert_close(value, truth)


@pytest.mark.parametrize("strict", [False, True])
def test_export_and_decompose_a_step(strict: bool) -> None:
    """States keep moving on, those that a program holds and those that it is given."""
    model, rows = Step(), torch.tensor([3, 1], dtype=torch.int32)
    with torch.no_grad():
        exported = torch.export.export(model, (torch.randn(2, 6), rows, torch.randn(4, 6, 5)), strict=strict)
        decomposed = exported.run_decompositions(fgkernels.export.decompositions())
        kept = exported.run_decompositions({})
        assert f"{_library.NAMESPACE}.causal_conv1d_update" in str(kept.graph)
        assert _library.NAMESPACE not in str(decomposed.graph)
        programs = [copy.deepcopy(program).module() for program in (exported, decomposed, kept)]
        x, ring = torch.randn(2, 6), torch.randn(4, 6, 5)
        rings = [ring.clone() for _ in programs]
        for _ in range(3):
            expected = model(x, rows, ring)
            for program, own in zip(programs, rings, strict=True):
                for value, truth in zip(program(x, rows, own), expected, strict=True):
                    torch.testing.assert_close(value, truth)
                torch.testing.assert_close(own, ring)


# --- autocast, forward mode and the rest ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=names)
def test_autocast_changes_nothing(served, dtype: torch.dtype) -> None:
    """x keeps its dtype, the sums theirs: a convolution of a few taps isn't worth a cast."""
    inputs = conv_inputs(Case(initial_state=True))
    arguments = inputs["x"], inputs["weight"], inputs["bias"], "silu"
    expected = fgkernels.causal_conv1d(*arguments, initial_state=inputs["initial_state"])
    with torch.autocast(served.device, dtype=dtype):
        found = fgkernels.causal_conv1d(*arguments, initial_state=inputs["initial_state"])
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_forward_mode() -> None:
    """Forward-mode derivatives take the reference, which has them, rather than dropping the tangent."""
    inputs, tangent = conv_inputs(Case(), torch.float64), torch.randn(2, 7, 13).double()
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    ours = torch.func.jvp(lambda x: fgkernels.causal_conv1d(x, weight, bias), (x,), (tangent,))
    plain = torch.func.jvp(
        lambda x: torch.nn.functional.conv1d(x, weight.unsqueeze(1), bias, padding=3, groups=7)[..., :13],
        (x,),
        (tangent,),
    )
    for value, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(value, expected)


def test_chosen_back_ends_refuse_forward_mode(operators) -> None:
    x, weight = torch.randn(1, 3, 5), torch.randn(3, 4)
    with pytest.raises(RuntimeError, match=f'back end "{operators.backend}" has no forward-mode'):
        torch.func.jvp(lambda x: fgkernels.causal_conv1d(x, weight), (x,), (x,))


def test_reference_on_the_meta_device() -> None:
    """Where no back end but the reference is at home, shapes come out without computing."""
    x, weight = torch.randn(2, 5, 7, device="meta"), torch.randn(5, 4, device="meta")
    out, state = fgkernels.causal_conv1d(x, weight, None, "silu", return_final_state=True)
    assert out.shape == (2, 5, 7) and state.shape == (2, 5, 3)
    assert fgkernels.causal_conv1d_update(x[..., 0], state, weight).shape == (2, 5)


def test_compiled_reference_is_one_graph() -> None:
    """It serves any device, so it must trace as well as the operators do."""
    torch._dynamo.reset()
    compiled = torch.compile(fgkernels.causal_conv1d, fullgraph=True, dynamic=True, backend="aot_eager")
    with fgkernels.backend("reference"):
        for i, length in enumerate((9, 17)):
            inputs = conv_inputs(Case(length=length, seq_idx=True))
            with torch._dynamo.config.patch(error_on_recompile=i > 0):
                found = compiled(inputs["x"], inputs["weight"], inputs["bias"], "silu", seq_idx=inputs["seq_idx"])
            expected = reference.causal_conv1d(
                inputs["x"], inputs["weight"], inputs["bias"], "silu", seq_idx=inputs["seq_idx"]
            )
            torch.testing.assert_close(found, expected)
