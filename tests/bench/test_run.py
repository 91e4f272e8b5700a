# SPDX-License-Identifier: Apache-2.0
"""Worker processes: the gate, crashes, memory, and the command line at tiny shapes."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from fgkernels import bench
from fgkernels.bench import cli, memory, registry, results, runner

from . import cases_for_tests

MODULE = "cases_for_tests"
CASES = {case.name: case for case in cases_for_tests.CASES}
FAST = runner.Settings(threads=1, rounds=2, memory=False)


@pytest.fixture(autouse=True)
def _workers_find_the_cases(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


def test_crashing_wrong_and_missing_baselines_leave_the_case_alive():
    record = runner.run_case(MODULE, CASES["right"], FAST)
    assert record["status"] == "ok"
    assert set(record["implementations"]) == {"ours", "eager slow"}
    refused = record["refused"]
    assert refused["crashing peer"] == "crashed (SIGSEGV)"
    assert refused["raising"] == "RuntimeError: it does not start"
    assert refused["refused"] == "N = 1000 is too small"
    assert refused["absent"] == "a_module_that_is_not_there isn't installed"
    assert refused["wrong peer"].startswith("FAILED the correctness gate: total: error")
    assert record["implementations"]["ours"]["seconds"]["count"] == 2
    assert json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(("name", "problem"), [("wrong", "exceeds"), ("crash", "crashed (SIGSEGV) (while: ours)")])
def test_a_wrong_or_crashing_candidate_fails_without_timings(name, problem):
    record = runner.run_case(MODULE, CASES[name], FAST)
    assert record["status"] == "FAILED" and problem in record["problem"]
    assert record["implementations"] == {} and record["ratios"] == {}


def test_a_case_that_needs_a_missing_package_is_left_out_and_said_so():
    case = dataclasses.replace(CASES["right"], requires="a_module_that_is_not_there")
    said: list[str] = []
    assert runner.run([(MODULE, case)], FAST, said.append)["cases"] == []
    assert "needs a_module_that_is_not_there" in said[-1]


def test_inputs_are_counted_and_gradients_of_outputs_are_not():
    case = CASES["right"]
    raw = runner.run_worker("time", MODULE, case, [case.candidate], FAST)
    assert raw["input_bytes"] == 4 * 1000


def test_peers_and_compile_can_be_left_out():
    settings = runner.Settings(threads=1, rounds=1, memory=False, peers=False, compile=False)
    chosen, refused = runner._sort_out(CASES["right"], settings)
    assert [item.name for item in chosen] == ["ours", "eager slow"] and refused == {}


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from /proc")
def test_memory_worker_sees_a_known_allocation():
    case = CASES["greedy"]
    measured = runner.run_worker("memory", MODULE, case, [case.candidate], FAST)["memory"]
    # Resident pages are counted in batches.
    assert 63 << 20 <= measured["extra"] <= 72 << 20
    assert measured["returned"] == 4


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from /proc")
def test_returned_tensors_are_not_extra():
    peak = memory.measure_peak(lambda: (torch.ones(32 << 18), [torch.ones(4)]))
    assert peak.returned == (32 << 20) + 16
    assert peak.peak >= 32 << 20
    assert peak.extra < 8 << 20


def test_memory_that_cannot_be_measured_says_why(monkeypatch):
    def deny():
        raise PermissionError("not allowed")

    monkeypatch.setattr(memory, "_reset_high_water_mark", deny)
    with pytest.raises(memory.MemoryNotMeasured, match="not allowed"):
        memory.measure_peak(lambda: None)


def test_quick_run_writes_all_files(tmp_path, capsys):
    arguments = ["--quick", "--tiny", "--rounds", "1", "--threads", "1", "--no-peers", "--out", str(tmp_path), "--json"]
    assert bench.main([*arguments, "--case", "maxsim-fp32", "--case", "filip-train-small", "--case", "scan-vim"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == results.load(tmp_path / "results.json")
    assert [record["name"] for record in document["cases"]] == ["maxsim-fp32", "filip-train-small", "scan-vim"]
    for record in document["cases"]:
        assert record["status"] == "ok", record["problem"]
        assert {entry["group"] for entry in record["implementations"].values()} == {"candidate", "eager"}
        assert all(bar["met"] is None for bar in record["bars"])
    scan = document["cases"][-1]
    assert scan["updates"] == 2 * 6 * 40 * 4 and scan["limit"]["fma"] > 0
    assert scan["limit"]["unit"] == {"compute": "G updates/s", "memory": "GB/s"}[scan["limit"]["kind"]]
    environment = document["environment"]
    assert environment["torch"] == torch.__version__ and environment["cpu"]
    assert (tmp_path / "results.html").exists() and (tmp_path / "results.md").exists()


def test_list_prints_every_case(capsys):
    assert bench.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(case.name in printed for _, case in registry.select())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "nobody"], "family: expected one of"),
        (["--case", "nothing-*"], "no case matches"),
        (["--threads", "0"], "expected a positive number"),
        (["--compare", "no-such-file.json"], "no-such-file.json"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as ending:
        bench.main(arguments)
    assert ending.value.code == 2
    assert message in capsys.readouterr().err


def test_quick_table_has_a_row_a_case(monkeypatch):
    from .conftest import make_document

    asked = {}

    def run(selected, settings):
        asked.update(selected=selected, settings=settings)
        return make_document({"eager": 4.0})

    monkeypatch.setattr(cli, "run", run)
    rows = bench.quick_table(60)
    assert asked["selected"] == registry.select(quick=True)
    assert not asked["settings"].compile and not asked["settings"].memory
    assert asked["settings"].budget * len(asked["selected"]) < 60
    row = next(row for row in rows if row["name"] == "maxsim-fp32")
    assert row["ratios"]["eager einsum"] == pytest.approx(4.04)
    assert row["of_limit"] == pytest.approx(0.9) and row["limit"] == "compute" and row["status"] == "ok"
