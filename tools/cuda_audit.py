# SPDX-License-Identifier: Apache-2.0
"""cuda_audit.py BUILD: what nvcc made of the CUDA kernels, read from the objects in the folder BUILD.

Per kernel and architecture: registers, spills and static shared memory (what ptxas reports, which tools/keep_output.sh
keeps beside each object), the instructions that matter (cuobjdump), and per launch at the shapes of the benchmarks (the
program launch_shapes of a build with tests) threads, dynamic shared memory and theoretical occupancy.

The answer is compared with benchmarks/results/ptxas.json and the table in docs/gpu-performance.md, or with --update
written there. A hot kernel that spills or touches local memory is an error, and so is one that lacks the instructions
it is made of.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from cuda_toolkit import CudaError, find_nvcc  # noqa: E402

RESULTS = ROOT / "benchmarks/results/ptxas.json"
PAGE = ROOT / "docs/gpu-performance.md"
BEGIN, END = "<!-- ptxas:begin -->", "<!-- ptxas:end -->"

#: Kernels in which a call spends its time: no spills, no local memory.
HOT = re.compile(
    r"(late_interaction_(forward|backward)|selective_scan_(forward|backward)|cross_(scan|merge)|state_update"
    r"|conv_(forward|backward)_(rows|channels)|conv_update|pass_states|chunk_\w+)_kernel<"
)
#: What kernels must consist of, so that a primitive that lost its instruction is seen.
EXPECTED = {
    re.compile(r"late_interaction_forward_kernel<.*TensorCores<(bf16|f16)>"): ("HMMA", "LDSM", "LDGSTS"),
    re.compile(r"late_interaction_forward_kernel<"): ("LDGSTS",),
    re.compile(r"chunk_(outputs|projection_gradients)_kernel<TensorCoreTiles,"): ("HMMA", "LDSM"),
    re.compile(r"conv_(forward_(rows|channels)|backward_rows)_kernel<"): ("LDG.128", "STG.128"),
}

#: Column -> machine instructions that it counts.
INSTRUCTIONS = {
    "HMMA": r"HMMA\.",
    "HGMMA": r"HGMMA\.",
    "LDSM": r"LDSM\.",
    "LDGSTS": r"LDGSTS\.",
    "LDG.128": r"LDG\.(?=.*\b128\b)",
    "LDG": r"LDG\.",
    "STG.128": r"STG\.(?=.*\b128\b)",
    "STG": r"STG\.",
    "atomics": r"(ATOM|ATOMG|ATOMS|RED|REDG)\.",
    "local": r"(LDL|STL)\b",
}


class Multiprocessor(NamedTuple):
    """Limits of one multiprocessor (CUDA C++ Programming Guide, table of compute capabilities)."""

    count: int  # of the GPU that stands for the architecture: A100, H100
    threads: int
    blocks: int
    registers: int
    shared: int  # bytes
    shared_per_block: int


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(108, 2048, 32, 65536, 164 * 1024, 163 * 1024),
    "sm_90a": Multiprocessor(132, 2048, 32, 65536, 228 * 1024, 227 * 1024),
}
WARP = 32
REGISTERS_UNIT = 256  # per warp
SHARED_UNIT = 128  # bytes per block
SHARED_RESERVED = 1024  # bytes per block, by the driver
SCHEDULERS = 4


class AuditError(Exception):
    """Something is missing that the audit reads."""


# Occupancy ------------------------------------------------------------------------------------------------------------


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def blocks_per_multiprocessor(sm: Multiprocessor, threads: int, registers: int, shared: int) -> tuple[int, str]:
    """How many blocks fit at the same time, and what stops the next one."""
    warps = -(-threads // WARP)
    limits = {"blocks": sm.blocks, "threads": sm.threads // (warps * WARP)}
    warps_by_registers = sm.registers // round_up(max(registers, 1) * WARP, REGISTERS_UNIT)
    limits["registers"] = warps_by_registers // SCHEDULERS * SCHEDULERS // warps
    limits["shared memory"] = sm.shared // round_up(shared + SHARED_RESERVED, SHARED_UNIT)
    limiter = min(limits, key=lambda name: limits[name])
    return limits[limiter], limiter


# Reading --------------------------------------------------------------------------------------------------------------


def tool(name: str) -> str:
    """Path of cuobjdump or nvdisasm: the toolkit's, or those that come with NVIDIA's pip packages or with Triton."""
    folders = [str(Path(nvcc).resolve().parent)] if (nvcc := find_nvcc()) else []
    folders.append(os.environ.get("PATH", ""))
    for package, places in (("nvidia", ("cu13/bin", "cu12/bin")), ("triton", ("backends/nvidia/bin",))):
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            folders += [str(Path(location) / place) for place in places]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if not found:
        raise AuditError(
            f"{name} not found: it is part of the CUDA toolkit, of the pip package nvidia-cuda-{name}, and of triton"
        )
    return found


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode != 0:
        raise AuditError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def readable(names: Iterable[str]) -> dict[str, str]:
    """Mangled -> the kernel with its template arguments, without namespaces and parameters."""
    names = sorted(set(names))
    demangled = subprocess.run(
        [shutil.which("c++filt") or "c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {name: shorten(text) for name, text in zip(names, demangled, strict=True)}


def shorten(text: str) -> str:
    """A demangled kernel in the form that people read: name<arguments>."""
    text = re.sub(r"\(anonymous namespace\)::|\b_GLOBAL__N__\w+::|\bfgk::(cuda::|dev::)?|^void |\(bool\)", "", text)
    text = text.replace("(int)", "").replace("> >", ">>").replace("> >", ">>")
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return text[:i].strip()
    return text.strip()


def read_ptxas(log: str) -> dict[tuple[str, str], dict[str, int]]:
    """(mangled kernel, architecture) -> what ptxas -v reports."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    current: dict[str, int] = {}
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            current = found.setdefault((match[1], match[2]), {"shared_static": 0})
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            current["stack_bytes"] = int(match[1])
            current["spill_bytes"] = int(match[2]) + int(match[3])
        elif match := re.search(r"Used (\d+) registers", line):
            current["registers"] = int(match[1])
            if match := re.search(r"(\d+) bytes smem", line):
                current["shared_static"] = int(match[1])
    return found


def read_sass(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """(mangled kernel, architecture) -> how many instructions of each kind its machine code holds."""
    found: dict[tuple[str, str], Counter[str]] = {}
    patterns = {name: re.compile(pattern) for name, pattern in INSTRUCTIONS.items()}
    architecture, counts = "", Counter[str]()
    for line in text.splitlines():
        if match := re.match(r"\s*code for (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            counts = found.setdefault((match[1], architecture), Counter())
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", line):
            for name, pattern in patterns.items():
                counts[name] += pattern.match(match[1]) is not None
    return {key: dict(counts) for key, counts in found.items()}


def read_launches(text: str, symbols: dict[int, str]) -> dict[str, list[dict[str, Any]]]:
    """Kernel -> its launches, from what launch_shapes prints; `symbols`: address in the program -> kernel."""
    lines = [line.split("\t") for line in text.splitlines()]
    shift = int(lines[0][1], 16) - next(address for address, name in symbols.items() if name == "main")
    launches: dict[str, list[dict[str, Any]]] = {}
    for case, address, _, threads, shared in lines[1:]:
        kernel = symbols[int(address, 16) - shift]
        known = launches.setdefault(kernel, [])
        launch = {"case": case, "threads": int(threads), "shared_dynamic": int(shared)}
        if all((k["threads"], k["shared_dynamic"]) != (launch["threads"], launch["shared_dynamic"]) for k in known):
            known.append(launch)
    return launches


def program_symbols(program: Path) -> dict[int, str]:
    """Address of each function of a program -> its readable name."""
    lines = [line.split(maxsplit=2) for line in run("nm", program).splitlines()]
    functions = {int(fields[0], 16): fields[2] for fields in lines if len(fields) == 3 and fields[1] in "tTwW"}
    names = readable(functions.values())
    return {address: names[name] for address, name in functions.items()}


# The audit ------------------------------------------------------------------------------------------------------------


def audit(build: Path, program: Path) -> dict[str, Any]:
    """Everything about the kernels whose objects lie in `build`."""
    sources = {path.name for path in (ROOT / "csrc/kernels/cuda").glob("*.cu")}
    # A build folder may still hold objects of sources that are gone.
    objects = sorted(p for p in build.glob("**/csrc/kernels/cuda/*.cu.o") if p.name.removesuffix(".o") in sources)
    if not objects:
        raise AuditError(f"no objects of CUDA kernels in {build}")
    if not program.is_file():
        raise AuditError(f"{program} is missing: it comes with the tests (CMake option FGK_BUILD_TESTS)")
    reports: dict[tuple[str, str], dict[str, int]] = {}
    counts: dict[tuple[str, str], dict[str, int]] = {}
    nvdisasm = str(Path(tool("nvdisasm")).parent)
    for path in objects:
        log = path.with_name(path.name + ".log")
        if not log.is_file():
            raise AuditError(f"{log} is missing: build again from scratch")
        reports.update(read_ptxas(log.read_text()))
        sass = run(tool("cuobjdump"), "-sass", path, PATH=nvdisasm + os.pathsep + os.environ.get("PATH", ""))
        counts.update(read_sass(sass))
    names = readable(kernel for kernel, _ in reports)
    symbols = program_symbols(program)
    launches = {
        architecture: read_launches(run(program, str(sm.count), str(sm.shared_per_block)), symbols)
        for architecture, sm in MULTIPROCESSORS.items()
    }
    rows = []
    for (kernel, architecture), report in reports.items():
        row: dict[str, Any] = {"kernel": names[kernel], "architecture": architecture, **report}
        row["instructions"] = {name: counts[kernel, architecture].get(name, 0) for name in INSTRUCTIONS}
        row["launches"] = [
            launch | occupancy(architecture, report, launch)
            for launch in launches.get(architecture, {}).get(names[kernel], [])
        ]
        rows.append(row)
    rows.sort(key=lambda row: (row["architecture"], row["kernel"]))
    return {"nvcc": nvcc_version(), "kernels": rows}


def occupancy(architecture: str, report: dict[str, int], launch: dict[str, Any]) -> dict[str, Any]:
    sm = MULTIPROCESSORS[architecture]
    shared = report["shared_static"] + launch["shared_dynamic"]
    blocks, limiter = blocks_per_multiprocessor(sm, launch["threads"], report["registers"], shared)
    return {
        "blocks_per_multiprocessor": blocks,
        "occupancy": round(blocks * launch["threads"] / sm.threads, 4),
        "limited_by": limiter,
    }


def nvcc_version() -> str:
    nvcc = find_nvcc()
    match = re.search(r"release [\d.]+, V([\d.]+)", run(nvcc, "--version")) if nvcc else None
    return match[1] if match else "unknown"


def faults(result: dict[str, Any]) -> list[str]:
    """What is wrong with the kernels themselves."""
    found = []
    for row in result["kernels"]:
        where = f"{row['kernel']} for {row['architecture']}"
        local = row["instructions"]["local"]
        if HOT.match(row["kernel"]) and (row["spill_bytes"] or local):
            found.append(f"{where}: {row['spill_bytes']} bytes of spills, {local} accesses to local memory")
        for pattern, instructions in EXPECTED.items():
            if pattern.match(row["kernel"]):
                found += [f"{where}: no {name} in it" for name in instructions if not row["instructions"][name]]
        if row["architecture"] in MULTIPROCESSORS:
            if not row["launches"]:
                found.append(f"{where}: csrc/tests/audit/launch_shapes.cpp launches it at no shape")
            for launch in row["launches"]:
                if launch["blocks_per_multiprocessor"] == 0:
                    found.append(f"{where}: no block fits on a multiprocessor at {launch['case']}")
    if not any(HOT.match(row["kernel"]) for row in result["kernels"]):
        found.append("none of the kernels is a hot one: tools/cuda_audit.py knows them under other names")
    return list(dict.fromkeys(found))


# Output ---------------------------------------------------------------------------------------------------------------


def dump(result: dict[str, Any]) -> str:
    """A line per kernel, so that a diff shows what changed."""
    rows = ",\n".join("  " + json.dumps(row) for row in result["kernels"])
    return f'{{\n "nvcc": {json.dumps(result["nvcc"])},\n "kernels": [\n{rows}\n ]\n}}\n'


def table(result: dict[str, Any]) -> str:
    """The tables of docs/gpu-performance.md, one per architecture; hot kernels first."""
    lines = [f"Compiled by nvcc {result['nvcc']}; written by `make cuda ARGS=--update`.", ""]
    for architecture in sorted({row["architecture"] for row in result["kernels"]}):
        lines += [f"### {architecture}", ""]
        lines.append(
            "| kernel | registers | spills, bytes | shared, KiB | threads | blocks | occupancy | limited by "
            "| HMMA | LDSM | LDGSTS | LDG, of 128 bits | local |"
        )
        lines.append("|---|" + "--:|" * 6 + "---|" + "--:|" * 5)
        rows = [row for row in result["kernels"] if row["architecture"] == architecture]
        for row in sorted(rows, key=lambda row: (not HOT.match(row["kernel"]), row["kernel"])):
            lines.append("| " + " | ".join(cells(row)) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def cells(row: dict[str, Any]) -> list[str]:
    count = row["instructions"]
    launch = row["launches"][0] if row["launches"] else None
    shared = row["shared_static"] + (launch["shared_dynamic"] if launch else 0)
    return [
        f"`{row['kernel']}`",
        str(row["registers"]),
        str(row["spill_bytes"]),
        f"{shared / 1024:.1f}",
        str(launch["threads"]) if launch else "",
        str(launch["blocks_per_multiprocessor"]) if launch else "",
        f"{100 * launch['occupancy']:.3g} %" if launch else "",
        launch["limited_by"] if launch else "",
        str(count["HMMA"] + count["HGMMA"]),
        str(count["LDSM"]),
        str(count["LDGSTS"]),
        f"{count['LDG']}, {count['LDG.128']}",
        str(count["local"]),
    ]


def with_table(page: str, rendered: str) -> str:
    """The page with what lies between the markers replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise AuditError(f"{PAGE.relative_to(ROOT)}: expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{rendered}\n{END}{after}"


def differences(result: dict[str, Any], committed: dict[str, Any]) -> list[str]:
    """Kernels whose committed numbers are others than `result`'s."""

    def by_kernel(data: dict[str, Any]) -> dict[tuple[str, str], Any]:
        return {(row["kernel"], row["architecture"]): row for row in data["kernels"]}

    new, old = by_kernel(result), by_kernel(committed)
    return [f"{name} for {arch}" for name, arch in sorted(new | old) if new.get((name, arch)) != old.get((name, arch))]


def check(result: dict[str, Any]) -> list[str]:
    """What is stale in the tree."""
    if not RESULTS.is_file():
        return [f"{RESULTS.relative_to(ROOT)} is missing"]
    committed = json.loads(RESULTS.read_text())
    stale = []
    if PAGE.is_file() and with_table(page := PAGE.read_text(), table(committed)) != page:
        stale.append(f"{PAGE.relative_to(ROOT)}: its table is not that of {RESULTS.relative_to(ROOT)}")
    if committed["nvcc"] != result["nvcc"]:
        print(
            f"not compared with {RESULTS.relative_to(ROOT)}: nvcc {result['nvcc']}, recorded with {committed['nvcc']}"
        )
        return stale
    return stale + [f"{RESULTS.relative_to(ROOT)} is stale: {kernel}" for kernel in differences(result, committed)]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="cuda_audit.py", description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path, help="folder of a CMake build with the CUDA kernels' objects")
    parser.add_argument("--launches", type=Path, default=ROOT / "build/dev/tests/launch_shapes", metavar="PROGRAM")
    parser.add_argument("--update", action="store_true", help="write the results instead of comparing them")
    options = parser.parse_args(arguments)
    try:
        result = audit(options.build, options.launches)
        wrong = faults(result)
        if options.update:
            RESULTS.write_text(dump(result))
            if PAGE.is_file():
                PAGE.write_text(with_table(PAGE.read_text(), table(result)))
        else:
            wrong += check(result)
    except (AuditError, CudaError) as error:
        print(f"cuda_audit: {error}", file=sys.stderr)
        return 1
    for line in wrong:
        print(f"cuda_audit: {line}", file=sys.stderr)
    hot = sum(1 for row in result["kernels"] if HOT.match(row["kernel"]))
    if not wrong:
        print(f"cuda_audit: {len(result['kernels'])} kernels, {hot} of them hot: no spills, no local memory")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
