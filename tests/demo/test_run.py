# SPDX-License-Identifier: Apache-2.0
"""A quick run from end to end, and the page it writes."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("matplotlib")
pytest.importorskip("onnxruntime")

from fgkernels.demo import data, page, summary, training
from fgkernels.demo.cli import main
from fgkernels.demo.towers import ImageTextModel, TowerConfig

FILES = {
    "report.html",
    "scenes.png",
    "results.json",
    "filip.safetensors",
    "clip.safetensors",
    "image_tower.safetensors",
    "image_tower.pt2",
    "image_tower.onnx",
    "image_tower_int8.onnx",
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "output"
    assert main(["--quick", "--seed", "1", "--output", str(folder)]) == 0
    return folder


def test_quick_run_writes_every_file(output: Path) -> None:
    assert {path.name for path in output.iterdir()} == FILES
    assert (output / "scenes.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert set(results["models"]) == {"FILIP", "CLIP"}
    assert all(model["steps"] == 3 and model["scenes"] == 175 for model in results["models"].values())
    sizes = {row["file"]: row["size"] for row in results["exports"]}
    assert sizes["image_tower_int8.onnx"] < sizes["image_tower.onnx"]
    for row in results["exports"]:
        exact = row["file"] != "image_tower_int8.onnx"
        assert row["agreement"]["max_abs_error"] < (1e-5 if exact else 0.5), row["file"]
        assert row["agreement"]["min_cosine"] > (1 - 1e-5 if exact else 0.9), row["file"]


def test_saved_weights_are_the_trained_model(output: Path) -> None:
    model = ImageTextModel(TowerConfig(width=16, depth=1, dim=16), late=True)
    model.load_state_dict(load_file(output / "filip.safetensors"))
    tower = load_file(output / "image_tower.safetensors")
    assert tower.keys() == model.image.state_dict().keys()
    for key, value in model.image.state_dict().items():
        assert torch.equal(value, tower[key])


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.buttons = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.buttons += tag == "button"


def test_report_is_complete_and_refers_to_nothing_outside(output: Path) -> None:
    text = (output / "report.html").read_text(encoding="utf-8")
    parser = _Links()
    parser.feed(text)
    assert parser.links and all(link.startswith("data:") for link in parser.links)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\s*\(", text)
    # The SVG namespace is a name, not an address.
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "$" not in re.sub(r"\$\{", "", text), "a placeholder was left"
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert page._text(results["verdict"]) in text
    for row in results["exports"]:
        assert row["file"] in text
    shown = json.loads(re.search(r'id="scenes">(.*?)</script>', text, re.S).group(1))
    assert parser.buttons == sum(len(scene["words"]) for scene in shown["scenes"])


def test_report_data_is_a_partition_of_the_patches(output: Path) -> None:
    text = (output / "report.html").read_text(encoding="utf-8")
    shown = json.loads(re.search(r'id="scenes">(.*?)</script>', text, re.S).group(1))
    count = shown["grid"] ** 2
    for scene in shown["scenes"]:
        patches = sorted(patch for word in scene["words"] for patch in word["patches"])
        assert patches == list(range(count)), "every patch chose exactly one word"
        for word in scene["words"]:
            assert len(word["similarity"]) == count
            assert word["similarity"][word["best"]] == max(word["similarity"])


def test_training_is_the_same_twice_for_a_number_of_steps(banks: tuple[data.DigitBank, data.DigitBank]) -> None:
    recipe = training.Recipe(steps=4, batch_size=12)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        model = ImageTextModel(TowerConfig(width=8, depth=1, dim=8), late=True)
        losses.append(training.train(model, data.SceneSource(banks[0], seed=0), recipe, "FILIP").loss)
    assert losses[0] == losses[1] and len(losses[0]) == 4


class _OneBatch(data.SceneSource):
    """The same scenes in every step."""

    def batch(self, size: int) -> data.Scenes:
        self.scenes = getattr(self, "scenes", None) or super().batch(size)
        return self.scenes


@pytest.mark.parametrize("late", [True, False], ids=["FILIP", "CLIP"])
def test_both_models_learn_a_few_scenes_by_heart(banks: tuple[data.DigitBank, data.DigitBank], late: bool) -> None:
    model = ImageTextModel(TowerConfig(width=32, depth=1, dim=32), late=late)
    recipe = training.Recipe(steps=160, batch_size=12, learning_rate=5e-3)
    history = training.train(model, _OneBatch(banks[0], seed=0), recipe)
    assert history.loss[0] > math.log(12) - 0.6, "nothing is known at the start"
    assert history.loss[-1] < 0.4 and history.accuracy[-1] > 0.9


def test_training_for_a_time_stops_and_follows_the_clock(banks: tuple[data.DigitBank, data.DigitBank]) -> None:
    model = ImageTextModel(TowerConfig(width=8, depth=1, dim=8), late=False)
    history = training.train(model, data.SceneSource(banks[0], seed=0), training.Recipe(seconds=0.5, batch_size=4))
    assert history.steps >= 1 and history.seconds == sorted(history.seconds)
    assert all(seconds < 0.5 for seconds in history.seconds[:-1]), "no step starts after the time is up"


def test_learning_rate_warms_up_and_ends_low() -> None:
    recipe = training.Recipe(learning_rate=1.0, warmup=0.1)
    rates = [training.learning_rate(step / 100, recipe) for step in range(101)]
    assert max(rates) == pytest.approx(rates[10]) == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.05) and rates[100] == pytest.approx(0.02)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps: expected 1 or more"),
        (["--seconds", "-3"], "expected a positive number"),
        (["--seed", "-1"], "--seed: expected 0 or more"),
    ],
)
def test_bad_options_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_bench_rows_become_cells() -> None:
    good = {
        "name": "maxsim",
        "title": "maxsim fp32",
        "status": "ok",
        "problem": None,
        "seconds": 0.0213,
        "ratios": {"torch eager": 4.321},
        "rate": 115.04,
        "unit": "GFLOP/s",
        "of_limit": 0.912,
        "limit": "compute",
    }
    bad = good | {"status": "FAILED", "problem": "errors of 3"}
    rows = summary.bench_cells([good, bad, good | {"of_limit": None, "ratios": {}}])
    assert rows[0] == ("maxsim fp32", "21.3 ms", "115 GFLOP/s", "91 % (compute)", "torch eager 4.32×")
    assert rows[1][1] == "FAILED" and rows[1][-1] == "errors of 3"
    assert rows[2][3] == rows[2][4] == "–"


def test_smooth_is_a_trailing_mean() -> None:
    assert page.smooth([1.0, 3.0, 5.0, 7.0], 2) == pytest.approx([1.0, 2.0, 4.0, 6.0])
