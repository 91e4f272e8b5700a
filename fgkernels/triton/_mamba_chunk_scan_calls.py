# SPDX-License-Identifier: Apache-2.0
"""What Mamba-2's scan launches, and in which blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.mamba_chunk_scan import CHECKPOINT_STEPS as CHUNK
from ..reference.mamba_chunk_scan import starts
from . import _mamba_chunk_scan_backward as backward_kernels
from . import _mamba_chunk_scan_forward as forward_kernels
from ._arguments import strides
from .device import INTERPRETED, ceil_div, multiprocessors, next_power_of_2

#: Bytes of the matrices of pairs that a backward may hold beyond the inputs' size, to have programs for the device.
SCRATCH_BYTES = 2**26

#: Elements of a state that a program of `passing` carries.
PASSING_BLOCK = 2**16 if INTERPRETED else 256


@dataclass(frozen=True)
class ChunkScan:
    """Arguments of a call; parameters and states are dense."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial_states: Tensor | None
    seq_idx: Tensor | None
    softplus: bool
    dt_min: float
    dt_max: float

    @property
    def chunks(self) -> int:
        return ceil_div(self.x.shape[1], CHUNK)

    @property
    def groups(self) -> int:
        return self.B.shape[2]

    @property
    def states(self) -> int:
        return self.B.shape[3]

    @property
    def per_group(self) -> int:
        return self.x.shape[2] // self.groups

    def new_states(self, *chunks: int) -> Tensor:
        batch, _, heads, channels = self.x.shape
        return self.A.new_empty(batch, *chunks, heads, channels, self.states)

    def sizes(self) -> dict[str, Any]:
        _, length, heads, channels = self.x.shape
        return {
            "length": length, "heads": heads, "channels": channels, "states": self.states,
            "per_group": self.per_group, "chunks": self.chunks, "CHUNK": CHUNK,
            "NARROW": self.x.element_size() == 2, "INTERPRETER": INTERPRETED,
        }  # fmt: skip

    def sequences(self) -> dict[str, Any]:
        return {
            **strides("x", self.x, "blhp"), **strides("z", self.z, "blhp"), **strides("B", self.B, "blgn"),
            **strides("C", self.C, "blgn"), "GATED": self.z is not None,
        }  # fmt: skip

    def skip(self) -> dict[str, Any]:
        if self.D is not None and self.D.dim() == 1:
            D = {"D": self.D, "D_stride_h": 1, "D_stride_p": 0}
        else:
            D = strides("D", self.D, "hp")
        return {**D, "SKIP": self.D is not None}

    def step_inputs(self) -> dict[str, Any]:
        return {
            **strides("dt", self.dt, "blh"), "A": self.A, "bias": self.dt_bias, "BIAS": self.dt_bias is not None,
            "SOFTPLUS": self.softplus, "DT_MIN": self.dt_min, "DT_MAX": self.dt_max, "heads": self.x.shape[2],
            "length": self.x.shape[1], "chunks": self.chunks, "CHUNK": CHUNK,
        }  # fmt: skip


class Blocks(NamedTuple):
    """Steps t and s, channels and states of a program's matrices."""

    t: int
    s: int
    p: int
    n: int

    def named(self, *names: str) -> dict[str, int]:
        return {f"BLOCK_{name}": getattr(self, name.lower()) for name in names}


def blocks(scan: ChunkScan, deep: str = "") -> Blocks:
    """Those along which products are summed, `deep`, are half as long in 16 bits, whose pieces take registers.

    Wide types are multiplied without matrix units, operands in registers.
    """
    channels, states = scan.x.shape[3], scan.states
    if INTERPRETED:
        return Blocks(CHUNK, CHUNK, next_power_of_2(channels, low=16), next_power_of_2(states, low=16))
    size = {2: 64, 4: 32, 8: 16}[scan.x.element_size()]
    t, s, p, n = (size // 2 if name in deep and size == 64 else size for name in "tspn")
    return Blocks(t, s, next_power_of_2(channels, 16, p), next_power_of_2(states, 16, n))


def _head_block(heads: int) -> int:
    return next_power_of_2(heads, high=1024) if INTERPRETED else next_power_of_2(heads, high=4)


class Steps(NamedTuple):
    """dt as the scan uses it (batch, heads, length), the sums of dt A in two parts, and the sequences' numbers."""

    steps: Tensor
    sums: Tensor
    numbers: Tensor | None

    def named(self) -> dict[str, Any]:
        return {
            "steps": self.steps, "sums": self.sums, "plane": self.steps.numel(), "numbers": self.numbers,
            "SEQUENCES": self.numbers is not None,
        }  # fmt: skip


def steps_of(scan: ChunkScan) -> Steps:
    batch, length, heads, _ = scan.x.shape
    steps = scan.A.new_empty(batch, heads, length)
    sums = scan.A.new_empty(2, batch, heads, length)
    block = _head_block(heads)
    forward_kernels.steps_of.launch(
        scan.x.device, lambda named: batch * scan.chunks * ceil_div(heads, block),
        **scan.step_inputs(), steps=steps, sums=sums, batch=batch, BLOCK_H=block, INTERPRETER=INTERPRETED,
    )  # fmt: skip
    numbers = None
    if scan.seq_idx is not None:
        # A number of its own for every stretch, so that equal numbers apart aren't taken for one sequence.
        numbers = starts(scan.seq_idx).cumsum(1, dtype=torch.int32)
    return Steps(steps, sums, numbers)


def pass_states(scan: ChunkScan, steps: Steps) -> tuple[Tensor, Tensor]:
    """(states that enter each chunk (B, chunks, H, P, N), the state after the last one)."""
    at_chunks, ends = _summaries(scan, steps, scan.x, None, scan.B, reverse=False)
    _pass(scan, steps, at_chunks, ends, scan.initial_states, None)
    return at_chunks, ends


def _summaries(
    scan: ChunkScan, steps: Steps, value: Tensor, z: Tensor | None, projection: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    batch, _, heads, channels = scan.x.shape
    at_chunks, ends = scan.new_states(scan.chunks), scan.new_states()
    block = blocks(scan, deep="s")
    count = ceil_div(channels, block.p) * ceil_div(scan.states, block.n)
    forward_kernels.summary.launch(
        scan.x.device, lambda named: batch * scan.chunks * heads * count,
        **strides("x", value, "blhp"), **strides("z", z, "blhp"), **strides("projection", projection, "blgn"),
        **scan.sizes(), **steps.named(), summaries=at_chunks, ends=ends, GATED=z is not None, REVERSE=reverse,
        **block.named("S", "P", "N"),
    )  # fmt: skip
    return at_chunks, ends


def _pass(
    scan: ChunkScan, steps: Steps, at_chunks: Tensor, ends: Tensor, first: Tensor | None, checkpoints: Tensor | None
) -> Tensor | None:
    """In place; with checkpoints in reverse, and the parts of what gets through whole chunks are returned."""
    batch, length, heads, channels = scan.x.shape
    size = channels * scan.states
    block = next_power_of_2(size, high=PASSING_BLOCK)
    count = ceil_div(size, block)
    shares = None if checkpoints is None else scan.A.new_empty(batch, scan.chunks, heads, count)
    forward_kernels.passing.launch(
        scan.x.device, lambda named: batch * heads * count,
        **steps.named(), states_at=at_chunks, first=first, ends=ends, checkpoints=checkpoints, shares=shares, size=size,
        heads=heads, length=length, chunks=scan.chunks, FIRST=first is not None, REVERSE=checkpoints is not None,
        CHUNK=CHUNK, BLOCK=block,
    )  # fmt: skip
    return shares


def write_output(
    scan: ChunkScan, steps: Steps, checkpoints: Tensor, out: Tensor, grad_out: Tensor | None = None
) -> None:
    """y with D x and the gate; with grad_out the gradient of z."""
    batch, _, heads, channels = scan.x.shape
    block = blocks(scan, deep="s")
    count = CHUNK // block.t * ceil_div(channels, block.p)
    forward_kernels.output.launch(
        scan.x.device, lambda named: batch * scan.chunks * heads * count,
        **scan.sequences(), **strides("grad", grad_out, "blhp"), **scan.skip(), **scan.sizes(), **steps.named(),
        checkpoints=checkpoints, out=out, GATE_GRADIENT=grad_out is not None, **block.named("T", "S", "P", "N"),
    )  # fmt: skip


class Gradients(NamedTuple):
    """As the operator returns them; None where the input is absent."""

    dx: Tensor
    ddt: Tensor
    dA: Tensor
    dB: Tensor
    dC: Tensor
    dD: Tensor | None
    dz: Tensor | None
    ddt_bias: Tensor | None
    dinitial_states: Tensor


def gradients(scan: ChunkScan, grad_out: Tensor, grad_final_states: Tensor | None, checkpoints: Tensor) -> Gradients:
    batch, length, heads, channels = scan.x.shape
    steps = steps_of(scan)
    leaving, dinitial = _summaries(scan, steps, grad_out, scan.z, scan.C, reverse=True)
    shares = _pass(scan, steps, leaving, dinitial, grad_final_states, checkpoints)
    dz = None
    if scan.z is not None:
        dz = scan.x.new_empty(scan.x.shape)
        write_output(scan, steps, checkpoints, dz, grad_out)
    common = {
        **scan.sequences(), **strides("grad", grad_out, "blhp"), **scan.sizes(), **steps.named()
    }  # fmt: skip
    dx, through_input, dD = _input_gradient(scan, leaving, common)
    dB, dC, crossing, since, until = _projection_gradients(scan, steps, grad_out, checkpoints, leaving, common)

    ddt = scan.dt.new_empty(scan.dt.shape)
    part_dA = scan.A.new_empty(batch, scan.chunks, heads)
    part_dbias = None if scan.dt_bias is None else torch.empty_like(part_dA)
    block = _head_block(heads)
    backward_kernels.step_gradient.launch(
        scan.x.device, lambda named: batch * scan.chunks * ceil_div(heads, block),
        **scan.step_inputs(), steps=steps.steps, through_input=through_input, crossing=crossing,
        crossing_parts=crossing.shape[-1], since=since, until=until, bound_parts=since.shape[-1], shares=shares,
        share_parts=shares.shape[-1], ddt=ddt, dA=part_dA, dbias=part_dbias, BLOCK_H=block,
    )  # fmt: skip
    ddt_bias = None if part_dbias is None else part_dbias.sum((0, 1))
    return Gradients(dx, ddt, part_dA.sum((0, 1)), dB, dC, dD, dz, ddt_bias, dinitial)


def _input_gradient(scan: ChunkScan, leaving: Tensor, common: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dx, what dt gets through the input (batch, heads, length), dD)."""
    batch, length, heads, channels = scan.x.shape
    block = blocks(scan, deep="tn")
    dx = scan.x.new_empty(scan.x.shape)
    through_input = scan.A.new_empty(batch, heads, length)
    count = CHUNK // block.s
    part = None if scan.D is None else scan.A.new_empty(batch, scan.chunks, count, heads, channels)
    backward_kernels.input_gradient.launch(
        scan.x.device, lambda named: batch * scan.chunks * heads * count,
        **common, **scan.skip(), leaving=leaving, dx=dx, through_input=through_input, dD=part,
        **block.named("T", "S", "P", "N"),
    )  # fmt: skip
    dD = None
    if part is not None:
        dD = part.sum((0, 1, 2))
        dD = dD.sum(-1) if scan.D.dim() == 1 else dD
    return dx, through_input, dD


def _projection_gradients(
    scan: ChunkScan, steps: Steps, grad_out: Tensor, checkpoints: Tensor, leaving: Tensor, common: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dB, dC, and what the logs of decays get from pairs and at the bounds of chunks)."""
    batch, length, heads, _ = scan.x.shape
    block = blocks(scan, deep="sp")
    rows = block.t if INTERPRETED or scan.x.dtype == torch.bfloat16 else block.t // 2
    row_blocks = CHUNK // rows
    programs = batch * scan.chunks * scan.groups * row_blocks
    splits = _splits(scan, programs)
    pairs = scan.A.new_empty(splits, batch, scan.chunks, scan.groups, CHUNK, CHUNK)
    crossing = scan.A.new_empty(batch, heads, length, row_blocks)
    backward_kernels.pairs.launch(
        scan.x.device, lambda named: programs * splits,
        **common, pairs=pairs, crossing=crossing, splits=splits, BLOCK_T=rows,
        **blocks(scan, deep="pn").named("P", "N"),
    )  # fmt: skip
    n_blocks = ceil_div(scan.states, block.n)
    found = []
    for of_B in (True, False):
        own, other = (scan.B, scan.C) if of_B else (scan.C, scan.B)
        gradient = own.new_empty(own.shape)
        at_bounds = scan.A.new_empty(batch, heads, length, n_blocks)
        z = None if of_B else scan.z
        backward_kernels.projection_gradient.launch(
            scan.x.device, lambda named: batch * scan.chunks * scan.groups * (CHUNK // block.t) * n_blocks,
            **strides("value", scan.x if of_B else grad_out, "blhp"), **strides("z", z, "blhp"),
            **strides("own", own, "blgn"), **strides("other", other, "blgn"), **scan.sizes(), **steps.named(),
            states_at=leaving if of_B else checkpoints, pairs=pairs, out=gradient, at_bounds=at_bounds, splits=splits,
            GATED=z is not None, OF_B=of_B, **block.named("T", "S", "P", "N"),
        )  # fmt: skip
        found.append((gradient, at_bounds))
    (dB, until), (dC, since) = found
    return dB, dC, crossing, since, until


def _splits(scan: ChunkScan, programs: int) -> int:
    """Into how many shares the heads of a group are cut: for programs enough, with memory for their sums."""
    if INTERPRETED:
        return 1
    bytes_each = scan.x.shape[0] * scan.chunks * scan.groups * CHUNK * CHUNK * scan.A.element_size()
    input_bytes = 2 * scan.x.numel() * scan.x.element_size()
    most = max(max(input_bytes, SCRATCH_BYTES) // bytes_each, 1)
    return min(scan.per_group, most, ceil_div(2 * multiprocessors(scan.x.device), programs))
