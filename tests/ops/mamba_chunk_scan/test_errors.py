# SPDX-License-Identifier: Apache-2.0
"""Bad input: the message names the argument, the expected shape and what came, whoever serves."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fgkernels
from fgkernels.ops import _library

from ..common import to_default_device

X, DT, A, B, D = torch.zeros(2, 7, 4, 3), torch.zeros(2, 7, 4), torch.zeros(4), torch.zeros(2, 7, 2, 5), torch.zeros(4)
STATES, SEQ = torch.zeros(2, 4, 3, 5), torch.zeros(2, 7, dtype=torch.int32)
ERRORS = (ValueError, TypeError, RuntimeError)
FLOATS = "float32, float64, bfloat16 or float16"
PACKED = {"x": X[:1], "dt": DT[:1], "B": B[:1], "C": B[:1]}

CASES = {
    "x rank": ({"x": X[0]}, r"x: expected \(B, L, H, P\), got \(7, 4, 3\)"),
    "x not a tensor": ({"x": 1.0}, r"x: expected a Tensor, got float"),
    "dt not a tensor": ({"dt": None}, r"dt: expected a Tensor, got NoneType"),
    "A not a tensor": ({"A": [1.0]}, r"A: expected a Tensor, got list"),
    "x dtype": ({"x": X.int()}, rf"x: expected {FLOATS}, got .*int32"),
    "A complex": ({"A": A.cfloat()}, rf"A: expected {FLOATS}.*got .*omplex"),
    "dt shape": ({"dt": DT[:, :6]}, r"dt: expected \(B, L, H\) = \(2, 7, 4\) like x, got \(2, 6, 4\)"),
    "dt rank": ({"dt": X}, r"dt: expected \(B, L, H\) = \(2, 7, 4\) like x, got \(2, 7, 4, 3\)"),
    "A shape": ({"A": A[:3]}, r"A: expected \(H,\) = \(4,\) like x, got \(3,\)"),
    "B rank": ({"B": B[:, :, 0]}, r"B: expected \(B, L, G, N\).*got \(2, 7, 5\)"),
    "B length": ({"B": B[:, :6]}, r"B: expected \(B, L, G, N\).*got \(2, 6, 2, 5\)"),
    "B groups": (
        {"B": torch.zeros(2, 7, 3, 5), "C": torch.zeros(2, 7, 3, 5)},
        r"B: expected .*divi.* H = 4, got .*3",
    ),
    "B no groups": ({"B": B[:, :, :0], "C": B[:, :, :0]}, r"B: expected .*divi.* H = 4, got .*0"),
    "C shape": ({"C": B[..., :4]}, r"C: expected \(B, L, G, N\) = \(2, 7, 2, 5\) like B, got \(2, 7, 2, 4\)"),
    "D shape": ({"D": D[:3]}, r"D: expected \(H,\) = \(4,\) like x, got \(3,\)"),
    "D per channel": ({"D": torch.zeros(4, 2)}, r"D: expected \(H, P\) = \(4, 3\) like x, got \(4, 2\)"),
    "D rank": ({"D": torch.zeros(4, 3, 1)}, r"D: expected \(H,\).*got \(4, 3, 1\)"),
    "z shape": ({"z": X[..., :2]}, r"z: expected \(B, L, H, P\) = \(2, 7, 4, 3\) like x, got \(2, 7, 4, 2\)"),
    "dt_bias shape": ({"dt_bias": D[None]}, r"dt_bias: expected \(H,\) = \(4,\) like x, got \(1, 4\)"),
    "states shape": (
        {"initial_states": STATES[..., :4]},
        r"initial_states: expected \(B, H, P, N\) = \(2, 4, 3, 5\) like x.*got \(2, 4, 3, 4\)",
    ),
    "states dtype": ({"initial_states": STATES.int()}, rf"initial_states: expected {FLOATS}, got .*int32"),
    "seq_idx shape": ({"seq_idx": SEQ[:, :6]}, r"seq_idx: expected \(B, L\) = \(2, 7\) like x, got \(2, 6\)"),
    "seq_idx dtype": ({"seq_idx": SEQ.float()}, r"seq_idx: expected dtype .*int32.*got .*float32"),
    "seq_idx not a tensor": ({"seq_idx": [0]}, r"seq_idx: expected a Tensor, got list"),
    "chunk_size 0": ({"chunk_size": 0}, r"chunk_size: expected a positive int, got 0"),
    "chunk_size negative": ({"chunk_size": -64}, r"chunk_size: expected a positive int, got -64"),
    "chunk_size float": ({"chunk_size": 64.0}, r"chunk_size: expected a positive int, got 64.0"),
    "chunk_size True": ({"chunk_size": True}, r"chunk_size: expected a positive int, got True"),
    "limits": ({"dt_limit": (1.0, 0.5)}, r"dt_limit: expected minimum <= maximum, got \(1.0, 0.5\)"),
    "limits NaN": ({"dt_limit": (float("nan"), 1.0)}, r"dt_limit: expected minimum <= maximum, got \(nan, 1.0\)"),
    "one limit": ({"dt_limit": 0.5}, r"dt_limit: expected \(minimum, maximum\), got 0.5"),
    "three limits": ({"dt_limit": (0, 1, 2)}, r"dt_limit: expected \(minimum, maximum\), got \(0, 1, 2\)"),
    "states of what": ({"return_varlen_states": True}, r"cu_seqlens: expected \(S \+ 1,\), required by return_varlen"),
    "packed batch": ({"cu_seqlens": torch.tensor([0, 7])}, r"x: expected a batch of B = 1 with cu_seqlens"),
    "packed start": (PACKED | {"cu_seqlens": torch.tensor([1, 7])}, r"cu_seqlens: expected to start at 0, got 1"),
    "packed end": (PACKED | {"cu_seqlens": torch.tensor([0, 8])}, r"cu_seqlens: expected to end at .*7, got 8"),
    "packed falls": (PACKED | {"cu_seqlens": torch.tensor([0, 5, 3, 7])}, r"cu_seqlens: expected monotone offsets"),
    "packed dtype": (PACKED | {"cu_seqlens": torch.tensor([0.0, 7])}, r"cu_seqlens: expected dtype .*got .*float32"),
    "packed rank": (PACKED | {"cu_seqlens": torch.tensor(7)}, r"cu_seqlens: expected \(S \+ 1,\), got \(\)"),
    "meta A": ({"A": A.to("meta")}, r"A: expected .*(device cpu|CPU tensor|cpu tensor)"),
    "meta B": ({"B": B.to("meta")}, r"B: expected .*(device cpu|CPU tensor|cpu tensor)"),
}


def arguments(change: dict) -> dict:
    return {"x": X, "dt": DT, "A": A, "B": B, "C": B, "chunk_size": 64} | change


def values_decide(message: str) -> bool:
    """Whether only the values of cu_seqlens show what is wrong: on a GPU they aren't read."""
    return any(text in message for text in ("start at", "end at", "monotone"))


@pytest.mark.parametrize(("change", "message"), CASES.values(), ids=CASES)
def test_message(served, change: dict, message: str) -> None:
    if served.device == "cuda" and values_decide(message):
        pytest.skip("on a GPU the values of cu_seqlens aren't read on the host")
    if served.device == "cuda":
        message = message.replace("device cpu", "device cuda:0")
    with pytest.raises(ERRORS, match=message):
        fgkernels.mamba_chunk_scan_combined(
            **{name: to_default_device(value) for name, value in arguments(change).items()}
        )


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("change", "message"), [case for case in CASES.values() if not values_decide(case[1])],
    ids=[name for name, case in CASES.items() if not values_decide(case[1])],
)  # fmt: skip
def test_fake_kernels_refuse_the_same(change: dict, message: str) -> None:
    """Tracing finds bad shapes and dtypes too, with the same words."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fake = {
            name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for name, value in arguments(change).items()
        }
        with pytest.raises(ERRORS, match=message):
            fgkernels.mamba_chunk_scan_combined(**fake)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: X[:1]}, r"grad_out: expected \(B, L, H, P\) = \(2, 7, 4, 3\).*got \(1, 7, 4, 3\)"),
        ({0: X.double()}, r"grad_out: expected dtype .*float32.*got .*float64"),
        ({1: STATES[:1]}, r"grad_final_states: expected \(B, H, P, N\) = \(2, 4, 3, 5\).*got \(1, 4, 3, 5\)"),
        ({12: torch.zeros(2, 2, 4, 3, 5)}, r"checkpoints: expected .*\(2, 1, 4, 3, 5\).*got \(2, 2, 4, 3, 5\)"),
        ({12: torch.zeros(2, 1, 4, 3, 5).double()}, r"checkpoints: expected .*float32.*got .*float64"),
        ({4: A.double()}, r"A: expected .*float32.*got .*float64"),
    ],
    ids=["grad shape", "grad dtype", "states' grad", "checkpoints", "checkpoints' dtype", "A dtype"],
)
def test_backward_operator_checks(operators, change: dict, message: str) -> None:
    values = [X, STATES, X, DT, A, B, B, D, X, D, STATES, SEQ, torch.zeros(2, 1, 4, 3, 5), True, 0.0, 1.0]
    for place, value in change.items():
        values[place] = value
    with pytest.raises(RuntimeError, match=message):
        _library.op("mamba_chunk_scan_backward")(*(to_default_device(value) for value in values))
