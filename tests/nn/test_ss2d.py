# SPDX-License-Identifier: Apache-2.0
"""SS2D against its scans written position by position."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgkernels.nn import SS2D

F64 = torch.float64
ALL = ("h", "v", "h_flip", "v_flip", "d", "a", "d_flip", "a_flip")


def lively(module: SS2D) -> SS2D:
    """Weights at which every part of the module matters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def order(name: str, height: int, width: int) -> list[tuple[int, int]]:
    """(row, column) in the order of a direction's steps."""
    row_after_row = [(i, j) for i in range(height) for j in range(width)]
    column_after_column = [(i, j) for j in range(width) for i in range(height)]
    places = {
        "h": row_after_row,
        "v": column_after_column,
        "d": [(i, (i + j) % width) for i, j in column_after_column],
        "a": [(i, (j - i) % width) for i, j in column_after_column],
    }[name[0]]
    return places[::-1] if name.endswith("_flip") else places


def scans(module: SS2D, x: Tensor) -> Tensor:
    """Sum of the directions' scans of x (B, E, H, W), by definition."""
    out = torch.zeros_like(x)
    rank, states, channels = module.dt_rank, module.d_state, x.shape[1]
    decays, skips = -module.A_logs.exp().unflatten(0, (-1, channels)), module.Ds.unflatten(0, (-1, channels))
    for b, image in enumerate(x):
        for k, name in enumerate(module.directions):
            state = x.new_zeros(channels, states)
            for i, j in order(name, *x.shape[2:]):
                value = image[:, i, j]
                low, B, C = (module.x_proj_weight[k] @ value).split([rank, states, states])
                dt = (module.dt_projs_weight[k] @ low + module.dt_projs_bias[k]).exp().log1p()
                state = (dt[:, None] * decays[k]).exp() * state + (dt * value)[:, None] * B
                here = torch.zeros_like(out)
                here[b, :, i, j] = 1
                out = out + here * (state @ C + skips[k] * value)[:, None, None]
    return out


def formula(module: SS2D, u: Tensor, after: str, gate: str) -> Tensor:
    """The module by its definition: u (B, H, W, d_model)."""
    x = u @ module.in_proj.weight.T
    z = None
    if gate != "none":
        x, z = x.chunk(2, -1)
    x = x.permute(0, 3, 1, 2)
    if isinstance(module.conv2d, torch.nn.Conv2d):
        padding = module.conv2d.weight.shape[-1] // 2
        x = F.conv2d(x, module.conv2d.weight, module.conv2d.bias, padding=padding, groups=x.shape[1])
    y = scans(module, x * x.sigmoid())
    if after == "dwconv3":
        y = F.conv2d(y, module.out_norm.weight, padding=1, groups=y.shape[1])
    elif after == "softmax":
        y = y.flatten(2).softmax(-1).view_as(y)
    elif after == "sigmoid":
        y = y.sigmoid()
    y = y.permute(0, 2, 3, 1)
    if after == "norm":
        y = F.layer_norm(y, y.shape[-1:], module.out_norm.weight, module.out_norm.bias)
    if z is not None:
        y = y * (z * z.sigmoid() if gate == "silu" else z)
    return y if isinstance(module.out_proj, torch.nn.Identity) else y @ module.out_proj.weight.T


@pytest.mark.parametrize(
    ("forward_type", "after", "gate"),
    [
        ("v2", "norm", "silu"),
        ("v2noz", "norm", "none"),
        ("v2none", "none", "silu"),
        ("v2dwconv3", "dwconv3", "silu"),
        ("v2softmaxnozact", "softmax", "z"),
        ("v2_sigmoid_noz", "sigmoid", "none"),
        ("v01no32", "norm", "silu"),
    ],
)
def test_forward_types(backend: str, forward_type: str, after: str, gate: str) -> None:
    module = lively(SS2D(4, d_state=3, ssm_ratio=1.5, forward_type=forward_type, directions=("h", "v_flip"), dtype=F64))
    u = torch.randn(2, 2, 3, 4, dtype=F64)
    torch.testing.assert_close(module(u), formula(module, u, after, gate))


@pytest.mark.parametrize("directions", [("h",), ("h", "h_flip", "v", "v_flip"), ALL])
def test_directions_and_gradients(backend: str, directions: tuple[str, ...]) -> None:
    module = lively(SS2D(4, d_state=2, dt_rank=2, ssm_ratio=1, directions=directions, dtype=F64))
    u = torch.randn(1, 3, 2, 4, dtype=F64, requires_grad=True)
    value, expected = module(u), formula(module, u, "norm", "silu")
    torch.testing.assert_close(value, expected)
    weights = torch.randn_like(expected)
    inputs = [u, *module.parameters()]
    gradients = torch.autograd.grad((value * weights).sum(), inputs)
    for gradient, wanted in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        assert wanted.abs().sum() > 0
        torch.testing.assert_close(gradient, wanted)


def test_options(backend: str) -> None:
    """Without convolution, norm and out_proj; a wider convolution."""
    u = torch.randn(1, 3, 3, 4, dtype=F64)
    bare = lively(SS2D(4, 2, 1, d_conv=1, use_out_norm=False, use_out_proj=False, dtype=F64))
    assert set(bare.state_dict()) == {
        "in_proj.weight", "x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds",
    }  # fmt: skip
    torch.testing.assert_close(bare(u), formula(bare, u, "none", "silu"))
    wide = lively(SS2D(4, 2, 1, d_conv=5, conv_bias=False, dtype=F64))
    torch.testing.assert_close(wide(u), formula(wide, u, "norm", "silu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    for forward_type in ("v2", "v01no32"):
        module = lively(SS2D(8, 4, forward_type=forward_type, dtype=dtype))
        u = torch.randn(2, 3, 4, 8, dtype=dtype)
        wide = SS2D(8, 4, dtype=F64)
        wide.load_state_dict(module.state_dict())
        truth = formula(wide, u.double(), "norm", "silu")
        out = module(u)
        assert out.dtype == dtype
        assert (out - truth).abs().max() <= 8 * torch.finfo(dtype).eps * truth.abs().max()


def test_initialisation() -> None:
    first = SS2D(16, 3, initialize="v0")
    torch.testing.assert_close(first.A_logs.exp(), torch.arange(1.0, 4).expand(128, 3))
    steps = F.softplus(first.dt_projs_bias)
    assert 0.001 <= steps.min() * 1.0001 and steps.max() <= 0.1001
    assert first.dt_projs_weight.abs().max() <= 1 and first.dt_projs_weight.std() > 0.3
    second, third = SS2D(64, 16, initialize="v1"), SS2D(64, 16, initialize="v2")
    for values in (second.A_logs, second.dt_projs_bias, third.dt_projs_weight):
        assert abs(values.mean()) < 0.2 and abs(values.std() - 1) < 0.1
    assert (third.A_logs == 0).all()
    assert all((module.Ds == 1).all() for module in (first, second, third))
    assert first.A_logs._no_weight_decay and first.Ds._no_weight_decay


def test_errors() -> None:
    for forward_type in ("v3", "v2nozno32x", "fake", "v2softmaxnone"):
        with pytest.raises(ValueError, match=f"forward_type: expected .*, got '{forward_type}'"):
            SS2D(8, forward_type=forward_type)
    with pytest.raises(ValueError, match='initialize: expected "v0", "v1" or "v2", got'):
        SS2D(8, initialize="v3")
    with pytest.raises(ValueError, match="d_conv: expected an odd width"):
        SS2D(8, d_conv=4)
    with pytest.raises(ValueError, match="directions: expected names among"):
        SS2D(8, directions=("h", "x"))(torch.randn(1, 2, 2, 8))
