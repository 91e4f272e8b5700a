# SPDX-License-Identifier: Apache-2.0
"""Every CUDA operator once or twice at small odd shapes, forward and backward, against the reference in float64.

Small enough to run under compute-sanitizer; the tests proper are in tests/ops. ``--device cpu`` tries the script out.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

import fgkernels
from fgkernels.reference import late_interaction as reference

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    generator = torch.Generator().manual_seed(0)
    failed = 0
    for check in (both_directions, one_direction, packed, int8):
        for dtype, tolerance in TOLERANCE.items():
            error = check(device, dtype, generator)
            wrong = not error <= tolerance
            failed += wrong
            print(f"{check.__name__:<16} {str(dtype):<15} error {error:.1e}{'  WRONG' if wrong else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
