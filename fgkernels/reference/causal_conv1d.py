# SPDX-License-Identifier: Apache-2.0
"""Causal depthwise convolution in plain PyTorch, the short convolution of Mamba (Gu and Dao 2023, figure 3).

    out[b, c, t] = act(bias[c] + sum_j weight[c, j] x[b, c, t - (W - 1) + j]),   j = 0 .. W - 1

Positions before the first come from the initial state, or are zero; a tap on a position of another sequence counts as
zero. Sums have the accumulation type: float64 for float64 sequences, else float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks, _sequences
from . import _scan_checks as checks
from ._checks import Expect, shape

__all__ = ["causal_conv1d", "causal_conv1d_update"]

MIN_WIDTH, MAX_WIDTH = 2, 4


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Same contract as :func:`fgkernels.causal_conv1d`, in plain PyTorch."""
    silu = check_activation(activation)
    weight, bias, seq_idx, initial_state = operands(x, weight, bias, seq_idx, initial_state)
    packed = Packed(x, weight, seq_idx, initial_state, cu_seqlens)
    check_forward(_checks.raise_error, packed.x, weight, bias, packed.seq_idx, packed.initial_state)
    out = packed.unpack(forward_core(packed.x, weight, bias, packed.seq_idx, packed.initial_state, silu))
    return (out, final_state(x, weight, seq_idx, initial_state, cu_seqlens)) if return_final_state else out


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Same contract as :func:`fgkernels.causal_conv1d_update`, in plain PyTorch; conv_state is changed in place."""
    silu = check_activation(activation)
    arguments = update_operands(x, conv_state, weight, bias, cache_seqlens, conv_state_indices)
    check_update(_checks.raise_error, *arguments)
    check_no_gradient(*arguments)
    check_values(conv_state.shape[0], *arguments[4:])
    return update_core(*arguments, silu).reshape(x.shape)


# --- without checks: what exported programs are decomposed into -------------------------------------------------------


def forward_core(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, initial_state: Tensor | None, silu: bool
) -> Tensor:
    """The op `causal_conv1d`; weight (D, W), bias (D,) and initial_state (B, D, W - 1) in the accumulation type."""
    length, width = x.shape[2], weight.shape[1]
    padded = with_past(x.to(weight.dtype), width, initial_state)
    owner = None if seq_idx is None else _past_owner(seq_idx, width)
    total = None
    for j in range(width):
        tap = padded.narrow(2, j, length)
        if owner is not None:
            # where, not a product: a NaN of another sequence stays there.
            tap = torch.where((owner.narrow(1, j, length) == seq_idx).unsqueeze(1), tap, 0)
        product = weight[:, j].unsqueeze(-1) * tap
        total = product if total is None else total + product
    if bias is not None:
        total = total + bias.unsqueeze(-1)
    return (F.silu(total) if silu else total).to(x.dtype)


def update_core(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
    silu: bool,
) -> Tensor:
    """The op `causal_conv1d_update`: x (B, D, S); conv_state (E, D, state_len) is changed in place."""
    steps, width, state_len = x.shape[2], weight.shape[1], conv_state.shape[2]
    rows = None if conv_state_indices is None else conv_state_indices.to(torch.int64)
    state = conv_state if rows is None else conv_state.index_select(0, rows)
    if cache_seqlens is None:
        past = state.narrow(2, state_len - (width - 1), width - 1)
        new_state = torch.cat([state, x], 2).narrow(2, steps, state_len)
    else:
        slots = torch.arange(state_len, device=x.device)
        start = cache_seqlens.to(torch.int64).unsqueeze(1)
        before = torch.arange(1 - width, 0, device=x.device)
        past = state.gather(2, ((start + before) % state_len).unsqueeze(1).expand(-1, x.shape[1], -1))
        # The last step that writes a slot: steps start, start + 1, ... go round the buffer.
        last = start + steps - 1
        step = steps - 1 - (last - slots) % state_len
        source = torch.where(step >= 0, state_len + step, slots).unsqueeze(1)
        new_state = torch.cat([state, x], 2).gather(2, source.expand(-1, x.shape[1], -1))
    out = forward_core(x, weight, bias, None, past.to(weight.dtype), silu)
    if rows is None:
        conv_state.copy_(new_state)
    else:
        conv_state.index_copy_(0, rows, new_state)
    return out


# --- shared with the compiled operators' public functions -------------------------------------------------------------


def operands(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """weight, bias, seq_idx and initial_state as the operators take them: in x's accumulation type, and int32."""
    checks.check_float("x", x)
    checks.check_float("weight", weight)
    for name, value in (("bias", bias), ("initial_state", initial_state)):
        if value is not None:
            checks.check_float(name, value)
    wide = checks.accumulation_dtype(x.dtype)
    return (
        checks.to(weight, wide), checks.to(bias, wide), _sequences.as_int32("seq_idx", seq_idx),
        checks.to(initial_state, wide),
    )  # fmt: skip


def update_operands(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The arguments as the operator takes them; one step (B, D) becomes (B, D, 1)."""
    _checks.check_tensor("x", x)
    _checks.check_tensor("conv_state", conv_state)
    if x.dim() not in (2, 3):
        raise ValueError(f"x: expected (B, D) or (B, D, S), got {shape(x)}")
    weight, bias, *_ = operands(x, weight, bias, None, None)
    return (
        x.unsqueeze(-1) if x.dim() == 2 else x, conv_state, weight, bias,
        _sequences.as_int32("cache_seqlens", cache_seqlens),
        _sequences.as_int32("conv_state_indices", conv_state_indices),
    )  # fmt: skip


def with_past(x: Tensor, width: int, initial_state: Tensor | None) -> Tensor:
    """(B, D, W - 1 + L): x after its initial state or zeros."""
    past = x.new_zeros((*x.shape[:2], width - 1)) if initial_state is None else initial_state.to(x.dtype)
    return torch.cat([past, x], 2)


def _past_owner(seq_idx: Tensor, width: int) -> Tensor:
    """(B, W - 1 + L): the initial state belongs to the sequence of position 0."""
    first = seq_idx[:, :1] if seq_idx.shape[1] else seq_idx.new_zeros((seq_idx.shape[0], 1))
    return torch.cat([first.expand(-1, width - 1), seq_idx], 1)


class Packed:
    """The batch on which an operator runs, and the way back to the caller's.

    Packed sequences become numbered ones; where each has a state of its own, that state is laid before it.
    """

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        seq_idx: Tensor | None,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> None:
        self.x, self.seq_idx, self.initial_state = x, seq_idx, initial_state
        self._places: Tensor | None = None
        if cu_seqlens is None:
            return
        if seq_idx is not None:
            raise ValueError("seq_idx: expected None with cu_seqlens, which numbers the sequences, got both")
        checks.check_sequence(_checks.raise_error, "x", x, ["(B, D, L)"])
        _sequences.check_cu_seqlens(cu_seqlens, "x", x, 2)
        self.seq_idx = _sequences.sequence_numbers(cu_seqlens, x.shape[2])
        if initial_state is not None:
            self._lay_states(weight, initial_state, cu_seqlens.to(torch.int64))

    def _lay_states(self, weight: Tensor, states: Tensor, cu_seqlens: Tensor) -> None:
        _, channels, length = self.x.shape
        checks.check_rank(_checks.raise_error, "weight", weight, 2, "(D, W)")
        count, past = cu_seqlens.shape[0] - 1, weight.shape[1] - 1
        checks.check_like(
            _checks.raise_error, "initial_state", states, "(S, D, W - 1)", (count, channels, past),
            "cu_seqlens, x and weight", weight.dtype, self.x.device,
        )  # fmt: skip
        numbers = torch.arange(count + 1, device=self.x.device)
        longer = cu_seqlens + numbers * past  # sequence s is now its state and then its positions
        owner = _sequences.sequence_numbers(longer, length + count * past)
        number = owner[0].to(torch.int64)
        offset = torch.arange(owner.shape[1], device=self.x.device) - longer[number]
        source = torch.where(offset < past, length + number * past + offset, cu_seqlens[number] + offset - past)
        rows = states.to(self.x.dtype).permute(1, 0, 2).reshape(1, channels, count * past)
        self._places = torch.arange(length, device=self.x.device) + (self.seq_idx[0] + 1) * past
        self.x, self.seq_idx = torch.cat([self.x, rows], 2).index_select(2, source), owner
        self.initial_state = None

    def unpack(self, out: Tensor) -> Tensor:
        return out if self._places is None else out.index_select(2, self._places)


def final_state(
    x: Tensor, weight: Tensor, seq_idx: Tensor | None, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    """The last W - 1 positions of each sequence, of the last one where seq_idx numbers several: (B, D, W - 1).

    Packed sequences: (S, D, W - 1). Positions before a sequence come from its initial state, or are zero.
    """
    width, past = weight.shape[1], weight.shape[1] - 1
    dtype = x.dtype if initial_state is None else weight.dtype
    if cu_seqlens is None:
        state = with_past(x.to(dtype), width, initial_state).narrow(2, x.shape[2], past)
        if seq_idx is not None and seq_idx.shape[1]:
            own = _past_owner(seq_idx, width).narrow(1, x.shape[2], past) == seq_idx[:, -1:]
            state = torch.where(own.unsqueeze(1), state, 0)
        return state.to(x.dtype)
    ends, starts = cu_seqlens[1:].to(torch.int64), cu_seqlens[:-1].to(torch.int64)
    places = ends.unsqueeze(1) + torch.arange(-past, 0, device=x.device)  # (S, W - 1)
    before = places - starts.unsqueeze(1)  # negative: from the initial state
    longer = F.pad(x[0].to(dtype), (past, 0))  # never empty, so that an index always exists
    taken = longer.index_select(1, (places + past).clamp(min=0).flatten()).unflatten(1, places.shape).permute(1, 0, 2)
    if initial_state is None:
        older = torch.zeros_like(taken)
    else:
        index = (before + past).clamp(0, past - 1).unsqueeze(1).expand(taken.shape)
        older = initial_state.to(dtype).gather(2, index)
    return torch.where((before >= 0).unsqueeze(1), taken, older).to(x.dtype)


def check_activation(activation: str | None) -> bool:
    """True for SiLU, False for none; ValueError otherwise."""
    if activation is None:
        return False
    if activation in ("silu", "swish"):
        return True
    raise ValueError(f'activation: expected None, "silu" or "swish", got {activation!r}')


def check_no_gradient(*tensors: Tensor | None) -> None:
    """A step in place has no gradient; dropping one silently would be worse than an error."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise RuntimeError(
            "causal_conv1d_update: it has no gradient, and an input requires one: call it under torch.no_grad()"
        )


def check_values(entries: int, cache_seqlens: Tensor | None, conv_state_indices: Tensor | None) -> None:
    """Lengths are not negative, rows of the state in range and all different, where they can be read."""
    if cache_seqlens is not None and checks.values_can_be_read(cache_seqlens):
        for i, length in enumerate(cache_seqlens.tolist()):
            if length < 0:
                raise ValueError(f"cache_seqlens: expected values >= 0, got {length} at position {i}")
    if conv_state_indices is not None and checks.values_can_be_read(conv_state_indices):
        seen = set()
        for i, entry in enumerate(conv_state_indices.tolist()):
            if not 0 <= entry < entries:
                raise ValueError(f"conv_state_indices: expected values in [0, {entries}), got {entry} at position {i}")
            if entry in seen:
                raise ValueError(f"conv_state_indices: expected each value once, got {entry} again at position {i}")
            seen.add(entry)


def _check_parameters(expect: Expect, x: Tensor, letters: str, weight: Tensor, bias: Tensor | None) -> None:
    """x and what every call has, in the dtypes that the operators take."""
    checks.check_sequence(expect, "x", x, [letters])
    _checks.check_tensor("weight", weight)
    checks.check_rank(expect, "weight", weight, 2, "(D, W)")
    width, wide = weight.shape[1], checks.accumulation_dtype(x.dtype)
    checks.check_like(expect, "weight", weight, "(D, W)", (x.shape[1], width), "x", wide, x.device)
    for supported in (width >= MIN_WIDTH, width <= MAX_WIDTH):
        expect(
            supported,
            ValueError,
            lambda: f"weight: expected (D, W) with W from {MIN_WIDTH} to {MAX_WIDTH}, got {shape(weight)}",
        )
    if bias is not None:
        _checks.check_tensor("bias", bias)
        checks.check_like(expect, "bias", bias, "(D,)", (x.shape[1],), "x", wide, x.device)


def check_forward(
    expect: Expect, x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, initial_state: Tensor | None
) -> None:
    _check_parameters(expect, x, "(B, D, L)", weight, bias)
    if seq_idx is not None:
        _checks.check_tensor("seq_idx", seq_idx)
        sizes = (x.shape[0], x.shape[2])
        checks.check_like(expect, "seq_idx", seq_idx, "(B, L)", sizes, "x", torch.int32, x.device)
    if initial_state is not None:
        _checks.check_tensor("initial_state", initial_state)
        sizes = (x.shape[0], x.shape[1], weight.shape[1] - 1)
        checks.check_like(
            expect, "initial_state", initial_state, "(B, D, W - 1)", sizes, "x and weight", weight.dtype, x.device
        )


def check_update(
    expect: Expect,
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> None:
    _check_parameters(expect, x, "(B, D, S)", weight, bias)
    _checks.check_tensor("conv_state", conv_state)
    letters = "(B, D, state_len)" if conv_state_indices is None else "(E, D, state_len)"
    checks.check_rank(expect, "conv_state", conv_state, 3, letters)
    entries, _, state_len = conv_state.shape
    if conv_state_indices is None:
        entries = x.shape[0]
    sizes = (entries, x.shape[1], state_len)
    checks.check_like(expect, "conv_state", conv_state, letters, sizes, "x", x.dtype, x.device)
    checks.check_writable(expect, "conv_state", conv_state)
    expect(
        state_len >= weight.shape[1] - 1,
        ValueError,
        lambda: (
            f"conv_state: expected {letters} with state_len >= W - 1 = {weight.shape[1] - 1}, got {shape(conv_state)}"
        ),
    )
    for name, index in (("cache_seqlens", cache_seqlens), ("conv_state_indices", conv_state_indices)):
        if index is not None:
            _checks.check_tensor(name, index)
            checks.check_like(expect, name, index, "(B,)", (x.shape[0],), "x", torch.int32, x.device)
