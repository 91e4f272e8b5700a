# SPDX-License-Identifier: Apache-2.0
"""maxsim_varlen: packed sequences against the padded operator and the reference, and jagged nested tensors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import fgkernels
from fgkernels.reference import late_interaction as reference

from .cases import FLOATS, LAYOUTS, assert_as_exact_as_torch, eager_maxsim, grid_tokens, lay_out, names, tokens

LENGTHS = [
    ([2, 0, 5, 1], [3, 70, 0, 2]),
    ([33], [1]),
    ([0], [4, 4]),
    ([3, 1], [0, 0]),
    ([], [2]),
    ([17, 40], [130, 19]),
]


def offsets(lengths: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=dtype)


def pad(packed: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """(N, longest, D) with NaN in the padding, and its mask."""
    longest = max(lengths, default=0)
    padded = torch.full((len(lengths), longest, packed.shape[-1]), torch.nan, dtype=packed.dtype)
    for i, sequence in enumerate(packed.split(lengths) if lengths else []):
        padded[i, : len(sequence)] = sequence
    return padded, torch.arange(longest) < torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)


@pytest.mark.compiled
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
@pytest.mark.parametrize("paired", [False, True], ids=["all_pairs", "paired"])
def test_against_padded(implementation, threads: int, paired: bool, dtype: torch.dtype, lengths) -> None:
    query_lengths, document_lengths = lengths
    if paired:
        document_lengths = (document_lengths * 4)[: len(query_lengths)]
    queries, documents = tokens((sum(query_lengths), 21), dtype), tokens((sum(document_lengths), 21), dtype)
    padded_queries, query_mask = pad(queries, query_lengths)
    padded_documents, document_mask = pad(documents, document_lengths)
    for reduction in ("sum", "mean"):
        truth = reference.maxsim(
            padded_queries.double(), padded_documents.double(), query_mask, document_mask,
            reduction=reduction, paired=paired,
        )  # fmt: skip
        scores, alignment = fgkernels.maxsim_varlen(
            queries, documents, offsets(query_lengths), offsets(document_lengths),
            reduction=reduction, paired=paired, return_alignment=True,
        )  # fmt: skip
        eager = truth
        if padded_documents.shape[1]:
            eager = eager_maxsim(
                padded_queries.nan_to_num(), padded_documents.nan_to_num(), query_mask, document_mask,
                reduction == "mean", False, paired,
            )  # fmt: skip
        assert_as_exact_as_torch(scores, eager.reshape(truth.shape), truth, dtype)
        plain = fgkernels.maxsim_varlen(
            queries, documents, offsets(query_lengths), offsets(document_lengths), reduction=reduction, paired=paired
        )
        assert torch.equal(plain, scores)
    packed_shape = (len(queries),) if paired else (len(document_lengths), len(queries))
    assert alignment.shape == packed_shape


@pytest.mark.compiled
@pytest.mark.parametrize("offset_dtype", [torch.int32, torch.int64], ids=names)
@pytest.mark.parametrize("paired", [False, True])
def test_alignment_and_gradient_are_the_references(implementation, paired: bool, offset_dtype: torch.dtype) -> None:
    """Exact arithmetic with many ties: everything is equal."""
    query_lengths, document_lengths = [2, 0, 5, 1], [3, 70, 0, 2]
    places = offsets(query_lengths, offset_dtype), offsets(document_lengths, offset_dtype)
    queries, documents = grid_tokens((8, 6)).requires_grad_(), grid_tokens((75, 6)).requires_grad_()
    ours = fgkernels.maxsim_varlen(queries, documents, *places, paired=paired, return_alignment=True)
    truth = reference.maxsim_varlen(queries, documents, *places, paired=paired, return_alignment=True)
    assert torch.equal(ours[0], truth[0]) and torch.equal(ours[1], truth[1])
    assert ours[1].dtype == torch.int64
    weights = torch.randint(-3, 4, ours[0].shape).float()
    found = torch.autograd.grad(ours[0], (queries, documents), weights)
    expected = torch.autograd.grad(truth[0], (queries, documents), weights)
    assert all(torch.equal(value, other) for value, other in zip(found, expected, strict=True))


@pytest.mark.compiled
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
@pytest.mark.parametrize("dtype", FLOATS, ids=names)
def test_layouts(implementation, dtype: torch.dtype, layout: str) -> None:
    queries, documents = grid_tokens((8, 11), dtype), grid_tokens((75, 11), dtype)
    places = offsets([2, 0, 5, 1]), offsets([3, 70, 0, 2])
    expected = reference.maxsim_varlen(queries, documents, *places)
    strided = [lay_out(value.unsqueeze(0), layout).squeeze(0) for value in (queries, documents)]
    scores = fgkernels.maxsim_varlen(*strided, *(torch.stack([place, place], 1)[:, 0] for place in places))
    assert torch.equal(scores, expected)


@pytest.mark.compiled
def test_long_packed_documents(implementation) -> None:
    """More than 32767 packed tokens take wide indices."""
    documents = torch.zeros(40000, 1)
    documents[39990] = 1
    queries = torch.ones(2, 1, requires_grad=True)
    scores, alignment = fgkernels.maxsim_varlen(
        queries, documents, offsets([2]), offsets([100, 39900]), return_alignment=True
    )
    assert scores.tolist() == [[0, 2]]
    assert alignment.tolist() == [[0, 0], [39890, 39890]]
    assert torch.autograd.grad(scores[0, 1], queries)[0].tolist() == [[1], [1]]


@pytest.mark.compiled
def test_threads_do_not_change_a_bit(cpu_implementation) -> None:
    query_lengths, document_lengths = [20, 3, 0, 60], [5, 300, 0, 20, 1, 77]
    queries, documents = tokens((83, 32)).requires_grad_(), tokens((403, 32)).requires_grad_()
    runs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        scores = fgkernels.maxsim_varlen(queries, documents, offsets(query_lengths), offsets(document_lengths))
        runs.append((scores, *torch.autograd.grad(scores.square().sum(), (queries, documents))))
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


@pytest.mark.compiled
def test_nothing_waits_for_the_gpu(operators) -> None:
    """Offsets stay on the device, forward and backward: torch raises at any synchronisation."""
    if operators.device != "cuda":
        pytest.skip(f"{operators.name} runs on the host, which has no device to wait for")
    queries, documents = tokens((8, 16)).requires_grad_(), tokens((75, 16)).requires_grad_()
    places = offsets([2, 0, 5, 1]), offsets([3, 70, 0, 2])
    weights = torch.ones(4, 4)
    for mode in ("default", "error"):  # the first round compiles and tunes
        torch.cuda.set_sync_debug_mode(mode)
        try:
            scores = fgkernels.maxsim_varlen(queries, documents, *places)
            torch.autograd.grad(scores, (queries, documents), weights)
        finally:
            torch.cuda.set_sync_debug_mode("default")


# --- jagged nested tensors --------------------------------------------------------------------------------------------


def nested(lengths: list[int], requires_grad: bool = False) -> Tensor:
    sequences = [grid_tokens((length, 5)) for length in lengths]
    return torch.nested.nested_tensor(sequences, layout=torch.jagged, requires_grad=requires_grad)


def test_nested_on_either_side(served) -> None:
    queries, documents = nested([2, 3]), nested([4, 1, 6])
    expected = reference.maxsim_varlen(
        queries.values(), documents.values(), queries.offsets(), documents.offsets(), return_alignment=True
    )
    for q in ((queries, None), (queries.values(), queries.offsets())):
        for d in ((documents, None), (documents.values(), documents.offsets())):
            scores, alignment = fgkernels.maxsim_varlen(q[0], d[0], q[1], d[1], return_alignment=True)
            assert torch.equal(scores, expected[0]) and torch.equal(alignment, expected[1])


def test_gradient_flows_to_the_nested_tensor(served) -> None:
    queries, documents = nested([2, 3], True), nested([4, 1, 6], True)
    scores = fgkernels.maxsim_varlen(queries, documents)
    found = torch.autograd.grad(scores.square().sum(), (queries, documents))
    leaves = [value.values().detach().requires_grad_() for value in (queries, documents)]
    expected = torch.autograd.grad(
        reference.maxsim_varlen(*leaves, queries.offsets(), documents.offsets()).square().sum(), leaves
    )
    for value, truth in zip(found, expected, strict=True):
        assert value.is_nested
        torch.testing.assert_close(value.values(), truth)


def test_nested_int8(served) -> None:
    queries, documents = nested([2, 3]), nested([4, 1, 6])
    values, scales = fgkernels.quantize_documents(documents.values())
    packed = torch.nested.nested_tensor_from_jagged(values, documents.offsets())
    nested_scales = torch.nested.nested_tensor_from_jagged(scales, documents.offsets())
    expected = reference.maxsim_varlen(
        queries.values(), values, queries.offsets(), documents.offsets(), document_scales=scales
    )
    for given in (scales, nested_scales):
        torch.testing.assert_close(fgkernels.maxsim_varlen(queries, packed, document_scales=given), expected)


def test_nested_with_gaps(served) -> None:
    """A narrowed nested tensor is packed first; torch has no gradient through that, so with one it is refused."""
    documents = nested([4, 1])
    padded = grid_tokens((3, 6, 5))
    starts, lengths = torch.tensor([0, 1, 2]), torch.tensor([2, 3, 1])
    queries = torch.nested.narrow(padded, 1, starts, lengths, layout=torch.jagged)
    packed = torch.cat([padded[i, s : s + n] for i, (s, n) in enumerate(zip(starts, lengths, strict=True))])
    expected = reference.maxsim_varlen(packed, documents.values(), offsets([2, 3, 1]), documents.offsets())
    assert torch.equal(fgkernels.maxsim_varlen(queries, documents), expected)
    narrowed = torch.nested.narrow(padded.requires_grad_(), 1, starts, lengths, layout=torch.jagged)
    with pytest.raises(ValueError, match="queries: expected a contiguous nested tensor"):
        fgkernels.maxsim_varlen(narrowed, documents)


@pytest.mark.compiled
def test_nested_compiles_in_one_graph(operators) -> None:
    queries, documents = nested([2, 3], True), nested([4, 1, 6], True)
    compiled = torch.compile(fgkernels.maxsim_varlen, fullgraph=True, dynamic=True, backend="aot_eager")
    scores = compiled(queries, documents)
    assert torch.equal(scores, fgkernels.maxsim_varlen(queries, documents))
    found = torch.autograd.grad(scores.square().sum(), (queries, documents))
    expected = torch.autograd.grad(fgkernels.maxsim_varlen(queries, documents).square().sum(), (queries, documents))
    for value, truth in zip(found, expected, strict=True):
        assert torch.equal(value.values(), truth.values())
