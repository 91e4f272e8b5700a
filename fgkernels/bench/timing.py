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
# A call this long warms its own caches.
WARM_CALL_LIMIT_SECONDS = 0.25
# Calls this long are timed in a few rounds only, so that a baseline of a minute doesn't take an hour.
SLOW_CALL_SECONDS = 2.0
SLOW_CALL_ROUNDS = 2
# A first call, which may load and set up things, tells that a call is slow only where it takes this long.
SLOW_FIRST_CALL_SECONDS = 10.0

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
    """Seconds per call and probe readings, one per round, and how they were taken.

    A slow call has readings of the first rounds only. ``warm``: whether an untimed call preceded each timed one.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    probes: dict[str, list[float]] = field(default_factory=dict)
    repeats: dict[str, int] = field(default_factory=dict)
    warm: dict[str, bool] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        return max((len(samples) for samples in self.seconds.values()), default=0)


def time_calls(call: Callable[[], object], repeats: int) -> float:
    """Seconds per call by the wall clock."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _estimate(call: Callable[[], object], timer: Timer, known: float) -> float:
    if known > SLOW_FIRST_CALL_SECONDS:
        return known
    first = timer(call, 1)
    return first if first > SLOW_CALL_SECONDS else min(timer(call, 1) for _ in range(2))


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
    known: Mapping[str, float] | None = None,
) -> Timings:
    """Time ``calls`` in turn, A B C A B C ..., with the probes between rounds.

    Args:
        calls: name -> call. Outputs are dropped at once.
        probes: name -> reading of a machine limit, taken once a round.
        budget: seconds for all rounds; the first ``min_rounds`` rounds run in any case. A call of over two seconds has
            such a budget of its own, which the others don't pay: it runs in the first rounds, at least two, until it
            is used up.
        rounds: a fixed number of rounds for all instead.
        flush: empties the caches; called before each timed call (cold cache). Without it the cache is warm: an untimed
            call of the same implementation comes first, unless it takes over a quarter of a second.
        timer: (call, repeats) -> seconds per call; default: the wall clock.
        known: name -> seconds that the first call took; one of over ten seconds isn't tried again before the rounds.
    """
    if not calls:
        raise ValueError("calls: expected at least one, got none")
    timer = timer or time_calls
    estimates = {name: _estimate(call, timer, (known or {}).get(name, 0.0)) for name, call in calls.items()}
    slow = {
        name: max(SLOW_CALL_ROUNDS, int(budget / seconds))
        for name, seconds in estimates.items()
        if rounds is None and seconds > SLOW_CALL_SECONDS
    }
    timings = Timings(
        seconds={name: [] for name in calls},
        probes={name: [] for name in probes or {}},
        # A cold sample is one call: a second one would find the caches full.
        repeats={
            name: 1 if flush else min(MAX_REPEATS, max(1, math.ceil(MIN_SAMPLE_SECONDS / max(seconds, 1e-9))))
            for name, seconds in estimates.items()
        },
        warm={name: flush is None and seconds <= WARM_CALL_LIMIT_SECONDS for name, seconds in estimates.items()},
    )
    names = list(calls)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start, apart = time.perf_counter(), 0.0
        for index in range(rounds or max_rounds):
            if rounds is None and index >= min_rounds and time.perf_counter() - start - apart >= budget:
                break
            # A rotating first place: nobody always runs right after the probes.
            for name in names[index % len(names) :] + names[: index % len(names)]:
                if name in slow and index >= slow[name]:
                    continue
                if flush:
                    flush()
                elif timings.warm[name]:
                    calls[name]()
                timings.seconds[name].append(timer(calls[name], timings.repeats[name]))
                if name in slow:
                    apart += timings.seconds[name][-1]
            for name, probe in (probes or {}).items():
                timings.probes[name].append(probe())
    finally:
        if collecting:
            gc.enable()
    return timings
