# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels for GPUs that aren't at hand, and reads registers and instructions off the result.

    python -m fgkernels.triton.ahead_of_time [--json] [sm_80] [sm_90] [gfx942]

prints a table for the shapes in :data:`CASES`, each with the first configuration that its tuner would try there.
Needs Triton without its interpreter (TRITON_INTERPRET unset).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..reference._scan_checks import accumulation_dtype
from . import causal_conv1d, late_interaction, mamba_chunk_scan, selective_scan, selective_scan_2d
from .device import INTERPRETED, SHARED_MEMORY, Kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

#: Matrix instructions in a target's assembly.
INSTRUCTIONS = {"mma.sync": r"\bmma\.sync\b", "wgmma": r"\bwgmma\.mma_async\b", "mfma": r"\bv_mfma_"}

_TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "i8",
    torch.int16: "i16", torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """One kernel compiled for one target. `registers` are per thread, `shared` is in bytes per block.

    `spills` are bytes that go to memory (NVIDIA), or vector registers that do (AMD).
    `narrow_offsets` counts blocks of addresses whose offsets are less than 64 bits wide.
    """

    case: str
    kernel: str
    target: str
    blocks: dict[str, int]
    warps: int
    stages: int
    registers: int
    spills: int
    shared: int
    narrow_offsets: int
    instructions: dict[str, int]


@dataclass(frozen=True)
class Launch:
    """A kernel and its named arguments, as an operator would launch it."""

    kernel: Kernel
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.function.fn.__name__.removesuffix("_kernel")


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, launches are noted instead of run, so operators may be called with tensors of any device, meta too."""
    launches: list[Launch] = []
    original = Kernel.launch

    def record(kernel: Kernel, device: torch.device, blocks: Callable, **arguments: Any) -> None:
        launches.append(Launch(kernel, arguments))

    Kernel.launch = record
    try:
        yield launches
    finally:
        Kernel.launch = original


def source_of(launch: Launch, config: triton.Config) -> ASTSource:
    """What Triton would compile for this launch: integers of 1 and multiples of 16 are specialised as at a launch."""
    function = launch.kernel.function
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(function.params):
        name = parameter.name
        value = config.kwargs[name] if name in config.kwargs else launch.arguments[name]
        whole = type(value) is int and not parameter.is_constexpr
        if isinstance(value, Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
        elif whole and (parameter.do_not_specialize or value != 1):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        else:
            signature[name] = "constexpr"
            constants[name] = value
            continue
        if isinstance(value, Tensor) or (value % 16 == 0 and not parameter.do_not_specialize):
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)


def compile_source(source: ASTSource, config: triton.Config, target: str) -> Any:
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return triton.compile(source, target=TARGETS[target], options=options)


def read_facts(case: str, launch: Launch, config: triton.Config, target: str, compiled: Any) -> Facts:
    """Registers and spills from the assembler, shared memory and instructions from Triton."""
    assembly = compiled.asm["amdgcn" if target == "gfx942" else "ptx"]
    registers, spills = _amd_registers(assembly) if target == "gfx942" else _nvidia_registers(assembly, target)
    return Facts(
        case, launch.name, target, dict(config.kwargs), config.num_warps, config.num_stages, registers, spills,
        compiled.metadata.shared, len(re.findall(r"tt\.addptr .*, tensor<[^!>]*xi(?:8|16|32)>", compiled.asm["ttir"])),
        {name: count for name, pattern in INSTRUCTIONS.items() if (count := len(re.findall(pattern, assembly)))},
    )  # fmt: skip


def _amd_registers(assembly: str) -> tuple[int, int]:
    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly).group(1))

    return number("vgpr_count"), number("vgpr_spill_count")


def _nvidia_registers(assembly: str, target: str) -> tuple[int, int]:
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    architecture = "sm_90a" if target == "sm_90" else target
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(assembly)
        command = [assembler, "-v", f"--gpu-name={architecture}", source, "-o", Path(folder, "kernel.cubin")]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    stores, loads = (int(n) for n in re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report).groups())
    return int(re.search(r"Used (\d+) registers", report).group(1)), stores + loads


# --- the shapes users have --------------------------------------------------------------------------------------------


def _maxsim(dtype: torch.dtype, channels: int = 128, int8: bool = False) -> None:
    """ColBERT: 32 query tokens, 300 document tokens."""
    queries = torch.empty(64, 32, channels, dtype=dtype, device="meta")
    documents = torch.empty(128, 300, channels, dtype=torch.int8 if int8 else dtype, device="meta")
    scales = torch.empty(128, 300, device="meta") if int8 else None
    kernels = late_interaction.KERNELS
    scores, alignment = kernels["maxsim"](queries, documents, None, None, scales, False, False, False)
    kernels["maxsim_fwd"](queries, documents, None, None, scales, False, False, False)
    backward = (scores, queries, documents, None, scales, alignment, False, False)
    kernels["maxsim_backward_queries"](*backward)
    if not int8:
        kernels["maxsim_backward_documents"](*backward)


def _maxsim_varlen(dtype: torch.dtype) -> None:
    queries, documents = (torch.empty(n, 128, dtype=dtype, device="meta") for n in (2048, 19200))
    offsets = torch.empty(65, dtype=torch.int64, device="meta"), torch.empty(65, dtype=torch.int64, device="meta")
    kernels = late_interaction.KERNELS
    scores, alignment = kernels["maxsim_varlen"](queries, documents, *offsets, None, False, False)
    backward = (scores, queries, documents, *offsets, None, alignment, False, False)
    kernels["maxsim_varlen_backward_queries"](*backward)
    kernels["maxsim_varlen_backward_documents"](*backward)


def _late_interaction(dtype: torch.dtype) -> None:
    """FILIP: 256 image tokens, 77 text tokens."""
    a, b = (torch.empty(256, n, 256, dtype=dtype, device="meta") for n in (256, 77))
    kernels = late_interaction.KERNELS
    *scores, alignment_ab, alignment_ba = kernels["late_interaction"](a, b, None, None, True, False)
    kernels["late_interaction_fwd"](a, b, None, None, True, False)
    kernels["late_interaction_backward_a"](*scores, a, b, None, None, alignment_ab, alignment_ba, True)


def _selective_scan(dtype: torch.dtype, batch: int, channels: int, length: int, states: int, backward: bool) -> None:
    """A Mamba layer, of a language model or over the patches of an image."""

    def sequence(*sizes: int) -> Tensor:
        return torch.empty(batch, *sizes, dtype=dtype, device="meta")

    u, projection = sequence(channels, length), sequence(states, length)
    per_channel = torch.empty(channels, dtype=accumulation_dtype(dtype), device="meta")
    A = per_channel.new_empty(channels, states)
    arguments = (u, u, A, projection, projection, per_channel, u, per_channel, None)
    kernels = selective_scan.KERNELS
    _, _, checkpoints = kernels["selective_scan"](*arguments, True)
    if backward:
        kernels["selective_scan_backward"](u, None, *arguments, checkpoints, True)


def _selective_scan_2d(dtype: torch.dtype) -> None:
    """A VMamba block: four directions over 56 x 56 positions."""
    x, delta, projection = (
        torch.empty(1, *sizes, 3136, dtype=dtype, device="meta") for sizes in ((192,), (4, 192), (4, 16))
    )
    A, D = (torch.empty(4, 192, *sizes, device="meta") for sizes in ((16,), ()))
    table = torch.empty(4, 3136, dtype=torch.int32, device="meta")
    arguments = (x, delta, A, projection, projection, D, None, D, table)
    kernels = selective_scan_2d.KERNELS
    _, checkpoints = kernels["selective_scan_2d"](*arguments, True, False)
    kernels["selective_scan_2d_backward"](x, *arguments, checkpoints, True, False)
    kernels["cross_scan"](x, table)
    kernels["cross_merge"](delta, table)


def _causal_conv1d(dtype: torch.dtype, channel_last: bool, sequences: bool) -> None:
    """Mamba's short convolution."""
    x = torch.empty(2, 2048, 768, dtype=dtype, device="meta")
    x = x.transpose(1, 2) if channel_last else x.new_empty(2, 768, 2048)
    weight, bias, state = (torch.empty(*sizes, device="meta") for sizes in ((768, 4), (768,), (2, 768, 3)))
    seq_idx = torch.empty(2, 2048, dtype=torch.int32, device="meta")
    arguments = (x, weight, bias, *((seq_idx, state) if sequences else (None, None)), True)
    kernels = causal_conv1d.KERNELS
    kernels["causal_conv1d"](*arguments)
    kernels["causal_conv1d_backward"](x, *arguments)
    kernels["causal_conv1d_update"](x[..., :1], x[..., :4], weight, bias, None, None, True)


def _selective_state_update(dtype: torch.dtype) -> None:
    """Decoding with Mamba-2."""
    x, projection, state = (
        torch.empty(8, *sizes, dtype=dtype, device="meta") for sizes in ((24, 64), (1, 128), (24, 64, 128))
    )
    per_head = torch.empty(24, 1, device="meta").expand(24, 64)
    A = per_head[..., None].expand(24, 64, 128)
    update = selective_scan.KERNELS["selective_state_update"]
    update(state, x, x, A, projection, projection, per_head, x, per_head, None, True)


def _mamba_chunk_scan(dtype: torch.dtype, gated: bool, sequences: bool, backward: bool) -> None:
    """A Mamba-2 layer: 24 heads of 64 channels, 128 states."""
    x, dt, projection = (
        torch.empty(2, 2048, *sizes, dtype=dtype, device="meta") for sizes in ((24, 64), (24,), (1, 128))
    )
    per_head = torch.empty(24, device="meta")
    seq_idx = torch.empty(2, 2048, dtype=torch.int32, device="meta") if sequences else None
    z = x if gated else None
    arguments = (x, dt, per_head, projection, projection, per_head, z, per_head, None, seq_idx)
    kernels = mamba_chunk_scan.KERNELS
    _, _, checkpoints = kernels["mamba_chunk_scan"](*arguments, True, 0.0, math.inf)
    if backward:
        kernels["mamba_chunk_scan_backward"](x, None, *arguments, checkpoints, True, 0.0, math.inf)


#: Name -> the operator calls whose kernels are compiled.
CASES: dict[str, Callable[[], None]] = {
    "maxsim bf16 D128": lambda: _maxsim(torch.bfloat16),
    "maxsim fp16 D128": lambda: _maxsim(torch.float16),
    "maxsim bf16 D256": lambda: _maxsim(torch.bfloat16, 256),
    "maxsim fp32 D128": lambda: _maxsim(torch.float32),
    "maxsim fp64 D128": lambda: _maxsim(torch.float64),
    "maxsim bf16 D128, int8 documents": lambda: _maxsim(torch.bfloat16, int8=True),
    "maxsim_varlen bf16 D128": lambda: _maxsim_varlen(torch.bfloat16),
    "late_interaction bf16 D256": lambda: _late_interaction(torch.bfloat16),
    "late_interaction fp32 D256": lambda: _late_interaction(torch.float32),
    "selective_scan bf16 N16": lambda: _selective_scan(torch.bfloat16, 2, 384, 1024, 16, True),
    "selective_scan fp32 N256": lambda: _selective_scan(torch.float32, 1, 640, 25, 256, False),
    "selective_scan fp64 N16": lambda: _selective_scan(torch.float64, 2, 384, 1024, 16, False),
    "selective_scan_2d fp32 K4": lambda: _selective_scan_2d(torch.float32),
    "causal_conv1d bf16": lambda: _causal_conv1d(torch.bfloat16, True, False),
    "causal_conv1d fp32, sequences": lambda: _causal_conv1d(torch.float32, False, True),
    "selective_state_update bf16": lambda: _selective_state_update(torch.bfloat16),
    "mamba_chunk_scan bf16": lambda: _mamba_chunk_scan(torch.bfloat16, False, False, True),
    "mamba_chunk_scan fp16, gated sequences": lambda: _mamba_chunk_scan(torch.float16, True, True, False),
    "mamba_chunk_scan fp32": lambda: _mamba_chunk_scan(torch.float32, False, False, False),
}


#: Arguments that tell the forms of a kernel apart, and how a form is called.
_FORMS = (
    (("INDEX", True), ", alignment"),
    (("INDEX", False), ", scores only"),
    (("REVERSE", True), ", reversed"),
    (("OF_B", True), ", of B"),
    (("OF_B", False), ", of C"),
)


def launches_of(case: str) -> list[tuple[str, Launch]]:
    """(name, launch) of every distinct kernel of a case."""
    with recording() as launches:
        CASES[case]()
    found: dict[str, Launch] = {}
    for launch in launches:
        words = "".join(words for flag, words in _FORMS if launch.arguments.get(flag[0]) is flag[1])
        found.setdefault(f"{case}{words}", {}).setdefault(launch.name, launch)
    return [(name, launch) for name, kernels in found.items() for launch in kernels.values()]


def report(targets: list[str], cases: list[str] | None = None) -> list[Facts]:
    """Facts of all cases on these targets.

    Raises:
        RuntimeError: under Triton's interpreter, which compiles nothing.
    """
    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: Triton's interpreter compiles nothing")
    facts = []
    for target in targets:
        seen = set()
        for case in cases or list(CASES):
            for name, launch in launches_of(case):
                config = launch.kernel.fitting(launch.arguments, SHARED_MEMORY[target], target == "gfx942")[0]
                source = source_of(launch, config)
                # Cases share kernels.
                if source.hash() not in seen:
                    seen.add(source.hash())
                    compiled = compile_source(source, config, target)
                    facts.append(read_facts(name, launch, config, target, compiled))
    return facts


def table(facts: list[Facts]) -> str:
    """The facts as a Markdown table."""
    titles = "case kernel target blocks warps stages registers spills".split() + [
        "shared memory",
        "matrix instructions",
    ]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for fact in facts:
        blocks = ", ".join(f"{name.removeprefix('BLOCK_')} {size}" for name, size in fact.blocks.items())
        instructions = ", ".join(f"{count} {name}" for name, count in fact.instructions.items()) or "none"
        lines.append(
            f"| {fact.case} | {fact.kernel} | {fact.target} | {blocks} | {fact.warps} | {fact.stages} "
            f"| {fact.registers} | {fact.spills} | {fact.shared / 1024:.1f} KiB | {instructions} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fgkernels.triton.ahead_of_time", description=__doc__.split("\n")[0]
    )
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only these cases")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.targets) - set(TARGETS))
    if unknown:
        parser.error(f"targets: expected some of {', '.join(TARGETS)}, got {', '.join(unknown)}")
    facts = report(options.targets or list(TARGETS), options.case)
    print(json.dumps([asdict(fact) for fact in facts], indent=1) if options.json else table(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
