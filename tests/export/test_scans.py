# SPDX-License-Identifier: Apache-2.0
"""Programs with state-space operators, decomposed, as ONNX files and as packages, agree with eager."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fgkernels
from fgkernels import _backend
from fgkernels.export import aoti, decompositions, onnx
from fgkernels.ops import _library

pytestmark = pytest.mark.compiled

LENGTH = torch.export.Dim("length", min=2, max=100_000)


class Sequences(nn.Module):
    """A convolution, a scan of each kind and a gate, as Mamba blocks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(8))
        self.A, self.D = nn.Parameter(-torch.rand(8, 3)), nn.Parameter(torch.randn(8))
        self.decay = nn.Parameter(-torch.rand(4))
        self.register_buffer("constant", torch.randn(8, 3))

    def forward(self, x: Tensor, delta: Tensor) -> tuple[Tensor, ...]:
        u = fgkernels.causal_conv1d(x, self.weight, self.bias, "silu")
        B, C = u[:, :6].unflatten(1, (2, 3)), u[:, 2:].unflatten(1, (2, 3))
        y, state = fgkernels.selective_scan(u, delta, self.A, B, C, self.D, x, self.bias, True, True)
        constant = fgkernels.selective_scan(u, delta, self.A, self.constant, C, delta_softplus=True)
        heads = u.transpose(1, 2).unflatten(2, (4, 2))
        BC = B.permute(0, 3, 1, 2)
        out, states = fgkernels.mamba_chunk_scan_combined(
            heads, delta[:, :4].transpose(1, 2), self.decay, BC, BC, 64, z=heads, dt_softplus=True,
            return_final_states=True,
        )  # fmt: skip
        return y, state, constant, out, states


class Maps(nn.Module):
    """A map scanned in four directions, in one call and step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.D = nn.Parameter(-torch.rand(4, 6, 3)), nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor, delta: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        one = fgkernels.selective_scan_2d(x, delta, self.A, B, B, self.D, x, delta_softplus=True)
        return one, fgkernels.cross_merge(fgkernels.cross_scan(x).sin(), size=x.shape[2:])


class Step(nn.Module):
    """A step of decoding, whose states are the module's."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.weight = nn.Parameter(-torch.rand(6, 3)), nn.Parameter(torch.randn(6, 4))
        self.register_buffer("state", torch.randn(2, 6, 3))
        self.register_buffer("past", torch.randn(2, 6, 3))

    def forward(self, x: Tensor, dt: Tensor, B: Tensor) -> Tensor:
        u = fgkernels.causal_conv1d_update(x, self.past, self.weight, None, "silu")
        return fgkernels.selective_state_update(self.state, u, dt, self.A, B, B, dt_softplus=True)


def sequences(length: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 8, length), torch.randn(2, 8, length)


def exported(model: nn.Module, arguments: tuple, shapes: tuple | None = None) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model, arguments, dynamic_shapes=shapes)


def test_every_forward_operator_has_a_decomposition() -> None:
    names = [name for family in _backend._families.values() for name in family.operators if "backward" not in name]
    assert {_library.op(name) for name in names} == set(decompositions())


def test_sequences_of_any_length_without_our_operators() -> None:
    model = Sequences()
    program = exported(model, sequences(9), ({2: LENGTH}, {2: LENGTH})).run_decompositions(decompositions())
    assert _library.NAMESPACE not in str(program.graph)
    for length in (2, 9, 130):
        arguments = sequences(length)
        for found, expected in zip(program.module()(*arguments), model(*arguments), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_maps_without_our_operators() -> None:
    model = Maps()
    arguments = torch.randn(2, 6, 3, 5), torch.randn(2, 4, 6, 3, 5), torch.randn(2, 4, 3, 3, 5)
    program = exported(model, arguments).run_decompositions(decompositions())
    assert _library.NAMESPACE not in str(program.graph)
    for found, expected in zip(program.module()(*arguments), model(*arguments), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_steps_without_our_operators_move_their_states() -> None:
    model = Step()
    arguments = torch.randn(2, 6), torch.randn(2, 6), torch.randn(2, 3)
    program = copy.deepcopy(exported(model, arguments).run_decompositions(decompositions()))
    assert _library.NAMESPACE not in str(program.graph)
    program = program.module()
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(program(*arguments), model(*arguments), rtol=1e-5, atol=1e-5)


def test_onnx(tmp_path: Path) -> None:
    """A file for any length: convolutions are Conv, scans are Scan."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    import onnx as onnx_format

    model, path = Sequences(), tmp_path / "sequences.onnx"
    onnx.export(model, sequences(9), path, ({2: LENGTH}, {2: LENGTH}))
    kinds = [node.op_type for node in onnx_format.load(str(path)).graph.node]
    assert kinds.count("Scan") == 3 and "Conv" in kinds
    run = onnx.load(path)
    for length in (3, 9, 140):
        arguments = sequences(length)
        with torch.no_grad():
            expected = model(*arguments)
        for found, truth in zip(run(*arguments), expected, strict=True):
            torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="packaging needs a C++ compiler")
def test_package(tmp_path: Path) -> None:
    """Compiled ahead of time, our operators stay calls into the library, for any length."""
    model, path = Sequences(), tmp_path / "sequences.pt2"
    aoti.package(model, sequences(9), path, ({2: LENGTH}, {2: LENGTH}))
    run = aoti.load(path)
    for length in (3, 9, 140):
        arguments = sequences(length)
        with torch.no_grad():
            expected = model(*arguments)
        for found, truth in zip(run(*arguments), expected, strict=True):
            torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
