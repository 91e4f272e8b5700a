# SPDX-License-Identifier: Apache-2.0
"""What torch's transformations see of the scans over maps: opcheck, compile, export, vmap, torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

import fgkernels
from fgkernels.ops import _library
from fgkernels.reference import selective_scan_2d as reference

from ..common import FLOATS, lay_out, left_out
from .cases import EMPTY, TENSORS, Case, call, map_inputs

pytestmark = pytest.mark.compiled

THREE = ("h", "v_flip", "d")
CASES = {
    "shared map": Case(directions=THREE),
    "own maps": Case(directions=THREE, x="own", z=False),
    "ordered": Case(directions=THREE, x="own", parameters="shared", ordered=True),
    "bare": Case(directions=THREE, D=False, z=False, delta_bias=False),
}
CHECKS = ["test_schema", "test_autograd_registration", "test_faketensor"]


def operator_arguments(name: str, case: Case, dtype: torch.dtype, layout: str, requires_grad: bool = False) -> tuple:
    inputs = map_inputs(case, dtype)
    table = fgkernels.scan_table(*case.size, case.directions, device=inputs["x"].device)
    tensors, _, _ = reference.prepare_2d(
        *(inputs[key] for key in TENSORS), case.directions, table, case.ordered, case.size
    )
    tensors = [lay_out(t, layout) if t is not None and t.dim() > 2 and i != 2 and t.numel() else t
               for i, t in enumerate(tensors)]  # fmt: skip
    flags = (case.delta_softplus, case.ordered)
    if name == "selective_scan_2d_backward":
        out, checkpoints = _library.op("selective_scan_2d")(*tensors, table, *flags)
        return torch.randn_like(out), *tensors, table, checkpoints, *flags
    if requires_grad:
        tensors = [None if value is None else value.detach().requires_grad_() for value in tensors]
    return *tensors, table, *flags


@pytest.mark.parametrize("layout", ["contiguous", "channels_strided", "sliced"])
@pytest.mark.parametrize("name", ["selective_scan_2d", "selective_scan_2d_fwd", "selective_scan_2d_backward"])
@pytest.mark.parametrize("case", CASES)
def test_opcheck(operators, name: str, layout: str, case: str) -> None:
    checks, dtypes = list(CHECKS), FLOATS
    if layout == "contiguous" and not left_out(operators, case == "shared map"):
        checks.append("test_aot_dispatch_dynamic")  # slow, and independent of dtype
        dtypes = [torch.float32]
    for dtype in dtypes[-1:] if operators.simulated else dtypes:
        arguments = operator_arguments(name, CASES[case], dtype, layout, requires_grad=name == "selective_scan_2d")
        torch.library.opcheck(_library.op(name), arguments, test_utils=checks)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_opcheck_of_nothing(operators, case: Case) -> None:
    for name in ("selective_scan_2d", "selective_scan_2d_fwd", "selective_scan_2d_backward"):
        arguments = operator_arguments(name, case, torch.float32, "contiguous")
        torch.library.opcheck(_library.op(name), arguments, test_utils=CHECKS)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_opcheck_of_gathering_and_merging(operators, dtype: torch.dtype) -> None:
    table = fgkernels.scan_table(2, 3, THREE, device=torch.get_default_device())
    x, y = torch.randn(2, 4, 6).to(dtype), torch.randn(2, 3, 4, 6).to(dtype)
    for layout in ("contiguous", "channels_strided"):
        for name, value in (("cross_scan", x), ("cross_merge", y)):
            arguments = lay_out(value, layout).requires_grad_(), table
            if operators.simulated:
                torch.library.opcheck(_library.op(name), arguments, test_utils=CHECKS)
            else:
                torch.library.opcheck(_library.op(name), arguments)


# --- torch.compile and torch.export -----------------------------------------------------------------------------------


class Block(nn.Module):
    """Gather and merge, and the scan over the map, with tables that a traced program computes from its size."""

    def __init__(self, channels: int = 3, states: int = 4) -> None:
        super().__init__()
        self.states, directions = states, len(THREE)
        self.A = nn.Parameter(-torch.rand(directions, channels, states))
        self.D = nn.Parameter(torch.randn(directions, channels))
        self.projection = nn.Conv2d(channels, directions * (channels + 2 * states), 1)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.projection(x).unflatten(1, (len(THREE), -1))
        delta, B, C = projected.split([x.shape[1], self.states, self.states], 2)
        y = fgkernels.selective_scan_2d(x, delta, self.A, B, C, self.D, x, None, True, directions=THREE)
        return y + fgkernels.cross_merge(fgkernels.cross_scan(x, THREE), THREE, size=x.shape[-2:])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_compile_once_for_all_sizes(operators, requires_grad: bool) -> None:
    """One graph, without breaks; with gradients it may be traced once more where a second chunk of 64 steps begins."""
    torch._dynamo.reset()
    block = Block().requires_grad_(requires_grad)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for i, (batch, height, width) in enumerate([(2, 5, 7), (3, 6, 4), (4, 7, 5) if requires_grad else (4, 9, 8)]):
        x = torch.randn(batch, 3, height, width, requires_grad=requires_grad)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            found = compiled(x)
        expected = block(x)
        torch.testing.assert_close(found, expected)
        if requires_grad:
            leaves = [x, *block.parameters()]
            pairs = zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in (found, expected)), strict=True)
            for value, truth in pairs:
                torch.testing.assert_close(value, truth)


def test_compile_with_inductor(operators) -> None:
    torch._dynamo.reset()
    block, x = Block(), torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(torch.compile(block, fullgraph=True)(x), block(x))


@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("strict", [False, True])
def test_export(operators, strict: bool, gradients: bool) -> None:
    """For any batch, height and width."""
    block = Block()
    dynamic = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(block, (torch.randn(3, 3, 4, 5),), dynamic_shapes=dynamic, strict=strict)
    for name in ("selective_scan_2d", "cross_scan", "cross_merge"):
        assert f"{_library.NAMESPACE}.{name}" in str(program.graph)
    for shape in ((3, 3, 4, 5), (2, 3, 9, 11)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), block(x))


def test_named_tables_do_not_leak_between_modes(operators) -> None:
    """Tables that were asked for inside inference mode, a compiled function and vmap serve training afterwards."""
    torch._dynamo.reset()
    block, x = Block(), torch.randn(2, 3, 6, 7)
    with torch.inference_mode():
        block(x)
    torch.compile(block, backend="aot_eager")(x)
    vmap(block)(x.unsqueeze(1))
    block(x.requires_grad_()).sum().backward()
    assert x.grad is not None


# --- torch.func -------------------------------------------------------------------------------------------------------

DIMS = {
    "maps": {"x": 0, "delta": 1, "B": 2, "C": 0, "z": 1},
    "x alone": {"x": 2},
    "everything": dict.fromkeys(TENSORS, 0),
    "parameters": {"A": 1, "D": 0},
    "delta alone": {"delta": 3},
}


@pytest.mark.parametrize("places", DIMS)
@pytest.mark.parametrize("form", ["shared map", "ordered"])
def test_vmap(operators, form: str, places: str) -> None:
    """Values, gradients per entry, and their sum, against a loop over the batch."""
    if left_out(operators, form == "ordered" and places == "maps"):
        return
    case = CASES[form]
    samples = [map_inputs(case) for _ in range(2)]
    dims = tuple(DIMS[places].get(name) for name in TENSORS)
    tensors = [
        samples[0][name] if dim is None else torch.stack([sample[name] for sample in samples], dim)
        for name, dim in zip(TENSORS, dims, strict=True)
    ]

    def function(*values: Tensor) -> Tensor:
        return call(fgkernels.selective_scan_2d, dict(zip(TENSORS, values, strict=True)), case)

    def loss(*values: Tensor) -> Tensor:
        return function(*values).square().sum()

    def entry(values: tuple[Tensor, ...], i: int) -> list[Tensor]:
        return [value if dim is None else value.select(dim, i) for value, dim in zip(values, dims, strict=True)]

    expected = torch.stack([function(*entry(tensors, i)) for i in range(2)])
    torch.testing.assert_close(vmap(function, dims)(*tensors), expected)
    every = tuple(range(len(TENSORS)))
    found = vmap(grad(loss, argnums=every), dims)(*tensors)
    per_entry = [grad(loss, argnums=every)(*entry(tensors, i)) for i in range(2)]
    for i, value in enumerate(found):
        torch.testing.assert_close(value, torch.stack([slopes[i] for slopes in per_entry]), rtol=1e-4, atol=1e-5)
    found = grad(lambda *values: vmap(loss, dims)(*values).sum(), argnums=every)(*tensors)
    expected = grad(lambda *values: sum(loss(*entry(values, i)) for i in range(2)), argnums=every)(*tensors)
    for value, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-5)


def test_vmap_of_gathering_and_merging(operators) -> None:
    x, y = torch.randn(5, 2, 3, 2, 3), torch.randn(2, 5, 3, 3, 6)
    found = vmap(lambda x: fgkernels.cross_scan(x, THREE))(x)
    assert torch.equal(found, torch.stack([fgkernels.cross_scan(one, THREE) for one in x]))
    found = vmap(lambda y: fgkernels.cross_merge(y, THREE, size=(2, 3)), 1)(y)
    expected = torch.stack([fgkernels.cross_merge(y[:, i], THREE, size=(2, 3)) for i in range(5)])
    assert torch.equal(found, expected)
    tables = torch.stack([fgkernels.scan_table(2, 3, THREE), fgkernels.scan_table(2, 3, ("a", "v", "h_flip"))])
    found = vmap(lambda table: fgkernels.cross_scan(x[0], table=table))(tables.to(x.device))
    assert torch.equal(found, torch.stack([fgkernels.cross_scan(x[0], table=table) for table in tables.to(x.device)]))


def test_second_derivatives_are_refused(operators) -> None:
    case = Case(directions=THREE)
    inputs = map_inputs(case)
    leaf = inputs["x"].requires_grad_()
    (gradient,) = torch.autograd.grad(call(fgkernels.selective_scan_2d, inputs, case).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="selective_scan_2d: second derivatives are not supported"):
        gradient.sum().backward()
