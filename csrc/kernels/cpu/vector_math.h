// SPDX-License-Identifier: Apache-2.0
// Elementary functions on SIMD vectors, as polynomials with minimax coefficients. Included by *_isa.cpp files only.
//
// Relative errors: exp2 1e-7 (fp32), 1e-15 (fp64), at every result that isn't subnormal; softplus the same also in its
// tail, where it equals exp(x). NaN stays NaN; exp2(-inf) = 0, exp2(inf) = inf.
#pragma once

#include "../common/simd.h"

namespace fgk {
namespace FGK_ISA_NS {

template <class V>
FGK_INLINE typename V::Reg constant(double x) {
  return V::set1(static_cast<typename V::Scalar>(x));
}

// Coefficients with the highest power first.
template <class V, int N>
FGK_INLINE typename V::Reg polynomial(const double (&coefficients)[N], typename V::Reg x) {
  typename V::Reg sum = constant<V>(coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < N; ++i) sum = V::fma(sum, x, constant<V>(coefficients[i]));
  return sum;
}

// 2^x on [-1/2, 1/2], exact at 0 so that a long product of numbers just below 1 has no drift.
template <class V>
FGK_INLINE typename V::Reg exp2_fraction(typename V::Reg x) {
  if constexpr (sizeof(typename V::Scalar) == 4) {
    constexpr double c[] = {0.00015594681498891932859,
                            0.0013406644096453615607,
                            0.009617692969866439498,
                            0.055503105508061763296,
                            0.24022652782888526124,
                            0.69314721496799869271,
                            1};
    return polynomial<V>(c, x);
  } else {
    constexpr double c[] = {4.0780822108727436496e-10, 7.0725705971669546838e-09, 1.0180647594355953259e-07,
                            1.3215442674393315654e-06, 1.5252727385347299827e-05, 0.00015403530441573538823,
                            0.0013333558153439790082,  0.0096181291076070010021,  0.055504108664790392791,
                            0.24022650695910097163,    0.69314718055994573032,    1};
    return polynomial<V>(c, x);
  }
}

#if defined(__AVX512F__)

// x 2^n for whole n of any size.
FGK_INLINE F32::Reg scale(F32::Reg x, F32::Reg n, F32) { return _mm512_scalef_ps(x, n); }
FGK_INLINE F64::Reg scale(F64::Reg x, F64::Reg n, F64) { return _mm512_scalef_pd(x, n); }

// Without the special case that x - round(x) would make of infinity.
FGK_INLINE F32::Reg exp2(F32::Reg x, F32) {
  return _mm512_scalef_ps(exp2_fraction<F32>(_mm512_reduce_ps(x, 0x08)), F32::round(x));
}
FGK_INLINE F64::Reg exp2(F64::Reg x, F64) {
  return _mm512_scalef_pd(exp2_fraction<F64>(_mm512_reduce_pd(x, 0x08)), F64::round(x));
}

#else

// 2^n for whole n in the range of normal numbers: adding a power of two puts n into the low bits.
template <class V>
FGK_INLINE typename V::Reg power_of_two(typename V::Reg n) {
  using Index = typename V::Index;
  constexpr bool kFloat = sizeof(typename V::Scalar) == 4;
  constexpr int kFraction = kFloat ? 23 : 52;
  typedef Index Bits __attribute__((vector_size(sizeof(typename V::Reg))));
  const typename V::Reg sum = V::add(n, constant<V>(kFloat ? 12582912.0 : 6755399441055744.0));
  Bits bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  bits = (bits + static_cast<Index>(kFloat ? 127 : 1023)) << kFraction;
  typename V::Reg power;
  std::memcpy(&power, &bits, sizeof(power));
  return power;
}

// x 2^n for whole n whose half is in the range of normal numbers' exponents.
template <class V>
FGK_INLINE typename V::Reg scale(typename V::Reg x, typename V::Reg n, V) {
  const typename V::Reg half = V::round(V::mul(n, constant<V>(0.5)));
  return V::mul(V::mul(x, power_of_two<V>(half)), power_of_two<V>(V::sub(n, half)));
}

template <class V>
FGK_INLINE typename V::Reg exp2(typename V::Reg x, V) {
  constexpr double kLimit = sizeof(typename V::Scalar) == 4 ? 160 : 1100;  // beyond, results are 0 or infinite
  x = V::at_most(V::at_least(x, constant<V>(-kLimit)), constant<V>(kLimit));
  const typename V::Reg whole = V::round(x);
  return scale(exp2_fraction<V>(V::sub(x, whole)), whole, V{});
}

#endif

template <class V>
FGK_INLINE typename V::Reg exp2(typename V::Reg x) {
  return exp2(x, V{});
}

constexpr double kLog2E = 1.4426950408889634;

// exp(x) = 2^n exp(r), where r = x - n log(2) is exact to rounding: log(2) is split so that n times its first part is.
template <class V>
FGK_INLINE typename V::Reg exp(typename V::Reg x) {
  constexpr bool kFloat = sizeof(typename V::Scalar) == 4;
  constexpr double kLimit = kFloat ? 128 : 1024;  // beyond, results are 0 or infinite
  constexpr double kHigh = kFloat ? 0.693359375 : 0.693145751953125;
  constexpr double kLow = kFloat ? -2.12194440054690583e-4 : 1.42860682030941723212e-6;
  x = V::at_most(V::at_least(x, constant<V>(-kLimit)), constant<V>(kLimit));
  const typename V::Reg whole = V::round(V::mul(x, constant<V>(kLog2E)));
  const typename V::Reg rest = V::fma(whole, constant<V>(-kLow), V::fma(whole, constant<V>(-kHigh), x));
  return scale(exp2_fraction<V>(V::mul(rest, constant<V>(kLog2E))), whole, V{});
}

// log(1 + x) for x in [0, 1], exact to rounding relative to x: with w = x / (2 + x) it is 2 atanh(w) = x - w (x - R),
// where R = 2/3 w^2 + 2/5 w^4 + ..., and what is taken from x is small against it.
template <class V>
FGK_INLINE typename V::Reg log1p_unit(typename V::Reg x) {
  const typename V::Reg w = V::div(x, V::add(x, constant<V>(2)));
  const typename V::Reg square = V::mul(w, w);
  typename V::Reg series;
  if constexpr (sizeof(typename V::Scalar) == 4) {
    constexpr double c[] = {0.28178335170454288372, 0.27960602744149209986, 0.40024910278083214443,
                            0.66666314682220040311};
    series = polynomial<V>(c, square);
  } else {
    constexpr double c[] = {0.16503916264548781911, 0.069708490096097336375, 0.10979131530933404493,
                            0.11714900132997571602, 0.13336911444310936559,  0.15384445004217686681,
                            0.18181823500887270284, 0.22222222117241133277,  0.28571428572648732702,
                            0.39999999999992685851, 0.6666666666666668517};
    series = polynomial<V>(c, square);
  }
  return V::sub(x, V::mul(w, V::sub(x, V::mul(square, series))));
}

constexpr double kSoftplusThreshold = 20;  // above it softplus(x) = x, as in PyTorch

// exp(-|x|), which softplus and sigmoid are made of: it never overflows.
template <class V>
FGK_INLINE typename V::Reg exp_minus_abs(typename V::Reg x) {
  return exp<V>(V::sub(V::zero(), V::abs(x)));
}

template <class V>
FGK_INLINE typename V::Reg softplus(typename V::Reg x) {
  const typename V::Reg y = V::add(V::at_least(x, V::zero()), log1p_unit<V>(exp_minus_abs<V>(x)));
  return V::select(V::greater(x, constant<V>(kSoftplusThreshold)), x, y);
}

template <class V>
FGK_INLINE typename V::Reg sigmoid(typename V::Reg x) {
  const typename V::Reg e = exp_minus_abs<V>(x);
  const typename V::Reg one = constant<V>(1);
  // 1 for negative x would lose its relative precision.
  return V::div(V::select(V::greater(V::zero(), x), e, one), V::add(one, e));
}

// d softplus / dx.
template <class V>
FGK_INLINE typename V::Reg softplus_slope(typename V::Reg x) {
  return V::select(V::greater(x, constant<V>(kSoftplusThreshold)), constant<V>(1), sigmoid<V>(x));
}

template <class V>
FGK_INLINE typename V::Reg silu(typename V::Reg x) {
  return V::mul(x, sigmoid<V>(x));
}

// d silu / dx = s (1 + x (1 - s)).
template <class V>
FGK_INLINE typename V::Reg silu_slope(typename V::Reg x) {
  const typename V::Reg s = sigmoid<V>(x);
  const typename V::Reg one = constant<V>(1);
  return V::mul(s, V::fma(x, V::sub(one, s), one));
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
