# SPDX-License-Identifier: Apache-2.0
"""FILIP (Yao et al. 2022): what its token-wise similarity, its loss and the operators behind them must satisfy."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fgkernels
from fgkernels.compat.colbert import colbert_score
from fgkernels.nn import LateInteractionLoss

F64 = torch.float64


def unit(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return F.normalize(torch.randn(shape, dtype=F64), dim=-1).to(dtype)


def einsum_similarities(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """s^I and s^T with the similarities of all pairs in memory."""
    a_mask = torch.ones(a.shape[:2], dtype=torch.bool) if a_mask is None else a_mask
    b_mask = torch.ones(b.shape[:2], dtype=torch.bool) if b_mask is None else b_mask
    pairs = torch.einsum("xid,ytd->xyit", a, b)
    forth = pairs.masked_fill(~b_mask[None, :, None, :], -torch.inf).max(3).values * a_mask[:, None]
    back = pairs.masked_fill(~a_mask[:, None, :, None], -torch.inf).max(2).values * b_mask[None]
    return forth.sum(2) / a_mask.sum(1)[:, None], back.sum(2) / b_mask.sum(1)[None]


def test_fact01_worked_example(backend: str) -> None:
    """I1={(1,0),(0,1)}, I2={(.6,.8),(-1,0)}, T1={(1,0),(0,1),pad}, T2={(.8,.6),pad,pad}: s^I=[[1,.7],[.4,.08]],
    s^T=[[1,.8],[.7,.96]]; at temperature 1 the image loss is .7101, the text loss .5853, L=.6477. With zero padding
    s^I=[[1,.7],[.4,.48]]."""
    images = torch.tensor([[(1, 0), (0, 1)], [(0.6, 0.8), (-1, 0)]])
    texts = torch.tensor([[(1, 0), (0, 1), (9, 9)], [(0.8, 0.6), (9, 9), (9, 9)]])
    text_mask = torch.tensor([[True, True, False], [True, False, False]])
    output = LateInteractionLoss(temperature=1.0)(images, texts, None, text_mask)
    torch.testing.assert_close(output.scores_ab, torch.tensor([[1, 0.7], [0.4, 0.08]]))
    torch.testing.assert_close(output.scores_ba, torch.tensor([[1, 0.8], [0.7, 0.96]]))
    assert output.loss_ab.item() == pytest.approx(0.7101, abs=5e-5)
    assert output.loss_ba.item() == pytest.approx(0.5853, abs=5e-5)
    assert output.loss.item() == pytest.approx(0.6477, abs=5e-5)
    zero, _ = fgkernels.late_interaction(images, texts, None, text_mask, padding="zero")
    torch.testing.assert_close(zero, torch.tensor([[1, 0.7], [0.4, 0.48]]))


def test_fact02_one_token_is_clip(backend: str) -> None:
    """With one token per sample it is exactly CLIP: both directions are the cosine matrix, the loss is CLIP's."""
    images, texts = unit(5, 1, 8), unit(5, 1, 8)
    cosines = images.squeeze(1) @ texts.squeeze(1).T
    forth, back = fgkernels.late_interaction(images, texts)
    assert torch.equal(forth, back)
    torch.testing.assert_close(forth, cosines)
    labels = torch.arange(5)
    clip = (F.cross_entropy(cosines / 0.07, labels) + F.cross_entropy(cosines.T / 0.07, labels)) / 2
    torch.testing.assert_close(LateInteractionLoss(0.07)(images, texts).loss, clip)


def test_fact03_padding_and_order_do_not_matter(backend: str) -> None:
    """Appended padding changes no score and gets no gradient; permuting a sample's valid tokens changes no score and
    permutes its gradient."""

    def run(images: Tensor, texts: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        images, texts = images.clone().requires_grad_(), texts.clone().requires_grad_()
        scores = fgkernels.late_interaction(images, texts, None, mask)
        weights = torch.arange(1.0, 1 + scores[0].numel(), dtype=F64).reshape(scores[0].shape).sin()
        grads = torch.autograd.grad((scores[0] * weights).sum() + (scores[1] * weights.cos()).sum(), (images, texts))
        return *scores, *grads

    images, texts, mask = unit(3, 6, 8), unit(4, 5, 8), torch.ones(4, 5, dtype=torch.bool)
    plain = run(images, texts, mask)
    padded = run(images, torch.cat([texts, 100 * unit(4, 3, 8)], 1), F.pad(mask, (0, 3)))
    for value, expected in zip(padded[:3], plain[:3], strict=True):
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(padded[3][:, :5], plain[3])
    assert (padded[3][:, 5:] == 0).all()
    order = torch.stack([torch.randperm(5) for _ in range(4)])
    permuted = run(images, texts[torch.arange(4).unsqueeze(1), order], mask)
    for value, expected in zip(permuted[:3], plain[:3], strict=True):
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(permuted[3], plain[3][torch.arange(4).unsqueeze(1), order])


def test_fact04_bounds(backend: str) -> None:
    """Scores of unit tokens lie in [-1, 1], those of identical token sets are 1; every maximum is at least any single
    similarity, and s^I(b, c) at least the mean of all similarities of the pair."""
    images, texts = unit(4, 6, 8), unit(5, 3, 8)
    forth, back = fgkernels.late_interaction(images, texts)
    assert max(forth.abs().max(), back.abs().max()) <= 1 + 1e-12
    shuffled = images[:, torch.randperm(6)]
    for scores in fgkernels.late_interaction(images, shuffled):
        torch.testing.assert_close(scores.diagonal(), torch.ones(4, dtype=F64))
    pairs = torch.einsum("xid,ytd->xyit", images, texts)
    single = fgkernels.maxsim(images.reshape(24, 1, 8), texts).reshape(4, 6, 5).permute(0, 2, 1)
    assert (single.unsqueeze(-1) >= pairs - 1e-12).all()
    assert (forth >= pairs.mean((2, 3)) - 1e-12).all() and (back >= pairs.mean((2, 3)) - 1e-12).all()


MEMORY_PROGRAM = """
import json, sys, torch, fgkernels
from fgkernels.bench.memory import measure_peak

def call(length):
    a = torch.randn(12, length, 16, requires_grad=True)
    b = torch.randn(12, length, 16, requires_grad=True)
    def run():
        forth, back = fgkernels.late_interaction(a, b)
        (forth.sum() + back.sum()).backward()
    return run

torch.set_num_threads(1)
call(64)()
print(json.dumps([measure_peak(call(length)).peak for length in (512, 1024)]))
"""


@pytest.mark.compiled
def test_fact05_fused_equals_einsum_without_its_memory() -> None:
    """Fused operator against the einsum: 1e-5 in float32, 1e-2 in bfloat16, gradients too; its peak memory grows with
    n + m, not with n * m."""
    image_mask, text_mask = torch.rand(6, 49) < 0.7, torch.rand(5, 20) < 0.7
    image_mask[:, 0] = text_mask[:, 0] = True
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        images, texts = unit(6, 49, 64, dtype=dtype), unit(5, 20, 64, dtype=dtype)
        results = []
        for function, kind in ((fgkernels.late_interaction, dtype), (einsum_similarities, F64)):
            leaves = [value.detach().to(kind).requires_grad_() for value in (images, texts)]
            scores = function(*leaves, image_mask, text_mask)
            (scores[0].square().sum() + scores[1].square().sum()).backward()
            results.append([*scores, *(leaf.grad for leaf in leaves)])
        for value, expected in zip(*results, strict=True):
            torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
    if not sys.platform.startswith("linux"):
        return
    done = subprocess.run([sys.executable, "-c", MEMORY_PROGRAM], capture_output=True, text=True, check=True)
    small, large = json.loads(done.stdout.splitlines()[-1])
    similarities = 12 * 12 * 1024 * 1024 * 4
    assert large < similarities / 20, f"{large} bytes against {similarities} of the similarities"
    assert large - small < 3 * 2**20, "twice the tokens took far more than their own size"


@pytest.mark.compiled
def test_fact06_gradients() -> None:
    """gradcheck in float64 with distinct scores; masked rows get zero gradient; each gradient row is the formula
    da_xi = sum_y g1_xy w_x b_{y,j(x,y,i)} + sum_y g2_xy v_y sum_{t: k(x,y,t)=i} b_yt."""
    a, b = 3 * torch.randn(3, 4, 5, dtype=F64), 3 * torch.randn(2, 6, 5, dtype=F64)
    a_mask, b_mask = torch.rand(3, 4) < 0.7, torch.rand(2, 6) < 0.7
    a_mask[0], a_mask[2], b_mask[:, 0] = False, True, True
    a.requires_grad_(), b.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: fgkernels.late_interaction(a, b, a_mask, b_mask), (a, b))
    forth, back, j, k = fgkernels.late_interaction(a, b, a_mask, b_mask, return_alignment=True)
    g1, g2 = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    grad_a, grad_b = torch.autograd.grad((forth, back), (a, b), (g1, g2))
    assert (grad_a[~a_mask] == 0).all() and (grad_b[~b_mask] == 0).all()
    w, v = 1 / a_mask.sum(1).clamp(min=1).double(), 1 / b_mask.sum(1).double()
    expected_a, expected_b = torch.zeros_like(a), torch.zeros_like(b)
    for x in range(3):
        for y in range(2):
            for i in range(4):
                if j[x, y, i] >= 0:
                    expected_a[x, i] += g1[x, y] * w[x] * b[y, j[x, y, i]].detach()
                    expected_b[y, j[x, y, i]] += g1[x, y] * w[x] * a[x, i].detach()
            for t in range(6):
                if k[x, y, t] >= 0:
                    expected_a[x, k[x, y, t]] += g2[x, y] * v[y] * b[y, t].detach()
                    expected_b[y, t] += g2[x, y] * v[y] * a[x, k[x, y, t]].detach()
    torch.testing.assert_close(grad_a, expected_a)
    torch.testing.assert_close(grad_b, expected_b)


class TinyTowers(nn.Module):
    """Two towers of FILIP's shape at its smallest: patches of a small image, words of a short text, one space."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(3, 32, 8, 8), nn.GELU(), nn.Conv2d(32, dim, 1))
        self.words = nn.Sequential(nn.Embedding(65, 32), nn.GELU(), nn.Linear(32, dim))
        self.loss = LateInteractionLoss()

    def forward(self, images: Tensor, texts: Tensor):
        patches = F.normalize(self.patches(images).flatten(2).mT, dim=-1)
        words = F.normalize(self.words(texts), dim=-1)
        return self.loss(patches, words, None, texts > 0)


def test_fact07_training(backend: str) -> None:
    """From init, random pairs whose similarities hardly spread have a loss close to log B; overfitting 8 pairs drives
    both accuracies to 1."""
    tokens, words = unit(8, 16, 16), unit(8, 8, 16)
    close = LateInteractionLoss()(1e-3 * tokens, words)
    assert close.loss.item() == pytest.approx(math.log(8), abs=0.02)
    model = TinyTowers()
    images = torch.randn(8, 3, 32, 32)
    texts = 1 + torch.randperm(64).reshape(8, 8)  # no shared words: two texts whose best word is the same would tie
    for row, length in enumerate([8, 3, 5, 8, 2, 6, 7, 4]):
        texts[row, length:] = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model(images, texts)
    for _ in range(60):
        output = model(images, texts)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert first.accuracy_ab < 1 or first.accuracy_ba < 1
    assert output.accuracy_ab == 1 and output.accuracy_ba == 1
    assert output.loss < 0.2 < first.loss
    assert model.loss.log_scale.item() != pytest.approx(math.log(1 / 0.07))


def test_fact08_wukong_and_colbert(backend: str) -> None:
    """Parity with Wukong's similarity (pads are zero vectors, plain maximum and mean) and with ColBERT's score (sum,
    masked)."""
    images, texts = unit(4, 6, 8), unit(5, 7, 8)
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5, 6]).unsqueeze(1)
    zeroed = texts * mask.unsqueeze(-1)
    wukong = torch.einsum("xid,ytd->xyit", images, zeroed).amax(3).mean(2)
    forth, _ = fgkernels.late_interaction(images, texts, None, mask, padding="zero")
    torch.testing.assert_close(forth, wukong)
    colbert = (texts @ images[0].T).masked_fill(~mask.unsqueeze(-1), -9999).amax(1).sum(1)
    torch.testing.assert_close(fgkernels.maxsim(images[:1], texts, None, mask)[0], colbert)
    torch.testing.assert_close(colbert_score(images[:1], texts, mask), colbert)
