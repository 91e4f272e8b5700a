# SPDX-License-Identifier: Apache-2.0
"""Statistics and the order of interleaved calls, on made-up readings."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from fgkernels.bench import timing


def test_summary_equals_numpy_percentiles():
    samples = [5.0, 1.0, 4.0, 2.0, 9.0, 3.5]
    summary = timing.summarize(samples)
    q1, median, q3 = np.percentile(samples, [25, 50, 75])
    assert (summary.q1, summary.median, summary.q3) == pytest.approx((q1, median, q3))
    assert (summary.minimum, summary.maximum, summary.count) == (1.0, 9.0, 6)


def test_summary_of_one_sample_and_of_none():
    assert timing.summarize([2.0]).q3 == 2.0
    with pytest.raises(ValueError, match="samples"):
        timing.summarize([])


def test_paired_ratio_is_immune_to_drift_that_unpaired_medians_are_not():
    # The machine slows down; the baseline takes 3 times as long in every round.
    ours = [1.0, 2.0, 10.0, 10.0]
    assert timing.paired([3 * second for second in ours], ours).median == pytest.approx(3.0)
    with pytest.raises(ValueError, match="as many samples"):
        timing.paired([1.0], [1.0, 2.0])


def _record(monkeypatch, **options):
    """The order of calls in ``measure``; every block of calls takes a made-up second."""
    log: list[str] = []
    monkeypatch.setattr(timing, "time_calls", lambda call, repeats: (call(), 1.0)[1])
    calls = {name: (lambda name=name: log.append(name)) for name in "ab"}
    probes = {"limit": lambda: (log.append("probe"), 7.0)[1]}
    return log, timing.measure(calls, probes, **options)


def test_every_round_runs_all_once_then_the_probe(monkeypatch):
    log, timings = _record(monkeypatch, rounds=3)
    # Estimates come first: one warm-up and two readings each. Calls of a second are timed without a warm call.
    assert log[:6] == ["a"] * 3 + ["b"] * 3
    assert log[6:] == ["a", "b", "probe", "b", "a", "probe", "a", "b", "probe"]
    assert timings.seconds == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert timings.probes == {"limit": [7.0] * 3}
    assert timings.rounds == 3 and timings.warm == {"a": False, "b": False}


def test_cold_cache_flushes_before_each_timed_call(monkeypatch):
    log: list[str] = []
    monkeypatch.setattr(timing, "time_calls", lambda call, repeats: (call(), 1e-6)[1])
    calls = {name: (lambda name=name: log.append(name)) for name in "ab"}
    timings = timing.measure(calls, rounds=2, flush=lambda: log.append("flush"))
    assert log[6:] == ["flush", "a", "flush", "b", "flush", "b", "flush", "a"]
    assert set(timings.repeats.values()) == {1}


def test_warm_cache_precedes_short_calls_and_repeats_them(monkeypatch):
    log: list[str] = []
    monkeypatch.setattr(timing, "time_calls", lambda call, repeats: (log.append(f"timed {repeats}"), 1e-3)[1])
    timings = timing.measure({"a": lambda: log.append("warm")}, rounds=1)
    assert log[-2:] == ["warm", f"timed {round(timing.MIN_SAMPLE_SECONDS / 1e-3)}"]
    assert timings.warm == {"a": True}


def test_slow_calls_take_part_in_the_first_rounds_and_the_others_have_the_budget(monkeypatch):
    clock = [0.0]
    log: list[str] = []
    taken = {"ours": 0.01, "slow": 41.0, "slower": 3.0}

    def timed(call, repeats):
        call()
        return taken[log[-1]]

    def call(name):
        log.append(name)
        clock[0] += taken[name]

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    calls = {name: (lambda name=name: call(name)) for name in taken}
    timings = timing.measure(calls, budget=12.0, min_rounds=5, timer=timed, known={"slow": 40.0, "ours": 3.0})
    # The slow one isn't tried first, one reading of the slower one is estimate enough, and a first call that took
    # seconds to set things up makes nobody slow.
    assert log[:4] == ["ours", "ours", "ours", "slower"] and log.count("slow") == timing.SLOW_CALL_ROUNDS
    assert {name: len(samples) for name, samples in timings.seconds.items()} == {"ours": 100, "slow": 2, "slower": 4}
    assert timings.warm == {"ours": True, "slow": False, "slower": False}


def test_a_fixed_number_of_rounds_holds_for_slow_calls_too(monkeypatch):
    monkeypatch.setattr(timing, "time_calls", lambda call, repeats: 9.0)
    timings = timing.measure({"a": lambda: None}, rounds=3)
    assert timings.seconds == {"a": [9.0] * 3}


def test_budget_bounds_the_rounds_but_not_below_the_minimum():
    assert timing.measure({"a": lambda: None}, budget=0.0, min_rounds=4).rounds == 4
    assert timing.measure({"a": lambda: None}, budget=60.0, max_rounds=6).rounds == 6


def test_garbage_collection_is_restored():
    timing.measure({"a": lambda: None}, rounds=1)
    assert gc.isenabled()
    with pytest.raises(ValueError, match="calls"):
        timing.measure({})
