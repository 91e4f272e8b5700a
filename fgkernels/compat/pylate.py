# SPDX-License-Identifier: Apache-2.0
"""PyLate's scoring functions (pylate.scores): same arguments, same numbers, without its similarity tensor.

PyLate multiplies similarities by the masks, so that a masked document token counts as similarity 0 in the maximum
(`padding="zero"` here) and a masked query token adds 0. Scores have the dtype that PyLate's have; the arithmetic inside
is float32 for 16-bit inputs, hence closer to exact.

Two deliberate differences: NaN in a masked token doesn't reach the score, and a document with no token at all scores 0
where PyLate raises.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..ops.late_interaction import maxsim, maxsim_varlen

__all__ = ["colbert_kd_scores", "colbert_scores", "colbert_scores_pairwise"]


def colbert_scores(
    queries_embeddings: list | np.ndarray | Tensor,
    documents_embeddings: list | np.ndarray | Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Scores of every query against every document, (Nq, Nd).

    Args:
        queries_embeddings: (Nq, Lq, D), a tensor, an array, or a list of equally long entries.
        documents_embeddings: (Nd, Ld, D), likewise.
        queries_mask: (Nq, Lq), bool or numbers; numbers other than 0 and 1 weigh the token's similarities.
        documents_mask: (Nd, Ld), likewise.
        backend: accepted for PyLate's signature and ignored; see `fgkernels.backend`.
    """
    return _scores(queries_embeddings, documents_embeddings, queries_mask, documents_mask)


def colbert_kd_scores(
    queries_embeddings: list | np.ndarray | Tensor,
    documents_embeddings: list | np.ndarray | Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Scores of each query against its own K candidates, (Nq, K), for distillation.

    Args:
        queries_embeddings: (Nq, Lq, D), a tensor, an array, or a list of equally long entries.
        documents_embeddings: (Nq, K, Ld, D), likewise.
        queries_mask: (Nq, Lq), bool or numbers.
        documents_mask: (Nq, K, Ld), likewise.
        backend: accepted for PyLate's signature and ignored; see `fgkernels.backend`.
    """
    documents = _tensor(documents_embeddings)
    if documents.dim() != 4:
        raise ValueError(f"documents_embeddings: expected (Nq, K, Ld, D), got {tuple(documents.shape)}")
    return _scores(queries_embeddings, documents, queries_mask, documents_mask)


def colbert_scores_pairwise(
    queries_embeddings: list | np.ndarray | Tensor,
    documents_embeddings: list | np.ndarray | Tensor,
    backend: str | None = None,
) -> Tensor:
    """Scores of query i against document i, (N,).

    Args:
        queries_embeddings: (N, Lq, D), or a list of N entries (Lq_i, D) that may differ in length.
        documents_embeddings: (N, Ld, D), or a list likewise. As in PyLate, the shorter side decides N.
        backend: accepted for PyLate's signature and ignored; see `fgkernels.backend`.
    """
    count = min(len(queries_embeddings), len(documents_embeddings))
    if count == 0:
        raise ValueError("queries_embeddings: expected at least one pair of a query and a document, got none")
    queries, documents = queries_embeddings[:count], documents_embeddings[:count]
    if isinstance(queries, Tensor) and isinstance(documents, Tensor):
        return maxsim(queries, documents, paired=True).to(queries.dtype)
    packed_queries, query_offsets = _pack(queries)
    packed_documents, document_offsets = _pack(documents)
    scores = maxsim_varlen(packed_queries, packed_documents, query_offsets, document_offsets, paired=True)
    return scores.to(packed_queries.dtype)


def _scores(
    queries: list | np.ndarray | Tensor,
    documents: list | np.ndarray | Tensor,
    queries_mask: Tensor | None,
    documents_mask: Tensor | None,
) -> Tensor:
    queries, queries_mask, query_dtype = _masked(_tensor(queries), queries_mask)
    documents, documents_mask, document_dtype = _masked(_tensor(documents), documents_mask)
    scores = maxsim(queries, documents, queries_mask, documents_mask, padding="zero")
    return scores.to(torch.promote_types(query_dtype, document_dtype))


def _masked(tokens: Tensor, mask: list | np.ndarray | Tensor | None) -> tuple[Tensor, Tensor | None, torch.dtype]:
    """Tokens, a bool mask or None, and the dtype of PyLate's product of the two."""
    if mask is None:
        return tokens, None, tokens.dtype
    mask = _tensor(mask)
    if not mask.is_floating_point():
        return tokens, mask != 0, tokens.dtype
    # A weight of a token's similarities is a weight of the token; the zeros among them are a mask.
    weighted = tokens * mask.unsqueeze(-1).to(tokens.dtype)
    return weighted, mask != 0, torch.promote_types(tokens.dtype, mask.dtype)


def _tensor(value: list | np.ndarray | Tensor) -> Tensor:
    """Tensors as they are; arrays share memory; lists of tensors are stacked, other lists become float32."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, list):
        return torch.as_tensor(value)
    if value and isinstance(value[0], Tensor):
        return torch.stack(value)
    return torch.from_numpy(np.array(value, dtype=np.float32))


def _pack(samples: list | np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
    """Samples (L_i, D) one after the other, and their offsets."""
    samples = [_tensor(sample) for sample in samples]
    lengths = torch.tensor([0] + [sample.shape[0] for sample in samples])
    return torch.cat(samples), lengths.cumsum(0).to(samples[0].device)
