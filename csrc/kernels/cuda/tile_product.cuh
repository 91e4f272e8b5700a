// SPDX-License-Identifier: Apache-2.0
// Tiles of matrix products, one 64 x 64 tile per block. Factors are computed on their way into shared memory, so that
// decays, steps and gates cost no array of their own.
//
// A factor is a matrix whose depth, the index that the product sums over, runs along its rows or along its columns. It
// is given as load(row, column, to): elements of one row from `column` on, zeros outside of the matrix.
#pragma once

#include "sequence_math.cuh"

namespace fgk::cuda {

constexpr int kTile = 64;
constexpr int kTileThreads = 256;
constexpr int kHalf = kTile / 2;

enum class Depth { rows, columns };

// Products by fused multiply-adds; a thread holds 4 x 4 values of a tile.
template <class A>
struct MultiplyAddTiles {
  using Acc = A;
  static constexpr int kPitch = kTile + 4;  // rows stay divisible by 16 bytes

  // 64 of the depth of one factor, or 32 of the depth of both, with the depth along the rows.
  class Operand {
   public:
    static constexpr int64_t bytes() { return dev::shared_bytes<Acc>(kTile * kPitch); }
    FGK_DEVICE explicit Operand(dev::Shared& shared) : at_(shared.take<Acc>(kTile * kPitch)) {}
    FGK_DEVICE Operand left() const { return Operand(at_.slice(0, kHalf * kPitch)); }
    FGK_DEVICE Operand right() const { return Operand(at_.slice(kHalf * kPitch, kHalf * kPitch)); }
    FGK_DEVICE Operand rows_from(int row) const { return Operand(at_.slice(row * kPitch, kHalf * kPitch)); }
    // The memory, for a tile of plain numbers between two products.
    FGK_DEVICE sptr<Acc> memory() const { return at_; }

    template <Depth kDepth>
    FGK_DEVICE void set(int row, int column, Acc v) const {
      at_.st(kDepth == Depth::rows ? row * kPitch + column : column * kPitch + row, v);
    }
    template <Depth kDepth>
    FGK_DEVICE Acc get(int row, int column) const {
      return at_.ld(kDepth == Depth::rows ? row * kPitch + column : column * kPitch + row);
    }
    // Neighbours in a row of a factor; `column` is divisible by their number.
    template <Depth kDepth, int kItems>
    FGK_DEVICE void store(int row, int column, const Acc (&v)[kItems]) const {
      if constexpr (kDepth == Depth::columns) {
        FGK_UNROLL
        for (int q = 0; q < kItems; ++q) set<kDepth>(row, column + q, v[q]);
      } else {
        constexpr int kPerWord = 16 / static_cast<int>(sizeof(Acc));
        static_assert(kItems % kPerWord == 0);
        FGK_UNROLL
        for (int w = 0; w < kItems; w += kPerWord) {
          union {
            dev::Vec16 word;
            Acc element[kPerWord];
          } packed;
          FGK_UNROLL
          for (int i = 0; i < kPerWord; ++i) packed.element[i] = v[w + i];
          at_.template st_as<dev::Vec16>(row * kPitch + column + w, packed.word);
        }
      }
    }
    // Four rows or columns of the tile, from m on, at depth k.
    FGK_DEVICE void load(int k, int m, Acc (&to)[4]) const {
      constexpr int kPerWord = 16 / static_cast<int>(sizeof(Acc));
      FGK_UNROLL
      for (int w = 0; w < 4 / kPerWord; ++w) {
        union {
          dev::Vec16 word;
          Acc element[kPerWord];
        } v;
        v.word = at_.template ld_as<dev::Vec16>(k * kPitch + m + w * kPerWord);
        FGK_UNROLL
        for (int i = 0; i < kPerWord; ++i) to[w * kPerWord + i] = v.element[i];
      }
    }

   private:
    FGK_DEVICE explicit Operand(sptr<Acc> at) : at_(at) {}

    sptr<Acc> at_;
  };

  class Tile {
   public:
    FGK_DEVICE Tile() {
      FGK_UNROLL
      for (int e = 0; e < 16; ++e) value_[e] = 0;
    }
    // += the product of two factors, up to the next even depth.
    template <Depth kLeft, Depth kRight>
    FGK_DEVICE void multiply(const Operand& left, const Operand& right, int depth) {
      const int row = dev::tid() / 16 * 4, column = dev::tid() % 16 * 4;
      FGK_NO_UNROLL
      for (int k0 = 0; k0 < depth; k0 += 2) {
        FGK_UNROLL
        for (int k = k0; k < k0 + 2; ++k) {
          Acc a[4], b[4];
          left.load(k, row, a);
          right.load(k, column, b);
          FGK_UNROLL
          for (int e = 0; e < 16; ++e) value_[e] = dev::fma(a[e / 4], b[e % 4], value_[e]);
        }
      }
    }
    // += a tile of the same shape.
    FGK_DEVICE void add(const Tile& other) {
      FGK_UNROLL
      for (int e = 0; e < 16; ++e) value_[e] += other.value_[e];
    }
    // body(row, column, value&) for each value of this thread.
    template <class Body>
    FGK_DEVICE void each(const Body& body) {
      FGK_UNROLL
      for (int e = 0; e < 16; ++e) body(dev::tid() / 16 * 4 + e / 4, dev::tid() % 16 * 4 + e % 4, value_[e]);
    }

   private:
    Acc value_[16];
  };
};

// A factor that is loaded in vectors of `kItems` neighbours.
template <int kItems, class Load>
struct Factor {
  static constexpr int kVector = kItems;
  Load load;
};
template <int kItems, class Load>
FGK_DEVICE Factor<kItems, Load> factor(const Load& load) {
  return {load};
}

// Puts 32 of a factor's depth, from `first` on, into an operand: by the whole block, which synchronises before and
// after.
template <Depth kDepth, class Operand, class F>
FGK_DEVICE void fill(const Operand& operand, int first, const F& factor) {
  using Acc = decltype(operand.template get<kDepth>(0, 0));
  constexpr int kItems = F::kVector;
  constexpr int kRows = kDepth == Depth::rows ? kHalf : kTile;
  constexpr int kAcross = (kDepth == Depth::rows ? kTile : kHalf) / kItems;  // vectors of a row
  FGK_UNROLL
  for (int i = dev::tid(); i < kRows * kAcross; i += kTileThreads) {
    // Two vectors of 16 rows, then the rows' next ones: whole sectors of memory, few conflicts of banks.
    const int vector = i % 2 + i / 32 % (kAcross / 2) * 2;
    const int row = i / 2 % 16 + i / (16 * kAcross) * 16;
    Acc v[kItems];
    factor.load(row + (kDepth == Depth::rows ? first : 0), vector * kItems + (kDepth == Depth::rows ? 0 : first), v);
    operand.template store<kDepth>(row, vector * kItems, v);
  }
}

// tile += left right over a depth, through the memory of an operand. The block synchronises before that is written.
template <Depth kLeft, Depth kRight, class Tile, class Operand, class Left, class Right>
FGK_DEVICE void multiply(Tile& tile, const Operand& memory, int depth, const Left& left, const Right& right) {
  for (int first = 0; first < depth; first += kHalf) {
    dev::sync_block();
    fill<kLeft>(memory.left(), first, left);
    fill<kRight>(memory.right(), first, right);
    dev::sync_block();
    tile.template multiply<kLeft, kRight>(memory.left(), memory.right(), dev::min(kHalf, depth - first));
  }
}

// All 64 of a factor's depth, along its rows.
template <class Operand, class F>
FGK_DEVICE void fill_rows(const Operand& memory, const F& factor) {
  dev::sync_block();
  FGK_UNROLL
  for (int first = 0; first < kTile; first += kHalf) fill<Depth::rows>(memory.rows_from(first), first, factor);
  dev::sync_block();
}

// The same with up to 64 of the depth, the left factor being in place: each thread may have stored its part without a
// barrier.
template <Depth kLeft, class Tile, class Operand, class Right>
FGK_DEVICE void multiply_by(Tile& tile, const Operand& left, const Operand& memory, int depth, const Right& right) {
  fill_rows(memory, right);
  tile.template multiply<kLeft, Depth::rows>(left, memory, depth);
}

}  // namespace fgk::cuda
