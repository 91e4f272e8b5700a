// SPDX-License-Identifier: Apache-2.0
// Blocks of up to W channels between tensors and rows of lanes: row p holds the W channels at position p. Missing
// channels are zero lanes. Included by *_isa.cpp files only.
#pragma once

#include "../common/convert.h"

namespace fgk {
namespace FGK_ISA_NS {

// Where the elements of up to W channels lie; strides in elements.
struct LaneView {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t channel = 0;
  int64_t position = 0;
  int channels = 0;

  FGK_INLINE char* at(int64_t c, int64_t p) const {
    return static_cast<char*>(data) + (c * channel + p * position) * dtype_bytes(dtype);
  }
};

template <class V>
constexpr DType kLaneType = sizeof(typename V::Scalar) == 8 ? DType::f64 : DType::f32;

// rows[(p - first) stride + c] = element (c, p), for `count` positions. A row takes W elements.
template <class V>
void load_rows(typename V::Scalar* rows, int64_t stride, const LaneView& view, int64_t first, int64_t count) {
  using Scalar = typename V::Scalar;
  constexpr int W = V::W;
  const bool native = view.dtype == kLaneType<V>;
  if (view.channel == 1 && view.position != 1) {
    alignas(64) Scalar row[W] = {};
    for (int64_t p = 0; p < count; ++p) {
      const char* source = view.at(0, first + p);
      if (native && view.channels == W) {
        V::store(rows + p * stride, V::load(reinterpret_cast<const Scalar*>(source)));
        continue;
      }
      widen_row(row, source, view.dtype, view.channels, 1.0f);
      V::store(rows + p * stride, V::load(row));
    }
    return;
  }
  // All in registers, which no branch may come between.
  const bool whole = native && view.position == 1 && view.channels == W;
  const int64_t step = view.channel;
  for (int64_t p = 0; p < count; p += W) {
    const int64_t n = count - p < W ? count - p : W;
    typename V::Reg tile[W];
    if (whole && n == W) {
      const Scalar* source = reinterpret_cast<const Scalar*>(view.at(0, first + p));
#pragma GCC unroll 16
      for (int c = 0; c < W; ++c) tile[c] = V::load(source + c * step);
      transpose<V>(tile);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) V::store(rows + (p + i) * stride, tile[i]);
      continue;
    }
    alignas(64) Scalar columns[W][W] = {};
    for (int c = 0; c < view.channels; ++c) {
      if (view.position == 1) {
        widen_row(columns[c], view.at(c, first + p), view.dtype, n, 1.0f);
      } else {
        for (int64_t i = 0; i < n; ++i) widen_row(columns[c] + i, view.at(c, first + p + i), view.dtype, 1, 1.0f);
      }
    }
#pragma GCC unroll 16
    for (int c = 0; c < W; ++c) tile[c] = V::load(columns[c]);
    transpose<V>(tile);
    for (int i = 0; i < n; ++i) V::store(rows + (p + i) * stride, tile[i]);
  }
}

// Element (c, p) = rows[(p - first) stride + c], for `count` positions.
template <class V>
void store_rows(const LaneView& view, int64_t first, int64_t count, const typename V::Scalar* rows, int64_t stride) {
  using Scalar = typename V::Scalar;
  constexpr int W = V::W;
  const bool native = view.dtype == kLaneType<V>;
  if (view.channel == 1 && view.position != 1) {
    for (int64_t p = 0; p < count; ++p) {
      char* target = view.at(0, first + p);
      if (native && view.channels == W) {
        V::store(reinterpret_cast<Scalar*>(target), V::load(rows + p * stride));
      } else {
        narrow_row(target, view.dtype, rows + p * stride, view.channels);
      }
    }
    return;
  }
  const bool whole = native && view.position == 1 && view.channels == W;
  const int64_t step = view.channel;
  for (int64_t p = 0; p < count; p += W) {
    const int64_t n = count - p < W ? count - p : W;
    typename V::Reg tile[W];
    if (whole && n == W) {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) tile[i] = V::load(rows + (p + i) * stride);
      transpose<V>(tile);
      Scalar* target = reinterpret_cast<Scalar*>(view.at(0, first + p));
#pragma GCC unroll 16
      for (int c = 0; c < W; ++c) V::store(target + c * step, tile[c]);
      continue;
    }
    for (int i = 0; i < W; ++i) tile[i] = i < n ? V::load(rows + (p + i) * stride) : V::zero();
    transpose<V>(tile);
    alignas(64) Scalar columns[W][W];
#pragma GCC unroll 16
    for (int c = 0; c < W; ++c) V::store(columns[c], tile[c]);
    for (int c = 0; c < view.channels; ++c) {
      if (view.position == 1) {
        narrow_row(view.at(c, first + p), view.dtype, columns[c], n);
      } else {
        for (int64_t i = 0; i < n; ++i) narrow_row(view.at(c, first + p + i), view.dtype, columns[c] + i, 1);
      }
    }
  }
}

// Asks for the cache lines of `count` positions that are used soon: channels are too many streams for the hardware.
template <class V>
FGK_INLINE void prefetch_rows(const LaneView& view, int64_t first, int64_t count) {
  if (view.position != 1) return;
  const int64_t bytes = count * dtype_bytes(view.dtype);
  for (int c = 0; c < view.channels; ++c) {
    const char* start = view.at(c, first);
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(start + i);
  }
}

// Lane j of the result is the sum of the lanes of rows[j]; rows are used up.
template <class V, int S = V::W / 2>
FGK_INLINE typename V::Reg sum_lanes(typename V::Reg (&rows)[V::W]) {
  if constexpr (S > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < S; ++i) {
      exchange<V, S>(rows[i], rows[i + S], std::make_integer_sequence<int, V::W>{});
      rows[i] = V::add(rows[i], rows[i + S]);
    }
    return sum_lanes<V, S / 2>(rows);
  } else {
    return rows[0];
  }
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
