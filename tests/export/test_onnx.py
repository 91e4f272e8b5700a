# SPDX-License-Identifier: Apache-2.0
"""ONNX files agree with eager, our operators included, in float and with int8 weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx as onnx_format

import fgkernels
from fgkernels.export import measure, onnx

BATCH = ({0: torch.export.Dim("batch", min=1, max=64)},)


class Conv(nn.Module):
    """Convolutions and a matrix product, like an image tower."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GELU()
        )
        self.projection = nn.Linear(32, 24)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(self.layers(images).flatten(2).transpose(1, 2))


class Scorer(nn.Module):
    """MaxSim or late interaction against documents held in the model."""

    def __init__(self, both: bool, masked: bool) -> None:
        super().__init__()
        self.both = both
        self.projection = nn.Linear(12, 16)
        self.register_buffer("documents", torch.randn(5, 7, 16))
        self.register_buffer("mask", torch.rand(5, 7) > 0.3 if masked else None)

    def forward(self, queries: Tensor) -> tuple[Tensor, ...] | Tensor:
        tokens = self.projection(queries)
        if self.both:
            return fgkernels.late_interaction(tokens, self.documents, None, self.mask)
        return fgkernels.maxsim(tokens, self.documents, document_mask=self.mask, reduction="mean")


@pytest.mark.parametrize("both", [False, True], ids=["maxsim", "late_interaction"])
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_our_operators_agree_and_leave_no_trace(tmp_path: Path, both: bool, masked: bool) -> None:
    model = Scorer(both, masked)
    path = onnx.export(model, (torch.randn(3, 4, 12),), tmp_path / "scorer.onnx", BATCH, input_names=["queries"])
    assert model.training, "the mode is put back"
    graph = onnx_format.load(str(path))
    assert {entry.domain for entry in graph.opset_import} == {""}, "standard ONNX operators only"
    assert not graph.functions
    assert [entry.name for entry in graph.graph.input] == ["queries"]
    loaded = onnx.load(path)
    for batch in (1, 3, 6):
        queries = torch.randn(batch, 4, 12)
        with torch.no_grad():
            expected = model(queries)
        torch.testing.assert_close(loaded(queries), expected, rtol=1e-5, atol=1e-5)


def test_int8_weights_are_int8_small_and_close(tmp_path: Path) -> None:
    model = Conv().eval()
    images = torch.rand(64, 1, 24, 24)
    plain = onnx.export(model, (images[:2],), tmp_path / "plain.onnx", BATCH, input_names=["images"])
    int8 = onnx.quantize(plain, tmp_path / "int8.onnx", [(part,) for part in images.split(16)])
    weights = [w for w in onnx_format.load(str(int8)).graph.initializer if w.data_type == onnx_format.TensorProto.INT8]
    assert sorted(int(np.prod(w.dims)) for w in weights if len(w.dims) > 1) == [16 * 9, 32 * 24, 32 * 16 * 9]
    assert all(len(w.dims) != 4 for w in onnx_format.load(str(int8)).graph.initializer if w.data_type == 1)
    with torch.no_grad():
        expected = model(images)
    exact = measure.agreement(expected, onnx.load(plain)(images))
    rounded = measure.agreement(expected, onnx.load(int8)(images))
    assert exact.max_abs_error < 1e-5
    # Rounding is visible, and about what 8 bits of each activation and weight leave.
    assert 1e-4 < rounded.max_abs_error < 0.05 * expected.abs().max().item()
    assert rounded.min_cosine > 0.99


def test_errors_name_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="path: expected a name that ends in .onnx, got 'model.pt'"):
        onnx.export(nn.Identity(), (torch.ones(1),), tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="path: no such ONNX file"):
        onnx.load(tmp_path / "missing.onnx")
    with pytest.raises(ValueError, match="calibration: expected at least one batch"):
        onnx.quantize(tmp_path / "a.onnx", tmp_path / "b.onnx", [])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"onnxruntime: pip install 'fgkernels\[edge\]'"):
        onnx.load(tmp_path / "missing.onnx")
