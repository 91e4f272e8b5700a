// SPDX-License-Identifier: Apache-2.0
// Numeric types and views that every kernel shares. Torch-free.
#pragma once

#include <cstdint>
#include <cstring>

// Inline functions outside an ISA namespace must never be emitted out of line: the linker could pick the copy that an
// AVX-512 file made and run it everywhere.
#define FGK_INLINE inline __attribute__((always_inline))
#define FGK_NOINLINE __attribute__((noinline))

namespace fgk {

enum class DType : int { f32, f64, bf16, f16, i8 };

FGK_INLINE int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 8;
    case DType::f32:
      return 4;
    case DType::i8:
      return 1;
    default:
      return 2;
  }
}

// N sequences of D-wide tokens, padded to one length or packed behind offsets. Strides count elements; the
// channels of one token are contiguous.
struct TokenBatch {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t batch = 0;
  int64_t dim = 0;
  int64_t length = 0;                // tokens per sequence when padded
  const int64_t* offsets = nullptr;  // (batch + 1) when packed, else null
  int64_t sample_stride = 0;
  int64_t token_stride = 0;
  int64_t total_tokens = 0;       // of all sequences together
  int64_t span = 0;               // elements between the first and the last one that the strides reach, both included
  const uint8_t* mask = nullptr;  // (batch, length), 1 = valid, padded form only
  const float* scales = nullptr;  // one factor per token for int8, (batch, length) or (tokens)

  FGK_INLINE int64_t tokens(int64_t s) const { return offsets ? offsets[s + 1] - offsets[s] : length; }
  // Position of the first token of sequence s in a dense per-token array (masks, scales, indices).
  FGK_INLINE int64_t token_base(int64_t s) const { return offsets ? offsets[s] : s * length; }
  FGK_INLINE const char* token(int64_t s, int64_t i) const {
    const int64_t element = (offsets ? offsets[s] * token_stride : s * sample_stride) + i * token_stride;
    return static_cast<const char*>(data) + element * dtype_bytes(dtype);
  }
};

}  // namespace fgk
