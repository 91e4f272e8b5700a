# SPDX-License-Identifier: Apache-2.0
"""Mamba-FSCIL (Li et al. 2024): what its selective scan and its blocks must satisfy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fgkernels
from fgkernels.nn import SS2D, Mamba

F64 = torch.float64
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def recurrence(u, delta, A, B, C, D, z, delta_bias) -> tuple[Tensor, Tensor]:
    """The scan before and after the gate, step by step: u, delta, z (B, D, L), B and C (B, G, N, L)."""
    per_group = u.shape[1] // B.shape[1]
    B, C = B.repeat_interleave(per_group, 1), C.repeat_interleave(per_group, 1)
    dt = F.softplus(delta + delta_bias[:, None])
    state, rows = 0, []
    for t in range(u.shape[2]):
        step = dt[..., t, None]
        state = (step * A).exp() * state + step * B[..., t] * u[..., t, None]
        rows.append((state * C[..., t]).sum(-1) + D * u[..., t])
    y = torch.stack(rows, -1)
    return y, y * F.silu(z)


def golden() -> list[Tensor]:
    """Arguments of the worked example, as leaves: u, delta, A_log, B, C, D, z, delta_bias."""
    values = [
        [[[1, 2, 3]]], [[[0, 0, 0]]], [[0, math.log(2)]], [[[1, 0, 1], [0, 1, 1]]], [[[1, 1, 1], [1, 0, 1]]], [0.5],
        [[[0, 1, -1]]], [0],
    ]  # fmt: skip
    return [torch.tensor(value, dtype=F64, requires_grad=True) for value in values]


@pytest.mark.parametrize(
    "batch, channels, length, states, groups", [(2, 16, 49, 256, 4), (2, 16, 1, 256, 4), (2, 16, 4, 256, 4)]
)
def test_fact02_scan(backend: str, batch: int, channels: int, length: int, states: int, groups: int) -> None:
    """The golden example holds to 1e-5: y = [1.193147, 1.346574, 6.178743], out = [0, .984424, -1.661720] and all
    gradients of sum(out). Against a sequential reference the forward and every gradient agree within 1e-4 in float32
    at (2, 16, L=49, N=256, G=4), L=1 and L=4; B and C given as (B, N, L) equal G=1."""
    check_golden_example()
    u, delta, z = (torch.randn(batch, channels, length) for _ in range(3))
    A = -torch.rand(channels, states) * 4
    B, C = (torch.randn(batch, groups, states, length) / states**0.5 for _ in range(2))
    arguments = [u, delta, A, B, C, torch.randn(channels), z, torch.randn(channels)]
    weights = torch.randn(batch, channels, length)
    results = []
    for function, dtype in ((fgkernels.selective_scan, torch.float32), (lambda *a, **_: recurrence(*a)[1], F64)):
        leaves = [value.detach().to(dtype).requires_grad_() for value in arguments]
        out = function(*leaves, delta_softplus=True)
        results.append([out, *torch.autograd.grad((out * weights.to(dtype)).sum(), leaves)])
    for name, value, expected in zip(("out", *NAMES), *results, strict=True):
        torch.testing.assert_close(
            value.double(), expected, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    one = [value[:, :1] if value.dim() == 4 else value for value in arguments]
    three = [value[:, 0] if value.dim() == 4 else value for value in arguments]
    assert torch.equal(
        fgkernels.selective_scan(*one, delta_softplus=True), fgkernels.selective_scan(*three, delta_softplus=True)
    )


def check_golden_example() -> None:
    u, delta, A_log, B, C, D, z, delta_bias = leaves = golden()
    ungated = fgkernels.selective_scan(u, delta, -A_log.exp(), B, C, D, None, delta_bias, True)
    torch.testing.assert_close(
        ungated[0, 0], torch.tensor([1.193147, 1.346574, 6.178743], dtype=F64), rtol=0, atol=1e-5
    )
    out = fgkernels.selective_scan(u, delta, -A_log.exp(), B, C, D, z, delta_bias, True)
    torch.testing.assert_close(out[0, 0], torch.tensor([0, 0.984424, -1.661720], dtype=F64), rtol=0, atol=1e-5)
    expected = [
        [[[0.206762, 0.318925, -0.507303]]],
        [[[0.149147, -0.170616, -0.690314]]],
        [[-0.111013, 0.129214]],
        [[[0.206762, 0.827046, -0.559248], [-0.011651, -0.093208, -0.559248]]],
        [[[0, 0.253366, -0.605852], [0, 1.013462, -0.652456]]],
        [0.655293],
        [[[0.596574, 1.249177, 0.446905]]],
        [-0.711783],
    ]
    for gradient, numbers in zip(torch.autograd.grad(out.sum(), leaves), expected, strict=True):
        torch.testing.assert_close(gradient, torch.tensor(numbers, dtype=F64), rtol=0, atol=1e-5)


def test_fact03_scalar(backend: str) -> None:
    """A=-1, D=0, delta=softplus^-1(1), u=B=C=1: y_1=1, y_2=1+e^-1, y_3=1+e^-1+e^-2."""
    ones = torch.ones(1, 1, 3, dtype=F64)
    delta = torch.full_like(ones, math.log(math.e - 1))
    A, D = -torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=F64)
    y = fgkernels.selective_scan(ones, delta, A, ones, ones, D, delta_softplus=True)
    e = math.exp(-1)
    torch.testing.assert_close(y[0, 0], torch.tensor([1, 1 + e, 1 + e + e * e], dtype=F64))


def test_block_sizes() -> None:
    """Parameters of the published blocks: CIFAR-100, miniImageNet (one Mamba block each) and CUB (SS2D)."""
    options = dict(d_state=256, expand=1, dt_rank=256, use_out_proj=False, device="meta")
    orders = ("h", "h_flip", "v", "v_flip")
    blocks = {
        1_642_880: Mamba(640, **options),
        1_183_232: Mamba(512, **options),
        7_360_512: SS2D(1024, 256, 1, 256, use_out_proj=False, directions=orders, device="meta"),
    }
    for count, block in blocks.items():
        assert sum(parameter.numel() for parameter in block.parameters()) == count


def test_silent_branch(backend: str) -> None:
    """With the gate's rows of in_proj zero, a block puts out exactly 0, and only these rows get a gradient."""
    block = Mamba(8, d_state=4, dt_rank=4, expand=1, use_out_proj=False)
    with torch.no_grad():
        block.in_proj.weight[8:] = 0
    out = block.forward_2d(torch.randn(2, 2, 2, 8))
    assert (out == 0).all()
    (out * torch.randn_like(out)).sum().backward()
    assert (block.in_proj.weight.grad[8:] != 0).any() and (block.in_proj.weight.grad[:8] == 0).all()
    for name, parameter in block.named_parameters():
        assert name == "in_proj.weight" or (parameter.grad == 0).all(), name


def test_permuting_the_batch_permutes_the_output(backend: str) -> None:
    orders, order = ("h", "h_flip", "v", "v_flip"), torch.tensor([2, 0, 1])
    maps = torch.randn(3, 3, 3, 8)
    for run in (
        Mamba(8, d_state=4, expand=1, use_out_proj=False).forward_2d,
        SS2D(8, 4, 1, use_out_proj=False, directions=orders),
    ):
        torch.testing.assert_close(run(maps[order]), run(maps)[order])
