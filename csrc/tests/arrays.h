// SPDX-License-Identifier: Apache-2.0
// Arrays of test programs in any storage type, read and written as doubles.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/common/types.h"

namespace arrays {

using fgk::DType;

constexpr DType kFloatTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16};

inline DType accumulation(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// Largest relative error of rounding to a type once.
inline double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 0x1p-53;
    case DType::f32:
      return 0x1p-24;
    case DType::bf16:
      return 0x1p-8;  // of 8 bits
    default:
      return 0x1p-11;
  }
}

// To nearest even, for finite numbers in the normal or subnormal range of fp16.
inline uint16_t to_f16_bits(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double size = std::fabs(x);
  if (size < 0x1p-14) return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 24))));
  int exponent = 0;
  std::frexp(size, &exponent);
  const double mantissa = std::nearbyint(std::ldexp(size, 11 - exponent));  // in [1024, 2048]
  return static_cast<uint16_t>(sign | static_cast<uint16_t>((exponent + 13) * 1024 + static_cast<int>(mantissa)));
}

inline double from_f16_bits(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const double mantissa = bits & 1023;
  double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  if (exponent == 31) size = mantissa == 0 ? std::numeric_limits<double>::infinity() : NAN;
  return bits >> 15 ? -size : size;
}

inline double read(DType dtype, const void* data, int64_t i) {
  if (dtype == DType::f64) return static_cast<const double*>(data)[i];
  if (dtype == DType::f32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  if (dtype == DType::f16) return from_f16_bits(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

inline void write(DType dtype, void* data, int64_t i, double x) {
  if (dtype == DType::f64) {
    static_cast<double*>(data)[i] = x;
  } else if (dtype == DType::f32) {
    static_cast<float*>(data)[i] = static_cast<float>(x);
  } else if (dtype == DType::f16) {
    static_cast<uint16_t*>(data)[i] = to_f16_bits(x);
  } else {
    const float narrow = static_cast<float>(x);
    uint32_t wide;
    std::memcpy(&wide, &narrow, 4);
    static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
  }
}

// Elements of one type, all NaN at first, `lead` elements behind an address that is divisible by 16.
class Array {
 public:
  Array() = default;
  Array(DType dtype, int64_t count, int64_t lead = 0)
      : dtype_(dtype), count_(count), lead_(lead * fgk::dtype_bytes(dtype)) {
    bytes_.assign(static_cast<size_t>(lead_ + count * fgk::dtype_bytes(dtype)), 0xFF);
  }
  int64_t count() const { return count_; }
  void* data() { return bytes_.empty() ? nullptr : bytes_.data() + lead_; }
  const void* data() const { return bytes_.empty() ? nullptr : bytes_.data() + lead_; }
  double get(int64_t i) const { return read(dtype_, data(), i); }
  void set(int64_t i, double x) { write(dtype_, data(), i, x); }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

  // Each element from `draw`.
  void fill(const std::function<double()>& draw) {
    for (int64_t i = 0; i < count_; ++i) set(i, draw());
  }

 private:
  DType dtype_ = DType::f32;
  int64_t count_ = 0;
  int64_t lead_ = 0;
  std::vector<uint8_t> bytes_;
};

inline std::function<double()> normal(std::mt19937& random, double scale = 1) {
  return [&random, scale] { return scale * std::normal_distribution<double>()(random); };
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double silu(double x) { return x * sigmoid(x); }
inline double silu_slope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }

}  // namespace arrays
