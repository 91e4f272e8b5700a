# SPDX-License-Identifier: Apache-2.0
"""Calls of the scans' and the convolution's Triton functions, and the references' results for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fgkernels.reference import causal_conv1d as conv_reference
from fgkernels.reference import mamba_chunk_scan as chunk_reference
from fgkernels.reference import selective_scan as scan_reference
from fgkernels.reference import selective_scan_2d as map_reference


class Call(NamedTuple):
    """`inputs` are what is differentiated; `run(kernels, inputs, grads)` gives outputs and gradients, `truth(inputs)`
    the same outputs from the reference."""

    inputs: list[Tensor | None]
    run: Callable[[dict, Sequence[Tensor | None], Sequence[Tensor]], tuple[list[Tensor], list[Tensor]]]
    truth: Callable[..., tuple[Tensor, ...]]


def randn(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(sizes, dtype=torch.float64).to(dtype)


def decays(*sizes: int) -> Tensor:
    return -torch.exp(randn(*sizes))


def selective_scan(length: int = 70, states: int = 5, channels: int = 12, dtype: torch.dtype = torch.float32) -> Call:
    """Two groups of channels, all that is optional, and a constant C."""
    u, delta, z = (randn(2, channels, length, dtype=dtype) for _ in range(3))
    inputs = [
        u, delta, decays(channels, states), randn(2, 2, states, length, dtype=dtype), randn(channels, states),
        randn(channels), z, randn(channels), randn(2, channels, states),
    ]  # fmt: skip

    def run(kernels: dict, inputs: Sequence, grads: Sequence) -> tuple[list[Tensor], list[Tensor]]:
        out, last, checkpoints = kernels["selective_scan"](*inputs, True)
        fast = kernels["selective_scan_fwd"](*inputs, True)
        assert torch.equal(fast[0], out) and torch.equal(fast[1], last)
        gradients = kernels["selective_scan_backward"](*grads, *inputs, checkpoints, True)
        return [out, last], list(gradients)

    return Call(inputs, run, lambda *inputs: scan_reference.selective_scan_core(*inputs, True)[:2])


def selective_scan_2d(length: int = 70, ordered: bool = False, states: int = 3) -> Call:
    """Three directions over a map that they share."""
    table = torch.stack([torch.randperm(length) for _ in range(3)]).to(torch.int32)
    inputs = [
        randn(2, 3, 6, length) if ordered else randn(2, 6, length), randn(2, 3, 6, length), decays(3, 6, states),
        randn(2, 3, states, length), randn(2, 3, states, length), randn(3, 6), randn(2, 6, length), randn(3, 6),
    ]  # fmt: skip

    def run(kernels: dict, inputs: Sequence, grads: Sequence) -> tuple[list[Tensor], list[Tensor]]:
        arguments = (*inputs, table)
        out, checkpoints = kernels["selective_scan_2d"](*arguments, True, ordered)
        assert torch.equal(kernels["selective_scan_2d_fwd"](*arguments, True, ordered), out)
        gradients = kernels["selective_scan_2d_backward"](*grads, *arguments, checkpoints, True, ordered)
        return [out], list(gradients)

    return Call(inputs, run, lambda *inputs: map_reference.selective_scan_2d_core(*inputs, table, True, ordered)[:1])


def causal_conv1d(length: int = 70, channels: int = 9, channel_last: bool = False) -> Call:
    x = randn(2, length, channels).transpose(1, 2)
    x = x if channel_last else x.contiguous()
    seq_idx = (torch.rand(2, length) < 0.1).cumsum(1).to(torch.int32)
    inputs = [x, randn(channels, 4), randn(channels), randn(2, channels, 3)]

    def run(kernels: dict, inputs: Sequence, grads: Sequence) -> tuple[list[Tensor], list[Tensor]]:
        x, weight, bias, state = inputs
        arguments = (x, weight, bias, seq_idx, state, True)
        return [kernels["causal_conv1d"](*arguments)], list(kernels["causal_conv1d_backward"](*grads, *arguments))

    def truth(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        return (conv_reference.forward_core(x, weight, bias, seq_idx, state, True),)

    return Call(inputs, run, truth)


def mamba_chunk_scan(length: int = 140, states: int = 20, dtype: torch.dtype = torch.float32, heads: int = 4) -> Call:
    """Two groups of heads, and sequences that end within chunks."""
    seq_idx = (torch.rand(1, length) < 0.03).cumsum(1).to(torch.int32)
    inputs = [
        randn(1, length, heads, 18, dtype=dtype), randn(1, length, heads, dtype=dtype), decays(heads),
        randn(1, length, 2, states, dtype=dtype), randn(1, length, 2, states, dtype=dtype), randn(heads, 18),
        randn(1, length, heads, 18, dtype=dtype), randn(heads), randn(1, heads, 18, states),
    ]  # fmt: skip
    limits = (0.05, 1.5)

    def run(kernels: dict, inputs: Sequence, grads: Sequence) -> tuple[list[Tensor], list[Tensor]]:
        arguments = (*inputs, seq_idx)
        out, final, checkpoints = kernels["mamba_chunk_scan"](*arguments, True, *limits)
        fast = kernels["mamba_chunk_scan_fwd"](*arguments, True, *limits)
        assert torch.equal(fast[0], out) and torch.equal(fast[1], final)
        gradients = kernels["mamba_chunk_scan_backward"](*grads, *arguments, checkpoints, True, *limits)
        return [out, final], list(gradients)

    return Call(inputs, run, lambda *inputs: chunk_reference.forward_core(*inputs, seq_idx, True, *limits))


def results(kernels: dict, call: Call) -> list[Tensor]:
    """Outputs and gradients, these for outputs weighted by random numbers that are the same at every call."""
    return [value for values in call.run(kernels, call.inputs, grads_of(call)) for value in values]


def grads_of(call: Call) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    outputs = call.truth(*call.inputs)
    return [torch.randn(out.shape, generator=generator).to(out.dtype) for out in outputs]


def check(kernels: dict, call: Call) -> list[Tensor]:
    """Every result within twice the error of the reference in the same dtype, plus some roundings of the largest."""
    found = results(kernels, call)
    eager, truth = (_reference(call, cast) for cast in (lambda value: value, torch.Tensor.double))
    for number, (value, rough, exact) in enumerate(zip(found, eager, truth, strict=True)):
        assert value.shape == exact.shape and value.dtype == rough.dtype
        error, allowed = ((other.double() - exact).abs().max().item() for other in (value, rough))
        tiny = 16 * torch.finfo(value.dtype).eps * max(exact.abs().max().item(), 1.0)
        assert error <= 2 * allowed + tiny, f"result {number}: {error} against {allowed} of the reference"
        assert not math.isnan(error)
    return found


def _reference(call: Call, cast: Callable[[Tensor], Tensor]) -> list[Tensor]:
    leaves = [cast(value).detach().requires_grad_() for value in call.inputs]
    outputs = call.truth(*leaves)
    grads = [cast(grad) for grad in grads_of(call)]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, leaves, grads)]
