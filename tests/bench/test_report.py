# SPDX-License-Identifier: Apache-2.0
"""Ratios, bars, tables, pages and pictures from made-up readings."""

from __future__ import annotations

import copy
import dataclasses
import html.parser
import json
import re

import pytest

from fgkernels.bench import chart, page, registry, render, report, results

from .conftest import SETTINGS, make_document, reading

CASES = {case.name: case for _, case in registry.select(["late_interaction"])}


def _record(document, name):
    return next(record for record in document["cases"] if record["name"] == name)


def test_ratios_and_share_of_the_limit_do_not_drift_with_the_machine(document):
    record = _record(document, "maxsim-fp32")
    assert record["fastest"] == {
        "eager": "eager einsum",
        "compiled": "compiled einsum",
        "peer": "maxsim-cpu",
        "all": "compiled einsum",
    }
    assert record["ratios"]["eager einsum"]["median"] == pytest.approx(4.0 * 1.01)
    assert record["ratios"]["eager einsum"]["q1"] == pytest.approx(record["ratios"]["eager einsum"]["q3"])
    assert record["limit"]["kind"] == "compute"
    ours = results.ours(record)
    assert ours["of_limit"]["median"] == pytest.approx(0.9)
    assert ours["rate"] == pytest.approx(record["flops"] / 1e9 / ours["seconds"]["median"])


def test_memory_bound_cases_are_judged_by_bytes():
    case = CASES["maxsim-small"]
    raw = reading(case, {"eager": 2.0})
    raw["limits"]["kind"] = "memory"
    raw["timings"]["limit"] = [20.0] * 9
    record = results.build_record(case, SETTINGS, raw)
    fastest = min(raw["timings"]["seconds"]["fgkernels"])
    assert results.ours(record)["of_limit"]["maximum"] == pytest.approx(case.bytes(case.shape) / 1e9 / fastest / 20)
    assert record["limit"]["unit"] == "GB/s"


def test_bars_are_met_and_missed_by_their_numbers(document):
    bars = {record["name"]: record["bars"] for record in document["cases"]}
    assert [bar["met"] for bar in bars["maxsim-fp32"]] == [True, True]
    ratio, memory = bars["filip-train-77"]
    assert (ratio["met"], memory["met"]) == (False, True)
    assert memory["value"] == pytest.approx(2 / 400)
    assert bars["maxsim-bf16"][0]["value"] == pytest.approx(2.2, rel=0.1)
    slow = make_document({"eager": 0.9, "own": 0.5})
    assert not any(bar["met"] for record in slow["cases"] for bar in record["bars"] if bar["metric"] == "ratio")
    # Without torch.compile and peers the fastest is eager.
    assert _record(slow, "maxsim-fp32")["fastest"]["all"] == "eager einsum"


def test_scans_are_judged_by_state_updates():
    case = dataclasses.replace(CASES["maxsim-fp32"], probe="exp_fma", updates=lambda shape: 6_000_000)
    raw = reading(case, {"eager": 4.0})
    raw["limits"]["kind"] = "compute"
    raw["timings"]["limit"] = [4.8] * 9
    record = results.build_record(case, SETTINGS, raw)
    seconds = results.ours(record)["seconds"]["median"]
    assert results.ours(record)["rate"] == pytest.approx(6e-3 / seconds)
    assert results.ours(record)["of_limit"]["median"] == pytest.approx(6e-3 / seconds / 4.8)
    text = report.markdown({**_frame(), "cases": [record]})
    assert " G updates/s |" in text and f"{100 * 6e-3 / seconds / 4.8:.0f} % of 4.8 G updates/s" in text
    assert "0.006 G state updates" in page.html({**_frame(), "cases": [record]})


def test_a_case_names_its_updates_exactly_where_they_are_its_work():
    with pytest.raises(ValueError, match="updates: expected with probe"):
        dataclasses.replace(CASES["maxsim-fp32"], probe="exp_fma")
    with pytest.raises(ValueError, match="updates: expected with probe"):
        dataclasses.replace(CASES["maxsim-fp32"], updates=lambda shape: 1)


def test_a_slow_baseline_is_compared_with_our_times_of_its_own_rounds():
    case = CASES["maxsim-fp32"]
    raw = reading(case, {"eager": 4.0})
    ours = raw["timings"]["seconds"]["fgkernels"]
    raw["timings"]["seconds"]["eager einsum"] = [9 * ours[0], 11 * ours[1]]
    record = results.build_record(case, SETTINGS, raw)
    assert record["ratios"]["eager einsum"]["median"] == pytest.approx(10.0)
    assert record["ratios"]["eager einsum"]["count"] == 2
    assert record["ratios"]["eager matmul"]["count"] == 9


@pytest.mark.parametrize(("extra", "met"), [(3 << 20, True), (4 << 20, False), (None, None)])
def test_extra_memory_is_judged_by_the_size_of_the_inputs(extra, met):
    case = dataclasses.replace(CASES["maxsim-fp32"], bars=(registry.Bar("memory", 3.0, "inputs"),))
    record = results.build_record(case, SETTINGS, reading(case, {}))  # inputs of 1 MiB
    if extra is not None:
        results.ours(record)["memory"] = {"peak": extra, "returned": 0, "extra": extra}
    results.judge(record, case, SETTINGS)
    (bar,) = record["bars"]
    assert bar["met"] is met
    assert report.bar_text(bar).startswith("memory ≤ 3× the inputs: ")


def test_a_wrong_baseline_is_named_and_a_wrong_candidate_fails_the_case():
    case = CASES["maxsim-fp32"]
    raw = reading(case, {"eager": 4.0})
    raw["gate"]["maxsim-cpu"] = {"passed": False, "errors": {"scores": None}, "problem": "scores: error inf"}
    record = results.build_record(case, SETTINGS, raw)
    assert record["status"] == "ok"
    assert record["refused"]["maxsim-cpu"] == "FAILED the correctness gate: scores: error inf"
    raw["gate"]["fgkernels"] = {
        "passed": False,
        "errors": {"scores": 0.3},
        "problem": "scores: error 0.3 exceeds 1e-05",
    }
    raw["timings"] = None
    record = results.build_record(case, SETTINGS, raw)
    assert record["status"] == "FAILED" and not record["implementations"]
    table = report.markdown({"environment": {}, "settings": {}, "cases": [record]} | _frame())
    row = next(line for line in table.splitlines() if "FAILED" in line)
    assert "error 0.3" in row and " ms" not in row
    assert results.one_line(record).startswith("FAILED")


def _frame():
    document = make_document({"eager": 2.0})
    return {"environment": document["environment"], "settings": document["settings"]}


def test_json_round_trip(document, tmp_path):
    path = tmp_path / "results.json"
    results.save(document, path)
    assert results.load(path) == json.loads(json.dumps(document))
    path.write_text('{"schema": "other"}')
    with pytest.raises(ValueError, match="expected schema"):
        results.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        results.load(path)


def test_markdown_has_one_row_a_case_with_equal_columns(document):
    lines = [line for line in report.markdown(document).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(document["cases"])
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "4.04×" in lines[2] and "90 % of" in lines[2] and "maxsim-cpu" in lines[2]
    few = report.markdown(document, ["eager", "limit"])
    assert few.splitlines()[0] == "| case | vs eager | of the limit |"
    with pytest.raises(ValueError, match="columns"):
        report.markdown(document, ["price"])


def test_a_busy_machine_is_named(document):
    changed = copy.deepcopy(document)
    changed["environment"]["load_average"] = 3.0
    assert "BUSY MACHINE: load 3.0" in report.machine_text(changed)
    assert "BUSY" not in report.machine_text(document)


def test_a_reference_run_says_so(document):
    changed = copy.deepcopy(document)
    changed["environment"]["backends"] = {"maxsim": "reference"}
    assert "SERVED BY REFERENCE" in report.machine_text(changed)
    assert "SERVED" not in report.machine_text(document)


def test_compare_tells_change_from_noise(document):
    faster = make_document({"eager": 8.0, "compiled": 6.0, "peer": 7.0, "own": 2.2})
    text = report.compare(document, faster)
    assert "3.09× → 6.18× (better)" in text
    assert "within noise" in report.compare(document, document)
    assert "(worse)" in report.compare(faster, document)
    assert "no such case before" in report.compare({**document, "cases": []}, document)


class _References(html.parser.HTMLParser):
    """Collects what a browser would fetch, and checks that elements close in order."""

    VOID = {"meta", "line", "rect", "br"}

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_refers_to_nothing_outside_and_is_well_formed(document):
    text = page.html(document)
    parser = _References()
    parser.feed(text)
    assert parser.found == [] and parser.open == []
    assert "://" not in text and "url(" not in text and "@import" not in text
    assert "Example CPU &lt;9000&gt;" in text
    data = re.search(r'<script type="application/json" id="document">(.*?)</script>', text, re.DOTALL).group(1)
    assert json.loads(data) == json.loads(json.dumps(document))
    for record in document["cases"]:
        assert f"<summary>{record['name']}</summary>" in text


def test_html_escapes_a_hostile_reason():
    record = results.failed_record(CASES["maxsim-fp32"], SETTINGS, "</script><script>alert(1)</script>", {})
    text = page.html({"schema": results.SCHEMA, **_frame(), "cases": [record]})
    assert "<script>alert" not in text


def test_png_is_drawn(document, tmp_path):
    pytest.importorskip("matplotlib")
    path = chart.png(document, tmp_path / "results.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000


def test_files_are_written_without_matplotlib_and_it_is_said(document, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    said: list[str] = []
    paths = report.write(document, tmp_path / "out", said.append)
    assert [path.name for path in paths] == ["results.json", "results.md", "results.html"]
    assert "matplotlib" in said[0]


def test_ratio_ticks_enclose_all_ratios():
    for slower in (0.3, 1.0, 40.0):
        chart_rows = chart.rows(make_document({"eager": slower}))
        ticks = chart.ratio_ticks(chart_rows)
        assert ticks == sorted(ticks) and len(ticks) >= 2
        ratios = [mark.ratio for row in chart_rows for mark in row.baselines] + [1.0]
        assert ticks[0] <= min(ratios) and max(ratios) <= ticks[-1]
        assert chart.log_fraction(ticks[0], ticks) == 0.0 and chart.log_fraction(ticks[-1], ticks) == 1.0


def test_render_writes_a_table_between_markers(document, tmp_path, capsys):
    source, target = tmp_path / "results.json", tmp_path / "README.md"
    results.save(document, source)
    target.write_text(f"before\n{render.BEGIN}\nold\n{render.END}\nafter\n")
    arguments = [str(source), "--case", "filip-*", "--case", "maxsim-fp32", "--columns", "eager,limit"]
    assert render.main([*arguments, "--into", str(target), "--html", str(tmp_path / "page.html")]) == 0
    text = target.read_text()
    assert text.startswith(f"before\n{render.BEGIN}\n| case | vs eager") and text.endswith(f"{render.END}\nafter\n")
    assert "old" not in text and "rerank" not in text and "maxsim fp32, 1×32×128 against 1000" in text
    assert (tmp_path / "page.html").exists()
    assert render.main(arguments) == 0
    assert "| case | vs eager | of the limit |" in capsys.readouterr().out
    target.write_text("no markers")
    with pytest.raises(SystemExit):
        render.main([*arguments, "--into", str(target)])
