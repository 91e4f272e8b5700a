// SPDX-License-Identifier: Apache-2.0
// The probes' loops do the work they report, at the level FGKERNELS_ISA names; no time is asserted.
#include "kernels/cpu/probe.h"

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "check.h"

namespace fgk {
#define FGK_DECLARE(level)                              \
  namespace level {                                     \
  double probe_float32(int64_t iterations);             \
  double probe_float64(int64_t iterations);             \
  double probe_bfloat16(int64_t iterations);            \
  double probe_int8(int64_t iterations);                \
  double probe_exp_fma(int64_t iterations);             \
  uint64_t probe_read(const void* data, int64_t bytes); \
  }
FGK_FOR_EACH_ISA(FGK_DECLARE)
#undef FGK_DECLARE
}  // namespace fgk

TEST(operations_are_proportional_to_iterations_and_lanes) {
#define FGK_CASE(level)                                                       \
  if (fgk::current_isa() == fgk::Isa::level) {                                \
    const double one = fgk::level::probe_float32(1);                          \
    CHECK(one > 0);                                                           \
    CHECK_EQ(fgk::level::probe_float32(7), 7 * one);                          \
    CHECK_EQ(fgk::level::probe_float64(1), one / 2);                          \
    const bool dot = fgk::Isa::level == fgk::Isa::avx512_bf16;                \
    CHECK_EQ(fgk::level::probe_bfloat16(3), 3 * (dot ? 2 : 1) * one);         \
    CHECK_EQ(fgk::level::probe_int8(3), 3 * (dot ? 4 : 1) * one);             \
    CHECK(fgk::level::probe_exp_fma(1) > 0);                                  \
    CHECK_EQ(fgk::level::probe_exp_fma(5), 5 * fgk::level::probe_exp_fma(1)); \
  }
  FGK_FOR_EACH_ISA(FGK_CASE)
#undef FGK_CASE
}

TEST(read_touches_every_cache_line) {
  alignas(64) static uint64_t data[1024];
  for (uint64_t& x : data) x = 1;
  // Lane 0 of each vector is summed; a line holds 8 words, so a vector of B bytes counts once per B / 8 words.
#define FGK_CASE(level)                                              \
  if (fgk::current_isa() == fgk::Isa::level) {                       \
    const uint64_t all = fgk::level::probe_read(data, sizeof(data)); \
    CHECK(all == 1024 / 2 || all == 1024 / 4 || all == 1024 / 8);    \
    for (int line = 0; line < 128; ++line) {                         \
      data[8 * line] = 0;                                            \
      CHECK_EQ(fgk::level::probe_read(data, sizeof(data)), all - 1); \
      data[8 * line] = 1;                                            \
    }                                                                \
    CHECK_EQ(fgk::level::probe_read(data, 0), uint64_t{0});          \
  }
  FGK_FOR_EACH_ISA(FGK_CASE)
#undef FGK_CASE
}

TEST(rates_are_finite_for_one_and_several_threads) {
  for (int threads : {1, 3}) {
    for (int type = 0; type < 5; ++type) {
      const double rate = fgk::probe_fma(static_cast<fgk::ProbeType>(type), threads, 0.01);
      CHECK(rate > 0 && std::isfinite(rate));
    }
    const double rate = fgk::probe_read(threads, 4, 0.01);
    CHECK(rate > 0 && std::isfinite(rate));
  }
}

TEST(bad_arguments_are_refused) {
  using fgk::ProbeType;
  for (int threads : {0, -1, 5000}) {
    CHECK_THROWS(fgk::probe_fma(ProbeType::float32, threads, 0.01), std::invalid_argument);
    CHECK_THROWS(fgk::probe_read(threads, 1, 0.01), std::invalid_argument);
  }
  for (double bad : {0.0, -1.0, 1e9, static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    CHECK_THROWS(fgk::probe_fma(ProbeType::float32, 1, bad), std::invalid_argument);
    CHECK_THROWS(fgk::probe_read(1, bad, 0.01), std::invalid_argument);
    CHECK_THROWS(fgk::probe_read(1, 1, bad), std::invalid_argument);
  }
  CHECK_THROWS(fgk::probe_fma(static_cast<ProbeType>(9), 1, 0.01), std::invalid_argument);
}
