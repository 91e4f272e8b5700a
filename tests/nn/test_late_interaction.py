# SPDX-License-Identifier: Apache-2.0
"""LateInteractionLoss and the MaxSim layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fgkernels
from fgkernels.nn import LateInteractionLoss, MaxSim


def batch(count: int = 6, n: int = 5, m: int = 4, dim: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b = F.normalize(torch.randn(count, n, dim), dim=-1), F.normalize(torch.randn(count, m, dim), dim=-1)
    a_mask, b_mask = torch.rand(count, n) < 0.8, torch.rand(count, m) < 0.8
    a_mask[:, 0] = b_mask[:, 0] = True
    return a, b, a_mask, b_mask


def formula(a: Tensor, b: Tensor, a_mask: Tensor, b_mask: Tensor, temperature: float) -> Tensor:
    """The paper's loss written pair by pair."""
    count = len(a)
    image, text = torch.zeros(count, count), torch.zeros(count, count)
    for x in range(count):
        for y in range(count):
            similarities = a[x][a_mask[x]] @ b[y][b_mask[y]].T
            image[x, y] = similarities.amax(1).mean() / temperature
            text[x, y] = similarities.amax(0).mean() / temperature
    loss = torch.tensor(0.0)
    for k in range(count):
        loss = loss - image[k].log_softmax(0)[k] - text[:, k].log_softmax(0)[k]
    return loss / (2 * count)


def test_against_the_formula(backend: str) -> None:
    arguments = batch()
    for temperature in (0.07, 1.0):
        output = LateInteractionLoss(temperature)(*arguments)
        torch.testing.assert_close(output.loss, formula(*arguments, temperature))
        torch.testing.assert_close(output.loss, (output.loss_ab + output.loss_ba) / 2)
    assert output.scores_ab.shape == output.scores_ba.shape == (6, 6)
    assert output.accuracy_ab == (output.scores_ab.argmax(1) == torch.arange(6)).float().mean()
    assert output.accuracy_ba == (output.scores_ba.argmax(0) == torch.arange(6)).float().mean()


def test_temperature_is_learned() -> None:
    loss = LateInteractionLoss()
    assert [name for name, _ in loss.named_parameters()] == ["log_scale"]
    assert loss.log_scale.shape == () and loss.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    a, b, a_mask, b_mask = batch()
    loss(a, b, a_mask, b_mask).loss.backward()
    step = 1e-2
    values = [formula(a, b, a_mask, b_mask, 0.07 * math.exp(sign * step)).item() for sign in (-1, 1)]
    assert loss.log_scale.grad.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-2)
    fixed = LateInteractionLoss(0.5, learnable=False)
    assert list(fixed.parameters()) == [] and fixed.scale.item() == pytest.approx(2)
    assert list(fixed.state_dict()) == ["log_scale"]


def test_scale_is_limited() -> None:
    loss = LateInteractionLoss(0.001)
    assert loss.scale.item() == 100
    loss(*batch()).loss.backward()
    assert loss.log_scale.grad == 0
    assert LateInteractionLoss(0.001, max_scale=None).scale.item() == pytest.approx(1000)


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 6, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_chunks_change_nothing(backend: str, masked: bool, chunk_size: int) -> None:
    """Loss, scores and every gradient are those of one piece."""
    results = []
    for chunk in (None, chunk_size):
        torch.manual_seed(1)
        a, b, a_mask, b_mask = batch()
        a.requires_grad_(), b.requires_grad_()
        loss = LateInteractionLoss(0.2, chunk_size=chunk)
        output = loss(a, b, *((a_mask, b_mask) if masked else ()))
        output.loss.backward()
        results.append((output.loss, output.scores_ab, output.scores_ba, a.grad, b.grad, loss.log_scale.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_chunks_bound_the_memory_saved_for_backward() -> None:
    """With chunks nothing that is kept for the backward pass has the size of the similarities, or even n per pair."""
    count, n, m = 8, 16, 12
    a, b = torch.randn(count, n, 4, requires_grad=True), torch.randn(count, m, 4, requires_grad=True)

    def largest_saved(loss: LateInteractionLoss) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            loss(a, b)
        return max(sizes)

    with fgkernels.backend("reference"):
        assert largest_saved(LateInteractionLoss()) >= count * count * max(n, m)
        assert largest_saved(LateInteractionLoss(chunk_size=2)) <= count * n * 4


def test_without_gradients(backend: str) -> None:
    loss = LateInteractionLoss(chunk_size=4)
    with torch.no_grad():
        output = loss(*batch())
    assert not output.loss.requires_grad and output.loss.isfinite()


def test_normalize() -> None:
    a, b, a_mask, b_mask = batch()
    expected = LateInteractionLoss()(a, b, a_mask, b_mask).loss
    torch.testing.assert_close(LateInteractionLoss(normalize=True)(a * 5, b * 0.1, a_mask, b_mask).loss, expected)


def test_zero_padding() -> None:
    a, b, a_mask, b_mask = batch()
    output = LateInteractionLoss(padding="zero")(-a, b, a_mask, b_mask)
    expected = fgkernels.late_interaction(-a, b, a_mask, b_mask, padding="zero")
    torch.testing.assert_close((output.scores_ab, output.scores_ba), expected)
    assert not torch.equal(output.scores_ab, fgkernels.late_interaction(-a, b, a_mask, b_mask)[0])


def test_samples_without_tokens_give_finite_loss(backend: str) -> None:
    a, b, a_mask, b_mask = batch()
    b_mask[2] = False
    a.requires_grad_()
    output = LateInteractionLoss()(a, b, a_mask, b_mask)
    output.loss.backward()
    assert output.loss.isfinite() and a.grad.isfinite().all()
    assert (output.scores_ab[:, 2] == 0).all()


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_compiles_in_one_graph(chunk_size: int | None) -> None:
    torch._dynamo.reset()
    loss = LateInteractionLoss(chunk_size=chunk_size)
    a, b, a_mask, b_mask = batch()
    a.requires_grad_()
    output = torch.compile(loss, fullgraph=True, backend="aot_eager")(a, b, a_mask, b_mask)
    expected = loss(a, b, a_mask, b_mask)
    torch.testing.assert_close(output.loss, expected.loss)
    found, truth = torch.autograd.grad(output.loss, a)[0], torch.autograd.grad(expected.loss, a)[0]
    torch.testing.assert_close(found, truth)


def test_autocast() -> None:
    a, b, a_mask, b_mask = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = LateInteractionLoss(chunk_size=2)(a, b, a_mask, b_mask)
    assert output.loss.dtype == torch.float32
    expected = LateInteractionLoss()(a.bfloat16(), b.bfloat16(), a_mask, b_mask)
    torch.testing.assert_close(output.scores_ab, expected.scores_ab)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature: expected a positive number, got 0"),
        ({"temperature": math.nan}, "temperature: expected a positive number, got nan"),
        ({"max_scale": -1}, "max_scale: expected a positive number or None, got -1"),
        ({"chunk_size": 0}, "chunk_size: expected a positive number of samples or None, got 0"),
        ({"padding": "none"}, "padding: expected"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LateInteractionLoss(**options)


def test_bad_batch() -> None:
    a, b, _, _ = batch()
    with pytest.raises(ValueError, match=r"b: expected \(B, m, D\) with B = 6 like a, got \(5, 4, 8\)"):
        LateInteractionLoss()(a, b[:5])


def test_maxsim_layer() -> None:
    a, b, a_mask, b_mask = batch()
    layer = MaxSim(reduction="mean", padding="zero")
    expected = fgkernels.maxsim(a, b, a_mask, b_mask, reduction="mean", padding="zero")
    assert torch.equal(layer(a, b, a_mask, b_mask), expected)
    assert torch.equal(MaxSim(paired=True)(a, b), fgkernels.maxsim(a, b, paired=True))
    assert "reduction='mean'" in repr(layer)
