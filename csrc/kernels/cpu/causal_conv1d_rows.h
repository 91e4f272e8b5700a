// SPDX-License-Identifier: Apache-2.0
// Causal convolution with vectors along the positions, which lie next to each other. Included by *_isa.cpp files only.
#pragma once

#include "../common/convert.h"
#include "causal_conv1d_plan.h"
#include "vector_math.h"

namespace fgk {
namespace FGK_ISA_NS {

// One channel of one batch entry, with whatever lies before and behind its positions.
template <class S>
struct ConvRow {
  const char* data = nullptr;
  DType dtype = DType::f32;
  int64_t length = 0;
  const S* before = nullptr;  // the `taps` positions before the first; null: zeros
  int64_t taps = 0;

  // A pointer to `count` elements from position `first` on: the row itself where it has them all, else `buffer`, where
  // there are zeros behind the row's end.
  const S* read(int64_t first, int64_t count, S* buffer) const {
    const bool native = dtype == (sizeof(S) == 8 ? DType::f64 : DType::f32);
    if (native && first >= 0 && first + count <= length) return reinterpret_cast<const S*>(data) + first;
    int64_t i = 0;
    for (; i < count && first + i < 0; ++i) buffer[i] = before != nullptr ? before[first + i + taps] : S(0);
    const int64_t end = first + count < length ? count : length - first;
    if (end > i) {
      widen_row(buffer + i, data + (first + i) * dtype_bytes(dtype), dtype, end - i, 1.0f);
      i = end;
    }
    for (; i < count; ++i) buffer[i] = S(0);
    return buffer;
  }
};

template <class V, int Width>
class ConvRows {
  using S = typename V::Scalar;
  using Reg = typename V::Reg;
  static constexpr int kTaps = Width - 1;
  static constexpr int64_t kSpan = kConvRowChunk + kConvPad;
  struct Filter {
    Reg weight[Width];  // of lag k
    Reg bias;
  };

 public:
  ConvRows(const ConvPlan& plan, const ConvTask& task, void* memory)
      : plan_(plan), args_(plan.args), task_(task), native_(args_.dtype == (sizeof(S) == 8 ? DType::f64 : DType::f32)) {
    S* piece = static_cast<S*>(memory);
    x_ = piece;
    g_ = piece + kSpan;
    grad_ = piece + 2 * kSpan;
    out_ = piece + 3 * kSpan;
    same_ = args_.seq_idx != nullptr ? piece + 4 * kSpan : nullptr;
    same_stride_ = plan.piece + kConvPad;
  }

  void forward() {
    for (int64_t b = task_.batch_first; b < task_.batch_last; ++b) {
      mark_sequences(b);
      for (int64_t c = task_.channel_first; c < task_.channel_last; ++c) {
        const Filter filter = load_filter(c);
        const ConvRow<S> row = x_row(b, c);
        for (int64_t p = task_.first; p < task_.last; p += kConvRowChunk) {
          forward_chunk(filter, row, b, c, p, chunk_end(p));
        }
      }
    }
  }

  void backward() {
    S* sums = static_cast<S*>(task_.sums);
    for (int64_t i = 0; i < (task_.channel_last - task_.channel_first) * kConvSums; ++i) sums[i] = 0;
    for (int64_t b = task_.batch_first; b < task_.batch_last; ++b) {
      mark_sequences(b);
      for (int64_t c = task_.channel_first; c < task_.channel_last; ++c) {
        const Filter filter = load_filter(c);
        const ConvRow<S> row = x_row(b, c);
        const ConvRow<S> grad = {address(plan_.grad_out, b, c), args_.dtype, args_.length, nullptr, 0};
        S* own = sums + (c - task_.channel_first) * kConvSums;
        for (int64_t p = task_.first; p < task_.last; p += kConvRowChunk) {
          backward_chunk(filter, row, grad, b, c, p, chunk_end(p), own);
        }
      }
    }
  }

 private:
  static int64_t whole_vectors(int64_t n) { return (n + V::W - 1) / V::W * V::W; }

  int64_t chunk_end(int64_t p) const { return p + kConvRowChunk < task_.last ? p + kConvRowChunk : task_.last; }

  char* address(const ConvSequence& s, int64_t b, int64_t c) const {
    return static_cast<char*>(s.data) + (b * s.batch + c * s.channel) * dtype_bytes(args_.dtype);
  }

  ConvRow<S> x_row(int64_t b, int64_t c) const {
    const S* before = static_cast<const S*>(args_.initial_state);
    if (before != nullptr) before += (b * args_.channels + c) * kTaps;
    return {address(args_.x, b, c), args_.dtype, args_.length, before, kTaps};
  }

  Filter load_filter(int64_t c) const {
    Filter filter;
    const S* weight = static_cast<const S*>(args_.weight) + c * Width;
    for (int k = 0; k < Width; ++k) filter.weight[k] = V::set1(weight[kTaps - k]);
    filter.bias = args_.bias != nullptr ? V::set1(static_cast<const S*>(args_.bias)[c]) : V::zero();
    return filter;
  }

  // same_[(k - 1) same_stride_ + t - task_.first]: 1 where position t - k belongs to t's sequence, else 0.
  void mark_sequences(int64_t b) {
    if (same_ == nullptr) return;
    const int32_t* sequence = args_.seq_idx + b * args_.length;
    const int64_t end = task_.last + kTaps < args_.length ? task_.last + kTaps : args_.length;
    for (int k = 1; k < Width; ++k) {
      S* same = same_ + (k - 1) * same_stride_;
      for (int64_t t = task_.first; t < end; ++t) {
        same[t - task_.first] = sequence[t] == sequence[t > k ? t - k : 0] ? S(1) : S(0);
      }
      for (int64_t i = end - task_.first; i < same_stride_; ++i) same[i] = S(0);
    }
  }

  // The value of lag k where the position at `offset` of the piece may read it, else zero.
  static FGK_INLINE Reg guarded(const S* same, int64_t stride, int k, int64_t offset, Reg value) {
    if (same == nullptr || k == 0) return value;
    return V::select(V::greater(V::load(same + (k - 1) * stride + offset), V::zero()), value, V::zero());
  }

  // Loads the taps of positions p + i..., where x holds those from p - kTaps on, and sums them up.
  static FGK_INLINE Reg sum_taps(const Filter& filter, const S* x, const S* same, int64_t stride, int64_t i,
                                 Reg (&tap)[Width]) {
    Reg sum = filter.bias;
#pragma GCC unroll 4
    for (int k = 0; k < Width; ++k) {
      tap[k] = guarded(same, stride, k, i, V::load(x + i + kTaps - k));
      sum = V::fma(filter.weight[k], tap[k], sum);
    }
    return sum;
  }

  void forward_chunk(const Filter& from, const ConvRow<S>& row, int64_t b, int64_t c, int64_t p, int64_t end) {
    const int64_t n = end - p;
    const int64_t padded = whole_vectors(n);
    const S* x = row.read(p - kTaps, padded + kTaps, x_);
    char* target = address(args_.out, b, c) + p * dtype_bytes(args_.dtype);
    S* out = native_ && n == padded ? reinterpret_cast<S*>(target) : out_;
    const Filter filter = from;  // in registers
    const S* same = same_ != nullptr ? same_ + (p - task_.first) : nullptr;
    const int64_t stride = same_stride_;
    Reg tap[Width];
    if (args_.silu) {
      for (int64_t i = 0; i < padded; i += V::W) {
        V::store(out + i, silu<V>(sum_taps(filter, x, same, stride, i, tap)));
      }
    } else {
      for (int64_t i = 0; i < padded; i += V::W) V::store(out + i, sum_taps(filter, x, same, stride, i, tap));
    }
    if (out == out_) narrow_row(target, args_.dtype, out_, n);
  }

  void backward_chunk(const Filter& from, const ConvRow<S>& row, const ConvRow<S>& grad_row, int64_t b, int64_t c,
                      int64_t p, int64_t end, S* sums) {
    const int64_t n = end - p;
    // Positions behind the chunk whose gradient reaches into it.
    const int64_t reach = end + kTaps < args_.length ? n + kTaps : args_.length - p;
    const int64_t padded = whole_vectors(n + kTaps);
    const S* x = row.read(p - kTaps, padded + kTaps, x_);
    const S* grad = grad_row.read(p, padded, grad_);
    const Filter filter = from;  // in registers
    const S* same = same_ != nullptr ? same_ + (p - task_.first) : nullptr;
    const int64_t stride = same_stride_;
    const bool activated = args_.silu;
    S* const out = g_;
    Reg sum[Width + 1];
    for (Reg& s : sum) s = V::zero();
    for (int64_t i = 0; i < padded; i += V::W) {
      Reg tap[Width];
      const Reg pre = sum_taps(filter, x, same, stride, i, tap);
      Reg g = V::load(grad + i);
      if (activated) g = V::mul(g, silu_slope<V>(pre));
      V::store(out + i, g);
      if (i >= n) continue;
      if (i + V::W > n) {
        const typename V::Mask own = V::first_lanes(static_cast<int>(n - i));
        g = V::select(own, g, V::zero());
        for (Reg& value : tap) value = V::select(own, value, V::zero());
      }
#pragma GCC unroll 4
      for (int k = 0; k < Width; ++k) sum[k] = V::fma(g, tap[k], sum[k]);
      sum[Width] = V::add(sum[Width], g);
    }
    for (int k = 0; k < Width; ++k) sums[k] += V::sum(sum[k]);
    sums[kMaxConvWidth] += V::sum(sum[Width]);
    for (int64_t i = reach; i < padded + V::W; ++i) out[i] = S(0);

    char* target = address(plan_.dx, b, c) + p * dtype_bytes(args_.dtype);
    const int64_t whole = whole_vectors(n);
    S* dx = native_ && n == whole ? reinterpret_cast<S*>(target) : out_;
    for (int64_t i = 0; i < whole; i += V::W) {
      Reg total = V::mul(filter.weight[0], V::load(out + i));
#pragma GCC unroll 4
      for (int k = 1; k < Width; ++k) {
        total = V::fma(filter.weight[k], guarded(same, stride, k, i + k, V::load(out + i + k)), total);
      }
      V::store(dx + i, total);
    }
    if (dx == out_) narrow_row(target, args_.dtype, out_, n);
    if (p == 0 && plan_.dinitial_state != nullptr) backward_initial(b, c);
  }

  void backward_initial(int64_t b, int64_t c) const {
    const S* weight = static_cast<const S*>(args_.weight) + c * Width;
    S* gradient = static_cast<S*>(plan_.dinitial_state) + (b * args_.channels + c) * kTaps;
    for (int j = 0; j < kTaps; ++j) {  // position j - kTaps, which position t reads at lag t - (j - kTaps)
      S total = 0;
      for (int t = 0; t <= j; ++t) {
        const int k = t - j + kTaps;
        const bool reads = same_ == nullptr || same_[(k - 1) * same_stride_ + t] > 0;
        if (reads) total += weight[kTaps - k] * g_[t];
      }
      gradient[j] = total;
    }
  }

  const ConvPlan& plan_;
  const CausalConvForward& args_;
  const ConvTask& task_;
  bool native_;
  S* x_;
  S* g_;
  S* grad_;
  S* out_;
  S* same_;
  int64_t same_stride_;
};

}  // namespace FGK_ISA_NS
}  // namespace fgk
