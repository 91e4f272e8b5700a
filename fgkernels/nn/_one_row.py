# SPDX-License-Identifier: Apache-2.0
"""Projections of a single row, which decoding one sequence consists of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x) for x (B, C), on all threads also where B = 1.

    MKL leaves the product of one row and a matrix, which is as fast as memory is, to one thread, but spreads a batch of
    products over all: such a product becomes a batch of one per thread, of as many parts of the weight.
    """
    if (
        x.shape[0] != 1
        or not x.is_cpu
        or x.dtype != torch.float32
        or not _plain(layer)
        or torch.compiler.is_compiling()
    ):
        return layer(x)
    rows, threads = layer.out_features, torch.get_num_threads()
    if torch.is_grad_enabled() or threads == 1 or rows % threads or layer.weight.dtype != x.dtype:
        return layer(x)
    parts = layer.weight.view(threads, rows // threads, layer.in_features)
    out = torch.bmm(x.expand(threads, 1, -1), parts.mT).view(1, rows)
    return out if layer.bias is None else out + layer.bias


def _plain(layer: nn.Module) -> bool:
    """Whether calling the layer does nothing but multiply by its weight, held as a dense tensor."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.is_contiguous()
        and "forward" not in layer.__dict__  # where accelerate puts its hooks
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not torch.is_autocast_enabled("cpu")
    )
