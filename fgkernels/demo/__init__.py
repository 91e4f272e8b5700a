# SPDX-License-Identifier: Apache-2.0
"""``fgkernels demo``: a small FILIP and a small CLIP on handwritten digits, from data to a report."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from .cli import main as run

    return run(argv)


__all__ = ["main"]
