// SPDX-License-Identifier: Apache-2.0
// Tiles of matrix products, one 64 x 64 tile per block: operands are computed element by element on their way into
// shared memory, so that factors (decays, steps, gates) cost no array of their own.
#pragma once

#include "sequence_math.cuh"

namespace fgk::cuda {

constexpr int kTile = 64;
constexpr int kTileThreads = 256;
constexpr int kHalf = kTile / 2;

// Products by fused multiply-adds; a thread holds 4 x 4 values of a tile.
template <class A>
struct MultiplyAddTiles {
  using Acc = A;
  static constexpr int kPitch = kTile + 4;  // rows stay divisible by 16 bytes

  // 64 of the depth of one factor: element (k, m), m being the row or the column of the tile it belongs to. Or 32 of
  // the depth of both.
  class Operand {
   public:
    static constexpr int64_t bytes() { return dev::shared_bytes<Acc>(kTile * kPitch); }
    FGK_DEVICE explicit Operand(dev::Shared& shared) : at_(shared.take<Acc>(kTile * kPitch)) {}
    FGK_DEVICE Operand left() const { return Operand(at_.slice(0, kHalf * kPitch)); }
    FGK_DEVICE Operand right() const { return Operand(at_.slice(kHalf * kPitch, kHalf * kPitch)); }
    FGK_DEVICE void store(int k, int m, Acc v) const { at_.st(k * kPitch + m, v); }
    // The memory, for a tile of plain numbers between two products.
    FGK_DEVICE sptr<Acc> memory() const { return at_; }
    FGK_DEVICE Acc load(int k, int m) const { return at_.ld(k * kPitch + m); }
    // Elements (k, m) to (k, m + 3), m divisible by 4.
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
    // += the product of `depth` columns of a and rows of b, and of zeros behind them.
    FGK_DEVICE void multiply(const Operand& a, const Operand& b, int depth) {
      const int row = dev::tid() / 16 * 4, column = dev::tid() % 16 * 4;
      FGK_NO_UNROLL
      for (int k0 = 0; k0 < depth; k0 += 2) {
        FGK_UNROLL
        for (int k = k0; k < k0 + 2; ++k) {
          Acc left[4], right[4];
          a.load(k, row, left);
          b.load(k, column, right);
          FGK_UNROLL
          for (int e = 0; e < 16; ++e) value_[e] = dev::fma(left[e / 4], right[e % 4], value_[e]);
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

// Along which index of an operand neighbouring threads lie: that along which memory is contiguous.
enum class Along { k, m };

// operand(k, m) = value(k, m) for k < depth, zeros up to the next multiple of 32. By the whole block, which
// synchronises before and after.
template <Along kAlong, class Operand, class Value>
FGK_DEVICE void fill(const Operand& operand, int depth, const Value& value) {
  constexpr int kBatch = 4;  // values of a thread that are under way at the same time
  const int along = kAlong == Along::m ? dev::tid() % kTile : dev::tid() % kHalf;
  const int across = kAlong == Along::m ? dev::tid() / kTile : dev::tid() / kHalf;
  constexpr int kStep = kTileThreads / (kAlong == Along::m ? kTile : kHalf);
  constexpr int kSteps = (kAlong == Along::m ? kHalf : kTile) / kStep;
  for (int first = 0; first < depth; first += kHalf) {
    FGK_NO_UNROLL
    for (int step = 0; step < kSteps; step += kBatch) {
      decltype(value(0, 0)) loaded[kBatch];
      FGK_UNROLL
      for (int q = 0; q < kBatch; ++q) {
        const int other = across + (step + q) * kStep;
        const int k = first + (kAlong == Along::m ? other : along);
        loaded[q] = 0;
        if (k < depth) loaded[q] = value(k, kAlong == Along::m ? along : other);
      }
      FGK_UNROLL
      for (int q = 0; q < kBatch; ++q) {
        const int other = across + (step + q) * kStep;
        operand.store(first + (kAlong == Along::m ? other : along), kAlong == Along::m ? along : other, loaded[q]);
      }
    }
  }
}

// tile += sum over k < depth of left(k, row) right(k, column), through the memory of an operand. The block synchronises
// before that is written.
template <Along kLeft, Along kRight, class Tile, class Operand, class Left, class Right>
FGK_DEVICE void multiply(Tile& tile, const Operand& memory, int depth, const Left& left, const Right& right) {
  for (int first = 0; first < depth; first += kHalf) {
    const int count = dev::min(kHalf, depth - first);
    dev::sync_block();
    fill<kLeft>(memory.left(), count, [&](int k, int m) { return left(first + k, m); });
    fill<kRight>(memory.right(), count, [&](int k, int m) { return right(first + k, m); });
    dev::sync_block();
    tile.multiply(memory.left(), memory.right(), count);
  }
}

// tile += sum over k < depth of left(k, row) right(k, column), depth <= 64, the left factor being in place: each thread
// may have stored its part without a barrier.
template <Along kRight, class Tile, class Operand, class Right>
FGK_DEVICE void multiply_by(Tile& tile, const Operand& left, const Operand& memory, int depth, const Right& right) {
  dev::sync_block();
  fill<kRight>(memory, depth, right);
  dev::sync_block();
  tile.multiply(left, memory, depth);
}

}  // namespace fgk::cuda
