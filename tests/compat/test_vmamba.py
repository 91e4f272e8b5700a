# SPDX-License-Identifier: Apache-2.0
"""compat.vmamba against transposes, flips and a step-by-step scan."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgkernels.compat.vmamba import cross_merge_fn, cross_scan_fn, selective_scan_fn


def read(x: Tensor, k: int, scans: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H * W) in the order of direction k."""
    rows, columns = x.flatten(2), x.mT.flatten(2)
    return {
        0: (rows, columns, rows.flip(-1), columns.flip(-1)),
        1: (rows,) * 4,
        2: (rows, rows, rows.flip(-1), rows.flip(-1)),
    }[scans][k]


@pytest.mark.parametrize("scans", [0, 1, 2])
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("in_first", [False, True])
@pytest.mark.parametrize("out_first", [False, True])
def test_scan_and_merge(backend: str, out_first: bool, in_first: bool, one_by_one: bool, scans: int) -> None:
    """The scan reads as described, and the merge is its adjoint: <scan(x), y> = <x, merge(y)>, gradients included."""
    batch, channels, height, width = 2, 3, 2, 5
    maps = torch.randn(batch, 4, channels, height, width, dtype=torch.float64)
    if not one_by_one:
        maps = maps[:, :1]
    expected = torch.stack([read(maps[:, k if one_by_one else 0], k, scans) for k in range(4)], 1)
    x = maps if one_by_one else maps.squeeze(1)
    x = (x if in_first else x.permute(0, 3, 4, 1, 2) if one_by_one else x.permute(0, 2, 3, 1)).requires_grad_()
    options = (in_first, out_first, one_by_one, scans)
    result = cross_scan_fn(x, *options)
    assert result.is_contiguous()
    assert torch.equal(result, expected if out_first else expected.permute(0, 3, 1, 2))

    y = torch.randn_like(expected)
    given = y.unflatten(3, (height, width)) if out_first else y.permute(0, 3, 1, 2).unflatten(1, (height, width))
    given.requires_grad_()
    merged = cross_merge_fn(given, *options)
    assert merged.is_contiguous()
    in_layout = x.flatten(-2) if in_first else x.flatten(1, 2)
    assert merged.shape == in_layout.shape
    torch.testing.assert_close((result * (y if out_first else y.permute(0, 3, 1, 2))).sum(), (in_layout * merged).sum())
    (back,) = torch.autograd.grad((result * given.detach().reshape(result.shape)).sum(), x)
    torch.testing.assert_close(back.reshape(merged.shape), merged)
    (forth,) = torch.autograd.grad((merged * in_layout.detach()).sum(), given)
    torch.testing.assert_close(forth.reshape(result.shape), result)


def test_unknown_scans() -> None:
    with pytest.raises(ValueError, match="scans: expected 0, 1 or 2, got 3"):
        cross_scan_fn(torch.zeros(1, 1, 2, 2), scans=3)
    with pytest.raises(ValueError, match="scans: expected 0, 1 or 2, got 3"):
        cross_merge_fn(torch.zeros(1, 4, 1, 2, 2), scans=3)


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """By definition, in float64."""
    u, delta, A, B, C, D, bias = (value.double() for value in (u, delta, A, B, C, D, bias))
    per_group = u.shape[1] // B.shape[1]
    B, C = B.repeat_interleave(per_group, 1), C.repeat_interleave(per_group, 1)
    dt = F.softplus(delta + bias[:, None])
    state, rows = 0, []
    for t in range(u.shape[2]):
        step = dt[..., t, None]
        state = (step * A).exp() * state + step * B[..., t] * u[..., t, None]
        rows.append((state * C[..., t]).sum(-1) + D * u[..., t])
    return torch.stack(rows, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_selective_scan(backend: str, dtype: torch.dtype) -> None:
    u, delta = torch.randn(2, 8, 7).to(dtype), torch.randn(2, 8, 7).to(dtype)
    B, C = torch.randn(2, 4, 3, 7).to(dtype), torch.randn(2, 4, 3, 7).to(dtype)
    A, D, bias = -torch.rand(8, 3), torch.randn(8), torch.randn(8)
    expected = scan(u, delta, A, B, C, D, bias)
    out = selective_scan_fn(u, delta, A, B, C, D, bias)
    assert out.dtype == torch.float32, "oflex: unrounded also for 16-bit inputs"
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    rounded = selective_scan_fn(u, delta, A, B, C, D, bias, oflex=False)
    assert rounded.dtype == dtype
    torch.testing.assert_close(rounded.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
