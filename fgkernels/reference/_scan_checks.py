# SPDX-License-Identifier: Apache-2.0
"""Dtypes and argument checks of the selective scans, shared by the reference, the fake kernels and Triton.

`check_*` take ``expect(condition, error, message)`` as in `_checks`; `promote_*` are what the public functions do to
their arguments before an operator sees them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import FLOAT_DTYPES, FLOAT_NAMES, Expect, check_tensor, shape

#: The state at the start of every this many steps is kept for a backward.
CHUNK = 64


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of parameters, states and sums that belong to sequences of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# --- promotion --------------------------------------------------------------------------------------------------------


def check_float(name: str, value: Tensor) -> None:
    check_tensor(name, value)
    if value.dtype not in FLOAT_DTYPES:
        hint = ", real: a complex diagonal isn't supported" if name == "A" and value.is_complex() else ""
        error = ValueError if hint else TypeError
        raise error(f"{name}: expected {FLOAT_NAMES}{hint}, got {value.dtype}")


def common_dtype(tensors: Sequence[Tensor | None]) -> torch.dtype:
    """The dtype in which a call with these sequences runs."""
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    first = dtypes.pop()
    for dtype in dtypes:
        first = torch.promote_types(first, dtype)
    return first


def to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def promote_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None = None,
    first: str = "u",
) -> tuple[Tensor | None, ...]:
    """The same arguments: sequences in their common dtype, parameters and states in its accumulation type.

    A sequence is u, delta, z and a B or C that is not a constant (., N). `first` is the name of u in messages.
    """
    named = (
        (first, u), ("delta", delta), ("A", A), ("B", B), ("C", C), ("D", D), ("z", z), ("delta_bias", delta_bias),
        ("initial_state", initial_state),
    )  # fmt: skip
    for i, (name, value) in enumerate(named):
        if value is not None or i < 5:
            check_float(name, value)
    B_constant, C_constant = B.dim() <= 2, C.dim() <= 2
    dtype = common_dtype((u, delta, z, None if B_constant else B, None if C_constant else C))
    wide = accumulation_dtype(dtype)
    return (
        to(u, dtype), to(delta, dtype), to(A, wide), to(B, wide if B_constant else dtype),
        to(C, wide if C_constant else dtype), to(D, wide), to(z, dtype), to(delta_bias, wide), to(initial_state, wide),
    )  # fmt: skip


def promote_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state_batch_indices: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Likewise for one step; the state stays as it is, and integer indices become int32."""
    named = (
        ("state", state), ("x", x), ("dt", dt), ("A", A), ("B", B), ("C", C), ("D", D), ("z", z), ("dt_bias", dt_bias),
    )  # fmt: skip
    for i, (name, value) in enumerate(named):
        if value is not None or i < 6:
            check_float(name, value)
    dtype = common_dtype((x, dt, z, B, C))
    wide = accumulation_dtype(dtype)
    if state_batch_indices is not None:
        check_tensor("state_batch_indices", state_batch_indices)
        if state_batch_indices.dtype == torch.int64:
            state_batch_indices = state_batch_indices.clamp(-1, 2**31 - 1).to(torch.int32)
    return (
        state, to(x, dtype), to(dt, dtype), to(A, wide), to(B, dtype), to(C, dtype), to(D, wide), to(z, dtype),
        to(dt_bias, wide), state_batch_indices,
    )  # fmt: skip


def check_no_gradient(*tensors: Tensor | None) -> None:
    """A step in place has no gradient; dropping one silently would be worse than an error."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise RuntimeError(
            "selective_state_update: it has no gradient, and an input requires one: call it under torch.no_grad()"
        )


# --- one tensor -------------------------------------------------------------------------------------------------------


def check_like(
    expect: Expect,
    name: str,
    value: Tensor,
    letters: str,
    sizes: Sequence[int],
    like: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """`delta: expected (B, D, L) = (2, 16, 8) like u, got (2, 16, 9)`, and so for dtype and device."""

    def message() -> str:
        expected = "(" + ", ".join(str(size) for size in sizes) + (",)" if len(sizes) == 1 else ")")
        return f"{name}: expected {letters} = {expected} like {like}, got {shape(value)}"

    expect(value.dim() == len(sizes), ValueError, message)
    for axis, size in enumerate(sizes):
        expect(value.shape[axis] == size, ValueError, message)
    check_dtype(expect, name, value, dtype, like)
    expect(
        value.device == device, ValueError, lambda: f"{name}: expected device {device} like {like}, got {value.device}"
    )


def check_rank(expect: Expect, name: str, value: Tensor, rank: int, letters: str) -> None:
    expect(value.dim() == rank, ValueError, lambda: f"{name}: expected {letters}, got {shape(value)}")


def check_writable(expect: Expect, name: str, value: Tensor) -> None:
    """A tensor that is written in place has a place for each of its elements."""
    for axis, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
        expect(
            size <= 1 or stride != 0,
            ValueError,
            lambda axis=axis: (
                f"{name}: written in place, expected elements that share no memory, got stride 0 in dimension {axis} "
                f"of {shape(value)}"
            ),
        )


def check_dtype(expect: Expect, name: str, value: Tensor, dtype: torch.dtype, like: str) -> None:
    expect(
        value.dtype == dtype,
        TypeError,
        lambda: f"{name}: expected dtype {dtype}, which goes with {like}, got {value.dtype}",
    )


def check_sequence(expect: Expect, name: str, value: Tensor, letters: Sequence[str]) -> None:
    """The tensor that the others are compared with: rank and dtype; `letters` are the shapes it may have."""
    check_tensor(name, value)
    expect(
        value.dim() in [text.count(",") + 1 for text in letters],
        ValueError,
        lambda: f"{name}: expected {' or '.join(letters)}, got {shape(value)}",
    )
    expect(value.dtype in FLOAT_DTYPES, TypeError, lambda: f"{name}: expected {FLOAT_NAMES}, got {value.dtype}")


# --- selective_scan ---------------------------------------------------------------------------------------------------


def check_selective_scan(
    expect: Expect,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    check_sequence(expect, "u", u, ["(B, D, L)"])
    for name, value in (("delta", delta), ("A", A), ("B", B), ("C", C)):
        check_tensor(name, value)
    batch, channels, length = u.shape
    wide, device = accumulation_dtype(u.dtype), u.device
    check_like(expect, "delta", delta, "(B, D, L)", u.shape, "u", u.dtype, device)
    check_rank(expect, "A", A, 2, "(D, N)")
    states = A.shape[1]
    check_like(expect, "A", A, "(D, N)", (channels, states), "u", wide, device)
    for name, value in (("B", B), ("C", C)):
        check_projection(expect, name, value, u, states)
    check_same_groups(expect, [value.shape[1] if value.dim() == 4 else 1 for value in (B, C) if value.dim() != 2])
    check_channels(expect, (("D", D), ("delta_bias", delta_bias)), channels, wide, device)
    if z is not None:
        check_like(expect, "z", z, "(B, D, L)", u.shape, "u", u.dtype, device)
    if initial_state is not None:
        sizes = (batch, channels, states)
        check_like(expect, "initial_state", initial_state, "(B, D, N)", sizes, "u and A", wide, device)


def check_projection(expect: Expect, name: str, value: Tensor, u: Tensor, states: int) -> None:
    """B or C: (B, N, L) or (B, G, N, L) in u's dtype, or a constant (D, N) in the accumulation type."""
    batch, channels, length = u.shape
    wide = accumulation_dtype(u.dtype)
    if value.dim() == 2:
        check_like(expect, name, value, "(D, N)", (channels, states), "A", wide, u.device)
    elif value.dim() == 3:
        check_like(expect, name, value, "(B, N, L)", (batch, states, length), "u and A", u.dtype, u.device)
    else:
        check_rank(expect, name, value, 4, "(B, N, L), (B, G, N, L) or (D, N)")
        groups = value.shape[1]
        sizes = (batch, groups, states, length)
        check_like(expect, name, value, "(B, G, N, L)", sizes, "u and A", u.dtype, u.device)
        check_groups(expect, name, groups, "D", channels)


def check_groups(expect: Expect, name: str, groups: int, letter: str, channels: int) -> None:
    def message() -> str:
        return f"{name}: expected a number of groups G that divides {letter} = {channels}, got G = {groups}"

    expect(groups > 0, ValueError, message)
    expect(channels % groups == 0, ValueError, message)


def check_same_groups(expect: Expect, groups: Sequence[int]) -> None:
    """Of B and C, as far as they have any."""
    if len(groups) == 2:
        expect(
            groups[1] == groups[0],
            ValueError,
            lambda: f"C: expected G = {groups[0]} groups like B, got G = {groups[1]}",
        )


def check_channels(
    expect: Expect,
    parameters: Sequence[tuple[str, Tensor | None]],
    channels: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    for name, value in parameters:
        if value is not None:
            check_like(expect, name, value, "(D,)", (channels,), "u", dtype, device)


# --- selective_state_update -------------------------------------------------------------------------------------------


def check_state_update(
    expect: Expect,
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state_batch_indices: Tensor | None,
) -> None:
    check_sequence(expect, "state", state, ["(E, D, N)", "(E, H, P, N)"])
    check_writable(expect, "state", state)
    for name, value in (("x", x), ("dt", dt), ("A", A), ("B", B), ("C", C)):
        check_tensor(name, value)
    heads = state.dim() == 4
    rows = "(B, H, P)" if heads else "(B, D)"
    channels = state.shape[1:-1]
    states = state.shape[-1]
    check_sequence(expect, "x", x, [rows])
    batch, dtype, device = x.shape[0], x.dtype, state.device
    wide = accumulation_dtype(dtype)
    check_like(expect, "x", x, rows, (batch, *channels), "state", dtype, device)
    check_like(expect, "dt", dt, rows, x.shape, "x", dtype, device)
    letters = "(H, P, N)" if heads else "(D, N)"
    check_like(expect, "A", A, letters, (*channels, states), "state", wide, device)
    for name, value in (("B", B), ("C", C)):
        if value.dim() == 2:
            check_like(expect, name, value, "(B, N)", (batch, states), "x and state", dtype, device)
            continue
        check_rank(expect, name, value, 3, "(B, N) or (B, G, N)")
        groups = value.shape[1]
        check_like(expect, name, value, "(B, G, N)", (batch, groups, states), "x and state", dtype, device)
        check_groups(expect, name, groups, "H" if heads else "D", channels[0])
    check_same_groups(expect, [value.shape[1] if value.dim() == 3 else 1 for value in (B, C)])
    letters = "(H, P)" if heads else "(D,)"
    for name, value in (("D", D), ("dt_bias", dt_bias)):
        if value is not None:
            check_like(expect, name, value, letters, channels, "state", wide, device)
    if z is not None:
        check_like(expect, "z", z, rows, x.shape, "x", dtype, device)
    if state_batch_indices is None:
        expect(
            state.shape[0] == batch,
            ValueError,
            lambda: f"state: expected E = {batch} entries like x without state_batch_indices, got {shape(state)}",
        )
    else:
        check_tensor("state_batch_indices", state_batch_indices)
        check_like(expect, "state_batch_indices", state_batch_indices, "(B,)", (batch,), "x", torch.int32, device)


def check_entries(state_batch_indices: Tensor, entries: int) -> None:
    """Each in [0, E) and none twice. Reads the values, so not while tracing."""
    seen = set()
    for i, entry in enumerate(state_batch_indices.tolist()):
        if not 0 <= entry < entries:
            raise ValueError(f"state_batch_indices: expected entries in [0, E) = [0, {entries}), got {entry} at {i}")
        if entry in seen:
            raise ValueError(f"state_batch_indices: expected distinct entries, got {entry} twice")
        seen.add(entry)


# --- selective_scan_2d ------------------------------------------------------------------------------------------------


def check_table(expect: Expect, table: Tensor, length: int | None, device: torch.device) -> None:
    check_tensor("table", table)
    check_rank(expect, "table", table, 2, "(K, L)")
    expect(table.shape[0] > 0, ValueError, lambda: f"table: expected at least one direction, got {shape(table)}")
    sizes = (table.shape[0], length if length is not None else table.shape[1])
    check_like(expect, "table", table, "(K, L)", sizes, "x", table.dtype, device)
    expect(table.dtype == torch.int32, TypeError, lambda: f"table: expected dtype torch.int32, got {table.dtype}")


def check_permutations(table: Tensor) -> None:
    """Each row of the table holds every position once. Reads the values."""
    count, length = table.shape
    wrong = (table.sort(-1).values != torch.arange(length, device=table.device)).any(-1)
    for k in range(count):
        if wrong[k]:
            raise ValueError(
                f"table: expected a permutation of [0, L) = [0, {length}) in each row, got none in row {k}"
            )


def values_can_be_read(tensor: Tensor) -> bool:
    """Not while a program is traced or transformed, nor of tensors without any."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or tensor.is_meta
    )


def check_size(size: object) -> tuple[int, int]:
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"size: expected (H, W), got {size!r}")
    return tuple(size)


def check_cross_scan(expect: Expect, x: Tensor, table: Tensor) -> None:
    check_sequence(expect, "x", x, ["(B, C, L)"])
    check_table(expect, table, x.shape[2], x.device)


def check_cross_merge(expect: Expect, y: Tensor, table: Tensor) -> None:
    check_sequence(expect, "y", y, ["(B, K, C, L)"])
    check_table(expect, table, y.shape[3], y.device)
    sizes = (y.shape[0], table.shape[0], y.shape[2], y.shape[3])
    check_like(expect, "y", y, "(B, K, C, L)", sizes, "table", y.dtype, y.device)


def check_selective_scan_2d(
    expect: Expect,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    table: Tensor,
    ordered: bool,
) -> None:
    letters = ["(B, K, E, L)"] if ordered else ["(B, E, L)", "(B, K, E, L)"]
    check_sequence(expect, "x", x, letters)
    for name, value in (("delta", delta), ("A", A), ("B", B), ("C", C)):
        check_tensor(name, value)
    batch, (channels, length) = x.shape[0], x.shape[-2:]
    dtype, wide, device = x.dtype, accumulation_dtype(x.dtype), x.device
    check_table(expect, table, length, device)
    directions = table.shape[0]
    if x.dim() == 4:
        sizes = (batch, directions, channels, length)
        check_like(expect, "x", x, "(B, K, E, L)", sizes, "table", dtype, device)
    sizes = (batch, directions, channels, length)
    check_like(expect, "delta", delta, "(B, K, E, L)", sizes, "x and table", dtype, device)
    expect(A.dim() in (2, 3), ValueError, lambda: f"A: expected (K, E, N), or (E, N) if shared, got {shape(A)}")
    states, shared = A.shape[-1], A.dim() == 2
    sizes = (channels,) if shared else (directions, channels)
    check_like(expect, "A", A, "(E, N)" if shared else "(K, E, N)", (*sizes, states), "x and table", wide, device)
    for name, value in (("B", B), ("C", C)):
        full = (batch, directions, states, length)
        check_like(expect, name, value, "(B, K, N, L)", full, "delta and A", dtype, device)
    for name, value in (("D", D), ("delta_bias", delta_bias)):
        if value is not None:
            check_like(expect, name, value, "(E,)" if shared else "(K, E)", sizes, "A", wide, device)
    if z is not None:
        check_like(expect, "z", z, "(B, E, L)", (batch, channels, length), "x", dtype, device)


def scan_chunks(length: int) -> int:
    return (length + CHUNK - 1) // CHUNK
