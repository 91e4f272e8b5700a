# SPDX-License-Identifier: Apache-2.0
"""Training for a given time or number of steps."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from .data import SceneSource
from .towers import ImageTextModel


@dataclass(frozen=True)
class Recipe:
    """How both models are trained."""

    seconds: float = 100.0  # time for training, the making of batches included
    steps: int | None = None  # a fixed number of steps instead: the same result on every run
    batch_size: int = 128
    learning_rate: float = 6e-3
    weight_decay: float = 0.05
    warmup: float = 0.04  # share of the training


@dataclass
class History:
    """What happened: one entry per step in each list."""

    seconds: list[float] = field(default_factory=list)  # since the start
    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)  # in the batch, mean of both directions

    @property
    def steps(self) -> int:
        return len(self.loss)


def _optimizer(model: ImageTextModel, recipe: Recipe) -> torch.optim.Optimizer:
    # As in CLIP and FILIP: no decay for biases, norms and the temperature.
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def learning_rate(progress: float, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to a fiftieth; `progress` from 0 to 1."""
    if progress < recipe.warmup:
        return recipe.learning_rate * (0.05 + 0.95 * progress / recipe.warmup)
    phase = (progress - recipe.warmup) / (1 - recipe.warmup)
    return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(phase, 1.0))))


def train(model: ImageTextModel, source: SceneSource, recipe: Recipe, name: str = "") -> History:
    """Train `model` in place on scenes from `source`, with a progress bar.

    The schedule follows the clock (`recipe.seconds`) or, where `recipe.steps` is set, the step count.
    """
    optimizer = _optimizer(model, recipe)
    history = History()
    model.train().to(memory_format=torch.channels_last)
    total = recipe.steps or round(recipe.seconds)
    start = time.perf_counter()
    bar_format = "{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit} {postfix}"
    with tqdm(
        total=total, desc=f"training {name}", unit="steps" if recipe.steps else "s", bar_format=bar_format
    ) as bar:
        while True:
            elapsed = time.perf_counter() - start
            done = history.steps if recipe.steps else min(elapsed, recipe.seconds)
            bar.update(min(done, total) - bar.n)
            if done >= (recipe.steps or recipe.seconds):
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(done / (recipe.steps or recipe.seconds), recipe)
            output = model(source.batch(recipe.batch_size))
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            optimizer.step()
            history.seconds.append(time.perf_counter() - start)
            history.loss.append(output.loss.item())
            history.accuracy.append((output.accuracy_ab.item() + output.accuracy_ba.item()) / 2)
            bar.set_postfix_str(f"step {history.steps}, loss {history.loss[-1]:.3f}", refresh=False)
    model.eval()
    return history
