# SPDX-License-Identifier: Apache-2.0
"""The cases of the state-space family: counts by hand, formulas against definitions, targets."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fgkernels.bench import registry
from fgkernels.bench.workloads import mamba_chunk_scan as chunk_work
from fgkernels.bench.workloads import selective_scan as work
from fgkernels.bench.workloads import selective_scan_2d as map_work

FAMILIES = ["selective_scan", "selective_scan_2d", "causal_conv1d", "mamba_chunk_scan", "transformers"]
CASES = {case.name: case for _, case in registry.select(FAMILIES)}


@pytest.mark.parametrize(
    ("name", "amount", "traffic"),
    [
        # 2·384·1024·16; 4·2·1024·(4·384 + 32) + 4·384·18
        ("scan-forward", 12_582_912, 12_845_056 + 27_648),
        # Twice the updates; in the backward 4·2·1024·(7·384 + 64) + 8·384·18 more.
        ("scan-train", 25_165_824, 12_872_704 + 22_544_384 + 55_296),
        # 64·10⁶·16; u, delta, out, B and C: 4·10⁶·(3·64 + 32) + 4·64·18
        ("scan-long", 1_024_000_000, 896_000_000 + 4_608),
        # 64·1536·16; the state twice, 4·(64·(4·1536 + 32) + 1536·18)
        ("step-batch", 1_572_864, 12_582_912 + 1_691_648),
        # 4·192·3136·16; 4·3136·(6·192 + 8·16) + 4·4·192·18
        ("scan2d", 38_535_168, 16_056_320 + 55_296),
        ("scan2d-one", 2_408_448, 14_551_040 + 9_216),
        # 4·640·25·256; 4·25·(10·640 + 8·256) + 4·640·258
        ("scan2d-orders", 16_384_000, 844_800 + 660_480),
        # FLOPs from here on. 4·(2·2·768·2048·4); 4·(5·2·768·2048 + 3·768·5)
        ("conv-train", 100_663_296, 62_960_640),
        # 4·2048·24·64·128; 4·(2048·(24·193 + 256) + 72)
        ("chunk", 1_610_612_736, 40_042_784),
        # A layer: 2·1536·768 + 1536·80 + 48·1536 + 1536·768 weights.
        ("mamba-decode", 2 * 24 * 3_735_552 + 24 * 147_456 + 77_230_080, 4 * (24 * 3_735_552 + 38_615_040)),
    ],
)
def test_work_and_bytes_by_hand(name, amount, traffic):
    case = CASES[name]
    assert case.work(case.shape) == amount
    assert case.bytes(case.shape) == traffic


def test_the_baselines_are_the_recurrence_of_the_paper():
    """h = exp(dt A) h + dt B u, y = C h + D u, gated: one number after another."""
    inputs = work.scan_inputs()({"B": 1, "D": 2, "L": 6, "N": 3})
    u, delta, A, B, C, D, z, bias = (inputs[name].double() for name in work.NAMES)
    expected = torch.zeros(1, 2, 6, dtype=torch.float64)
    for d in range(2):
        for n in range(3):
            h = 0.0
            for t in range(6):
                dt = F.softplus(delta[0, d, t] + bias[d])
                h = torch.exp(dt * A[d, n]) * h + dt * B[0, n, t] * u[0, d, t]
                expected[0, d, t] += C[0, n, t] * h
    expected = (expected + D[:, None] * u) * F.silu(z)
    for formula in (work.scan_loop, work.scan_unbound, work.scan_chunks):
        torch.testing.assert_close(formula(u, delta, A, B, C, D, z, bias), expected, rtol=1e-12, atol=1e-12)


def test_the_long_reference_is_the_recurrence_in_pieces():
    # Two pieces of 2000 steps and a shorter one, each from the state that the one before left.
    inputs = work.long_inputs({"B": 1, "D": 2, "L": 5_000, "N": 2})
    doubled = {name: value.double() for name, value in inputs.items()}
    ones = torch.ones_like(doubled["u"])
    whole = work.scan_chunks(*(doubled.get(name, ones) for name in work.NAMES)) / F.silu(ones)
    parts = work.long_reference(inputs)
    assert len(parts) == work.PARTS
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=1e-10, atol=1e-10)


def test_the_blocks_of_mamba_2_are_its_recurrence():
    inputs = chunk_work.chunk_inputs(backward=False)(CASES["chunk"].tiny)
    operands = [inputs[name].double() for name in chunk_work.NAMES]
    torch.testing.assert_close(chunk_work.blocks(*operands), chunk_work.recurrence(*operands), rtol=1e-10, atol=1e-10)


def test_the_four_ways_of_a_map_are_the_directions_of_our_table():
    import fgkernels

    places = map_work._four_ways(torch.arange(6).view(1, 1, 2, 3))[0, :, 0]
    assert places.tolist() == fgkernels.scan_table(2, 3, map_work.DIRECTIONS).tolist()
    y = torch.randn(2, 4, 3, 6)
    put_back = torch.zeros(2, 3, 6)
    for k in range(4):
        put_back[..., places[k]] += y[:, k]
    torch.testing.assert_close(map_work._put_back(y, 2, 3), put_back.view(2, 3, 2, 3))


def test_targets():
    bars = {
        name: {(bar.metric, bar.against): round(bar.target, 4) for bar in case.bars}
        for name, case in CASES.items()
        if case.bars
    }
    fast = {("ratio", "eager loop"): 50, ("ratio", "mambapy"): 50, ("limit", "fastest"): 0.5}
    vim = {("ratio", "eager loop"): 10, ("ratio", "mambapy"): 10}
    composed = ("ratio", "our cross_scan, scan, cross_merge")
    assert bars == {
        "scan-forward": fast,
        "scan-wide": fast,
        "scan-train": {("ratio", "eager loop"): 300, ("ratio", "mambapy"): 30, ("memory", "inputs"): 3},
        "scan-vim": vim,
        "scan-vim-train": vim,
        "scan-long": {("ratio", "ten calls of a tenth"): 0.8696, ("memory", "inputs"): 0.01},
        "scan2d": {composed: 1.7, ("ratio", "eager loop"): 50},
        "scan2d-one": {composed: 1.7, ("ratio", "eager loop"): 50},
        "scan2d-train": {composed: 1.7},
        "scan2d-one-train": {composed: 1.7},
        "scan2d-orders": {("ratio", "eager loop"): 40},
        "conv-train": {("ratio", "eager conv1d"): 3, ("ratio", "compiled conv1d"): 3},
        "mamba-prefill": {("ratio", "fastest"): 5},
        "mamba-decode": {("ratio", "fastest"): 1.3},
    }
    for name, case in CASES.items():
        names = {item.name for item in case.implementations} | {"fastest", "inputs"}
        assert all(bar.against in names for bar in case.bars), name


def test_what_takes_seconds_is_not_quick():
    assert [case.name for _, case in registry.select(FAMILIES, quick=True)] == ["scan-vim", "conv-train"]


def test_decoding_moves_a_state_of_its_own():
    for case in (CASES["step"], CASES["step-heads"], CASES["conv-step"]):
        inputs = case.inputs(case.tiny)
        before = inputs["state"].clone()
        call = case.candidate.prepare(inputs)
        first, second = call()[0], call()[0]
        assert torch.equal(inputs["state"], before)
        assert not torch.equal(first, second)
