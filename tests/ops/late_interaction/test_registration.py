# SPDX-License-Identifier: Apache-2.0
"""What torch's transformations see of the operators: opcheck, compile, export, decompositions, autocast, forward AD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fgkernels
from fgkernels.ops import _library
from fgkernels.reference import late_interaction as reference

from .cases import FLOATS, eager_maxsim, masks, names, tokens

pytestmark = pytest.mark.compiled

SIZES = {"usual": (3, 5, 4, 7, 8), "empty": (2, 0, 3, 0, 4), "one": (1, 1, 1, 1, 1)}


def _noncontiguous(value: Tensor) -> Tensor:
    return value.transpose(-1, -2).contiguous().transpose(-1, -2)


def operator_arguments(name: str, sizes: tuple[int, ...], dtype: torch.dtype, dense: bool, int8: bool) -> list:
    """Arguments of one operator, masks included, in every form it has: one list per form."""
    query_count, query_length, document_count, document_length, dim = sizes
    place = (lambda value: value) if dense else _noncontiguous
    queries = place(tokens((query_count, query_length, dim), dtype))
    query_mask = masks((query_count, query_length))
    forms = []
    if name.startswith("late_interaction"):
        documents = place(tokens((document_count, document_length, dim), dtype))
        arguments = (queries, documents, query_mask, masks((document_count, document_length)))
        if "backward" in name:
            ab, ba, *alignments = _library.op("late_interaction")(*arguments, True, False)
            return [[ab, ba, *arguments, *alignments, True]]
        return [[*arguments, mean, not mean] for mean in (False, True)]
    if name.startswith("maxsim_varlen"):
        queries = queries.flatten(0, 1)
        documents = place(tokens((document_count, document_length, dim), dtype)).flatten(0, 1)
        places = [torch.arange(n + 1) * k for n, k in ((query_count, query_length), (document_count, document_length))]
        documents, scales = fgkernels.quantize_documents(documents) if int8 else (documents, None)
        for paired in (False, True):
            if paired:
                places[1] = torch.cat([places[1][:1].expand(query_count), places[1][-1:]])
            arguments = (queries, documents, *places, scales)
            if "backward" in name:
                scores, alignment = _library.op("maxsim_varlen")(*arguments, True, paired)
                forms.append([scores, *arguments, alignment, True, paired])
            else:
                forms.append([*arguments, paired, paired])
        return forms
    for shape in ((document_count, document_length), (query_count, document_length), (query_count, 2, document_length)):
        paired = shape[0] == query_count
        documents, scales = place(tokens((*shape, dim), dtype)), None
        if int8:
            documents, scales = fgkernels.quantize_documents(documents)
        arguments = (queries, documents, query_mask, masks(shape), scales)
        if "backward" in name:
            scores, alignment = _library.op("maxsim")(*arguments, True, False, paired)
            forms.append([scores, queries, documents, query_mask, scales, alignment, True, paired])
        else:
            forms.append([*arguments, paired, not paired, paired])
    return forms


FORWARD = ["maxsim", "maxsim_fwd", "maxsim_varlen", "maxsim_varlen_fwd", "late_interaction", "late_interaction_fwd"]
BACKWARD = [
    "maxsim_backward_queries", "maxsim_backward_documents", "maxsim_varlen_backward_queries",
    "maxsim_varlen_backward_documents", "late_interaction_backward_a", "late_interaction_backward_b",
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dense", [True, False], ids=["contiguous", "noncontiguous"])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8], ids=names)
@pytest.mark.parametrize("name", FORWARD + BACKWARD)
def test_opcheck(operators, name: str, dtype: torch.dtype, dense: bool, sizes: str) -> None:
    """Schema, fake kernel with strides, autograd registration and AOT dispatch with dynamic shapes."""
    int8 = dtype == torch.int8
    if int8 and (name.startswith("late_interaction") or name.endswith("backward_documents")):
        return  # these take no int8, which test_errors and test_int8 check
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if sizes == "usual" and dense and dtype in (torch.float32, torch.int8):
        checks.append("test_aot_dispatch_dynamic")  # slow, and independent of dtype
    for arguments in operator_arguments(name, SIZES[sizes], torch.float32 if int8 else dtype, dense, int8):
        if name in ("maxsim", "maxsim_varlen", "late_interaction"):
            arguments = [
                value.detach().requires_grad_()
                if isinstance(value, Tensor) and i < 2 and value.is_floating_point()
                else value
                for i, value in enumerate(arguments)
            ]
        torch.library.opcheck(_library.op(name), tuple(arguments), test_utils=checks)


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["maxsim", "late_interaction", "maxsim_varlen"])
def test_compile_once_for_all_sizes(operators, name: str, masked: bool, requires_grad: bool) -> None:
    """One graph without breaks, values and gradients of eager, and no recompilation for a new size."""
    torch._dynamo.reset()

    def function(queries: Tensor, documents: Tensor, *rest: Tensor) -> Tensor:
        scores = getattr(fgkernels, name)(queries, documents, *rest)
        return (sum(scores) if isinstance(scores, tuple) else scores) * 2

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for i, (a, n, b, m) in enumerate([(3, 5, 7, 9), (6, 2, 13, 10), (7, 11, 5, 3)]):
        queries, documents = tokens((a, n, 24)), tokens((b, m, 24))
        rest = (masks((a, n)), masks((b, m))) if masked else ()
        if name == "maxsim_varlen":
            queries, documents = tokens((a * n, 24)), tokens((b * m, 24))
            rest = torch.arange(a + 1) * n, torch.arange(b + 1) * m
        queries.requires_grad_(requires_grad), documents.requires_grad_(requires_grad)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            scores = compiled(queries, documents, *rest)
        expected = function(queries, documents, *rest)
        assert torch.equal(scores, expected)
        if requires_grad:
            found = torch.autograd.grad(scores.square().sum(), (queries, documents))
            truth = torch.autograd.grad(expected.square().sum(), (queries, documents))
            assert all(torch.equal(value, other) for value, other in zip(found, truth, strict=True))


def test_compile_with_inductor(operators) -> None:
    torch._dynamo.reset()
    values, scales = fgkernels.quantize_documents(tokens((4, 7, 8)))

    def function(queries: Tensor) -> Tensor:
        return fgkernels.maxsim(queries.sin(), values, document_scales=scales).softmax(-1)

    queries = tokens((3, 5, 8))
    torch.testing.assert_close(torch.compile(function, fullgraph=True)(queries), function(queries))


def test_backend_is_chosen_at_trace_time(operators) -> None:
    """The context manager works inside and around a compiled function; leaving it recompiles, nothing goes stale."""
    torch._dynamo.reset()
    graphs = []

    def collect(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    def inside(queries: Tensor, documents: Tensor) -> Tensor:
        with fgkernels.backend("reference"):
            first = fgkernels.maxsim(queries, documents)
        return first + fgkernels.maxsim(queries, documents)

    queries, documents = tokens((3, 5, 8)), tokens((4, 7, 8))
    scores = torch.compile(inside, fullgraph=True, backend=collect)(queries, documents)
    torch.testing.assert_close(scores, 2 * reference.maxsim(queries, documents))
    assert graphs[0].count(f"{_library.NAMESPACE}.maxsim_fwd") == 1 and "einsum" in graphs[0]
    compiled = torch.compile(fgkernels.maxsim, fullgraph=True, backend=collect)
    with fgkernels.backend("reference"):
        compiled(queries, documents)
    compiled(queries, documents)
    assert _library.NAMESPACE not in graphs[1] and _library.NAMESPACE in graphs[2]


@pytest.mark.parametrize("name", ["maxsim", "late_interaction", "maxsim_varlen"])
def test_reference_compiles_in_one_graph(name: str) -> None:
    """It serves any device, so it must trace as well as the operators do."""
    torch._dynamo.reset()
    compiled = torch.compile(getattr(fgkernels, name), fullgraph=True, dynamic=True, backend="aot_eager")
    with fgkernels.backend("reference"):
        for i, (a, n, b, m) in enumerate([(3, 5, 7, 9), (6, 2, 13, 10)]):
            arguments = tokens((a, n, 24)), tokens((b, m, 24)), masks((a, n)), masks((b, m))
            if name == "maxsim_varlen":
                places = torch.arange(a + 1) * n, torch.arange(b + 1) * m
                arguments = tokens((a * n, 24)), tokens((b * m, 24)), *places
            with torch._dynamo.config.patch(error_on_recompile=i > 0):
                found = compiled(*arguments)
            torch.testing.assert_close(found, getattr(fgkernels, name)(*arguments))


# --- torch.export -----------------------------------------------------------------------------------------------------


class EveryOperator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.documents = nn.Parameter(tokens((4, 7, 8)))
        values, scales = fgkernels.quantize_documents(self.documents)
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.register_buffer("mask", masks((4, 7)))
        self.register_buffer("offsets", torch.tensor([0, 10, 10, 28]))

    def forward(self, queries: Tensor, query_offsets: Tensor) -> tuple[Tensor, ...]:
        packed = queries.flatten(0, 1)
        return (
            *fgkernels.maxsim(queries, self.documents, None, self.mask, padding="zero", return_alignment=True),
            fgkernels.maxsim(queries, self.values, document_scales=self.scales, reduction="mean"),
            *fgkernels.late_interaction(queries, self.documents, None, self.mask, return_alignment=True),
            *fgkernels.maxsim_varlen(
                packed, self.documents.flatten(0, 1), query_offsets, self.offsets, return_alignment=True
            ),
        )


@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("strict", [False, True])
def test_export_and_decompose(operators, strict: bool, gradients: bool) -> None:
    """The exported program holds our operators for any size; decomposed, it holds none and gives the same."""
    model = EveryOperator()
    shapes = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}, {0: torch.export.Dim.AUTO})
    with torch.set_grad_enabled(gradients):
        exported = torch.export.export(
            model, (tokens((3, 5, 8)), torch.tensor([0, 4, 15])), dynamic_shapes=shapes, strict=strict
        )
    assert f"{_library.NAMESPACE}.maxsim" in str(exported.graph)
    decomposed = exported.run_decompositions(fgkernels.export.decompositions())
    assert _library.NAMESPACE not in str(decomposed.graph)
    for count, length in ((3, 5), (6, 11)):
        arguments = tokens((count, length, 8)), torch.tensor([0, 1, 2, count * length])
        expected = model(*arguments)
        for program in (exported, decomposed):
            for value, truth in zip(program.module()(*arguments), expected, strict=True):
                torch.testing.assert_close(value, truth)


def test_every_forward_operator_has_a_decomposition(operators) -> None:
    table = fgkernels.export.decompositions()
    assert set(table) >= {_library.op(name) for name in FORWARD}
    for name in FORWARD:
        for int8 in (False, True):
            if int8 and name.startswith("late"):
                continue
            for arguments in operator_arguments(name, SIZES["usual"], torch.float32, True, int8):
                ours, theirs = _library.op(name)(*arguments), table[_library.op(name)](*arguments)
                pairs = [(ours, theirs)] if isinstance(ours, Tensor) else zip(ours, theirs, strict=True)
                for value, truth in pairs:
                    assert value.dtype == truth.dtype and value.shape == truth.shape
                    torch.testing.assert_close(value, truth)


# --- autocast ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=names)
def test_autocast(served, dtype: torch.dtype) -> None:
    """Tokens are cast as matmul's would be, to the region's dtype; scores and gradients stay float32."""
    queries, documents = tokens((3, 5, 8)), tokens((4, 7, 8))
    truth = reference.maxsim(queries.to(dtype), documents.to(dtype))
    truth_both = reference.late_interaction(queries.to(dtype), documents.to(dtype))
    places = torch.tensor([0, 15]), torch.tensor([0, 20, 28])
    packed = queries.flatten(0, 1), documents.flatten(0, 1)
    truth_varlen = reference.maxsim_varlen(*(value.to(dtype) for value in packed), *places)
    values, scales = fgkernels.quantize_documents(documents)
    truth_int8 = reference.maxsim(queries.to(dtype), values, document_scales=scales)
    leaf = queries.clone().requires_grad_()
    with torch.autocast(served.device, dtype=dtype):
        scores = fgkernels.maxsim(queries, documents)
        scores_int8 = fgkernels.maxsim(queries, values, document_scales=scales)
        both = fgkernels.late_interaction(queries, documents)
        varlen = fgkernels.maxsim_varlen(*packed, *places)
        mixed = fgkernels.maxsim(queries, documents.to(dtype))
        (gradient,) = torch.autograd.grad(fgkernels.maxsim(leaf, documents).sum(), leaf)
        wide = fgkernels.maxsim(queries.double(), documents.double())
    torch.testing.assert_close(scores, truth)
    torch.testing.assert_close(mixed, truth)
    torch.testing.assert_close(scores_int8, truth_int8)
    torch.testing.assert_close(both, truth_both)
    torch.testing.assert_close(varlen, truth_varlen)
    assert not torch.equal(scores, fgkernels.maxsim(queries, documents)), "nothing was cast"
    assert scores.dtype == gradient.dtype == torch.float32 and wide.dtype == torch.float64
    half = queries.to(dtype).requires_grad_()
    (expected,) = torch.autograd.grad(reference.maxsim(half, documents.to(dtype)).sum(), half)
    torch.testing.assert_close(gradient, expected.float(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_autocast_of_the_operators(operators) -> None:
    """Callers of torch.ops get it too, and so do compiled functions, inside and around."""
    queries, documents = tokens((3, 5, 8)), tokens((4, 7, 8))
    truth = reference.maxsim(queries.bfloat16(), documents.bfloat16())

    def inside(queries: Tensor, documents: Tensor) -> Tensor:
        with torch.autocast(operators.device, dtype=torch.bfloat16):
            return fgkernels.maxsim(queries, documents)

    with torch.autocast(operators.device, dtype=torch.bfloat16):
        torch.testing.assert_close(_library.op("maxsim_fwd")(queries, documents, *[None] * 3, *[False] * 3), truth)
        torch.testing.assert_close(_library.op("maxsim")(queries, documents, *[None] * 3, *[False] * 3)[0], truth)
        around = torch.compile(fgkernels.maxsim, fullgraph=True, backend="aot_eager")(queries, documents)
    torch.testing.assert_close(around, truth)
    compiled = torch.compile(inside, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(queries, documents), truth)
    leaf = queries.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(leaf, documents).sum(), leaf)
    assert torch.equal(gradient, torch.autograd.grad(inside(leaf, documents).sum(), leaf)[0])


def test_autocast_of_gpus_is_registered() -> None:
    """Also without a GPU at hand: the dispatch table has the kernels."""
    for name in FORWARD:
        qualified = f"{_library.NAMESPACE}::{name}"
        for key in ("AutocastCPU", "AutocastCUDA", "AutocastXPU"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key)


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_forward_mode_and_hessian() -> None:
    """Forward-mode derivatives take the reference, which has them, rather than dropping the tangent."""
    queries, documents, tangent = tokens((2, 3, 4)), tokens((3, 5, 4)), tokens((2, 3, 4))
    ours = torch.func.jvp(lambda q: fgkernels.maxsim(q, documents), (queries,), (tangent,))
    truth = torch.func.jvp(lambda q: eager_maxsim(q, documents), (queries,), (tangent,))
    for value, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(value, expected)
    ours = torch.func.hessian(lambda q: fgkernels.late_interaction(q, documents)[0].square().sum())(queries)
    truth = torch.func.hessian(lambda q: (eager_maxsim(q, documents) / 3).square().sum())(queries)
    torch.testing.assert_close(ours, truth)


def test_chosen_back_ends_refuse_forward_mode(operators) -> None:
    queries, documents, tangent = tokens((2, 3, 4)), tokens((3, 5, 4)), tokens((2, 3, 4))
    with pytest.raises(RuntimeError, match=f'back end "{operators.backend}" has no forward-mode'):
        torch.func.jvp(lambda q: fgkernels.maxsim(q, documents), (queries,), (tangent,))


def test_fast_path_only_without_gradients(operators, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients the operator that keeps no indices runs, with them the differentiable one."""
    from fgkernels.ops import late_interaction as module

    called = []
    for name in ("_maxsim", "_maxsim_fwd", "_late_interaction", "_late_interaction_fwd"):
        operator = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, n=name, op=operator: (called.append(n), op(*args))[1])
    queries, documents = tokens((2, 3, 4)), tokens((3, 5, 4))
    leaf = queries.clone().requires_grad_()
    fgkernels.maxsim(queries, documents), fgkernels.late_interaction(queries, documents)
    with torch.no_grad():
        fgkernels.maxsim(leaf, documents)
    assert called == ["_maxsim_fwd", "_late_interaction_fwd", "_maxsim_fwd"]
    assert fgkernels.maxsim(leaf, documents).requires_grad
    assert fgkernels.late_interaction(documents, leaf)[1].requires_grad
    fgkernels.maxsim(queries, documents, return_alignment=True)
    assert called[3:] == ["_maxsim", "_late_interaction", "_maxsim"]


def test_meta_tensors_give_shapes(served) -> None:
    """On the meta device, where no back end but the reference is at home, shapes come out without computing."""
    if served.backend != "reference":
        with pytest.raises(RuntimeError, match=f'back end "{served.backend}" was asked for, but it serves c.* only'):
            fgkernels.maxsim(tokens((3, 5, 8)).to("meta"), tokens((4, 7, 8)).to("meta"))
        return
    assert fgkernels.maxsim(tokens((3, 5, 8)).to("meta"), tokens((4, 7, 8)).to("meta")).shape == (3, 4)
