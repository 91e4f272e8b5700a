# SPDX-License-Identifier: Apache-2.0
"""Mutants of the late-interaction CUDA kernels: one edit each that a test must notice. See mutate_cuda.py.

A mutant is (kind, file, text, replacement, note). The text occurs exactly once in its file (tests/packaging checks it).
A note that starts with "equivalent:" says why no test can tell the mutant from the original; it doesn't count.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    kind: str
    file: str
    text: str
    replacement: str
    note: str = ""


FORWARD = "late_interaction_forward.cuh"
TILE = "late_interaction_tile.cuh"
MAXIMA = "late_interaction_maxima.cuh"
PLAN = "late_interaction_plan.cuh"
SUM = "late_interaction_sum.cuh"
BACKWARD = "late_interaction_backward.cuh"
LAUNCH = "late_interaction_launch.cuh"
PARAMS = "late_interaction_params.cuh"
SHAPE = "late_interaction_shape.cuh"

MUTANTS = [
    # --- barriers ---
    Mutant(
        "barrier",
        FORWARD,
        "    dev::sync_block();\n    tile.row_tiles",
        "    tile.row_tiles",
        "slots are read before they are written",
    ),
    Mutant(
        "barrier",
        FORWARD,
        "      wait_for_oldest();\n      dev::sync_block();",
        "      wait_for_oldest();",
        "chunks are read before all copies landed",
    ),
    Mutant(
        "barrier",
        FORWARD,
        "      wait_for_oldest();\n      dev::sync_block();",
        "      dev::sync_block();\n      wait_for_oldest();",
        "barrier before the wait instead of after it",
    ),
    Mutant(
        "barrier",
        FORWARD,
        "      share_rows();\n      dev::sync_block();",
        "      share_rows();",
        "rows are joined before all warps stored them",
    ),
    Mutant(
        "barrier",
        FORWARD,
        "    if (p.partial) return;\n    dev::sync_block();",
        "    if (p.partial) return;",
        "slots are summed before they are stored",
    ),
    Mutant(
        "barrier",
        FORWARD,
        "int columns) {\n    dev::sync_block();\n    const int s",
        "int columns) {\n    const int s",
        "columns are joined before all warps stored them",
    ),
    Mutant(
        "barrier",
        FORWARD,
        "      issue();\n      const int channels",
        "      const int channels",
        "nothing is copied ahead",
    ),
    Mutant(
        "barrier",
        PLAN,
        "  if (dev::lane() == 0) scratch.st(dev::warp(), own);\n  dev::sync_block();",
        "  if (dev::lane() == 0) scratch.st(dev::warp(), own);",
        "block sum without a barrier",
    ),
    Mutant(
        "barrier",
        PLAN,
        "  dev::sync_block();  // the previous call's values have been read\n",
        "",
        "scan scratch is overwritten while it is read",
    ),
    Mutant(
        "barrier",
        PLAN,
        "  if (dev::lane() == 31) scratch.st(dev::warp(), below);\n  dev::sync_block();",
        "  if (dev::lane() == 31) scratch.st(dev::warp(), below);",
        "scan without a barrier",
    ),
    Mutant(
        "barrier",
        PLAN,
        "  dev::atomic_max(longest, 0, static_cast<int32_t>(own_longest));\n  dev::sync_block();",
        "  dev::atomic_max(longest, 0, static_cast<int32_t>(own_longest));",
        "the longest is read before all have reported",
    ),
    Mutant(
        "barrier",
        PLAN,
        "      before += count;\n    }\n  }\n  dev::sync_block();",
        "      before += count;\n    }\n  }",
        "places are taken before they are known",
    ),
    # --- asynchronous copies ---
    Mutant(
        "wait",
        FORWARD,
        "      dev::cp_async_wait<1>();",
        "      dev::cp_async_wait<2>();",
        "waits for one group too few, three stages",
    ),
    Mutant(
        "wait",
        FORWARD,
        "      dev::cp_async_wait<0>();\n    }\n  }",
        "      dev::cp_async_wait<1>();\n    }\n  }",
        "waits for one group too few, two stages",
    ),
    Mutant("wait", FORWARD, "    dev::cp_async_wait<0>();\n  }\n};", "  }\n};", "leaves while copies are under way"),
    Mutant(
        "wait", FORWARD, "    dev::cp_async_commit();\n    write_stage", "    write_stage", "copies are never committed"
    ),
    Mutant(
        "wait",
        FORWARD,
        "      dev::cp_async_commit();\n    }\n    seek",
        "    }\n    seek",
        "equivalent: the rows' copies join the first stage's group, which the same wait covers",
    ),
    Mutant(
        "wait",
        FORWARD,
        "for (int stage = 1; stage < p.stages; ++stage) issue();",
        "for (int stage = 0; stage < p.stages; ++stage) issue();",
        "one stage too many is filled at the start",
    ),
    Mutant(
        "wait",
        FORWARD,
        "write_stage + 1 == p.stages ? 0",
        "write_stage + 2 == p.stages ? 0",
        "wraps around one buffer early",
    ),
    # --- indices ---
    Mutant(
        "index",
        FORWARD,
        "const int count = dev::min(ahead.left, S::kTile);",
        "const int count = dev::min(ahead.left - 1, S::kTile);",
        "the last token of a sample is not copied",
    ),
    Mutant(
        "index",
        FORWARD,
        "stage_unit<T>(p.stream, row < count,",
        "stage_unit<T>(p.stream, row <= count,",
        "one token too many is read",
    ),
    Mutant(
        "index",
        FORWARD,
        "ahead.element += S::kTile * p.stream.token_stride;",
        "ahead.element += (S::kTile - 1) * p.stream.token_stride;",
        "the second tile starts one token early",
    ),
    Mutant("index", FORWARD, "        ahead.chunk = 0;\n", "", "channels are not reset at a new tile"),
    Mutant(
        "index",
        FORWARD,
        "const int padded = (count + 15) / 16 * 16;",
        "const int padded = count;",
        "columns of the last pair are left unwritten",
    ),
    Mutant(
        "index",
        FORWARD,
        "const int index = first + tile_column",
        "const int index = tile_column",
        "winners are numbered within their tile",
    ),
    Mutant(
        "index",
        FORWARD,
        "const int place = across() * S::kRows + down() * kSlotRows + tile_row(mt, h);",
        "const int place = down() * kSlotRows + tile_row(mt, h);",
        "warps side by side store to one place",
    ),
    Mutant(
        "index",
        FORWARD,
        "own.token + dev::lane(), b.index);",
        "dev::lane(), b.index);",
        "winners of later slots overwrite those of the first",
    ),
    Mutant(
        "index",
        FORWARD,
        "for (int w = 1; w < S::kAcross; ++w)",
        "for (int w = 1; w < S::kAcross - 1; ++w)",
        "the last warp's maxima are forgotten",
    ),
    Mutant(
        "index",
        FORWARD,
        "for (int j = 1; j < p.slots_per_sample; ++j) {",
        "for (int j = 1; j < p.slots_per_sample - 1; ++j) {",
        "the last slot's columns are forgotten",
    ),
    Mutant(
        "index",
        FORWARD,
        "consider(b, acc[mt][nt][2 * h + c], own.token + tile_row(mt, h), counts[mt][h]);",
        "consider(b, acc[mt][nt][2 * h + c], tile_row(mt, h), counts[mt][h]);",
        "column winners are numbered within their slot",
    ),
    Mutant(
        "index",
        FORWARD,
        "within = group() % groups * S::kDown + j;",
        "within = group() % groups * S::kDown;",
        "all slots of a block hold the same rows",
    ),
    Mutant(
        "index",
        FORWARD,
        "if (sample >= p.rows.batch) sample = -1;",
        "if (sample > p.rows.batch) sample = -1;",
        "a sample after the last one is read",
    ),
    Mutant(
        "index",
        FORWARD,
        "last_partner = static_cast<int>(dev::min(begin + p.partners_per_block, end));",
        "last_partner = static_cast<int>(begin + p.partners_per_block);",
        "partners after the last one are read",
    ),
    Mutant(
        "index",
        FORWARD,
        "seek(ahead.partner + 1);",
        "seek(ahead.partner + 2);",
        "every second partner's tokens are skipped",
    ),
    Mutant(
        "index",
        SUM,
        "const int filled = (p.rows.tokens(sample) + kSlotRows - 1) / kSlotRows;",
        "const int filled = p.rows.tokens(sample) / kSlotRows;",
        "the last, partly filled slot is not summed",
    ),
    Mutant(
        "index",
        PLAN,
        "slots.st(place + j, {sample, static_cast<int32_t>(j * kSlotRows)});",
        "slots.st(place + j, {sample, static_cast<int32_t>(j)});",
        "slots overlap",
    ),
    Mutant(
        "index",
        PLAN,
        "const int64_t place = used + block_scan(taken, scratch, total);",
        "const int64_t place = block_scan(taken, scratch, total);",
        "samples after the first 256 take their slots",
    ),
    Mutant("index", PLAN, "if (s == samples && value != tokens) ++broken;", "", "offsets that end early are taken"),
    Mutant("index", PLAN, "if (s > 0 && value < offsets.ld(s - 1)) ++broken;", "", "falling offsets are taken"),
    Mutant("index", PLAN, "if (s == 0 && value != 0) ++broken;", "", "offsets that start late are taken"),
    Mutant(
        "index",
        BACKWARD,
        "first + dev::first_bit(winners)",
        "dev::first_bit(winners)",
        "winners after the first 32 read other tokens",
    ),
    Mutant(
        "index",
        BACKWARD,
        "if (t >= p.other.tokens(y)) t = -1;",
        "if (t > p.other.tokens(y)) t = -1;",
        "a winner after the last token is read",
    ),
    Mutant(
        "index",
        BACKWARD,
        "if (offsets.ld(middle) <= n) {",
        "if (offsets.ld(middle) < n) {",
        "first tokens belong to the sample before",
    ),
    Mutant(
        "index",
        BACKWARD,
        "return begin() + static_cast<int>(p.owner_is_a ? p.paired : 1);",
        "return begin() + 1;",
        "only the first of a query's candidates gives a gradient",
    ),
    # --- masks and padding ---
    Mutant(
        "mask",
        FORWARD,
        "if (!p.stream.mask || p.stream.mask.ld(base + column)) valid |=",
        "valid |=",
        "masked columns win",
    ),
    Mutant("mask", FORWARD, "if (column >= columns) continue;\n", "", "columns after the last token win or are read"),
    Mutant(
        "mask",
        FORWARD,
        "counts[mt][h] = row < own.rows && (",
        "counts[mt][h] = (",
        "rows after the last token win columns",
    ),
    Mutant(
        "mask",
        FORWARD,
        "const bool counts = inside && (!p.rows.mask || p.rows.mask.ld(base + own.token + dev::lane()));",
        "const bool counts = inside;",
        "masked rows are summed",
    ),
    Mutant("mask", FORWARD, "if (counts && about.valid > 0) {", "if (about.valid > 0) {", "masked columns are summed"),
    Mutant(
        "mask",
        FORWARD,
        "        if (p.zero_padding) raise_to_zero(b, about.first_masked);\n      }\n      if (S::kIndices && inside)",
        "      }\n      if (S::kIndices && inside)",
        "padding is never zero in rows",
    ),
    Mutant(
        "mask",
        FORWARD,
        "        if (p.zero_padding) raise_to_zero(b, about.first_masked);\n      }\n      column_sum",
        "      }\n      column_sum",
        "padding is never zero in columns",
    ),
    Mutant(
        "mask",
        FORWARD,
        "best[mt][h] = {-kInfinity<Acc>, first_valid};",
        "best[mt][h] = {-kInfinity<Acc>, 0};",
        "a masked token wins where all are -inf",
    ),
    Mutant(
        "mask",
        FORWARD,
        "b = {-kInfinity<Acc>, first_valid};",
        "b = {Acc(0), first_valid};",
        "negative column maxima become 0",
    ),
    Mutant(
        "mask",
        MAXIMA,
        "first_masked < best.index",
        "first_masked > best.index",
        "a zero's tie with padding goes to the higher index",
    ),
    Mutant(
        "mask",
        PLAN,
        "if (found.first_masked < 0 && masked != 0)",
        "if (masked != 0)",
        "the last masked token instead of the first",
    ),
    Mutant(
        "mask",
        PLAN,
        "const bool inside = token < length;",
        "const bool inside = token <= length;",
        "the next sample's mask is read",
    ),
    Mutant("mask", TILE, "if (channel + e < dim) {", "if (channel + e <= dim) {", "one channel too many is read"),
    Mutant(
        "mask",
        TILE,
        "const int left = present && channel < tokens.dim ? tokens.dim - channel : 0;",
        "const int left = present ? kUnitElements<T> : 0;",
        "channels after the last one are read",
    ),
    Mutant(
        "mask",
        TILE,
        "dev::min(left, kUnitElements<T>)",
        "kUnitElements<T>",
        "the copy of the last channels is not shortened",
    ),
    # --- fragments and staging ---
    Mutant(
        "fragment",
        TILE,
        "staged<T>(mt * 16 + (lane & 15), step * 2 + (lane >> 4))",
        "staged<T>(mt * 16 + (lane & 15), step * 2 + (lane >> 3 & 1))",
        "rows' matrices in another order",
    ),
    Mutant(
        "fragment",
        TILE,
        "+ (lane & 7) + ((lane >> 4) << 3);",
        "+ (lane & 7) + ((lane >> 3 & 1) << 3);",
        "columns' matrices in another order",
    ),
    Mutant(
        "fragment",
        TILE,
        "const uint32_t left[2] = {four[0], four[1]};",
        "const uint32_t left[2] = {four[0], four[2]};",
        "columns' halves mixed up",
    ),
    Mutant("fragment", TILE, "step * 2 + ((lane >> 3) & 1)", "step * 2", "columns' upper channels are the lower ones"),
    Mutant(
        "fragment",
        TILE,
        "+ (nt & 1) * 8 + (dev::lane() & 3) * 2 + c;",
        "+ (nt & 1) * 8 + (dev::lane() & 3) + 4 * c;",
        "accumulator columns in another order",
    ),
    Mutant(
        "fragment",
        TILE,
        "return mt * 16 + h * 8 + (dev::lane() >> 2);",
        "return mt * 16 + h + 2 * (dev::lane() >> 2);",
        "accumulator rows in another order",
    ),
    Mutant(
        "fragment",
        TILE,
        "((unit ^ (row & 7)) * kUnitElements<T>)",
        "(unit * kUnitElements<T>)",
        "equivalent: staging without the swizzle; slower, not wrong",
    ),
    Mutant(
        "fragment",
        TILE,
        "const int steps = (channels + 15) / 16;",
        "const int steps = channels / 16;",
        "the last channels are not multiplied",
    ),
    # --- maxima and sums ---
    Mutant("order", MAXIMA, "!(value <= best.value)", "!(value < best.value)", "ties go to the higher index"),
    Mutant("order", MAXIMA, " & !dev::isnan(best.value);", ";", "a later number displaces a NaN"),
    Mutant("order", MAXIMA, "!(value <= best.value)", "(value > best.value)", "NaN never wins"),
    Mutant(
        "order",
        MAXIMA,
        "(same && b.index < a.index)",
        "(same && b.index > a.index)",
        "ties between lanes go to the higher index",
    ),
    Mutant(
        "order", MAXIMA, "first + (upper ? kHalf : 0)", "first + (upper ? 0 : kHalf)", "halves of columns are swapped"
    ),
    Mutant(
        "order",
        MAXIMA,
        "upper ? best[k] : best[k + kHalf];",
        "upper ? best[k + kHalf] : best[k];",
        "lanes give away what they keep",
    ),
    Mutant(
        "order",
        FORWARD,
        "for (int mask = 1; mask <= 2; mask *= 2)",
        "for (int mask = 1; mask <= 1; mask *= 2)",
        "two of four lanes are not joined",
    ),
    Mutant("order", FORWARD, "    column_sum = 0;\n", "", "column sums run on into the next partner"),
    Mutant(
        "order",
        FORWARD,
        "start_rows(p.stream.about(y).first_valid);",
        "if (partner == first_partner) start_rows(p.stream.about(y).first_valid);",
        "row maxima run on into the next partner",
    ),
    Mutant(
        "order",
        FORWARD,
        "if (p.mean && valid > 0) total /= static_cast<Acc>(valid);\n    p.row.scores",
        "p.row.scores",
        "no mean over rows",
    ),
    Mutant("order", FORWARD, "          acc[mt][nt][2 + c] *= scale;\n", "", "half of the rows are not scaled"),
    Mutant(
        "order",
        TILE,
        "acc[mt][2 * pair][c] += chunk[mt][0][c];",
        "acc[mt][2 * pair][c] = chunk[mt][0][c];",
        "only the last chunk counts",
    ),
    Mutant(
        "order",
        BACKWARD,
        "if (p.mean && valid > 0) weight /= static_cast<Acc>(valid);",
        "",
        "no mean in the gathered gradient",
    ),
    Mutant(
        "order",
        BACKWARD,
        "if (valid > 0) weight /= static_cast<Acc>(valid);\n      }",
        "}",
        "no mean in the scattered gradient",
    ),
    Mutant(
        "order",
        BACKWARD,
        "      weight *= static_cast<Acc>(p.other.scales.ld(p.other.token_base(y) + t));\n",
        "",
        "int8 documents without their scales",
    ),
    # --- launches ---
    Mutant(
        "launch",
        LAUNCH,
        "const int64_t bound = rows.total_tokens / kSlotRows + rows.batch * align;",
        "const int64_t bound = rows.total_tokens / kSlotRows + 1;",
        "too few slots for packed rows",
    ),
    Mutant(
        "launch",
        LAUNCH,
        "p.row_groups = group_count((rows.batch + samples - 1) / samples);\n    if (down == 4)",
        "p.row_groups = group_count(rows.batch / samples);\n    if (down == 4)",
        "the last group of rows is left out",
    ),
    Mutant(
        "launch",
        LAUNCH,
        "const int64_t pieces = (partners + p.partners_per_block - 1) / p.partners_per_block;\n  dev::launch",
        "const int64_t pieces = partners / p.partners_per_block;\n  dev::launch",
        "the last partners are left out",
    ),
    Mutant(
        "launch",
        SHAPE,
        "resident ? shared_bytes<T>(chunks * kRowElements) : 0",
        "resident ? shared_bytes<T>((chunks - 1) * kRowElements) : 0",
        "too little shared memory",
    ),
]
