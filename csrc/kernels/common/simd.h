// SPDX-License-Identifier: Apache-2.0
// The SIMD vector of one ISA level: F32 and F64 with W lanes each, an index vector of the same lane width, and masks.
// larger(a, b) is b where the two are equal or b is NaN; a is never NaN there. at_least and at_most keep a NaN in a;
// round is to the nearest integer, ties to even. Include it only from *_isa.cpp files, which are compiled once per
// level with FGK_ISA_NS naming the level.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "types.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fgk {
namespace FGK_ISA_NS {

#if defined(__AVX512F__)

constexpr int kVectorRegisters = 32;

struct F32 {
  using Scalar = float;
  using Index = int32_t;
  using Reg = __m512;
  using IndexReg = __m512i;
  using Mask = __mmask16;
  static constexpr int W = 16;
  static FGK_INLINE Reg zero() { return _mm512_setzero_ps(); }
  static FGK_INLINE Reg set1(float x) { return _mm512_set1_ps(x); }
  static FGK_INLINE Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static FGK_INLINE void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  static FGK_INLINE Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static FGK_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static FGK_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static FGK_INLINE Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static FGK_INLINE Reg abs(Reg a) { return _mm512_abs_ps(a); }
  static FGK_INLINE Reg at_least(Reg a, Reg low) { return _mm512_max_ps(low, a); }
  static FGK_INLINE Reg at_most(Reg a, Reg high) { return _mm512_min_ps(high, a); }
  static FGK_INLINE Reg round(Reg a) { return _mm512_roundscale_ps(a, 0x08); }
  static FGK_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static FGK_INLINE Mask first_lanes(int n) { return static_cast<Mask>(n >= W ? 0xFFFF : n <= 0 ? 0 : (1u << n) - 1); }
  static FGK_INLINE Mask greater(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static FGK_INLINE Reg larger(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static FGK_INLINE Mask both(Mask a, Mask b) { return _kand_mask16(a, b); }
  static FGK_INLINE bool any_nan(Reg a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }
  static FGK_INLINE Reg select(Mask m, Reg yes, Reg no) { return _mm512_mask_mov_ps(no, m, yes); }
  static FGK_INLINE IndexReg index_set1(int64_t x) { return _mm512_set1_epi32(static_cast<int32_t>(x)); }
  static FGK_INLINE IndexReg index_load(const Index* p) { return _mm512_loadu_si512(p); }
  static FGK_INLINE void index_store(Index* p, IndexReg x) { _mm512_storeu_si512(p, x); }
  static FGK_INLINE IndexReg index_select(Mask m, IndexReg yes, IndexReg no) {
    return _mm512_mask_mov_epi32(no, m, yes);
  }
  static FGK_INLINE float sum(Reg a) { return _mm512_reduce_add_ps(a); }
};

struct F64 {
  using Scalar = double;
  using Index = int64_t;
  using Reg = __m512d;
  using IndexReg = __m512i;
  using Mask = __mmask8;
  static constexpr int W = 8;
  static FGK_INLINE Reg zero() { return _mm512_setzero_pd(); }
  static FGK_INLINE Reg set1(double x) { return _mm512_set1_pd(x); }
  static FGK_INLINE Reg load(const double* p) { return _mm512_loadu_pd(p); }
  static FGK_INLINE void store(double* p, Reg x) { _mm512_storeu_pd(p, x); }
  static FGK_INLINE Reg add(Reg a, Reg b) { return _mm512_add_pd(a, b); }
  static FGK_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_pd(a, b); }
  static FGK_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_pd(a, b); }
  static FGK_INLINE Reg div(Reg a, Reg b) { return _mm512_div_pd(a, b); }
  static FGK_INLINE Reg abs(Reg a) { return _mm512_abs_pd(a); }
  static FGK_INLINE Reg at_least(Reg a, Reg low) { return _mm512_max_pd(low, a); }
  static FGK_INLINE Reg at_most(Reg a, Reg high) { return _mm512_min_pd(high, a); }
  static FGK_INLINE Reg round(Reg a) { return _mm512_roundscale_pd(a, 0x08); }
  static FGK_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  static FGK_INLINE Mask first_lanes(int n) { return static_cast<Mask>(n >= W ? 0xFF : n <= 0 ? 0 : (1u << n) - 1); }
  static FGK_INLINE Mask greater(Reg a, Reg b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
  static FGK_INLINE Reg larger(Reg a, Reg b) { return _mm512_max_pd(a, b); }
  static FGK_INLINE Mask both(Mask a, Mask b) { return _kand_mask8(a, b); }
  static FGK_INLINE bool any_nan(Reg a) { return _mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q) != 0; }
  static FGK_INLINE Reg select(Mask m, Reg yes, Reg no) { return _mm512_mask_mov_pd(no, m, yes); }
  static FGK_INLINE IndexReg index_set1(int64_t x) { return _mm512_set1_epi64(x); }
  static FGK_INLINE IndexReg index_load(const Index* p) { return _mm512_loadu_si512(p); }
  static FGK_INLINE void index_store(Index* p, IndexReg x) { _mm512_storeu_si512(p, x); }
  static FGK_INLINE IndexReg index_select(Mask m, IndexReg yes, IndexReg no) {
    return _mm512_mask_mov_epi64(no, m, yes);
  }
  static FGK_INLINE double sum(Reg a) { return _mm512_reduce_add_pd(a); }
};

#elif defined(__AVX2__)

constexpr int kVectorRegisters = 16;

struct F32 {
  using Scalar = float;
  using Index = int32_t;
  using Reg = __m256;
  using IndexReg = __m256i;
  using Mask = __m256;
  static constexpr int W = 8;
  static FGK_INLINE Reg zero() { return _mm256_setzero_ps(); }
  static FGK_INLINE Reg set1(float x) { return _mm256_set1_ps(x); }
  static FGK_INLINE Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static FGK_INLINE void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
  static FGK_INLINE Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static FGK_INLINE Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static FGK_INLINE Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static FGK_INLINE Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static FGK_INLINE Reg abs(Reg a) { return _mm256_andnot_ps(set1(-0.0f), a); }
  static FGK_INLINE Reg at_least(Reg a, Reg low) { return _mm256_max_ps(low, a); }
  static FGK_INLINE Reg at_most(Reg a, Reg high) { return _mm256_min_ps(high, a); }
  static FGK_INLINE Reg round(Reg a) { return _mm256_round_ps(a, 0x08); }
  static FGK_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static FGK_INLINE Mask first_lanes(int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
  }
  static FGK_INLINE Mask greater(Reg a, Reg b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  static FGK_INLINE Reg larger(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static FGK_INLINE Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
  static FGK_INLINE bool any_nan(Reg a) { return _mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)) != 0; }
  static FGK_INLINE Reg select(Mask m, Reg yes, Reg no) { return _mm256_blendv_ps(no, yes, m); }
  static FGK_INLINE IndexReg index_set1(int64_t x) { return _mm256_set1_epi32(static_cast<int32_t>(x)); }
  static FGK_INLINE IndexReg index_load(const Index* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static FGK_INLINE void index_store(Index* p, IndexReg x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static FGK_INLINE IndexReg index_select(Mask m, IndexReg yes, IndexReg no) {
    return _mm256_blendv_epi8(no, yes, _mm256_castps_si256(m));
  }
  static FGK_INLINE float sum(Reg a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
};

struct F64 {
  using Scalar = double;
  using Index = int64_t;
  using Reg = __m256d;
  using IndexReg = __m256i;
  using Mask = __m256d;
  static constexpr int W = 4;
  static FGK_INLINE Reg zero() { return _mm256_setzero_pd(); }
  static FGK_INLINE Reg set1(double x) { return _mm256_set1_pd(x); }
  static FGK_INLINE Reg load(const double* p) { return _mm256_loadu_pd(p); }
  static FGK_INLINE void store(double* p, Reg x) { _mm256_storeu_pd(p, x); }
  static FGK_INLINE Reg add(Reg a, Reg b) { return _mm256_add_pd(a, b); }
  static FGK_INLINE Reg sub(Reg a, Reg b) { return _mm256_sub_pd(a, b); }
  static FGK_INLINE Reg mul(Reg a, Reg b) { return _mm256_mul_pd(a, b); }
  static FGK_INLINE Reg div(Reg a, Reg b) { return _mm256_div_pd(a, b); }
  static FGK_INLINE Reg abs(Reg a) { return _mm256_andnot_pd(set1(-0.0), a); }
  static FGK_INLINE Reg at_least(Reg a, Reg low) { return _mm256_max_pd(low, a); }
  static FGK_INLINE Reg at_most(Reg a, Reg high) { return _mm256_min_pd(high, a); }
  static FGK_INLINE Reg round(Reg a) { return _mm256_round_pd(a, 0x08); }
  static FGK_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_pd(a, b, c); }
  static FGK_INLINE Mask first_lanes(int n) {
    return _mm256_castsi256_pd(_mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)));
  }
  static FGK_INLINE Mask greater(Reg a, Reg b) { return _mm256_cmp_pd(a, b, _CMP_GT_OQ); }
  static FGK_INLINE Reg larger(Reg a, Reg b) { return _mm256_max_pd(a, b); }
  static FGK_INLINE Mask both(Mask a, Mask b) { return _mm256_and_pd(a, b); }
  static FGK_INLINE bool any_nan(Reg a) { return _mm256_movemask_pd(_mm256_cmp_pd(a, a, _CMP_UNORD_Q)) != 0; }
  static FGK_INLINE Reg select(Mask m, Reg yes, Reg no) { return _mm256_blendv_pd(no, yes, m); }
  static FGK_INLINE IndexReg index_set1(int64_t x) { return _mm256_set1_epi64x(x); }
  static FGK_INLINE IndexReg index_load(const Index* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static FGK_INLINE void index_store(Index* p, IndexReg x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static FGK_INLINE IndexReg index_select(Mask m, IndexReg yes, IndexReg no) {
    return _mm256_blendv_epi8(no, yes, _mm256_castpd_si256(m));
  }
  static FGK_INLINE double sum(Reg a) {
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
  }
};

#elif defined(__aarch64__)

constexpr int kVectorRegisters = 32;

struct F32 {
  using Scalar = float;
  using Index = int32_t;
  using Reg = float32x4_t;
  using IndexReg = int32x4_t;
  using Mask = uint32x4_t;
  static constexpr int W = 4;
  static FGK_INLINE Reg zero() { return vdupq_n_f32(0.0f); }
  static FGK_INLINE Reg set1(float x) { return vdupq_n_f32(x); }
  static FGK_INLINE Reg load(const float* p) { return vld1q_f32(p); }
  static FGK_INLINE void store(float* p, Reg x) { vst1q_f32(p, x); }
  static FGK_INLINE Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static FGK_INLINE Reg sub(Reg a, Reg b) { return vsubq_f32(a, b); }
  static FGK_INLINE Reg mul(Reg a, Reg b) { return vmulq_f32(a, b); }
  static FGK_INLINE Reg div(Reg a, Reg b) { return vdivq_f32(a, b); }
  static FGK_INLINE Reg abs(Reg a) { return vabsq_f32(a); }
  static FGK_INLINE Reg at_least(Reg a, Reg low) { return vmaxq_f32(low, a); }
  static FGK_INLINE Reg at_most(Reg a, Reg high) { return vminq_f32(high, a); }
  static FGK_INLINE Reg round(Reg a) { return vrndnq_f32(a); }
  static FGK_INLINE Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  static FGK_INLINE Mask first_lanes(int n) {
    const int32_t lanes[4] = {0, 1, 2, 3};
    return vcgtq_s32(vdupq_n_s32(n), vld1q_s32(lanes));
  }
  static FGK_INLINE Mask greater(Reg a, Reg b) { return vcgtq_f32(a, b); }
  static FGK_INLINE Reg larger(Reg a, Reg b) { return vmaxq_f32(a, b); }
  static FGK_INLINE Mask both(Mask a, Mask b) { return vandq_u32(a, b); }
  static FGK_INLINE bool any_nan(Reg a) { return vminvq_u32(vceqq_f32(a, a)) == 0; }
  static FGK_INLINE Reg select(Mask m, Reg yes, Reg no) { return vbslq_f32(m, yes, no); }
  static FGK_INLINE IndexReg index_set1(int64_t x) { return vdupq_n_s32(static_cast<int32_t>(x)); }
  static FGK_INLINE IndexReg index_load(const Index* p) { return vld1q_s32(p); }
  static FGK_INLINE void index_store(Index* p, IndexReg x) { vst1q_s32(p, x); }
  static FGK_INLINE IndexReg index_select(Mask m, IndexReg yes, IndexReg no) { return vbslq_s32(m, yes, no); }
  static FGK_INLINE float sum(Reg a) { return vaddvq_f32(a); }
};

struct F64 {
  using Scalar = double;
  using Index = int64_t;
  using Reg = float64x2_t;
  using IndexReg = int64x2_t;
  using Mask = uint64x2_t;
  static constexpr int W = 2;
  static FGK_INLINE Reg zero() { return vdupq_n_f64(0.0); }
  static FGK_INLINE Reg set1(double x) { return vdupq_n_f64(x); }
  static FGK_INLINE Reg load(const double* p) { return vld1q_f64(p); }
  static FGK_INLINE void store(double* p, Reg x) { vst1q_f64(p, x); }
  static FGK_INLINE Reg add(Reg a, Reg b) { return vaddq_f64(a, b); }
  static FGK_INLINE Reg sub(Reg a, Reg b) { return vsubq_f64(a, b); }
  static FGK_INLINE Reg mul(Reg a, Reg b) { return vmulq_f64(a, b); }
  static FGK_INLINE Reg div(Reg a, Reg b) { return vdivq_f64(a, b); }
  static FGK_INLINE Reg abs(Reg a) { return vabsq_f64(a); }
  static FGK_INLINE Reg at_least(Reg a, Reg low) { return vmaxq_f64(low, a); }
  static FGK_INLINE Reg at_most(Reg a, Reg high) { return vminq_f64(high, a); }
  static FGK_INLINE Reg round(Reg a) { return vrndnq_f64(a); }
  static FGK_INLINE Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f64(c, a, b); }
  static FGK_INLINE Mask first_lanes(int n) {
    const int64_t lanes[2] = {0, 1};
    return vcgtq_s64(vdupq_n_s64(n), vld1q_s64(lanes));
  }
  static FGK_INLINE Mask greater(Reg a, Reg b) { return vcgtq_f64(a, b); }
  static FGK_INLINE Reg larger(Reg a, Reg b) { return vmaxq_f64(a, b); }
  static FGK_INLINE Mask both(Mask a, Mask b) { return vandq_u64(a, b); }
  static FGK_INLINE bool any_nan(Reg a) {
    const uint64x2_t same = vceqq_f64(a, a);
    return (vgetq_lane_u64(same, 0) & vgetq_lane_u64(same, 1)) == 0;
  }
  static FGK_INLINE Reg select(Mask m, Reg yes, Reg no) { return vbslq_f64(m, yes, no); }
  static FGK_INLINE IndexReg index_set1(int64_t x) { return vdupq_n_s64(x); }
  static FGK_INLINE IndexReg index_load(const Index* p) { return vld1q_s64(p); }
  static FGK_INLINE void index_store(Index* p, IndexReg x) { vst1q_s64(p, x); }
  static FGK_INLINE IndexReg index_select(Mask m, IndexReg yes, IndexReg no) { return vbslq_s64(m, yes, no); }
  static FGK_INLINE double sum(Reg a) { return vaddvq_f64(a); }
};

#else

// Portable level: 16-byte vectors of the compiler (SSE2 on x86-64), no fused multiply-add assumed.
constexpr int kVectorRegisters = 16;

template <class S, class I>
struct Portable {
  using Scalar = S;
  using Index = I;
  typedef S Reg __attribute__((vector_size(16)));
  typedef I IndexReg __attribute__((vector_size(16)));
  using Mask = IndexReg;
  static constexpr int W = 16 / sizeof(S);
  static FGK_INLINE Reg zero() { return Reg{}; }
  static FGK_INLINE Reg set1(S x) { return Reg{} + x; }
  static FGK_INLINE Reg load(const S* p) {
    Reg x;
    std::memcpy(&x, p, sizeof(x));
    return x;
  }
  static FGK_INLINE void store(S* p, Reg x) { std::memcpy(p, &x, sizeof(x)); }
  static FGK_INLINE Reg add(Reg a, Reg b) { return a + b; }
  static FGK_INLINE Reg sub(Reg a, Reg b) { return a - b; }
  static FGK_INLINE Reg mul(Reg a, Reg b) { return a * b; }
  static FGK_INLINE Reg div(Reg a, Reg b) { return a / b; }
  static FGK_INLINE Reg abs(Reg a) { return a < 0 ? -a : a; }
  static FGK_INLINE Reg at_least(Reg a, Reg low) { return low > a ? low : a; }
  static FGK_INLINE Reg at_most(Reg a, Reg high) { return high < a ? high : a; }
  // For |a| below 2^22 (2^51): adding and taking away a power of two rounds to an integer.
  static FGK_INLINE Reg round(Reg a) {
    const S magic = sizeof(S) == 4 ? S(12582912) : S(6755399441055744);
    const Reg sum = a + magic;
    return sum - magic;
  }
  static FGK_INLINE Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static FGK_INLINE Mask first_lanes(int n) {
    Mask m{};
    for (int lane = 0; lane < W; ++lane) m[lane] = lane < n ? -1 : 0;
    return m;
  }
  static FGK_INLINE Mask greater(Reg a, Reg b) { return a > b; }
  static FGK_INLINE Reg larger(Reg a, Reg b) { return a > b ? a : b; }
  static FGK_INLINE Mask both(Mask a, Mask b) { return a & b; }
  static FGK_INLINE bool any_nan(Reg a) {
    const Mask same = a == a;
    for (int lane = 0; lane < W; ++lane) {
      if (!same[lane]) return true;
    }
    return false;
  }
  static FGK_INLINE Reg select(Mask m, Reg yes, Reg no) { return m ? yes : no; }
  static FGK_INLINE IndexReg index_set1(int64_t x) { return IndexReg{} + static_cast<I>(x); }
  static FGK_INLINE IndexReg index_load(const I* p) {
    IndexReg x;
    std::memcpy(&x, p, sizeof(x));
    return x;
  }
  static FGK_INLINE void index_store(I* p, IndexReg x) { std::memcpy(p, &x, sizeof(x)); }
  static FGK_INLINE IndexReg index_select(Mask m, IndexReg yes, IndexReg no) { return m ? yes : no; }
  static FGK_INLINE S sum(Reg a) {
    S total = 0;
    for (int lane = 0; lane < W; ++lane) total += a[lane];
    return total;
  }
};
using F32 = Portable<float, int32_t>;
using F64 = Portable<double, int64_t>;

#endif

template <class V, int S, int... Lane>
FGK_INLINE void exchange(typename V::Reg& a, typename V::Reg& b, std::integer_sequence<int, Lane...>) {
  const typename V::Reg low = __builtin_shufflevector(a, b, (Lane & S ? V::W + Lane - S : Lane)...);
  b = __builtin_shufflevector(a, b, (Lane & S ? V::W + Lane : Lane + S)...);
  a = low;
}

// Transposes a W x W tile, one row per register: log2(W) rounds that exchange blocks of S columns between rows S apart.
template <class V, int S = V::W / 2>
FGK_INLINE void transpose(typename V::Reg (&rows)[V::W]) {
  if constexpr (S > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < V::W; ++i) {
      if (!(i & S)) exchange<V, S>(rows[i], rows[i + S], std::make_integer_sequence<int, V::W>{});
    }
    transpose<V, S / 2>(rows);
  }
}

// Sums n floats of any alignment with W partial sums, so that rounding stays near that of a tree.
template <class V>
FGK_INLINE typename V::Scalar sum_of(const typename V::Scalar* x, int64_t n) {
  typename V::Reg partial = V::zero();
  int64_t i = 0;
  for (; i + V::W <= n; i += V::W) partial = V::add(partial, V::load(x + i));
  typename V::Scalar total = V::sum(partial);
  for (; i < n; ++i) total += x[i];
  return total;
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
