# SPDX-License-Identifier: Apache-2.0
"""The scans' recurrences as torch's `scan` operator: one body for any length, which ONNX has too (Scan).

The reference runs its steps in a Python loop, which an exported program would hold once per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..reference import _scan_checks as checks
from ..reference import mamba_chunk_scan as mamba
from ..reference import selective_scan as selective

Step = Callable[..., tuple[Tensor, Tensor]]


def _scan(
    step: Step, state: Tensor, sequences: Sequence[Tensor], constants: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """The last state and the outputs of `step(state, *inputs, *constants)` along axis 0 of the sequences."""
    # The operator itself: torch's function `scan` would have torch._dynamo trace `step`, and take ints for symbols.
    from torch._higher_order_ops.scan import scan_op  # not at the top: it imports much

    last, outputs = scan_op(lambda *args: list(step(*args)), [state], list(sequences), tuple(constants))
    return last, outputs


def _states(
    step: Step, state: Tensor, sequences: Sequence[Tensor], every: int, constants: Sequence[Tensor] = ()
) -> Tensor:
    """The states before steps 0, `every`, 2 `every`, ... In a scan of its own: few programs have a use for them."""
    before = _scan(lambda carry, *rest: (step(carry, *rest)[0], carry.clone()), state, sequences, constants)[1]
    return before[::every]


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, keep: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """What the reference's `scan` computes; without `keep` no checkpoints.

    Their number would restrict a program without a use for them to lengths that have as many.
    """
    if u.shape[2] == 0:
        return selective.scan(u, dt, A, B, C, state)
    channels, length = u.shape[1:]

    def along(projection: Tensor) -> Tensor:
        """B or C with time first: (L, B, G, N), or (L, D, N) if it is constant."""
        projection = projection.to(u.dtype)
        if projection.dim() == 2:
            return projection.expand(length, *projection.shape)
        return (projection.unsqueeze(1) if projection.dim() == 3 else projection).movedim(-1, 0)

    def per_channel(now: Tensor) -> Tensor:
        """B or C of one step, shaped to meet states (B, D, N)."""
        groups = now.shape[-2]
        return now if groups in (1, channels) else now.repeat_interleave(channels // groups, -2)

    def step(state: Tensor, u: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.exp(dt.unsqueeze(-1) * A) * state + (dt * u).unsqueeze(-1) * per_channel(B)
        return state, (state * per_channel(C)).sum(-1)

    arguments = step, state, (u.movedim(-1, 0), dt.movedim(-1, 0), along(B), along(C))
    last_state, y = _scan(*arguments, constants=(A,))
    before = _states(*arguments, every=checks.CHUNK, constants=(A,)) if keep else state.expand(0, *state.shape)
    return y.movedim(0, -1), last_state, before.movedim(0, 2)


def chunk_scan(
    state: Tensor, resets: Tensor | None, decay: Tensor, inputs: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor]:
    """What the reference's `one_by_one` computes."""
    if inputs.shape[1] == 0:
        return mamba.one_by_one(state, resets, decay, inputs, B, C)
    last_state, y = _scan(_chunk_scan_step, state, _chunk_scan_sequences(resets, decay, inputs, B, C))
    return y.movedim(0, 1), last_state


def chunk_scan_checkpoints(
    state: Tensor, resets: Tensor | None, decay: Tensor, inputs: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor]:
    """y, and in place of the last state those before every chunk (B, ceil(L / 128), H, P, N)."""
    if inputs.shape[1] == 0:
        return inputs, state.unsqueeze(1)[:, :0]
    sequences = _chunk_scan_sequences(resets, decay, inputs, B, C)
    return inputs, _states(_chunk_scan_step, state, sequences, every=mamba.CHECKPOINT_STEPS).movedim(0, 1)


def _chunk_scan_sequences(resets: Tensor | None, *sequences: Tensor) -> list[Tensor]:
    return [sequence.movedim(1, 0) for sequence in (*sequences, resets) if sequence is not None]


def _chunk_scan_step(
    state: Tensor, decay: Tensor, inputs: Tensor, B: Tensor, C: Tensor, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return mamba.step(state, reset, decay, inputs, B, C)
