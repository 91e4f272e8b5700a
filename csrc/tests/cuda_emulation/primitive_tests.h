// SPDX-License-Identifier: Apache-2.0
// Each primitive of the device layer against a statement of what it does that owes nothing to the emulator: the rules
// of the PTX manual and of IEEE 754. The emulated test and the one for GPUs include this file.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "device_test.h"

namespace primitive_tests {

namespace dev = fgk::dev;
using dev::bf16;
using dev::f16;
using dev::gptr;
using dev::sptr;
using device_test::Array;
using device_test::in_every_order;

constexpr int kWarp = 32;

// ---- indices

FGK_GLOBAL void indices_kernel(gptr<int64_t> out) {
  const int64_t at = (dev::bid() * dev::block_threads() + dev::tid()) * 5;
  out.st(at, dev::bid());
  out.st(at + 1, dev::lane());
  out.st(at + 2, dev::warp());
  out.st(at + 3, dev::block_threads());
  out.st(at + 4, dev::grid_blocks());
}

TEST(indices) {
  in_every_order([] {
    Array<int64_t> out(3 * 96 * 5);
    dev::Buffers buffers;
    dev::launch("indices", indices_kernel, {3, 96, 0}, nullptr, buffers.out(out.to_device(), out.count(), "out"));
    out.from_device();
    for (int64_t i = 0; i < 3 * 96; ++i) {
      CHECK_EQ(out.host[i * 5], i / 96);
      CHECK_EQ(out.host[i * 5 + 1], i % 96 % 32);
      CHECK_EQ(out.host[i * 5 + 2], i % 96 / 32);
      CHECK_EQ(out.host[i * 5 + 3], 96);
      CHECK_EQ(out.host[i * 5 + 4], 3);
    }
  });
}

// ---- global and shared memory

// Copies bytes as elements of V, through shared memory, backwards.
template <class V>
FGK_GLOBAL void reverse_kernel(gptr<const uint8_t> in, gptr<uint8_t> out) {
  dev::Shared shared;
  const sptr<uint8_t> before = shared.take<uint8_t>(5);
  const sptr<uint8_t> bytes = shared.take<uint8_t>(64 * static_cast<int>(sizeof(V)));
  const int size = static_cast<int>(sizeof(V));
  const int i = dev::tid();
  if (i < 5) before.st(i, static_cast<uint8_t>(i));
  const gptr<const uint8_t> row = in.slice(dev::bid() * 64 * size, 64 * size);
  bytes.as<V>().st(i, row.as<V>().ld(i));
  dev::sync_block();
  const gptr<uint8_t> to = out + dev::bid() * 64 * size;
  to.as<V>().st(i, bytes.as<V>().ld(63 - i));
  if (i < 5 && before.ld(i) != i) to.st(0, 255);
}

template <class V>
void check_reverse() {
  const int64_t bytes = 2 * 64 * static_cast<int64_t>(sizeof(V));
  Array<uint8_t> in(static_cast<size_t>(bytes));
  for (int64_t i = 0; i < bytes; ++i) in.host[i] = static_cast<uint8_t>((i * 37 + i / 256) % 255);
  Array<uint8_t> out(static_cast<size_t>(bytes));
  dev::Buffers buffers;
  dev::launch("reverse", reverse_kernel<V>, {2, 64, dev::shared_bytes<uint8_t>(5) + dev::shared_bytes<V>(64)}, nullptr,
              buffers.in(in.to_device(), bytes, "in"), buffers.out(out.to_device(), bytes, "out"));
  out.from_device();
  const int64_t size = sizeof(V);
  for (int64_t i = 0; i < bytes; ++i) {
    const int64_t block = i / (64 * size);
    const int64_t element = i / size % 64;
    CHECK_EQ(int{out.host[i]}, int{in.host[(block * 64 + 63 - element) * size + i % size]});
  }
}

TEST(elements_of_each_size_go_through_global_and_shared_memory) {
  in_every_order([] {
    check_reverse<uint8_t>();
    check_reverse<int16_t>();
    check_reverse<bf16>();
    check_reverse<float>();
    check_reverse<double>();
    check_reverse<dev::Vec8>();
    check_reverse<dev::Vec16>();
  });
}

// Thread i moves a V that starts at element i * sizeof(V) / 2 of uint16 arrays: global, shared, shared, global.
template <class V>
FGK_GLOBAL void vectors_kernel(gptr<const uint16_t> in, gptr<uint16_t> out) {
  dev::Shared shared;
  const int step = static_cast<int>(sizeof(V)) / 2;
  const sptr<uint16_t> buffer = shared.take<uint16_t>(32 * step);
  buffer.st_as<V>(dev::tid() * step, in.ld_as<V>(dev::tid() * step));
  dev::sync_warp();
  const int partner = dev::tid() ^ 1;
  (out + partner * step).st_as<V>(0, (buffer + partner * step).ld_as<V>(0));
}

template <class V>
void check_vectors() {
  const size_t count = 32 * sizeof(V) / 2;
  Array<uint16_t> in(count);
  for (size_t i = 0; i < count; ++i) in.host[i] = static_cast<uint16_t>(i * 257 + 3);
  Array<uint16_t> out(count);
  dev::Buffers buffers;
  dev::launch("vectors", vectors_kernel<V>, {1, 32, dev::shared_bytes<uint16_t>(static_cast<int64_t>(count))}, nullptr,
              buffers.in(in.to_device(), in.count(), "in"), buffers.out(out.to_device(), out.count(), "out"));
  out.from_device();
  CHECK(out.host == in.host);
}

TEST(vector_loads_and_stores_move_neighbouring_elements) {
  in_every_order([] {
    check_vectors<dev::Vec4>();
    check_vectors<dev::Vec8>();
    check_vectors<dev::Vec16>();
  });
}

FGK_GLOBAL void null_kernel(gptr<const float> maybe, gptr<int32_t> out) { out.st(dev::tid(), maybe ? 1 : 0); }

TEST(null_pointers_convert_to_false) {
  in_every_order([] {
    Array<float> in(1, 1.0f);
    Array<int32_t> out(32);
    for (const bool given : {false, true}) {
      dev::Buffers buffers;
      const float* p = given ? in.to_device() : nullptr;
      dev::launch("null", null_kernel, {1, 32, 0}, nullptr, buffers.in(p, 1, "maybe"),
                  buffers.out(out.to_device(), 32, "out"));
      out.from_device();
      for (const int32_t x : out.host) CHECK_EQ(x, given ? 1 : 0);
    }
  });
}

// ---- barriers

// Each round hands every thread's number to another thread of the block, or of the warp.
FGK_GLOBAL void pass_on_kernel(gptr<int32_t> out, int rounds) {
  dev::Shared shared;
  const sptr<int32_t> cells = shared.take<int32_t>(128);
  int32_t value = dev::tid();
  for (int r = 0; r < rounds; ++r) {
    cells.st(dev::tid(), value);
    dev::sync_block();
    value = cells.ld((dev::tid() + 37) % 128);
    dev::sync_block();
  }
  for (int r = 0; r < rounds; ++r) {
    cells.st(dev::tid(), value);
    dev::sync_warp();
    value = cells.ld(dev::warp() * 32 + (dev::lane() + 5) % 32);
    dev::sync_warp();
  }
  out.st(dev::bid() * 128 + dev::tid(), value);
}

TEST(barriers_order_shared_memory) {
  in_every_order([] {
    const int rounds = 6;
    Array<int32_t> out(2 * 128);
    dev::Buffers buffers;
    dev::launch("pass_on", pass_on_kernel, {2, 128, dev::shared_bytes<int32_t>(128)}, nullptr,
                buffers.out(out.to_device(), out.count(), "out"), rounds);
    out.from_device();
    for (int i = 0; i < 2 * 128; ++i) {
      const int thread = i % 128;
      const int source = thread / 32 * 32 + (thread + 5 * rounds) % 32;
      CHECK_EQ(out.host[i], (source + 37 * rounds) % 128);
    }
  });
}

// ---- shuffles and votes

enum class Shuffle { exclusive_or, index, up, down };

template <class T>
FGK_GLOBAL void shuffle_kernel(gptr<const T> in, gptr<const int32_t> arguments, gptr<T> out, Shuffle kind) {
  const T v = in.ld(dev::tid());
  const int argument = arguments.ld(dev::tid());
  T got{};
  if (kind == Shuffle::exclusive_or) got = dev::shfl_xor(v, argument);
  if (kind == Shuffle::index) got = dev::shfl(v, argument);
  if (kind == Shuffle::up) got = dev::shfl_up(v, argument);
  if (kind == Shuffle::down) got = dev::shfl_down(v, argument);
  out.st(dev::tid(), got);
}

template <class T>
void check_shuffles() {
  for (const Shuffle kind : {Shuffle::exclusive_or, Shuffle::index, Shuffle::up, Shuffle::down}) {
    for (const int argument : {0, 1, 2, 5, 16, 31}) {
      Array<T> in(64);
      Array<int32_t> arguments(64, argument);
      for (int i = 0; i < 64; ++i) in.host[i] = static_cast<T>(1000.5 + 3 * i);
      if (kind == Shuffle::index) {  // every lane may name another one, also beyond the warp
        for (int i = 0; i < 64; ++i) arguments.host[i] = i * argument + 7;
      }
      Array<T> out(64);
      dev::Buffers buffers;
      dev::launch("shuffle", shuffle_kernel<T>, {1, 64, 0}, nullptr, buffers.in(in.to_device(), 64, "in"),
                  buffers.in(arguments.to_device(), 64, "arguments"), buffers.out(out.to_device(), 64, "out"), kind);
      out.from_device();
      for (int i = 0; i < 64; ++i) {
        const int base = i < 32 ? 0 : 32;
        const int lane = i - base;
        int source = lane;
        if (kind == Shuffle::exclusive_or) source = lane ^ argument;
        if (kind == Shuffle::index) source = (i * argument + 7) % 32;
        if (kind == Shuffle::up && lane >= argument) source = lane - argument;
        if (kind == Shuffle::down && lane + argument < 32) source = lane + argument;
        CHECK_EQ(out.host[i], in.host[base + source]);
      }
    }
  }
}

TEST(shuffles) {
  in_every_order([] {
    check_shuffles<int32_t>();
    check_shuffles<uint32_t>();
    check_shuffles<float>();
    check_shuffles<double>();
  });
}

FGK_GLOBAL void vote_kernel(gptr<const uint8_t> in, gptr<uint32_t> out) {
  const bool predicate = in.ld(dev::tid()) != 0;
  out.st(dev::tid() * 3, dev::ballot(predicate));
  out.st(dev::tid() * 3 + 1, dev::any(predicate) ? 1 : 0);
  out.st(dev::tid() * 3 + 2, dev::all(predicate) ? 1 : 0);
}

TEST(votes) {
  in_every_order([] {
    const uint32_t patterns[4] = {0, 0xFFFFFFFFu, 0x80000001u, 0x12345678u};
    Array<uint8_t> in(128);
    for (int i = 0; i < 128; ++i) in.host[i] = static_cast<uint8_t>((patterns[i / 32] >> (i % 32)) & 1);
    Array<uint32_t> out(128 * 3);
    dev::Buffers buffers;
    dev::launch("vote", vote_kernel, {1, 128, 0}, nullptr, buffers.in(in.to_device(), 128, "in"),
                buffers.out(out.to_device(), out.count(), "out"));
    out.from_device();
    for (int i = 0; i < 128; ++i) {
      CHECK_EQ(out.host[i * 3], patterns[i / 32]);
      CHECK_EQ(out.host[i * 3 + 1], i / 32 == 0 ? 0u : 1u);
      CHECK_EQ(out.host[i * 3 + 2], i / 32 == 1 ? 1u : 0u);
    }
  });
}

template <class T>
FGK_GLOBAL void reduce_kernel(gptr<const T> in, gptr<T> out) {
  const T v = in.ld(dev::tid());
  out.st(dev::tid() * 2, dev::warp_sum(v));
  out.st(dev::tid() * 2 + 1, dev::warp_max(v));
}

template <class T>
std::vector<T> reduce(const std::vector<T>& values) {
  Array<T> in(values);
  Array<T> out(2 * values.size());
  dev::Buffers buffers;
  dev::launch("reduce", reduce_kernel<T>, {1, static_cast<int>(values.size()), 0}, nullptr,
              buffers.in(in.to_device(), in.count(), "in"), buffers.out(out.to_device(), out.count(), "out"));
  out.from_device();
  return out.host;
}

TEST(reductions_over_a_warp) {
  in_every_order([] {
    std::vector<int32_t> integers(64);
    for (int i = 0; i < 64; ++i) integers[i] = (i * 29) % 41 - 60;  // all maxima negative
    const std::vector<int32_t> got = reduce(integers);
    for (int w = 0; w < 2; ++w) {
      int32_t sum = 0;
      for (int i = 0; i < 32; ++i) sum += integers[w * 32 + i];
      const int32_t largest = *std::max_element(&integers[w * 32], &integers[w * 32] + 32);
      for (int i = w * 32; i < w * 32 + 32; ++i) {
        CHECK_EQ(got[i * 2], sum);
        CHECK_EQ(got[i * 2 + 1], largest);
      }
    }
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> floats(32);
    for (int i = 0; i < 32; ++i) floats[i] = i == 9 ? nan : -1.0f - static_cast<float>(i);
    const std::vector<float> results = reduce(floats);
    for (int i = 0; i < 32; ++i) {
      CHECK(std::isnan(results[i * 2]));
      CHECK_EQ(results[i * 2 + 1], -1.0f);
    }
    std::vector<double> doubles(32);
    for (int i = 0; i < 32; ++i) doubles[i] = std::ldexp(1.0, i);
    const std::vector<double> sums = reduce(doubles);
    CHECK_EQ(sums[0], 4294967295.0);
    CHECK_EQ(sums[63], 2147483648.0);
  });
}

// ---- launches

FGK_GLOBAL void fill_shared_kernel(gptr<int32_t> out, int count) {
  dev::Shared shared;
  const sptr<int32_t> cells = shared.take<int32_t>(count);
  for (int i = dev::tid(); i < count; i += dev::block_threads()) cells.st(i, i);
  dev::sync_block();
  out.st(dev::tid(), cells.ld(count - 1 - dev::tid()));
}

TEST(launches_take_all_shared_memory_that_the_limits_allow) {
  const dev::Limits limits = dev::limits();
  CHECK(limits.multiprocessors > 0);
  CHECK(limits.shared_per_block >= 96 * 1024);
  for (const int64_t bytes : {int64_t{48 * 1024}, int64_t{96 * 1024}, limits.shared_per_block / 16 * 16}) {
    const int count = static_cast<int>(bytes / 4);
    Array<int32_t> out(1024);
    dev::Buffers buffers;
    dev::launch("fill_shared", fill_shared_kernel, {1, 1024, bytes}, nullptr, buffers.out(out.to_device(), 1024, "out"),
                count);
    out.from_device();
    for (int i = 0; i < 1024; ++i) CHECK_EQ(out.host[i], count - 1 - i);
  }
}

TEST(launches_with_impossible_shapes_name_the_kernel_and_the_shape) {
  const dev::Launch shapes[] = {{-1, 32, 0},  {1, 0, 0},   {1, 33, 0},
                                {1, 1056, 0}, {1, 32, -1}, {int64_t{1} << 31, 32, 0}};
  for (const dev::Launch& shape : shapes) {
    std::string text;
    try {
      dev::launch("fill_shared", fill_shared_kernel, shape, nullptr, gptr<int32_t>(), 0);
    } catch (const std::runtime_error& e) {
      text = e.what();
    }
    CHECK(text.find("fill_shared") != std::string::npos);
    CHECK(text.find(std::to_string(shape.blocks) + " blocks of " + std::to_string(shape.threads)) != std::string::npos);
  }
  CHECK_THROWS(dev::launch("fill_shared", fill_shared_kernel, {1, 32, dev::limits().shared_per_block + 16}, nullptr,
                           gptr<int32_t>(), 0),
               std::runtime_error);
}

TEST(launches_without_blocks_do_nothing) {
  dev::launch("fill_shared", fill_shared_kernel, {0, 32, 16}, nullptr, gptr<int32_t>(), 0);
}

}  // namespace primitive_tests
