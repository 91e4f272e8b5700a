# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of the CUDA kernels: plants each edit of cuda_mutants.py and counts what the emulated tests notice.

    python tools/mutate_cuda.py [--jobs 2] [--only TEXT] [--page docs/cuda-mutants.md]

Each mutant is compiled from a copy of csrc/kernels with the host compiler ($CXX or g++) and runs the emulated tests of
its family (csrc/tests/cuda_emulation/test_<family>_cuda.cpp). A mutant is caught when the test fails, faults or hangs.
Takes about twenty minutes on two cores. Exits with 1 when fewer than 95 % of those that count are caught.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cuda_mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "csrc" / "kernels"
EMULATOR = ROOT / "csrc" / "tests" / "cuda_emulation"
BUILD = ROOT / "build" / "mutants"


class Family(NamedTuple):
    """Kernels with one test. Only `mutated` sources are compiled anew: the other types' instances share every line with
    one of them."""

    name: str
    files: tuple[str, ...]  # how its files' names begin
    mutated: tuple[str, ...]
    unchanged: tuple[str, ...] = ()


def typed(name: str, files: tuple[str, ...] = ()) -> Family:
    """A family with one source per type."""
    mutated = (name, f"{name}_bf16", f"{name}_f32")
    return Family(name, (name, *files), mutated, (f"{name}_f16", f"{name}_f64"))


FAMILIES = (
    typed("late_interaction"),
    typed("selective_scan"),
    Family("cross_scan", ("cross_scan",), ("cross_scan",)),
    Family("state_update", ("state_update",), ("state_update",)),
    typed("causal_conv1d"),
    typed("mamba_chunk_scan", ("tile_product", "tensor_core_tiles", "sum_rows")),
)
TIMEOUT = 300
WANTED = 0.95


def compiler(kernels: Path) -> list[str]:
    folders = [kernels.parent, ROOT / "csrc", ROOT / "csrc/tests", EMULATOR]
    return [
        os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-DFGK_CUDA_EMULATION", "-DFGK_HAVE_BASELINE",
        *(f"-I{folder}" for folder in folders),
    ]  # fmt: skip


def compile_source(kernels: Path, source: Path, output: Path) -> None:
    subprocess.run([*compiler(kernels), "-x", "c++", "-c", source, "-o", output], check=True, capture_output=True)


def family_of(mutant: Mutant) -> Family:
    return next(family for family in FAMILIES if mutant.file.startswith(family.files))


def build_common(pool: ThreadPoolExecutor, families: set[Family]) -> dict[Family, list[Path]]:
    """Objects that no mutant changes, per family."""
    emulator = [path for path in EMULATOR.glob("*.cpp") if not re.match("test_|device_", path.name)]
    sources = {family: [*emulator, KERNELS / "cpu" / "isa.cpp"] for family in families}
    for family in families:
        sources[family] += [EMULATOR / f"test_{family.name}_cuda.cpp"]
        sources[family] += [KERNELS / "cuda" / f"{name}.cu" for name in family.unchanged]
    objects = {path: BUILD / f"common_{path.stem}.o" for paths in sources.values() for path in paths}
    list(pool.map(lambda pair: compile_source(KERNELS, *pair), objects.items()))
    return {family: [objects[path] for path in paths] for family, paths in sources.items()}


def run(mutant: Mutant, number: int, common: dict[Family, list[Path]]) -> str:
    """How the mutant was caught; "survived" or "does not compile" otherwise."""
    family = family_of(mutant)
    folder = BUILD / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    kernels = folder / "kernels"
    shutil.copytree(KERNELS / "cuda", kernels / "cuda")
    shutil.copytree(KERNELS / "common", kernels / "common")
    target = kernels / "cuda" / mutant.file
    target.write_text(target.read_text().replace(mutant.text, mutant.replacement))
    program = folder / "test"
    try:
        objects = [folder / f"{name}.o" for name in family.mutated]
        for name, output in zip(family.mutated, objects, strict=True):
            compile_source(kernels, kernels / "cuda" / f"{name}.cu", output)
        # Of functions that every object has, the linker takes the first one's: the mutant's come first.
        subprocess.run(
            [*compiler(kernels), *objects, *common[family], "-pthread", "-o", program], check=True, capture_output=True
        )
    except subprocess.CalledProcessError as error:
        print(error.stderr.decode()[:2000], file=sys.stderr)
        return "does not compile"
    try:
        environment = {**os.environ, "FGKERNELS_ISA": "baseline"}
        done = subprocess.run([program], capture_output=True, timeout=TIMEOUT, env=environment)
    except subprocess.TimeoutExpired:
        return "hangs"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode == 0:
        return "survived"
    return first_fault(done.stderr.decode(errors="replace")) or "wrong result"


def first_fault(output: str) -> str | None:
    """The emulator's name of the first fault that a test reports, None where results were wrong instead."""
    names = re.findall(r'case FaultKind::\w+:\s+return "([^"]+)"', (EMULATOR / "options.cpp").read_text())
    found = [(output.find(f": {name}: "), name) for name in names]
    return min(((place, name) for place, name in found if place >= 0), default=(0, None))[1]


def page(results: list[tuple[Mutant, str]]) -> str:
    counted = [(m, how) for m, how in results if not m.note.startswith("equivalent:")]
    caught = sum(how != "survived" for _, how in counted)
    lines = [
        "# Mutants of the CUDA kernels",
        "",
        "Each line is one edit of `csrc/kernels/cuda`, planted by `python tools/mutate_cuda.py` and run through the",
        "emulated tests in three orders of threads and blocks. The last column says what noticed it: a rule of the",
        "[emulator](cuda-emulation.md), or the comparison with the definition.",
        "",
        f"**{caught} of {len(counted)} caught ({caught / len(counted):.1%}).** Equivalent mutants, which no test can",
        "tell from the original, are listed and not counted.",
        "",
        "| kind | file | what the edit does | caught by |",
        "|---|---|---|---|",
    ]
    for mutant, how in results:
        lines.append(
            f"| {mutant.kind} | {mutant.file} | {mutant.note} | {f'**{how}**' if how == 'survived' else how} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at the same time")
    parser.add_argument("--only", default="", help="mutants whose file, kind or note contains this text")
    parser.add_argument("--page", type=Path, help="where to write the list (not with --only)")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.only in f"{m.file} {m.kind} {m.note}"]
    BUILD.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        common = build_common(pool, {family_of(mutant) for mutant in chosen})

        def one(pair: tuple[int, Mutant]) -> tuple[Mutant, str]:
            number, mutant = pair
            how = run(mutant, number, common)
            print(f"{how:22} {mutant.kind:9} {mutant.file}: {mutant.note}", flush=True)
            return mutant, how

        results = list(pool.map(one, enumerate(chosen)))
    if options.page and not options.only:
        options.page.write_text(page(results))
    counted = [how for m, how in results if not m.note.startswith("equivalent:")]
    caught = sum(how not in ("survived", "does not compile") for how in counted)
    print(f"{caught} of {len(counted)} caught")
    return 0 if counted and caught >= WANTED * len(counted) and "does not compile" not in counted else 1


if __name__ == "__main__":
    sys.exit(main())
