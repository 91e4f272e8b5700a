// SPDX-License-Identifier: Apache-2.0
// What both implementations of the device layer share: storage types, launch shapes and device limits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace fgk::dev {

// Storage types of 16 bits, as bits: no CUDA header is needed on hosts. See to_float, from_float and pack2.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// What vector loads and stores move.
struct alignas(16) Vec16 {
  uint32_t x, y, z, w;
};
struct alignas(8) Vec8 {
  uint32_t x, y;
};
using Vec4 = uint32_t;

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
// Every array taken from a block's shared memory starts at a multiple of this many bytes.
constexpr int kSharedAlignment = 16;

// Shape of a launch: a 1-D grid of 1-D blocks. `threads` is a multiple of 32, at most 1024; `shared_bytes` is the sum
// of shared_bytes<T>(count) over what the kernel takes. No blocks: nothing runs.
struct Launch {
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
};

struct Limits {
  int multiprocessors;
  int64_t shared_per_block;  // bytes of dynamic shared memory that a block may ask for
};

template <class From, class To>
using copy_const = std::conditional_t<std::is_const_v<From>, const To, To>;

template <class T>
using if_writable = std::enable_if_t<!std::is_const_v<T>, int>;

template <class V>
constexpr bool is_vector = sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16;

}  // namespace fgk::dev
