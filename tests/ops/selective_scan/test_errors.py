# SPDX-License-Identifier: Apache-2.0
"""Bad input: the message names the argument, the expected shape and what came, whoever serves."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fgkernels
from fgkernels.ops import _library

from ..common import reads_values, to_default_device
from .cases import TENSORS

ERRORS = (ValueError, TypeError, RuntimeError)

# B = 2, D = 4, L = 5, N = 3, G = 2
GOOD = {
    "u": torch.zeros(2, 4, 5), "delta": torch.zeros(2, 4, 5), "A": torch.zeros(4, 3), "B": torch.zeros(2, 2, 3, 5),
    "C": torch.zeros(2, 2, 3, 5), "D": torch.zeros(4), "z": torch.zeros(2, 4, 5), "delta_bias": torch.zeros(4),
    "initial_state": torch.zeros(2, 4, 3),
}  # fmt: skip

#: argument -> (bad value, what the message must say)
SCAN = {
    "u rank": ("u", torch.zeros(4, 5), r"u: expected \(B, D, L\), got \(4, 5\)"),
    "u rank 4": ("u", torch.zeros(1, 2, 4, 5), r"u: expected \(B, D, L\), got \(1, 2, 4, 5\)"),
    "u scalar": ("u", torch.zeros(()), r"u: expected \(B, D, L\), got \(\)"),
    "delta length": ("delta", torch.zeros(2, 4, 6), r"delta: expected \(B, D, L\) = \(2, 4, 5\).*got \(2, 4, 6\)"),
    "delta rank": ("delta", torch.zeros(4, 5), r"delta: expected \(B, D, L\) = \(2, 4, 5\).*got \(4, 5\)"),
    "A rank": ("A", torch.zeros(4), r"A: expected \(D, N\).*got \(4,\)"),
    "A channels": ("A", torch.zeros(5, 3), r"A: expected \(D, N\).*4.*got \(5, 3\)"),
    "B rank": ("B", torch.zeros(2, 1, 2, 3, 5), r"B: expected \(B, N, L\), \(B, G, N, L\) or .*\(D, N\), got \(2, 1"),
    "B vector": ("B", torch.zeros(4), r"B: expected \(B, N, L\), \(B, G, N, L\) or .*\(D, N\), got \(4,\)"),
    "B states": ("B", torch.zeros(2, 2, 4, 5), r"B: expected \(B, G, N, L\) = \(2, 2, 3, 5\).*got \(2, 2, 4, 5\)"),
    "B groups": ("B", torch.zeros(2, 3, 3, 5), r"B: expected .*G.* divi.* D = 4, got .*3"),
    "B no groups": ("B", torch.zeros(2, 0, 3, 5), r"B: expected .*G.* divi.* D = 4, got .*0"),
    "B shared length": ("B", torch.zeros(2, 3, 4), r"B: expected \(B, N, L\) = \(2, 3, 5\).*got \(2, 3, 4\)"),
    "B constant": ("B", torch.zeros(3, 3), r"B: expected \(D, N\) = \(4, 3\).*got \(3, 3\)"),
    "C states": ("C", torch.zeros(2, 2, 4, 5), r"C: expected \(B, G, N, L\) = \(2, 2, 3, 5\).*got \(2, 2, 4, 5\)"),
    "C constant": ("C", torch.zeros(4, 2), r"C: expected \(D, N\) = \(4, 3\).*got \(4, 2\)"),
    "C other groups": ("C", torch.zeros(2, 4, 3, 5), r"C: expected .*groups .*B, .*4"),
    "C shared": ("C", torch.zeros(2, 3, 5), r"C: expected .*groups .*B"),
    "D shape": ("D", torch.zeros(5), r"D: expected \(D,\) = \(4,\).*got \(5,\)"),
    "D rank": ("D", torch.zeros(4, 1), r"D: expected \(D,\) = \(4,\).*got \(4, 1\)"),
    "z shape": ("z", torch.zeros(2, 4, 4), r"z: expected \(B, D, L\) = \(2, 4, 5\).*got \(2, 4, 4\)"),
    "bias shape": ("delta_bias", torch.zeros(3), r"delta_bias: expected \(D,\) = \(4,\).*got \(3,\)"),
    "state shape": (
        "initial_state", torch.zeros(2, 4, 2), r"initial_state: expected \(B, D, N\) = \(2, 4, 3\).*got \(2, 4, 2\)",
    ),
    "u dtype": ("u", torch.zeros(2, 4, 5).long(), r"u: expected .*float32, float64, bfloat16 or float16, got .*int64"),
    "u complex": ("u", torch.zeros(2, 4, 5).cfloat(), r"u: expected .*float32.*got .*complex64"),
    "delta dtype": ("delta", torch.zeros(2, 4, 5).int(), r"delta: expected .*float32.*got .*int32"),
    "B dtype": ("B", torch.zeros(2, 2, 3, 5).cfloat(), r"B: expected .*float32.*got .*complex64"),
    "D dtype": ("D", torch.zeros(4).int(), r"D: expected .*float32.*got .*int32"),
    "state dtype": ("initial_state", torch.zeros(2, 4, 3).bool(), r"initial_state: expected .*float32.*got .*bool"),
    "A int": ("A", torch.zeros(4, 3).long(), r"A: expected .*float32.*got .*int64"),
    "not a tensor": ("u", [[1.0]], r"u: expected a Tensor, got list"),
    "None": ("B", None, r"B: expected a Tensor, got NoneType"),
    "a number": ("D", 1.0, r"D: expected a Tensor, got float"),
    "meta delta": ("delta", torch.zeros(2, 4, 5, device="meta"), r"delta: expected device .* like u, got meta"),
    "meta A": ("A", torch.zeros(4, 3, device="meta"), r"A: expected device .* like u, got meta"),
    "meta z": ("z", torch.zeros(2, 4, 5, device="meta"), r"z: expected device .* like u, got meta"),
}  # fmt: skip


def run(bad: dict[str, Any]) -> None:
    given = {name: to_default_device(value) for name, value in (GOOD | bad).items()}
    *tensors, state = (given[name] for name in TENSORS)
    fgkernels.selective_scan(*tensors, True, initial_state=state)


@pytest.mark.parametrize("what", SCAN)
def test_scan(served, what: str) -> None:
    name, value, message = SCAN[what]
    with pytest.raises(ERRORS, match=message):
        run({name: value})


def test_good_input_is_served(served) -> None:
    run({})


def test_complex_A_is_refused(served) -> None:
    """mamba_ssm's own reference knows it; here it is an error that says so."""
    with pytest.raises(ValueError, match=r"A: expected float32.*complex diagonal isn't supported, got torch.complex64"):
        run({"A": torch.zeros(4, 3).cfloat()})


@pytest.mark.compiled
@pytest.mark.parametrize("what", [key for key, (_, value, _) in SCAN.items() if isinstance(value, Tensor)])
def test_operators_without_the_public_function(operators, what: str) -> None:
    """Callers of torch.ops get the same checks, and the fake kernel has them too."""
    name, value, message = SCAN[what]
    if "meta" in what:
        return  # its kernel is the fake one's
    given = {key: to_default_device(v) for key, v in (GOOD | {name: value}).items()}
    with pytest.raises(ERRORS) as error:
        _library.op("selective_scan_fwd")(*(given[key] for key in TENSORS), True)
    assert str(error.value).startswith(f"{name}: expected") or f"{name}: expected" in str(error.value)
    with FakeTensorMode() as mode, pytest.raises(ERRORS, match=rf"{name}: expected"):
        fake = [mode.from_tensor((GOOD | {name: value})[key]) for key in TENSORS]
        _library.op("selective_scan_fwd")(*fake, True)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("delta", torch.float64), ("B", torch.bfloat16), ("z", torch.float16), ("A", torch.bfloat16), ("D", torch.float64),
     ("initial_state", torch.float16)],
    ids=str,
)  # fmt: skip
def test_operators_take_one_dtype(operators, name: str, dtype: torch.dtype) -> None:
    """What the public function converts."""
    given = {key: to_default_device(value) for key, value in GOOD.items()}
    given[name] = given[name].to(dtype)
    with pytest.raises(ERRORS, match=rf"{name}: expected .*dtype .*float32.*got .*{str(dtype).removeprefix('torch.')}"):
        _library.op("selective_scan")(*(given[key] for key in TENSORS), True)


# --- selective_state_update -------------------------------------------------------------------------------------------

# B = 2, D = 4, N = 3, G = 2
STEP = {
    "state": torch.zeros(2, 4, 3), "x": torch.zeros(2, 4), "dt": torch.zeros(2, 4), "A": torch.zeros(4, 3),
    "B": torch.zeros(2, 2, 3), "C": torch.zeros(2, 2, 3), "D": torch.zeros(4), "z": torch.zeros(2, 4),
    "dt_bias": torch.zeros(4), "dt_softplus": True, "state_batch_indices": None,
}  # fmt: skip
# B = 2, H = 4, P = 2, N = 3
HEADS = STEP | {
    "state": torch.zeros(2, 4, 2, 3), "x": torch.zeros(2, 4, 2), "dt": torch.zeros(2, 4, 2), "A": torch.zeros(4, 2, 3),
    "D": torch.zeros(4, 2), "z": torch.zeros(2, 4, 2), "dt_bias": torch.zeros(4, 2),
}  # fmt: skip

UPDATE = {
    "state rank": (STEP, "state", torch.zeros(2, 4), r"state: expected \(E, D, N\)"),
    "state channels": (STEP, "state", torch.zeros(2, 5, 3), r"(state|x): expected .*got"),
    "state dtype": (STEP, "state", torch.zeros(2, 4, 3).int(), r"state: expected .*float32.*got .*int32"),
    "x rank": (STEP, "x", torch.zeros(4), r"x: expected \(B, D\)"),
    "x of heads": (HEADS, "x", torch.zeros(2, 4), r"(state|x): expected .*got"),
    "dt shape": (STEP, "dt", torch.zeros(2, 5), r"dt: expected \(B, D\) = \(2, 4\).*got \(2, 5\)"),
    "dt of heads": (HEADS, "dt", torch.zeros(2, 4), r"dt: expected \(B, H, P\) = \(2, 4, 2\).*got \(2, 4\)"),
    "A shape": (STEP, "A", torch.zeros(4, 2), r"A: expected \(D, N\) = \(4, 3\).*got \(4, 2\)"),
    "A of heads": (HEADS, "A", torch.zeros(4, 3), r"A: expected \(H, P, N\) = \(4, 2, 3\).*got \(4, 3\)"),
    "A complex": (STEP, "A", torch.zeros(4, 3).cfloat(), r"A: expected .*complex64"),
    "B rank": (STEP, "B", torch.zeros(3), r"B: expected \(B, N\) or \(B, G, N\), got \(3,\)"),
    "B states": (STEP, "B", torch.zeros(2, 4), r"B: expected \(B, N\) = \(2, 3\).*got \(2, 4\)"),
    "B groups": (STEP, "B", torch.zeros(2, 3, 3), r"B: expected .*G.* divi.* D = 4, got"),
    "B groups of heads": (HEADS, "B", torch.zeros(2, 3, 3), r"B: expected .*G.* divi.* H = 4, got"),
    "C other groups": (STEP, "C", torch.zeros(2, 4, 3), r"C: expected .*groups .*B"),
    "C states": (STEP, "C", torch.zeros(2, 2, 4), r"C: expected \(B, G, N\) = \(2, 2, 3\).*got \(2, 2, 4\)"),
    "D shape": (STEP, "D", torch.zeros(5), r"D: expected \(D,\) = \(4,\).*got \(5,\)"),
    "D of heads": (HEADS, "D", torch.zeros(4), r"D: expected \(H, P\) = \(4, 2\).*got \(4,\)"),
    "z shape": (STEP, "z", torch.zeros(1, 4), r"z: expected \(B, D\) = \(2, 4\).*got \(1, 4\)"),
    "bias": (STEP, "dt_bias", torch.zeros(4, 1), r"dt_bias: expected \(D,\) = \(4,\).*got \(4, 1\)"),
    "entries": (STEP, "state", torch.zeros(3, 4, 3), r"state: expected .*2 .*like x.*got \(3, 4, 3\)"),
    "index shape": (
        STEP, "state_batch_indices", torch.zeros(3).int(), r"state_batch_indices: expected \(B,\) = \(2,\).*got \(3,\)",
    ),
    "index dtype": (
        STEP, "state_batch_indices", torch.zeros(2), r"state_batch_indices: expected .*int32.*got .*float32",
    ),
    "meta z": (STEP, "z", torch.zeros(2, 4, device="meta"), r"z: expected device .* like \w+, got meta"),
    "not a tensor": (STEP, "state", None, r"state: expected a Tensor, got NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("what", UPDATE)
def test_update(served, what: str) -> None:
    good, name, value, message = UPDATE[what]
    with pytest.raises(ERRORS, match=message):
        fgkernels.selective_state_update(**{key: to_default_device(v) for key, v in (good | {name: value}).items()})


@pytest.mark.parametrize(
    ("indices", "message"),
    [([0, 2], r"state_batch_indices: expected .*\[0, 2\).*got 2"), ([-1, 1], r"got -1"),
     ([1, 1], r"(once|distinct).*got 1 "), ([0, 2**32], r"state_batch_indices: expected .*\[0, 2\)")],
    ids=str,
)  # fmt: skip
def test_rows_of_a_cache(served, indices: list[int], message: str) -> None:
    """Where the values are read; the state stays as it was."""
    if not reads_values(served):
        return
    given = STEP | {"state": torch.ones(2, 4, 3), "state_batch_indices": torch.tensor(indices)}
    with pytest.raises(ERRORS, match=message):
        fgkernels.selective_state_update(**given)
    assert (given["state"] == 1).all()


def test_a_state_that_shares_memory_is_refused(served) -> None:
    given = {key: to_default_device(value) for key, value in STEP.items()}
    given["state"] = given["state"][:1].expand(2, 4, 3)
    with pytest.raises(ERRORS, match="state: written in place, expected elements that share no memory, got stride 0"):
        fgkernels.selective_state_update(**given)


def test_messages_have_no_c_plus_plus_in_them(served) -> None:
    with pytest.raises(ERRORS) as error:
        run({"delta": torch.zeros(2, 4, 6)})
    first = str(error.value).splitlines()[0]
    assert re.fullmatch(r"delta: expected \(B, D, L\) = \(2, 4, 5\) like u, got \(2, 4, 6\)", first), first
