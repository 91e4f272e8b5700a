# SPDX-License-Identifier: Apache-2.0
"""Late interaction: input makers, the expressions people write, and FLOP and byte formulas.

Shapes in letters: queries (Nq, Lq, D), documents (Nd, Ld, D); images a (Na, n, D), texts b (Nb, m, D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import fgkernels

from ..registry import Inputs, Shape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# Inputs ---------------------------------------------------------------------------------------------------------------


def _tokens(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def maxsim_inputs(dtype: str) -> Callable[[Shape], Inputs]:
    def make(shape: Shape) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        queries = _tokens(generator, shape["Nq"], shape["Lq"], shape["D"])
        documents = _tokens(generator, shape["Nd"], shape["Ld"], shape["D"])
        return {"queries": queries.to(DTYPES[dtype]), "documents": documents.to(DTYPES[dtype])}

    return make


def int8_inputs(shape: Shape) -> Inputs:
    inputs = maxsim_inputs("float32")(shape)
    documents, scales = fgkernels.quantize_documents(inputs["documents"])
    return {"queries": inputs["queries"], "documents": documents, "scales": scales}


def masked_inputs(shape: Shape) -> Inputs:
    """A contrastive batch: documents of every length from a quarter of Ld to Ld, padded."""
    generator = torch.Generator().manual_seed(0)
    queries = _tokens(generator, shape["Nq"], shape["Lq"], shape["D"])
    documents = _tokens(generator, shape["Nd"], shape["Ld"], shape["D"])
    lengths = torch.linspace(shape["Ld"] / 4, shape["Ld"], shape["Nd"]).long()
    mask = torch.arange(shape["Ld"]) < lengths[:, None]
    return {
        "queries": queries.requires_grad_(),
        "documents": documents.requires_grad_(),
        "mask": mask,
        "grad": torch.randn(shape["Nq"], shape["Nd"], generator=generator),
    }


def rerank_inputs(shape: Shape) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return {
        "queries": _tokens(generator, shape["Nq"], shape["Lq"], shape["D"]),
        "documents": _tokens(generator, shape["Nq"], shape["K"], shape["Ld"], shape["D"]),
    }


def ragged_lengths(shape: Shape) -> Tensor:
    """Nd lengths spread evenly over Lmin..Lmax, shuffled; their mean is exactly (Lmin + Lmax) / 2."""
    low, high, count = shape["Lmin"], shape["Lmax"], shape["Nd"]
    half = torch.linspace(low, high, count).round().long()[: count // 2]
    lengths = torch.cat([half, low + high - half])
    return lengths[torch.randperm(len(lengths), generator=torch.Generator().manual_seed(1))]


def ragged_inputs(shape: Shape) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    lengths = ragged_lengths(shape)
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    offsets[1:] = lengths.cumsum(0)
    queries = _tokens(generator, shape["Nq"], shape["Lq"], shape["D"])
    return {
        "queries": queries,
        "documents": _tokens(generator, int(offsets[-1]), shape["D"]),
        "query_offsets": torch.arange(shape["Nq"] + 1) * shape["Lq"],
        "document_offsets": offsets,
    }


def filip_inputs(dtype: str, backward: bool) -> Callable[[Shape], Inputs]:
    def make(shape: Shape) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        a = _tokens(generator, shape["Na"], shape["n"], shape["D"]).to(DTYPES[dtype])
        b = _tokens(generator, shape["Nb"], shape["m"], shape["D"]).to(DTYPES[dtype])
        inputs = {"a": a.requires_grad_(backward), "b": b.requires_grad_(backward)}
        if backward:
            inputs["grad_ab"] = torch.randn(shape["Na"], shape["Nb"], generator=generator)
            inputs["grad_ba"] = torch.randn(shape["Na"], shape["Nb"], generator=generator)
        return inputs

    return make


# What people write ----------------------------------------------------------------------------------------------------


def maxsim_einsum(queries: Tensor, documents: Tensor) -> Tensor:
    return torch.einsum("qid,njd->qnij", queries, documents).amax(-1).sum(-1)


def maxsim_matmul(queries: Tensor, documents: Tensor) -> Tensor:
    return (queries[:, None] @ documents[None].mT).amax(-1).sum(-1)


def maxsim_masked_einsum(queries: Tensor, documents: Tensor, mask: Tensor) -> Tensor:
    scores = torch.einsum("qid,njd->qnij", queries, documents)
    return scores.masked_fill(~mask[None, :, None, :], float("-inf")).amax(-1).sum(-1)


def maxsim_masked_matmul(queries: Tensor, documents: Tensor, mask: Tensor) -> Tensor:
    scores = queries[:, None] @ documents[None].mT
    return scores.masked_fill(~mask[None, :, None, :], float("-inf")).max(-1).values.sum(-1)


def rerank_einsum(queries: Tensor, documents: Tensor) -> Tensor:
    return torch.einsum("qid,qkjd->qkij", queries, documents).amax(-1).sum(-1)


def rerank_matmul(queries: Tensor, documents: Tensor) -> Tensor:
    return (queries[:, None] @ documents.mT).amax(-1).sum(-1)


def filip_einsum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    scores = torch.einsum("aid,bjd->abij", a, b)
    return scores.amax(3).mean(2), scores.amax(2).mean(2)


def filip_matmul(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    scores = (a.flatten(0, 1) @ b.flatten(0, 1).mT).unflatten(0, a.shape[:2]).unflatten(2, b.shape[:2])
    return scores.max(3).values.mean(1), scores.max(1).values.mean(2)


def dequantize(documents: Tensor, scales: Tensor) -> Tensor:
    return documents.float() * scales[..., None]


# Sister workloads -----------------------------------------------------------------------------------------------------


def padded(inputs: Inputs) -> dict[str, Tensor]:
    """Ragged documents as a padded batch with its mask."""
    lengths = inputs["document_offsets"].diff()
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    documents = inputs["documents"].new_zeros(*mask.shape, inputs["documents"].shape[-1])
    documents[mask] = inputs["documents"]
    return {"queries": inputs["queries"], "documents": documents, "mask": mask}


def packed(inputs: Inputs) -> dict[str, Tensor]:
    """Queries without their batch dimension, as the documents are."""
    return {**inputs, "queries": inputs["queries"].flatten(0, 1)}


def equal(inputs: Inputs) -> dict[str, Tensor]:
    """The same tokens cut into documents of equal length."""
    count = len(inputs["document_offsets"]) - 1
    return {"queries": inputs["queries"], "documents": inputs["documents"].unflatten(0, (count, -1))}


def as_float(inputs: Inputs) -> dict[str, Tensor]:
    if "scales" in inputs:
        return {"queries": inputs["queries"], "documents": dequantize(inputs["documents"], inputs["scales"])}
    return {name: value.float() for name, value in inputs.items()}


# FLOP and byte formulas -----------------------------------------------------------------------------------------------


def maxsim_flops(shape: Shape) -> int:
    """2 Nq Nd Lq Ld D: one multiply-add per similarity and channel."""
    return 2 * shape["Nq"] * shape["Nd"] * shape["Lq"] * shape["Ld"] * shape["D"]


def maxsim_bytes(item: int, document_item: int | None = None, scales: bool = False) -> Callable[[Shape], int]:
    """Both token sets once, scores in fp32; int8 documents add one fp32 scale a token."""

    def count(shape: Shape) -> int:
        documents = shape["Nd"] * shape["Ld"] * (shape["D"] * (document_item or item) + 4 * scales)
        return item * shape["Nq"] * shape["Lq"] * shape["D"] + documents + 4 * shape["Nq"] * shape["Nd"]

    return count


def contrastive_flops(shape: Shape) -> int:
    """The valid part of the forward, and a gather and a scatter of one token per query token and document."""
    tokens = int(torch.linspace(shape["Ld"] / 4, shape["Ld"], shape["Nd"]).long().sum())
    forward_flops = 2 * shape["Nq"] * shape["Lq"] * tokens * shape["D"]
    return forward_flops + 4 * shape["Nq"] * shape["Nd"] * shape["Lq"] * shape["D"]


def contrastive_bytes(shape: Shape) -> int:
    """Tokens read twice, gradients written, alignment (int16) written and read, scores and their gradient."""
    tokens = 4 * shape["D"] * (shape["Nq"] * shape["Lq"] + shape["Nd"] * shape["Ld"])
    return 3 * tokens + 2 * 2 * shape["Nq"] * shape["Nd"] * shape["Lq"] + 8 * shape["Nq"] * shape["Nd"]


def rerank_flops(shape: Shape) -> int:
    return 2 * shape["Nq"] * shape["K"] * shape["Lq"] * shape["Ld"] * shape["D"]


def rerank_bytes(shape: Shape) -> int:
    tokens = shape["Nq"] * shape["Lq"] + shape["Nq"] * shape["K"] * shape["Ld"]
    return 4 * shape["D"] * tokens + 4 * shape["Nq"] * shape["K"]


def ragged_flops(shape: Shape) -> int:
    """As maxsim_flops with the documents' true tokens; padding is nobody's work."""
    return shape["Nq"] * shape["Lq"] * shape["D"] * (shape["Lmin"] + shape["Lmax"]) * shape["Nd"]


def ragged_bytes(shape: Shape) -> int:
    tokens = shape["Nd"] * (shape["Lmin"] + shape["Lmax"]) // 2
    return 4 * shape["D"] * (shape["Nq"] * shape["Lq"] + tokens) + 4 * shape["Nq"] * shape["Nd"]


def filip_flops(shape: Shape) -> int:
    """2 Na Nb n m D: both directions read the same similarities."""
    return 2 * shape["Na"] * shape["Nb"] * shape["n"] * shape["m"] * shape["D"]


def filip_bytes(item: int) -> Callable[[Shape], int]:
    def count(shape: Shape) -> int:
        tokens = shape["Na"] * shape["n"] + shape["Nb"] * shape["m"]
        return item * shape["D"] * tokens + 8 * shape["Na"] * shape["Nb"]

    return count


def filip_train_flops(shape: Shape) -> int:
    """The forward, and a gather and a scatter of one token per token of either side and pair."""
    pairs = shape["Na"] * shape["Nb"]
    return filip_flops(shape) + 4 * pairs * (shape["n"] + shape["m"]) * shape["D"]


def filip_train_bytes(item: int) -> Callable[[Shape], int]:
    """Tokens read twice, gradients written, alignments (int16) written and read, scores and their gradients."""

    def count(shape: Shape) -> int:
        pairs = shape["Na"] * shape["Nb"]
        tokens = item * shape["D"] * (shape["Na"] * shape["n"] + shape["Nb"] * shape["m"])
        return 3 * tokens + 2 * 2 * pairs * (shape["n"] + shape["m"]) + 2 * 8 * pairs

    return count
