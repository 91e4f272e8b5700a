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

// Adds the sum over lanes of each of NB terms per step to a row of numbers, as many vectors at once as have lanes.
template <class V, int NB>
class LaneSums {
  using Scalar = typename V::Scalar;
  static constexpr int W = V::W;
  static constexpr int kSteps = NB < W ? W / NB : 1;
  static constexpr int kTerms = kSteps * NB;
  static_assert(kTerms % W == 0);

 public:
  // Where the next step's terms go, (NB, W); their sums are added to row[0] to row[NB - 1].
  FGK_INLINE Scalar* next(Scalar* row) {
    rows_[filled_] = row;
    return terms_ + filled_ * NB * W;
  }
  FGK_INLINE void step_done() {
    if (++filled_ == kSteps) flush();
  }
  // After the last step.
  FGK_INLINE void finish() {
    if constexpr (kSteps > 1) {
      if (filled_ == 0) return;
      for (int i = filled_ * NB; i < kTerms; ++i) V::store(terms_ + i * W, V::zero());
      flush();
    }
  }

 private:
  FGK_INLINE void flush() {
    alignas(64) Scalar totals[kTerms];
#pragma GCC unroll 8
    for (int first = 0; first < kTerms; first += W) {
      typename V::Reg group[W];
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) group[j] = V::load(terms_ + (first + j) * W);
      V::store(totals + first, sum_lanes<V>(group));
    }
    for (int step = 0; step < filled_; ++step) {
#pragma GCC unroll 16
      for (int n = 0; n < NB; ++n) rows_[step][n] += totals[step * NB + n];
    }
    filled_ = 0;
  }

  alignas(64) Scalar terms_[kTerms * W];
  Scalar* rows_[kSteps];
  int filled_ = 0;
};

}  // namespace FGK_ISA_NS
}  // namespace fgk
