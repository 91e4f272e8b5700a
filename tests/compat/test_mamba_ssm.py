# SPDX-License-Identifier: Apache-2.0
"""compat.mamba_ssm: signatures, and the fused blocks against their parts in plain PyTorch."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgkernels.compat import mamba_ssm

F64 = torch.float64

#: Arguments of mamba_ssm's functions in its order.
SIGNATURES = {
    "selective_scan_fn": "u delta A B C D z delta_bias delta_softplus return_last_state",
    "selective_scan_ref": "u delta A B C D z delta_bias delta_softplus return_last_state",
    "selective_state_update": "state x dt A B C D z dt_bias dt_softplus state_batch_indices",
    "mamba_inner_fn": "xz conv1d_weight conv1d_bias x_proj_weight delta_proj_weight out_proj_weight out_proj_bias A B "
    "C D delta_bias B_proj_bias C_proj_bias delta_softplus checkpoint_lvl b_rms_weight c_rms_weight dt_rms_weight "
    "b_c_dt_rms_eps",
    "mamba_chunk_scan_combined": "x dt A B C chunk_size D z dt_bias initial_states seq_idx cu_seqlens dt_softplus "
    "dt_limit return_final_states return_varlen_states state_dtype",
    "mamba_split_conv1d_scan_combined": "zxbcdt conv1d_weight conv1d_bias dt_bias A D chunk_size initial_states "
    "seq_idx dt_limit return_final_states activation rmsnorm_weight rmsnorm_eps outproj_weight outproj_bias headdim "
    "ngroups norm_before_gate state_dtype",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    assert list(inspect.signature(getattr(mamba_ssm, name)).parameters) == SIGNATURES[name].split()
    assert name in mamba_ssm.__all__


def scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """By definition: u, dt (B, D, L), A (D, N), B and C (B, D, N, L)."""
    state, rows = u.new_zeros(*u.shape[:2], A.shape[-1]), []
    for t in range(u.shape[2]):
        step = dt[..., t, None]
        state = (step * A).exp() * state + step * B[..., t] * u[..., t, None]
        rows.append((state * C[..., t]).sum(-1) + D * u[..., t])
    return torch.stack(rows, -1), state


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    past = weight.shape[-1] - 1
    return F.silu(F.conv1d(F.pad(x, (past, 0)), weight.view(-1, 1, past + 1), bias, groups=x.shape[1]))


def rms(values: Tensor, weight: Tensor, eps: float) -> Tensor:
    return values / (values.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("function", [mamba_ssm.selective_scan_fn, mamba_ssm.selective_scan_ref])
def test_selective_scan(backend: str, function) -> None:
    u, delta, z = (torch.randn(2, 4, 6, dtype=F64) for _ in range(3))
    A, D, bias = -torch.rand(4, 3, dtype=F64), torch.randn(4, dtype=F64), torch.randn(4, dtype=F64)
    B, C = torch.randn(2, 2, 3, 6, dtype=F64), torch.randn(4, 3, dtype=F64)
    out, last_state = function(u, delta, A, B, C, D, z, bias, True, True)
    wide_B, wide_C = B.repeat_interleave(2, 1), C[None, :, :, None].expand(2, -1, -1, 6)
    expected, state = scan(u, F.softplus(delta + bias[:, None]), A, wide_B, wide_C, D)
    torch.testing.assert_close(out, expected * F.silu(z))
    torch.testing.assert_close(last_state, state)


def test_selective_state_update(backend: str) -> None:
    """One step of the scan in place, also with parameters that require grad, which it has none for."""
    u, dt, z = (torch.randn(2, 4, 1, dtype=F64) for _ in range(3))
    A, D, bias = -torch.rand(4, 3, dtype=F64), torch.randn(4, dtype=F64).requires_grad_(), torch.randn(4, dtype=F64)
    B, C, state = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64), torch.zeros(2, 4, 3, dtype=F64)
    out = mamba_ssm.selective_state_update(state, u[..., 0], dt[..., 0], A, B, C, D, z[..., 0], bias, True)
    wide = (value[:, None, :, None].expand(-1, 4, -1, -1) for value in (B, C))
    expected, expected_state = scan(u, F.softplus(dt + bias[:, None]), A, *wide, D.detach())
    assert not out.requires_grad
    torch.testing.assert_close(out, (expected * F.silu(z))[..., 0])
    torch.testing.assert_close(state, expected_state)


@pytest.mark.parametrize("variant", ["plain", "norms", "projection biases", "constant B and C"])
def test_mamba_inner(backend: str, variant: str) -> None:
    batch, channels, length, rank, states, out_channels = 2, 4, 6, 2, 3, 5
    constant = variant == "constant B and C"

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=F64, requires_grad=True)

    xz, conv_weight, conv_bias = leaf(batch, 2 * channels, length), leaf(channels, 1, 4), leaf(channels)
    x_proj = leaf(rank + (0 if constant else 2 * states), channels)
    dt_proj, out_proj, out_bias = leaf(channels, rank), leaf(out_channels, channels), leaf(out_channels)
    A, D, dt_bias = leaf(channels, states), leaf(channels), leaf(channels)
    options: dict[str, Tensor] = {}
    if constant:
        options = {"B": leaf(channels, states), "C": leaf(channels, states)}
    elif variant == "projection biases":
        options = {"B_proj_bias": leaf(states), "C_proj_bias": leaf(states)}
    elif variant == "norms":
        options = {"b_rms_weight": leaf(states), "c_rms_weight": leaf(states), "dt_rms_weight": leaf(channels)}
    tensors = (xz, conv_weight, conv_bias, x_proj, dt_proj, out_proj, out_bias)
    decay = -A.exp()
    out = mamba_ssm.mamba_inner_fn(*tensors, decay, D=D, delta_bias=dt_bias, b_c_dt_rms_eps=1e-3, **options)

    x, z = xz.chunk(2, 1)
    x = convolution(x, conv_weight, conv_bias)
    low, *BC = torch.einsum("rd,bdl->blr", x_proj, x).split([rank, states, states][: 1 if constant else 3], -1)
    delta = low @ dt_proj.T
    if constant:
        BC = [options[name].T.expand(batch, length, -1, -1).transpose(2, 3) for name in "BC"]
    else:
        BC = [value.unsqueeze(2).expand(-1, -1, channels, -1) for value in BC]
    if variant == "projection biases":
        BC = [value + options[f"{name}_proj_bias"] for name, value in zip("BC", BC, strict=True)]
    if variant == "norms":
        BC = [rms(value, options[f"{name}_rms_weight"], 1e-3) for name, value in zip("bc", BC, strict=True)]
        delta = rms(delta, options["dt_rms_weight"], 1e-3)
    dt = F.softplus(delta + dt_bias).transpose(1, 2)
    y, _ = scan(x, dt, decay, *(value.permute(0, 2, 3, 1) for value in BC), D)
    expected = (y * F.silu(z)).transpose(1, 2) @ out_proj.T + out_bias
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(out)
    leaves = [*tensors, A, D, dt_bias, *options.values()]
    wanted = torch.autograd.grad((expected * weights).sum(), leaves, retain_graph=True)
    for value, formula in zip(torch.autograd.grad((out * weights).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(value, formula)


@pytest.mark.parametrize("variant", ["norm", "gate", "mlp", "bare"])
def test_split_conv1d_scan(backend: str, variant: str) -> None:
    batch, length, heads, head_dim, groups, states = 2, 6, 4, 3, 2, 5
    scanned, mlp = heads * head_dim, 2 if variant == "mlp" else 0
    conv_channels = scanned + 2 * groups * states

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=F64, requires_grad=True)

    zxbcdt = leaf(batch, length, 2 * mlp + scanned + conv_channels + heads)
    conv_weight, conv_bias, dt_bias = leaf(conv_channels, 4), leaf(conv_channels), leaf(heads)
    A, initial = -torch.rand(heads, dtype=F64), leaf(batch, heads, head_dim, states)
    D = leaf(heads, head_dim) if variant == "bare" else leaf(heads)
    weight = None if variant == "gate" else leaf(scanned)
    out_weight, out_bias = (None, None) if variant == "bare" else (leaf(7, mlp + scanned), leaf(7))
    before = variant != "mlp"
    out, final = mamba_ssm.mamba_split_conv1d_scan_combined(
        zxbcdt, conv_weight, conv_bias, dt_bias, A, D, 4, initial, dt_limit=(0.1, 2.0), return_final_states=True,
        rmsnorm_weight=weight, rmsnorm_eps=1e-3, outproj_weight=out_weight, outproj_bias=out_bias,
        headdim=None if variant == "bare" else head_dim, ngroups=groups, norm_before_gate=before,
    )  # fmt: skip

    gate, values, z, xBC, dt = zxbcdt.split([mlp, mlp, scanned, conv_channels, heads], -1)
    xBC = convolution(xBC.transpose(1, 2), conv_weight, conv_bias).transpose(1, 2)
    x, B, C = xBC.split([scanned, groups * states, groups * states], -1)
    dt = F.softplus(dt + dt_bias).clamp(0.1, 2.0)
    state, rows = initial, []
    for t in range(length):
        b, c = (
            value[:, t].view(batch, groups, 1, states).expand(-1, -1, heads // groups, -1).flatten(1, 2)
            for value in (B, C)
        )
        inputs, step = x[:, t].view(batch, heads, head_dim), dt[:, t, :, None, None]
        state = (step * A[:, None, None]).exp() * state + step * inputs[..., None] * b[:, :, None]
        rows.append(((state * c[:, :, None]).sum(-1) + D.view(heads, -1) * inputs).flatten(1))
    y = torch.stack(rows, 1)
    if weight is None:
        y = y * F.silu(z)
    else:
        y = y if before else y * F.silu(z)
        y = rms(y.unflatten(-1, (groups, -1)), weight.view(groups, -1), 1e-3).flatten(-2)
        y = y * F.silu(z) if before else y
    expected = torch.cat([F.silu(gate) * values, y], -1)
    if out_weight is not None:
        expected = expected @ out_weight.T + out_bias
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(final, state)
    leaves = [
        value
        for value in (zxbcdt, conv_weight, conv_bias, dt_bias, initial, D, weight, out_weight)
        if value is not None
    ]
    weights = torch.randn_like(out)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    for value, formula in zip(torch.autograd.grad((out * weights).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(value, formula)


def test_chunk_scan_of_packed_sequences(backend: str) -> None:
    """As in mamba_ssm: without return_varlen_states cu_seqlens changes nothing; with it, each sequence's last state."""
    x, dt, A = torch.randn(1, 6, 2, 3, dtype=F64), torch.rand(1, 6, 2, dtype=F64), -torch.rand(2, dtype=F64)
    B, C = torch.randn(1, 6, 1, 4, dtype=F64), torch.randn(1, 6, 1, 4, dtype=F64)
    offsets = torch.tensor([0, 2, 6], dtype=torch.int32)
    plain = mamba_ssm.mamba_chunk_scan_combined(x, dt, A, B, C, 4)
    assert torch.equal(mamba_ssm.mamba_chunk_scan_combined(x, dt, A, B, C, 4, cu_seqlens=offsets), plain)
    seq_idx = torch.tensor([[0, 0, 1, 1, 1, 1]])
    out, states = mamba_ssm.mamba_chunk_scan_combined(
        x, dt, A, B, C, 4, seq_idx=seq_idx, cu_seqlens=offsets, return_varlen_states=True
    )
    for entry, (start, end) in enumerate([(0, 2), (2, 6)]):
        part = [value[:, start:end] for value in (x, dt, B, C)]
        alone, final = mamba_ssm.mamba_chunk_scan_combined(*part[:2], A, *part[2:], 4, return_final_states=True)
        torch.testing.assert_close(out[:, start:end], alone)
        torch.testing.assert_close(states[entry], final[0])


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"headdim: expected P with D \(H,\), got None"):
        mamba_ssm.mamba_split_conv1d_scan_combined(
            torch.randn(1, 2, 21), torch.randn(12, 4), None, torch.randn(1), torch.randn(1), torch.ones(1), 4
        )
    with pytest.raises(ValueError, match="A: "):
        mamba_ssm.selective_scan_fn(
            torch.randn(1, 2, 3), torch.randn(1, 2, 3), torch.randn(2, 2, dtype=torch.complex64),
            torch.randn(1, 2, 3), torch.randn(1, 2, 3),
        )  # fmt: skip
    assert math.isinf(inspect.signature(mamba_ssm.mamba_chunk_scan_combined).parameters["dt_limit"].default[1])
