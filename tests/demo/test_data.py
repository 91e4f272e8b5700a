# SPDX-License-Identifier: Apache-2.0
"""Scenes: who is in them, where, and what the caption says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fgkernels.demo import data

Digits = tuple[np.ndarray, np.ndarray]
Banks = tuple[data.DigitBank, data.DigitBank]


def test_the_digits_are_the_5000_mnist_images_500_of_each(digits: Digits) -> None:
    images, labels = digits
    assert images.shape == (5000, 28, 28) and images.dtype == np.uint8 and images.max() == 255
    assert np.bincount(labels).tolist() == [500] * 10


def test_split_is_disjoint_complete_balanced_and_seeded(digits: Digits) -> None:
    images, labels = digits
    train, test = data.split_digits(labels, seed=0)
    assert sorted([*train, *test]) == list(range(5000))
    assert np.bincount(labels[test]).tolist() == [100] * 10
    again, _ = data.split_digits(labels, seed=0)
    other, _ = data.split_digits(labels, seed=1)
    assert np.array_equal(train, again) and not np.array_equal(train, other)
    # Nor is the same drawing stored twice, once on each side.
    seen = {images[row].tobytes() for row in train}
    assert not any(images[row].tobytes() in seen for row in test)


def test_train_and_test_scenes_share_no_digit(digits: Digits, banks: Banks) -> None:
    _, labels = digits
    train, test = data.split_digits(labels, seed=3)
    for bank, rows in zip(banks, (train, test), strict=True):
        scenes = data.SceneSource(bank, seed=0).gallery()
        used = scenes.sources[scenes.digits >= 0]
        assert set(used.tolist()) <= set(rows.tolist())
        assert torch.equal(torch.from_numpy(labels)[used], scenes.digits[scenes.digits >= 0])


def test_every_image_of_the_test_digits_is_usable(banks: Banks) -> None:
    assert [len(crops) for crops in banks[1].crops] == [100] * 10


@pytest.mark.parametrize("side", [0, 1], ids=["train", "test"])
def test_boxes_hold_all_the_ink_tightly_and_apart(banks: Banks, side: int) -> None:
    source = data.SceneSource(banks[side], seed=5)
    for _ in range(3):
        scenes = source.gallery()
        for image, digits, boxes in zip(scenes.images[:, 0], scenes.digits, scenes.boxes, strict=True):
            left = image.clone()
            present = [box.tolist() for digit, box in zip(digits, boxes, strict=True) if digit >= 0]
            for x0, y0, x1, y1 in present:
                assert 0 <= x0 < x1 <= data.CANVAS and 0 <= y0 < y1 <= data.CANVAS
                ink = image[y0:y1, x0:x1] > 0
                assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
                left[y0:y1, x0:x1] = 0
            assert not left.any(), "ink outside the boxes"
            for (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) in itertools.combinations(present, 2):
                assert ax1 < bx0 or bx1 < ax0 or ay1 < by0 or by1 < ay0, "boxes touch"


def test_a_scene_shows_the_crops_it_names(digits: Digits) -> None:
    images, labels = digits
    rows = np.array([np.flatnonzero(labels == digit)[0] for digit in range(10)])
    scenes = data.SceneSource(data.make_bank(images, labels, rows), seed=1).gallery()
    for image, named, boxes in zip(scenes.images[:, 0], scenes.digits, scenes.boxes, strict=True):
        for digit, (x0, y0, x1, y1) in zip(named.tolist(), boxes.tolist(), strict=True):
            if digit >= 0:
                expected = torch.from_numpy(data.crop_to_ink(images[rows[digit]])).float() / 255
                assert torch.equal(image[y0:y1, x0:x1], expected)


def test_captions() -> None:
    assert data.caption([3]) == "a three"
    assert data.caption([8, 1]) == "an eight and a one"
    assert data.caption([3, 7, 9]) == "a three, a seven and a nine"


def test_captions_match_the_scenes_and_a_gallery_holds_each_set_once(banks: Banks) -> None:
    scenes = data.SceneSource(banks[1], seed=2).gallery()
    assert len(data.DIGIT_SETS) == len(set(data.DIGIT_SETS)) == 10 + 45 + 120
    sets = [tuple(sorted(digit for digit in row if digit >= 0)) for row in scenes.digits.tolist()]
    assert sorted(sets) == sorted(data.DIGIT_SETS)
    for text, digits in zip(scenes.captions, scenes.digits.tolist(), strict=True):
        named = [data.WORDS.index(word) for word in text.replace(",", "").split() if word in data.WORDS]
        assert named == [digit for digit in digits if digit >= 0]
    orders = {tuple(row) for row in scenes.digits.tolist() if min(row) >= 0}
    assert any(row != tuple(sorted(row)) for row in orders), "digits are named in random order"


def test_batches_have_no_set_twice_and_follow_the_seed(banks: Banks) -> None:
    first, second = (data.SceneSource(banks[0], seed=9).batch(64) for _ in range(2))
    other = data.SceneSource(banks[0], seed=10).batch(64)
    assert len({tuple(sorted(row)) for row in first.digits.tolist()}) == 64
    assert torch.equal(first.images, second.images) and first.captions == second.captions
    assert first.captions != other.captions
    with pytest.raises(ValueError, match="size: expected 1 to 175"):
        data.SceneSource(banks[0], seed=0).batch(176)


def test_tokenizer_round_trip_padding_and_errors() -> None:
    tokenizer = data.Tokenizer()
    texts = [data.caption(digits) for digits in data.DIGIT_SETS]
    ids = tokenizer(texts)
    assert ids.shape == (175, tokenizer.context_length) and ids.max() < len(tokenizer)
    assert [tokenizer.decode(row.tolist()) for row in ids] == texts
    for row, text in zip(ids.tolist(), texts, strict=True):
        length = len(text.replace(",", " ,").split()) + 2
        assert row[0] == tokenizer.BOS and row[length - 1] == tokenizer.EOS
        assert row[length:] == [tokenizer.PAD] * (tokenizer.context_length - length)
    assert [tokenizer.digit_of(token) for token in tokenizer.encode("a three, an eight")] == [-1, -1, 3, -1, -1, 8, -1]
    with pytest.raises(ValueError, match="'cat' is not in the vocabulary"):
        tokenizer.encode("a cat")
    with pytest.raises(ValueError, match="11 tokens, more than the context length of 10"):
        tokenizer.encode("a a a a a a a a a")


def test_crop_to_ink() -> None:
    image = np.zeros((28, 28), np.uint8)
    assert data.crop_to_ink(image) is None
    image[5, 7], image[10, 9], image[20, 20] = 200, 90, 10
    crop = data.crop_to_ink(image)
    assert crop.shape == (6, 3) and crop[0, 0] == 200 and crop[5, 2] == 90
    image[0, 0] = image[27, 27] = 255
    assert data.crop_to_ink(image) is None, "larger than a scene has room for"
