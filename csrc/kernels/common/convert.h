// SPDX-License-Identifier: Apache-2.0
// Rows of tokens between storage types and the type that is computed in. Included by *_isa.cpp files only.
#pragma once

#include "simd.h"
#include "types.h"

namespace fgk {
namespace FGK_ISA_NS {

FGK_INLINE float bf16_to_f32(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof(x));
  return x;
}

// Round to nearest even; NaN stays a quiet NaN.
FGK_INLINE uint16_t f32_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

#if defined(__F16C__)
FGK_INLINE float f16_to_f32(uint16_t bits) { return _cvtsh_ss(bits); }
FGK_INLINE uint16_t f32_to_f16(float x) { return static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__aarch64__)
FGK_INLINE float f16_to_f32(uint16_t bits) {
  __fp16 x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
FGK_INLINE uint16_t f32_to_f16(float value) {
  const __fp16 x = static_cast<__fp16>(value);
  uint16_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
#else
FGK_INLINE float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t magnitude = bits & 0x7FFF;
  uint32_t wide;
  if (magnitude >= 0x7C00) {  // Inf, NaN
    wide = sign | 0x7F800000 | ((magnitude & 0x3FF) << 13);
  } else if (magnitude >= 0x400) {
    wide = sign | ((magnitude << 13) + 0x38000000);
  } else {  // zero and subnormals: magnitude * 2^-24 is exact in fp32
    const float x = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    std::memcpy(&wide, &x, sizeof(wide));
    wide |= sign;
  }
  float x;
  std::memcpy(&x, &wide, sizeof(x));
  return x;
}
FGK_INLINE uint16_t f32_to_f16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return sign | 0x7E00;
  if (bits >= 0x477FF000) return sign | 0x7C00;  // rounds past 65504
  if (bits >= 0x38800000) {
    return static_cast<uint16_t>(sign | ((bits - 0x38000000 + 0xFFF + ((bits >> 13) & 1)) >> 13));
  }
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof(magnitude));
  magnitude += 0.5f;  // aligns the subnormal's last bit with fp32's last bit and rounds to nearest even
  std::memcpy(&bits, &magnitude, sizeof(bits));
  return static_cast<uint16_t>(sign | (bits - 0x3F000000));
}
#endif

// dst[k] = scale * src[k]; scale differs from 1 for int8 only.
template <class S>
void widen_row(S* dst, const void* src, DType dtype, int64_t n, float scale) {
  switch (dtype) {
    case DType::f32: {
      const float* x = static_cast<const float*>(src);
      for (int64_t k = 0; k < n; ++k) dst[k] = x[k];
      break;
    }
    case DType::f64: {
      const double* x = static_cast<const double*>(src);
      for (int64_t k = 0; k < n; ++k) dst[k] = static_cast<S>(x[k]);
      break;
    }
    case DType::bf16: {
      const uint16_t* x = static_cast<const uint16_t*>(src);
      for (int64_t k = 0; k < n; ++k) dst[k] = bf16_to_f32(x[k]);
      break;
    }
    case DType::f16: {
      const uint16_t* x = static_cast<const uint16_t*>(src);
      int64_t k = 0;
#if defined(__F16C__)
      if (sizeof(S) == sizeof(float)) {
#if defined(__AVX512F__)
        for (; k + 16 <= n; k += 16) {
          const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + k));
          _mm512_storeu_ps(reinterpret_cast<float*>(dst + k), _mm512_cvtph_ps(half));
        }
#endif
        for (; k + 8 <= n; k += 8) {
          const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + k));
          _mm256_storeu_ps(reinterpret_cast<float*>(dst + k), _mm256_cvtph_ps(half));
        }
      }
#endif
      for (; k < n; ++k) dst[k] = f16_to_f32(x[k]);
      break;
    }
    case DType::i8: {
      const int8_t* x = static_cast<const int8_t*>(src);
      const S factor = scale;
      for (int64_t k = 0; k < n; ++k) dst[k] = factor * static_cast<S>(x[k]);
      break;
    }
  }
}

// Stores fp32 or fp64 accumulators in a gradient's dtype.
template <class S>
void narrow_row(void* dst, DType dtype, const S* src, int64_t n) {
  switch (dtype) {
    case DType::f32:
      for (int64_t k = 0; k < n; ++k) static_cast<float*>(dst)[k] = static_cast<float>(src[k]);
      break;
    case DType::f64:
      for (int64_t k = 0; k < n; ++k) static_cast<double*>(dst)[k] = src[k];
      break;
    case DType::bf16:
      for (int64_t k = 0; k < n; ++k) static_cast<uint16_t*>(dst)[k] = f32_to_bf16(static_cast<float>(src[k]));
      break;
    case DType::f16:
      for (int64_t k = 0; k < n; ++k) static_cast<uint16_t*>(dst)[k] = f32_to_f16(static_cast<float>(src[k]));
      break;
    case DType::i8:
      break;  // int8 tokens take no gradient; the op layer refuses them
  }
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
