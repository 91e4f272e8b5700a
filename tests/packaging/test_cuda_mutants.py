# SPDX-License-Identifier: Apache-2.0
"""The list of mutants keeps up with the kernels, and docs/cuda-mutants.md with the list."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "kernels" / "cuda"


@pytest.fixture(scope="module")
def mutants():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import cuda_mutants
    finally:
        sys.path.pop(0)
    return cuda_mutants.MUTANTS


def test_each_edit_has_exactly_one_place(mutants) -> None:
    for mutant in mutants:
        count = (KERNELS / mutant.file).read_text().count(mutant.text)
        assert count == 1, f"{mutant.file}: {count} places for {mutant.note!r}"
        assert mutant.text != mutant.replacement


def test_the_page_lists_them_all_and_claims_what_it_shows(mutants) -> None:
    page = (ROOT / "docs" / "cuda-mutants.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(mutants) >= 40
    for mutant in mutants:
        assert f"| {mutant.note} |" in page
    survived = [row for row in rows if "**survived**" in row and "equivalent:" not in row]
    counted = sum(not mutant.note.startswith("equivalent:") for mutant in mutants)
    assert f"**{counted - len(survived)} of {counted} caught" in page
    assert len(survived) <= 0.05 * counted
