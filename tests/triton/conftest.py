# SPDX-License-Identifier: Apache-2.0
"""The kernels run in Triton's interpreter unless there is a GPU, which has to be said before Triton is imported."""

from __future__ import annotations

import os
import sys

import pytest
import torch

import fgkernels.triton

if not torch.accelerator.is_available() and "triton" not in sys.modules:
    os.environ.setdefault(fgkernels.triton.INTERPRETER_VARIABLE, "1")


@pytest.fixture
def interpreter() -> None:
    """Skips where the kernels aren't interpreted."""
    reason = fgkernels.triton.refusal()
    if reason is not None:
        pytest.skip(reason)
    if not fgkernels.triton.interpreted():
        pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported")
