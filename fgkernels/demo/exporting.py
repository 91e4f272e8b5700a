# SPDX-License-Identifier: Apache-2.0
"""The trained image tower as files for a device, each compared with the original."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ..export import aoti, measure, onnx
from ..ops.late_interaction import late_interaction
from .data import Scenes, SceneSource
from .evaluation import retrieval
from .towers import ImageEncoder, ImageTextModel, TowerConfig

LATENCY_BATCH = 16
MAX_BATCH = 1024


@dataclass
class ExportRow:
    """One form of the tower. Agreement is with PyTorch eager on held-out scenes, token by token."""

    name: str
    file: str  # name in the output folder
    size: int  # bytes
    latency: measure.Latency  # of a batch of `LATENCY_BATCH` scenes
    agreement: measure.Agreement
    retrieval: dict[str, float]  # with this tower's patches, on the same held-out scenes


@torch.no_grad()
def _in_batches(tower: Callable[[Tensor], Tensor], images: Tensor, size: int = 64) -> Tensor:
    return torch.cat([tower(part) for part in images.split(size)])


def _reload(path: Path, config: TowerConfig) -> ImageEncoder:
    tower = ImageEncoder(config, pooled=False)
    tower.load_state_dict(load_file(path))
    return tower.eval()


def export_tower(
    model: ImageTextModel, config: TowerConfig, source: SceneSource, gallery: Scenes, folder: Path, seconds: float
) -> list[ExportRow]:
    """Write the image tower of `model` in four forms to `folder` and measure each.

    Args:
        model: the trained FILIP model.
        config: its sizes.
        source: training scenes, for the ranges of int8 activations.
        gallery: held-out scenes, for agreement and retrieval.
        folder: where the files go.
        seconds: time for the side-by-side timing.
    """
    # The convolutions' weights in the plain layout: training used another one, that is quicker for large batches.
    tower = copy.deepcopy(model.image).to(memory_format=torch.contiguous_format).eval()
    example = gallery.images[:LATENCY_BATCH]
    shapes = ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},)
    paths = {
        "PyTorch eager": folder / "image_tower.safetensors",
        "AOTInductor": folder / "image_tower.pt2",
        "ONNX Runtime": folder / "image_tower.onnx",
        "ONNX Runtime, int8": folder / "image_tower_int8.onnx",
    }
    safe, package, plain, int8 = paths.values()
    steps = {
        "saving weights": lambda: save_file(tower.state_dict(), safe),
        "compiling the AOTInductor package": lambda: aoti.package(tower, (example,), package, shapes),
        "writing ONNX": lambda: onnx.export(
            tower, (example,), plain, shapes, input_names=["images"], output_names=["patches"]
        ),
        "int8 weights": lambda: onnx.quantize(plain, int8, [(source.batch(64).images,) for _ in range(4)]),
    }
    with tqdm(steps.items(), desc="export", unit="file") as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own remarks about its exporter
        for label, step in bar:
            bar.set_postfix_str(label)
            step()
    towers: dict[str, Callable[[Tensor], Tensor]] = dict(
        zip(paths, (_reload(safe, config), aoti.load(package), onnx.load(plain), onnx.load(int8)), strict=True)
    )
    latencies = measure.latency(towers, (example,), seconds=seconds)
    with torch.no_grad():
        words, mask = model.text(gallery.ids), model.mask(gallery.ids)
    original = _in_batches(tower, gallery.images)
    rows = []
    for name, path in paths.items():
        patches = _in_batches(towers[name], gallery.images)
        rows.append(
            ExportRow(
                name,
                path.name,
                os.path.getsize(path),
                latencies[name],
                measure.agreement(original, patches),
                retrieval(late_interaction(patches, words, None, mask)),
            )
        )
    return rows
