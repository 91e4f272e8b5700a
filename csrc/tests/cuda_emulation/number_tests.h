// SPDX-License-Identifier: Apache-2.0
// Conversions, special functions and atomics. A rounding is right when no representable number is nearer, which is
// looked up among all of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "device_test.h"

namespace number_tests {

namespace dev = fgk::dev;
using dev::bf16;
using dev::f16;
using dev::gptr;
using dev::sptr;
using device_test::Array;
using device_test::in_every_order;

// ---- 16-bit formats

template <class T>
constexpr int kDigits = std::is_same_v<T, bf16> ? 7 : 10;
template <class T>
constexpr int kBias = std::is_same_v<T, bf16> ? 127 : 15;

// The value of finite bits, by IEEE 754's definition.
template <class T>
double value_of(uint16_t bits) {
  const int mantissa = bits & ((1 << kDigits<T>)-1);
  const int exponent = (bits & 0x7FFF) >> kDigits<T>;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, 1 - kBias<T> - kDigits<T>)
                                         : std::ldexp(mantissa + (1 << kDigits<T>), exponent - kBias<T> - kDigits<T>);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

template <class T>
constexpr uint16_t kInfinity = std::is_same_v<T, bf16> ? 0x7F80 : 0x7C00;

template <class T>
FGK_GLOBAL void widen_kernel(gptr<const T> in, gptr<float> out) {
  const int64_t i = dev::bid() * dev::block_threads() + dev::tid();
  out.st(i, dev::to_float(in.ld(i)));
}

template <class T>
void check_widening() {
  Array<T> in(65536);
  for (int i = 0; i < 65536; ++i) in.host[i].bits = static_cast<uint16_t>(i);
  Array<float> out(65536);
  dev::Buffers buffers;
  dev::launch("widen", widen_kernel<T>, {256, 256, 0}, nullptr, buffers.in(in.to_device(), in.count(), "in"),
              buffers.out(out.to_device(), out.count(), "out"));
  out.from_device();
  for (int i = 0; i < 65536; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    const float got = out.host[i];
    if ((bits & 0x7FFF) > kInfinity<T>) {
      CHECK(std::isnan(got));
    } else if ((bits & 0x7FFF) == kInfinity<T>) {
      CHECK(std::isinf(got) && std::signbit(got) == (bits >= 0x8000));
    } else {
      CHECK_EQ(static_cast<double>(got), value_of<T>(bits));
      CHECK_EQ(std::signbit(got), bits >= 0x8000);
    }
  }
}

TEST(every_16_bit_pattern_widens_to_its_value) {
  check_widening<bf16>();
  check_widening<f16>();
}

template <class T>
FGK_GLOBAL void narrow_kernel(gptr<const float> in, gptr<T> one, gptr<uint32_t> two, gptr<float> back, int64_t count) {
  const int64_t i = dev::bid() * dev::block_threads() + dev::tid();
  if (i >= count) return;
  const float x = in.ld(i);
  const float y = in.ld(count - 1 - i);
  one.st(i, dev::from_float<T>(x));
  const uint32_t pair = dev::pack2<T>(x, y);
  two.st(i, pair);
  float lo;
  float hi;
  dev::unpack2<T>(pair, lo, hi);
  back.st(2 * i, lo);
  back.st(2 * i + 1, hi);
}

// The pattern nearest to |x|: of two that are equally near, the even one. Infinity stands where the next power of two
// would be.
template <class T>
uint16_t nearest(double magnitude) {
  uint16_t low = 0;
  uint16_t high = kInfinity<T>;
  const auto value = [](uint16_t bits) {
    return bits == kInfinity<T> ? std::ldexp(1.0, kBias<T> + 1) : value_of<T>(bits);
  };
  if (magnitude >= value(high)) return high;
  while (high - low > 1) {
    const uint16_t middle = static_cast<uint16_t>((low + high) / 2);
    (value(middle) <= magnitude ? low : high) = middle;
  }
  const double below = magnitude - value(low);
  const double above = value(high) - magnitude;
  if (below != above) return below < above ? low : high;
  return low % 2 == 0 ? low : high;
}

template <class T>
std::vector<float> tricky_numbers() {
  std::vector<float> numbers = {0.0f,   -0.0f,    1e-45f,    -1e-45f,  3e38f,
                                -3e38f, 65504.0f, 65519.99f, 65520.0f, 1.0f / 3.0f};
  uint32_t random = 99;
  for (int i = 0; i < 3000; ++i) {
    random = random * 1664525u + 1013904223u;
    // Each representable number, halfway to the next one, and a float to either side of both.
    const uint16_t bits = static_cast<uint16_t>((random >> 16) % kInfinity<T>);
    const double next = bits + 1 == kInfinity<T> ? std::ldexp(1.0, kBias<T> + 1) : value_of<T>(bits + 1);
    for (const double x : {value_of<T>(bits), (value_of<T>(bits) + next) / 2}) {
      const float f = static_cast<float>(x);
      numbers.push_back((random & 1) != 0 ? -f : f);
      numbers.push_back(std::nextafter(f, 1e30f));
      numbers.push_back(-std::nextafter(f, 0.0f));
    }
  }
  return numbers;
}

template <class T>
void check_narrowing() {
  std::vector<float> numbers = tricky_numbers<T>();
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float x : {infinity, -infinity, nan, -nan}) numbers.push_back(x);
  const int64_t count = static_cast<int64_t>(numbers.size());
  Array<float> in(numbers);
  Array<T> one(numbers.size());
  Array<uint32_t> two(numbers.size());
  Array<float> back(2 * numbers.size());
  dev::Buffers buffers;
  dev::launch("narrow", narrow_kernel<T>, {(count + 127) / 128, 128, 0}, nullptr,
              buffers.in(in.to_device(), count, "in"), buffers.out(one.to_device(), count, "one"),
              buffers.out(two.to_device(), count, "two"), buffers.out(back.to_device(), 2 * count, "back"), count);
  one.from_device();
  two.from_device();
  back.from_device();
  for (int64_t i = 0; i < count; ++i) {
    const float x = numbers[i];
    uint16_t expected = 0x7FFF;
    if (!std::isnan(x)) {
      const uint16_t magnitude = std::isinf(x) ? kInfinity<T> : nearest<T>(std::fabs(static_cast<double>(x)));
      expected = static_cast<uint16_t>(magnitude | (std::signbit(x) ? 0x8000 : 0));
    }
    CHECK_EQ(one.host[i].bits, expected);
    CHECK_EQ(two.host[i] & 0xFFFF, uint32_t{expected});
    CHECK_EQ(two.host[count - 1 - i] >> 16, uint32_t{expected});
    for (const float y : {back.host[2 * i], back.host[2 * (count - 1 - i) + 1]}) {
      if (std::isnan(x)) {
        CHECK(std::isnan(y));
      } else if ((expected & 0x7FFF) == kInfinity<T>) {
        CHECK(std::isinf(y) && std::signbit(y) == std::signbit(x));
      } else {
        CHECK_EQ(static_cast<double>(y), value_of<T>(expected));
      }
    }
  }
}

TEST(floats_round_to_the_nearest_16_bit_number_ties_to_even) {
  check_narrowing<bf16>();
  check_narrowing<f16>();
}

// ---- special functions and comparisons

FGK_GLOBAL void functions_kernel(gptr<const float> in, gptr<float> out, int64_t count) {
  const int64_t i = dev::bid() * dev::block_threads() + dev::tid();
  if (i >= count) return;
  const float x = in.ld(i);
  out.st(4 * i, dev::exp2_fast(x));
  out.st(4 * i + 1, dev::exp_fast(x));
  out.st(4 * i + 2, dev::log2_fast(x));
  out.st(4 * i + 3, dev::rcp_fast(x));
}

std::vector<float> functions_of(const std::vector<float>& values) {
  Array<float> in(values);
  Array<float> out(4 * values.size());
  dev::Buffers buffers;
  dev::launch("functions", functions_kernel, {(in.count() + 127) / 128, 128, 0}, nullptr,
              buffers.in(in.to_device(), in.count(), "in"), buffers.out(out.to_device(), out.count(), "out"),
              in.count());
  out.from_device();
  return out.host;
}

TEST(fast_functions_are_near_the_true_ones) {
  std::vector<float> values;
  for (int i = 0; i < 1000; ++i) {
    const float x = static_cast<float>(i) * 0.0797f + 0.01f;
    values.push_back(x);
    values.push_back(-x);
  }
  const std::vector<float> got = functions_of(values);
  for (size_t i = 0; i < values.size(); ++i) {
    const double x = values[i];
    // The manual: 2^-22 relative for ex2, rcp; 2^-22 absolute near 1 for lg2. exp_fast also rounds x log2(e).
    const double unit = std::ldexp(1.0, -22);
    CHECK_NEAR(got[4 * i] / std::exp2(x), 1.0, 2 * unit);
    CHECK_NEAR(got[4 * i + 1] / std::exp(x), 1.0, unit * (2 + 0.5 * std::fabs(x)));
    if (x > 0) CHECK_NEAR(got[4 * i + 2], std::log2(x), unit * (1 + std::fabs(std::log2(x))));
    CHECK_NEAR(got[4 * i + 3] * x, 1.0, 2 * unit);
  }
}

TEST(fast_functions_at_the_edges) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float tiny = std::ldexp(1.0f, -140);  // subnormal: counts as zero
  const std::vector<float> got = functions_of({infinity, -infinity, 0.0f, tiny, -130.0f, 128.0f, std::ldexp(1.0f, 127),
                                               -1.0f, std::numeric_limits<float>::quiet_NaN()});
  CHECK_EQ(got[0], infinity);
  CHECK_EQ(got[1], infinity);
  CHECK_EQ(got[2], infinity);
  CHECK_EQ(got[3], 0.0f);
  CHECK_EQ(got[4], 0.0f);
  CHECK_EQ(got[5], 0.0f);
  CHECK_EQ(got[4 * 2], 1.0f);
  CHECK_EQ(got[4 * 2 + 1], 1.0f);
  CHECK_EQ(got[4 * 2 + 2], -infinity);
  CHECK_EQ(got[4 * 2 + 3], infinity);
  CHECK_EQ(got[4 * 3], 1.0f);
  CHECK_EQ(got[4 * 3 + 2], -infinity);
  CHECK_EQ(got[4 * 3 + 3], infinity);
  CHECK_EQ(got[4 * 4], 0.0f);      // 2^-130 is subnormal
  CHECK_EQ(got[4 * 5], infinity);  // 2^128
  CHECK_EQ(got[4 * 6 + 3], 0.0f);  // 2^-127 is subnormal
  CHECK(std::isnan(got[4 * 7 + 2]));
  for (int f = 0; f < 4; ++f) CHECK(std::isnan(got[4 * 8 + f]));
}

FGK_GLOBAL void compare_kernel(gptr<float> out) {
  if (dev::tid() != 0) return;
  const float nan = dev::log2_fast(-1.0f);
  out.st(0, dev::max(nan, -2.0f));
  out.st(1, dev::min(-2.0f, nan));
  out.st(2, dev::max(-3.0f, -2.0f));
  out.st(3, dev::isnan(nan) ? 1.0f : 0.0f);
  out.st(4, dev::isnan(-2.0f) ? 1.0f : 0.0f);
  // 1 + 2^-12 squared is 1 + 2^-11 + 2^-24, whose last bit only a fused multiply-add keeps.
  const float x = 1.0f + 0x1p-12f;
  out.st(5, dev::fma(x, x, -1.0f - 0x1p-11f));
  out.st(6, static_cast<float>(dev::max(-5, 3) + dev::min(int64_t{-7}, int64_t{2})));
  out.st(7, static_cast<float>(dev::max(dev::min(2.5, 3.5), -1.0)));
}

TEST(comparisons_and_fused_multiply_add) {
  Array<float> out(8);
  dev::Buffers buffers;
  dev::launch("compare", compare_kernel, {1, 32, 0}, nullptr, buffers.out(out.to_device(), 8, "out"));
  out.from_device();
  const float expected[] = {-2.0f, -2.0f, -2.0f, 1.0f, 0.0f, 0x1p-24f, -4.0f, 2.5f};
  for (int i = 0; i < 8; ++i) CHECK_EQ(out.host[i], expected[i]);
}

FGK_GLOBAL void bits_kernel(gptr<const uint32_t> in, gptr<int32_t> out) {
  const uint32_t bits = in.ld(dev::tid());
  out.st(2 * dev::tid(), dev::first_bit(bits));
  out.st(2 * dev::tid() + 1, dev::count_bits(bits));
}

TEST(bits_are_found_and_counted) {
  Array<uint32_t> in(96);
  for (int i = 0; i < 32; ++i) in.host[i] = uint32_t{1} << i;
  for (int i = 0; i < 32; ++i) in.host[32 + i] = 0xFFFFFFFFu << i;
  for (int i = 0; i < 32; ++i) in.host[64 + i] = 0x80000000u | (static_cast<uint32_t>(i) * 0x01234567u) | 0x100u;
  Array<int32_t> out(2 * 96);
  dev::Buffers buffers;
  dev::launch("bits", bits_kernel, {1, 96, 0}, nullptr, buffers.in(in.to_device(), 96, "in"),
              buffers.out(out.to_device(), out.count(), "out"));
  out.from_device();
  for (int i = 0; i < 96; ++i) {
    int first = 0;
    int count = 0;
    for (int bit = 31; bit >= 0; --bit) {
      if (in.host[i] / (uint32_t{1} << bit) % 2 == 1) {
        first = bit;
        ++count;
      }
    }
    CHECK_EQ(out.host[2 * i], first);
    CHECK_EQ(out.host[2 * i + 1], count);
  }
}

// ---- atomics

// Every thread adds 1 to one of three global counters and to one of two in shared memory.
template <class T>
FGK_GLOBAL void count_kernel(gptr<T> counters, gptr<T> seen, gptr<T> per_block) {
  dev::Shared shared;
  const sptr<T> local = shared.take<T>(2);
  if (dev::tid() < 2) local.st(dev::tid(), T{0});
  dev::sync_block();
  const int64_t i = dev::bid() * dev::block_threads() + dev::tid();
  seen.st(i, dev::atomic_add(counters, i % 3, T{1}));
  dev::atomic_add(local, dev::tid() % 2, T{1});
  dev::sync_block();
  if (dev::tid() < 2) per_block.st(dev::bid() * 2 + dev::tid(), local.ld(dev::tid()));
}

template <class T>
void check_counting() {
  constexpr int kBlocks = 4;
  constexpr int kCount = kBlocks * 96;
  Array<T> counters(std::vector<T>{T{10}, T{20}, T{30}});
  Array<T> seen(kCount);
  Array<T> per_block(kBlocks * 2);
  dev::Buffers buffers;
  dev::launch("count", count_kernel<T>, {kBlocks, 96, 32}, nullptr, buffers.inout(counters.to_device(), 3, "counters"),
              buffers.out(seen.to_device(), kCount, "seen"),
              buffers.out(per_block.to_device(), per_block.count(), "per_block"));
  counters.from_device();
  seen.from_device();
  per_block.from_device();
  for (int c = 0; c < 3; ++c) {
    const T start = static_cast<T>(10 * (c + 1));
    CHECK_EQ(counters.host[c], start + T{kCount / 3});
    // The old values of one counter are all different: each addition saw the one before.
    std::vector<T> old;
    for (int i = c; i < kCount; i += 3) old.push_back(seen.host[i]);
    std::sort(old.begin(), old.end());
    for (size_t i = 0; i < old.size(); ++i) CHECK_EQ(old[i], start + static_cast<T>(i));
  }
  for (const T n : per_block.host) CHECK_EQ(n, T{48});
}

TEST(atomic_additions_lose_nothing) {
  in_every_order([] {
    check_counting<int32_t>();
    check_counting<uint32_t>();
    check_counting<float>();
    check_counting<double>();
  });
}

FGK_GLOBAL void atomic_max_kernel(gptr<const int32_t> in, gptr<int32_t> out) {
  dev::Shared shared;
  const sptr<int32_t> local = shared.take<int32_t>(1);
  if (dev::tid() == 0) local.st(0, -2000000000);
  dev::sync_block();
  const int32_t v = in.ld(dev::bid() * dev::block_threads() + dev::tid());
  dev::atomic_max(local, 0, v);
  dev::atomic_max(out, 0, v);
  dev::sync_block();
  if (dev::tid() == 0) out.st(1 + dev::bid(), local.ld(0));
}

TEST(atomic_maxima_of_negative_numbers) {
  in_every_order([] {
    Array<int32_t> in(3 * 64);
    for (int i = 0; i < 3 * 64; ++i) in.host[i] = -1000 - (i * 7919) % 5000;
    Array<int32_t> out(4, std::numeric_limits<int32_t>::min());
    dev::Buffers buffers;
    dev::launch("atomic_max", atomic_max_kernel, {3, 64, 16}, nullptr, buffers.in(in.to_device(), in.count(), "in"),
                buffers.inout(out.to_device(), 4, "out"));
    out.from_device();
    CHECK_EQ(out.host[0], *std::max_element(in.host.begin(), in.host.end()));
    for (int b = 0; b < 3; ++b) {
      CHECK_EQ(out.host[1 + b], *std::max_element(in.host.begin() + b * 64, in.host.begin() + b * 64 + 64));
    }
  });
}

}  // namespace number_tests
