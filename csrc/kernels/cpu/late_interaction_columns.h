// SPDX-License-Identifier: Apache-2.0
// From the column maxima that a segment left in W lanes per stream token to one (value, lane) per token.
// Included by *_isa.cpp files only.
#pragma once

#include "../common/simd.h"

namespace fgk {
namespace FGK_ISA_NS {

// Cell (token, lane) holds the best score seen in that lane, and the number of the first lane of the vector it came
// from.
template <class V>
FGK_INLINE void column_winner(const typename V::Scalar* best, const typename V::Index* first_lane,
                              typename V::Scalar& value, int64_t& lane) {
  value = best[0];
  lane = first_lane[0];
  for (int l = 1; l < V::W; ++l) {
    const int64_t candidate = first_lane[l] + l;
    const bool nan = best[l] != best[l];
    const bool had_nan = value != value;
    const bool tie = nan == had_nan && (nan || best[l] == value);
    if ((nan && !had_nan) || best[l] > value || (tie && candidate < lane)) {
      value = best[l];
      lane = candidate;
    }
  }
}

template <class V>
class ColumnReader {
 public:
  ColumnReader(const typename V::Scalar* best, const typename V::Index* first_lane)
      : best_(best), first_lane_(first_lane) {}
  FGK_INLINE void read(int64_t t, typename V::Scalar& value, int64_t& lane) {
    column_winner<V>(best_ + t * V::W, first_lane_ + t * V::W, value, lane);
  }

 private:
  const typename V::Scalar* best_;
  const typename V::Index* first_lane_;
};

#if defined(__AVX512F__)

// Sixteen tokens at a time: a transposing tree of maxima, about a sixth of the work of sixteen horizontal reductions.
template <>
class ColumnReader<F32> {
 public:
  ColumnReader(const float* best, const int32_t* first_lane) : best_(best), first_lane_(first_lane) {}
  FGK_INLINE void read(int64_t t, float& value, int64_t& lane) {
    if (t % 16 == 0) fill(t);
    value = values_[t % 16];
    lane = lanes_[t % 16];
  }

 private:
  struct Pair {
    __m512 value;
    __m512i lane;
  };

  static FGK_INLINE Pair better(__m512 a, __m512i lane_a, __m512 b, __m512i lane_b) {
    const __mmask16 tie = _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
    const __mmask16 take_b = _mm512_cmp_ps_mask(b, a, _CMP_GT_OQ) | _mm512_mask_cmplt_epi32_mask(tie, lane_b, lane_a);
    return {_mm512_mask_mov_ps(a, take_b, b), _mm512_mask_mov_epi32(lane_a, take_b, lane_b)};
  }
  static FGK_INLINE Pair merge1(Pair x, Pair y) {
    return better(_mm512_unpacklo_ps(x.value, y.value), _mm512_unpacklo_epi32(x.lane, y.lane),
                  _mm512_unpackhi_ps(x.value, y.value), _mm512_unpackhi_epi32(x.lane, y.lane));
  }
  static FGK_INLINE Pair merge2(Pair x, Pair y) {
    const __m512d xv = _mm512_castps_pd(x.value), yv = _mm512_castps_pd(y.value);
    return better(_mm512_castpd_ps(_mm512_unpacklo_pd(xv, yv)), _mm512_unpacklo_epi64(x.lane, y.lane),
                  _mm512_castpd_ps(_mm512_unpackhi_pd(xv, yv)), _mm512_unpackhi_epi64(x.lane, y.lane));
  }
  static FGK_INLINE Pair merge4(Pair x, Pair y) {
    return better(_mm512_shuffle_f32x4(x.value, y.value, 0x88), _mm512_shuffle_i32x4(x.lane, y.lane, 0x88),
                  _mm512_shuffle_f32x4(x.value, y.value, 0xDD), _mm512_shuffle_i32x4(x.lane, y.lane, 0xDD));
  }

  FGK_NOINLINE void fill(int64_t t) {
    const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    Pair p[16];
    __m512 probe = _mm512_setzero_ps();
    for (int i = 0; i < 16; ++i) {
      p[i].value = _mm512_loadu_ps(best_ + (t + i) * 16);
      p[i].lane = _mm512_add_epi32(_mm512_loadu_si512(first_lane_ + (t + i) * 16), iota);
      probe = _mm512_add_ps(probe, p[i].value);
    }
    if (F32::any_nan(probe)) {
      for (int i = 0; i < 16; ++i) {
        int64_t lane;
        column_winner<F32>(best_ + (t + i) * 16, first_lane_ + (t + i) * 16, values_[i], lane);
        lanes_[i] = static_cast<int32_t>(lane);
      }
      return;
    }
    for (int i = 0; i < 8; ++i) p[i] = merge1(p[2 * i], p[2 * i + 1]);
    for (int i = 0; i < 4; ++i) p[i] = merge2(p[2 * i], p[2 * i + 1]);
    for (int i = 0; i < 2; ++i) p[i] = merge4(p[2 * i], p[2 * i + 1]);
    p[0] = merge4(p[0], p[1]);
    _mm512_storeu_ps(values_, p[0].value);
    _mm512_storeu_si512(lanes_, p[0].lane);
  }

  const float* best_;
  const int32_t* first_lane_;
  float values_[16];
  int32_t lanes_[16];
};

#endif

// The planner allocates this many tokens more than a segment, so that whole groups can be read.
constexpr int kColumnSlack = 16;

}  // namespace FGK_ISA_NS
}  // namespace fgk
