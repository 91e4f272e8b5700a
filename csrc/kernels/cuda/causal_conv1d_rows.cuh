// SPDX-License-Identifier: Apache-2.0
// The causal convolution of sequences whose neighbouring positions lie side by side: a thread owns a vector of them.
// Rows may start anywhere: a row's vectors begin at the last aligned address before it.
#pragma once

#include "causal_conv1d_params.cuh"

namespace fgk::cuda {

constexpr int kConvRowThreads = 256;

template <class T>
constexpr int kConvItems = 16 / static_cast<int>(sizeof(T));

// The row of a thread and where its vectors start.
template <class T>
struct ConvRow {
  int64_t b, c;
  bool aligned;  // whether vectors of all arrays start at multiples of 16 bytes
  int phase;     // positions by which the row's first vector starts before it

  FGK_DEVICE ConvRow(const ConvParams<T>& p, int64_t row) : b(row / p.channels), c(row % p.channels) {
    phase = lead(p.x, p.x_lead);
    aligned = p.contiguous && phase == lead(p.out, p.out_lead) &&
              (!p.grad_out.data || phase == lead(p.grad_out, p.grad_out_lead));
    if (!aligned) phase = 0;
  }

 private:
  template <class U>
  FGK_DEVICE int lead(const ConvView<U>& view, int first) const {
    return static_cast<int>((first + b * view.batch + c * view.channel) % kConvItems<T>);
  }
};

// Values of `kVectors` vectors from position `start` on, each one by one load where it lies within the row.
template <class T, int kVectors, class Value>
FGK_DEVICE void load_conv_row(const ConvRow<T>& row, gptr<const T> data, int length, int start,
                              Accumulation<T> (&to)[kVectors * kConvItems<T>], const Value& value) {
  constexpr int kItems = kConvItems<T>;
  FGK_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const int first = start + v * kItems;
    Accumulation<T> part[kItems];
    if (row.aligned && first >= 0 && first + kItems <= length) {
      load_vector<T, kItems>(data, first, part);
    } else {
      FGK_UNROLL
      for (int k = 0; k < kItems; ++k) part[k] = value(first + k);
    }
    FGK_UNROLL
    for (int k = 0; k < kItems; ++k) to[v * kItems + k] = part[k];
  }
}

// Thread: one vector of a row.
template <class T, int kWidth>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kConvRowThreads, 4) conv_forward_rows_kernel(ConvParams<T> p) {
  using Acc = Accumulation<T>;
  constexpr int kItems = kConvItems<T>;
  constexpr int kPast = kWidth - 1;
  constexpr int kBefore = (kPast + kItems - 1) / kItems;  // vectors that hold the taps before the first item
  constexpr int kShift = kBefore * kItems - kPast;
  const int64_t item = dev::bid() * kConvRowThreads + dev::tid();
  if (item >= p.batch * p.channels * p.vectors) return;
  const ConvRow<T> row(p, item / p.vectors);
  const int start = (p.first_vector + static_cast<int>(item % p.vectors)) * kItems - row.phase;
  if (start >= p.length) return;

  Acc x[(kBefore + 1) * kItems];
  load_conv_row<T, kBefore + 1>(row, p.x.row(row.b, row.c, p.length), p.length, start - kBefore * kItems, x,
                                [&](int position) { return conv_value<T, kWidth>(p, row.b, row.c, position); });
  int32_t sequence[kItems + kPast];
  FGK_UNROLL
  for (int k = 0; k < kItems + kPast; ++k) sequence[k] = conv_sequence(p, row.b, start - kPast + k);
  Acc weight[kWidth];
  FGK_UNROLL
  for (int j = 0; j < kWidth; ++j) weight[j] = p.weight.ld(row.c * kWidth + j);
  const Acc bias = p.bias ? p.bias.ld(row.c) : Acc(0);

  Acc y[kItems];
  FGK_UNROLL
  for (int k = 0; k < kItems; ++k) {
    y[k] = bias;
    FGK_UNROLL
    for (int j = 0; j < kWidth; ++j) {
      if (sequence[k + j] == sequence[k + kPast]) y[k] += weight[j] * x[kShift + k + j];
    }
    if (p.silu) y[k] = silu(y[k]);
  }
  const gptr<T> out = p.out.row(row.b, row.c, p.length);
  if (row.aligned && start >= 0 && start + kItems <= p.length) {
    store_vector<T, kItems>(out, start, y);
    return;
  }
  FGK_UNROLL
  for (int k = 0; k < kItems; ++k) {
    if (start + k >= 0 && start + k < p.length) {
      out.st((start + k) * p.out.position, from_acc<T>(y[k]));
    }
  }
}

// Warp: `steps` times 32 vectors of a row, for which it leaves the gradients of weight and bias in scratch memory.
template <class T, int kWidth>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kConvRowThreads, 2) conv_backward_rows_kernel(ConvParams<T> p) {
  using Acc = Accumulation<T>;
  constexpr int kItems = kConvItems<T>;
  constexpr int kPast = kWidth - 1;
  constexpr int kBefore = (kPast + kItems - 1) / kItems;
  constexpr int kShift = kBefore * kItems - kPast;
  constexpr int kVectors = 1 + kBefore;
  const int64_t pieces = (p.vectors + 32 * p.steps - 1) / (32 * p.steps);
  const int64_t unit = dev::bid() * (kConvRowThreads / 32) + dev::warp();
  if (unit >= p.batch * p.channels * pieces) return;
  const int piece = static_cast<int>(unit % pieces);
  const ConvRow<T> row(p, unit / pieces);
  const gptr<const T> x_row = p.x.row(row.b, row.c, p.length);
  const gptr<const T> grad_row = p.grad_out.row(row.b, row.c, p.length);

  Acc weight[kWidth], dweight[kWidth];
  FGK_UNROLL
  for (int j = 0; j < kWidth; ++j) {
    weight[j] = p.weight.ld(row.c * kWidth + j);
    dweight[j] = 0;
  }
  const Acc bias = p.bias ? p.bias.ld(row.c) : Acc(0);
  Acc dbias = 0;

  for (int step = 0; step < p.steps; ++step) {
    const int vector = (piece * p.steps + step) * 32 + dev::lane();
    const int start = (p.first_vector + vector) * kItems - row.phase;
    if (vector >= p.vectors || start >= p.length) break;
    // x[kShift + i] lies at position start - kPast + i, g[i] at start + i.
    Acc x[(kVectors + kBefore) * kItems];
    load_conv_row<T, kVectors + kBefore>(row, x_row, p.length, start - kBefore * kItems, x, [&](int position) {
      return conv_value<T, kWidth>(p, row.b, row.c, position);
    });
    Acc g[kVectors * kItems];
    load_conv_row<T, kVectors>(row, grad_row, p.length, start, g,
                               [&](int position) { return conv_gradient(p, row.b, row.c, position); });
    int32_t sequence[kItems + 2 * kPast];
    FGK_UNROLL
    for (int k = 0; k < kItems + 2 * kPast; ++k) sequence[k] = conv_sequence(p, row.b, start - kPast + k);

    FGK_UNROLL
    for (int k = 0; k < kItems + kPast && p.silu; ++k) {
      Acc sum = bias;
      FGK_UNROLL
      for (int j = 0; j < kWidth; ++j) {
        if (sequence[k + j] == sequence[k + kPast]) sum += weight[j] * x[kShift + k + j];
      }
      // Outside of the sequence there is no gradient, whatever the sum is.
      if (start + k >= 0 && start + k < p.length) g[k] *= silu_slope(sum);
    }
    Acc dx[kItems];
    FGK_UNROLL
    for (int k = 0; k < kItems; ++k) {
      dx[k] = 0;
      dbias += g[k];
      FGK_UNROLL
      for (int j = 0; j < kWidth; ++j) {
        if (sequence[k + j] == sequence[k + kPast]) dweight[j] += g[k] * x[kShift + k + j];
        if (sequence[k + kPast] == sequence[k + 2 * kPast - j]) dx[k] += weight[j] * g[k + kPast - j];
      }
    }
    if (row.aligned && start >= 0 && start + kItems <= p.length) {
      store_vector<T, kItems>(p.out.row(row.b, row.c, p.length), start, dx);
    } else {
      FGK_UNROLL
      for (int k = 0; k < kItems; ++k) store_conv_gradient<T, kWidth>(p, row.b, row.c, start + k, dx[k]);
    }
  }

  const int64_t slot = (row.b * pieces + piece) * p.channels + row.c;
  FGK_UNROLL
  for (int j = 0; j < kWidth; ++j) {
    const Acc total = dev::warp_sum(dweight[j]);
    if (dev::lane() == 0) p.dweight.st(slot * kWidth + j, total);
  }
  const Acc total = dev::warp_sum(dbias);
  if (dev::lane() == 0 && p.dbias) p.dbias.st(slot, total);
}

}  // namespace fgk::cuda
