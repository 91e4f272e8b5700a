// SPDX-License-Identifier: Apache-2.0
// The inner loops of the probes, compiled once per ISA level. Each returns the operations it did.
#include <cstdint>

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

// FGK_EACH(X) names the accumulators one by one: as an array they would not all stay in registers.
#define FGK_TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define FGK_TWENTY_FOUR(X) FGK_TWELVE(X) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)

#if defined(__AVX512F__)
#define FGK_BYTES 64
#define FGK_REGISTER "v"
#define FGK_EACH FGK_TWENTY_FOUR
#elif defined(__AVX__)
#define FGK_BYTES 32
#define FGK_REGISTER "x"
#define FGK_EACH FGK_TWELVE
#elif defined(__aarch64__)
#define FGK_BYTES 16
#define FGK_REGISTER "w"
#define FGK_EACH FGK_TWENTY_FOUR
#elif defined(__x86_64__)
#define FGK_BYTES 16
#define FGK_REGISTER "x"
#define FGK_EACH FGK_TWELVE
#else
#define FGK_BYTES 16
#define FGK_REGISTER "m"
#define FGK_EACH FGK_TWELVE
#endif

namespace fgk {
namespace FGK_ISA_NS {
namespace {

#define FGK_ONE(i) +1
constexpr int kAccumulators = 0 FGK_EACH(FGK_ONE);
#undef FGK_ONE

// Enough independent chains to hide the latency of every FMA pipe; x -> 0.5 x + 0.5 stays near 1, free of subnormals.
#define FGK_START(i) V a##i = one * Scalar(i + 1);
#define FGK_STEP(i) a##i = a##i * half + half;
#define FGK_KEEP(i) asm volatile("" : : FGK_REGISTER(a##i));
template <class Scalar>
double fma_chains(int64_t iterations) {
  typedef Scalar V __attribute__((vector_size(FGK_BYTES)));
  const V one = V{} + Scalar(1);
  V half = one * Scalar(0.5);
  asm volatile("" : "+" FGK_REGISTER(half));  // in a register, not a load per multiply-add
  FGK_EACH(FGK_START)
  for (int64_t n = 0; n < iterations; ++n) {
    FGK_EACH(FGK_STEP)
  }
  FGK_EACH(FGK_KEEP)
  return 2.0 * kAccumulators * (FGK_BYTES / sizeof(Scalar)) * static_cast<double>(iterations);
}
#undef FGK_START
#undef FGK_STEP

}  // namespace

double probe_float32(int64_t iterations) { return fma_chains<float>(iterations); }
double probe_float64(int64_t iterations) { return fma_chains<double>(iterations); }

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)

// The instructions are written out because the intrinsics make some compilers copy every accumulator around.
double probe_bfloat16(int64_t iterations) {
  const __m512i ones = _mm512_set1_epi16(0x3f80);
#define FGK_START(i) __m512 a##i = _mm512_set1_ps(i);
#define FGK_STEP(i) asm volatile("vdpbf16ps %1, %1, %0" : "+v"(a##i) : "v"(ones));
  FGK_EACH(FGK_START)
  for (int64_t n = 0; n < iterations; ++n) {
    FGK_EACH(FGK_STEP)
  }
  FGK_EACH(FGK_KEEP)
#undef FGK_START
#undef FGK_STEP
  return 64.0 * kAccumulators * static_cast<double>(iterations);
}

double probe_int8(int64_t iterations) {
  const __m512i ones = _mm512_set1_epi8(1);
#define FGK_START(i) __m512i a##i = _mm512_set1_epi32(i);
#define FGK_STEP(i) asm volatile("vpdpbusd %1, %1, %0" : "+v"(a##i) : "v"(ones));
  FGK_EACH(FGK_START)
  for (int64_t n = 0; n < iterations; ++n) {
    FGK_EACH(FGK_STEP)
  }
  FGK_EACH(FGK_KEEP)
#undef FGK_START
#undef FGK_STEP
  return 128.0 * kAccumulators * static_cast<double>(iterations);
}

#else

double probe_bfloat16(int64_t iterations) { return probe_float32(iterations); }
double probe_int8(int64_t iterations) { return probe_float32(iterations); }

#endif

typedef uint64_t U64 __attribute__((vector_size(FGK_BYTES)));

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
