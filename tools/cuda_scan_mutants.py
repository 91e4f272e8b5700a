# SPDX-License-Identifier: Apache-2.0
"""Mutants of the CUDA kernels of the scans and the convolution. See mutate_cuda.py."""

from __future__ import annotations

from cuda_mutant import Mutant

TILE = "selective_scan_tile.cuh"
FORWARD = "selective_scan_forward.cuh"
BACKWARD = "selective_scan_backward.cuh"
ARRANGE = "selective_scan_arrange.cuh"
CROSS = "cross_scan.cuh"
UPDATE = "state_update.cuh"
ROWS = "causal_conv1d_rows.cuh"
CHANNELS = "causal_conv1d_channels.cuh"
CONV = "causal_conv1d_params.cuh"
CONV_UPDATE = "causal_conv1d_update.cuh"
CHUNK = "mamba_chunk_scan_params.cuh"
CHUNK_FORWARD = "mamba_chunk_scan_forward.cuh"
CHUNK_BACKWARD = "mamba_chunk_scan_backward.cuh"
CHUNK_LAUNCH = "mamba_chunk_scan_launch.cuh"
PRODUCT = "tile_product.cuh"
TENSOR = "tensor_core_tiles.cuh"
SUM_ROWS = "sum_rows.cuh"

SCANS = [
    # --- selective scan ---
    Mutant(
        "barrier",
        FORWARD,
        "      load(k, order, start);\n      dev::sync_block();",
        "      load(k, order, start);",
        "a tile is scanned before it is loaded",
    ),
    Mutant(
        "barrier",
        FORWARD,
        "      scan(k, start);\n      dev::sync_block();",
        "      scan(k, start);",
        "states' outputs are added up before they are there",
    ),
    Mutant(
        "barrier",
        TILE,
        "    dev::sync_block();\n    return joint;",
        "    return joint;",
        "position warps read what others have not told yet",
    ),
    Mutant(
        "barrier",
        FORWARD,
        "if constexpr (!kJoin) dev::sync_warp();  // other",
        "// other",
        "the running state is replaced while lanes read it",
    ),
    Mutant(
        "barrier",
        BACKWARD,
        "        scan(c, start);\n        dev::sync_block();",
        "        scan(c, start);",
        "gradients are added up over states before they are there",
    ),
    Mutant(
        "barrier",
        BACKWARD,
        "        load(order, c, start);\n        dev::sync_block();",
        "        load(order, c, start);",
        "the gradient scans a tile before it is loaded",
    ),
    Mutant(
        "order",
        TILE,
        "return lane_ == 0 ? entering : dev::fma(a, entering, b);",
        "return dev::fma(a, entering, b);",
        "a segment's first lane starts with its own steps",
    ),
    Mutant(
        "order",
        TILE,
        "if (lane_ + d < segment()) all",
        "if (lane_ + d < 32) all",
        "the scan against the steps runs on into the next segment",
    ),
    Mutant(
        "order",
        TILE,
        "w > position_warp_; --w",
        "w > position_warp_ + 1; --w",
        "gradients of one position warp do not reach the one before",
    ),
    Mutant(
        "order",
        FORWARD,
        "if (there && thread_.last_in_tile()) running_.st(n, h);",
        "",
        "tiles start with the state of the first one",
    ),
    Mutant(
        "order",
        BACKWARD,
        "if (there && thread_.first_in_tile()) carry.st(n, x);",
        "",
        "gradients by states do not go from tile to tile",
    ),
    Mutant(
        "order", BACKWARD, "unsettled_ % 2 != 0 ? sum : to.ld(i) + sum", "sum", "dD and ddelta_bias of one tile only"
    ),
    Mutant(
        "order",
        BACKWARD,
        "const Acc y = dev::fma(D, u, sum_part(2, t));",
        "const Acc y = sum_part(2, t);",
        "dz without D u",
    ),
    Mutant(
        "order",
        ARRANGE,
        "for (int s = 0; s < sets; ++s) sum +=",
        "for (int s = 1; s < sets; ++s) sum +=",
        "dB and dC without the first set of channels",
    ),
    Mutant(
        "mask", FORWARD, "if (start + t < p_.length) {", "if (start + t <= p_.length) {", "one step too many is scanned"
    ),
    Mutant(
        "mask",
        TILE,
        "return position >= 0 && position < length ? position : -1;",
        "return position;",
        "a table's illegal entries are followed",
    ),
    # --- cross scan and state update ---
    Mutant(
        "barrier",
        CROSS,
        "      dev::sync_block();\n    }\n    merge",
        "    }\n    merge",
        "a map is read before it is staged",
    ),
    Mutant(
        "mask",
        CROSS,
        "if (place < 0 || place >= p_.length) return",
        "if (place < 0) return",
        "places behind the map are read",
    ),
    Mutant(
        "mask",
        UPDATE,
        "const bool legal = entry >= 0 && entry < p.entries;",
        "const bool legal = there;",
        "states that are not there are updated",
    ),
    Mutant(
        "order",
        UPDATE,
        "for (int mask = p.segment / 2; mask > 0; mask /= 2) y +=",
        "for (int mask = p.segment / 2; mask > 1; mask /= 2) y +=",
        "half of a row's lanes are left out",
    ),
    # --- causal convolution ---
    Mutant("mask", ROWS, "if (!aligned) phase = 0;", "", "unaligned rows start before themselves"),
    Mutant(
        "mask",
        ROWS,
        "row.aligned && first >= 0 && first + kItems <= length",
        "row.aligned && first >= 0",
        "vectors run on behind the row",
    ),
    Mutant(
        "mask",
        ROWS,
        "aligned = p.contiguous && phase == lead(p.out, p.out_lead) &&",
        "aligned = p.contiguous &&",
        "rows out of step with their results are taken for aligned",
    ),
    Mutant(
        "mask",
        CONV,
        "dev::min(dev::max(position, 0), p.length - 1)",
        "dev::max(position, 0)",
        "sequences' numbers are read behind the last position",
    ),
    Mutant(
        "mask",
        CHANNELS,
        "if (owner < begin && begin > 0) continue;  // another warp's",
        "",
        "positions of another warp's run are overwritten",
    ),
    Mutant(
        "order",
        CHANNELS,
        "        if (t < end) {\n          dbias",
        "        {\n          dbias",
        "positions behind a run count twice in sums",
    ),
    Mutant(
        "order",
        CHANNELS,
        "const int user = (s - j + kWidth) % kWidth;",
        "const int user = (s + j) % kWidth;",
        "taps of the gradient in reverse",
    ),
    Mutant(
        "barrier",
        CHANNELS,
        "  dev::sync_block();\n  const int64_t piece",
        "  const int64_t piece",
        "sums of warps are read before they are there",
    ),
    Mutant(
        "order",
        ROWS,
        "dweight[j] += g[k] * x[kShift + k + j];",
        "dweight[j] = g[k] * x[kShift + k + j];",
        "weights' gradients of the last position only",
    ),
    Mutant(
        "order",
        CONV_UPDATE,
        "return (remainder < 0 ? remainder + p.state_length : remainder)",
        "return (remainder)",
        "the ring buffer ends at its start",
    ),
    Mutant(
        "mask",
        CONV_UPDATE,
        "if (entry < 0 || entry >= p.entries) {",
        "if (entry < 0) {",
        "rows of the state that are not there are updated",
    ),
    # --- Mamba-2 scan ---
    Mutant(
        "mask",
        CHUNK,
        "if (i < j || segment_.ld(i) != segment_.ld(j)) return 0;",
        "if (i < j) return 0;",
        "sequences see the steps of those before them",
    ),
    Mutant("mask", CHUNK, "return segment_.ld(i) != 0 ? Acc(0) :", "return", "sequences see the state before them"),
    Mutant(
        "order",
        CHUNK,
        "if (dev::lane() >= delta) {",
        "if (dev::lane() > delta) {",
        "sums of exponents leave out a step",
    ),
    Mutant(
        "order",
        CHUNK,
        "    for (int w = 0; w < dev::warp(); ++w) {\n      sum +=",
        "    for (int w = 0; w < dev::warp() - 1; ++w) {\n      sum +=",
        "sums of exponents leave out a warp",
    ),
    Mutant(
        "mask",
        CHUNK,
        "slope = smooth < p_.dt_min || smooth > p_.dt_max ? Acc(0) :",
        "slope =",
        "steps at their limits have a gradient",
    ),
    Mutant(
        "order",
        CHUNK_FORWARD,
        "kGradient ? chunks - 1 - step : step",
        "step",
        "gradients by states are passed forwards",
    ),
    Mutant("order", CHUNK_FORWARD, "from <= tile; ++from", "from < tile; ++from", "a tile does not see its own steps"),
    Mutant(
        "order",
        CHUNK_BACKWARD,
        "if (!triangular || r >= k) sum +=",
        "sum +=",
        "outputs before a step count in its decay's gradient",
    ),
    Mutant(
        "order",
        CHUNK_BACKWARD,
        "    if (part() == 0) carry.st(row(), total);\n",
        "",
        "the first tile of steps is missing in decays' gradients",
    ),
    Mutant(
        "order",
        CHUNK_BACKWARD,
        "Acc exponent = through;",
        "Acc exponent = 0;",
        "what flows through a chunk has no part in decays' gradients",
    ),
    Mutant(
        "order",
        CHUNK_BACKWARD,
        "other <= (kOfB ? chunk.tiles() - 1 : tile); ++other",
        "other <= tile; ++other",
        "dB without the tile behind",
    ),
    Mutant(
        "barrier",
        PRODUCT,
        "    fill<kRight>(memory.right(), first, right);\n    dev::sync_block();",
        "    fill<kRight>(memory.right(), first, right);",
        "factors are multiplied before they are there",
    ),
    Mutant(
        "barrier",
        PRODUCT,
        "FGK_DEVICE void fill_rows(const Operand& memory, const F& factor) {\n  dev::sync_block();",
        "FGK_DEVICE void fill_rows(const Operand& memory, const F& factor) {",
        "a factor in use is overwritten",
    ),
    Mutant(
        "barrier",
        CHUNK,
        "    dev::sync_block();\n    for (int w = 0;",
        "    for (int w = 0;",
        "warps' sums of exponents are read before they are there",
    ),
    Mutant(
        "fragment",
        TENSOR,
        "(row0() + matrix % 2 * 8 + in_matrix) * kPitchLeft + k0 + matrix / 2 * 8",
        "(row0() + matrix / 2 * 8 + in_matrix) * kPitchLeft + k0 + matrix % 2 * 8",
        "the left factor's matrices in another order",
    ),
    Mutant(
        "fragment", TENSOR, "dev::mma_16816<dev::bf16>(value_[n], a[1], high);", "", "the left factor without its rest"
    ),
    Mutant(
        "fragment",
        TENSOR,
        "body(row + e % 4 / 2 * 8, column + e / 4 * 8 + e % 2,",
        "body(row + e % 2 * 8, column + e / 4 * 8 + e % 4 / 2,",
        "accumulators in another order",
    ),
    Mutant(
        "launch",
        CHUNK_LAUNCH,
        "ceil_div(heads_per_group, heads_per_share);",
        "heads_per_group / heads_per_share;",
        "the last heads of a group are left out",
    ),
    Mutant(
        "barrier",
        SUM_ROWS,
        "  dev::sync_block();\n  if (dev::warp()",
        "  if (dev::warp()",
        "warps' sums are read before they are there",
    ),
    Mutant(
        "order",
        SUM_ROWS,
        "for (int w = 1; w < kSumWarps; ++w) total",
        "for (int w = 2; w < kSumWarps; ++w) total",
        "sums without one warp's rows",
    ),
]
