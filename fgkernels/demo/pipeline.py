# SPDX-License-Identifier: Apache-2.0
"""The demo from data to report."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from .. import bench
from .._version import __version__
from ..bench import environment
from . import page, picture, summary
from .data import Scenes, SceneSource, Tokenizer, load_digits, make_bank, split_digits
from .evaluation import Evaluation, evaluate
from .exporting import ExportRow, export_tower
from .towers import ImageTextModel, TowerConfig
from .training import History, Recipe, train
from .views import SceneView, scene_views

MODELS = {"FILIP": True, "CLIP": False}  # name -> late interaction
PICTURE_SCENES, PAGE_SCENES = 8, 12


@dataclass(frozen=True)
class Plan:
    """What a run does; `quick()` is for tests."""

    output: Path
    seed: int = 0
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    config: TowerConfig = dataclasses.field(default_factory=TowerConfig)
    galleries: int = 6  # of 175 held-out scenes
    variants: int = 6  # distorted copies of each training digit
    latency_seconds: float = 8.0
    bench_seconds: float = 20.0  # 0 leaves the benchmark out

    @classmethod
    def quick(cls, output: Path, seed: int) -> Plan:
        """A few steps, one gallery, no benchmark: everything runs, nothing is learnt."""
        return cls(
            output,
            seed,
            recipe=Recipe(steps=3, batch_size=16),
            config=TowerConfig(width=16, depth=1, dim=16),
            galleries=1,
            variants=0,
            latency_seconds=0.2,
            bench_seconds=0.0,
        )


@dataclass
class Results:
    """Everything that the report shows."""

    verdict: str
    evaluations: dict[str, Evaluation]
    histories: dict[str, History]
    views: list[SceneView]
    exports: list[ExportRow]
    bench: list[dict[str, Any]]
    recipe: Recipe
    parameters: dict[str, int]
    gallery_size: int
    facts: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For results.json: all numbers, without scenes and curves."""
        return {
            "verdict": self.verdict,
            "models": {
                name: {
                    **dataclasses.asdict(evaluation),
                    "steps": self.histories[name].steps,
                    "seconds": self.histories[name].seconds[-1],
                }
                for name, evaluation in self.evaluations.items()
            },
            "parameters": self.parameters,
            "recipe": dataclasses.asdict(self.recipe),
            "exports": [dataclasses.asdict(row) for row in self.exports],
            "bench": self.bench,
            "run": self.facts,
        }


def _say(text: str = "") -> None:
    tqdm.write(text)


def _train_models(plan: Plan, source_of: Any) -> tuple[dict[str, ImageTextModel], dict[str, History]]:
    models, histories = {}, {}
    for name, late in MODELS.items():
        torch.manual_seed(plan.seed)
        models[name] = ImageTextModel(plan.config, late=late)
        histories[name] = train(models[name], source_of(), plan.recipe, name)
    return models, histories


def _evaluate_models(
    models: dict[str, ImageTextModel], galleries: list[Scenes], tokenizer: Tokenizer
) -> dict[str, Evaluation]:
    result = {}
    for name, model in models.items():
        with tqdm(galleries, desc=f"testing {name}", unit="gallery") as bar:
            result[name] = evaluate(model, bar, tokenizer)
    return result


def _facts(plan: Plan, start: float) -> dict[str, str]:
    machine = environment.collect()
    return {
        "CPU": f"{machine['cpu']}, {machine['cores']} cores, {torch.get_num_threads()} threads",
        "ISA level": str(machine["isa"]),
        "late_interaction runs on": machine["backends"].get("late_interaction", "reference"),
        "torch": machine["torch"],
        "fgkernels": __version__,
        "seed": str(plan.seed),
        "took": f"{time.perf_counter() - start:.0f} s",
        "date": machine["date"],
    }


def run(plan: Plan) -> Results:
    """Run everything, write the files, print the tables."""
    start = time.perf_counter()
    plan.output.mkdir(parents=True, exist_ok=True)
    _say("1/5  Scenes of real handwritten digits")
    tokenizer = Tokenizer()
    images, labels = load_digits()
    train_rows, test_rows = split_digits(labels, plan.seed)
    train_bank = make_bank(images, labels, train_rows, variants=plan.variants, seed=plan.seed)
    test = SceneSource(make_bank(images, labels, test_rows), plan.seed + 1, tokenizer)
    galleries = [test.gallery() for _ in range(plan.galleries)]
    _say(
        f"     {len(train_rows):,} digits to train on, {len(test_rows):,} others to test; one of the captions: "
        f'"{galleries[0].captions[0]}"'
    )

    budget = f"{plan.recipe.steps} steps" if plan.recipe.steps else f"{plan.recipe.seconds:.0f} s"
    _say(f"2/5  A small FILIP and a small CLIP, same towers, {budget} each")
    # Both models see the same stream of scenes.
    models, histories = _train_models(plan, lambda: SceneSource(train_bank, plan.seed + 2, tokenizer))
    evaluations = _evaluate_models(models, galleries, tokenizer)

    _say("3/5  Picture")
    views = scene_views(models["FILIP"], models["CLIP"], galleries[0], tokenizer, PAGE_SCENES)
    picture.draw(views[:PICTURE_SCENES], plan.output / "scenes.png")

    _say("4/5  The image tower for a device")
    for name, model in models.items():
        save_file(
            {key: value.contiguous() for key, value in model.state_dict().items()},
            plan.output / f"{name.lower()}.safetensors",
        )
    calibration = SceneSource(train_bank, plan.seed + 3, tokenizer)
    exports = export_tower(models["FILIP"], plan.config, calibration, galleries[0], plan.output, plan.latency_seconds)

    _say("5/5  Benchmark of the operators" + ("" if plan.bench_seconds else ": left out in a quick run"))
    rows = bench.quick_table(plan.bench_seconds) if plan.bench_seconds else []

    results = Results(
        verdict=summary.verdict(evaluations["FILIP"], evaluations["CLIP"]),
        evaluations=evaluations,
        histories=histories,
        views=views,
        exports=exports,
        bench=rows,
        recipe=plan.recipe,
        parameters={name: sum(map(torch.numel, model.parameters())) for name, model in models.items()},
        gallery_size=len(galleries[0]),
        facts=_facts(plan, start),
    )
    (plan.output / "report.html").write_text(page.render(results), encoding="utf-8")
    text = json.dumps(results.as_dict(), indent=1, ensure_ascii=False)
    (plan.output / "results.json").write_text(text + "\n", encoding="utf-8")
    _print(results, plan)
    return results


def _print(results: Results, plan: Plan) -> None:
    filip, clip = results.evaluations["FILIP"], results.evaluations["CLIP"]
    steps = [str(history.steps) for history in results.histories.values()]
    rows = [*summary.results_cells(filip, clip), ("training steps", *steps)]
    _say("\n" + summary.text_table(("held-out scenes", "FILIP", "CLIP"), rows))
    _say("\n" + summary.text_table(summary.EXPORT_HEAD, summary.export_cells(results.exports)))
    if results.bench:
        _say("\n" + summary.text_table(summary.BENCH_HEAD, summary.bench_cells(results.bench)))
    _say(f"\n{results.verdict}\n\nTook {results.facts['took']}. Look at:")
    for name, what in (("report.html", "the report: open it in a browser"), ("scenes.png", "the picture")):
        _say(f"  {os.path.join(plan.output, name)}  {what}")
