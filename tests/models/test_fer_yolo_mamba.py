# SPDX-License-Identifier: Apache-2.0
"""FER-YOLO-Mamba (Ma et al. 2024): what its eight scan orders and its SS2D must satisfy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fgkernels
from fgkernels.nn import SS2D

F64 = torch.float64
EIGHT = ("h", "v", "h_flip", "v_flip", "d", "a", "d_flip", "a_flip")


def visited(x: Tensor, k: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H * W) in the order of direction k, by indexing rows and columns."""
    height, width = x.shape[2:]
    shift = {0: None, 1: 0, 4: 1, 5: -1}
    base = {2: 0, 3: 1, 6: 4, 7: 5}.get(k, k)
    if base == 0:
        out = [x[:, :, i, j] for i in range(height) for j in range(width)]
    elif base == 1:
        out = [x[:, :, i, j] for j in range(width) for i in range(height)]
    else:
        out = [x[:, :, i, (j + shift[base] * i) % width] for j in range(width) for i in range(height)]
    return torch.stack(out if base == k else out[::-1], -1)


@pytest.mark.parametrize("size", [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1)])
def test_fact01_gather_and_merge(backend: str, size: tuple[int, int]) -> None:
    """merge(gather(x)) = 8 x; <gather(x), y> = <x, merge(y)>; the backward of gather is merge exactly; at H=2, W=3 the
    orders are k0 012345, k1 031425, k4 041523, k5 051324, and k2, k3, k6, k7 their reversals."""
    # Integers, whose sums are the same in any order.
    x = torch.randint(-9, 10, (2, 3, *size)).to(F64).requires_grad_()
    y = torch.randint(-9, 10, (2, 8, 3, size[0] * size[1])).to(F64).requires_grad_()
    gathered, merged = fgkernels.cross_scan(x, EIGHT), fgkernels.cross_merge(y, EIGHT, size=size)
    assert torch.equal(gathered, torch.stack([visited(x, k) for k in range(8)], 1))
    torch.testing.assert_close(fgkernels.cross_merge(gathered, EIGHT, size=size), 8 * x)
    torch.testing.assert_close((gathered * y).sum(), (x * merged).sum())
    (back,) = torch.autograd.grad(gathered, x, y.detach())
    assert torch.equal(back, merged)
    (forth,) = torch.autograd.grad(merged, y, x.detach())
    assert torch.equal(forth, gathered)
    table = fgkernels.scan_table(2, 3, EIGHT)
    orders = ["".join(map(str, row)) for row in table.tolist()]
    four = ["012345", "031425", "041523", "051324"]
    assert [orders[k] for k in (0, 1, 4, 5)] == four
    assert [orders[k] for k in (2, 3, 6, 7)] == [order[::-1] for order in four]


def test_fact02_scan_of_eight_directions(backend: str) -> None:
    """SS2D's scan in eight directions equals a loop of eight one-dimensional scans; gradcheck in float64 at E=4, N=2,
    4x3 passes for all seven inputs."""
    height, width, channels, states = 4, 3, 4, 2
    length = height * width
    x = torch.randn(1, channels, height, width, dtype=F64)
    delta = torch.randn(1, 8, channels, length, dtype=F64)
    A = -torch.rand(8 * channels, states, dtype=F64)
    B, C = (torch.randn(1, 8, states, length, dtype=F64) for _ in range(2))
    D, bias = torch.randn(8 * channels, dtype=F64), torch.randn(8 * channels, dtype=F64)
    inputs = [value.requires_grad_() for value in (x, delta, A, B, C, D, bias)]

    def fused(x, delta, A, B, C, D, bias) -> Tensor:
        return fgkernels.selective_scan_2d(x, delta, A, B, C, D, None, bias, True, directions=EIGHT)

    def loop(x, delta, A, B, C, D, bias) -> Tensor:
        out = 0
        numbers = visited(torch.arange(length).view(1, 1, height, width), 0)
        for k in range(8):
            places = visited(numbers.view(1, 1, height, width), k)[0, 0]
            own = slice(k * channels, (k + 1) * channels)
            dt, b, c = (value[:, k][..., places] for value in (delta, B, C))
            y = fgkernels.selective_scan(visited(x, k), dt, A[own], b, c, D[own], None, bias[own], True)
            out = out + y[..., places.argsort()]
        return out.view(x.shape)

    value, expected = fused(*inputs), loop(*inputs)
    torch.testing.assert_close(value, expected)
    weights = torch.randn_like(value)
    gradients = torch.autograd.grad((value * weights).sum(), inputs)
    for gradient, wanted in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, wanted)
    if backend == "cpu":  # the reference's gradients are autograd's own
        assert torch.autograd.gradcheck(fused, inputs)


@pytest.mark.parametrize(
    "forward_type, count",
    [("v2", 2624), ("v2noz", 2496), ("v2none", 2592), ("v2softmax", 2592), ("v2sigmoid", 2592), ("v2dwconv3", 2736)],
)
def test_parameter_counts(forward_type: str, count: int) -> None:
    """SS2D(d=8, N=4, E=16, R=1) with eight directions."""
    module = SS2D(8, 4, 2, 1, forward_type=forward_type, directions=EIGHT)
    assert sum(parameter.numel() for parameter in module.parameters()) == count
    assert module(torch.randn(1, 2, 3, 8)).shape == (1, 2, 3, 8)


def test_shapes_of_a_stage() -> None:
    """SS2D inside VSS(256): 128 channels, E=256, N=16, R=8."""
    shapes = {
        name: tuple(value.shape) for name, value in SS2D(128, directions=EIGHT, device="meta").state_dict().items()
    }
    assert shapes == {
        "x_proj_weight": (8, 40, 256), "dt_projs_weight": (8, 256, 8), "dt_projs_bias": (8, 256), "A_logs": (2048, 16),
        "Ds": (2048,), "in_proj.weight": (512, 128), "conv2d.weight": (256, 1, 3, 3), "conv2d.bias": (256,),
        "out_norm.weight": (256,), "out_norm.bias": (256,), "out_proj.weight": (128, 256),
    }  # fmt: skip


def test_silent_branch(backend: str) -> None:
    """With out_proj zero, SS2D adds nothing."""
    module = SS2D(8, 4, directions=EIGHT)
    torch.nn.init.zeros_(module.out_proj.weight)
    assert (module(torch.randn(2, 3, 4, 8)) == 0).all()
