# SPDX-License-Identifier: Apache-2.0
"""Every CUDA operator once or twice at small odd shapes, forward and backward, against the reference in float64.

Small enough to run under compute-sanitizer; the tests proper are in tests/ops. ``--device cpu`` tries the script out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor

import fgkernels
from fgkernels.reference import causal_conv1d as conv_reference
from fgkernels.reference import late_interaction as reference
from fgkernels.reference import mamba_chunk_scan as chunk_reference
from fgkernels.reference import selective_scan as scan_reference
from fgkernels.reference import selective_scan_2d as map_reference

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def largest_error(got: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp_min(1e-30)
    return float((got.double() - expected).abs().max() / scale)


def both_directions(device: str, dtype: torch.dtype, generator: torch.Generator) -> float:
    a = torch.randn(3, 37, 40, generator=generator).to(device, dtype).requires_grad_()
    b = torch.randn(5, 19, 40, generator=generator).to(device, dtype).requires_grad_()
    mask = torch.arange(19, device=device) < torch.tensor([19, 1, 7, 0, 12], device=device)[:, None]
    scores = fgkernels.late_interaction(a, b, b_mask=mask)
    (scores[0].sum() + 2 * scores[1].sum()).backward()
    wide_a, wide_b = a.detach().double().requires_grad_(), b.detach().double().requires_grad_()
    expected = reference.late_interaction(wide_a, wide_b, b_mask=mask)
    (expected[0].sum() + 2 * expected[1].sum()).backward()
    pairs = [*zip(scores, expected, strict=True), (a.grad, wide_a.grad), (b.grad, wide_b.grad)]
    return max(largest_error(got.detach(), want.detach()) for got, want in pairs)


def packed(device: str, dtype: torch.dtype, generator: torch.Generator) -> float:
    queries = torch.randn(45, 24, generator=generator).to(device, dtype)
    documents = torch.randn(160, 24, generator=generator).to(device, dtype)
    offsets = torch.tensor([0, 40, 40, 45], device=device), torch.tensor([0, 100, 101, 160], device=device)
    got = fgkernels.maxsim_varlen(queries, documents, *offsets)
    return largest_error(got, reference.maxsim_varlen(queries.double(), documents.double(), *offsets))


def one_direction(device: str, dtype: torch.dtype, generator: torch.Generator) -> float:
    queries = torch.randn(2, 33, 20, generator=generator).to(device, dtype)
    candidates = torch.randn(2, 4, 50, 20, generator=generator).to(device, dtype)
    got = fgkernels.maxsim(queries, candidates)
    return largest_error(got, reference.maxsim(queries.double(), candidates.double()))


def int8(device: str, dtype: torch.dtype, generator: torch.Generator) -> float:
    queries = torch.randn(1, 32, 48, generator=generator).to(device, dtype)
    values, scales = fgkernels.quantize_documents(torch.randn(6, 21, 48, generator=generator).to(device))
    got = fgkernels.maxsim(queries, values, document_scales=scales)
    return largest_error(got, reference.maxsim(queries.double(), values.double() * scales[..., None]))


def with_gradients(
    function: Callable[..., tuple[Tensor, ...]], expected: Callable[..., tuple[Tensor, ...]], operands: list[Tensor]
) -> float:
    """Largest error of the outputs and of all gradients of their weighted sum."""
    leaves = [operand.requires_grad_() for operand in operands]
    wide_leaves = [operand.detach().double().requires_grad_() for operand in operands]
    outputs, wide_outputs = function(*leaves), expected(*wide_leaves)
    weights = [torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out) for out in outputs]
    gradients = torch.autograd.grad(outputs, leaves, [w.to(out.dtype) for w, out in zip(weights, outputs, strict=True)])
    # The weights as they were rounded for the outputs.
    rounded = [w.to(out.dtype).double() for w, out in zip(weights, outputs, strict=True)]
    wide_gradients = torch.autograd.grad(wide_outputs, wide_leaves, rounded)
    pairs = zip((*outputs, *gradients), (*wide_outputs, *wide_gradients), strict=True)
    return max(largest_error(got.detach(), want.detach()) for got, want in pairs)


def drawing(device: str, dtype: torch.dtype, generator: torch.Generator) -> Callable[..., Tensor]:
    """Sizes -> random numbers in the type of parameters and states."""
    accumulation = torch.float64 if dtype == torch.float64 else torch.float32
    return lambda *sizes: torch.randn(*sizes, generator=generator).to(device, accumulation)


def scan(device: str, dtype: torch.dtype, generator: torch.Generator) -> float:
    """Two groups, every optional operand, more steps than two chunks."""
    draw = drawing(device, dtype, generator)
    sequences = [draw(2, 6, 131).to(dtype), draw(2, 6, 131).to(dtype)]
    projections = [draw(2, 2, 5, 131).to(dtype), draw(2, 2, 5, 131).to(dtype)]
    operands = [*sequences, -draw(6, 5).exp(), *projections, draw(6), draw(2, 6, 131).to(dtype), draw(6), draw(2, 6, 5)]

    def run(module: object) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *values: module.selective_scan(*values[:-1], True, True, initial_state=values[-1])

    return with_gradients(run(fgkernels), run(scan_reference), operands)


def scan_map(device: str, dtype: torch.dtype, generator: torch.Generator) -> float:
    """Four directions of a map whose sides differ."""
    draw = drawing(device, dtype, generator)
    x, delta, z = draw(2, 3, 9, 11).to(dtype), draw(2, 4, 3, 99).to(dtype), draw(2, 3, 9, 11).to(dtype)
    projections = [draw(2, 4, 5, 99).to(dtype), draw(2, 4, 5, 99).to(dtype)]
    operands = [x, delta, -draw(4, 3, 5).exp(), *projections, draw(4, 3), z, draw(4, 3)]

    def run(module: object) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *values: (module.selective_scan_2d(*values, True),)

    return with_gradients(run(fgkernels), run(map_reference), operands)


def cross(device: str, dtype: torch.dtype, generator: torch.Generator) -> float:
    x = torch.randn(2, 3, 5, 7, generator=generator).to(device, dtype)
    sequences = fgkernels.cross_scan(x)
    merged = fgkernels.cross_merge(sequences, size=(5, 7))
    return max(
        largest_error(sequences, map_reference.cross_scan(x.double())),
        largest_error(merged, map_reference.cross_merge(sequences.double(), size=(5, 7))),
    )


def scan_step(device: str, dtype: torch.dtype, generator: torch.Generator) -> float:
    """One step in place, of Mamba and, with heads, of Mamba-2."""
    draw, worst = drawing(device, dtype, generator), 0.0
    for channels, group in (((6,), ()), ((3, 6), (3,))):
        state = draw(2, *channels, 5)
        values = [draw(2, *channels).to(dtype), draw(2, *channels).to(dtype), -draw(*channels, 5).exp()]
        values += [draw(2, *group, 5).to(dtype), draw(2, *group, 5).to(dtype), draw(*channels)]
        values += [draw(2, *channels).to(dtype), draw(*channels)]
        wide_state = state.double().clone()
        expected = scan_reference.selective_state_update(wide_state, *(value.double() for value in values), True)
        got = fgkernels.selective_state_update(state, *values, True)
        worst = max(worst, largest_error(got, expected), largest_error(state, wide_state))
    return worst


def convolution(device: str, dtype: torch.dtype, generator: torch.Generator) -> float:
    draw = drawing(device, dtype, generator)
    operands = [draw(2, 5, 133).to(dtype), draw(5, 4), draw(5), draw(2, 5, 3)]

    def run(module: object) -> Callable[..., tuple[Tensor, ...]]:
        return lambda x, weight, bias, state: (module.causal_conv1d(x, weight, bias, "silu", initial_state=state),)

    return with_gradients(run(fgkernels), run(conv_reference), operands)


def convolution_step(device: str, dtype: torch.dtype, generator: torch.Generator) -> float:
    draw = drawing(device, dtype, generator)
    x, state, weight, bias = draw(2, 5).to(dtype), draw(2, 5, 3).to(dtype), draw(5, 4), draw(5)
    wide = [value.double().clone() for value in (x, state, weight, bias)]
    expected = conv_reference.causal_conv1d_update(*wide, "silu")
    got = fgkernels.causal_conv1d_update(x, state, weight, bias, "silu")
    return max(largest_error(got, expected), largest_error(state, wide[1]))


def chunk_scan(device: str, dtype: torch.dtype, generator: torch.Generator) -> float:
    """Two groups, every optional operand, more steps than two chunks."""
    draw = drawing(device, dtype, generator)
    operands = [draw(2, 261, 4, 7).to(dtype), draw(2, 261, 4).to(dtype), -draw(4).exp()]
    operands += [draw(2, 261, 2, 5).to(dtype), draw(2, 261, 2, 5).to(dtype), draw(4)]
    operands += [draw(2, 261, 4, 7).to(dtype), draw(4), draw(2, 4, 7, 5)]

    def run(module: object) -> Callable[..., tuple[Tensor, ...]]:
        def call(*values: Tensor) -> tuple[Tensor, ...]:
            *rest, states = values
            return module.mamba_chunk_scan_combined(
                *rest[:5], 64, *rest[5:], initial_states=states, dt_softplus=True, return_final_states=True
            )

        return call

    return with_gradients(run(fgkernels), run(chunk_reference), operands)


CHECKS = (
    both_directions, one_direction, packed, int8,
    scan, scan_map, cross, scan_step, convolution, convolution_step, chunk_scan,
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    generator = torch.Generator().manual_seed(0)
    failed = 0
    for check in CHECKS:
        for dtype, tolerance in TOLERANCE.items():
            error = check(device, dtype, generator)
            wrong = not error <= tolerance
            failed += wrong
            print(f"{check.__name__:<16} {str(dtype):<15} error {error:.1e}{'  WRONG' if wrong else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
