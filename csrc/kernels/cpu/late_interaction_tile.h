// SPDX-License-Identifier: Apache-2.0
// The register-blocked micro-kernel of late interaction and its argmax epilogue. Included by *_isa.cpp files only.
//
// Vector lanes hold lane tokens (packed depth-major), the tokens of the stream side are broadcast element by element,
// so every accumulator holds similarities of W lane tokens with one stream token: the maximum over stream tokens is a
// vertical compare, and no horizontal work happens inside a tile.
#pragma once

#include "../common/simd.h"

namespace fgk {
namespace FGK_ISA_NS {

// How one depth step multiplies: V is the accumulator's vector, Step the element that is broadcast.
template <class Vector>
struct FmaMath {
  using V = Vector;
  using Step = typename V::Scalar;
  using Operand = typename V::Reg;
  static constexpr int kChannelsPerStep = 1;
  static FGK_INLINE Operand load(const Step* p) { return V::load(p); }
  static FGK_INLINE Operand broadcast(const char* p) {
    Step x;
    std::memcpy(&x, p, sizeof(x));
    return V::set1(x);
  }
  static FGK_INLINE typename V::Reg multiply_add(Operand a, Operand b, typename V::Reg c) { return V::fma(a, b, c); }
};

#if defined(__AVX512BF16__)
// Two bf16 channels per step, products summed in fp32 by vdpbf16ps.
struct Bf16Math {
  using V = F32;
  using Step = int32_t;
  using Operand = __m512i;
  static constexpr int kChannelsPerStep = 2;
  static FGK_INLINE Operand load(const Step* p) { return _mm512_loadu_si512(p); }
  static FGK_INLINE Operand broadcast(const char* p) {
    Step x;
    std::memcpy(&x, p, sizeof(x));
    return _mm512_set1_epi32(x);
  }
  static FGK_INLINE V::Reg multiply_add(Operand a, Operand b, V::Reg c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

// Lanes are worked off in blocks of two vectors. A lone vector would wait for loads (one per multiply-add), so the last
// three of an odd count form one block where registers allow.
constexpr int kMaxBlockVectors = kVectorRegisters == 32 ? 3 : 2;
// 24 accumulators of 32 registers, 12 of 16: the rest holds the lane vectors, the broadcast and the running maxima.
constexpr int kTileTokens = kVectorRegisters == 32 ? 12 : 6;
template <int NV>
constexpr int tile_tokens() {
  return NV == 3 ? 8 : kTileTokens;
}

// Products of this many steps are summed at a time: one long chain of fp32 additions would lose digits as it grows.
constexpr int64_t kDepthBlock = 256;

// Translations of this many tiles' worth of pages are asked for together, so that the page walks overlap: one at a
// time, each would stall the multiply-adds for some 50 ns.
constexpr int64_t kPageGroupTiles = 8;
constexpr int64_t kPageBytes = 4096;

FGK_INLINE int block_vectors(int64_t vectors_left) {
  if (vectors_left == kMaxBlockVectors) return kMaxBlockVectors;
  return vectors_left >= 2 ? 2 : 1;
}

// Running maxima of one lane block (rows) and of the stream tokens of the current segment (columns).
template <class V>
struct TileState {
  alignas(64) typename V::Scalar partial[2 * kTileTokens * V::W];  // sums of the depth blocks so far
  typename V::Scalar* row_best;
  typename V::Index* row_index;
  typename V::Scalar* column_best;  // (segment tokens, W)
  typename V::Index* column_index;  // first lane of the winning vector; the lane is added at the end
  const char* ahead;                // where the tokens after this tile's come from, for the segment's first tile
  int64_t ahead_stride;             // bytes per token there
  bool indices;                     // whether anybody asks which token won
  int64_t first_token;              // index of the segment's first token within its sample
  int64_t first_lane;               // lane number of the block's first lane within its sample
  int64_t valid_lanes;              // lanes of this block that hold a token
};

// A NaN was seen in this tile: redo its maxima one by one, the first NaN of a row or column wins for good.
template <class V>
FGK_NOINLINE void update_with_nan(const typename V::Scalar* scores, int vectors, int tokens, int64_t t0, bool columns,
                                  TileState<V>& state) {
  constexpr int W = V::W;
  for (int m = 0; m < tokens; ++m) {
    for (int lane = 0; lane < vectors * W; ++lane) {
      const typename V::Scalar s = scores[m * vectors * W + lane];
      const bool nan = s != s;
      auto wins = [&](typename V::Scalar best) { return best == best && (nan || s > best); };
      if (wins(state.row_best[lane])) {
        state.row_best[lane] = s;
        state.row_index[lane] = static_cast<typename V::Index>(state.first_token + t0 + m);
      }
      if (columns && lane < state.valid_lanes) {
        const int64_t cell = (t0 + m) * W + lane % W;
        if (wins(state.column_best[cell])) {
          state.column_best[cell] = s;
          state.column_index[cell] = static_cast<typename V::Index>(state.first_lane + lane / W * W);
        }
      }
    }
  }
}

// Similarities of NV * W lane tokens with MT stream tokens, and their maxima.
template <class M, int NV, int MT, bool kColumns>
FGK_NOINLINE void tile(const typename M::Step* lanes, int64_t steps, const char* stream, int64_t stride, int64_t t0,
                       TileState<typename M::V>& state) {
  using V = typename M::V;
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  constexpr int kBases = (MT + 2) / 3;
  Reg acc[MT][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MT; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = V::zero();
  }
  // One pointer serves three rows, so that all addresses stay in registers.
  const char* base[kBases];
#pragma GCC unroll 8
  for (int r = 0; r < kBases; ++r) base[r] = stream + (t0 + 3 * r) * stride;
  // Rows are read column by column, a pattern that no hardware prefetcher follows: fetch what comes next here.
  const char* ahead = state.ahead + t0 * state.ahead_stride;
  for (int64_t k = 0, end = steps; k < steps; end = steps) {
    if (end - k > kDepthBlock) end = k + kDepthBlock;
    const bool first = k == 0, last = end == steps;
    for (; k < end; ++k) {
      __builtin_prefetch(ahead + k * 64);
      typename M::Operand q[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) q[v] = M::load(lanes + v * W);
#pragma GCC unroll 16
      for (int m = 0; m < MT; ++m) {
        const typename M::Operand x = M::broadcast(base[m / 3] + (m % 3) * stride);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[m][v] = M::multiply_add(q[v], x, acc[m][v]);
      }
      lanes += NV * W;
#pragma GCC unroll 8
      for (int r = 0; r < kBases; ++r) base[r] += sizeof(typename M::Step);
    }
    if (first && last) break;
#pragma GCC unroll 16
    for (int m = 0; m < MT; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        typename V::Scalar* sum = state.partial + (m * NV + v) * W;
        if (!first) acc[m][v] = V::add(acc[m][v], V::load(sum));
        if (last) continue;
        V::store(sum, acc[m][v]);
        acc[m][v] = V::zero();
      }
    }
  }

  Reg probe[2] = {V::zero(), V::zero()};
#pragma GCC unroll 16
  for (int m = 0; m < MT; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) probe[m % 2] = V::add(probe[m % 2], acc[m][v]);
  }
  if (__builtin_expect(V::any_nan(V::add(probe[0], probe[1])), 0)) {
    alignas(64) typename V::Scalar scores[MT * NV * W];
#pragma GCC unroll 16
    for (int m = 0; m < MT; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) V::store(scores + (m * NV + v) * W, acc[m][v]);
    }
    update_with_nan<V>(scores, NV, MT, t0, kColumns, state);
    return;
  }

  Reg best[NV];
  typename V::IndexReg index[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    best[v] = V::load(state.row_best + v * W);
    index[v] = V::index_load(state.row_index + v * W);
  }
#pragma GCC unroll 16
  for (int m = 0; m < MT; ++m) {
    const typename V::IndexReg token = V::index_set1(state.first_token + t0 + m);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      if (!state.indices) {
        best[v] = V::larger(acc[m][v], best[v]);
        continue;
      }
      const typename V::Mask wins = V::greater(acc[m][v], best[v]);
      best[v] = V::select(wins, acc[m][v], best[v]);
      index[v] = V::index_select(wins, token, index[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    V::store(state.row_best + v * W, best[v]);
    V::index_store(state.row_index + v * W, index[v]);
  }
  if (kColumns) {
    typename V::Mask valid[NV];
    typename V::IndexReg lane[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      valid[v] = V::first_lanes(static_cast<int>(state.valid_lanes) - v * W);
      lane[v] = V::index_set1(state.first_lane + v * W);
    }
#pragma GCC unroll 16
    for (int m = 0; m < MT; ++m) {
      typename V::Scalar* column_best = state.column_best + (t0 + m) * W;
      typename V::Index* column_index = state.column_index + (t0 + m) * W;
      Reg top = V::load(column_best);
      typename V::IndexReg from = V::index_load(column_index);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const typename V::Mask wins = V::both(valid[v], V::greater(acc[m][v], top));
        top = V::select(wins, acc[m][v], top);
        if (state.indices) from = V::index_select(wins, lane[v], from);
      }
      V::store(column_best, top);
      if (state.indices) V::index_store(column_index, from);
    }
  }
}

// All tokens of a segment against one lane block. A remainder below four is covered by a tile that overlaps the one
// before: seeing a token twice changes no maximum, since only a strictly greater score wins.
template <class M, int NV, bool kColumns>
void segment_block(const typename M::Step* lanes, int64_t steps, const char* stream, int64_t stride, int64_t tokens,
                   TileState<typename M::V>& state) {
  int64_t t = 0;
  constexpr int MT = tile_tokens<NV>();
  for (; t + MT <= tokens; t += MT) {
    if (t % (kPageGroupTiles * MT) == 0) {
      const int64_t group = kPageGroupTiles * MT * state.ahead_stride;
      const char* pages = state.ahead + t * state.ahead_stride + group;
      for (int64_t byte = 0; byte < group; byte += kPageBytes) __builtin_prefetch(pages + byte);
    }
    tile<M, NV, MT, kColumns>(lanes, steps, stream, stride, t, state);
  }
  if (MT > 8 && t + 8 <= tokens) {
    tile<M, NV, 8, kColumns>(lanes, steps, stream, stride, t, state);
    t += 8;
  }
  if (t + 4 <= tokens) {
    tile<M, NV, 4, kColumns>(lanes, steps, stream, stride, t, state);
    t += 4;
  }
  if (t < tokens && tokens >= 4) {
    tile<M, NV, 4, kColumns>(lanes, steps, stream, stride, tokens - 4, state);
    return;
  }
  for (; t < tokens; ++t) tile<M, NV, 1, kColumns>(lanes, steps, stream, stride, t, state);
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
