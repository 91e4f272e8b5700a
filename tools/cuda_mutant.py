# SPDX-License-Identifier: Apache-2.0
"""What a mutant of the CUDA kernels is. See mutate_cuda.py."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One edit that a test must notice.

    The text occurs exactly once in its file (tests/packaging checks it). A note that starts with "equivalent:" says why
    no test can tell the mutant from the original; it doesn't count.
    """

    kind: str
    file: str
    text: str
    replacement: str
    note: str = ""
