# SPDX-License-Identifier: Apache-2.0
"""The Mamba-2 block and its gated norm against their definitions written token by token."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgkernels.nn import Mamba2, RMSNormGated

F64 = torch.float64
OPTIONS = {
    "plain": {},
    "groups": {"ngroups": 2, "norm_before_gate": True, "bias": True, "conv_bias": False},
    "gate alone": {"rmsnorm": False, "D_has_hdim": True, "d_conv": 2},
    "mlp": {"d_ssm": 4, "headdim": 2, "d_state": 3, "d_conv": 3},
    "limits": {"dt_limit": (0.02, 0.05)},
}


@pytest.fixture(params=OPTIONS)
def block(request: pytest.FixtureRequest) -> Mamba2:
    options = {"d_state": 5, "headdim": 4, "chunk_size": 4, **OPTIONS[request.param]}
    return lively(Mamba2(6, expand=2, layer_idx=3, dtype=F64, **{**options, "d_ssm": options.get("d_ssm", 8)}))


def lively(block: Mamba2) -> Mamba2:
    """Weights at which every part of the block matters."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def normalised(values: Tensor, gate: Tensor, weight: Tensor, groups: int, before: bool, eps: float = 1e-5) -> Tensor:
    gate = gate * gate.sigmoid()
    values = values if before else values * gate
    parts = [part / (part.square().mean(-1, keepdim=True) + eps).sqrt() for part in values.chunk(groups, -1)]
    values = torch.cat(parts, -1) * weight
    return values * gate if before else values


def recurrence(block: Mamba2, u: Tensor, starts: tuple[int, ...] = (0,)) -> Tensor:
    """The block by its definition: u (B, L, d_model), whose sequences begin at `starts`."""

    def linear(layer: torch.nn.Linear, values: Tensor) -> Tensor:
        return layer.weight @ values + (0 if layer.bias is None else layer.bias)

    heads, width, states, groups = block.nheads, block.d_conv, block.d_state, block.ngroups
    mlp, decay = block.d_inner - block.d_ssm, -block.A_log.exp()
    outputs = []
    for sequence in u:
        for t, token in enumerate(sequence):
            if t in starts:
                state = u.new_zeros(heads, block.headdim, states)
                window = [u.new_zeros(block.conv_channels)] * width
            parts = [mlp, mlp, block.d_ssm, block.conv_channels, heads]
            mlp_gate, mlp_values, z, xBC, dt = linear(block.in_proj, token).split(parts)
            window = [*window[1:], xBC]
            xBC = sum(block.conv1d.weight[:, 0, j] * window[j] for j in range(width))
            xBC = xBC if block.conv1d.bias is None else xBC + block.conv1d.bias
            xBC = xBC * xBC.sigmoid()
            x, B, C = xBC.split([block.d_ssm, groups * states, groups * states])
            x = x.view(heads, block.headdim)
            B, C = (v.view(groups, states).repeat_interleave(heads // groups, 0) for v in (B, C))
            dt = (dt + block.dt_bias).exp().log1p().clamp(*block.dt_limit)
            state = (dt * decay).exp()[:, None, None] * state + dt[:, None, None] * x[:, :, None] * B[:, None]
            skip = block.D.view(heads, -1)
            y = ((state * C[:, None]).sum(-1) + skip * x).flatten()
            if block.norm is None:
                y = y * z * z.sigmoid()
            else:
                y = normalised(y, z, block.norm.weight, groups, block.norm.norm_before_gate)
            outputs.append(linear(block.out_proj, torch.cat([mlp_gate * mlp_gate.sigmoid() * mlp_values, y])))
    return torch.stack(outputs).unflatten(0, u.shape[:2])


def test_forward_and_gradients(backend: str, block: Mamba2) -> None:
    u = torch.randn(2, 6, 6, dtype=F64, requires_grad=True)
    value, expected = block(u), recurrence(block, u)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(block(u.flatten(0, 1), seqlen=6), expected.flatten(0, 1))
    weights = torch.randn_like(expected)
    inputs = [u, *block.parameters()]
    gradients = torch.autograd.grad((value * weights).sum(), inputs)
    for gradient, formula in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        assert formula.abs().sum() > 0
        torch.testing.assert_close(gradient, formula)


@pytest.mark.parametrize("lengths", [(1,) * 7, (3, 1, 2, 1), (1, 6), (5, 2)])
@pytest.mark.parametrize("grad", [False, True])
def test_chunks_are_one_call(backend: str, block: Mamba2, lengths: tuple[int, ...], grad: bool) -> None:
    """States in inference_params carry any split of a sequence; single tokens go through `step` without gradients."""
    u = torch.randn(2, 7, 6, dtype=F64)
    memory = SimpleNamespace(key_value_memory_dict={}, seqlen_offset=0)
    parts = []
    with torch.set_grad_enabled(grad):
        for part in u.split(lengths, 1):
            out = block(part.flatten(0, 1), seqlen=part.shape[1], inference_params=memory)
            parts.append(out.unflatten(0, part.shape[:2]))
            memory.seqlen_offset += part.shape[1]
    torch.testing.assert_close(torch.cat(parts, 1), recurrence(block, u))
    assert list(memory.key_value_memory_dict) == [3]
    memory.seqlen_offset = 0
    torch.testing.assert_close(block(u[:, :2], inference_params=memory), recurrence(block, u[:, :2]))


def test_step_changes_its_states_in_place(backend: str, block: Mamba2) -> None:
    u = torch.randn(2, 4, 6, dtype=F64)
    states = block.allocate_inference_cache(2, 0)
    assert states[0].shape == (2, block.conv_channels, block.d_conv)
    assert states[1].shape == (2, block.nheads, block.headdim, block.d_state)
    rows = []
    for t in range(4):
        out, *same = block.step(u[:, t : t + 1], *states)
        assert same[0] is states[0] and same[1] is states[1] and not out.requires_grad
        rows.append(out)
    torch.testing.assert_close(torch.cat(rows, 1), recurrence(block, u))


def test_packed_sequences(backend: str, block: Mamba2) -> None:
    """seq_idx and cu_seqlens keep sequences apart; decoding goes on from each one's own states."""
    u, offsets = torch.randn(1, 7, 6, dtype=F64), torch.tensor([0, 3, 4, 7])
    expected = recurrence(block, u, starts=(0, 3, 4))
    seq_idx = torch.tensor([[0, 0, 0, 1, 2, 2, 2]], dtype=torch.int32)
    torch.testing.assert_close(block(u, seq_idx=seq_idx), expected)
    torch.testing.assert_close(block(u, cu_seqlens=offsets), expected)
    memory = SimpleNamespace(key_value_memory_dict={}, seqlen_offset=0)
    with torch.no_grad():
        torch.testing.assert_close(block(u, cu_seqlens=offsets, inference_params=memory), expected)
        memory.seqlen_offset = 1
        more = torch.randn(3, 1, 6, dtype=F64)
        out = block(more, inference_params=memory)
    for entry, (start, end) in enumerate([(0, 3), (3, 4), (4, 7)]):
        whole = torch.cat([u[:, start:end], more[entry : entry + 1]], 1)
        torch.testing.assert_close(out[entry : entry + 1], recurrence(block, whole)[:, -1:])
    with pytest.raises(ValueError, match="cu_seqlens: expected None once"):
        block(u, cu_seqlens=offsets, inference_params=memory)


def test_parameters_are_the_official_ones() -> None:
    block = Mamba2(32, d_state=8, headdim=16, ngroups=2, d_conv=3, D_has_hdim=True)
    assert {name: tuple(value.shape) for name, value in block.state_dict().items()} == {
        "dt_bias": (4,), "A_log": (4,), "D": (64,), "in_proj.weight": (164, 32), "conv1d.weight": (96, 1, 3),
        "conv1d.bias": (96,), "norm.weight": (64,), "out_proj.weight": (32, 64),
    }  # fmt: skip
    assert Mamba2(32, headdim=16).D.shape == (4,)
    assert "norm.weight" not in Mamba2(32, headdim=16, rmsnorm=False).state_dict()


def test_initialisation() -> None:
    block = Mamba2(64, headdim=1, A_init_range=(2, 5), dt_min=0.01, dt_max=0.2, conv_init=0.1)
    values = block.A_log.exp()
    assert 2 <= values.min() * 1.001 and values.max() <= 5.001 and values.std() > 0.5
    steps = F.softplus(block.dt_bias)
    assert 0.01 <= steps.min() * 1.0001 and steps.max() <= 0.2001
    assert (block.D == 1).all() and (block.norm.weight == 1).all()
    assert block.conv1d.weight.abs().max() <= 0.1
    assert all(p._no_weight_decay for p in (block.A_log, block.D, block.dt_bias))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("group_size", [None, 2])
def test_gated_norm(before: bool, group_size: int | None) -> None:
    norm = RMSNormGated(6, 1e-3, group_size, before, dtype=F64)
    torch.nn.init.normal_(norm.weight)
    x, z = torch.randn(2, 3, 6, dtype=F64), torch.randn(2, 3, 6, dtype=F64)
    groups = 1 if group_size is None else 3
    torch.testing.assert_close(norm(x, z), normalised(x, z, norm.weight, groups, before, 1e-3))
    without = torch.cat([p / (p.square().mean(-1, True) + 1e-3).sqrt() for p in x.chunk(groups, -1)], -1) * norm.weight
    torch.testing.assert_close(norm(x), without)


def test_gated_norm_of_half_precision() -> None:
    """Computed in float32: squares beyond float16's range do no harm."""
    norm = RMSNormGated(4, dtype=torch.float16)
    x = torch.tensor([[300.0, -300.0, 300.0, 300.0]], dtype=torch.float16)
    out = norm(x, torch.full_like(x, 20.0))
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), torch.tensor([[20.0, -20.0, 20.0, 20.0]]), rtol=1e-3, atol=0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="headdim: expected a divisor of d_ssm = 32, got 5"):
        Mamba2(16, headdim=5)
    with pytest.raises(ValueError, match="ngroups: expected a divisor of d_ssm / headdim = 4, got 3"):
        Mamba2(16, headdim=8, ngroups=3)
    with pytest.raises(ValueError, match="d_ssm: expected at most expand"):
        Mamba2(16, headdim=8, d_ssm=64)
    with pytest.raises(ValueError, match="A_init_range: expected 0 < low <= high"):
        Mamba2(16, headdim=8, A_init_range=(0, 1))
    with pytest.raises(ValueError, match="group_size: expected a divisor of hidden_size = 6, got 4"):
        RMSNormGated(6, group_size=4)
    block = Mamba2(16, headdim=8)
    with pytest.raises(ValueError, match=r"hidden_states: expected \(B, 1, d_model\)"):
        block.step(torch.randn(2, 3, 16), *block.allocate_inference_cache(2, 0))
    assert math.isinf(block.dt_limit[1])
