# SPDX-License-Identifier: Apache-2.0
"""colpali-engine's scoring of multi-vector embeddings (BaseVisualRetrieverProcessor.score_multi_vector)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.late_interaction import maxsim, maxsim_varlen

__all__ = ["score_multi_vector"]


def score_multi_vector(
    qs: Tensor | list[Tensor],
    ps: Tensor | list[Tensor],
    batch_size: int = 128,
    device: str | torch.device | None = None,
) -> Tensor:
    """MaxSim of every query against every passage, without padding and without the similarity tensor.

    colpali-engine pads each batch of passages with zero vectors, so that every passage shorter than the longest of its
    batch has a floor of 0 under its maxima. The numbers here are the same: such a passage gets one zero vector.

    Args:
        qs: queries, a list of (L_i, D) tensors or one (Nq, L, D) tensor.
        ps: passages, a list of (L_j, D) tensors or one (Np, L, D) tensor.
        batch_size: samples sent to `device` at a time; for lists of passages it also decides which are padded together.
        device: where to compute. Default: "cuda:0" if there is one, else "mps" if there is one, else "cpu".

    Returns:
        float32 (Nq, Np) on the CPU.

    Raises:
        ValueError: "No queries provided" or "No passages provided".
    """
    if len(qs) == 0:
        raise ValueError("No queries provided")
    if len(ps) == 0:
        raise ValueError("No passages provided")
    device = device or _default_device()
    rows = []
    for i in range(0, len(qs), batch_size):
        queries = qs[i : i + batch_size]
        row = [_scores(queries, ps[j : j + batch_size], device) for j in range(0, len(ps), batch_size)]
        rows.append(torch.cat(row, dim=1).cpu())
    return torch.cat(rows).to(torch.float32)


def _scores(queries: Tensor | list[Tensor], passages: Tensor | list[Tensor], device: str | torch.device) -> Tensor:
    if isinstance(queries, Tensor) and isinstance(passages, Tensor):
        return maxsim(queries.to(device), passages.to(device))
    longest = max(passage.shape[0] for passage in passages)
    packed, query_offsets = _pack(list(queries), None, device)
    packed_passages, passage_offsets = _pack(list(passages), longest, device)
    return maxsim_varlen(packed, packed_passages, query_offsets, passage_offsets)


def _pack(samples: list[Tensor], longest: int | None, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Samples one after the other and their offsets; those shorter than `longest` end with one zero vector."""
    parts, lengths = [], [0]
    for sample in samples:
        parts.append(sample)
        lengths.append(sample.shape[0])
        if longest is not None and sample.shape[0] < longest:
            parts.append(sample.new_zeros((1, sample.shape[1])))
            lengths[-1] += 1
    return torch.cat(parts).to(device), torch.tensor(lengths).cumsum(0).to(device)


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"
