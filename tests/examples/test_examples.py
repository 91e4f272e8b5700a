# SPDX-License-Identifier: Apache-2.0
"""The examples run, and print what they promise."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(name: str) -> str:
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rerank_puts_the_right_sentence_first() -> None:
    lines = _run("rerank.py").splitlines()
    assert "Kingfishers dive into the river" in lines[1]
    scores = [float(line.split()[0]) for line in lines[1:-1]]
    assert len(scores) == 7 and scores == sorted(scores, reverse=True)
    assert "dive ~ dive" in lines[-1] and "rivers ~ river" in lines[-1]


def test_train_filip_learns_its_pairs_by_heart() -> None:
    lines = _run("train_filip.py").splitlines()
    losses = [float(re.search(r"loss (\d+\.\d+)", line).group(1)) for line in lines]
    assert len(losses) == 4 and losses[-1] < 0.5 < losses[0]
    assert lines[-1].endswith("image to text 100%  text to image 100%")


def test_export_scorer_agrees_in_both_forms() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("packaging needs a C++ compiler")
    errors = [float(value) for value in re.findall(r"largest error (\S+)", _run("export_scorer.py"))]
    assert len(errors) == 2 and max(errors) < 1e-5
