# SPDX-License-Identifier: Apache-2.0
"""Values of `mamba_chunk_scan_combined` against float64."""

from __future__ import annotations

import math

import pytest
import torch

import fgkernels
from fgkernels.reference import mamba_chunk_scan as reference
from fgkernels.reference import selective_scan as selective_reference

from ..common import FLOATS, LAYOUTS, names
from .cases import EMPTY, FORMS, SIZES, TENSORS, Case, assert_exact, call, scan_inputs, truth

pytestmark = pytest.mark.compiled


def check(case: Case, dtype: torch.dtype, layout: str = "contiguous") -> tuple[torch.Tensor, torch.Tensor]:
    inputs = scan_inputs(case, dtype, layout)
    found = call(fgkernels.mamba_chunk_scan_combined, inputs, case)
    eager = call(reference.mamba_chunk_scan_combined, inputs, case)
    assert found[0].dtype == dtype and found[0].is_contiguous() and found[1].is_contiguous()
    for value, other, expected in zip(found, eager, truth(inputs, case), strict=True):
        assert_exact(value, other, expected, case.states * case.length)
    return found


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("case", FORMS, ids=str)
def test_forms(implementation, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=names)
@pytest.mark.parametrize("case", SIZES, ids=str)
def test_sizes(implementation, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [Case(3, 37, 4, 6, 2, 9), Case(2, 12, 2, 3, 1, 4, seq_idx=True)], ids=str)
def test_layouts(implementation, case: Case, layout: str) -> None:
    check(case, torch.float32, layout)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(implementation, case: Case) -> None:
    check(case, torch.float32)


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 256, 100_000])
def test_chunk_size_has_no_influence(operators, chunk_size: int) -> None:
    """Unlike a power of two that divides something, any positive int is legal, and the result the same bit by bit."""
    case = Case(1, 150, 2, 4, 1, 8, seq_idx=True)
    inputs = scan_inputs(case)
    expected = call(fgkernels.mamba_chunk_scan_combined, inputs, case, 128)
    for value, other in zip(call(fgkernels.mamba_chunk_scan_combined, inputs, case, chunk_size), expected, strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize("cuts", [[1], [128], [5, 130, 131], [0, 140]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=names)
def test_streaming(implementation, dtype: torch.dtype, cuts: list[int]) -> None:
    """A sequence in parts, each from the final states of the one before, gives what one call gives."""
    case = Case(1, 140, 2, 5, 1, 6)
    inputs = scan_inputs(case, dtype)
    expected = truth(inputs, case)
    whole = call(fgkernels.mamba_chunk_scan_combined, inputs, case)
    states, parts = inputs["initial_states"], []
    for start, stop in zip([0, *cuts], [*cuts, 140], strict=True):
        own = {name: inputs[name][:, start:stop] for name in ("x", "dt", "B", "C", "z")}
        out, states = call(
            fgkernels.mamba_chunk_scan_combined, inputs | own | {"initial_states": states}, case
        )  # fmt: skip
        parts.append(out)
    assert_exact(torch.cat(parts, 1), whole[0], expected[0])
    assert_exact(states, whole[1], expected[1])


@pytest.mark.parametrize("initial_states", [False, True])
@pytest.mark.parametrize(
    "offsets", [[0, 140], [0, 0, 3, 130, 130, 140], [0, 127, 128, 129, 140, 140], [0, 0, 140], [0, 1, 2, 3, 140]]
)
def test_packed_sequences(implementation, offsets: list[int], initial_states: bool) -> None:
    """Packed sequences equal separate calls: values, and the state of each sequence."""
    case = Case(1, 140, 2, 4, 1, 5, initial_states=initial_states)
    inputs = scan_inputs(case)
    x, dt, A, B, C, D, z, bias, initial = (inputs[name] for name in TENSORS)
    out, final, states = fgkernels.mamba_chunk_scan_combined(
        x, dt, A, B, C, 64, D, z, bias, initial, None, torch.tensor(offsets, dtype=torch.int32), True,
        return_final_states=True, return_varlen_states=True,
    )  # fmt: skip
    assert states.shape == (len(offsets) - 1, 2, 4, 5) and states.dtype == torch.float32
    for s, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        own = {name: inputs[name][:, start:stop] for name in ("x", "dt", "B", "C", "z")}
        own["initial_states"] = initial if s == 0 else None
        alone, last = call(fgkernels.mamba_chunk_scan_combined, inputs | own, case)
        torch.testing.assert_close(out[:, start:stop], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(states[s : s + 1], last, rtol=1e-5, atol=1e-5)
    both = fgkernels.mamba_chunk_scan_combined(
        x, dt, A, B, C, 64, D, z, bias, initial, None, torch.tensor(offsets), True, return_varlen_states=True
    )
    assert len(both) == 2 and torch.equal(both[0], out) and torch.equal(both[1], states)
    if offsets[-1] > offsets[-2]:
        torch.testing.assert_close(final, states[-1:], rtol=1e-5, atol=1e-5)


def test_states_of_packed_sequences_of_nothing(operators) -> None:
    case = Case(1, 0, 2, 4, 1, 5)
    inputs = scan_inputs(case)
    x, dt, A, B, C, *_ = (inputs[name] for name in TENSORS)
    _, states = fgkernels.mamba_chunk_scan_combined(
        x, dt, A, B, C, 64, initial_states=inputs["initial_states"], cu_seqlens=torch.tensor([0, 0, 0]),
        return_varlen_states=True,
    )  # fmt: skip
    assert torch.equal(states[:1], inputs["initial_states"]) and (states[1] == 0).all()


def test_nan_of_a_packed_sequence_stays_there(cpu_implementation) -> None:
    """A NaN in one packed sequence reaches no other one's output or state."""
    case = Case(1, 140, 2, 4, 1, 5, initial_states=False)
    inputs = scan_inputs(case)
    inputs["x"][:, 60:70] = math.nan
    inputs["B"][:, 65] = math.inf
    x, dt, A, B, C, *_ = (inputs[name] for name in TENSORS)
    out, states = fgkernels.mamba_chunk_scan_combined(
        x, dt, A, B, C, 64, cu_seqlens=torch.tensor([0, 60, 70, 130, 140]), return_varlen_states=True
    )
    assert not out[:, 60:70].isfinite().any() and not states[1].isfinite().any()
    assert out[:, :60].isfinite().all() and out[:, 70:].isfinite().all() and states[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("seq_idx", [False, True])
def test_nan_stays_where_it_belongs(implementation, seq_idx: bool) -> None:
    """A NaN in x reaches the later steps of its own head, channel and sequence, and nothing else.

    Products of matrices, by which GPU kernels compute a chunk, carry it to other steps of its head and channel too.
    """
    case = Case(2, 150, 2, 5, 1, 4, initial_states=False)
    inputs = scan_inputs(case)
    if seq_idx:
        inputs["seq_idx"] = (torch.arange(150) // 40).to(torch.int32).expand(2, 150)
    clean = call(fgkernels.mamba_chunk_scan_combined, inputs, case)
    inputs["x"][1, 50, 1, 3] = math.nan
    out, final = call(fgkernels.mamba_chunk_scan_combined, inputs, case)
    reached = torch.zeros(out.shape, dtype=torch.bool)
    reached[1, 50 : 80 if seq_idx else 150, 1, 3] = True
    ended = torch.zeros(final.shape, dtype=torch.bool)
    ended[1, 1, 3] = not seq_idx
    if implementation.is_cpu_build:
        assert torch.equal(out.isnan(), reached) and torch.equal(final.isnan(), ended)
    else:
        assert out[1, 50, 1, 3].isnan()
        reached[1, :, 1, 3] = ended[1, 1, 3] = True
    torch.testing.assert_close(out[~reached], clean[0][~reached])
    torch.testing.assert_close(final[~ended], clean[1][~ended])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=names)
def test_long_products_stay_finite(implementation, dtype: torch.dtype) -> None:
    """dt A from 0, where the state stays for ever, down to -80 and beyond, where nothing is left of it."""
    case = Case(1, 300, 6, 4, 2, 4, dt_softplus=False, dt_bias=False, z=False)
    inputs = scan_inputs(case, dtype)
    inputs["A"] = torch.tensor([0.0, -1e-6, -1.0, -10.0, -80.0, -1000.0])
    inputs["dt"] = torch.ones(1, 300, 6, dtype=dtype)
    found = call(fgkernels.mamba_chunk_scan_combined, inputs, case)
    eager = call(reference.mamba_chunk_scan_combined, inputs, case)
    for value, other, expected in zip(found, eager, truth(inputs, case), strict=True):
        assert value.isfinite().all()
        for i in range(6):  # each head has a size of its own
            head = (slice(None), i) if value is found[1] else (slice(None), slice(None), i)
            assert_exact(value[head], other[head], expected[head], 1200)


def test_softplus_tail(implementation) -> None:
    """Step sizes far below zero are exact to 1e-6 relative: without decay the state sums them up."""
    values = torch.tensor([-87.0, -80, -60, -30, -15, -5, 0, 5, 19.5, 20, 20.5, 60, 100])
    length = len(values)
    one = torch.ones(length, 1, 1, 1)
    out = fgkernels.mamba_chunk_scan_combined(
        one, values.view(length, 1, 1), torch.zeros(1), one, one, 8, dt_softplus=True
    ).flatten()
    expected = torch.where(values > 20, values.double(), values.double().exp().log1p())
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_agrees_with_the_selective_scan(implementation, groups: int) -> None:
    """The same problem as Mamba-1: A repeated over channels and states, D and dt over channels."""
    case = Case(2, 140, 4, 3, groups, 5, D="channel")
    inputs = scan_inputs(case)
    x, dt, A, B, C, D, z, bias, initial = (inputs[name] for name in TENSORS)

    def flat(value: torch.Tensor) -> torch.Tensor:
        """(B, L, H, P) as (B, H * P, L)."""
        return value.flatten(2).transpose(1, 2)

    one = inputs["x"].new_ones(3)
    arguments = (
        flat(x), flat(dt.unsqueeze(-1) * one), torch.repeat_interleave(A, 3).unsqueeze(1).expand(12, 5),
        B.permute(0, 2, 3, 1), C.permute(0, 2, 3, 1), D.flatten(), flat(z), torch.repeat_interleave(bias, 3),
    )  # fmt: skip
    out, final = call(fgkernels.mamba_chunk_scan_combined, inputs, case)
    expected = truth(inputs, case)
    y, last = fgkernels.selective_scan(*arguments, True, True, initial_state=initial.flatten(1, 2))
    wide = [value.double() for value in arguments]
    exact, end = selective_reference.selective_scan(*wide, True, True, initial_state=initial.flatten(1, 2).double())
    torch.testing.assert_close(flat(expected[0]), exact)
    torch.testing.assert_close(expected[1].flatten(1, 2), end)
    assert_exact(flat(out), y, exact)
    assert_exact(final.flatten(1, 2), last, end)


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_promotion(implementation, dtype: torch.dtype) -> None:
    """Sequences meet in their common dtype, parameters in the one of sums; out has x's."""
    case = Case()
    inputs = scan_inputs(case, dtype)
    mixed = inputs | {"dt": inputs["dt"].float(), "A": inputs["A"].half(), "D": inputs["D"].bfloat16()}
    out, final = call(fgkernels.mamba_chunk_scan_combined, mixed, case)
    common = torch.promote_types(dtype, torch.float32)
    same = {name: value.to(common) if value is not None and value.is_floating_point() else value
            for name, value in mixed.items()}  # fmt: skip
    expected = call(fgkernels.mamba_chunk_scan_combined, same, case)
    assert out.dtype == dtype and final.dtype == common
    assert torch.equal(out, expected[0].to(dtype)) and torch.equal(final, expected[1])


def test_same_result_twice_and_with_any_thread_count(cpu_implementation) -> None:
    case = Case(2, 300, 3, 20, 1, 16)
    inputs = scan_inputs(case)
    results = []
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        results.append(call(fgkernels.mamba_chunk_scan_combined, inputs, case))
    for first, second, third in zip(*results, strict=True):
        assert torch.equal(first, second) and torch.equal(second, third)
