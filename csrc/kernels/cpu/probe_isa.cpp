// SPDX-License-Identifier: Apache-2.0
// The inner loops of the probes, compiled once per ISA level. Each returns the operations it did.
#include <cstdint>

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define FGK_BYTES 64
#define FGK_ACCUMULATORS 24
#elif defined(__AVX__)
#define FGK_BYTES 32
#define FGK_ACCUMULATORS 12
#elif defined(__aarch64__)
#define FGK_BYTES 16
#define FGK_ACCUMULATORS 24
#else
#define FGK_BYTES 16
#define FGK_ACCUMULATORS 12
#endif

namespace fgk {
namespace FGK_ISA_NS {
namespace {

typedef float F32 __attribute__((vector_size(FGK_BYTES)));
typedef double F64 __attribute__((vector_size(FGK_BYTES)));
typedef uint64_t U64 __attribute__((vector_size(FGK_BYTES)));

// Enough independent chains to hide the latency of every FMA pipe; x -> 0.5 x + 0.5 stays near 1, free of subnormals.
template <class V>
double fma_chains(int64_t iterations, V* sink) {
  V accumulators[FGK_ACCUMULATORS];
  const V half = V{} + 0.5f;
#pragma GCC unroll 32
  for (int i = 0; i < FGK_ACCUMULATORS; ++i) accumulators[i] = V{} + (1.0f + 0.125f * i);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 32
    for (int i = 0; i < FGK_ACCUMULATORS; ++i) accumulators[i] = accumulators[i] * half + half;
  }
#pragma GCC unroll 32
  for (int i = 0; i < FGK_ACCUMULATORS; ++i) *sink += accumulators[i];
  return 2.0 * FGK_ACCUMULATORS * (sizeof(V) / sizeof((*sink)[0])) * static_cast<double>(iterations);
}

}  // namespace

double probe_float32(int64_t iterations) {
  F32 sink{};
  const double operations = fma_chains(iterations, &sink);
  asm volatile("" : : "m"(sink));
  return operations;
}

double probe_float64(int64_t iterations) {
  F64 sink{};
  const double operations = fma_chains(iterations, &sink);
  asm volatile("" : : "m"(sink));
  return operations;
}

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)

double probe_bfloat16(int64_t iterations) {
  __m512 accumulators[FGK_ACCUMULATORS];
  const __m512bh ones = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0f), _mm512_set1_ps(1.0f));
#pragma GCC unroll 32
  for (int i = 0; i < FGK_ACCUMULATORS; ++i) accumulators[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 32
    for (int i = 0; i < FGK_ACCUMULATORS; ++i) accumulators[i] = _mm512_dpbf16_ps(accumulators[i], ones, ones);
  }
  __m512 sink = _mm512_setzero_ps();
#pragma GCC unroll 32
  for (int i = 0; i < FGK_ACCUMULATORS; ++i) sink = _mm512_add_ps(sink, accumulators[i]);
  asm volatile("" : : "m"(sink));
  return 64.0 * FGK_ACCUMULATORS * static_cast<double>(iterations);
}

double probe_int8(int64_t iterations) {
  __m512i accumulators[FGK_ACCUMULATORS];
  const __m512i ones = _mm512_set1_epi8(1);
#pragma GCC unroll 32
  for (int i = 0; i < FGK_ACCUMULATORS; ++i) accumulators[i] = _mm512_set1_epi32(i);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 32
    for (int i = 0; i < FGK_ACCUMULATORS; ++i) accumulators[i] = _mm512_dpbusd_epi32(accumulators[i], ones, ones);
  }
  __m512i sink = _mm512_setzero_si512();
#pragma GCC unroll 32
  for (int i = 0; i < FGK_ACCUMULATORS; ++i) sink = _mm512_add_epi32(sink, accumulators[i]);
  asm volatile("" : : "m"(sink));
  return 128.0 * FGK_ACCUMULATORS * static_cast<double>(iterations);
}

#else

double probe_bfloat16(int64_t iterations) { return probe_float32(iterations); }
double probe_int8(int64_t iterations) { return probe_float32(iterations); }

#endif

// Reads [data, data + bytes), 64-byte aligned and a multiple of 512 bytes long; the sum keeps the loads alive.
uint64_t probe_read(const void* data, int64_t bytes) {
  constexpr int kUnroll = 512 / FGK_BYTES;
  const U64* p = static_cast<const U64*>(data);
  const U64* end = p + bytes / FGK_BYTES;
  U64 sums[8] = {};
  for (; p < end; p += kUnroll) {
#pragma GCC unroll 32
    for (int i = 0; i < kUnroll; ++i) sums[i % 8] += p[i];
  }
  U64 total{};
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) total += sums[i];
  return total[0];
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
