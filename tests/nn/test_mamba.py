# SPDX-License-Identifier: Apache-2.0
"""The Mamba block against its recurrence written token by token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgkernels.nn import Mamba

F64 = torch.float64
OPTIONS = {
    "plain": {},
    "biases": {"bias": True, "conv_bias": False},
    "sizes": {"d_state": 3, "d_conv": 2, "expand": 1, "dt_rank": 5},
    "no out_proj": {"use_out_proj": False, "d_conv": 3},
}


@pytest.fixture(params=OPTIONS)
def block(request: pytest.FixtureRequest) -> Mamba:
    return lively(Mamba(6, layer_idx=0, dtype=F64, **{"d_state": 4, **OPTIONS[request.param]}))


def lively(block: Mamba) -> Mamba:
    """Weights at which every part of the block matters."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def recurrence(block: Mamba, u: Tensor) -> Tensor:
    """The block by its definition: u (B, L, d_model)."""

    def linear(layer: torch.nn.Module, values: Tensor) -> Tensor:
        if isinstance(layer, torch.nn.Identity):
            return values
        return layer.weight @ values + (0 if layer.bias is None else layer.bias)

    decay, width = -block.A_log.exp(), block.d_conv
    outputs = []
    for sequence in u:
        state = torch.zeros_like(decay)
        window = [u.new_zeros(block.d_inner)] * width
        for token in sequence:
            x, z = linear(block.in_proj, token).chunk(2)
            window = [*window[1:], x]
            x = sum(block.conv1d.weight[:, 0, j] * window[j] for j in range(width))
            x = x if block.conv1d.bias is None else x + block.conv1d.bias
            x = x * x.sigmoid()
            low, B, C = (block.x_proj.weight @ x).split([block.dt_rank, block.d_state, block.d_state])
            dt = (block.dt_proj.weight @ low + block.dt_proj.bias).exp().log1p()
            state = (dt[:, None] * decay).exp() * state + (dt * x)[:, None] * B
            outputs.append(linear(block.out_proj, (state @ C + block.D * x) * z * z.sigmoid()))
    return torch.stack(outputs).unflatten(0, u.shape[:2])


def test_forward_and_gradients(backend: str, block: Mamba) -> None:
    u = torch.randn(2, 5, 6, dtype=F64, requires_grad=True)
    value, expected = block(u), recurrence(block, u)
    torch.testing.assert_close(value, expected)
    weights = torch.randn_like(expected)
    inputs = [u, *block.parameters()]
    gradients = torch.autograd.grad((value * weights).sum(), inputs)
    for gradient, formula in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        assert formula.abs().sum() > 0
        torch.testing.assert_close(gradient, formula)


@pytest.mark.parametrize("lengths", [(1,) * 7, (3, 1, 2, 1), (1, 6), (5, 2)])
@pytest.mark.parametrize("grad", [False, True])
def test_chunks_are_one_call(backend: str, block: Mamba, lengths: tuple[int, ...], grad: bool) -> None:
    """States in inference_params carry any split of a sequence; single tokens go through `step` without gradients."""
    u = torch.randn(2, 7, 6, dtype=F64)
    memory = SimpleNamespace(key_value_memory_dict={}, seqlen_offset=0)
    parts = []
    with torch.set_grad_enabled(grad):
        for part in u.split(lengths, 1):
            parts.append(block(part, inference_params=memory))
            memory.seqlen_offset += part.shape[1]
    torch.testing.assert_close(torch.cat(parts, 1), recurrence(block, u))
    # A new sequence in the same memory starts from nothing.
    memory.seqlen_offset = 0
    torch.testing.assert_close(block(u[:, :2], inference_params=memory), recurrence(block, u[:, :2]))


def test_step_changes_its_states_in_place(backend: str, block: Mamba) -> None:
    u = torch.randn(2, 4, 6, dtype=F64)
    conv_state, ssm_state = block.allocate_inference_cache(2, 0)
    assert conv_state.shape == (2, block.d_inner, block.d_conv) and ssm_state.shape == (2, block.d_inner, block.d_state)
    rows = []
    for t in range(4):
        out, same_conv, same_ssm = block.step(u[:, t : t + 1], conv_state, ssm_state)
        assert same_conv is conv_state and same_ssm is ssm_state
        assert not out.requires_grad
        rows.append(out)
    torch.testing.assert_close(torch.cat(rows, 1), recurrence(block, u))


@pytest.mark.parametrize("directions", [("h", "h_flip", "v", "v_flip"), ("v",), ("d_flip", "a")])
def test_orders_of_a_map_share_weights(backend: str, block: Mamba, directions: tuple[str, ...]) -> None:
    height, width = 2, 3
    orders = {  # of the positions 0 1 2 / 3 4 5
        "h": [0, 1, 2, 3, 4, 5], "h_flip": [5, 4, 3, 2, 1, 0], "v": [0, 3, 1, 4, 2, 5], "v_flip": [5, 2, 4, 1, 3, 0],
        "d_flip": [3, 2, 5, 1, 4, 0], "a": [0, 5, 1, 3, 2, 4],
    }  # fmt: skip
    feature_map = torch.randn(2, height, width, 6, dtype=F64)
    flat = feature_map.flatten(1, 2)
    expected = 0
    for name in directions:
        back = torch.tensor(orders[name]).argsort()
        expected = expected + recurrence(block, flat[:, orders[name]])[:, back]
    if getattr(block.out_proj, "bias", None) is not None:  # the sum goes through out_proj once
        expected = expected - (len(directions) - 1) * block.out_proj.bias
    torch.testing.assert_close(block.forward_2d(feature_map, directions).flatten(1, 2), expected)


def test_parameters_are_the_official_ones() -> None:
    shapes = {
        name: tuple(value.shape) for name, value in Mamba(32, d_state=8, d_conv=3, bias=True).state_dict().items()
    }
    assert shapes == {
        "A_log": (64, 8), "D": (64,), "in_proj.weight": (128, 32), "in_proj.bias": (128,), "conv1d.weight": (64, 1, 3),
        "conv1d.bias": (64,), "x_proj.weight": (18, 64), "dt_proj.weight": (64, 2), "dt_proj.bias": (64,),
        "out_proj.weight": (32, 64), "out_proj.bias": (32,),
    }  # fmt: skip
    assert set(shapes) - set(Mamba(32, d_state=8, use_out_proj=False, bias=True).state_dict()) == {
        "out_proj.weight", "out_proj.bias",
    }  # fmt: skip


def test_initialisation() -> None:
    block = Mamba(64, d_state=5, dt_min=0.01, dt_max=0.2, dt_scale=0.5)
    torch.testing.assert_close(block.A_log.exp(), torch.arange(1.0, 6).expand(128, 5))
    assert (block.D == 1).all()
    steps = F.softplus(block.dt_proj.bias)
    assert 0.01 <= steps.min() * 1.0001 and steps.max() <= 0.2001 and steps.log().std() > 0.5
    bound = 0.5 / 2  # dt_rank 4
    assert block.dt_proj.weight.abs().max() <= bound and block.dt_proj.weight.std() > bound / 3
    assert (Mamba(64, dt_init="constant").dt_proj.weight == 0.5).all()
    floor = F.softplus(Mamba(64, dt_min=1e-6, dt_max=1e-5, dt_init_floor=1e-3).dt_proj.bias)
    torch.testing.assert_close(floor, torch.full_like(floor, 1e-3))
    assert block.A_log._no_weight_decay and block.D._no_weight_decay and block.dt_proj.bias._no_reinit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    """Decays and skip weights of a 16-bit block stay float32; its error is that of rounding, out and gradients."""
    block = lively(Mamba(8, d_state=4, dtype=dtype))
    assert block.A_log.dtype == block.D.dtype == torch.float32
    u = torch.randn(2, 6, 8, dtype=dtype)
    out = block(u)
    wide = Mamba(8, d_state=4, dtype=F64)
    wide.load_state_dict(block.state_dict())
    truth = recurrence(wide, u.double())
    assert out.dtype == dtype
    assert (out - truth).abs().max() <= 8 * torch.finfo(dtype).eps * truth.abs().max()
    out.float().sum().backward()
    assert all(parameter.grad.dtype == parameter.dtype for parameter in block.parameters())


def test_export(backend: str) -> None:
    block, u = lively(Mamba(6, d_state=4)), torch.randn(2, 5, 6)
    exported = torch.export.export(block, (u,)).module()
    torch.testing.assert_close(exported(u), block(u))


def test_errors() -> None:
    with pytest.raises(ValueError, match='dt_init: expected "random" or "constant", got \'zero\''):
        Mamba(8, dt_init="zero")
    block = Mamba(8)
    with pytest.raises(ValueError, match=r"hidden_states: expected \(B, 1, d_model\), got \(2, 3, 8\)"):
        block.step(torch.randn(2, 3, 8), *block.allocate_inference_cache(2, 0))
    with pytest.raises(ValueError, match="layer_idx: expected a number"):
        block(torch.randn(2, 3, 8), SimpleNamespace(key_value_memory_dict={}, seqlen_offset=0))
