# SPDX-License-Identifier: Apache-2.0
"""Bad input: the message names the argument, the expected shape in letters and what came, whoever serves."""

from __future__ import annotations

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fgkernels
from fgkernels import _backend
from fgkernels.ops import _library

from .cases import to_default_device

Q, D, QM, DM = torch.zeros(2, 3, 8), torch.zeros(4, 5, 8), torch.ones(2, 3).bool(), torch.ones(4, 5).bool()
I8, SCALES = torch.zeros(4, 5, 8, dtype=torch.int8), torch.ones(4, 5)
ERRORS = (ValueError, TypeError, RuntimeError)

MAXSIM = {
    "query rank": ((Q[0], D), {}, r"queries: expected \(Nq, Lq, D\), got \(3, 8\)"),
    "query rank 4": ((Q[None], D), {}, r"queries: expected \(Nq, Lq, D\), got \(1, 2, 3, 8\)"),
    "query scalar": ((torch.zeros(()), D), {}, r"queries: expected \(Nq, Lq, D\), got \(\)"),
    "document rank": ((Q, D[0]), {}, r"documents: expected \(Nd, Ld, D\).*got \(5, 8\)"),
    "document rank 5": ((Q, D[None, None]), {}, r"documents: expected .*got \(1, 1, 4, 5, 8\)"),
    "document scalar": ((Q, torch.zeros(())), {}, r"documents: expected \(Nd, Ld, D\).*got \(\)"),
    "D": ((Q, D[..., :7]), {}, r"documents: expected \(Nd, Ld, D\) with D = 8 like queries, got \(4, 5, 7\)"),
    "D rerank": (
        (Q, torch.zeros(2, 4, 5, 7)),
        {},
        r"documents: expected \(Nq, K, Ld, D\) with D = 8 like queries, got \(2, 4, 5, 7\)",
    ),
    "paired N": (
        (Q, D),
        {"paired": True},
        r"documents: expected \(N, Ld, D\) with N = 2 like queries, got \(4, 5, 8\)",
    ),
    "rerank N": (
        (Q, D[None]),
        {},
        r"documents: expected \(Nq, K, Ld, D\) with Nq = 2 like queries, got \(1, 4, 5, 8\)",
    ),
    "query mask shape": ((Q, D, QM[:1]), {}, r"query_mask: expected .*\(Nq, Lq\) = \(2, 3\).*got .*\(1, 3\)"),
    "query mask rank": ((Q, D, QM[0]), {}, r"query_mask: expected .*\(Nq, Lq\) = \(2, 3\).*got .*\(3,\)"),
    "query mask dtype": ((Q, D, QM.int()), {}, r"query_mask: expected .*bool.*got .*int32"),
    "document mask shape": (
        (Q, D, None, DM[:, :4]),
        {},
        r"document_mask: expected .*\(Nd, Ld\) = \(4, 5\).*got .*\(4, 4\)",
    ),
    "document mask dtype": ((Q, D, None, DM.float()), {}, r"document_mask: expected .*bool.*got .*float32"),
    "rerank mask": (
        (Q, torch.zeros(2, 4, 5, 8), None, DM),
        {},
        r"document_mask: expected .*\(Nq, K, Ld\) = \(2, 4, 5\).*got .*\(4, 5\)",
    ),
    "paired mask": (
        (Q, D[:2], None, DM),
        {"paired": True},
        r"document_mask: expected .*\(N, Ld\) = \(2, 5\).*got .*\(4, 5\)",
    ),
    "query dtype": ((Q.int(), D), {}, r"queries: expected .*float32, float64, bfloat16 or float16, got .*int32"),
    "complex": (
        (Q.cfloat(), D.cfloat()),
        {},
        r"queries: expected .*float32, float64, bfloat16 or float16, got .*omplex",
    ),
    "bool": ((Q.bool(), D.bool()), {}, r"queries: expected .*float32, float64, bfloat16 or float16, got .*bool"),
    "document dtype": ((Q, D.double()), {}, r"documents: expected .*dtype .*float32 like queries.*got .*float64"),
    "document int": ((Q, D.long()), {}, r"documents: expected .*int8.*got .*int64"),
    "int8 queries": ((I8, I8), {"document_scales": SCALES}, r"queries: expected .*float32.*got .*int8"),
    "no scales": ((Q, I8), {}, r"document_scales: .*required .*int8"),
    "scales without int8": ((Q, D), {"document_scales": SCALES}, r"document_scales: .*int8.*float32"),
    "scales shape": (
        (Q, I8),
        {"document_scales": SCALES[:3]},
        r"document_scales: expected .*\(Nd, Ld\) = \(4, 5\).*got .*\(3, 5\)",
    ),
    "scales dtype": (
        (Q, I8),
        {"document_scales": SCALES.double()},
        r"document_scales: expected .*float32.*got .*float64",
    ),
    "meta documents": ((Q, D.to("meta")), {}, r"documents: expected device cpu like queries"),
    "meta mask": ((Q, D, None, DM.to("meta")), {}, r"document_mask: expected .*(device cpu|CPU tensor)"),
    "reduction": ((Q, D), {"reduction": "max"}, r'reduction: expected "sum" or "mean", got \'max\''),
    "padding": ((Q, D), {"padding": "ignore"}, r'padding: expected "exclude" or "zero", got \'ignore\''),
    "not a tensor": (([[1.0]], D), {}, r"queries: expected a Tensor, got list"),
    "documents not a tensor": ((Q, None), {}, r"documents: expected a Tensor, got NoneType"),
}

LATE = {
    "a rank": ((Q[0], D), {}, r"a: expected \(Na, n, D\), got \(3, 8\)"),
    "b rank": ((Q, D[None]), {}, r"b: expected \(Nb, m, D\), got \(1, 4, 5, 8\)"),
    "D": ((Q, D[..., :7]), {}, r"b: expected \(Nb, m, D\) with D = 8 like a, got \(4, 5, 7\)"),
    "a mask": ((Q, D, QM.T), {}, r"a_mask: expected .*\(Na, n\) = \(2, 3\).*got .*\(3, 2\)"),
    "b mask": ((Q, D, None, DM[0]), {}, r"b_mask: expected .*\(Nb, m\) = \(4, 5\).*got .*\(5,\)"),
    "mask dtype": ((Q, D, QM.to(torch.uint8)), {}, r"a_mask: expected .*bool.*got .*uint8"),
    "dtype": ((Q, D.half()), {}, r"b: expected .*dtype .*float32 like a.*got .*float16"),
    "int8": ((Q, I8), {}, r"b: expected .*float.*got .*int8"),
    "meta": ((Q, D.to("meta")), {}, r"b: expected device cpu like a"),
    "reduction": ((Q, D), {"reduction": None}, r'reduction: expected "sum" or "mean", got None'),
    "padding": ((Q, D), {"padding": 0}, r'padding: expected "exclude" or "zero", got 0'),
    "not a tensor": ((Q, 3.0), {}, r"b: expected a Tensor, got float"),
}

PQ, PD = torch.zeros(6, 8), torch.zeros(20, 8)
QO, DO = torch.tensor([0, 3, 6]), torch.tensor([0, 5, 20])
NESTED = torch.nested.nested_tensor([torch.zeros(2, 8), torch.zeros(4, 8)], layout=torch.jagged)

VARLEN = {
    "query rank": ((Q, PD, QO, DO), {}, r"queries: expected .*\(Tq, D\), got \(2, 3, 8\)"),
    "document rank": ((PQ, PD[0], QO, DO), {}, r"documents: expected .*\(Td, D\), got \(8,\)"),
    "D": ((PQ, PD[:, :7], QO, DO), {}, r"documents: expected \(Td, D\) with D = 8 like queries, got \(20, 7\)"),
    "dtype": ((PQ, PD.half(), QO, DO), {}, r"documents: expected .*dtype .*float32 like queries.*got .*float16"),
    "start": ((PQ, PD, QO + 1, DO), {}, r"query_offsets: expected to start at 0, got 1"),
    "negative start": ((PQ, PD, QO - 1, DO), {}, r"query_offsets: expected to start at 0, got -1"),
    "end": ((PQ, PD, QO, torch.tensor([0, 5, 19])), {}, r"document_offsets: expected to end at .*20.* got 19"),
    "beyond": ((PQ, PD, QO, torch.tensor([0, 5, 21])), {}, r"document_offsets: expected to end at .*20.* got 21"),
    "falling": (
        (PQ, PD, torch.tensor([0, 5, 3, 6]), DO),
        {},
        r"query_offsets: expected .*(monotone|never decrease).*5.*position 2",
    ),
    "huge": ((PQ, PD, torch.tensor([0, 2**62, 6]), DO), {}, r"query_offsets: expected .*(monotone|never decrease)"),
    "offsets empty": ((PQ, PD, QO[:0], DO), {}, r"query_offsets: expected .*got .*\(0,\)"),
    "offsets rank": ((PQ, PD, QO[None], DO), {}, r"query_offsets: expected .*\+ 1,\).*got .*\(1, 3\)"),
    "offsets dtype": ((PQ, PD, QO.float(), DO), {}, r"query_offsets: expected .*int32 or .*int64.*got .*float32"),
    "offsets device": ((PQ, PD, QO.to("meta"), DO), {}, r"query_offsets: expected .*(device cpu|CPU tensor)"),
    "no offsets": ((PQ, PD, None, DO), {}, r"query_offsets: expected \(Nq \+ 1,\).*got None"),
    "no document offsets": ((PQ, PD, QO), {}, r"document_offsets: expected \(Nd \+ 1,\).*got None"),
    "paired counts": (
        (PQ, PD, QO, torch.tensor([0, 20])),
        {"paired": True},
        r"document_offsets: expected \(N \+ 1,\).*got \(2,\)",
    ),
    "scales": (
        (PQ, PD.to(torch.int8), QO, DO),
        {"document_scales": torch.ones(19)},
        r"document_scales: expected .*\(Td,\) = \(20,\).*got .*\(19,\)",
    ),
    "offsets of nested": ((NESTED, PD, QO, DO), {}, r"query_offsets: expected None, since queries is a nested tensor"),
    "nested strided": ((torch.nested.nested_tensor([PQ, PQ]), PD, None, DO), {}, r"queries: expected .*torch.jagged"),
    "nested rank": (
        (torch.nested.nested_tensor([PQ[0], PQ[0, :3]], layout=torch.jagged), PD, None, DO),
        {},
        r"queries: expected a jagged nested tensor \(N, j, D\)",
    ),
    "reduction": ((PQ, PD, QO, DO), {"reduction": "min"}, r"reduction: expected"),
}

CASES = [
    pytest.param(function, *case, id=f"{function}-{name}")
    for function, cases in (("maxsim", MAXSIM), ("late_interaction", LATE), ("maxsim_varlen", VARLEN))
    for name, case in cases.items()
]


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
@pytest.mark.parametrize(("function", "arguments", "options", "message"), CASES)
def test_message(served, function: str, arguments: tuple, options: dict, message: str) -> None:
    arguments = tuple(to_default_device(value) for value in arguments)
    options = {name: to_default_device(value) for name, value in options.items()}
    if served.device == "cuda":
        message = message.replace("device cpu", "device cuda:0").replace("CPU tensor", "CUDA tensor")
        if values_decide(message) and served.backend != "reference":
            # Reading offsets on the host would wait for the GPU: its kernels check them and give NaN.
            assert fgkernels.maxsim_varlen(*arguments, **options).isnan().all()
            return
    with pytest.raises(ERRORS, match=message):
        getattr(fgkernels, function)(*arguments, **options)


def values_decide(message: str) -> bool:
    """Whether only the offsets' values show what is wrong."""
    return "offsets: expected to" in message or "monotone" in message


def seen_while_tracing(case) -> bool:
    """Not what only the offsets' values show, nor nested tensors, which the public function takes apart."""
    _, arguments, _, message = case.values
    return not values_decide(message) and not any(getattr(value, "is_nested", False) for value in arguments)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("function", "arguments", "options", "message"), [case for case in CASES if seen_while_tracing(case)]
)
def test_fake_kernels_refuse_the_same(function: str, arguments: tuple, options: dict, message: str) -> None:
    """Tracing finds bad shapes and dtypes too, with the same words."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fake = [mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for value in arguments]
        options = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        with pytest.raises(ERRORS, match=message):
            getattr(fgkernels, function)(*fake, **options)


@pytest.mark.compiled
def test_rerank_needs_the_paired_flag_in_the_operator(operators) -> None:
    queries, documents = to_default_device(Q), torch.zeros(2, 4, 5, 8)
    with pytest.raises(RuntimeError, match=r"documents: expected \(Nd, Ld, D\), got \(2, 4, 5, 8\)"):
        _library.op("maxsim_fwd")(queries, documents, None, None, None, False, False, False)


@pytest.mark.compiled
@pytest.mark.parametrize("bad", [-2, -32768, 5, 6, 32767])
def test_backward_survives_foreign_alignment(implementation, bad: int) -> None:
    """Indices that no forward returns are ignored: no write or read outside the tensors."""
    queries, documents, packed_queries, packed_documents, *places = map(to_default_device, (Q, D, PQ, PD, QO, DO))
    alignment = torch.full((2, 4, 3), bad, dtype=torch.int16)
    grad = torch.ones(2, 4)
    for name in ("maxsim_backward_queries", "maxsim_backward_documents"):
        gradient = _library.op(name)(grad, queries + 1, documents + 1, None, None, alignment, False, False)
        assert (gradient == 0).all()
    back = torch.full((2, 4, 5), bad, dtype=torch.int16)
    for name in ("late_interaction_backward_a", "late_interaction_backward_b"):
        gradient = _library.op(name)(grad, grad, queries + 1, documents + 1, None, None, alignment, back, False)
        assert gradient.isfinite().all()
    packed = torch.full((2, 6), bad if bad < 5 else bad + 20, dtype=torch.int32)
    for name in ("maxsim_varlen_backward_queries", "maxsim_varlen_backward_documents"):
        gradient = _library.op(name)(
            torch.ones(2, 2), packed_queries + 1, packed_documents + 1, *places, None, packed, False, False
        )
        assert (gradient == 0).all()


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.ones(4, 2)}, r"grad_scores: expected .*got .*\(4, 2\)"),
        ({0: torch.ones(2, 4).double()}, r"grad_scores: expected .*got float64"),
        ({5: torch.zeros(2, 4, 4, dtype=torch.int16)}, r"alignment: expected .*got int16 \(2, 4, 4\)"),
        ({5: torch.zeros(2, 4, 3)}, r"alignment: expected .*got float32"),
        ({1: Q[..., :7]}, r"documents: expected \(Nd, Ld, D\) with D = 7"),
    ],
    ids=["grad shape", "grad dtype", "alignment shape", "alignment dtype", "D"],
)
def test_backward_operators_check(operators, change: dict, message: str) -> None:
    arguments = [torch.ones(2, 4), Q, D, None, None, torch.zeros(2, 4, 3, dtype=torch.int16), False, False]
    for place, value in change.items():
        arguments[place] = value
    arguments = [to_default_device(value) for value in arguments]
    for name in ("maxsim_backward_queries", "maxsim_backward_documents"):
        with pytest.raises(RuntimeError, match=message):
            _library.op(name)(*arguments)


def test_backend_names() -> None:
    names = ", ".join(_backend.NAMES)
    with pytest.raises(ValueError, match=re.escape(f"backend: expected one of {names}, got 'gpu'")):
        fgkernels.backend("gpu")
    for name in _backend.NAMES:
        reason = _backend._refusal(name)
        if reason is not None:
            with pytest.raises(RuntimeError, match=re.escape(f'backend("{name}"): {reason}')):
                fgkernels.backend(name)
