# SPDX-License-Identifier: Apache-2.0
"""Kernels that stand in for the default ones while their back end is chosen: nesting, threads, compiled programs."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fgkernels
from fgkernels import _backend
from fgkernels.ops import _kernels, _library

pytestmark = pytest.mark.compiled

QUERIES, DOCUMENTS = torch.randn(2, 3, 4), torch.randn(5, 6, 4)


@pytest.fixture(params=["triton", "cuda-emulated"])
def stand_in(request: pytest.FixtureRequest) -> str:
    reason = _backend._refusal(request.param, "cpu")
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which stand-in ran each operator so far, as "triton: maxsim_fwd"; the C++ kernels of the CPU leave no entry."""
    entries: list[str] = []
    find = _kernels._find

    def spy(backend: str, family: str, operator: str, device_type: str) -> Callable:
        entries.append(f"{backend}: {operator}")
        return find(backend, family, operator, device_type)

    monkeypatch.setattr(_kernels, "_find", spy)
    return entries


def maxsim() -> Tensor:
    scores = fgkernels.maxsim(QUERIES, DOCUMENTS)
    truth = fgkernels.reference.late_interaction.maxsim(QUERIES, DOCUMENTS)
    torch.testing.assert_close(scores, truth)
    return scores


def test_nothing_is_chosen_at_first() -> None:
    assert not _backend.forced() and _backend._stand_in is None and _backend.native_cpu == "cpu"


def test_nests_and_survives_errors(stand_in: str, calls: list[str]) -> None:
    """Each level gets its own back end, and leaving one brings the one around it back."""
    before = maxsim()
    with fgkernels.backend(stand_in):
        maxsim()
        with fgkernels.backend("cpu"):
            assert torch.equal(maxsim(), before) and len(calls) == 1
            with pytest.raises(KeyError), fgkernels.backend("reference"):
                maxsim()
                raise KeyError
            maxsim()
            assert len(calls) == 1
        with pytest.raises(KeyError), fgkernels.backend(stand_in):
            raise KeyError
        maxsim()
    assert torch.equal(maxsim(), before)
    assert calls == [f"{stand_in}: maxsim_fwd"] * 2
    assert not _backend.forced()


def test_one_stand_in_inside_another(calls: list[str]) -> None:
    for name in ("triton", "cuda-emulated"):
        reason = _backend._refusal(name, "cpu")
        if reason is not None:
            pytest.skip(reason)
    with fgkernels.backend("triton"):
        with fgkernels.backend("cuda-emulated"):
            maxsim()
        maxsim()
    maxsim()
    assert calls == ["cuda-emulated: maxsim_fwd", "triton: maxsim_fwd"]


def test_one_object_entered_twice(stand_in: str, calls: list[str]) -> None:
    chosen = fgkernels.backend(stand_in)
    with chosen, chosen:
        with fgkernels.backend("cpu"), chosen:
            maxsim()
        maxsim()
    maxsim()
    assert len(calls) == 2


def test_the_choice_is_the_process_s(stand_in: str, calls: list[str]) -> None:
    """Other threads see it; contexts that threads leave in another order than they entered end up clean."""
    with fgkernels.backend(stand_in):
        thread = threading.Thread(target=maxsim)
        thread.start(), thread.join()
    assert len(calls) == 1
    first, second = fgkernels.backend(stand_in), fgkernels.backend("reference")
    first.__enter__(), second.__enter__()
    first.__exit__(), maxsim()
    assert len(calls) == 1 and _backend._forced == "reference"
    second.__exit__(), maxsim()
    assert len(calls) == 1 and not _backend.forced() and _backend._stand_in is None


def test_no_warning(stand_in: str) -> None:
    """torch warns of overridden kernels, which here is no accident."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fgkernels.backend(stand_in):
            maxsim()


def test_backward_runs_on_the_back_end_of_its_time(stand_in: str, calls: list[str]) -> None:
    """Both keep the same alignment, so each may finish what the other began."""
    expected = torch.autograd.grad(fgkernels.maxsim(leaf := QUERIES.clone().requires_grad_(), DOCUMENTS).sum(), leaf)[0]
    with fgkernels.backend(stand_in):
        scores = fgkernels.maxsim(leaf, DOCUMENTS)
    torch.testing.assert_close(torch.autograd.grad(scores.sum(), leaf)[0], expected)
    scores = fgkernels.maxsim(leaf, DOCUMENTS)
    with fgkernels.backend(stand_in):
        torch.testing.assert_close(torch.autograd.grad(scores.sum(), leaf)[0], expected)
    assert calls == [f"{stand_in}: maxsim", f"{stand_in}: maxsim_backward_queries"]


# --- compiled and exported programs -----------------------------------------------------------------------------------


def test_compiled_functions_follow_the_choice(stand_in: str, calls: list[str]) -> None:
    """Operators in the graph are served by whoever is chosen when they run, also in the backward pass."""
    torch._dynamo.reset()
    compiled = torch.compile(fgkernels.maxsim, fullgraph=True, backend="aot_eager")
    leaf = QUERIES.clone().requires_grad_()
    expected = fgkernels.maxsim(QUERIES, DOCUMENTS)
    for names, count in (((), 0), ((stand_in,), 2), ((stand_in, "cpu"), 0), (("reference",), 0), ((stand_in,), 2)):
        calls.clear()
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(fgkernels.backend(name))
            scores = compiled(leaf, DOCUMENTS)
            torch.autograd.grad(scores.sum(), leaf)
        torch.testing.assert_close(scores, expected)
        assert len(calls) == count


def test_reference_inside_a_compiled_function(stand_in: str, calls: list[str]) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def function(queries: Tensor) -> Tensor:
        with fgkernels.backend("reference"):
            first = fgkernels.maxsim(queries, DOCUMENTS)
        return first + fgkernels.maxsim(queries, DOCUMENTS)

    for count in (1, 2):
        with fgkernels.backend(stand_in):
            torch.testing.assert_close(function(QUERIES), 2 * maxsim())
            assert _backend._forced == _backend.native_cpu == stand_in
        assert calls == [f"{stand_in}: maxsim_fwd"] * (2 * count)
    torch.testing.assert_close(function(QUERIES), 2 * maxsim())
    assert len(calls) == 4 and not _backend.forced() and _backend.native_cpu == "cpu"


def test_stand_in_inside_a_compiled_function(stand_in: str, calls: list[str]) -> None:
    """The graph would run after the context is left: one graph is refused, and otherwise the graph is broken there."""

    def function(queries: Tensor) -> Tensor:
        with fgkernels.backend(stand_in):
            return fgkernels.maxsim(queries.clone(), DOCUMENTS)

    torch._dynamo.reset()
    with pytest.raises(Exception, match="enter it around the call of the compiled function"):
        torch.compile(function, fullgraph=True, backend="eager")(QUERIES)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(function, backend="eager")(QUERIES), maxsim())
    assert calls == [f"{stand_in}: maxsim_fwd"] and not _backend.forced()
    with fgkernels.backend(stand_in):  # chosen already: nothing to put in place
        torch.testing.assert_close(torch.compile(function, fullgraph=True, backend="eager")(QUERIES), maxsim())


class Inside(nn.Module):
    def forward(self, queries: Tensor) -> Tensor:
        with fgkernels.backend("triton"):
            return fgkernels.maxsim(queries, DOCUMENTS)


class Around(nn.Module):
    def forward(self, queries: Tensor) -> Tensor:
        return fgkernels.maxsim(queries, DOCUMENTS)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs(stand_in: str, calls: list[str], strict: bool) -> None:
    """A program holds operators, whoever was chosen when it was exported; they follow the choice when it runs."""
    with pytest.raises(Exception, match="enter it around the call of the compiled function"):
        torch.export.export(Inside(), (QUERIES,), strict=strict)
    assert not _backend.forced()
    with fgkernels.backend(stand_in):
        program = torch.export.export(Around(), (QUERIES,), strict=strict).module()
    calls.clear()
    torch.testing.assert_close(program(QUERIES), maxsim())
    assert calls == []
    with fgkernels.backend(stand_in):
        torch.testing.assert_close(program(QUERIES), fgkernels.reference.late_interaction.maxsim(QUERIES, DOCUMENTS))
    assert calls == [f"{stand_in}: maxsim_fwd"]


# --- devices that are not at hand -------------------------------------------------------------------------------------


class Recorder(TorchDispatchMode):
    """Names of the operators that a call on fake tensors reaches."""

    def __enter__(self) -> Recorder:
        self.names: list[str] = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def reached(device: str) -> list[str]:
    with FakeTensorMode(), Recorder() as recorder:
        queries, documents = torch.empty(2, 3, 4, device=device), torch.empty(5, 6, 4, device=device)
        scores = fgkernels.maxsim(queries, documents)
    assert scores.shape == (2, 5) and scores.device.type == device
    return recorder.names


@pytest.fixture
def torch_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch were built with CUDA, which decides, not whether there is a GPU."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_backend, "_served", {})


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_gpu_tensors_go_to_the_operators(device: str, torch_with_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device has kernels; else to the reference. Entering the reference takes them there too."""
    monkeypatch.setattr("fgkernels.triton.refusal", lambda: None)
    assert f"{_library.NAMESPACE}::maxsim_fwd" in reached(device)
    with fgkernels.backend("reference"):
        assert not any(_library.NAMESPACE in name for name in reached(device))
    monkeypatch.setattr("fgkernels.triton.refusal", lambda: "it is not installed")
    monkeypatch.setattr(_library, "CUDA_ERROR", "this build has no CUDA library")
    _backend._served.clear()
    assert not any(_library.NAMESPACE in name for name in reached(device))
    with pytest.raises(RuntimeError, match='backend\\("triton"\\): it is not installed'):
        fgkernels.backend("triton")


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_other_devices_go_to_the_reference(device: str) -> None:
    assert not any(_library.NAMESPACE in name for name in reached(device))


def test_rocm_prefers_triton(torch_with_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its device is called cuda too, and CUDA's library isn't for it."""
    monkeypatch.setattr("fgkernels.triton.refusal", lambda: None)
    monkeypatch.setattr(_library, "CUDA_ERROR", None)
    assert _backend.resolve("maxsim", "cuda") == "cuda"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _library._load_cuda() == f"torch {torch.__version__} is built for ROCm"


def test_every_operator_has_a_kernel_for_gpus() -> None:
    """C++ or Triton; where Triton cannot serve, calling it says why."""
    for family in _backend._families.values():
        for operator in family.operators:
            for key in ("CPU", "CUDA", "XPU"):
                assert _library.has_kernel(operator, key)


def test_reasons_reach_callers_of_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgkernels.triton.refusal", lambda: "it is not installed")
    monkeypatch.setattr(_library, "CUDA_ERROR", "this build has no CUDA library")
    with pytest.raises(RuntimeError, match=r'maxsim: back end "triton" cannot serve cuda tensors: it is not installed; '
                                           "the compiled CUDA kernels: this build has no CUDA library"):  # fmt: skip
        _kernels._find("triton", "late_interaction", "maxsim", "cuda")


def test_tensors_on_different_devices() -> None:
    """The message names the argument that lies elsewhere, from the functions and from a dispatcher entry."""
    elsewhere = DOCUMENTS.to("meta")
    with pytest.raises(ValueError, match="documents: expected device cpu like queries, got meta"):
        fgkernels.maxsim(QUERIES, elsewhere)
    with pytest.raises(ValueError, match="b: expected device cpu like a, got meta"):
        fgkernels.late_interaction(QUERIES, elsewhere)
    offsets = torch.tensor([0, 3]), torch.tensor([0, 6])
    with pytest.raises(ValueError, match="documents: expected device cpu like queries, got meta"):
        fgkernels.maxsim_varlen(QUERIES[0], elsewhere[0], *offsets)
    kernel = _kernels._kernel("triton", "late_interaction", "maxsim_fwd")
    mask = torch.ones(5, 6, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError, match="document_mask: expected device cpu like queries, got meta"):
        kernel(QUERIES, DOCUMENTS, None, mask, None, False, False, False)
    with pytest.raises(TypeError, match="documents: expected a Tensor, got None"):
        kernel(QUERIES, None, None, None, None, False, False, False)


def test_describe() -> None:
    """Who serves whom, who else could, and why the rest cannot."""
    rows = {(row.op, row.device): row for row in _backend.describe()}
    for op in ("maxsim", "late_interaction", "maxsim_varlen"):
        row = rows[op, "cpu"]
        assert row.backend == "cpu" and "reference" in row.on_request
        assert {*row.on_request, *row.refused} == {"cuda-emulated", "triton", "reference"}
        row = rows[op, "cuda"]
        assert {row.backend, *row.on_request, *row.refused} == {"cuda", "triton", "reference"}
        if torch.version.cuda is None and torch.version.hip is None:
            reason = f"torch {torch.__version__} is built without CUDA"
            assert row.backend == "reference" and row.refused == {"cuda": reason, "triton": reason}
    with fgkernels.backend("reference"):
        assert {row.backend for row in _backend.describe()} == {"reference"}
        assert "cpu" in _backend.describe()[0].on_request
