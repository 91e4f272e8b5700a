// SPDX-License-Identifier: Apache-2.0
// Arithmetic of the device layer on the host: 16-bit formats and the special function unit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/cuda/device_types.h"

namespace fgk::dev {

namespace detail {

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

constexpr uint16_t kNan16 = 0x7FFF;  // the one NaN that conversions to 16 bits make

inline uint16_t round_to_bf16(float x) {
  if (x != x) return kNan16;
  const uint32_t bits = float_bits(x);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t round_to_f16(float x) {
  if (x != x) return kNan16;
  const uint16_t sign = static_cast<uint16_t>((float_bits(x) >> 16) & 0x8000u);
  const uint32_t bits = float_bits(x) & 0x7FFFFFFFu;
  if (bits >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // from 65520 on: infinity
  if (bits < 0x38800000u) {
    // Below 2^-14 the last bit is worth 2^-24: the sum with 0.5, whose last bit is worth that too, rounds as wanted.
    return static_cast<uint16_t>(sign | (float_bits(float_of(bits) + 0.5f) - float_bits(0.5f)));
  }
  const uint32_t rebased = bits - (112u << 23);
  return static_cast<uint16_t>(sign | ((rebased + 0xFFFu + ((rebased >> 13) & 1u)) >> 13));
}

inline float widen_bf16(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

inline float widen_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7FFFu) << 13;
  if (magnitude >= 0x0F800000u) return float_of(sign | 0x7F800000u | (magnitude & 0x007FFFFFu));  // infinity, NaN
  return float_of(sign | float_bits(float_of(magnitude) * 0x1p112f));  // exact, for subnormals too
}

inline float flush(float x) { return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x; }

}  // namespace detail

inline float to_float(bf16 x) { return detail::widen_bf16(x.bits); }
inline float to_float(f16 x) { return detail::widen_f16(x.bits); }

template <class T>
T from_float(float x) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, bf16> || std::is_same_v<T, f16>,
                "T is float, bf16 or f16");
  if constexpr (std::is_same_v<T, bf16>) {
    return {detail::round_to_bf16(x)};
  } else if constexpr (std::is_same_v<T, f16>) {
    return {detail::round_to_f16(x)};
  } else {
    return x;
  }
}

template <class T>
uint32_t pack2(float lo, float hi) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "T is bf16 or f16");
  return from_float<T>(lo).bits | (static_cast<uint32_t>(from_float<T>(hi).bits) << 16);
}
template <class T>
void unpack2(uint32_t bits, float& lo, float& hi) {
  lo = to_float(T{static_cast<uint16_t>(bits & 0xFFFFu)});
  hi = to_float(T{static_cast<uint16_t>(bits >> 16)});
}

inline int first_bit(uint32_t bits) { return __builtin_ctz(bits); }
inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }

inline float exp2_fast(float x) { return detail::flush(std::exp2(detail::flush(x))); }
inline float exp_fast(float x) { return exp2_fast(x * 1.4426950408889634f); }
inline float log2_fast(float x) { return std::log2(detail::flush(x)); }
inline float rcp_fast(float x) { return detail::flush(1.0f / detail::flush(x)); }

}  // namespace fgk::dev
