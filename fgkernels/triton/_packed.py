# SPDX-License-Identifier: Apache-2.0
"""Packed sequences as the kernels need them: offsets that can be trusted, samples of tokens, and tiles of samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import _checks


class Packed(NamedTuple):
    """Offsets of packed sequences, int64 (count + 1,), all 0 where they were illegal; legal is int32 () 1 or 0."""

    offsets: Tensor
    legal: Tensor

    @property
    def count(self) -> int:
        return self.offsets.shape[0] - 1

    def lengths(self) -> Tensor:
        return self.offsets.diff()

    def poison(self, values: Tensor) -> Tensor:
        """`values`, or NaN in their place where the offsets were illegal."""
        return torch.where(self.legal != 0, values, torch.nan)


def packed(
    query_offsets: Tensor, queries: Tensor, document_offsets: Tensor, documents: Tensor
) -> tuple[Packed, Packed]:
    """Both sides' offsets, checked.

    Raises:
        RuntimeError: for illegal offsets on the CPU. On another device they are found by the device, without a wait
            of the host, and replaced by zeros on both sides.
    """
    if query_offsets.device.type == "cpu":
        for name, offsets, tokens in (
            ("query_offsets", query_offsets, queries),
            ("document_offsets", document_offsets, documents),
        ):
            try:
                _checks.check_offset_values(name, offsets, tokens)
            except ValueError as error:
                raise RuntimeError(str(error)) from None
    return packed_on_device(query_offsets, queries.shape[0], document_offsets, documents.shape[0])


def packed_on_device(
    query_offsets: Tensor, query_tokens: int, document_offsets: Tensor, document_tokens: int
) -> tuple[Packed, Packed]:
    """The same without reading a value on the host."""
    legal = _legal(query_offsets, query_tokens) & _legal(document_offsets, document_tokens)
    flag = legal.to(torch.int32)
    return tuple(
        Packed(torch.where(legal, offsets, 0).to(torch.int64).contiguous(), flag)
        for offsets in (query_offsets, document_offsets)
    )


def _legal(offsets: Tensor, tokens: int) -> Tensor:
    return (offsets[0] == 0) & (offsets[-1] == tokens) & (offsets[1:] >= offsets[:-1]).all()


def token_samples(offsets: Packed, tokens: int) -> Tensor:
    """int32 (tokens,): the sample that each token belongs to (any legal number where the offsets were illegal)."""
    positions = torch.arange(tokens, device=offsets.offsets.device)
    samples = torch.searchsorted(offsets.offsets, positions, right=True) - 1
    return samples.clamp(0, offsets.count - 1).to(torch.int32)


class Tiles(NamedTuple):
    """Tiles of `block` tokens, none across two samples: sample of each tile (count,), first tile of each sample."""

    samples: Tensor
    starts: Tensor
    count: int

    @staticmethod
    def of(offsets: Packed, tokens: int, block: int, work: Tensor) -> Tiles:
        """Tiles of the samples with the most `work` (one number per sample) come first.

        Their number is bounded without asking the device for the lengths: a few tiles at the end may lie past the
        last sample's tokens.
        """
        count = -(-tokens // block) + offsets.count
        order = torch.argsort(work, descending=True, stable=True)
        ends = ((offsets.lengths() + block - 1) // block)[order].cumsum(0)
        starts = torch.empty_like(ends)
        starts[order] = torch.cat([ends.new_zeros(1), ends[:-1]])
        slots = torch.searchsorted(ends, torch.arange(count, device=ends.device), right=True)
        return Tiles(order[slots.clamp(max=offsets.count - 1)].to(torch.int32), starts.to(torch.int32), count)
