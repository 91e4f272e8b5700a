# SPDX-License-Identifier: Apache-2.0
"""What the tests of every operator family share: dtypes, memory layouts, seeds, the tolerance rule and fuzzing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "transposed", "channels_strided", "sliced", "every_second", "expanded"]


def generator(seed: int) -> torch.Generator:
    """A seeded generator for the device on which fresh tensors live."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def names(value: object) -> str:
    """Test ids: float32 instead of torch.float32."""
    return str(value).removeprefix("torch.").replace(", ", "x").strip("()")


def lay_out(values: Tensor, layout: str) -> Tensor:
    """`values` with the same shape and entries (expanded: the first sample repeated) in another memory layout.

    Layouts with gaps have NaN, or the smallest int8, in them, so that a read outside the view shows.
    """
    poison = -128 if values.dtype == torch.int8 else math.nan
    if layout == "contiguous":
        return values.contiguous()
    if layout == "transposed":
        return values.transpose(-2, -3).contiguous().transpose(-2, -3)
    if layout == "channels_strided":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded":
        return values[:1].expand(values.shape)
    if layout == "sliced":
        block = values.new_full([size + 3 for size in values.shape], poison)
        view = block[tuple(slice(1, 1 + size) for size in values.shape)]
    elif layout == "every_second":
        block = values.new_full([2 * size + 1 for size in values.shape], poison)
        view = block[tuple(slice(1, 1 + 2 * size, 2) for size in values.shape)]
    else:
        raise ValueError(layout)
    return view.copy_(values)


def reads_values(implementation) -> bool:
    """Whether tables and indices are checked on the host: not on a GPU, for which that would wait."""
    return implementation.device == "cpu"


def left_out(implementation, chosen: bool) -> bool:
    """Whether simulated GPU kernels, which take a hundred times as long, leave a case to others that stand for it."""
    return implementation.simulated and not chosen


def to_default_device(value: object) -> object:
    """Tensors of a module's constants on the device of the implementation under test; the meta device stays."""
    if isinstance(value, Tensor) and value.device.type == "cpu":
        return value.to(torch.get_default_device())
    return value


def error(value: Tensor, truth: Tensor) -> float:
    """Largest absolute difference, in float64; infinite where only one of the two is NaN."""
    if value.numel() == 0:
        return 0.0
    value, truth = value.double(), truth.double()
    if not torch.equal(value.isnan(), truth.isnan()):
        return math.inf
    return (value - truth).nan_to_num(0.0).abs().max().item()


def assert_as_exact_as_torch(value: Tensor, eager: Tensor, truth: Tensor, input_dtype: torch.dtype) -> None:
    """err(kernel) <= 2 err(torch in the same dtype) + tiny, both against float64.

    Tiny is some roundings of the result's dtype at the size of the largest value, since torch may be exact by luck.
    """
    assert value.shape == truth.shape
    size = truth.double().abs().max().item() if truth.numel() else 0.0
    tiny = 16 * torch.finfo(value.dtype).eps * max(size, 1.0)
    assert error(value, truth) <= 2 * error(eager, truth) + tiny


def drawn(strategy: st.SearchStrategy) -> Callable:
    """Decorator: a test of every implementation with hypothesis' examples of `strategy`.

    Simulated GPU kernels get a tenth of the examples, since one takes them as long as a hundred of the CPU's.
    """

    def decorate(check: Callable) -> Callable:
        def test(implementation) -> None:
            examples = hypothesis.settings.default.max_examples
            if implementation.simulated:
                examples = max(examples // 10, 5)

            def example(value: Any) -> None:
                check(implementation, value)

            example.__qualname__ = f"{check.__qualname__}[{implementation.name}]"
            hypothesis.settings(max_examples=examples)(hypothesis.given(strategy)(example))()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


class threads:
    """Thread count of one example; GPU kernels have none."""

    def __init__(self, data: st.DataObject, implementation) -> None:
        self.count = data.draw(st.integers(1, 2)) if implementation.is_cpu_build else 1

    def __enter__(self) -> None:
        torch.set_num_threads(self.count)

    def __exit__(self, *exception: object) -> None:
        torch.set_num_threads(1)
