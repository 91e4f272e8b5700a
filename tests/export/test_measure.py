# SPDX-License-Identifier: Apache-2.0
"""Agreement against worked numbers; latency's form, never its value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fgkernels.bench import timing
from fgkernels.export import measure


def test_agreement_against_worked_numbers() -> None:
    expected = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    actual = torch.tensor([[4.0, 3.0], [1.0, 0.0]])
    result = measure.agreement(expected, actual)
    assert result.max_abs_error == 1.0
    assert result.min_cosine == pytest.approx(24 / 25)
    assert result.mean_cosine == pytest.approx((24 / 25 + 1) / 2)
    with pytest.raises(ValueError, match=r"actual: expected \(2, 2\) like expected, got \(2, 3\)"):
        measure.agreement(expected, torch.ones(2, 3))


def test_latency_runs_every_model_without_gradients() -> None:
    calls = []

    def model(name: str) -> Callable[[torch.Tensor], None]:
        return lambda x: calls.append((name, torch.is_grad_enabled(), tuple(x.shape)))

    result = measure.latency({"a": model("a"), "b": model("b")}, (torch.ones(8),), rounds=3)
    assert list(result) == ["a", "b"] and result["a"].ratio == 1.0
    assert set(calls) == {("a", False, (8,)), ("b", False, (8,))}
    with pytest.raises(ValueError, match="models: expected at least one"):
        measure.latency({}, ())


def test_latency_compares_inside_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine slows down from round to round; b takes half the time of a in each.
    samples = timing.Timings(seconds={"a": [2.0, 4.0, 8.0], "b": [1.0, 2.0, 4.0]})
    monkeypatch.setattr(timing, "measure", lambda *args, **kwargs: samples)
    result = measure.latency({"a": print, "b": print}, ())
    assert result["b"] == measure.Latency(median=2.0, q1=1.5, q3=3.0, ratio=2.0)


def test_size_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b").write_bytes(b"123")
    assert measure.size_bytes(tmp_path / "a") == 5 and measure.size_bytes(tmp_path) == 8
