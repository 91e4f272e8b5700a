# SPDX-License-Identifier: Apache-2.0
"""Recall and pointing against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fgkernels.demo import data, evaluation, summary
from fgkernels.demo.towers import GRID, PATCH, ImageTextModel, TowerConfig


def test_recall_against_worked_numbers() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.1, 0.7, 0.4]])  # own items rank 1, 3, 2
    assert [evaluation.recall(scores, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    result = evaluation.retrieval((scores, scores))
    # By columns: 0.9 is first; 0.5 has 0.7 above it; 0.4 has 0.6 above it.
    assert result["image_to_text@1"] == pytest.approx(1 / 3) and result["text_to_image@1"] == pytest.approx(1 / 3)
    assert result["image_to_text@5"] == result["text_to_image@5"] == 1.0
    apart = evaluation.retrieval((torch.eye(3), -torch.eye(3)))
    assert apart["image_to_text@1"] == 1.0 and apart["text_to_image@1"] == 0.0


def test_a_model_without_an_opinion_gets_no_recall() -> None:
    assert evaluation.recall(torch.zeros(10, 10), 5) == 0.0


def test_inside_takes_patch_centers() -> None:
    # Patches are 4 x 4: centres at 2, 6, 10, ... The box holds the centres x in {6, 10}, y in {2}.
    hits = evaluation.inside(torch.tensor([3, 0, 11, 6])).view(GRID, GRID)
    assert hits.nonzero().tolist() == [[0, 1], [0, 2]]
    assert evaluation.inside(torch.tensor([[0, 0, 48, 48], [0, 0, 0, 0]])).sum(1).tolist() == [GRID * GRID, 0]
    # The right and lower edges don't belong to a box.
    assert evaluation.inside(torch.tensor([2, 2, 6, 6])).sum() == 1


def test_pointing_against_worked_numbers() -> None:
    boxes = torch.tensor([[0, 0, 8, 8], [40, 40, 48, 48], [0, 0, 48, 24]])
    best = torch.tensor([GRID + 1, 0, 5])  # inside, far off, inside
    accuracy, chance = evaluation.pointing(best, boxes)
    assert accuracy == pytest.approx(2 / 3)
    assert chance == pytest.approx((4 / 144 + 4 / 144 + 1 / 2) / 3)


class _Fixed(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.forward = function


class _Oracle(ImageTextModel):
    """A model whose patches carry the digit they lie on: planted alignment."""

    def __init__(self, scenes: data.Scenes, shift: int) -> None:
        super().__init__(TowerConfig(width=8, depth=1, dim=16), late=True)
        tokenizer = data.Tokenizer()
        table = torch.eye(len(tokenizer))
        planted = table[4].repeat(len(scenes), GRID * GRID, 1)  # "a" everywhere else
        for row, (digits, boxes) in enumerate(zip(scenes.digits, scenes.boxes, strict=True)):
            for digit, box in zip(digits.tolist(), boxes, strict=True):
                if digit >= 0:
                    center = (box[:2] + box[2:]) / 2 + shift
                    x, y = (center.clamp(0, 47) // PATCH).long().tolist()
                    planted[row, y * GRID + x] = table[tokenizer.encode(data.WORDS[digit])[1]]
        self.text = _Fixed(lambda ids: table[ids])
        self.image = _Fixed(lambda images: planted[: len(images)])


def _scenes(banks: tuple[data.DigitBank, data.DigitBank]) -> data.Scenes:
    return data.SceneSource(banks[1], seed=0).gallery()


def test_pointing_finds_a_planted_alignment(banks: tuple[data.DigitBank, data.DigitBank]) -> None:
    scenes, tokenizer = _scenes(banks), data.Tokenizer()
    rows, positions, boxes = evaluation.digit_words(scenes, tokenizer)
    assert len(rows) == 10 + 2 * 45 + 3 * 120
    for row, position, box in zip(rows.tolist(), positions.tolist(), boxes.tolist(), strict=True):
        digit = tokenizer.digit_of(int(scenes.ids[row, position]))
        assert box == scenes.boxes[row, scenes.digits[row].tolist().index(digit)].tolist()
    perfect = evaluation.evaluate(_Oracle(scenes, shift=0), [scenes], tokenizer)
    wrong = evaluation.evaluate(_Oracle(scenes, shift=24), [scenes], tokenizer)
    # Narrow ones may hold no patch centre at all, so that not even an oracle can hit them.
    possible = evaluation.inside(boxes).any(1).float().mean().item()
    assert perfect.pointing > 0.9 * possible and perfect.pointing > 4 * perfect.chance
    assert wrong.pointing < 0.2
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).float().mean().item() / data.CANVAS**2
    assert perfect.chance == pytest.approx(area, rel=0.05), "patch centres sample the box's area"
    chosen, best, _ = evaluation.patch_choices(_Oracle(scenes, shift=0), scenes)
    assert (best == -1).equal(~scenes.mask)
    for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
        assert chosen[row, best[row, position]] == position


def test_clip_pools_to_one_token_a_side_and_its_patches_add_up(banks: tuple[data.DigitBank, data.DigitBank]) -> None:
    scenes, tokenizer = _scenes(banks), data.Tokenizer()
    torch.manual_seed(0)
    model = ImageTextModel(TowerConfig(width=16, depth=1, dim=8), late=False).eval()
    with torch.no_grad():
        image, text = model.image(scenes.images), model.text(scenes.ids)
        assert image.shape == (175, 1, 8) and text.shape == (175, 1, 8) and model.mask(scenes.ids) is None
        image_to_text, text_to_image = model.scores(scenes.images, scenes.ids)
        torch.testing.assert_close(image_to_text, image[:, 0] @ text[:, 0].T)
        torch.testing.assert_close(text_to_image, image_to_text)
        # A patch's share of the similarity: their mean is the pooled one, up to the length of the mean patch.
        rows, positions, _ = evaluation.digit_words(scenes, tokenizer)
        shares = evaluation.word_patch_similarity(model, scenes, tokenizer).mean(1)
        names = [data.caption([tokenizer.digit_of(token)]) for token in scenes.ids[rows, positions].tolist()]
        words = model.text(tokenizer(names))[:, 0]
        length = model.image.patches(scenes.images).mean(1).norm(dim=-1)[rows]
        torch.testing.assert_close(shares, (image[rows, 0] * words).sum(-1) * length)


def test_padding_changes_no_score() -> None:
    torch.manual_seed(0)
    tokenizer = data.Tokenizer()
    images = torch.rand(2, 1, 48, 48)
    for late in (True, False):
        model = ImageTextModel(TowerConfig(width=16, depth=1, dim=8), late=late).eval()
        ids = tokenizer(["a three", "an eight and a one"])
        with torch.no_grad():
            short = model.scores(images, ids[:, :7])
            long = model.scores(images, ids)
        for a, b in zip(short, long, strict=True):
            torch.testing.assert_close(a, b)


def _evaluation(image_to_text: float, text_to_image: float, pointing: float) -> evaluation.Evaluation:
    values = {key: 0.9 for key in summary.MEASURES}
    values |= {"image_to_text@1": image_to_text, "text_to_image@1": text_to_image}
    return evaluation.Evaluation(values, pointing, chance=0.13, scenes=1050, words=2760)


def test_verdict_names_the_winner_of_each_task() -> None:
    assert summary.clearly_better(0.9, 0.8, 1000) == 1 and summary.clearly_better(0.8, 0.9, 1000) == -1
    assert summary.clearly_better(0.90, 0.91, 1000) == 0
    text = summary.verdict(_evaluation(0.95, 0.80, 0.93), _evaluation(0.90, 0.90, 0.40))
    assert "FILIP is better at finding the caption of a scene (95.0 % against 90.0 %)" in text
    assert "CLIP is better at finding the scene of a caption (90.0 % against 80.0 %)" in text
    assert "FILIP is better at pointing: 93.0 %" in text and "40.0 %" in text and "13.0 %" in text
    assert "Neither is clearly better" in summary.verdict(_evaluation(0.9, 0.9, 0.5), _evaluation(0.9, 0.9, 0.5))
