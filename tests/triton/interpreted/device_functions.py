# SPDX-License-Identifier: Apache-2.0
"""Kernels of one block around single device functions."""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor
from triton.language import core  # noqa: F401 (the interpreter patches it only if it finds it here)

from fgkernels.triton._mamba_chunk_scan_forward import product
from fgkernels.triton._scan_math import running_sums, scan, softplus, softplus_gradient
from fgkernels.triton.device import rounded


@triton.jit
def _scan(decay, increment, products, sums, REVERSE: tl.constexpr, WHOLE: tl.constexpr, ROWS, COLUMNS: tl.constexpr):
    at = tl.arange(0, 4)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (tl.arange(0, 4) < ROWS)[:, None] & (tl.arange(0, COLUMNS) < COLUMNS)[None, :]
    a, x = scan(tl.load(decay + at, mask=mask, other=0), tl.load(increment + at, mask=mask, other=0), REVERSE, WHOLE)
    tl.store(products + at, a, mask=mask)
    tl.store(sums + at, x, mask=mask)


@triton.jit
def _sum(values, high, low, WHOLE: tl.constexpr, ROWS, COLUMNS: tl.constexpr):
    at = tl.arange(0, 4)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (tl.arange(0, 4) < ROWS)[:, None] & (tl.arange(0, COLUMNS) < COLUMNS)[None, :]
    first, second = running_sums(tl.load(values + at, mask=mask, other=0), WHOLE)
    tl.store(high + at, first, mask=mask)
    tl.store(low + at, second, mask=mask)


@triton.jit
def _multiply(a, b, out):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    total = product(tl.load(a + at), tl.load(b + at), tl.full([16, 16], 0, tl.float32), True, False)
    tl.store(out + at, total)


@triton.jit
def _soften(x, value, gradient, count, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    loaded = tl.load(x + at, mask=at < count, other=0)
    tl.store(value + at, softplus(loaded), mask=at < count)
    tl.store(gradient + at, softplus_gradient(loaded), mask=at < count)


@triton.jit
def _round(values, out, count, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, rounded(tl.load(values + at, mask=at < count, other=0), out.dtype.element_ty), mask=at < count)


def scanner(reverse: bool, whole: bool) -> Callable[..., None]:
    def run(decay: Tensor, increment: Tensor, products: Tensor, sums: Tensor) -> None:
        rows, columns = decay.shape
        _scan[(1,)](decay, increment, products, sums, reverse, whole, rows, columns)

    return run


def summer(whole: bool) -> Callable[..., None]:
    def run(values: Tensor, high: Tensor, low: Tensor) -> None:
        _sum[(1,)](values, high, low, whole, *values.shape)

    return run


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    _multiply[(1,)](a, b, out)


def soften(x: Tensor, value: Tensor, gradient: Tensor) -> None:
    _soften[(1,)](x, value, gradient, x.numel(), triton.next_power_of_2(x.numel()))


def round_to(values: Tensor, out: Tensor) -> None:
    _round[(1,)](values, out, values.numel(), triton.next_power_of_2(values.numel()))
