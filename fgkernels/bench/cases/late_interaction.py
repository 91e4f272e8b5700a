# SPDX-License-Identifier: Apache-2.0
"""Late interaction: the cases of maxsim, maxsim_varlen and late_interaction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import fgkernels
from fgkernels.reference import late_interaction as reference

from ..implementations import baselines, candidate, chain, double, forward, forward_backward
from ..registry import Bar, Call, Case, Implementation, Inputs, Shape
from ..workloads import late_interaction as work

FAMILY = "late_interaction"
# Largest score error: fp32 rounding of a sum; PyTorch rounds similarities and scores to the 16-bit type; int8 kernels
# may round queries to eight bits.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3, "int8": 2e-2}
# maxsim-cpu's matrix product leaves libxsmm's range above this, and its wheel links no other: it crashes or returns
# garbage.
MAXSIM_CPU_LIMIT = 64**3


# maxsim-cpu -----------------------------------------------------------------------------------------------------------


def _over_limit(shape: Shape) -> str | None:
    length = shape.get("Ld", shape.get("Lmax", 0))
    size = shape["Lq"] * min(length, 64) * shape["D"]
    if size > MAXSIM_CPU_LIMIT:
        return f"Lq·min(Ld, 64)·D = {size} > 64³, where it crashes or returns garbage"
    return None


def _prepare_maxsim_cpu(inputs: Inputs) -> Call:
    import maxsim_cpu

    queries, documents = inputs["queries"].numpy(), inputs["documents"].numpy()
    if "document_offsets" in inputs:
        bounds = inputs["document_offsets"].tolist()
        pieces = [documents[start:stop] for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
        return lambda: torch.stack([torch.from_numpy(maxsim_cpu.maxsim_scores_variable(q, pieces)) for q in queries])
    if documents.ndim == 4:
        pairs = list(zip(queries, documents, strict=True))
        return lambda: torch.stack([torch.from_numpy(maxsim_cpu.maxsim_scores(q, d)) for q, d in pairs])
    return lambda: torch.stack([torch.from_numpy(maxsim_cpu.maxsim_scores(q, documents)) for q in queries])


MAXSIM_CPU = Implementation(
    "maxsim-cpu", "peer", _prepare_maxsim_cpu, refuse=_over_limit, module="maxsim_cpu", devices=("cpu",)
)


# Cases ----------------------------------------------------------------------------------------------------------------

SEARCH = {"Nq": 1, "Lq": 32, "Nd": 1000, "Ld": 300, "D": 128}
SEARCH_TINY = {"Nq": 1, "Lq": 8, "Nd": 6, "Ld": 12, "D": 32}
FILIP_TINY = {"Na": 3, "n": 9, "Nb": 4, "m": 5, "D": 32}


def _maxsim_case(name: str, title: str, shape: Shape, dtype: str = "float32", **options: object) -> Case:
    """maxsim of float tokens, forward."""
    make = {"einsum": work.maxsim_einsum, "matmul": work.maxsim_matmul, "reference": reference.maxsim}
    sisters: tuple[Implementation, ...] = (MAXSIM_CPU,)
    if dtype != "float32":
        sisters = (
            Implementation("own fp32", "own", chain(work.as_float, forward(fgkernels.maxsim, "queries", "documents"))),
        )
    item = work.DTYPES[dtype].itemsize
    return Case(
        FAMILY,
        name,
        title,
        shape=shape,
        tiny=SEARCH_TINY,
        inputs=work.maxsim_inputs(dtype),
        outputs=("scores",),
        reference=double(forward(work.maxsim_einsum, "queries", "documents")),
        implementations=(
            candidate(forward(fgkernels.maxsim, "queries", "documents")),
            *baselines(lambda function: forward(function, "queries", "documents"), make),
            *sisters,
        ),
        flops=work.maxsim_flops,
        bytes=work.maxsim_bytes(item),
        dtype=dtype,
        # fp16 has no dot product of its own on these machines: it is widened to fp32.
        probe={"float16": "float32"}.get(dtype, dtype),
        tolerance=TOLERANCE[dtype],
        **options,
    )


def _filip_case(
    name: str, title: str, shape: Shape, dtype: str = "float32", backward: bool = False, **options: object
) -> Case:
    """late_interaction, both directions, forward or forward and backward."""
    functions = {"einsum": work.filip_einsum, "matmul": work.filip_matmul, "reference": reference.late_interaction}
    names = ("a", "b")

    def make(function: Callable[..., object]) -> Callable[[Inputs], Call]:
        return forward_backward(function, 2, *names) if backward else forward(function, *names)

    return Case(
        FAMILY,
        name,
        title,
        shape=shape,
        tiny=FILIP_TINY,
        inputs=work.filip_inputs(dtype, backward),
        outputs=("scores_ab", "scores_ba", "grad_a", "grad_b") if backward else ("scores_ab", "scores_ba"),
        reference=double(make(work.filip_matmul)),
        implementations=(candidate(make(fgkernels.late_interaction)), *baselines(make, functions)),
        flops=work.filip_train_flops if backward else work.filip_flops,
        bytes=(work.filip_train_bytes if backward else work.filip_bytes)(work.DTYPES[dtype].itemsize),
        dtype=dtype,
        probe=dtype,
        tolerance=TOLERANCE[dtype],
        **options,
    )


def _int8_maxsim(queries: Tensor, documents: Tensor, scales: Tensor) -> Tensor:
    return fgkernels.maxsim(queries, documents, document_scales=scales)


def _masked_maxsim(queries: Tensor, documents: Tensor, mask: Tensor) -> Tensor:
    return fgkernels.maxsim(queries, documents, document_mask=mask)


def _masked_reference(queries: Tensor, documents: Tensor, mask: Tensor) -> Tensor:
    return reference.maxsim(queries, documents, document_mask=mask)


INT8 = Case(
    FAMILY,
    "maxsim-int8",
    "maxsim, int8 documents, 1×32×128 against 1000×300×128",
    shape=SEARCH,
    tiny=SEARCH_TINY,
    inputs=work.int8_inputs,
    outputs=("scores",),
    reference=double(
        forward(lambda q, d, s: work.maxsim_einsum(q, d * s[..., None]), "queries", "documents", "scales")
    ),
    implementations=(
        candidate(forward(_int8_maxsim, "queries", "documents", "scales")),
        *baselines(
            lambda function: forward(function, "queries", "documents", "scales"),
            {
                "einsum": lambda q, d, s: work.maxsim_einsum(q, work.dequantize(d, s)),
                "matmul": lambda q, d, s: work.maxsim_matmul(q, work.dequantize(d, s)),
                "reference": lambda q, d, s: reference.maxsim(q, d, document_scales=s),
            },
        ),
        Implementation("own fp32", "own", chain(work.as_float, forward(fgkernels.maxsim, "queries", "documents"))),
    ),
    flops=work.maxsim_flops,
    bytes=work.maxsim_bytes(4, document_item=1, scales=True),
    dtype="int8",
    probe="int8",
    tolerance=TOLERANCE["int8"],
    quick=True,
    bars=(Bar("ratio", 2.5, "own fp32"),),
)

OFFSETS = ("query_offsets", "document_offsets")
RAGGED = Case(
    FAMILY,
    "maxsim-ragged",
    "maxsim_varlen fp32, 1×32×128 against 1000 packed documents of 20 to 600 tokens",
    shape={"Nq": 1, "Lq": 32, "Nd": 1000, "Lmin": 20, "Lmax": 600, "D": 128},
    tiny={"Nq": 1, "Lq": 8, "Nd": 6, "Lmin": 2, "Lmax": 12, "D": 32},
    inputs=work.ragged_inputs,
    outputs=("scores",),
    reference=double(chain(work.padded, forward(work.maxsim_masked_einsum, "queries", "documents", "mask"))),
    implementations=(
        candidate(chain(work.packed, forward(fgkernels.maxsim_varlen, "queries", "documents", *OFFSETS))),
        *baselines(
            lambda function: chain(work.padded, forward(function, "queries", "documents", "mask")),
            {"einsum": work.maxsim_masked_einsum, "matmul": work.maxsim_masked_matmul, "reference": _masked_reference},
        ),
        MAXSIM_CPU,
        Implementation(
            "equal lengths",
            "own",
            chain(work.equal, forward(fgkernels.maxsim, "queries", "documents")),
            reference=double(chain(work.equal, forward(work.maxsim_einsum, "queries", "documents"))),
        ),
    ),
    flops=work.ragged_flops,
    bytes=work.ragged_bytes,
    bars=(Bar("ratio", 1 / 1.1, "equal lengths"),),
)

RERANK = Case(
    FAMILY,
    "maxsim-rerank",
    "maxsim fp32, rerank, 8×32×128 against 8×100×180×128",
    shape={"Nq": 8, "K": 100, "Lq": 32, "Ld": 180, "D": 128},
    tiny={"Nq": 2, "K": 3, "Lq": 8, "Ld": 12, "D": 32},
    inputs=work.rerank_inputs,
    outputs=("scores",),
    reference=double(forward(work.rerank_einsum, "queries", "documents")),
    implementations=(
        candidate(forward(fgkernels.maxsim, "queries", "documents")),
        *baselines(
            lambda function: forward(function, "queries", "documents"),
            {"einsum": work.rerank_einsum, "matmul": work.rerank_matmul, "reference": reference.maxsim},
        ),
        MAXSIM_CPU,
    ),
    flops=work.rerank_flops,
    bytes=work.rerank_bytes,
)


def _contrastive(function: Callable[..., Tensor]) -> Callable[[Inputs], Call]:
    return forward_backward(function, 2, "queries", "documents", "mask")


CONTRASTIVE = Case(
    FAMILY,
    "maxsim-contrastive",
    "maxsim fp32 with document mask, 32×32×128 against 64×180×128, forward and backward",
    shape={"Nq": 32, "Lq": 32, "Nd": 64, "Ld": 180, "D": 128},
    tiny={"Nq": 3, "Lq": 8, "Nd": 6, "Ld": 12, "D": 32},
    inputs=work.masked_inputs,
    outputs=("scores", "grad_queries", "grad_documents"),
    reference=double(_contrastive(work.maxsim_masked_matmul)),
    implementations=(
        candidate(_contrastive(_masked_maxsim)),
        *baselines(
            _contrastive,
            {"einsum": work.maxsim_masked_einsum, "matmul": work.maxsim_masked_matmul, "reference": _masked_reference},
        ),
    ),
    flops=work.contrastive_flops,
    bytes=work.contrastive_bytes,
)

_CALL = {"Nq": 1, "Lq": 8, "Nd": 4, "Ld": 8, "D": 64}
_SMALL = {"Nq": 1, "Lq": 32, "Nd": 100, "Ld": 180, "D": 128}
_FILIP_196_32 = {"Na": 64, "n": 196, "Nb": 64, "m": 32, "D": 256}
_FILIP_196_77 = {"Na": 48, "n": 196, "Nb": 48, "m": 77, "D": 256}
_FILIP_CLIP = {"Na": 256, "n": 256, "Nb": 256, "m": 77, "D": 256}
_FAST_TRAINING = (Bar("ratio", 4.0), Bar("memory", 0.05, "eager"))

CASES = (
    _maxsim_case(
        "maxsim-fp32",
        "maxsim fp32, 1×32×128 against 1000×300×128",
        SEARCH,
        bars=(Bar("ratio", 2.5), Bar("limit", 0.85)),
        quick=True,
    ),
    _maxsim_case(
        "maxsim-colpali",
        "maxsim fp32, 1×1024×128 against 100×1024×128",
        {"Nq": 1, "Lq": 1024, "Nd": 100, "Ld": 1024, "D": 128},
        bars=(Bar("ratio", 2.0), Bar("limit", 0.85)),
    ),
    _maxsim_case(
        "maxsim-bf16",
        "maxsim bf16, 1×32×128 against 1000×300×128",
        SEARCH,
        "bfloat16",
        bars=(Bar("ratio", 2.0, "own fp32"),),
        quick=True,
    ),
    _maxsim_case("maxsim-fp16", "maxsim fp16, 1×32×128 against 1000×300×128", SEARCH, "float16"),
    INT8,
    _filip_case(
        "filip-forward",
        "late_interaction fp32, 64×196×256 against 64×32×256, forward",
        _FILIP_196_32,
        bars=(Bar("ratio", 2.5), Bar("limit", 0.80)),
    ),
    _filip_case(
        "filip-train-32",
        "late_interaction fp32, 64×196×256 against 64×32×256, forward and backward",
        _FILIP_196_32,
        backward=True,
        bars=_FAST_TRAINING,
    ),
    _filip_case(
        "filip-train-77",
        "late_interaction fp32, 48×196×256 against 48×77×256, forward and backward",
        _FILIP_196_77,
        backward=True,
        bars=_FAST_TRAINING,
    ),
    _filip_case(
        "filip-train-small",
        "late_interaction fp32, 16×49×256 against 16×32×256, forward and backward",
        {"Na": 16, "n": 49, "Nb": 16, "m": 32, "D": 256},
        backward=True,
        quick=True,
    ),
    _filip_case(
        "filip-bf16", "late_interaction bf16, 64×196×256 against 64×32×256, forward", _FILIP_196_32, "bfloat16"
    ),
    _filip_case(
        "filip-clip",
        "late_interaction bf16, 256×256×256 against 256×77×256, forward",
        _FILIP_CLIP,
        "bfloat16",
        devices=("cuda",),
        quick=True,
        bars=(
            Bar("limit", 0.60, device="cuda"),
            Bar("ratio", 5.0, "eager", device="cuda"),
            Bar("ratio", 3.0, "compiled", device="cuda"),
        ),
    ),
    _filip_case(
        "filip-clip-train",
        "late_interaction bf16, 256×256×256 against 256×77×256, forward and backward",
        _FILIP_CLIP,
        "bfloat16",
        backward=True,
        devices=("cuda",),
    ),
    _maxsim_case(
        "maxsim-collection",
        "maxsim bf16, 32×32×128 against 10000×180×128",
        {"Nq": 32, "Lq": 32, "Nd": 10000, "Ld": 180, "D": 128},
        "bfloat16",
        devices=("cuda",),
    ),
    RAGGED,
    RERANK,
    CONTRASTIVE,
    _maxsim_case("maxsim-small", "maxsim fp32, 1×32×128 against 100×180×128", _SMALL),
    _maxsim_case(
        "maxsim-small-cold", "maxsim fp32, 1×32×128 against 100×180×128", _SMALL, cache="cold", measure_memory=False
    ),
    _maxsim_case(
        "maxsim-call",
        "maxsim fp32, 1×8×64 against 4×8×64, the cost of a call",
        _CALL,
        overhead=True,
        measure_memory=False,
        bars=(Bar("ratio", 1.0, "eager"),),
    ),
    _maxsim_case(
        "maxsim-call-cold",
        "maxsim fp32, 1×8×64 against 4×8×64, the cost of a call",
        _CALL,
        cache="cold",
        overhead=True,
        measure_memory=False,
    ),
)
