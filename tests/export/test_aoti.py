# SPDX-License-Identifier: Apache-2.0
"""AOTInductor packages agree with eager, our operators included."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fgkernels
from fgkernels.export import aoti

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="packaging needs a C++ compiler"
)


class Scorer(nn.Module):
    """A projection, then MaxSim against documents held in the model."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(12, 16)
        self.register_buffer("documents", torch.randn(5, 7, 16))
        self.register_buffer("mask", torch.rand(5, 7) > 0.3)

    def forward(self, queries: Tensor) -> Tensor:
        return fgkernels.maxsim(self.projection(queries), self.documents, document_mask=self.mask)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scorer, Path]:
    torch.manual_seed(0)
    model = Scorer()
    path = tmp_path_factory.mktemp("aoti") / "scorer.pt2"
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    assert aoti.package(model, (torch.randn(3, 4, 12),), path, shapes) == path
    return model, path


def test_package_with_maxsim_agrees_with_eager_at_other_batch_sizes(packaged: tuple[Scorer, Path]) -> None:
    model, path = packaged
    assert model.training, "the mode is put back"
    loaded = aoti.load(path)
    for batch in (1, 3, 8):
        queries = torch.randn(batch, 4, 12)
        with torch.no_grad():
            expected = model(queries)
        torch.testing.assert_close(loaded(queries), expected, rtol=1e-5, atol=1e-5)


def test_paths_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path: expected a name that ends in .pt2, got 'model.so'"):
        aoti.package(nn.Identity(), (torch.ones(1),), tmp_path / "model.so")
    with pytest.raises(FileNotFoundError, match="path: no such package"):
        aoti.load(tmp_path / "missing.pt2")


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match="no compiler"):
        aoti.package(nn.Identity(), (torch.ones(1),), tmp_path / "model.pt2")
