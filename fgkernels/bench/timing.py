# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing: every round runs each implementation once, then the machine-limit probes.

Machines drift, so a ratio is taken inside a round, where both sides saw the same machine, and the median of the
rounds' ratios is reported; it isn't the ratio of two medians.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

MIN_SAMPLE_SECONDS = 0.005
MAX_REPEATS = 20_000
WARM_CALL_LIMIT_SECONDS = 0.25

Timer = Callable[[Callable[[], object], int], float]


@dataclass(frozen=True)
class Summary:
    """Median, quartiles, extremes and number of samples."""

    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float
    count: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def summarize(samples: Sequence[float]) -> Summary:
    """Summary of at least one sample; quartiles interpolate linearly between samples."""
    if not samples:
        raise ValueError("samples: expected at least one, got none")
    if len(samples) == 1:
        q1 = median = q3 = samples[0]
    else:
        q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(median, q1, q3, min(samples), max(samples), len(samples))


def paired(numerator: Sequence[float], denominator: Sequence[float]) -> Summary:
    """Summary of the ratios inside each round."""
    if len(numerator) != len(denominator):
        raise ValueError(f"paired: expected as many samples on both sides, got {len(numerator)} and {len(denominator)}")
    return summarize([n / d for n, d in zip(numerator, denominator, strict=True)])


@dataclass
class Timings:
    """Seconds per call and probe readings, one per round, and how they were taken."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    probes: dict[str, list[float]] = field(default_factory=dict)
    repeats: dict[str, int] = field(default_factory=dict)
    warm_call: bool = True

    @property
    def rounds(self) -> int:
        return max((len(samples) for samples in self.seconds.values()), default=0)


def time_calls(call: Callable[[], object], repeats: int) -> float:
    """Seconds per call by the wall clock."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _estimate(call: Callable[[], object], timer: Timer) -> float:
    call()
    return min(timer(call, 1) for _ in range(2))


def measure(
    calls: Mapping[str, Callable[[], object]],
    probes: Mapping[str, Callable[[], float]] | None = None,
    *,
    budget: float = 10.0,
    rounds: int | None = None,
    min_rounds: int = 5,
    max_rounds: int = 100,
    flush: Callable[[], object] | None = None,
    timer: Timer | None = None,
) -> Timings:
    """Time ``calls`` in turn, A B C A B C ..., with the probes between rounds.

    Args:
        calls: name -> call. Outputs are dropped at once.
        probes: name -> reading of a machine limit, taken once a round.
        budget: seconds for all rounds; the first ``min_rounds`` rounds run in any case.
        rounds: a fixed number of rounds instead.
        flush: empties the caches; called before each timed call (cold cache). Without it the cache is warm: an untimed
            call of the same implementation comes first, unless the slowest call takes over a quarter of a second.
        timer: (call, repeats) -> seconds per call; default: the wall clock.
    """
    if not calls:
        raise ValueError("calls: expected at least one, got none")
    timer = timer or time_calls
    estimates = {name: _estimate(call, timer) for name, call in calls.items()}
    timings = Timings(
        seconds={name: [] for name in calls},
        probes={name: [] for name in probes or {}},
        # A cold sample is one call: a second one would find the caches full.
        repeats={
            name: 1 if flush else min(MAX_REPEATS, max(1, math.ceil(MIN_SAMPLE_SECONDS / max(seconds, 1e-9))))
            for name, seconds in estimates.items()
        },
        warm_call=flush is None and max(estimates.values()) <= WARM_CALL_LIMIT_SECONDS,
    )
    names = list(calls)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for index in range(rounds or max_rounds):
            if rounds is None and index >= min_rounds and time.perf_counter() - start >= budget:
                break
            # A rotating first place: nobody always runs right after the probes.
            for name in names[index % len(names) :] + names[: index % len(names)]:
                if flush:
                    flush()
                elif timings.warm_call:
                    calls[name]()
                timings.seconds[name].append(timer(calls[name], timings.repeats[name]))
            for name, probe in (probes or {}).items():
                timings.probes[name].append(probe())
    finally:
        if collecting:
            gc.enable()
    return timings
