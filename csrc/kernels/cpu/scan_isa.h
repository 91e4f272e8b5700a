// SPDX-License-Identifier: Apache-2.0
// What the kernels of all recurrences share. Included by *_isa.cpp files only.
#pragma once

#include <type_traits>

#include "lanes.h"
#include "vector_math.h"

namespace fgk {
namespace FGK_ISA_NS {

// Hands out arrays of lanes one after another: with a null base it counts bytes.
class LaneArena {
 public:
  explicit LaneArena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// B or C of one direction in the block: rows of states, or lanes of constants (states, W).
template <class V>
struct Operand {
  using Scalar = typename V::Scalar;
  const Scalar* data = nullptr;
  int64_t row = 0;

  template <bool kConstant>
  FGK_INLINE typename V::Reg at(int64_t step, int64_t state) const {
    return kConstant ? V::load(data + state * V::W) : V::set1(data[step * row + state]);
  }
};

// The steps [first, last) of a chunk: row `in[t]` of what is read, row `out[t]` of what is written; null: row t.
struct Steps {
  int64_t first = 0;
  int64_t last = 0;
  const int32_t* in = nullptr;
  const int32_t* out = nullptr;

  FGK_INLINE int64_t read(int64_t t) const { return in ? in[t] : t; }
  FGK_INLINE int64_t write(int64_t t) const { return out ? out[t] : t; }
};

// Calls step(std::integral_constant<int, NB>, first state) for blocks of NB states that fit into registers.
template <int kMost, class Step>
FGK_INLINE void for_states(int64_t states, const Step& step) {
  int64_t n = 0;
  for (; n + kMost <= states; n += kMost) step(std::integral_constant<int, kMost>{}, n);
  if constexpr (kMost > 4) {
    for (; n + 4 <= states; n += 4) step(std::integral_constant<int, 4>{}, n);
  }
  for (; n < states; ++n) step(std::integral_constant<int, 1>{}, n);
}

// sums[row of t][first_state + n] += sum over lanes of terms[t][n].
template <class V, int NB>
FGK_NOINLINE void add_lane_sums(const Steps& steps, const typename V::Scalar* terms, typename V::Scalar* sums,
                                int64_t row_size, int64_t first_state) {
  using Scalar = typename V::Scalar;
  constexpr int W = V::W;
  const int64_t count = (steps.last - steps.first) * NB;
  alignas(64) Scalar totals[W];
  for (int64_t i = 0; i < count; i += W) {
    typename V::Reg group[W];
    if (i + W <= count) {
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) group[j] = V::load(terms + (i + j) * W);
    } else {
      for (int j = 0; j < W; ++j) group[j] = i + j < count ? V::load(terms + (i + j) * W) : V::zero();
    }
    V::store(totals, sum_lanes<V>(group));
    for (int j = 0; j < W && i + j < count; ++j) {
      sums[steps.read(steps.first + (i + j) / NB) * row_size + first_state + (i + j) % NB] += totals[j];
    }
  }
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
