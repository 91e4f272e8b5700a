# SPDX-License-Identifier: Apache-2.0
"""What the selective scans launch: one form for 1-D scans and for scans of a map along a table of directions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference._scan_checks import CHUNK, accumulation_dtype, scan_chunks
from . import _selective_scan_backward as backward_kernels
from . import _selective_scan_directions as direction_kernels
from . import _selective_scan_forward as forward_kernels
from ._arguments import strides
from ._selective_scan_plan import Blocks, blocks, parts, passing_blocks
from .device import INTERPRETED, ceil_div


@dataclass(frozen=True)
class Scan:
    """Arguments of a call. K is 1 without a table; strides may be 0.

    u, delta (B, K, D, L); z (B, D, L); A (K, D, N), D and delta_bias (K, D), (1, ...) where the directions share them;
    B and C (B, K, G, N, L), or constant (K, D, N).
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    table: Tensor | None
    ordered: bool
    softplus: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return tuple(self.delta.shape)

    @property
    def states(self) -> int:
        return self.A.shape[-1]

    @property
    def groups(self) -> int:
        return next((value.shape[2] for value in (self.B, self.C) if value.dim() == 5), 1)

    @property
    def per_group(self) -> int:
        return self.shape[2] // self.groups

    @property
    def chunks(self) -> int:
        return scan_chunks(self.shape[3])

    @property
    def dtype(self) -> torch.dtype:
        return accumulation_dtype(self.u.dtype)

    def new_states(self, *chunks: int) -> Tensor:
        batch, directions, channels, _ = self.shape
        return self.A.new_empty(batch, directions, channels, *chunks, self.states)

    def blocks(self, sums: bool = False) -> Blocks:
        return blocks(self.per_group, self.states, self.shape[3], self.dtype, sums)

    def arguments(self, block: Blocks) -> dict[str, Any]:
        """What all kernels take."""
        return {
            **strides("delta", self.delta, "bkdl"), **strides("z", self.z, "bdl"), "A": self.A,
            "A_stride_k": _direction_stride(self.A), "bias": self.delta_bias,
            "parameter_stride_k": _direction_stride(self.A) // max(self.states, 1), "table": self.table,
            "directions": self.shape[1], "groups": self.groups, "block_count": ceil_div(self.per_group, block.channels),
            "per_group": self.per_group, "length": self.shape[3], "states": self.states, "chunks": self.chunks,
            "SOFTPLUS": self.softplus, "BIAS": self.delta_bias is not None, "GATED": self.z is not None,
            "TABLE": self.table is not None, "ORDERED": self.ordered, "BLOCK_N": block.states,
            "BLOCK_D": block.channels, "BLOCK_L": block.steps, "CHUNK": CHUNK,
        }  # fmt: skip

    def unroll(self) -> dict[str, int]:
        """Two turns of the loop over states side by side, where single states in rows of steps leave registers."""
        plain = self.table is None and self.delta.stride(3) == 1 and self.blocks().states == 1
        return {"UNROLL": 2 if plain else 1}

    def own(self) -> dict[str, Any]:
        """What the kernels take that scan a chunk from its first state."""
        return {
            **strides("u", self.u, "bkdl"), **_projection("B", self.B), **_projection("C", self.C), "D": self.D,
            "SKIP": self.D is not None, "B_CONSTANT": self.B.dim() == 3, "C_CONSTANT": self.C.dim() == 3,
            "INTERPRETER": INTERPRETED,
        }  # fmt: skip

    def programs(self, block: Blocks) -> int:
        return self.shape[0] * self.shape[1] * self.groups * ceil_div(self.per_group, block.channels) * self.chunks


def _direction_stride(parameter: Tensor) -> int:
    return parameter.stride(0) if parameter.shape[0] > 1 else 0


def _projection(name: str, value: Tensor) -> dict[str, Any]:
    if value.dim() == 5:
        return strides(name, value, "bkgnl")
    return {name: value, f"{name}_stride_k": _direction_stride(value)} | {f"{name}_stride_{a}": 0 for a in "bgnl"}


# --- states at the bounds of chunks -----------------------------------------------------------------------------------


def _pass_states(scan: Scan, reverse: bool, sequence: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """States at the start of every chunk and after the last; reversed, their gradients at the end and at the start."""
    batch, directions, channels, _ = scan.shape
    at_chunks, ends = scan.new_states(scan.chunks), scan.new_states()
    totals = scan.A.new_empty(batch, directions, channels, scan.chunks)
    block = scan.blocks()
    projection = scan.C if reverse else scan.B
    arguments = (scan if reverse else replace(scan, z=None)).arguments(block)
    forward_kernels.summary.launch(
        scan.u.device, lambda named: scan.programs(block),
        **arguments, **scan.unroll(), **strides("sequence", sequence, "bkdl"),
        **_projection("projection", projection),
        totals=totals, summaries=at_chunks, ends=ends, CONSTANT=projection.dim() == 3, REVERSE=reverse,
    )  # fmt: skip
    rows = batch * directions * channels
    block_r, block_c = passing_blocks(rows * scan.states, scan.chunks)
    forward_kernels.passing.launch(
        scan.u.device, lambda named: ceil_div(rows * scan.states, block_r),
        states_at=at_chunks, totals=totals, A=scan.A, A_stride_k=_direction_stride(scan.A), first=first, ends=ends,
        directions=directions, channels=channels, states=scan.states, rows=rows, chunks=scan.chunks,
        FIRST=first is not None, REVERSE=reverse, BLOCK_R=block_r, BLOCK_C=block_c, INTERPRETER=INTERPRETED,
    )  # fmt: skip
    return at_chunks, ends


def start(scan: Scan) -> tuple[Tensor, Tensor]:
    """(checkpoints (B, K, D, chunks, N), last_state (B, K, D, N))."""
    if scan.delta.numel() == 0 or scan.states == 0:
        ends = scan.new_states()
        ends = ends.zero_() if scan.initial_state is None else ends.copy_(scan.initial_state)
        return scan.new_states(scan.chunks).zero_(), ends
    return _pass_states(scan, False, scan.u, scan.initial_state)


# --- outputs ----------------------------------------------------------------------------------------------------------


def write_output(scan: Scan, checkpoints: Tensor, out: Tensor) -> None:
    """Each direction's y, D u and the gate included, into `out` (B, K, D, L)."""
    if out.numel() == 0:
        return
    block = scan.blocks()
    forward_kernels.output.launch(
        scan.u.device, lambda named: scan.programs(block),
        **scan.arguments(block), **scan.own(), **scan.unroll(), checkpoints=checkpoints, **strides("out", out, "bkdl"),
    )  # fmt: skip


def output_of_directions(scan: Scan, checkpoints: Tensor) -> Tensor:
    """y (B, K, D, L) of all directions, in map order and without the gate: what `merge` sums.

    It takes as much memory as delta in float32, and lets all directions run side by side.
    """
    y = torch.empty(scan.shape, dtype=scan.dtype, device=scan.u.device)
    write_output(replace(scan, z=None), checkpoints, y)
    return y


# --- gradients --------------------------------------------------------------------------------------------------------


class Gradients(NamedTuple):
    """As the operators return them, in the forms of `Scan`; None where the input is absent."""

    du: Tensor
    ddelta: Tensor
    dA: Tensor
    dB: Tensor
    dC: Tensor
    dD: Tensor | None
    dz: Tensor | None
    ddelta_bias: Tensor | None
    dinitial_state: Tensor


def gradients(
    scan: Scan, grad_out: Tensor, grad_last_state: Tensor | None, checkpoints: Tensor, du: Tensor, ddelta: Tensor,
    dB: Tensor, dC: Tensor, dz: Tensor | None,
) -> Gradients:  # fmt: skip
    """All gradients; the caller brings memory for those whose layout follows an input.

    grad_out (B, D, L); du and ddelta (B, K, D, L); dB and dC as B and C; dz (B, D, L), where there is no table.
    """
    batch, directions, channels, length = scan.shape
    dA = torch.zeros(directions, channels, scan.states, dtype=scan.dtype, device=scan.u.device)
    dD, dbias = (None if value is None else dA.new_zeros(directions, channels) for value in (scan.D, scan.delta_bias))
    constants = {name: dA.new_zeros(dA.shape) for name, value in (("B", scan.B), ("C", scan.C)) if value.dim() == 3}
    if scan.delta.numel() == 0:
        dinitial = scan.new_states()
        dinitial = dinitial.zero_() if grad_last_state is None else dinitial.copy_(grad_last_state)
        dB, dC = (constants.get(name, value.zero_()) for name, value in (("B", dB), ("C", dC)))
        return Gradients(du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial)
    expanded = grad_out.unsqueeze(1).expand(scan.shape)
    if scan.states == 0:
        carried, dinitial = scan.new_states(scan.chunks), scan.new_states()
    else:
        carried, dinitial = _pass_states(scan, True, expanded, grad_last_state)

    block = scan.blocks(sums=True)
    block_count = ceil_div(scan.per_group, block.channels)
    ungrouped = 2 - len(constants)
    per_chunk = block_count * directions * scan.groups * scan.states * CHUNK * ungrouped + dA.numel() * (3 - ungrouped)
    input_bytes = sum(t.numel() * t.element_size() for t in (scan.u, scan.delta, scan.B, scan.C))
    split = scan.table is None
    entries, part_chunks = parts(batch, scan.chunks, per_chunk * dA.element_size(), input_bytes, split)
    for first_batch in range(0, batch, entries):
        batches = min(entries, batch - first_batch)
        for first_chunk in range(0, scan.chunks, part_chunks):
            count = min(part_chunks, scan.chunks - first_chunk)
            begin = first_chunk * CHUNK
            end = min((first_chunk + count) * CHUNK, length)
            per_program = (batches, count, directions, channels)
            part_dA, *part_constants = (dA.new_empty(*per_program, scan.states) for _ in range(1 + len(constants)))
            part_dD, part_dbias = (None if value is None else dA.new_empty(per_program) for value in (dD, dbias))
            part_projections = {
                name: part_constants.pop()
                if name in constants
                else dA.new_empty(block_count, batches, directions, scan.groups, scan.states, end - begin)
                for name in "BC"
            }
            backward_kernels.gradient.launch(
                scan.u.device, lambda named, n=batches * count: n * directions * scan.groups * block_count,
                **scan.arguments(block), **scan.own(), **strides("grad_out", grad_out, "bdl"),
                checkpoints=checkpoints, carried=carried, **strides("du", du, "bkdl"),
                **strides("ddelta", ddelta, "bkdl"), **strides("dz", dz, "bdl"), dA=part_dA, dD=part_dD,
                dbias=part_dbias, dB=part_projections["B"], dC=part_projections["C"], part_length=end - begin,
                part_start=begin, first_batch=first_batch, batches=batches, first_chunk=first_chunk,
                part_chunks=count, GATE_GRADIENT=dz is not None,
            )  # fmt: skip
            for total, part in ((dA, part_dA), (dD, part_dD), (dbias, part_dbias)):
                if total is not None:
                    total += part.sum((0, 1))
            for name, grad in (("B", dB), ("C", dC)):
                if name in constants:
                    constants[name] += part_projections[name].sum((0, 1))
                else:
                    part = part_projections[name]
                    part = part[0] if block_count == 1 else part.sum(0)
                    grad[first_batch : first_batch + batches, ..., begin:end].copy_(part)
    dB, dC = constants.get("B", dB), constants.get("C", dC)
    return Gradients(du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial)


def merge(y: Tensor, table: Tensor | None, z: Tensor | None, grad_out: Tensor | None, out: Tensor) -> Tensor:
    """out (B, D, L) = sum over directions of y (B, K, D, L), read through `table` where given, in a fixed order.

    With z times silu(z), and with grad_out too times grad_out silu'(z): the gradient of z.
    """
    if out.numel() == 0:
        return out
    direction_kernels.merge.launch(
        y.device, direction_kernels.merge_programs,
        **strides("y", y, "bkdl"), **strides("z", z, "bdl"), **strides("grad_out", grad_out, "bdl"),
        **strides("out", out, "bdl"), table=table, batch=out.shape[0], directions=y.shape[1], channels=out.shape[1],
        length=out.shape[2], WIDE=accumulation_dtype(y.dtype) == torch.float64, TABLE=table is not None,
        GATED=z is not None, GATE_GRADIENT=grad_out is not None,
    )  # fmt: skip
    return out


def gather(x: Tensor, table: Tensor) -> Tensor:
    """out (B, K, C, L) = x (B, C, L) at table (K, L)."""
    out = x.new_empty(x.shape[0], table.shape[0], *x.shape[1:])
    if out.numel():
        direction_kernels.gather.launch(
            x.device, direction_kernels.gather_programs,
            **strides("x", x, "bdl"), out=out, table=table, batch=x.shape[0], directions=table.shape[0],
            channels=x.shape[1], length=x.shape[2],
        )  # fmt: skip
    return out
