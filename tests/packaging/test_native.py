# SPDX-License-Identifier: Apache-2.0
"""fgkernels._native: levels, machine limits, bin packing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

native = pytest.importorskip("fgkernels._native")


@pytest.fixture
def restored_level():
    before = native.isa()
    yield
    native.set_isa(before)


def test_levels_are_ascending_and_every_supported_one_can_be_set(restored_level):
    assert set(native.supported_isas()) <= set(native.isas())
    for level in native.supported_isas():
        native.set_isa(level)
        assert native.isa() == level


def test_an_unknown_level_is_a_value_error_that_lists_the_choices(restored_level):
    before = native.isa()
    with pytest.raises(ValueError, match=r"name: expected one of baseline.*got 'sse9'"):
        native.set_isa("sse9")
    assert native.isa() == before


def test_a_level_of_another_processor_is_refused():
    foreign = "avx512" if "neon" in native.isas() else "neon"
    with pytest.raises(ValueError, match="cannot run here"):
        native.set_isa(foreign)


def test_cpu_features_are_flags():
    features = native.cpu_features()
    assert features and all(isinstance(present, bool) for present in features.values())


def test_probes_measure_at_every_level(restored_level):
    for level in native.supported_isas():
        native.set_isa(level)
        for dtype in ("float32", "float64", "bfloat16", "int8", "exp_fma"):
            rate = native.probe_fma(dtype, threads=1, seconds=0.01)
            assert math.isfinite(rate) and rate > 0
        assert native.probe_read(threads=2, megabytes=2, seconds=0.01) > 0


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: native.probe_fma("float16"), "dtype"),
        (lambda: native.probe_fma(threads=0), "threads"),
        (lambda: native.probe_fma(seconds=0), "seconds"),
        (lambda: native.probe_fma(seconds=math.nan), "seconds"),
        (lambda: native.probe_read(threads=-1), "threads"),
        (lambda: native.probe_read(megabytes=0), "megabytes"),
        (lambda: native.probe_read(megabytes=math.inf), "megabytes"),
        (lambda: native.bin_pack([1], 0), "capacity"),
        (lambda: native.bin_pack([3, -1], 4), r"lengths\[1\]"),
        (lambda: native.bin_pack([3, 5], 4), r"lengths\[1\]"),
    ],
)
def test_bad_arguments_are_named(call, argument):
    with pytest.raises(ValueError, match=f"^{argument}: expected .*, got "):
        call()


def test_bin_pack_worked_example():
    # Decreasing: 8 7 5 3 2 into bins of 10. 8 opens a bin, 7 the next, 5 the next, 3 fits after 7, 2 after 8.
    assert native.bin_pack([5, 3, 7, 2, 8], 10) == [[4, 3], [2, 1], [0]]
    assert native.bin_pack([], 4) == []
    assert native.bin_pack([4, 4, 0, 0], 4) == [[0, 2, 3], [1]]


def first_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook loop, quadratic."""
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for members in bins:
            if sum(lengths[i] for i in members) + lengths[item] <= capacity:
                members.append(item)
                break
        else:
            bins.append([item])
    return bins


@given(st.data(), st.integers(1, 60))
def test_bin_pack_equals_the_textbook_loop(data, capacity):
    lengths = data.draw(st.lists(st.integers(0, capacity), max_size=60))
    assert native.bin_pack(lengths, capacity) == first_fit_decreasing(lengths, capacity)


def test_bin_pack_takes_capacities_near_the_integer_limit():
    limit = 2**63 - 1
    assert native.bin_pack([limit, limit, 0], limit) == [[0, 2], [1]]
