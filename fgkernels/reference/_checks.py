# SPDX-License-Identifier: Apache-2.0
"""Argument checks of the late-interaction family, shared by the reference and the fake kernels.

Every function takes ``expect(condition, error, message)``: the reference raises ``error`` (`raise_error`), fake
kernels hand the condition to ``torch._check`` so that it may be symbolic.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FLOAT_NAMES = "float32, float64, bfloat16 or float16"

Expect = Callable[[bool, type[Exception], Callable[[], str]], None]


def raise_error(condition: bool, error: type[Exception], message: Callable[[], str]) -> None:
    """`expect` of eager code."""
    if not condition:
        raise error(message())


def shape(tensor: Tensor) -> str:
    """`(10, 300, 64)`, for messages."""
    return "(" + ", ".join(str(size) for size in tensor.shape) + ")" if tensor.dim() != 1 else f"({tensor.shape[0]},)"


def check_reduction(reduction: str) -> bool:
    """True for "mean", False for "sum"; ValueError otherwise."""
    if reduction == "sum":
        return False
    if reduction == "mean":
        return True
    raise ValueError(f'reduction: expected "sum" or "mean", got {reduction!r}')


def check_padding(padding: str) -> bool:
    """True for "zero", False for "exclude"; ValueError otherwise."""
    if padding == "exclude":
        return False
    if padding == "zero":
        return True
    raise ValueError(f'padding: expected "exclude" or "zero", got {padding!r}')


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")


def check_tokens(expect: Expect, left: str, a: Tensor, right: str, b: Tensor, int8: bool) -> None:
    """dtype and device of the two token tensors; `int8` allows int8 on the right."""
    expect(a.dtype in FLOAT_DTYPES, TypeError, lambda: f"{left}: expected {FLOAT_NAMES}, got {a.dtype}")
    if int8 and b.dtype == torch.int8:
        pass
    elif int8:
        expect(b.dtype in FLOAT_DTYPES, TypeError, lambda: f"{right}: expected {FLOAT_NAMES}, or int8, got {b.dtype}")
    else:
        expect(b.dtype in FLOAT_DTYPES, TypeError, lambda: f"{right}: expected {FLOAT_NAMES}, got {b.dtype}")
    expect(
        a.dtype == b.dtype or (int8 and b.dtype == torch.int8),
        TypeError,
        lambda: f"{right}: expected dtype {a.dtype} like {left}, got {b.dtype}",
    )
    expect(a.device == b.device, ValueError, lambda: f"{right}: expected device {a.device} like {left}, got {b.device}")


def check_per_token(
    expect: Expect, name: str, values: Tensor | None, dtype: torch.dtype, letters: str, tokens: Tensor, owner: str
) -> None:
    """A mask or scales, where given: of this dtype, on the tokens' device and shaped like the tokens without D."""
    if values is None:
        return
    check_tensor(name, values)
    expected = tokens.shape[:-1]

    def message() -> str:
        return f"{name}: expected {letters} = {tuple(expected)} like {owner}, got {shape(values)}"

    expect(values.dim() == len(expected), ValueError, message)
    for axis, size in enumerate(expected):
        expect(values.shape[axis] == size, ValueError, message)
    expect(values.dtype == dtype, TypeError, lambda: f"{name}: expected dtype {dtype}, got {values.dtype}")
    expect(
        values.device == tokens.device,
        ValueError,
        lambda: f"{name}: expected device {tokens.device} like {owner}, got {values.device}",
    )


def check_scales(expect: Expect, scales: Tensor | None, letters: str, documents: Tensor) -> None:
    """float32 scales shaped like the documents without D, exactly when the documents are int8."""
    name = "document_scales"
    int8 = documents.dtype == torch.int8
    expect(
        int8 == (scales is not None),
        ValueError,
        lambda: (
            f"{name}: expected float32 {letters}, required when documents are int8, got None"
            if int8
            else f"{name}: only for int8 documents, got documents of dtype {documents.dtype}"
        ),
    )
    check_per_token(expect, name, scales, torch.float32, letters, documents, "documents")


def check_no_scale_gradient(scales: Tensor | None) -> None:
    """Scales are constants of the quantisation: a gradient with respect to them isn't offered."""
    if scales is not None and scales.requires_grad:
        raise ValueError("document_scales: gradients are not supported, got a tensor that requires grad (detach it)")


def check_maxsim(
    expect: Expect,
    queries: Tensor,
    documents: Tensor,
    query_mask: Tensor | None,
    document_mask: Tensor | None,
    document_scales: Tensor | None,
    paired: bool,
) -> None:
    check_tensor("queries", queries)
    check_tensor("documents", documents)
    expect(queries.dim() == 3, ValueError, lambda: f"queries: expected (Nq, Lq, D), got {shape(queries)}")
    rerank = documents.dim() == 4
    letters = "(Nq, K, Ld, D)" if rerank else "(N, Ld, D)" if paired else "(Nd, Ld, D)"
    expect(
        documents.dim() in (3, 4),
        ValueError,
        lambda: f"documents: expected (Nd, Ld, D), or (Nq, K, Ld, D) to rerank, got {shape(documents)}",
    )
    expect(
        documents.shape[-1] == queries.shape[-1],
        ValueError,
        lambda: f"documents: expected {letters} with D = {queries.shape[-1]} like queries, got {shape(documents)}",
    )
    if paired or rerank:
        letter = "Nq" if rerank else "N"
        expect(
            documents.shape[0] == queries.shape[0],
            ValueError,
            lambda: (
                f"documents: expected {letters} with {letter} = {queries.shape[0]} like queries, got {shape(documents)}"
            ),
        )
    check_tokens(expect, "queries", queries, "documents", documents, int8=True)
    check_per_token(expect, "query_mask", query_mask, torch.bool, "(Nq, Lq)", queries, "queries")
    token_letters = "(Nq, K, Ld)" if rerank else "(N, Ld)" if paired else "(Nd, Ld)"
    check_per_token(expect, "document_mask", document_mask, torch.bool, token_letters, documents, "documents")
    check_scales(expect, document_scales, token_letters, documents)


def check_late_interaction(expect: Expect, a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> None:
    check_tensor("a", a)
    check_tensor("b", b)
    expect(a.dim() == 3, ValueError, lambda: f"a: expected (Na, n, D), got {shape(a)}")
    expect(b.dim() == 3, ValueError, lambda: f"b: expected (Nb, m, D), got {shape(b)}")
    expect(
        b.shape[-1] == a.shape[-1],
        ValueError,
        lambda: f"b: expected (Nb, m, D) with D = {a.shape[-1]} like a, got {shape(b)}",
    )
    check_tokens(expect, "a", a, "b", b, int8=False)
    check_per_token(expect, "a_mask", a_mask, torch.bool, "(Na, n)", a, "a")
    check_per_token(expect, "b_mask", b_mask, torch.bool, "(Nb, m)", b, "b")


def check_varlen(
    expect: Expect,
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor,
    document_offsets: Tensor,
    document_scales: Tensor | None,
    paired: bool,
) -> None:
    check_tensor("queries", queries)
    check_tensor("documents", documents)
    expect(queries.dim() == 2, ValueError, lambda: f"queries: expected packed (Tq, D), got {shape(queries)}")
    expect(documents.dim() == 2, ValueError, lambda: f"documents: expected packed (Td, D), got {shape(documents)}")
    expect(
        documents.shape[-1] == queries.shape[-1],
        ValueError,
        lambda: f"documents: expected (Td, D) with D = {queries.shape[-1]} like queries, got {shape(documents)}",
    )
    check_tokens(expect, "queries", queries, "documents", documents, int8=True)
    check_offsets(expect, "query_offsets", query_offsets, "(Nq + 1,)", queries)
    check_offsets(expect, "document_offsets", document_offsets, "(Nd + 1,)", documents)
    if paired:
        expect(
            document_offsets.shape[0] == query_offsets.shape[0],
            ValueError,
            lambda: (
                f"document_offsets: expected (N + 1,) = ({query_offsets.shape[0]},) like query_offsets, since paired, "
                f"got {shape(document_offsets)}"
            ),
        )
    check_scales(expect, document_scales, "(Td,)", documents)


def check_offsets(expect: Expect, name: str, offsets: Tensor, letters: str, tokens: Tensor) -> None:
    check_tensor(name, offsets)
    expect(offsets.dim() == 1, ValueError, lambda: f"{name}: expected {letters}, got {shape(offsets)}")
    expect(offsets.shape[0] >= 1, ValueError, lambda: f"{name}: expected {letters} with at least one entry, got (0,)")
    expect(
        offsets.dtype in (torch.int32, torch.int64),
        TypeError,
        lambda: f"{name}: expected dtype torch.int32 or torch.int64, got {offsets.dtype}",
    )
    expect(
        offsets.device == tokens.device,
        ValueError,
        lambda: f"{name}: expected device {tokens.device} like the tokens, got {offsets.device}",
    )


def check_offset_values(name: str, offsets: Tensor, tokens: Tensor) -> None:
    """Offsets start at 0, never fall and end at the token count. Reads the values, so not while tracing."""
    values = offsets.tolist()
    count = tokens.shape[0]
    if values[0] != 0:
        raise ValueError(f"{name}: expected to start at 0, got {values[0]}")
    for i, (low, high) in enumerate(itertools.pairwise(values), 1):
        if high < low:
            raise ValueError(f"{name}: expected monotone offsets, got {low} followed by {high} at position {i}")
    if values[-1] != count:
        raise ValueError(f"{name}: expected to end at the token count {count}, got {values[-1]}")
