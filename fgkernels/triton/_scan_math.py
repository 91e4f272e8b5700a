# SPDX-License-Identifier: Apache-2.0
"""What the kernels of the scans and convolutions compute element by element, and the scan along a block's last axis."""

from __future__ import annotations

import itertools

import triton
import triton.language as tl

from .device import INTERPRETED, device_function

LOG2_E = tl.constexpr(1.4426950408889634)


@device_function
def exp_of_negative(x):
    """exp(x) for x <= 0 to the last bits: that of a GPU loses as many as |x| has before the point."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        x = tl.where(x < -200.0, -200.0, x)
        whole = tl.floor(x * LOG2_E + 0.5)
        # ln 2 in two parts, of which the first has few enough bits for an exact product.
        rest = (x - whole * 0.693359375) + whole * 2.12194440054690583e-4
        return tl.exp2(whole) * tl.exp(rest)


@device_function
def log1p_of_fraction(e):
    """log(1 + e) for e in [0, 1] from the series 2 atanh(s), s = e / (2 + e) <= 1/3; relative precision for tiny e."""
    terms: tl.constexpr = 18 if e.dtype == tl.float64 else 9
    s = e / (2.0 + e)
    square = s * s
    series = s * 0.0
    for i in tl.static_range(terms):
        series = series * square + 1.0 / (2 * (terms - i) - 1)
    return 2.0 * s * series


@device_function
def softplus(x):
    """log(1 + exp(x)), x above 20 as torch has it."""
    value = tl.where(x > 0, x, 0.0) + log1p_of_fraction(exp_of_negative(-tl.abs(x)))
    return tl.where(x > 20.0, x, value)


@device_function
def sigmoid(x):
    e = exp_of_negative(-tl.abs(x))
    return tl.where(x > 0, 1.0, e) / (1.0 + e)


@device_function
def softplus_gradient(x):
    return tl.where(x > 20.0, 1.0, sigmoid(x))


@device_function
def silu(x):
    return x * sigmoid(x)


@device_function
def silu_gradient(x):
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def _after(decay, increment, next_decay, next_increment):
    """One step h -> decay h + increment followed by another."""
    return decay * next_decay, next_decay * increment + next_increment


@device_function
def scan_on_device(decay, increment, REVERSE: tl.constexpr, INTERPRETER: tl.constexpr):
    """Along axis 1, from its end if REVERSE: the products of decays, and h = decay h + increment from h = 0."""
    return tl.associative_scan((decay, increment), 1, _after, reverse=REVERSE)


def scan_whole_arrays(decay, increment, REVERSE, INTERPRETER):
    """The same in the interpreter, which would call `_after` once per element: here a step serves all rows."""
    if not INTERPRETER:
        return scan_on_device(decay, increment, REVERSE, INTERPRETER)
    factors, sums = decay.handle.data.copy(), increment.handle.data.copy()
    places = range(sums.shape[1])
    places = places[::-1] if REVERSE else places
    for before, place in itertools.pairwise(places):
        sums[:, place] += factors[:, place] * sums[:, before]
        factors[:, place] *= factors[:, before]
    handle = type(increment.handle)
    return tuple(
        tl.core.tensor(handle(data, like.handle.dtype), like.type)
        for data, like in ((factors, decay), (sums, increment))
    )


scan = scan_whole_arrays if INTERPRETED else scan_on_device


@triton.jit
def _sum_in_two(high, low, next_high, next_low):
    """Adds numbers that are kept in two parts (Knuth's sum without error)."""
    total = high + next_high
    part = total - high
    error = (high - (total - part)) + (next_high - part)
    return total, low + next_low + error


@device_function
def running_sums_on_device(values, INTERPRETER: tl.constexpr):
    """Sums along axis 1 up to each place, in two parts that together have twice the digits."""
    return tl.associative_scan((values, values * 0.0), 1, _sum_in_two)


def running_sums_of_whole_arrays(values, INTERPRETER):
    """The same in the interpreter, which would call `_sum_in_two` once per element."""
    if not INTERPRETER:
        return running_sums_on_device(values, INTERPRETER)
    sums = values.handle.data.astype("longdouble").cumsum(1)
    high = sums.astype(values.handle.data.dtype)
    handle = type(values.handle)
    return tuple(
        tl.core.tensor(handle(part, values.handle.dtype), values.type)
        for part in (high, (sums - high).astype(high.dtype))
    )


running_sums = running_sums_of_whole_arrays if INTERPRETED else running_sums_on_device
