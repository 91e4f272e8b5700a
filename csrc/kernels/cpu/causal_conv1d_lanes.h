// SPDX-License-Identifier: Apache-2.0
// Causal convolution with vectors across the channels: for channels that lie next to each other, short sequences, and
// any other strides. Included by *_isa.cpp files only.
#pragma once

#include "causal_conv1d_plan.h"
#include "lanes.h"
#include "vector_math.h"

namespace fgk {
namespace FGK_ISA_NS {

template <class V, int Width>
class ConvLanes {
  using S = typename V::Scalar;
  using Reg = typename V::Reg;
  static constexpr int kTaps = Width - 1;
  static constexpr int kRows = kConvLaneChunk + 2 * kTaps;

 public:
  ConvLanes(const ConvPlan& plan, const ConvTask& task, void* memory)
      : plan_(plan),
        args_(plan.args),
        task_(task),
        channels_(task.channel_last - task.channel_first),
        row_((channels_ + V::W - 1) / V::W * V::W),
        next_(static_cast<S*>(memory)) {
    x_ = take(kRows);
    grad_ = take(kRows);
    g_ = take(kRows);
    out_ = take(kRows);
    initial_ = take(kTaps);
    initial_gradient_ = take(kTaps);
    weight_ = take(Width);
    bias_ = take(1);
    sums_ = take(kConvSums);
    zero_ = take(1);
    for (int64_t i = 0; i < row_; ++i) zero_[i] = S(0);
    transpose_rows(weight_, args_.weight, Width, true);
    transpose_rows(bias_, args_.bias, 1, false);
  }

  void forward() {
    for (int64_t b = task_.batch_first; b < task_.batch_last; ++b) {
      load_initial(b);
      for (int64_t p = task_.first; p < task_.last; p += kConvLaneChunk) {
        const int64_t end = chunk_end(p);
        find_taps(b, p, end);
        Target out(*this, args_.out, b, p);
        for (int64_t t = p; t < end; ++t) {
          const S* const(&tap)[Width] = tap_[t - p];
          S* target = out.row(t);
          for (int64_t c = 0; c < row_; c += V::W) {
            const Reg sum = sum_taps(tap, c);
            V::store(target + c, args_.silu ? silu<V>(sum) : sum);
          }
        }
        out.finish(end);
      }
    }
  }

  void backward() {
    for (int64_t i = 0; i < kConvSums * row_; ++i) sums_[i] = S(0);
    for (int64_t b = task_.batch_first; b < task_.batch_last; ++b) {
      load_initial(b);
      for (int64_t p = task_.first; p < task_.last; p += kConvLaneChunk) backward_chunk(b, p, chunk_end(p));
    }
    S* sums = static_cast<S*>(task_.sums);
    for (int64_t c = 0; c < channels_; ++c) {
      for (int k = 0; k < kConvSums; ++k) sums[c * kConvSums + k] = sums_[k * row_ + c];
    }
  }

 private:
  S* take(int64_t rows) {
    S* piece = next_;
    next_ += rows * row_;
    return piece;
  }

  int64_t chunk_end(int64_t p) const { return p + kConvLaneChunk < task_.last ? p + kConvLaneChunk : task_.last; }

  // Row j holds element j (or count - 1 - j) of each channel of the task; `source` is (channels, count), null: zeros.
  void transpose_rows(S* rows, const void* source, int count, bool reversed) const {
    const S* from = static_cast<const S*>(source) + (source ? task_.channel_first * count : 0);
    for (int j = 0; j < count; ++j) {
      const int element = reversed ? count - 1 - j : j;
      for (int64_t c = 0; c < row_; ++c) {
        rows[j * row_ + c] = source != nullptr && c < channels_ ? from[c * count + element] : S(0);
      }
    }
  }

  void load_initial(int64_t b) const {
    const S* initial = static_cast<const S*>(args_.initial_state);
    if (initial != nullptr) initial += b * args_.channels * kTaps;
    transpose_rows(initial_, initial, kTaps, false);
  }

  LaneView view(const ConvSequence& s, int64_t b) const {
    char* data =
        static_cast<char*>(s.data) + (b * s.batch + task_.channel_first * s.channel) * dtype_bytes(args_.dtype);
    return {data, args_.dtype, s.channel, s.position, static_cast<int>(channels_)};
  }

  // Whether positions are rows of whole vectors in the type that is computed in.
  bool direct(const ConvSequence& s) const {
    return s.channel == 1 && channels_ == row_ && args_.dtype == kLaneType<V>;
  }

  // A part of the channels, as many as a vector holds.
  static LaneView part(const LaneView& all, int64_t first) {
    LaneView lanes = all;
    lanes.data = all.at(first, 0);
    lanes.channels = all.channels - first < V::W ? static_cast<int>(all.channels - first) : V::W;
    return lanes;
  }

  // rows[i]: position first + i, in place or in `buffer`, for `count` positions.
  void read(const S** rows, const ConvSequence& s, int64_t b, int64_t first, int64_t count, S* buffer) const {
    const LaneView all = view(s, b);
    if (direct(s)) {
      for (int64_t i = 0; i < count; ++i) rows[i] = reinterpret_cast<const S*>(all.at(0, first + i));
      return;
    }
    for (int64_t i = 0; i < count; ++i) rows[i] = buffer + i * row_;
    if (s.channel == 1) {
      for (int64_t i = 0; i < count; ++i) {
        widen_row(buffer + i * row_, all.at(0, first + i), args_.dtype, channels_, 1.0f);
        for (int64_t c = channels_; c < row_; ++c) buffer[i * row_ + c] = S(0);
      }
      return;
    }
    for (int64_t c = 0; c < channels_; c += V::W) load_rows<V>(buffer + c, row_, part(all, c), first, count);
  }

  // Where rows of a result from one position on go: in place, or through `out_`.
  class Target {
   public:
    Target(const ConvLanes& lanes, const ConvSequence& s, int64_t b, int64_t first)
        : lanes_(lanes), view_(lanes.view(s, b)), first_(first), direct_(lanes.direct(s)) {}
    S* row(int64_t t) const {
      return direct_ ? reinterpret_cast<S*>(view_.at(0, t)) : lanes_.out_ + (t - first_) * lanes_.row_;
    }
    void finish(int64_t end) const {
      if (direct_) return;
      if (view_.channel == 1) {
        for (int64_t t = first_; t < end; ++t) narrow_row(view_.at(0, t), view_.dtype, row(t), lanes_.channels_);
        return;
      }
      for (int64_t c = 0; c < lanes_.channels_; c += V::W) {
        store_rows<V>(part(view_, c), first_, end - first_, lanes_.out_ + c, lanes_.row_);
      }
    }

   private:
    const ConvLanes& lanes_;
    LaneView view_;
    int64_t first_;
    bool direct_;
  };

  bool same_sequence(int64_t b, int64_t t, int k) const {
    if (args_.seq_idx == nullptr) return true;
    const int32_t* sequence = args_.seq_idx + b * args_.length;
    return sequence[t] == sequence[t > k ? t - k : 0];
  }

  // tap_[t - p][k]: the row that position t reads at lag k.
  void find_taps(int64_t b, int64_t p, int64_t end) {
    const S* rows[kRows];  // from position p - kTaps on
    int64_t first = p - kTaps;
    for (; first < 0; ++first) rows[first - (p - kTaps)] = initial_ + (first + kTaps) * row_;
    read(rows + (first - (p - kTaps)), args_.x, b, first, end - first, x_);
    for (int64_t t = p; t < end; ++t) {
      for (int k = 0; k < Width; ++k) tap_[t - p][k] = same_sequence(b, t, k) ? rows[t - p + kTaps - k] : zero_;
    }
  }

  FGK_INLINE Reg sum_taps(const S* const (&tap)[Width], int64_t c) const {
    Reg sum = V::load(bias_ + c);
#pragma GCC unroll 4
    for (int k = 0; k < Width; ++k) sum = V::fma(V::load(weight_ + k * row_ + c), V::load(tap[k] + c), sum);
    return sum;
  }

  void backward_chunk(int64_t b, int64_t p, int64_t end) {
    // Positions behind the chunk whose gradient reaches into it.
    const int64_t reach = end + kTaps < args_.length ? end + kTaps : args_.length;
    find_taps(b, p, reach);
    const S* g[kRows];
    read(g, plan_.grad_out, b, p, reach - p, grad_);
    if (args_.silu) {
      for (int64_t t = p; t < reach; ++t) {
        S* slope = g_ + (t - p) * row_;
        for (int64_t c = 0; c < row_; c += V::W) {
          V::store(slope + c, V::mul(V::load(g[t - p] + c), silu_slope<V>(sum_taps(tap_[t - p], c))));
        }
        g[t - p] = slope;
      }
    }
    add_to_sums(g, end - p);
    Target dx(*this, plan_.dx, b, p);
    for (int64_t t = p; t < end; ++t) {
      const S* from[Width];
      for (int k = 0; k < Width; ++k) from[k] = t + k < reach && same_sequence(b, t + k, k) ? g[t + k - p] : zero_;
      S* target = dx.row(t);
      for (int64_t c = 0; c < row_; c += V::W) {
        Reg total = V::mul(V::load(weight_ + c), V::load(from[0] + c));
#pragma GCC unroll 4
        for (int k = 1; k < Width; ++k) {
          total = V::fma(V::load(weight_ + k * row_ + c), V::load(from[k] + c), total);
        }
        V::store(target + c, total);
      }
    }
    dx.finish(end);
    if (p == 0 && plan_.dinitial_state != nullptr) backward_initial(b, g, reach);
  }

  void add_to_sums(const S* const* g, int64_t count) const {
    for (int64_t c = 0; c < row_; c += V::W) {
      Reg sum[Width + 1];
      for (int k = 0; k < Width; ++k) sum[k] = V::load(sums_ + k * row_ + c);
      sum[Width] = V::load(sums_ + kMaxConvWidth * row_ + c);
      for (int64_t i = 0; i < count; ++i) {
        const Reg gradient = V::load(g[i] + c);
#pragma GCC unroll 4
        for (int k = 0; k < Width; ++k) sum[k] = V::fma(gradient, V::load(tap_[i][k] + c), sum[k]);
        sum[Width] = V::add(sum[Width], gradient);
      }
      for (int k = 0; k < Width; ++k) V::store(sums_ + k * row_ + c, sum[k]);
      V::store(sums_ + kMaxConvWidth * row_ + c, sum[Width]);
    }
  }

  void backward_initial(int64_t b, const S* const* g, int64_t reach) const {
    S* gradient = static_cast<S*>(plan_.dinitial_state) + (b * args_.channels + task_.channel_first) * kTaps;
    for (int j = 0; j < kTaps; ++j) {  // position j - kTaps, which position t reads at lag t - (j - kTaps)
      S* total = initial_gradient_ + j * row_;
      for (int64_t c = 0; c < row_; ++c) total[c] = S(0);
      for (int t = 0; t <= j && t < reach; ++t) {
        const int k = t - j + kTaps;
        if (!same_sequence(b, t, k)) continue;
        for (int64_t c = 0; c < row_; ++c) total[c] += weight_[k * row_ + c] * g[t][c];
      }
      for (int64_t c = 0; c < channels_; ++c) gradient[c * kTaps + j] = total[c];
    }
  }

  const ConvPlan& plan_;
  const CausalConvForward& args_;
  const ConvTask& task_;
  int64_t channels_;
  int64_t row_;
  S* next_;
  S *x_, *grad_, *g_, *out_, *initial_, *initial_gradient_, *weight_, *bias_, *sums_, *zero_;
  const S* tap_[kRows][Width];
};

}  // namespace FGK_ISA_NS
}  // namespace fgk
