# SPDX-License-Identifier: Apache-2.0
"""What the kernels of every family share: reductions that keep NaN, and how a kernel is launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

#: Fixed when Triton defines its kernels, which is when this module is imported.
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)

#: An index greater than any that wins.
NO_INDEX = tl.constexpr(2**31 - 1)

#: Bytes of shared memory that a block may use where the device isn't at hand to ask: NVIDIA by compute capability, AMD.
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}


def device_function(function: Callable) -> Callable:
    """Decorator of functions that kernels call.

    The interpreter patches triton.language anew at each call of a jit function, which takes longer than the function:
    there it stays a Python function.
    """
    return function if INTERPRETED else triton.jit(function)


def _reduction(function: Any) -> Any:
    """A reduction of triton.language, for the same reason without its decorator in the interpreter."""
    return function.fn if INTERPRETED else function


maximum_of = _reduction(tl.max)
minimum_of = _reduction(tl.min)
sum_of = _reduction(tl.sum)


@triton.jit
def larger(a, b):
    """Combine function of a maximum that keeps NaN (tl.max drops it)."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@device_function
def max_keeping_nan(values, axis: tl.constexpr, INTERPRETER: tl.constexpr):
    """Maximum along an axis, NaN where one is NaN."""
    if INTERPRETER:
        # The interpreter would call `larger` once per element; this is the same in whole-array steps.
        nan = values != values
        maxima = maximum_of(tl.where(nan, float("-inf"), values), axis)
        return tl.where(maximum_of(nan.to(tl.int32), axis) > 0, float("nan"), maxima)
    else:
        return tl.reduce(values, axis, larger)


@device_function
def matrix_operand(values, INTERPRETER: tl.constexpr):
    """Tokens as tl.dot takes them: the interpreter multiplies 16-bit types in float32, which holds them exactly."""
    if INTERPRETER:
        return values if values.dtype == tl.float64 else values.to(tl.float32)
    else:
        return values


if INTERPRETED:

    def rounded(values, dtype):
        """Values in another dtype, to the nearest: on its way to bfloat16 the interpreter drops bits instead."""
        if dtype == tl.bfloat16:
            values = values.to(tl.float32)
            bits = values.to(tl.int32, bitcast=True)
            nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
            values = tl.where(values == values, nearest, values)
        return values.to(dtype)

    def narrow_operand(values):
        """16-bit values as tl.dot takes them: numpy has no such products, and float32 holds them exactly."""
        return values.to(tl.float32)
else:

    @triton.jit
    def rounded(values, dtype: tl.constexpr):
        """Values in another dtype, to the nearest."""
        return values.to(dtype)

    @triton.jit
    def narrow_operand(values):
        """16-bit values as tl.dot takes them."""
        return values


def ceil_div(count: int, block: int) -> int:
    return -(-count // block)


def next_power_of_2(value: int, low: int = 1, high: int | None = None) -> int:
    """The least power of two that is no smaller than `value`, kept within [low, high]."""
    size = max(low, triton.next_power_of_2(max(value, 1)))
    return size if high is None else min(size, high)


def multiprocessors(device: torch.device) -> int:
    """How many blocks the device runs side by side, at least."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    if device.type == "xpu":
        return torch.xpu.get_device_properties(device).gpu_subslice_count
    return 1


def shared_memory(device_index: int) -> int:
    """Bytes of shared memory that a block may use on this device."""
    return triton.runtime.driver.active.utils.get_device_properties(device_index)["max_shared_mem"]


class Kernel:
    """A Triton function with the configurations that it is tuned over.

    Args:
        function: the `triton.jit` function.
        configs: candidates, best guess first. Their keyword arguments set block sizes.
        key: names of the arguments whose values choose a configuration anew (dtypes always do).
        shared_bytes: (config, named arguments, whether the device is AMD's) -> bytes of shared memory, to drop those
            that the device cannot hold; None for those that don't suit the arguments.
        interpreter_blocks: named arguments -> block sizes in the interpreter, where a few large blocks are fastest.
    """

    def __init__(
        self,
        function: Any,
        configs: Sequence[triton.Config],
        key: Sequence[str],
        shared_bytes: Callable[[triton.Config, dict[str, Any], bool], int | None],
        interpreter_blocks: Callable[[dict[str, Any]], dict[str, int]],
    ) -> None:
        self.function = function
        self.configs = list(configs)
        self.shared_bytes = shared_bytes
        self.interpreter_blocks = interpreter_blocks
        self._tuned = None
        if not INTERPRETED:
            prune = {"early_config_prune": self._prune}
            self._tuned = triton.autotune(configs=self.configs, key=list(key), prune_configs_by=prune)(function)

    def _prune(self, configs: Sequence[triton.Config], named: dict[str, Any], **options: Any) -> list[triton.Config]:
        limit = shared_memory(torch.accelerator.current_device_index())
        return self.fitting({**named, **options}, limit, torch.version.hip is not None)

    def fitting(self, named: dict[str, Any], limit: int, amd: bool) -> list[triton.Config]:
        """The configurations within `limit` bytes of shared memory; the smallest where none is."""
        sizes = [(config, self.shared_bytes(config, named, amd)) for config in self.configs]
        sizes = [(config, size) for config, size in sizes if size is not None]
        fit = [config for config, size in sizes if size <= limit]
        return fit or [min(sizes, key=lambda pair: pair[1])[0]]

    def launch(self, device: torch.device, blocks: Callable[[dict[str, Any]], int], **arguments: Any) -> None:
        """Runs on tensors of `device`; `blocks(named arguments with block sizes)` is the size of the 1-D grid."""
        if INTERPRETED:
            sizes = self.interpreter_blocks(arguments)
            self.function[(blocks({**arguments, **sizes}),)](**arguments, **sizes)
            return
        with torch.accelerator.device_index(device.index):
            self._tuned[lambda named: (blocks(named),)](**arguments)


def fixed(function: Any, warps: int) -> Kernel:
    """A kernel of one configuration: sums take their order from it, and so results their last bits.

    It is also never run to be timed, so it may work in place.
    """
    return Kernel(function, [triton.Config({}, num_warps=warps)], (), lambda *_: 0, lambda named: {})
