# SPDX-License-Identifier: Apache-2.0
"""Scan orders, and gathering a map along them and merging it back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fgkernels
from fgkernels.reference import selective_scan_2d as reference

from ..common import FLOATS, LAYOUTS, lay_out, names, reads_values
from .cases import ALL

SIZES = [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1), (1, 1)]


def test_orders_of_a_small_map() -> None:
    """Two rows and three columns, numbered row by row."""
    expected = {"h": "012345", "v": "031425", "d": "041523", "a": "051324"}
    for name, order in expected.items():
        for given, wanted in ((name, order), (f"{name}_flip", order[::-1])):
            (row,) = fgkernels.scan_table(2, 3, (given,))
            assert "".join(str(p) for p in row.tolist()) == wanted


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_orders(size: tuple[int, int]) -> None:
    """Each direction by its rule, position by position: a bijection for any height and width."""
    height, width = size
    table = fgkernels.scan_table(height, width, ALL)
    assert table.dtype == torch.int32 and table.shape == (8, height * width)
    assert torch.equal(table.sort(-1).values, torch.arange(height * width, dtype=torch.int32).expand(8, -1))
    rules = {
        "h": lambda i, j: (i * width + j, i * width + j),
        "v": lambda i, j: (j * height + i, i * width + j),
        "d": lambda i, j: (j * height + i, i * width + (i + j) % width),
        "a": lambda i, j: (j * height + i, i * width + (j - i) % width),
    }
    for k, name in enumerate(ALL):
        row = table[k].tolist()
        if name.endswith("_flip"):
            row = row[::-1]
        for i in range(height):
            for j in range(width):
                step, position = rules[name[0]](i, j)
                assert row[step] == position


def test_tables_are_kept() -> None:
    """The same tensor for the same question, and one that autograd may save although it was asked for first inside
    inference mode."""
    with torch.inference_mode():
        first = fgkernels.scan_table(7, 11, ("h", "d"))
    assert fgkernels.scan_table(7, 11, ["h", "d"]) is first and not first.is_inference()
    assert fgkernels.scan_table(7, 11, ("h", "d"), device="meta").is_meta


def test_tables_of_a_tracer_are_not_kept() -> None:
    with FakeTensorMode():
        assert fgkernels.scan_table(9, 11, ("h", "v")).shape == (2, 99)
    assert type(fgkernels.scan_table(9, 11, ("h", "v"))) is Tensor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((2, 3, ("h", "x")), r"directions: expected names among h, v, d, a, .*, got 'x'"),
     ((2, 3, ()), r"directions: expected names, one or more, got \(\)"),
     ((2, 3, "hv"), r"directions: expected names, one or more, got 'hv'"),
     ((-1, 3, ("h",)), r"size: expected \(H, W\) .*got \(-1, 3\)"),
     ((2**16, 2**15, ("h",)), r"size: expected .*2\^31")],
    ids=str,
)  # fmt: skip
def test_wrong_names_and_sizes(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fgkernels.scan_table(*arguments)


# --- gathering and merging --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_identities(served, size: tuple[int, int], dtype: torch.dtype) -> None:
    """Merging what was gathered is K times the map; each is the other's adjoint and gradient."""
    x = torch.randint(-4, 5, (2, 3, *size)).to(dtype)  # exact in every dtype
    y = torch.randint(-4, 5, (2, 8, 3, size[0] * size[1])).to(dtype)
    gathered, merged = fgkernels.cross_scan(x, ALL), fgkernels.cross_merge(y, ALL, size=size)
    assert gathered.shape == y.shape and merged.shape == x.shape and gathered.dtype == merged.dtype == dtype
    assert torch.equal(fgkernels.cross_merge(gathered, ALL, size=size), 8 * x)
    assert (gathered.double() * y.double()).sum() == (x.double() * merged.double()).sum()
    table = fgkernels.scan_table(*size, ALL, device=x.device).long()
    assert torch.equal(gathered, x.flatten(2)[:, :, table].transpose(1, 2))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fgkernels.cross_scan(leaf, ALL), leaf, y)
    assert torch.equal(gradient, merged)
    leaf = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fgkernels.cross_merge(leaf, ALL, size=size), leaf, x)
    assert torch.equal(gradient, gathered)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(served, layout: str) -> None:
    x = lay_out(torch.randn(3, 4, 5, 6), layout)
    y = lay_out(torch.randn(2, 3, 4, 30), layout)
    names_ = ("d", "v_flip", "a")
    assert torch.equal(fgkernels.cross_scan(x, names_), reference.cross_scan(x.contiguous(), names_))
    found = fgkernels.cross_merge(lay_out(torch.randn(2, 3, 4, 30), layout) if layout == "expanded" else y, size=(5, 6),
                                  directions=names_)  # fmt: skip
    assert found.shape == (2, 4, 5, 6)
    if layout != "expanded":
        torch.testing.assert_close(found, reference.cross_merge(y.contiguous(), names_, size=(5, 6)))
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(fgkernels.cross_scan(channels_last, names_), fgkernels.cross_scan(x, names_))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=names)
def test_tables_of_the_caller(served, dtype: torch.dtype) -> None:
    table = torch.stack([torch.randperm(20) for _ in range(3)]).to(dtype)
    x, y = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 20)
    gathered = fgkernels.cross_scan(x, table=table)
    assert torch.equal(gathered, x.flatten(2)[:, :, table.long()].transpose(1, 2))
    merged = torch.zeros(2, 6, 20)
    for k in range(3):
        merged.index_add_(2, table[k].long(), y[:, k])
    torch.testing.assert_close(fgkernels.cross_merge(y, size=(4, 5), table=table).flatten(2), merged)


def test_sums_in_the_wider_type(served) -> None:
    """256 and seven ones are 263, which bfloat16 rounds to 264; it could add ones to 256 as often as it likes."""
    y = torch.ones(1, 8, 1, 1, dtype=torch.bfloat16)
    y[0, 0] = 256
    assert fgkernels.cross_merge(y, ALL, size=(1, 1)).item() == 264


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2), (2, 3, 2, 0)], ids=str)
def test_empty(served, shape: tuple[int, ...]) -> None:
    gathered = fgkernels.cross_scan(torch.zeros(shape))
    assert gathered.shape == (shape[0], 4, shape[1], shape[2] * shape[3])
    assert fgkernels.cross_merge(gathered, size=shape[2:]).shape == shape


def test_second_derivatives(served) -> None:
    """Both are linear, and differentiable as often as one likes."""
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, 4, 2, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(fgkernels.cross_scan, x)
    torch.autograd.gradgradcheck(lambda x: fgkernels.cross_scan(x).square(), x)
    torch.autograd.gradcheck(lambda y: fgkernels.cross_merge(y, size=(2, 3)), y)
    torch.autograd.gradgradcheck(lambda y: fgkernels.cross_merge(y, size=(2, 3)).square(), y)


def test_special_numbers_stay_where_they_are(served) -> None:
    x = torch.randn(2, 3, 4, 5)
    x[1, 2, 3, 1] = math.nan
    gathered = fgkernels.cross_scan(x, ALL)
    assert gathered.isnan().sum() == 8 and gathered[1, :, 2].isnan().sum() == 8
    merged = fgkernels.cross_merge(gathered, ALL, size=(4, 5))
    assert merged.isnan().sum() == 1 and merged[1, 2, 3, 1].isnan()


ILLEGAL = {
    "twice": [[0, 1, 2, 2]],
    "too large": [[0, 1, 2, 4]],
    "negative": [[0, -1, 2, 3]],
    "second row": [[0, 1, 2, 3], [3, 3, 1, 0]],
    "wraps": [[0, 1, 2, 3 + 2**32]],
}


@pytest.mark.parametrize("what", ILLEGAL)
def test_illegal_tables(served, what: str) -> None:
    """Rows that are no permutations are refused where the host reads them."""
    if not reads_values(served):
        return  # kernels keep within bounds instead, see test_scan
    table = torch.tensor(ILLEGAL[what])
    with pytest.raises((ValueError, RuntimeError), match=r"table: expected .*permutation"):
        fgkernels.cross_scan(torch.zeros(1, 1, 2, 2), table=table)
    with pytest.raises((ValueError, RuntimeError), match=r"table: expected .*permutation"):
        fgkernels.cross_merge(torch.zeros(1, len(table), 1, 4), size=(2, 2), table=table)


ERRORS = {
    "x rank": (lambda: fgkernels.cross_scan(torch.zeros(2, 3, 4)), r"x: expected \(B, C, H, W\), got \(2, 3, 4\)"),
    "x dtype": (lambda: fgkernels.cross_scan(torch.zeros(1, 1, 2, 2).int()), r"x: expected .*float32.*got .*int32"),
    "y rank": (lambda: fgkernels.cross_merge(torch.zeros(2, 4, 6), size=(2, 3)), r"y: expected \(B, K, C, L\)"),
    "y length": (lambda: fgkernels.cross_merge(torch.zeros(1, 4, 2, 7), size=(2, 3)), r"(y|table): expected .*6"),
    "y directions": (lambda: fgkernels.cross_merge(torch.zeros(1, 3, 2, 6), size=(2, 3)), r"(y|table): expected .*6\)"),
    "size": (lambda: fgkernels.cross_merge(torch.zeros(1, 4, 2, 6), size=6), r"size: expected \(H, W\), got 6"),
    "table rank": (
        lambda: fgkernels.cross_scan(torch.zeros(1, 1, 2, 2), table=torch.arange(4)), r"table: expected \(K, L\), got"
    ),
    "table length": (
        lambda: fgkernels.cross_scan(torch.zeros(1, 1, 2, 2), table=torch.arange(5)[None]), r"table: expected .*4.*5\)"
    ),
    "table dtype": (
        lambda: fgkernels.cross_scan(torch.zeros(1, 1, 2, 2), table=torch.zeros(1, 4)), r"table: expected dtype .*int32"
    ),
    "no direction": (
        lambda: fgkernels.cross_scan(torch.zeros(1, 1, 2, 2), table=torch.zeros(0, 4).int()), r"table: expected at lea"
    ),
    "name": (lambda: fgkernels.cross_scan(torch.zeros(1, 1, 2, 2), ("w",)), r"directions: expected names among"),
    "not a tensor": (lambda: fgkernels.cross_scan([1]), r"x: expected a Tensor, got list"),
    "table not a tensor": (
        lambda: fgkernels.cross_scan(torch.zeros(1, 1, 2, 2), table=[[0]]), r"table: expected a Tensor, got list"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ERRORS)
def test_errors(served, what: str) -> None:
    call, message = ERRORS[what]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call()
