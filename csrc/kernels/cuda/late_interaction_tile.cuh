// SPDX-License-Identifier: Apache-2.0
// A warp's tile of similarities: how tokens are staged in shared memory, and the product of 32 row tokens with its
// share of the stream tokens, on tensor cores (bf16, fp16) or with fused multiply-adds (fp32, fp64).
//
// Staged tokens are rows of 128 bytes (a "chunk" of channels) of eight 16-byte units; unit u of row r lies at place
// u ^ (r % 8), so that neither copies nor fragment loads meet in a bank.
//
// Both kinds of product leave the accumulators where mma.m16n8k16 has them: of the tile at rows 16 mt and columns 8 nt,
// lane 4 g + t holds rows g and g + 8 of columns 2 t and 2 t + 1.
#pragma once

#include "late_interaction_params.cuh"

namespace fgk::cuda {

constexpr int kChunkBytes = 128;
constexpr int kUnitBytes = 16;
constexpr int kUnits = kChunkBytes / kUnitBytes;
constexpr int kRowTiles = kSlotRows / 16;  // m16 tiles of a warp

template <class T>
constexpr int kUnitElements = kUnitBytes / static_cast<int>(sizeof(T));
template <class T>
constexpr int kChunkElements = kChunkBytes / static_cast<int>(sizeof(T));

// Element of unit `unit` of staged row `row`.
template <class T>
FGK_DEVICE int staged(int row, int unit) {
  return row * kChunkElements<T> + ((unit ^ (row & 7)) * kUnitElements<T>);
}

// What a warp multiplies: columns come in pairs of n8 tiles, dealt out to the `kAcross` warps side by side.
struct WarpTile {
  int row_tiles;  // m16 tiles that hold rows
  int pairs;      // n16 column pairs of this warp that hold columns
  int across;     // which of the warps side by side
};

// Column, within the block's tile, of accumulator [nt][..] c (0 or 1) of this lane.
template <int kAcross>
FGK_DEVICE int tile_column(int nt, int c, int across) {
  return ((nt / 2) * kAcross + across) * 16 + (nt & 1) * 8 + (dev::lane() & 3) * 2 + c;
}

// Row, within the warp's 32, of accumulator [mt][..] h (0 or 1) of this lane.
FGK_DEVICE int tile_row(int mt, int h) { return mt * 16 + h * 8 + (dev::lane() >> 2); }

template <class Acc, int NT>
FGK_DEVICE void clear_tile(Acc (&acc)[kRowTiles][NT][4]) {
  FGK_UNROLL
  for (int mt = 0; mt < kRowTiles; ++mt) {
    FGK_UNROLL
    for (int nt = 0; nt < NT; ++nt) {
      FGK_UNROLL
      for (int c = 0; c < 4; ++c) acc[mt][nt][c] = 0;
    }
  }
}

template <class T_>
struct TensorCores {
  using T = T_;
  using Acc = float;

  // Adds the product over `channels` of one staged chunk.
  template <int NT, int kAcross>
  FGK_DEVICE static void multiply(float (&acc)[kRowTiles][NT][4], sptr<T> a, sptr<T> b, int channels,
                                  const WarpTile& tile) {
    const int lane = dev::lane();
    const int steps = (channels + 15) / 16;
    FGK_NO_UNROLL
    for (int step = 0; step < steps; ++step) {
      uint32_t rows[kRowTiles][4];
      FGK_UNROLL
      for (int mt = 0; mt < kRowTiles; ++mt) {
        if (mt < tile.row_tiles)
          dev::ldmatrix_x4(rows[mt], a + staged<T>(mt * 16 + (lane & 15), step * 2 + (lane >> 4)));
      }
      FGK_UNROLL
      for (int pair = 0; pair < NT / 2; ++pair) {
        if (pair >= tile.pairs) break;
        uint32_t four[4];
        const int row = (pair * kAcross + tile.across) * 16 + (lane & 7) + ((lane >> 4) << 3);
        dev::ldmatrix_x4(four, b + staged<T>(row, step * 2 + ((lane >> 3) & 1)));
        const uint32_t left[2] = {four[0], four[1]};
        const uint32_t right[2] = {four[2], four[3]};
        FGK_UNROLL
        for (int mt = 0; mt < kRowTiles; ++mt) {
          if (mt >= tile.row_tiles) break;
          dev::mma_16816<T>(acc[mt][2 * pair], rows[mt], left);
          dev::mma_16816<T>(acc[mt][2 * pair + 1], rows[mt], right);
        }
      }
    }
  }
};

template <class T>
struct alignas(kUnitBytes) Unit {
  T value[kUnitElements<T>];
};

template <class T_>
struct MultiplyAdd {
  using T = T_;
  using Acc = T_;

  // Each chunk is summed on its own, so that a depth of thousands keeps its digits; one pair of n8 tiles at a time,
  // since all of them would take more registers than two blocks leave.
  template <int NT, int kAcross>
  FGK_DEVICE static void multiply(T (&acc)[kRowTiles][NT][4], sptr<T> a, sptr<T> b, int channels,
                                  const WarpTile& tile) {
    const int units = (channels + kUnitElements<T> - 1) / kUnitElements<T>;
    FGK_UNROLL
    for (int pair = 0; pair < NT / 2; ++pair) {
      if (pair >= tile.pairs) break;
      T chunk[kRowTiles][2][4];
      clear_tile(chunk);
      FGK_NO_UNROLL
      for (int unit = 0; unit < units; ++unit) add_unit<kAcross>(chunk, a, b, 2 * pair, unit, tile);
      FGK_UNROLL
      for (int mt = 0; mt < kRowTiles; ++mt) {
        FGK_UNROLL
        for (int c = 0; c < 4; ++c) {
          acc[mt][2 * pair][c] += chunk[mt][0][c];
          acc[mt][2 * pair + 1][c] += chunk[mt][1][c];
        }
      }
    }
  }

  // Adds the product over one unit of channels, for the pair of n8 tiles that starts at `first`.
  template <int kAcross>
  FGK_DEVICE static void add_unit(T (&chunk)[kRowTiles][2][4], sptr<T> a, sptr<T> b, int first, int unit,
                                  const WarpTile& tile) {
    Unit<T> rows[kRowTiles][2];
    FGK_UNROLL
    for (int mt = 0; mt < kRowTiles; ++mt) {
      FGK_UNROLL
      for (int h = 0; h < 2; ++h) {
        if (mt < tile.row_tiles) rows[mt][h] = a.template ld_as<Unit<T>>(staged<T>(tile_row(mt, h), unit));
      }
    }
    FGK_UNROLL
    for (int n = 0; n < 2; ++n) {
      FGK_UNROLL
      for (int c = 0; c < 2; ++c) {
        const int place = staged<T>(tile_column<kAcross>(first + n, c, tile.across), unit);
        const Unit<T> column = b.template ld_as<Unit<T>>(place);
        FGK_UNROLL
        for (int mt = 0; mt < kRowTiles; ++mt) {
          if (mt >= tile.row_tiles) break;
          FGK_UNROLL
          for (int h = 0; h < 2; ++h) {
            FGK_UNROLL
            for (int e = 0; e < kUnitElements<T>; ++e) {
              chunk[mt][n][2 * h + c] += rows[mt][h].value[e] * column.value[e];
            }
          }
        }
      }
    }
  }
};

// What 16-bit types are computed in; the others in themselves.
template <class T>
using Wide = std::conditional_t<sizeof(T) == 2, float, T>;

template <class T>
FGK_DEVICE Wide<T> widen(T value) {
  if constexpr (sizeof(T) == 2) {
    return dev::to_float(value);
  } else {
    return value;
  }
}

template <class T>
FGK_DEVICE T narrow(Wide<T> value) {
  if constexpr (sizeof(T) == 2) {
    return dev::from_float<T>(value);
  } else {
    return value;
  }
}

// Exact in every type.
template <class T>
FGK_DEVICE T from_int8(int8_t value) {
  return narrow<T>(static_cast<Wide<T>>(value));
}

// Channels [channel, channel + a unit) of a token, zeros beyond `dim`, element by element.
template <class T, class Stored>
FGK_DEVICE Unit<T> gather_unit(gptr<const Stored> token, int channel, int dim) {
  Unit<T> unit;
  FGK_UNROLL
  for (int e = 0; e < kUnitElements<T>; ++e) {
    unit.value[e] = T{};
    if (channel + e < dim) {
      if constexpr (sizeof(Stored) == 1) {
        unit.value[e] = from_int8<T>(token.ld(channel + e));
      } else {
        unit.value[e] = token.ld(channel + e);
      }
    }
  }
  return unit;
}

template <class T>
struct alignas(kUnitElements<T>) Int8Unit {
  int8_t value[kUnitElements<T>];
};

// The same of int8 tokens from one load, where that is worth it and the whole unit is there.
template <class T>
FGK_DEVICE Unit<T> widen_unit(gptr<const int8_t> token, int channel) {
  if constexpr (sizeof(Int8Unit<T>) < 4) {
    return gather_unit<T>(token, channel, channel + kUnitElements<T>);
  } else {
    const auto few = token.template ld_as<Int8Unit<T>>(channel);
    Unit<T> unit;
    FGK_UNROLL
    for (int e = 0; e < kUnitElements<T>; ++e) unit.value[e] = from_int8<T>(few.value[e]);
    return unit;
  }
}

// What an int8 token's scale does before its products are summed: nothing if it is finite, since then it can wait for
// the sum. An infinite one or a NaN meets each value, so that 0 times it is NaN.
FGK_DEVICE float early_scale(float scale) { return scale - scale == 0 ? 1.0f : scale; }
FGK_DEVICE float late_scale(float scale) { return scale - scale == 0 ? scale : 1.0f; }

template <class T>
FGK_DEVICE Unit<T> int8_unit(const Tokens<T>& tokens, int64_t element, int channel, float factor) {
  const gptr<const int8_t> token = tokens.data8.slice(element, tokens.dim);
  const bool whole = tokens.vectors && channel + kUnitElements<T> <= tokens.dim;
  Unit<T> unit = whole ? widen_unit<T>(token, channel) : gather_unit<T>(token, channel, tokens.dim);
  if (factor == 1) return unit;
  FGK_UNROLL
  for (int e = 0; e < kUnitElements<T>; ++e) {
    if (channel + e < tokens.dim) unit.value[e] = narrow<T>(widen(unit.value[e]) * static_cast<Wide<T>>(factor));
  }
  return unit;
}

// Brings channels [channel, channel + a unit) of the token that starts at `element` into shared memory; zeros beyond
// `dim` and where `present` is false. Aligned tokens go asynchronously: the data arrive at a cp_async_wait. `factor` is
// the early_scale of an int8 token.
template <class T>
FGK_DEVICE void stage_unit(const Tokens<T>& tokens, bool present, int64_t element, int channel, sptr<T> to,
                           float factor = 1) {
  const int left = present && channel < tokens.dim ? tokens.dim - channel : 0;
  if (tokens.data8) {
    to.template st_as<Unit<T>>(0, left > 0 ? int8_unit<T>(tokens, element, channel, factor) : Unit<T>{});
  } else if (tokens.vectors) {
    const int bytes = dev::min(left, kUnitElements<T>) * static_cast<int>(sizeof(T));
    const gptr<const T> from = left > 0 ? tokens.data.slice(element, tokens.dim) + channel : tokens.data;
    dev::cp_async16(to, from, bytes);
  } else {
    Unit<T> unit{};
    if (left > 0) unit = gather_unit<T>(tokens.data.slice(element, tokens.dim), channel, tokens.dim);
    to.template st_as<Unit<T>>(0, unit);
  }
}

}  // namespace fgk::cuda
