# SPDX-License-Identifier: Apache-2.0
"""The peer package maxsim-cpu on the same tensors, where it is installed (extra [peers])."""

from __future__ import annotations

import pytest
import torch

import fgkernels

maxsim_cpu = pytest.importorskip("maxsim_cpu")


@pytest.mark.parametrize(("query_length", "document_length"), [(32, 40), (8, 300), (17, 180)])
def test_equal_lengths(backend: str, query_length: int, document_length: int) -> None:
    query, documents = torch.randn(1, query_length, 128), torch.randn(6, document_length, 128)
    peer = torch.from_numpy(maxsim_cpu.maxsim_scores(query[0].numpy(), documents.numpy()))
    torch.testing.assert_close(fgkernels.maxsim(query, documents)[0], peer, rtol=1e-5, atol=1e-3)


def test_ragged(backend: str) -> None:
    query, lengths = torch.randn(32, 128), [20, 75, 1, 130]
    documents = [torch.randn(length, 128) for length in lengths]
    peer = torch.from_numpy(maxsim_cpu.maxsim_scores_variable(query.numpy(), [d.numpy() for d in documents]))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    scores = fgkernels.maxsim_varlen(query, torch.cat(documents), torch.tensor([0, 32]), offsets)
    torch.testing.assert_close(scores[0], peer, rtol=1e-5, atol=1e-3)
