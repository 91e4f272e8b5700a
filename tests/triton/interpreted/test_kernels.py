# SPDX-License-Identifier: Apache-2.0
"""What the operators' tests cannot see: the tiles and configurations of a GPU, in the interpreter."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

import fgkernels.triton
from fgkernels.ops import _library
from fgkernels.reference import late_interaction as reference

from .calls import expected, make_case, run

FORMS = ["all_pairs", "paired", "rerank", "late_interaction", "varlen", "varlen paired"]


@pytest.fixture
def kernels(interpreter: None) -> dict:
    from fgkernels.triton.late_interaction import KERNELS

    return KERNELS


@pytest.fixture
def gpu_plan(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of the sizes that a GPU gets, so that samples take several and several samples share one."""
    from fgkernels.triton import _late_interaction_plan

    monkeypatch.setattr(_late_interaction_plan, "INTERPRETED", False)


def use_configuration(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Every kernel takes its configuration of this number (or the last it has) where it suits the arguments."""
    from fgkernels.triton import _late_interaction_backward as backward
    from fgkernels.triton import _late_interaction_forward as forward

    for kernel in (forward.match, forward.reduce, backward.gather, backward.scatter):

        def blocks(named: dict, kernel=kernel) -> dict:
            fitting = kernel.fitting(named, 227 * 1024, False)
            return dict(fitting[min(number, len(fitting) - 1)].kwargs)

        monkeypatch.setattr(kernel, "interpreter_blocks", blocks)


def test_one_function_per_operator(kernels: dict) -> None:
    """With the schema's arguments in the schema's order."""
    if not _library.LOADED:
        pytest.skip(str(_library.ERROR))
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fgkernels::")}
    family = {name.split(".")[0] for name in names if name.startswith(("maxsim", "late_interaction"))}
    assert set(kernels) == family
    for name, function in kernels.items():
        schema = _library.op(name)._schema
        assert list(inspect.signature(function).parameters) == [argument.name for argument in schema.arguments]


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("form", FORMS)
def test_gpu_tiles(kernels: dict, gpu_plan: None, monkeypatch: pytest.MonkeyPatch, form: str, masked: bool) -> None:
    """Exact arithmetic with many ties: scores, alignments and gradients are the reference's."""
    use_configuration(monkeypatch, 0)
    for dtype in (torch.float32, torch.bfloat16):
        case = make_case(form, dtype, exact=True, masked=masked)
        zero = masked and dtype == torch.bfloat16
        for value, truth in zip(run(kernels, case, zero), expected(case, zero), strict=True):
            assert torch.equal(value.double(), truth.to(value.dtype).double())


@pytest.mark.parametrize("lengths", [(5, 7), (20, 40), (70, 33), (129, 64)], ids=str)
def test_gpu_tiles_of_other_lengths(kernels: dict, gpu_plan: None, monkeypatch: pytest.MonkeyPatch, lengths) -> None:
    """Two-way similarity: several samples in a tile, a sample in several tiles, and rows from the other side."""
    use_configuration(monkeypatch, 1)
    for n, m in (lengths, lengths[::-1]):
        case = make_case("late_interaction", torch.float16, exact=True, masked=True, n=n, m=m)
        for value, truth in zip(run(kernels, case, mean=False), expected(case), strict=True):
            assert torch.equal(value.double(), truth.to(value.dtype).double())


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("form", ["all_pairs", "late_interaction", "varlen"])
def test_every_configuration(
    kernels: dict, gpu_plan: None, monkeypatch: pytest.MonkeyPatch, form: str, number: int
) -> None:
    """The same scores, alignment and gradients, to the bit: sums of multiples of 1/4096 are exact in any order."""
    use_configuration(monkeypatch, number)
    dtype = torch.float16 if number % 2 else torch.float32
    case = make_case(form, dtype, exact=True, masked=form != "varlen", n=130, m=70)
    case = case._replace(**{side: (torch.randint(-64, 65, getattr(case, side).shape) / 64).to(dtype) for side in "ab"})
    for value, truth in zip(run(kernels, case), expected(case), strict=True):
        assert torch.equal(value.double(), truth.to(value.dtype).double())


def test_long_calls_run_in_parts(kernels: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little scratch memory changes nothing."""
    from fgkernels.triton import _late_interaction_calls as calls

    for form in FORMS:
        case = make_case(form, torch.float32, exact=False, masked=not form.startswith("varlen"), n=9, m=11)
        whole = run(kernels, case)
        with monkeypatch.context() as patch:
            patch.setattr(calls, "SCRATCH_BYTES", 1)
            assert all(torch.equal(one, two) for one, two in zip(whole, run(kernels, case), strict=True))


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_reduction_of_the_gpu_keeps_nan(kernels: dict, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """The interpreter has a whole-array form of the maximum; here it takes the GPU's, element by element."""
    from fgkernels.triton import _late_interaction_calls as calls

    monkeypatch.setattr(calls, "INTERPRETED", False)
    a, b = torch.randint(-2, 3, (2, 7, 4)).float(), torch.randint(-2, 3, (2, 9, 4)).float()
    a[0, 2, 1] = b[1, 3, 0] = b[1, 6, 2] = value
    b[0] = -math.inf
    a_mask, b_mask = torch.rand(2, 7) < 0.8, torch.rand(2, 9) < 0.8
    ours = kernels["late_interaction"](a, b, a_mask, b_mask, False, True)
    truth = reference.late_interaction_core(a, b, a_mask, b_mask, False, True)
    for found, wanted in zip(ours, truth, strict=True):
        torch.testing.assert_close(found.to(wanted.dtype), wanted, equal_nan=True)


@pytest.mark.parametrize("form", ["all_pairs", "late_interaction"])
def test_float64_products_of_the_gpu(kernels: dict, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """On a GPU the documents' float64 gradient is summed without tl.dot."""
    from fgkernels.triton import _late_interaction_calls as calls

    monkeypatch.setattr(calls, "INTERPRETED", False)
    case = make_case(form, torch.float64, exact=True, masked=True, n=5, m=4)
    for value, truth in zip(run(kernels, case), expected(case), strict=True):
        assert torch.equal(value, truth)


def test_float16_weights_of_any_size(kernels: dict) -> None:
    """Weights of the gradient that float16 cannot hold, with gradients that it can."""
    queries, documents = torch.randn(3, 5, 8), torch.randn(4, 6, 8)
    for size, scale in ((1e-7, 2e3), (3e5, 1e-4)):
        q, d = (queries * scale).half(), documents.half()
        scores, alignment = kernels["maxsim"](q, d, None, None, None, False, False, False)
        grad = torch.randn(scores.shape) * size
        ours = kernels["maxsim_backward_documents"](grad, q, d, None, None, alignment, False, False)
        wide = d.double().requires_grad_()
        (truth,) = torch.autograd.grad(reference.maxsim(q.double(), wide), wide, grad.double())
        assert (ours.double() - truth).abs().max() <= 2 * torch.finfo(torch.float16).eps * truth.abs().max()


def test_import_stays_light() -> None:
    """The reasons and the state are known without importing Triton."""
    import subprocess
    import sys

    program = (
        "import sys, fgkernels, fgkernels.triton as t; t.refusal(), t.interpreted(); assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("__version__ = '3.1.0'\n", "Triton 3.1.0 is too old, 3.6 or later"),
        ("x = 1\n", "names no version"),
        (None, "isn't installed"),
    ],
)
def test_refusal(tmp_path, monkeypatch: pytest.MonkeyPatch, text: str | None, words: str) -> None:
    import importlib.machinery
    import importlib.util

    spec = None
    if text is not None:
        (tmp_path / "__init__.py").write_text(text)
        spec = importlib.machinery.ModuleSpec("triton", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert words in fgkernels.triton.refusal()
