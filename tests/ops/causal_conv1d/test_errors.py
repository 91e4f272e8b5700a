# SPDX-License-Identifier: Apache-2.0
"""Bad input: the message names the argument, the expected shape and what came, whoever serves."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fgkernels
from fgkernels.ops import _library

from ..common import to_default_device

X, W, B = torch.zeros(2, 5, 7), torch.zeros(5, 4), torch.zeros(5)
SEQ, STATE, PACKED = torch.zeros(2, 7, dtype=torch.int32), torch.zeros(2, 5, 3), torch.zeros(1, 5, 7)
ERRORS = (ValueError, TypeError, RuntimeError)
FLOATS = "float32, float64, bfloat16 or float16"

CONV = {
    "x rank": ((X[0], W), {}, r"x: expected \(B, D, L\), got \(5, 7\)"),
    "x dtype": ((X.int(), W), {}, rf"x: expected {FLOATS}, got .*int32"),
    "x complex": ((X.cfloat(), W), {}, rf"x: expected {FLOATS}, got .*omplex"),
    "x not a tensor": (([1.0], W), {}, r"x: expected a Tensor, got list"),
    "weight not a tensor": ((X, None), {}, r"weight: expected a Tensor, got NoneType"),
    "weight rank": ((X, W[:, None]), {}, r"weight: expected \(D, W\).*got \(5, 1, 4\)"),
    "weight channels": ((X, W[:4]), {}, r"weight: expected \(D, W\).*5.*like x.*got \(4, 4\)"),
    "width 1": ((X, W[:, :1]), {}, r"weight: expected \(D, W\).*W from 2 to 4, got \(5, 1\)"),
    "width 5": ((X, torch.zeros(5, 5)), {}, r"weight: expected \(D, W\).*W from 2 to 4, got \(5, 5\)"),
    "weight dtype": ((X, W.int()), {}, rf"weight: expected {FLOATS}, got .*int32"),
    "bias shape": ((X, W, B[:4]), {}, r"bias: expected \(D,\) = \(5,\) like x, got \(4,\)"),
    "bias rank": ((X, W, B[None]), {}, r"bias: expected \(D,\) = \(5,\) like x, got \(1, 5\)"),
    "bias dtype": ((X, W, B.long()), {}, rf"bias: expected {FLOATS}, got .*int64"),
    "activation": ((X, W, B, "relu"), {}, r'activation: expected None, "silu" or "swish", got \'relu\''),
    "activation True": ((X, W, B, True), {}, r'activation: expected None, "silu" or "swish", got True'),
    "seq_idx shape": ((X, W), {"seq_idx": SEQ[:1]}, r"seq_idx: expected \(B, L\) = \(2, 7\) like x, got \(1, 7\)"),
    "seq_idx dtype": ((X, W), {"seq_idx": SEQ.float()}, r"seq_idx: expected dtype .*int32.*got .*float32"),
    "state shape": (
        (X, W),
        {"initial_state": STATE[..., :2]},
        r"initial_state: expected \(B, D, W - 1\) = \(2, 5, 3\) like x.*got \(2, 5, 2\)",
    ),
    "state dtype": ((X, W), {"initial_state": STATE.int()}, rf"initial_state: expected {FLOATS}, got .*int32"),
    "both": (
        (PACKED, W),
        {"seq_idx": SEQ[:1], "cu_seqlens": torch.tensor([0, 7])},
        r"seq_idx: expected None with cu_seqlens",
    ),
    "packed batch": ((X, W), {"cu_seqlens": torch.tensor([0, 7])}, r"x: expected a batch of B = 1 with cu_seqlens"),
    "packed rank": ((PACKED, W), {"cu_seqlens": torch.tensor([[0, 7]])}, r"cu_seqlens: expected \(S \+ 1,\), got"),
    "packed dtype": (
        (PACKED, W),
        {"cu_seqlens": torch.tensor([0.0, 7])},
        r"cu_seqlens: expected dtype .*got .*float32",
    ),
    "packed empty": ((PACKED, W), {"cu_seqlens": torch.tensor([], dtype=torch.int32)}, r"cu_seqlens: .*got \(0,\)"),
    "packed start": ((PACKED, W), {"cu_seqlens": torch.tensor([1, 7])}, r"cu_seqlens: expected to start at 0, got 1"),
    "packed end": ((PACKED, W), {"cu_seqlens": torch.tensor([0, 6])}, r"cu_seqlens: expected to end at .*7, got 6"),
    "packed falls": (
        (PACKED, W),
        {"cu_seqlens": torch.tensor([0, 5, 3, 7])},
        r"cu_seqlens: expected monotone offsets, got 5 followed by 3",
    ),
    "packed state": (
        (PACKED, W),
        {"cu_seqlens": torch.tensor([0, 2, 7]), "initial_state": STATE[:1]},
        r"initial_state: expected \(S, D, W - 1\) = \(2, 5, 3\).*got \(1, 5, 3\)",
    ),
    "meta weight": ((X, W.to("meta")), {}, r"weight: expected .*(device cpu|CPU tensor|cpu tensor)"),
    "meta bias": ((X, W, B.to("meta")), {}, r"bias: expected .*(device cpu|CPU tensor|cpu tensor)"),
}

STEP, HELD = torch.zeros(2, 5), torch.zeros(2, 5, 4)
ROWS = torch.tensor([1, 0], dtype=torch.int32)
UPDATE = {
    "x rank": ((STEP[0], HELD, W), {}, r"x: expected \(B, D\) or \(B, D, S\), got \(5,\)"),
    "x not a tensor": ((1.0, HELD, W), {}, r"x: expected a Tensor, got float"),
    "x dtype": ((STEP.int(), HELD, W), {}, rf"x: expected {FLOATS}, got .*int32"),
    "state rank": ((STEP, HELD[0], W), {}, r"conv_state: expected \(.*got \(5, 4\)"),
    "state batch": ((STEP, HELD[:1], W), {}, r"conv_state: expected .*2.*got \(1, 5, 4\)"),
    "state channels": ((STEP, HELD[:, :4], W), {}, r"conv_state: expected .*5.*got \(2, 4, 4\)"),
    "state length": ((STEP, HELD[..., :2], W), {}, r"conv_state: expected .*>= W - 1 = 3, got \(2, 5, 2\)"),
    "state dtype": ((STEP, HELD.half(), W), {}, r"conv_state: expected dtype .*float32.*got .*float16"),
    "state not a tensor": ((STEP, None, W), {}, r"conv_state: expected a Tensor, got None"),
    "weight": ((STEP, HELD, W[:, :1]), {}, r"weight: expected \(D, W\).*W from 2 to 4, got \(5, 1\)"),
    "bias": ((STEP, HELD, W, B[:2]), {}, r"bias: expected \(D,\) = \(5,\) like x, got \(2,\)"),
    "activation": ((STEP, HELD, W, B, "gelu"), {}, r"activation: expected None"),
    "lengths shape": (
        (STEP, HELD, W),
        {"cache_seqlens": ROWS[:1]},
        r"cache_seqlens: expected \(B,\) = \(2,\) like x, got \(1,\)",
    ),
    "lengths dtype": ((STEP, HELD, W), {"cache_seqlens": ROWS.float()}, r"cache_seqlens: expected dtype .*int32.*got"),
    "lengths negative": (
        (STEP, HELD, W),
        {"cache_seqlens": ROWS - 1},
        r"cache_seqlens: expected values >= 0, got -1 at",
    ),
    "rows shape": (
        (STEP, HELD, W),
        {"conv_state_indices": ROWS[None]},
        r"conv_state_indices: expected \(B,\) = \(2,\) like x, got \(1, 2\)",
    ),
    "rows dtype": ((STEP, HELD, W), {"conv_state_indices": ROWS.bool()}, r"conv_state_indices: expected dtype .*int32"),
    "rows range": (
        (STEP, HELD, W),
        {"conv_state_indices": ROWS + 1},
        r"conv_state_indices: expected values in \[0, 2\), got 2 at position 0",
    ),
    "rows negative": (
        (STEP, HELD, W),
        {"conv_state_indices": ROWS - 1},
        r"conv_state_indices: expected values in \[0, 2\), got -1 at position 1",
    ),
    "rows twice": (
        (STEP, HELD, W),
        {"conv_state_indices": ROWS * 0},
        r"conv_state_indices: expected each value once, got 0 again at position 1",
    ),
}

CASES = [
    pytest.param(function, *case, id=f"{function}-{name}")
    for function, cases in (("causal_conv1d", CONV), ("causal_conv1d_update", UPDATE))
    for name, case in cases.items()
]


def values_decide(message: str) -> bool:
    """Whether only an index's values show what is wrong: a GPU's aren't read, and while tracing there are none."""
    return any(text in message for text in ("start at", "end at", "monotone", "expected values", "each value once"))


@pytest.mark.parametrize(("function", "arguments", "options", "message"), CASES)
def test_message(served, function: str, arguments: tuple, options: dict, message: str) -> None:
    if served.device == "cuda" and values_decide(message):
        pytest.skip("on a GPU the values of an index aren't read on the host")
    arguments = tuple(to_default_device(value) for value in arguments)
    options = {name: to_default_device(value) for name, value in options.items()}
    if served.device == "cuda":
        message = message.replace("device cpu", "device cuda:0")
    with pytest.raises(ERRORS, match=message):
        getattr(fgkernels, function)(*arguments, **options)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("function", "arguments", "options", "message"),
    [case for case in CASES if not values_decide(case.values[3])],
)
def test_fake_kernels_refuse_the_same(function: str, arguments: tuple, options: dict, message: str) -> None:
    """Tracing finds bad shapes and dtypes too, with the same words."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fake = [mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for value in arguments]
        options = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        with pytest.raises(ERRORS, match=message):
            getattr(fgkernels, function)(*fake, **options)


def test_a_state_whose_elements_share_memory_is_refused(served) -> None:
    """It couldn't hold what is written."""
    step, weight = to_default_device(STEP), to_default_device(W)
    with pytest.raises(ERRORS, match=r"conv_state: .*share"):
        fgkernels.causal_conv1d_update(step, torch.zeros(1, 5, 4).expand(2, 5, 4), weight)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: X[:1]}, r"grad_out: expected \(B, D, L\) = \(2, 5, 7\).*got \(1, 5, 7\)"),
        ({0: X.double()}, r"grad_out: expected dtype .*float32.*got .*float64"),
        ({2: W.double()}, r"weight: expected .*float32.*got .*float64"),
        ({4: SEQ.long()}, r"seq_idx: expected dtype .*int32.*got .*int64"),
    ],
    ids=["grad shape", "grad dtype", "weight dtype", "seq_idx dtype"],
)
def test_backward_operator_checks(operators, change: dict, message: str) -> None:
    arguments = [X, X, W, B, SEQ, None, True]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        _library.op("causal_conv1d_backward")(*(to_default_device(value) for value in arguments))
