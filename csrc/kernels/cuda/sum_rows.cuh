// SPDX-License-Identifier: Apache-2.0
// Adds up what the blocks of a launch have left in scratch memory, in a fixed order: the same bits in every run.
#pragma once

#include "kernel_call.cuh"
#include "sequence_math.cuh"

namespace fgk::cuda {

constexpr int kSumWarps = 8;
constexpr int kSumThreads = 32 * kSumWarps;

// out[o, i] = sum over r of in[o, r, i], for in (outer, rows, columns). A block sums 32 columns, each warp every eighth
// row.
template <class Acc, class T>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kSumThreads, 4)
    sum_rows_kernel(gptr<const Acc> in, int64_t rows, int64_t columns, gptr<T> out) {
  dev::Shared shared;
  const sptr<Acc> partial = shared.take<Acc>(kSumThreads);
  const int64_t groups = (columns + 31) / 32;
  const int64_t outer = dev::bid() / groups;
  const int64_t column = dev::bid() % groups * 32 + dev::lane();
  const gptr<const Acc> rows_in = in.slice(outer * rows * columns, rows * columns);
  Acc total = 0;
  if (column < columns) {
    for (int64_t r = dev::warp(); r < rows; r += kSumWarps) total += rows_in.ld(r * columns + column);
  }
  partial.st(dev::tid(), total);
  dev::sync_block();
  if (dev::warp() > 0 || column >= columns) return;
  for (int w = 1; w < kSumWarps; ++w) total += partial.ld(w * 32 + dev::lane());
  out.st(outer * columns + column, from_acc<T>(total));
}

template <class Acc, class T>
void sum_rows(KernelCall& call, gptr<const Acc> in, int64_t outer, int64_t rows, int64_t columns, gptr<T> out) {
  dev::launch("sum_rows", sum_rows_kernel<Acc, T>,
              {outer * ceil_div(columns, 32), kSumThreads, dev::shared_bytes<Acc>(kSumThreads)}, call.stream(), in,
              rows, columns, out);
}

}  // namespace fgk::cuda
