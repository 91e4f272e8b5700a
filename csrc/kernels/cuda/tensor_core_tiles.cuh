// SPDX-License-Identifier: Apache-2.0
// Tiles of matrix products (tile_product.cuh) on tensor cores, for factors that bf16 does not hold: each value is the
// sum of two bf16, and a product is three products of those. What is left out is below 2^-16 of a term.
#pragma once

#include "tile_product.cuh"

namespace fgk::cuda {

struct TensorCoreTiles {
  using Acc = float;

  static constexpr int kPitch = kTile + 8;      // of rows of 64: rows of ldmatrix hit different banks
  static constexpr int kHalfPitch = kHalf + 8;  // of rows of 32
  static constexpr int kPart = kTile * 2 * kHalfPitch;

  // Rows of a factor as they are, in two parts: what bf16 holds, and the rest.
  template <int kColumnsPitch>
  class Rows {
   public:
    FGK_DEVICE Rows(sptr<dev::bf16> high, sptr<dev::bf16> low) : high_(high), low_(low) {}

    template <Depth kDepth>
    static constexpr int kRowPitch = kDepth == Depth::rows ? kPitch : kColumnsPitch;
    FGK_DEVICE sptr<dev::bf16> part(int which) const { return which == 0 ? high_ : low_; }

    template <Depth kDepth>
    FGK_DEVICE void set(int row, int column, float v) const {
      const dev::bf16 high = dev::from_float<dev::bf16>(v);
      high_.st(row * kRowPitch<kDepth> + column, high);
      low_.st(row * kRowPitch<kDepth> + column, dev::from_float<dev::bf16>(rest(v, dev::to_float(high))));
    }
    template <Depth kDepth>
    FGK_DEVICE float get(int row, int column) const {
      const int at = row * kRowPitch<kDepth> + column;
      return dev::to_float(high_.ld(at)) + dev::to_float(low_.ld(at));
    }
    template <Depth kDepth, int kItems>
    FGK_DEVICE void store(int row, int column, const float (&v)[kItems]) const {
      using Packed = Word<dev::bf16, kItems>;
      union {
        Packed word;
        uint32_t pair[kItems / 2];
      } high, low;
      FGK_UNROLL
      for (int i = 0; i < kItems / 2; ++i) {
        float first, second;
        high.pair[i] = dev::pack2<dev::bf16>(v[2 * i], v[2 * i + 1]);
        dev::unpack2<dev::bf16>(high.pair[i], first, second);
        low.pair[i] = dev::pack2<dev::bf16>(rest(v[2 * i], first), rest(v[2 * i + 1], second));
      }
      high_.template st_as<Packed>(row * kRowPitch<kDepth> + column, high.word);
      low_.template st_as<Packed>(row * kRowPitch<kDepth> + column, low.word);
    }

   private:
    // Infinities have no rest.
    static FGK_DEVICE float rest(float v, float high) {
      const float difference = v - high;
      return dev::isnan(difference) ? 0.0f : difference;
    }

    sptr<dev::bf16> high_;
    sptr<dev::bf16> low_;
  };

  // 64 of the depth of one factor, or 32 of the depth of both.
  class Operand : public Rows<kPitch> {
   public:
    static constexpr int64_t bytes() { return 2 * dev::shared_bytes<dev::bf16>(kPart); }
    FGK_DEVICE explicit Operand(dev::Shared& shared)
        : Rows<kPitch>(shared.take<dev::bf16>(kPart), shared.take<dev::bf16>(kPart)) {}
    FGK_DEVICE Rows<kHalfPitch> left() const { return from(0); }
    FGK_DEVICE Rows<kHalfPitch> right() const { return from(kPart / 2); }
    FGK_DEVICE Rows<kHalfPitch> rows_from(int row) const { return from(row * kPitch); }

   private:
    FGK_DEVICE Rows<kHalfPitch> from(int at) const {
      return {part(0).slice(at, kPart / 2), part(1).slice(at, kPart / 2)};
    }
  };

  // Warps hold 16 x 32 values each: four down, two across.
  class Tile {
   public:
    FGK_DEVICE Tile() {
      FGK_UNROLL
      for (int e = 0; e < 16; ++e) value_[e / 4][e % 4] = 0;
    }
    // += the product of two factors, up to the next multiple of 16 in depth.
    template <Depth kLeft, Depth kRight, class Left, class Right>
    FGK_DEVICE void multiply(const Left& left, const Right& right, int depth) {
      const int lane = dev::lane(), in_matrix = lane % 8, matrix = lane / 8;
      for (int k0 = 0; k0 < depth; k0 += 16) {
        uint32_t a[2][4], b[2][2][4];
        FGK_UNROLL
        for (int part = 0; part < 2; ++part) {
          // Matrices of rows 0 to 7 and 8 to 15, then the same eight further in depth.
          constexpr int kPitchLeft = Left::template kRowPitch<kLeft>;
          if constexpr (kLeft == Depth::columns) {
            const int at = (row0() + matrix % 2 * 8 + in_matrix) * kPitchLeft + k0 + matrix / 2 * 8;
            dev::ldmatrix_x4(a[part], left.part(part) + at);
          } else {
            const int at = (k0 + matrix / 2 * 8 + in_matrix) * kPitchLeft + row0() + matrix % 2 * 8;
            dev::ldmatrix_x4_trans(a[part], left.part(part) + at);
          }
          constexpr int kPitchRight = Right::template kRowPitch<kRight>;
          FGK_UNROLL
          for (int pair = 0; pair < 2; ++pair) {
            // Columns 0 to 7, the same eight further in depth, then columns 8 to 15.
            const int column = column0() + pair * 16 + matrix / 2 * 8, k = k0 + matrix % 2 * 8;
            if constexpr (kRight == Depth::columns) {
              dev::ldmatrix_x4(b[part][pair], right.part(part) + ((column + in_matrix) * kPitchRight + k));
            } else {
              dev::ldmatrix_x4_trans(b[part][pair], right.part(part) + ((k + in_matrix) * kPitchRight + column));
            }
          }
        }
        FGK_UNROLL
        for (int n = 0; n < 4; ++n) {
          const uint32_t high[2] = {b[0][n / 2][n % 2 * 2], b[0][n / 2][n % 2 * 2 + 1]};
          const uint32_t low[2] = {b[1][n / 2][n % 2 * 2], b[1][n / 2][n % 2 * 2 + 1]};
          dev::mma_16816<dev::bf16>(value_[n], a[1], high);
          dev::mma_16816<dev::bf16>(value_[n], a[0], low);
          dev::mma_16816<dev::bf16>(value_[n], a[0], high);
        }
      }
    }
    FGK_DEVICE void add(const Tile& other) {
      FGK_UNROLL
      for (int e = 0; e < 16; ++e) value_[e / 4][e % 4] += other.value_[e / 4][e % 4];
    }
    // body(row, column, value&) for each value of this thread.
    template <class Body>
    FGK_DEVICE void each(const Body& body) {
      const int row = row0() + dev::lane() / 4, column = column0() + dev::lane() % 4 * 2;
      FGK_UNROLL
      for (int e = 0; e < 16; ++e) {
        body(row + e % 4 / 2 * 8, column + e / 4 * 8 + e % 2, value_[e / 4][e % 4]);
      }
    }

   private:
    static FGK_DEVICE int row0() { return dev::warp() % 4 * 16; }
    static FGK_DEVICE int column0() { return dev::warp() / 4 * 32; }

    float value_[4][4];
  };
};

}  // namespace fgk::cuda
