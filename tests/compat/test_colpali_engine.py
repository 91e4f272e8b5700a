# SPDX-License-Identifier: Apache-2.0
"""compat.colpali_engine against colpali-engine's way: zero-padded batches, similarities, maximum, sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fgkernels.compat.colpali_engine import score_multi_vector


def padded_way(queries: list[Tensor], passages: list[Tensor], batch_size: int) -> Tensor:
    """Pads each batch with zero vectors to its longest entry and takes plain maxima."""

    def batches(samples):
        for start in range(0, len(samples), batch_size):
            part = samples[start : start + batch_size]
            longest = max(len(sample) for sample in part)
            yield torch.stack([torch.cat([s, s.new_zeros(longest - len(s), s.shape[1])]) for s in part])

    rows = [
        torch.cat([torch.matmul(q[:, None], p.mT[None]).amax(3).sum(2) for p in batches(passages)], 1)
        for q in batches(queries)
    ]
    return torch.cat(rows).float()


def ragged(lengths: list[int], shift: float = 0.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [(torch.randn(length, 16) + shift).to(dtype) for length in lengths]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 128])
@pytest.mark.parametrize("shift", [0.0, 1.0], ids=["mixed", "negative"])
def test_ragged_lists(backend: str, shift: float, batch_size: int) -> None:
    """With negative similarities the padding's zeros decide, and which passages are padded depends on the batches."""
    queries, passages = ragged([3, 9, 1, 6], shift), ragged([12, 5, 30, 30, 2], -shift)
    scores = score_multi_vector(queries, passages, batch_size=batch_size)
    assert scores.dtype == torch.float32 and scores.device.type == "cpu"
    torch.testing.assert_close(scores, padded_way(queries, passages, batch_size), rtol=1e-5, atol=1e-4)


def test_the_batches_matter() -> None:
    """The quirk that is reproduced: one and the same passage scores differently beside a longer one."""
    queries, passages = [torch.ones(2, 4)], [-torch.ones(3, 4), -torch.ones(5, 4)]
    assert score_multi_vector(queries, passages).tolist() == [[0, -8]]
    assert score_multi_vector(queries, passages, batch_size=1).tolist() == [[-8, -8]]


def test_tensors_and_mixtures(backend: str) -> None:
    queries, passages = torch.randn(4, 6, 16), torch.randn(5, 8, 16)
    expected = padded_way(list(queries), list(passages), 128)
    for q in (queries, list(queries)):
        for p in (passages, list(passages)):
            torch.testing.assert_close(score_multi_vector(q, p, batch_size=3), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    queries, passages = ragged([3, 9], dtype=dtype), ragged([12, 5], dtype=dtype)
    truth = padded_way([q.double() for q in queries], [p.double() for p in passages], 128)
    scores = score_multi_vector(queries, passages, device="cpu")
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, truth, rtol=1e-5, atol=1e-4)


def test_empty() -> None:
    with pytest.raises(ValueError, match="No queries provided"):
        score_multi_vector([], ragged([3]))
    with pytest.raises(ValueError, match="No passages provided"):
        score_multi_vector(ragged([3]), [])
