// SPDX-License-Identifier: Apache-2.0
// What kernels on sequences compute with: types, activations with their slopes, and vectors of neighbouring elements.
#pragma once

#include "device.cuh"

namespace fgk::cuda {

using dev::gptr;
using dev::sptr;

// double for double, else float.
template <class T>
struct AccumulationOf {
  using type = float;
};
template <>
struct AccumulationOf<double> {
  using type = double;
};
template <class T>
using Accumulation = typename AccumulationOf<T>::type;

FGK_DEVICE float to_acc(float x) { return x; }
FGK_DEVICE double to_acc(double x) { return x; }
FGK_DEVICE float to_acc(dev::bf16 x) { return dev::to_float(x); }
FGK_DEVICE float to_acc(dev::f16 x) { return dev::to_float(x); }

template <class T>
FGK_DEVICE T from_acc(Accumulation<T> x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return dev::from_float<T>(x);
  }
}

// Not the approximation: decays are multiplied thousands of times.
FGK_DEVICE float exponential(float x) { return expf(x); }
FGK_DEVICE double exponential(double x) { return ::exp(x); }

template <class Acc>
FGK_DEVICE Acc sigmoid(Acc x) {
  return Acc(1) / (Acc(1) + exponential(-x));
}
template <class Acc>
FGK_DEVICE Acc silu(Acc x) {
  return x * sigmoid(x);
}
// The derivative of silu.
template <class Acc>
FGK_DEVICE Acc silu_slope(Acc x) {
  const Acc s = sigmoid(x);
  return s * (Acc(1) + x * (Acc(1) - s));
}

// log(1 + exp(x)), which is x beyond 20; log1p keeps the tail exact.
FGK_DEVICE float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }
FGK_DEVICE double softplus(double x) { return x > 20.0 ? x : ::log1p(::exp(x)); }
template <class Acc>
FGK_DEVICE Acc softplus_slope(Acc x) {
  return x > Acc(20) ? Acc(1) : sigmoid(x);
}

// The word that N elements of type T fill: 4, 8 or 16 bytes.
template <class T, int N>
using Word =
    std::conditional_t<sizeof(T) * N == 16, dev::Vec16, std::conditional_t<sizeof(T) * N == 8, dev::Vec8, dev::Vec4>>;

// N elements from element i on, whose address is divisible by their size.
template <class T, int N>
FGK_DEVICE void load_vector(gptr<const T> from, int64_t i, Accumulation<T> (&to)[N]) {
  static_assert(sizeof(T) * N == sizeof(Word<T, N>));
  union {
    Word<T, N> word;
    T element[N];
  } v;
  v.word = from.template ld_as<Word<T, N>>(i);
  FGK_UNROLL
  for (int k = 0; k < N; ++k) to[k] = to_acc(v.element[k]);
}

template <class T, int N>
FGK_DEVICE void store_vector(gptr<T> to, int64_t i, const Accumulation<T> (&from)[N]) {
  static_assert(sizeof(T) * N == sizeof(Word<T, N>));
  union {
    Word<T, N> word;
    T element[N];
  } v;
  FGK_UNROLL
  for (int k = 0; k < N; ++k) v.element[k] = from_acc<T>(from[k]);
  to.template st_as<Word<T, N>>(i, v.word);
}

// Whether vectors of `elements` start at multiples of their size wherever the strides lead.
template <class T, class... Strides>
bool is_aligned(const void* data, int elements, Strides... strides) {
  return reinterpret_cast<uintptr_t>(data) % (sizeof(T) * static_cast<size_t>(elements)) == 0 &&
         ((strides % elements == 0) && ...);
}

}  // namespace fgk::cuda
