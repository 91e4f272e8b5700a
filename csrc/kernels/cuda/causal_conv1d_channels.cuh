// SPDX-License-Identifier: Apache-2.0
// The causal convolution of sequences whose neighbouring channels lie side by side: a thread owns a vector of channels
// and walks over a run of positions, the last taps in registers. Other strides work too, one element at a time.
#pragma once

#include "causal_conv1d_params.cuh"

namespace fgk::cuda {

constexpr int kConvChannelThreads = 128;
constexpr int kConvChannelWarps = kConvChannelThreads / 32;

template <class T>
constexpr int kConvForwardChannels = 16 / static_cast<int>(sizeof(T));
// The gradient keeps five times as many values per channel: 16 bytes of 16-bit channels would not fit into registers.
template <class T>
constexpr int kConvBackwardChannels = sizeof(T) == 8 ? 2 : 4;

// Channels [c, c + kItems) of the array at one position, those past the last one as zeros.
template <class T, int kItems>
FGK_DEVICE void load_conv_channels(const ConvParams<T>& p, const ConvView<const T>& view, int64_t b, int64_t c,
                                   int position, Accumulation<T> (&to)[kItems]) {
  const gptr<const T> from = view.column(b, c, position, p.channels);
  if (p.aligned && c + kItems <= p.channels) return load_vector<T, kItems>(from, 0, to);
  FGK_UNROLL
  for (int k = 0; k < kItems; ++k) {
    to[k] = c + k < p.channels ? to_acc(from.ld(k * view.channel)) : Accumulation<T>(0);
  }
}

// x at a position before the end, which may lie before the first.
template <class T, int kWidth, int kItems>
FGK_DEVICE void load_conv_x(const ConvParams<T>& p, int64_t b, int64_t c, int position, Accumulation<T> (&to)[kItems]) {
  if (position >= 0) return load_conv_channels<T, kItems>(p, p.x, b, c, position, to);
  FGK_UNROLL
  for (int k = 0; k < kItems; ++k) {
    to[k] = c + k < p.channels ? conv_value<T, kWidth>(p, b, c + k, position) : Accumulation<T>(0);
  }
}

// Weights [tap][channel] and biases of a thread.
template <class T, int kWidth, int kItems>
FGK_DEVICE void load_conv_weights(const ConvParams<T>& p, int64_t c, Accumulation<T> (&weight)[kWidth][kItems],
                                  Accumulation<T> (&bias)[kItems]) {
  FGK_UNROLL
  for (int k = 0; k < kItems; ++k) {
    const bool real = c + k < p.channels;
    FGK_UNROLL
    for (int j = 0; j < kWidth; ++j) weight[j][k] = real ? p.weight.ld((c + k) * kWidth + j) : Accumulation<T>(0);
    bias[k] = real && p.bias ? p.bias.ld(c + k) : Accumulation<T>(0);
  }
}

// bias + sum over taps. Tap j of position t is x[(t + j + 1) % kWidth], since each position's x is at its remainder.
template <class Acc, int kWidth, int kItems>
FGK_DEVICE Acc conv_sum(const Acc (&x)[kWidth][kItems], const Acc (&weight)[kWidth][kItems], Acc bias,
                        const int32_t (&sequence)[kWidth], int newest, int k) {
  Acc sum = bias;
  FGK_UNROLL
  for (int j = 0; j < kWidth; ++j) {
    const int tap = (newest + 1 + j) % kWidth;
    if (sequence[tap] == sequence[newest]) sum += weight[j][k] * x[tap][k];
  }
  return sum;
}

// Thread: a vector of channels, `run` positions. Blocks: channels fastest, then runs, then the batch.
template <class T, int kWidth>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kConvChannelThreads, sizeof(T) == 2 ? 3 : 4)
    conv_forward_channels_kernel(ConvParams<T> p) {
  using Acc = Accumulation<T>;
  constexpr int kItems = kConvForwardChannels<T>;
  constexpr int kPast = kWidth - 1;
  const int64_t vectors = (p.channels + kItems - 1) / kItems;
  const int64_t runs = (p.length + p.run - 1) / p.run;
  const int64_t item = dev::bid() * kConvChannelThreads + dev::tid();
  if (item >= p.batch * runs * vectors) return;
  const int64_t c = item % vectors * kItems;
  const int64_t b = item / vectors / runs;
  const int begin = static_cast<int>(item / vectors % runs) * p.run;
  const int end = dev::min(p.length, begin + p.run);

  Acc weight[kWidth][kItems], bias[kItems];
  load_conv_weights<T, kWidth, kItems>(p, c, weight, bias);
  // Position begin + i is at i % kWidth; those before begin at i + kWidth.
  Acc x[kWidth][kItems];
  int32_t sequence[kWidth];
  FGK_UNROLL
  for (int j = 0; j < kPast; ++j) {
    load_conv_x<T, kWidth, kItems>(p, b, c, begin - kPast + j, x[j + 1]);
    sequence[j + 1] = conv_sequence(p, b, begin - kPast + j);
  }
  for (int t = begin; t < end; t += kWidth) {
    FGK_UNROLL
    for (int s = 0; s < kWidth; ++s) {
      if (t + s >= end) break;
      load_conv_channels<T, kItems>(p, p.x, b, c, t + s, x[s]);
      sequence[s] = conv_sequence(p, b, t + s);
      Acc y[kItems];
      FGK_UNROLL
      for (int k = 0; k < kItems; ++k) {
        y[k] = conv_sum<Acc, kWidth, kItems>(x, weight, bias[k], sequence, s, k);
        if (p.silu) y[k] = silu(y[k]);
      }
      const gptr<T> out = p.out.column(b, c, t + s, p.channels);
      if (p.aligned && c + kItems <= p.channels) {
        store_vector<T, kItems>(out, 0, y);
      } else {
        FGK_UNROLL
        for (int k = 0; k < kItems; ++k) {
          if (c + k < p.channels) out.st(k * p.out.channel, from_acc<T>(y[k]));
        }
      }
    }
  }
}

// Block: 32 vectors of channels, a run of positions per warp; it leaves the gradients of weight and bias in scratch
// memory. Blocks: channels fastest, then groups of runs, then the batch.
template <class T, int kWidth>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kConvChannelThreads, 3) conv_backward_channels_kernel(ConvParams<T> p) {
  using Acc = Accumulation<T>;
  constexpr int kItems = kConvBackwardChannels<T>;
  constexpr int kPast = kWidth - 1;
  constexpr int kRow = 32 * kItems;  // channels of a block
  dev::Shared shared;
  const sptr<Acc> sums = shared.take<Acc>(kConvChannelWarps * (kWidth + 1) * kRow);
  const int64_t blocks = (p.channels + kRow - 1) / kRow;
  const int64_t run_groups = (p.length + p.run * kConvChannelWarps - 1) / (p.run * kConvChannelWarps);
  const int64_t first = dev::bid() % blocks * kRow;
  const int64_t c = first + dev::lane() * kItems;
  const int64_t b = dev::bid() / blocks / run_groups;
  const int64_t run_group = dev::bid() / blocks % run_groups;
  const int64_t begin64 = (run_group * kConvChannelWarps + dev::warp()) * p.run;
  const int begin = static_cast<int>(dev::min(begin64, static_cast<int64_t>(p.length)));
  const int end = dev::min(p.length, begin + p.run);

  Acc weight[kWidth][kItems], bias[kItems], dweight[kWidth][kItems], dbias[kItems];
  load_conv_weights<T, kWidth, kItems>(p, c, weight, bias);
  // By remainders of positions, as in the forward; g is the gradient by the sum before the activation.
  Acc x[kWidth][kItems], g[kWidth][kItems];
  int32_t sequence[kWidth];
  FGK_UNROLL
  for (int j = 0; j < kWidth; ++j) {
    FGK_UNROLL
    for (int k = 0; k < kItems; ++k) dweight[j][k] = x[j][k] = g[j][k] = 0;
    sequence[j] = 0;
  }
  FGK_UNROLL
  for (int k = 0; k < kItems; ++k) dbias[k] = 0;
  const bool busy = c < p.channels && begin < end;
  FGK_UNROLL
  for (int j = 0; j < kPast; ++j) {
    if (!busy) break;
    load_conv_x<T, kWidth, kItems>(p, b, c, begin - kPast + j, x[j + 1]);
    sequence[j + 1] = conv_sequence(p, b, begin - kPast + j);
  }
  // Gradients by x lag behind: that of position t - kPast needs g up to t.
  const int stop = busy ? end + kPast : begin;
  for (int t0 = begin; t0 < stop; t0 += kWidth) {
    FGK_UNROLL
    for (int s = 0; s < kWidth; ++s) {
      const int t = t0 + s;
      if (t >= stop) break;
      sequence[s] = conv_sequence(p, b, t);
      const bool inside = t < p.length;
      if (inside) {
        load_conv_channels<T, kItems>(p, p.x, b, c, t, x[s]);
        load_conv_channels<T, kItems>(p, p.grad_out, b, c, t, g[s]);
      }
      FGK_UNROLL
      for (int k = 0; k < kItems; ++k) {
        if (!inside) {
          g[s][k] = 0;
        } else if (p.silu) {
          g[s][k] *= silu_slope(conv_sum<Acc, kWidth, kItems>(x, weight, bias[k], sequence, s, k));
        }
        if (t < end) {
          dbias[k] += g[s][k];
          FGK_UNROLL
          for (int j = 0; j < kWidth; ++j) {
            const int tap = (s + 1 + j) % kWidth;
            if (sequence[tap] == sequence[s]) dweight[j][k] += g[s][k] * x[tap][k];
          }
        }
      }
      const int owner = t - kPast;
      if (owner < begin && begin > 0) continue;  // another warp's
      Acc dx[kItems];
      FGK_UNROLL
      for (int k = 0; k < kItems; ++k) {
        dx[k] = 0;
        FGK_UNROLL
        for (int j = 0; j < kWidth; ++j) {
          const int user = (s - j + kWidth) % kWidth;  // owner + kPast - j
          if (sequence[(s + 1) % kWidth] == sequence[user]) dx[k] += weight[j][k] * g[user][k];
        }
      }
      if (p.aligned && owner >= 0 && c + kItems <= p.channels) {
        store_vector<T, kItems>(p.out.column(b, c, owner, p.channels), 0, dx);
      } else {
        FGK_UNROLL
        for (int k = 0; k < kItems; ++k) {
          if (c + k < p.channels) store_conv_gradient<T, kWidth>(p, b, c + k, owner, dx[k]);
        }
      }
    }
  }

  const sptr<Acc> own = sums.slice(dev::warp() * (kWidth + 1) * kRow, (kWidth + 1) * kRow);
  FGK_UNROLL
  for (int k = 0; k < kItems; ++k) {
    FGK_UNROLL
    for (int j = 0; j < kWidth; ++j) own.st((dev::lane() * kItems + k) * kWidth + j, dweight[j][k]);
    own.st(kWidth * kRow + dev::lane() * kItems + k, dbias[k]);
  }
  dev::sync_block();
  const int64_t piece = b * run_groups + run_group;
  for (int i = dev::tid(); i < (kWidth + 1) * kRow; i += kConvChannelThreads) {
    const bool is_bias = i >= kWidth * kRow;
    const int64_t channel = first + (is_bias ? i - kWidth * kRow : i / kWidth);
    if (channel >= p.channels) continue;
    Acc total = 0;
    FGK_UNROLL
    for (int w = 0; w < kConvChannelWarps; ++w) total += sums.ld(w * (kWidth + 1) * kRow + i);
    if (!is_bias) {
      p.dweight.st((piece * p.channels + channel) * kWidth + i % kWidth, total);
    } else if (p.dbias) {
      p.dbias.st(piece * p.channels + channel, total);
    }
  }
}

}  // namespace fgk::cuda
