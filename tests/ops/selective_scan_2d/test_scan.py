# SPDX-License-Identifier: Apache-2.0
"""`selective_scan_2d` equals one scan per direction, values and gradients, in every form."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

import fgkernels
from fgkernels.reference import selective_scan_2d as reference

from ..common import FLOATS, left_out, names, reads_values
from ..selective_scan.cases import assert_exact, doubled
from .cases import ALL, EMPTY, FORMS, SIZES, TENSORS, Case, call, gradients, map_inputs, one_direction_at_a_time

FOUR = ("h", "v", "h_flip", "v_flip")


def check(case: Case, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Tensor:
    """Value and gradients against float64, one direction at a time; the reference in this dtype is the yardstick."""
    inputs = map_inputs(case, dtype, layout)
    grad = torch.randn(case.batch, case.channels, *case.size).to(dtype)
    terms = len(case.directions) * case.batch * case.length * max(case.states, case.channels)
    found = call(fgkernels.selective_scan_2d, inputs, case)
    eager = call(reference.selective_scan_2d, inputs, case)
    truth = one_direction_at_a_time(doubled(inputs), case)
    assert_exact(found, eager, truth, terms)
    assert found.is_contiguous()
    slopes = (
        gradients(lambda x: call(fgkernels.selective_scan_2d, x, case), inputs, grad),
        gradients(lambda x: call(reference.selective_scan_2d, x, case), inputs, grad),
        gradients(lambda x: one_direction_at_a_time(x, case), doubled(inputs), grad),
    )
    for name, value in slopes[0].items():
        assert value.dtype == inputs[name].dtype
        try:
            assert_exact(value, slopes[1][name], slopes[2][name], terms)
        except AssertionError as error:
            raise AssertionError(f"d{name}: {error}") from error
    return found


@pytest.mark.parametrize("case", [*FORMS, *SIZES, *EMPTY], ids=str)
def test_reference(case: Case) -> None:
    """All directions as channels of one scan, which is how the reference has them, are one scan per direction."""
    inputs = map_inputs(case, torch.float64)
    expected = one_direction_at_a_time(inputs, case)
    torch.testing.assert_close(call(reference.selective_scan_2d, inputs, case), expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn(expected.shape, dtype=torch.float64)
    found = gradients(lambda x: call(reference.selective_scan_2d, x, case), inputs, grad)
    expected = gradients(lambda x: one_direction_at_a_time(x, case), inputs, grad)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-11)


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("case", FORMS, ids=str)
def test_forms(implementation, case: Case, dtype: torch.dtype) -> None:
    if left_out(implementation, dtype == torch.float32 or case is FORMS[0]):
        return
    if implementation.simulated:
        case = dataclasses.replace(case, directions=("h", "v_flip", "d"))
    out = check(case, dtype)
    assert out.dtype == dtype


@pytest.mark.compiled
@pytest.mark.parametrize("case", SIZES, ids=str)
def test_sizes(implementation, case: Case) -> None:
    check(case)


@pytest.mark.compiled
@pytest.mark.parametrize("layout", ["transposed", "channels_strided", "sliced", "every_second"])
@pytest.mark.parametrize("case", [FORMS[1], FORMS[5], FORMS[9]], ids=str)
def test_layouts(operators, case: Case, layout: str) -> None:
    check(dataclasses.replace(case, directions=("h", "v_flip", "a")), torch.float32, layout)


@pytest.mark.compiled
@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(operators, case: Case) -> None:
    check(case)


def test_flat_maps_and_channels_last(served) -> None:
    """(..., H, W) may be given as (..., L), and a map may be channels-last in memory."""
    case = Case(directions=FOUR)
    inputs = map_inputs(case)
    expected = call(fgkernels.selective_scan_2d, inputs, case)
    flat = {name: inputs[name].flatten(-2) if name in ("delta", "B", "C", "z") else inputs[name] for name in TENSORS}
    assert torch.equal(call(fgkernels.selective_scan_2d, flat, case), expected)
    assert torch.equal(call(fgkernels.selective_scan_2d, flat, case, size=None), expected)
    last = {
        n: inputs[n].contiguous(memory_format=torch.channels_last) if n in ("x", "z") else inputs[n] for n in TENSORS
    }
    torch.testing.assert_close(call(fgkernels.selective_scan_2d, last, case), expected)


def test_what_is_shared_may_differ(served) -> None:
    """A of each direction with a D that all share, and the other way round: as if each direction had a copy."""
    case = Case(directions=FOUR)
    inputs = map_inputs(case)
    for name in ("A", "D", "delta_bias"):
        shared = inputs | {name: inputs[name][0]}
        copied = inputs | {name: inputs[name][:1].expand_as(inputs[name])}
        found, expected = (call(fgkernels.selective_scan_2d, x, case) for x in (shared, copied))
        assert torch.equal(found, expected)
        grad = torch.randn_like(found)
        found = gradients(lambda x: call(fgkernels.selective_scan_2d, x, case), shared, grad)[name]
        expected = gradients(lambda x: call(fgkernels.selective_scan_2d, x, case), copied, grad)[name]
        torch.testing.assert_close(found, expected.sum(0))


def test_a_table_of_the_caller(served) -> None:
    """Names are tables; any permutations will do, of int32 or int64."""
    case = Case(directions=("h", "d_flip"), states=2)
    inputs = map_inputs(case)
    table = fgkernels.scan_table(*case.size, case.directions, device=inputs["x"].device)
    expected = call(fgkernels.selective_scan_2d, inputs, case)
    for dtype in (torch.int32, torch.int64):
        assert torch.equal(call(fgkernels.selective_scan_2d, inputs, case, table=table.to(dtype)), expected)
    order = torch.randperm(case.length)
    shuffled = inputs | {n: inputs[n].flatten(-2)[..., order] for n in ("delta", "B", "C", "z")}
    shuffled["x"] = inputs["x"].flatten(-2)[..., order].unflatten(-1, case.size)
    moved = torch.argsort(order)[table.long()]
    found = call(fgkernels.selective_scan_2d, shuffled, case, table=moved)
    torch.testing.assert_close(found.flatten(-2), expected.flatten(-2)[..., order])


# --- the published uses -----------------------------------------------------------------------------------------------


def test_four_orders_with_shared_weights_in_one_call(served) -> None:
    """Mamba-FSCIL: one block's weights on four orders of a small map, N far above L, in one call instead of four."""
    batch, channels, states, size = 2, 6, 64 if served.simulated else 256, (5, 5)
    length = size[0] * size[1]
    u, delta = torch.randn(2, batch, 4, channels, length)
    B, C = torch.randn(2, batch, 4, states, length)
    A, D, bias = -torch.rand(channels, states), torch.randn(channels), torch.randn(channels)
    z = torch.randn(batch, channels, *size)
    found = fgkernels.selective_scan_2d(
        u, delta - 2, A, B, C, D, z, bias, True, directions=FOUR, ordered=True, size=size
    )  # fmt: skip
    table = fgkernels.scan_table(*size, FOUR, device=u.device).long()
    total = torch.zeros(batch, channels, length)
    for k in range(4):
        # Each of the four calls gates its own sequence, with the map's z in its order.
        gate = z.flatten(2)[..., table[k]]
        out = fgkernels.selective_scan(u[:, k], delta[:, k] - 2, A, B[:, k], C[:, k], D, gate, bias, True)
        total[..., table[k]] += out
    torch.testing.assert_close(found.flatten(2), total, rtol=1e-4, atol=1e-4)


def test_official_composition(served) -> None:
    """VMamba and FER-YOLO-Mamba: cross_scan, one grouped scan over K * E channels, cross_merge; the gate outside."""
    case = Case(2, 4, (3, 5), 3, ALL, parameters="official", z=False)
    inputs = map_inputs(case)
    delta, B, C = (inputs[name].flatten(-2) for name in ("delta", "B", "C"))
    table = fgkernels.scan_table(3, 5, ALL, device=delta.device).long()[:, None, :]
    delta, B, C = (value.gather(-1, table.expand(value.shape)) for value in (delta, B, C))
    y = fgkernels.selective_scan(
        fgkernels.cross_scan(inputs["x"], ALL).flatten(1, 2), delta.flatten(1, 2), inputs["A"], B, C, inputs["D"], None,
        inputs["delta_bias"], True,
    )  # fmt: skip
    expected = fgkernels.cross_merge(y.unflatten(1, (8, 4)), ALL, size=(3, 5))
    torch.testing.assert_close(call(fgkernels.selective_scan_2d, inputs, case), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.compiled
@pytest.mark.parametrize("x", ["shared", "own"])
def test_gradcheck(implementation, x: str) -> None:
    """By finite differences in float64, at the sizes of the specification: E = 4, N = 2, a map of 4 x 3."""
    case = Case(1, 4, (4, 3), 2, ("h", "v_flip") if implementation.simulated else ALL, x)
    inputs = map_inputs(case, torch.float64)

    def function(*tensors: Tensor) -> Tensor:
        return call(fgkernels.selective_scan_2d, dict(zip(TENSORS, tensors, strict=True)), case)

    tensors = [inputs[name].requires_grad_() for name in TENSORS]
    torch.autograd.gradcheck(function, tensors, fast_mode=True)


@pytest.mark.compiled
def test_same_result_on_any_number_of_threads(cpu_implementation) -> None:
    for case in (Case(1, 18, (9, 8), 4), Case(2, 5, (3, 3), 64, FOUR, "own", "shared", True)):
        inputs = map_inputs(case)
        grad = torch.randn(case.batch, case.channels, *case.size)
        results = []
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            out = call(fgkernels.selective_scan_2d, inputs, case)
            slopes = gradients(lambda x, case=case: call(fgkernels.selective_scan_2d, x, case), inputs, grad)
            results.append([out, *slopes.values()])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("special", [math.nan, math.inf])
def test_special_numbers_stay_in_their_channel(served, special: float) -> None:
    case = Case(2, 6, (3, 4), 2, FOUR)
    clean = map_inputs(case)
    expected = call(fgkernels.selective_scan_2d, clean, case)
    for name, where in (("x", (1, 2, 1, 1)), ("delta", (1, 3, 2, 1, 1)), ("z", (1, 2, 1, 1))):
        dirty = clean | {name: clean[name].clone()}
        dirty[name][where] = special
        out = call(fgkernels.selective_scan_2d, dirty, case)
        touched = torch.zeros(2, 6, dtype=torch.bool)
        touched[1, 2] = True
        assert torch.equal(out[~touched], expected[~touched])
        truth = call(reference.selective_scan_2d, dirty, case)
        torch.testing.assert_close(out[touched], truth[touched], rtol=1e-4, atol=1e-4, equal_nan=True)


def test_promotion(served) -> None:
    case = Case(directions=FOUR)
    inputs = map_inputs(case, torch.bfloat16)
    wide = {name: value.float() for name, value in inputs.items()}
    mixed = inputs | {"delta": wide["delta"], "D": inputs["D"].double()}
    with torch.autocast(served.device, dtype=torch.bfloat16):
        out = call(fgkernels.selective_scan_2d, mixed, case)
    assert out.dtype == torch.bfloat16 and torch.equal(out, call(fgkernels.selective_scan_2d, wide, case).bfloat16())


# --- bad input --------------------------------------------------------------------------------------------------------


def bad_calls() -> dict[str, tuple[dict, dict, str]]:
    """name -> (arguments in place of good ones, options, message); B = 2, E = 3, 3 x 5, N = 4, K = 4."""
    zeros = torch.zeros
    return {
        "x rank": ({"x": zeros(2, 3, 15)}, {}, r"x: expected \(B, E, H, W\) or \(B, K, E, H, W\), got \(2, 3, 15\)"),
        "x directions": ({"x": zeros(2, 3, 3, 3, 5)}, {}, r"x: expected \(B, K, E, L\) .*4.*got \(2, 3, 3, 15\)"),
        "delta rank": ({"delta": zeros(2, 3, 15)}, {}, r"delta: expected \(B, K, E, H, W\) or \(B, K, E, L\)"),
        "delta map": (
            {"delta": zeros(2, 4, 3, 5, 3)},
            {},
            r"delta: expected .*\(H, W\) = \(3, 5\).*got \(2, 4, 3, 5, 3",
        ),
        "delta": ({"delta": zeros(2, 4, 3, 14)}, {}, r"delta: expected \(B, K, E, L\) = \(2, 4, 3, 15\).*got .*14\)"),
        "A": ({"A": zeros(4, 4, 4)}, {}, r"A: expected \(K, E, N\), \(K \* E, N\) or.*\(E, N\).*got \(4, 4, 4\)"),
        "A flat": ({"A": zeros(11, 4)}, {}, r"A: expected .*K = 4 and E = 3, got \(11, 4\)"),
        "B": ({"B": zeros(2, 4, 5, 15)}, {}, r"B: expected \(B, K, N, L\) = \(2, 4, 4, 15\).*got \(2, 4, 5, 15\)"),
        "C": ({"C": zeros(2, 1, 4, 15)}, {}, r"C: expected \(B, K, N, L\) = \(2, 4, 4, 15\).*got \(2, 1, 4, 15\)"),
        "D": ({"D": zeros(5)}, {}, r"D: expected \(K, E\), \(K \* E\) or.*\(E,\).*got \(5,\)"),
        "z": ({"z": zeros(2, 4, 3, 5)}, {}, r"z: expected \(B, E, L\) = \(2, 3, 15\).*got \(2, 4, 15\)"),
        "bias": ({"delta_bias": zeros(4, 2)}, {}, r"delta_bias: expected \(K, E\).*got \(4, 2\)"),
        "x dtype": ({"x": zeros(2, 3, 3, 5).int()}, {}, r"x: expected .*float32.*got .*int32"),
        "A complex": ({"A": zeros(4, 3, 4).cfloat()}, {}, r"A: expected .*complex diagonal isn't supported"),
        "size": ({}, {"size": (5, 3)}, r"size: expected \(H, W\) = \(3, 5\) like x, got \(5, 3\)"),
        "no size": ({"x": zeros(2, 4, 3, 15)}, {"ordered": True, "size": None}, r"size: expected \(H, W\), required"),
        "ordered x": ({}, {"ordered": True}, r"(x|delta): expected \(B, K, E, L\), since ordered"),
        "name": ({}, {"directions": ("h", "up")}, r"directions: expected names among .*got 'up'"),
        "fewer": ({}, {"directions": ("h", "v")}, r"\w+: expected "),
        "table": (
            {},
            {"table": torch.arange(14).expand(4, 14)},
            r"table: expected \(K, L\) = \(4, 15\).*got \(4, 14\)",
        ),
        "not a tensor": ({"delta": None}, {}, r"delta: expected a Tensor, got NoneType"),
        "meta": ({"z": zeros(2, 3, 3, 5, device="meta")}, {}, r"z: expected device .* like x, got meta"),
    }


@pytest.mark.parametrize("what", bad_calls())
def test_errors(served, what: str) -> None:
    case = Case(directions=FOUR)
    bad, options, message = bad_calls()[what]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call(fgkernels.selective_scan_2d, map_inputs(case) | bad, case, **options)


@pytest.mark.parametrize("row", [[0, 1, 2, 2], [0, 1, 2, 4], [-1, 1, 2, 3]], ids=str)
def test_illegal_tables(served, row: list[int]) -> None:
    if not reads_values(served):
        return  # see the next test
    case = Case(size=(2, 2), directions=("h", "v"))
    table = torch.tensor([[0, 1, 2, 3], row])
    with pytest.raises((ValueError, RuntimeError), match=r"table: expected .*permutation"):
        call(fgkernels.selective_scan_2d, map_inputs(case), case, table=table)


@pytest.mark.compiled
@pytest.mark.parametrize("row", [[0, 1, 2, 2], [0, 1, 2, 2**31 - 1], [-(2**31), 1, 2, 3]], ids=str)
def test_illegal_tables_stay_within_bounds(operators, row: list[int]) -> None:
    """On a GPU nobody reads the table beforehand: the result means nothing, and no memory outside is touched."""
    if reads_values(operators):
        return  # see the test before
    case = Case(1, 2, (2, 2), 2, ("h", "v"))
    inputs, table = map_inputs(case), torch.tensor([[0, 1, 2, 3], row], dtype=torch.int32)
    for ordered in (False, True):
        sized = dataclasses.replace(case, ordered=ordered, x="own" if ordered else "shared")
        inputs = map_inputs(sized)
        out = call(fgkernels.selective_scan_2d, inputs, sized, table=table)
        gradients(lambda x, s=sized: call(fgkernels.selective_scan_2d, x, s, table=table), inputs, torch.ones_like(out))


def test_combinations_of_what_is_absent(served) -> None:
    """D, gate, bias and softplus each on its own."""
    for D, z, bias, softplus in itertools.product((False, True), repeat=4):
        case = Case(1, 2, (2, 3), 2, ("v", "d"), D=D, z=z, delta_bias=bias, delta_softplus=softplus)
        inputs = map_inputs(case)
        expected = one_direction_at_a_time(inputs, case)
        torch.testing.assert_close(call(fgkernels.selective_scan_2d, inputs, case), expected, rtol=1e-4, atol=1e-5)
