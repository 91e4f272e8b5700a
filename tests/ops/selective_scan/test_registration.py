# SPDX-License-Identifier: Apache-2.0
"""What torch's transformations see of the scans over sequences: opcheck, compile, export, autocast, forward AD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import fgkernels
from fgkernels.ops import _library
from fgkernels.reference import selective_scan as reference

from ..common import FLOATS, lay_out, left_out, names
from .cases import EMPTY, FORMS, TENSORS, Case, call, scan_inputs
from .test_state_update import NAMES, step_inputs

pytestmark = pytest.mark.compiled

CASES = {"all": FORMS[0], "shared": FORMS[1], "mixed": FORMS[3], "bare": FORMS[-1], "chunks": Case(1, 3, 65, 2, 1)}


def operator_arguments(name: str, case: Case, dtype: torch.dtype, layout: str, requires_grad: bool = False) -> tuple:
    inputs = scan_inputs(case, dtype, layout)
    tensors = [inputs[key] for key in TENSORS]
    if name == "selective_scan_backward":
        out, last, checkpoints = _library.op("selective_scan")(*tensors, case.delta_softplus)
        grads = torch.randn_like(out), torch.randn_like(last) if case.initial_state else None
        return *grads, *tensors, checkpoints, case.delta_softplus
    if requires_grad:
        tensors = [None if value is None else value.detach().requires_grad_() for value in tensors]
    return *tensors, case.delta_softplus


@pytest.mark.parametrize("name", ["selective_scan", "selective_scan_fwd", "selective_scan_backward"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_strided", "sliced"])
@pytest.mark.parametrize("case", CASES)
def test_opcheck(operators, name: str, layout: str, case: str) -> None:
    """Schema, fake kernel with strides, autograd registration and AOT dispatch with dynamic shapes."""
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    dtypes = FLOATS
    if layout == "contiguous" and not left_out(operators, case == "all"):
        checks.append("test_aot_dispatch_dynamic")  # slow, and independent of dtype
        dtypes = [torch.float32]
    if operators.simulated:
        dtypes = dtypes[-1:]
    for dtype in dtypes:
        arguments = operator_arguments(name, CASES[case], dtype, layout, requires_grad=name == "selective_scan")
        torch.library.opcheck(_library.op(name), arguments, test_utils=checks)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_opcheck_of_nothing(operators, case: Case) -> None:
    for name in ("selective_scan", "selective_scan_fwd", "selective_scan_backward"):
        checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
        torch.library.opcheck(
            _library.op(name), operator_arguments(name, case, torch.float32, "contiguous"), test_utils=checks
        )


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("shape", [(3, 6), (3, 2, 5)], ids=str)
def test_opcheck_of_the_update(operators, shape: tuple[int, ...], indices: bool) -> None:
    """A mutable operator: what it says it writes, and nothing else."""
    for dtype in (torch.float32, torch.bfloat16):
        state, inputs = step_inputs(shape, 4, 1, dtype, entries=5 if indices else None)
        rows = torch.tensor([4, 0, 2], dtype=torch.int32) if indices else None
        arguments = (state, *(inputs[name] for name in NAMES), rows, True)
        torch.library.opcheck(_library.op("selective_state_update"), arguments)


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("case", ["all", "mixed"])
def test_compile_once_for_all_sizes(operators, case: str, requires_grad: bool) -> None:
    """One graph without breaks, values and gradients of eager, and no recompilation for a new size.

    With gradients it may be traced once more where a second chunk of 64 steps begins, whose states are kept.
    """
    if left_out(operators, case == "all"):
        return
    torch._dynamo.reset()

    def function(inputs: dict[str, Tensor]) -> Tensor:
        out, last = call(fgkernels.selective_scan, inputs, True)
        return out.sum() + (last * last).sum()

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    kinds = {"B": CASES[case].B, "C": CASES[case].C}
    for i, (batch, channels, length, states) in enumerate(
        [(2, 6, 9, 5), (3, 9, 40 if requires_grad else 70, 4), (4, 12, 5, 7)]
    ):
        inputs = scan_inputs(Case(batch, channels, length, states, groups=3, **kinds))
        leaves = [value.requires_grad_(requires_grad) for value in inputs.values()]
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            found = compiled(inputs)
        expected = function(inputs)
        assert torch.equal(found, expected)
        if requires_grad:
            pairs = zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True)
            assert all(torch.equal(value, other) for value, other in pairs)


def test_compile_with_inductor(operators) -> None:
    """Also of channel-last sequences, whose layout the output takes."""
    torch._dynamo.reset()
    inputs = scan_inputs(Case(2, 6, 9, 5, 2), layout="channels_strided")

    def function(values: dict[str, Tensor]) -> Tensor:
        out, last = call(fgkernels.selective_scan, values | {"u": values["u"].sin()}, True)
        return out.transpose(1, 2).cos() + last.sum()

    torch.testing.assert_close(torch.compile(function, fullgraph=True)(inputs), function(inputs))


def test_compiled_update_writes_its_state(operators) -> None:
    """Functionalisation keeps the write: before it, after it, and through a view."""
    torch._dynamo.reset()
    state, inputs = step_inputs((2, 6), 5)

    def function(cache: Tensor, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        before = cache * 2
        out = fgkernels.selective_state_update(cache[1], *(values[name] for name in NAMES), True)
        return out, before + cache

    caches = [torch.stack([state, state + 1, state - 1]) for _ in range(2)]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for value, expected in zip(compiled(caches[0], inputs), function(caches[1], inputs), strict=True):
        assert torch.equal(value, expected)
    assert torch.equal(*caches) and not torch.equal(caches[0][1], state + 1)


def test_compiled_update_refuses_gradients(operators) -> None:
    torch._dynamo.reset()
    state, inputs = step_inputs((2, 6), 5)
    inputs["x"].requires_grad_()
    compiled = torch.compile(
        lambda s, values: fgkernels.selective_state_update(s, *(values[name] for name in NAMES), True),
        fullgraph=True,
        backend="aot_eager",
    )
    with pytest.raises(Exception, match=r"torch\.no_grad\(\)"):
        compiled(state, inputs)


def test_reference_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    inputs = scan_inputs(Case(length=4))
    compiled = torch.compile(lambda x: call(fgkernels.selective_scan, x, True), fullgraph=True, backend="aot_eager")
    with fgkernels.backend("reference"):
        for value, expected in zip(compiled(inputs), call(fgkernels.selective_scan, inputs, True), strict=True):
            torch.testing.assert_close(value, expected)


# --- torch.export -----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(-torch.rand(6, 4))
        self.D = nn.Parameter(torch.randn(6))

    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        return fgkernels.selective_scan(u, delta, self.A, B, C, self.D, u, None, True, True)


@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("strict", [False, True])
def test_export(operators, strict: bool, gradients: bool) -> None:
    """The exported program holds our operator for any batch and length."""
    model = Block()

    def inputs(batch: int, length: int) -> tuple[Tensor, ...]:
        sizes = [(batch, 6, length)] * 2 + [(batch, 4, length)] * 2
        return tuple(torch.randn(size) for size in sizes)

    dynamic = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(model, inputs(3, 5), dynamic_shapes=(dynamic,) * 4, strict=strict)
    assert f"{_library.NAMESPACE}.selective_scan" in str(program.graph)
    for batch, length in ((3, 5), (2, 70)):
        arguments = inputs(batch, length)
        for value, expected in zip(program.module()(*arguments), model(*arguments), strict=True):
            torch.testing.assert_close(value, expected)


# --- autocast, torch.func, forward mode -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=names)
def test_autocast_changes_nothing(served, dtype: torch.dtype) -> None:
    """Mixed precision is what the caller's dtypes say: a state that lives long must not lose digits to a region."""
    inputs = scan_inputs(FORMS[0])
    leaf = inputs["u"].requires_grad_()
    expected = call(fgkernels.selective_scan, inputs, True)
    (gradient,) = torch.autograd.grad(expected[0].sum(), leaf)
    with torch.autocast(served.device, dtype=dtype):
        found = call(fgkernels.selective_scan, inputs, True)
        (other,) = torch.autograd.grad(found[0].sum(), leaf)
        state, step = step_inputs((2, 6), 5)
        out = fgkernels.selective_state_update(state, *(step[name] for name in NAMES), True)
    assert all(torch.equal(value, truth) for value, truth in zip(found, expected, strict=True))
    assert torch.equal(other, gradient) and out.dtype == torch.float32


def test_func_grad(served) -> None:
    """torch.func.grad of every tensor, as torch.autograd has it."""
    inputs = scan_inputs(FORMS[0])

    def loss(*tensors: Tensor) -> Tensor:
        out, last = call(fgkernels.selective_scan, dict(zip(TENSORS, tensors, strict=True)), True)
        return (out * out).sum() + last.sum()

    tensors = [inputs[name] for name in TENSORS]
    found = torch.func.grad(loss, argnums=tuple(range(len(tensors))))(*tensors)
    leaves = [value.clone().requires_grad_() for value in tensors]
    for value, expected in zip(found, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        torch.testing.assert_close(value, expected)


def test_forward_mode(operators) -> None:
    """Dual numbers are the reference's: served by it unless a back end was chosen, which then says so."""
    inputs = scan_inputs(FORMS[0])
    with forward_ad.dual_level():
        dual = inputs | {"u": forward_ad.make_dual(inputs["u"], torch.ones_like(inputs["u"]))}
        with pytest.raises(RuntimeError, match="has no forward-mode derivatives"):
            call(fgkernels.selective_scan, dual, True)
        with fgkernels.backend("reference"):
            found = forward_ad.unpack_dual(call(fgkernels.selective_scan, dual, True)[0]).tangent
    _, expected = torch.func.jvp(
        lambda u: call(reference.selective_scan, inputs | {"u": u}, True)[0], (inputs["u"],),
        (torch.ones_like(inputs["u"]),),
    )  # fmt: skip
    torch.testing.assert_close(found, expected)


def test_fake_kernels_follow_the_layout(operators) -> None:
    """On the meta device, where nothing else is there: shapes, dtypes and strides of out and states."""
    inputs = scan_inputs(FORMS[0], torch.bfloat16)
    for layout, strides in (("contiguous", (54, 9, 1)), ("channels_strided", (54, 1, 6)), ("sliced", (54, 9, 1))):
        tensors = [lay_out(inputs[n], layout) if n in ("u", "delta", "z") else inputs[n] for n in TENSORS]
        tensors = [value.to("meta") if value.is_contiguous() else _meta(value) for value in tensors]
        out, last, checkpoints = _library.op("selective_scan")(*tensors, True)
        assert out.stride() == strides and out.dtype == torch.bfloat16
        assert last.shape == (2, 6, 5) and checkpoints.shape == (2, 1, 6, 1, 5) and last.dtype == torch.float32


def _meta(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
