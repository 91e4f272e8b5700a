# SPDX-License-Identifier: Apache-2.0
"""The cases: formulas against numbers by hand, expressions against each other, and the registry."""

from __future__ import annotations

import contextlib
import importlib.util

import pytest
import torch

from fgkernels.bench import gate, registry
from fgkernels.bench.cases import late_interaction as cases
from fgkernels.bench.workloads import late_interaction as work

SELECTED = {case.name: case for _, case in registry.select(["late_interaction"])}
EVERY = [case for device in ("cpu", "cuda") for _, case in registry.select(device=device)]
EVERY = list({(case.family, case.name): case for case in EVERY}.values())
# These run in any process; maxsim-cpu wants one of its own.
PEERS_ANYWHERE = ("mambapy",)


@pytest.mark.parametrize(
    ("name", "flops", "traffic"),
    [
        # 2·32·1000·300·128; 4·128·(32 + 300000) + 4·1000
        ("maxsim-fp32", 2_457_600_000, 153_620_384),
        ("maxsim-bf16", 2_457_600_000, 76_812_192),
        # queries fp32 16384, documents 300000·(128 + 4 of scale), scores 4000
        ("maxsim-int8", 2_457_600_000, 39_620_384),
        # 2·1024·100·1024·128; 4·128·(1024 + 102400) + 400
        ("maxsim-colpali", 26_843_545_600, 52_953_488),
        # 2·64·64·196·32·256; 4·256·(12544 + 2048) + 8·4096
        ("filip-forward", 13_153_337_344, 14_974_976),
        # + 4·4096·(196 + 32)·256; 3·4·256·14592 + 4·4096·228 + 16·4096
        ("filip-train-32", 13_153_337_344 + 956_301_312, 44_826_624 + 3_735_552 + 65_536),
        # 310·1000 tokens: 2·32·310000·128; 4·128·(32 + 310000) + 4000
        ("maxsim-ragged", 2_539_520_000, 158_740_384),
        # 2·8·100·32·180·128; 4·128·(256 + 144000) + 3200
        ("maxsim-rerank", 1_179_648_000, 73_862_272),
        ("maxsim-call", 32_768, 10_256),
    ],
)
def test_flops_and_bytes_by_hand(name, flops, traffic):
    case = SELECTED[name]
    assert case.flops(case.shape) == flops
    assert case.bytes(case.shape) == traffic


def test_contrastive_counts_valid_tokens_only():
    # Ld 8, two documents of 2 and 8 tokens: 2·Nq·Lq·10·D, and 4·Nq·Nd·Lq·D for the backward pass.
    shape = {"Nq": 3, "Lq": 5, "Nd": 2, "Ld": 8, "D": 4}
    assert work.contrastive_flops(shape) == 2 * 15 * 10 * 4 + 4 * 3 * 2 * 5 * 4
    assert work.masked_inputs(shape)["mask"].sum(1).tolist() == [2, 8]


def test_ragged_lengths_have_the_exact_mean_the_formula_assumes():
    shape = SELECTED["maxsim-ragged"].shape
    lengths = work.ragged_lengths(shape)
    assert (lengths.min(), lengths.max(), lengths.sum()) == (20, 600, 310_000)
    assert lengths[:5].tolist() != sorted(lengths[:5].tolist())


def _runs_here(item: registry.Implementation) -> bool:
    return item.module is None or item.module in PEERS_ANYWHERE and importlib.util.find_spec(item.module) is not None


@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)
def test_every_implementation_passes_the_gate_at_tiny_shape(case, monkeypatch):
    """What is compiled is run as written."""
    if case.requires:
        pytest.importorskip(case.requires)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    inputs = case.inputs(case.tiny)
    with contextlib.nullcontext() if case.backward else torch.no_grad():
        expected = case.reference(inputs)
        for item in case.implementations:
            if _runs_here(item):
                wanted = item.reference(inputs) if item.reference else expected
                verdict = gate.check(case, item.prepare(inputs)(), wanted)
                assert verdict.passed, f"{item.name}: {verdict.problem}"
                if case.dtype == "float32":
                    # So few tokens have no near ties: gradients are as close as scores.
                    assert max(verdict.errors.values()) < 1e-5, verdict.errors


@pytest.mark.parametrize("name", ["maxsim-fp32", "filip-train-77", "maxsim-contrastive", "maxsim-ragged"])
def test_gate_catches_a_wrong_candidate(name):
    case = SELECTED[name]
    inputs = case.inputs(case.tiny)
    expected = case.reference(inputs)
    for position in range(len(expected)):
        output = [value.detach().clone() for value in expected]
        output[position][(0,) * output[position].dim()] += 0.05 * output[position].norm()
        verdict = gate.check(case, tuple(output), expected)
        assert not verdict.passed
        assert case.outputs[position] in verdict.problem


def test_gate_catches_nan_shape_and_count():
    case = SELECTED["filip-forward"]
    expected = case.reference(case.inputs(case.tiny))
    poisoned = expected[0].clone()
    poisoned[0, 0] = float("nan")
    assert not gate.check(case, (poisoned, expected[1]), expected).passed
    assert "expected shape" in gate.check(case, (expected[0].T, expected[1]), expected).problem
    assert "expected 2 outputs" in gate.check(case, expected[0], expected).problem
    assert gate.check(case, expected, expected).passed


def test_maxsim_cpu_is_refused_exactly_where_its_matrix_product_breaks():
    assert cases.MAXSIM_CPU.refuse({"Lq": 32, "Ld": 300, "D": 128}) is None
    assert cases.MAXSIM_CPU.refuse({"Lq": 64, "Ld": 32, "D": 128}) is None
    assert "64³" in cases.MAXSIM_CPU.refuse({"Lq": 33, "Ld": 64, "D": 128})
    assert "64³" in cases.MAXSIM_CPU.refuse(SELECTED["maxsim-colpali"].shape)


def test_registry_selects_by_family_glob_and_quick():
    assert set(registry.families()) >= {"late_interaction"}
    assert [case.name for _, case in registry.select(case=["filip-train-*"])] == [
        "filip-train-32",
        "filip-train-77",
        "filip-train-small",
    ]
    quick = registry.select(quick=True)
    assert 2 <= len(quick) <= 6 and all(case.quick for _, case in quick)
    with pytest.raises(ValueError, match="family: expected one of"):
        registry.select(["nobody"])


def test_case_rejects_a_missing_candidate_and_unknown_group():
    with pytest.raises(ValueError, match="group"):
        registry.Implementation("x", "friend", lambda inputs: lambda: None)
    case = SELECTED["maxsim-fp32"]
    fields = {name: getattr(case, name) for name in case.__dataclass_fields__}
    with pytest.raises(ValueError, match="candidate"):
        registry.Case(**{**fields, "implementations": case.implementations[1:]})
