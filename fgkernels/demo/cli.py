# SPDX-License-Identifier: Apache-2.0
"""The command line of ``fgkernels demo``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fgkernels demo",
        description="Trains a small FILIP and a small CLIP on scenes of handwritten digits, compares them, shows where "
        "FILIP finds the words, exports its image tower and times the operators: about five minutes on two cores.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder for the files (default: demo-output)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of digits, scenes and weights (default: 0)")
    parser.add_argument("--seconds", type=_positive, help="of training per model (default: 100)")
    parser.add_argument(
        "--steps", type=int, help="of training per model, instead of seconds: the same result on every run"
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds: everything runs, nothing is learnt")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.seed < 0:
        parser.error(f"--seed: expected 0 or more, got {options.seed}")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps: expected 1 or more, got {options.steps}")
    from .pipeline import Plan, run

    plan = Plan.quick(options.output, options.seed) if options.quick else Plan(options.output, options.seed)
    recipe = plan.recipe
    if options.seconds is not None:
        recipe = replace(recipe, seconds=options.seconds, steps=None)
    if options.steps is not None:
        recipe = replace(recipe, steps=options.steps)
    run(replace(plan, recipe=recipe))
    return 0
