# SPDX-License-Identifier: Apache-2.0
"""You ship a model: the encoder and its scoring as one file that runs without Python code of yours.

A scorer that holds its documents is written as an AOTInductor package, which calls libfgkernels, and as an ONNX file
with standard operators only; both are compared with the original. Needs a C++ compiler and the extra `fgkernels[edge]`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fgkernels
from fgkernels.export import aoti, measure, onnx


class Scorer(nn.Module):
    """Scores (N, documents) of queries (N, words, features) against stored documents."""

    def __init__(self, features: int, documents: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.projection = nn.Linear(features, documents.shape[-1])
        self.register_buffer("documents", documents)
        self.register_buffer("mask", mask)

    def forward(self, queries: Tensor) -> Tensor:
        tokens = F.normalize(self.projection(queries), dim=-1)
        return fgkernels.maxsim(tokens, self.documents, document_mask=self.mask)


def main() -> None:
    torch.manual_seed(0)
    documents = F.normalize(torch.randn(100, 40, 64), dim=-1)
    mask = torch.arange(40) < torch.randint(10, 41, (100, 1))
    scorer = Scorer(48, documents, mask).eval()
    queries = torch.randn(4, 8, 48)
    shapes = ({0: torch.export.Dim("batch", min=1, max=256)},)

    with tempfile.TemporaryDirectory() as folder:
        forms = {
            "AOTInductor": (aoti, aoti.package(scorer, (queries,), Path(folder) / "scorer.pt2", shapes)),
            "ONNX": (onnx, onnx.export(scorer, (queries,), Path(folder) / "scorer.onnx", shapes)),
        }
        with torch.no_grad():
            expected = scorer(queries)
        for name, (module, path) in forms.items():
            agreement = measure.agreement(expected, module.load(path)(queries))
            kilobytes = measure.size_bytes(path) / 1000
            print(f"{name:12} {kilobytes:6.0f} kB  largest error {agreement.max_abs_error:.1e}")


if __name__ == "__main__":
    main()
