# SPDX-License-Identifier: Apache-2.0
"""What an exported model costs and how far it strays from the original."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bench import timing

__all__ = ["Agreement", "Latency", "agreement", "latency", "size_bytes"]


@dataclass(frozen=True)
class Agreement:
    """How close two outputs of the same shape are; cosines are of the last dimension's vectors."""

    max_abs_error: float
    mean_cosine: float
    min_cosine: float


@dataclass(frozen=True)
class Latency:
    """Seconds per call, and the speed relative to the first model of the table."""

    median: float
    q1: float
    q3: float
    ratio: float  # time of the first model over this one's, the median over rounds


def agreement(expected: Tensor, actual: Tensor) -> Agreement:
    """Compare `actual` with `expected`, both (..., D), in double precision. Raises ValueError where shapes differ."""
    if expected.shape != actual.shape:
        raise ValueError(f"actual: expected {tuple(expected.shape)} like expected, got {tuple(actual.shape)}")
    expected, actual = expected.detach().double(), actual.detach().double()
    cosine = F.cosine_similarity(expected, actual, dim=-1)
    return Agreement((expected - actual).abs().max().item(), cosine.mean().item(), cosine.min().item())


def latency(
    models: Mapping[str, Callable[..., Any]], args: tuple[Any, ...], *, seconds: float = 5.0, rounds: int | None = None
) -> dict[str, Latency]:
    """Time the models on the same inputs side by side, A B C A B C ..., without gradients.

    Args:
        models: name -> model; the first is the one the others are compared with.
        args: inputs.
        seconds: for all rounds together.
        rounds: a fixed number of rounds instead.
    """
    if not models:
        raise ValueError("models: expected at least one, got none")
    with torch.inference_mode():
        calls = {name: lambda model=model: model(*args) for name, model in models.items()}
        samples = timing.measure(calls, budget=seconds, rounds=rounds).seconds
    first = next(iter(samples.values()))
    result = {}
    for name, values in samples.items():
        summary = timing.summarize(values)
        ratio = timing.paired(first, values).median
        result[name] = Latency(summary.median, summary.q1, summary.q3, ratio)
    return result


def size_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files in a folder."""
    path = Path(path)
    if path.is_dir():
        return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    return path.stat().st_size
