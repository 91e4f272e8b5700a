// SPDX-License-Identifier: Apache-2.0
// cp.async, ldmatrix and mma against the PTX manual: where each element of a matrix lies is stated element by element
// (which lane, register and half hold it), the inverse of how the emulator computes it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "device_test.h"

namespace matrix_tests {

namespace dev = fgk::dev;
using dev::bf16;
using dev::f16;
using dev::gptr;
using dev::sptr;
using device_test::Array;
using device_test::in_every_order;

// ---- cp.async

// Thread i copies 16 bytes, of which valid.ld(i) are taken from memory.
FGK_GLOBAL void copy_kernel(gptr<const uint8_t> in, gptr<const int32_t> valid, gptr<uint8_t> out) {
  dev::Shared shared;
  const sptr<uint8_t> staged = shared.take<uint8_t>(64 * 16);
  const int i = dev::tid();
  dev::cp_async16(staged + i * 16, in + i * 16, valid.ld(i));
  dev::cp_async_commit();
  dev::cp_async_wait<0>();
  dev::sync_block();
  const int other = 63 - i;
  out.st_as<dev::Vec16>(other * 16, staged.ld_as<dev::Vec16>(other * 16));
}

TEST(copies_fill_what_is_not_valid_with_zeros) {
  in_every_order([] {
    Array<uint8_t> in(64 * 16);
    for (int i = 0; i < 64 * 16; ++i) in.host[i] = static_cast<uint8_t>(i % 251 + 1);
    Array<int32_t> valid(64);
    for (int i = 0; i < 64; ++i) valid.host[i] = i % 17;
    Array<uint8_t> out(64 * 16);
    dev::Buffers buffers;
    dev::launch("copy", copy_kernel, {1, 64, 64 * 16}, nullptr, buffers.in(in.to_device(), in.count(), "in"),
                buffers.in(valid.to_device(), 64, "valid"), buffers.out(out.to_device(), out.count(), "out"));
    out.from_device();
    for (int i = 0; i < 64 * 16; ++i) CHECK_EQ(int{out.host[i]}, i % 16 < valid.host[i / 16] ? int{in.host[i]} : 0);
  });
}

TEST(copies_of_no_valid_byte_read_nothing) {
  in_every_order([] {
    // 32 rows are announced, none is there.
    Array<uint8_t> in(16, 9);
    Array<int32_t> valid(64, 0);
    valid.host[0] = 16;
    Array<uint8_t> out(64 * 16);
    dev::Buffers buffers;
    dev::launch("copy", copy_kernel, {1, 64, 64 * 16}, nullptr, buffers.in(in.to_device(), 16, "in"),
                buffers.in(valid.to_device(), 64, "valid"), buffers.out(out.to_device(), out.count(), "out"));
    out.from_device();
    for (int i = 0; i < 64 * 16; ++i) CHECK_EQ(int{out.host[i]}, i < 16 ? 9 : 0);
  });
}

// A ring of three stages over `rows` rows of 16 bytes per thread; the sum of each thread's rows, as bytes wrap.
FGK_GLOBAL void pipeline_kernel(gptr<const int32_t> in, gptr<int32_t> out, int rows) {
  constexpr int kStages = 3;
  dev::Shared shared;
  const sptr<int32_t> ring = shared.take<int32_t>(kStages * 64 * 4);
  const int n = dev::block_threads();
  const auto start = [&](int row) {
    if (row < rows) dev::cp_async16(ring + ((row % kStages) * n + dev::tid()) * 4, in + (row * n + dev::tid()) * 4);
    dev::cp_async_commit();  // also for no copy, so that the groups keep counting rows
  };
  for (int row = 0; row < kStages - 1; ++row) start(row);
  int32_t sum = 0;
  for (int row = 0; row < rows; ++row) {
    dev::cp_async_wait<kStages - 2>();
    dev::sync_block();
    start(row + kStages - 1);
    for (int k = 0; k < 4; ++k) sum += ring.ld(((row % kStages) * n + (dev::tid() + 1) % n) * 4 + k);
  }
  dev::cp_async_wait<0>();
  out.st(dev::tid(), sum);
}

TEST(copies_in_a_ring_of_stages) {
  in_every_order([] {
    const int rows = 7;
    Array<int32_t> in(rows * 64 * 4);
    for (size_t i = 0; i < in.host.size(); ++i) in.host[i] = static_cast<int32_t>(i * i % 1009);
    Array<int32_t> out(64);
    dev::Buffers buffers;
    dev::launch("pipeline", pipeline_kernel, {1, 64, 3 * 64 * 16}, nullptr,
                buffers.in(in.to_device(), in.count(), "in"), buffers.out(out.to_device(), 64, "out"), rows);
    out.from_device();
    for (int i = 0; i < 64; ++i) {
      int32_t sum = 0;
      for (int row = 0; row < rows; ++row) {
        for (int k = 0; k < 4; ++k) sum += in.host[(row * 64 + (i + 1) % 64) * 4 + k];
      }
      CHECK_EQ(out.host[i], sum);
    }
  });
}

// ---- ldmatrix

enum class Load { x4, x4_trans, x2 };

// Rows of 8 elements lie `pitch` elements apart, in the order that `places` says.
FGK_GLOBAL void ldmatrix_kernel(gptr<const uint16_t> in, gptr<const int32_t> places, gptr<uint32_t> out, Load load) {
  dev::Shared shared;
  const sptr<bf16> rows = shared.take<bf16>(32 * 8);
  for (int k = 0; k < 8; ++k) rows.st(dev::tid() * 8 + k, bf16{in.ld(dev::tid() * 8 + k)});
  dev::sync_block();
  const sptr<bf16> row = rows + places.ld(dev::tid()) * 8;
  uint32_t r[4] = {0, 0, 0, 0};
  if (load == Load::x4) dev::ldmatrix_x4(r, row);
  if (load == Load::x4_trans) dev::ldmatrix_x4_trans(r, row);
  if (load == Load::x2) {
    uint32_t two[2];
    dev::ldmatrix_x2(two, row);
    r[0] = two[0];
    r[1] = two[1];
  }
  for (int j = 0; j < 4; ++j) out.st(dev::tid() * 4 + j, r[j]);
}

std::vector<uint32_t> load_matrices(Load load, const std::vector<int32_t>& rows_of_lanes) {
  Array<uint16_t> in(32 * 8);
  for (int i = 0; i < 32 * 8; ++i) in.host[i] = static_cast<uint16_t>(i + 1);  // row * 8 + column + 1
  Array<int32_t> places(rows_of_lanes);
  Array<uint32_t> out(32 * 4);
  dev::Buffers buffers;
  dev::launch("ldmatrix", ldmatrix_kernel, {1, 32, 32 * 16}, nullptr, buffers.in(in.to_device(), in.count(), "in"),
              buffers.in(places.to_device(), 32, "places"), buffers.out(out.to_device(), out.count(), "out"), load);
  out.from_device();
  return out.host;
}

uint32_t half_of(uint32_t pair, int which) { return which == 0 ? pair & 0xFFFF : pair >> 16; }

TEST(ldmatrix_gives_each_lane_its_pairs) {
  in_every_order([] {
    std::vector<int32_t> places(32);
    for (int i = 0; i < 32; ++i) places[i] = (i * 11 + 5) % 32;  // any row for any lane
    for (const Load load : {Load::x4, Load::x4_trans, Load::x2}) {
      const std::vector<uint32_t> got = load_matrices(load, places);
      for (int matrix = 0; matrix < (load == Load::x2 ? 2 : 4); ++matrix) {
        for (int row = 0; row < 8; ++row) {
          for (int column = 0; column < 8; ++column) {
            // "Thread 0 holds elements 0 and 1 of row 0, thread 1 elements 2 and 3, ..., thread 4 starts row 1."
            const int r = load == Load::x4_trans ? column : row;
            const int c = load == Load::x4_trans ? row : column;
            const int lane = r * 4 + c / 2;
            const uint32_t expected = static_cast<uint32_t>(places[matrix * 8 + row] * 8 + column + 1);
            CHECK_EQ(half_of(got[lane * 4 + matrix], c % 2), expected);
          }
        }
      }
    }
  });
}

TEST(ldmatrix_worked_by_hand) {
  std::vector<int32_t> places(32);
  for (int i = 0; i < 32; ++i) places[i] = i;
  const std::vector<uint32_t> plain = load_matrices(Load::x4, places);
  CHECK_EQ(plain[0], 0x00020001u);           // lane 0, matrix 0: row 0, columns 0 and 1
  CHECK_EQ(plain[5 * 4 + 0], 0x000C000Bu);   // lane 5: row 1, columns 2 and 3 are 11 and 12
  CHECK_EQ(plain[31 * 4 + 3], 0x010000FFu);  // lane 31, matrix 3: row 31, columns 6 and 7 are 255 and 256
  const std::vector<uint32_t> turned = load_matrices(Load::x4_trans, places);
  CHECK_EQ(turned[0], 0x00090001u);          // lane 0: column 0 of rows 0 and 1 are 1 and 9
  CHECK_EQ(turned[5 * 4 + 0], 0x001A0012u);  // lane 5: column 1 of rows 2 and 3 are 18 and 26
}

// ---- mma.m16n8k16

// Registers of all lanes as they are given, one product.
template <class T>
FGK_GLOBAL void mma_kernel(gptr<const uint32_t> a, gptr<const uint32_t> b, gptr<const float> c, gptr<float> d) {
  const int lane = dev::lane();
  uint32_t ra[4];
  uint32_t rb[2];
  float rc[4];
  for (int r = 0; r < 4; ++r) ra[r] = a.ld(lane * 4 + r);
  for (int r = 0; r < 2; ++r) rb[r] = b.ld(lane * 2 + r);
  for (int r = 0; r < 4; ++r) rc[r] = c.ld(lane * 4 + r);
  dev::mma_16816<T>(rc, ra, rb);
  for (int r = 0; r < 4; ++r) d.st(lane * 4 + r, rc[r]);
}

struct Product {
  uint16_t a[16][16];  // bits
  uint16_t b[16][8];
  float c[16][8];
};

// Places the matrices as "Matrix fragments for mma.m16n8k16" shows, multiplies, and reads the result back.
template <class T>
void multiply(const Product& in, float (&d)[16][8]) {
  Array<uint32_t> a(32 * 4, 0);
  Array<uint32_t> b(32 * 2, 0);
  Array<float> c(32 * 4);
  Array<float> out(32 * 4);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 16; ++column) {
      const int lane = (row % 8) * 4 + column % 8 / 2;
      const int element = column % 2 + 2 * (row / 8) + 4 * (column / 8);  // a0 .. a7
      a.host[lane * 4 + element / 2] |= static_cast<uint32_t>(in.a[row][column]) << (16 * (element % 2));
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      const int lane = column * 4 + row % 8 / 2;
      const int element = row % 2 + 2 * (row / 8);  // b0 .. b3
      b.host[lane * 2 + element / 2] |= static_cast<uint32_t>(in.b[row][column]) << (16 * (element % 2));
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      c.host[((row % 8) * 4 + column / 2) * 4 + column % 2 + 2 * (row / 8)] = in.c[row][column];
    }
  }
  dev::Buffers buffers;
  dev::launch("mma", mma_kernel<T>, {1, 32, 0}, nullptr, buffers.in(a.to_device(), a.count(), "a"),
              buffers.in(b.to_device(), b.count(), "b"), buffers.in(c.to_device(), c.count(), "c"),
              buffers.out(out.to_device(), out.count(), "d"));
  out.from_device();
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      d[row][column] = out.host[((row % 8) * 4 + column / 2) * 4 + column % 2 + 2 * (row / 8)];
    }
  }
}

// Bits of a whole number of at most 8 significant bits in either format.
template <class T>
uint16_t bits_of(float x) {
  if (x == 0.0f) return 0;
  int exponent;
  const float fraction = std::frexp(std::fabs(x), &exponent);  // in [0.5, 1)
  constexpr bool kBf16 = std::is_same_v<T, bf16>;
  const int digits = kBf16 ? 7 : 10;
  const int mantissa = static_cast<int>((fraction * 2 - 1) * static_cast<float>(1 << digits));
  return static_cast<uint16_t>((x < 0 ? 0x8000 : 0) | ((exponent - 1 + (kBf16 ? 127 : 15)) << digits) | mantissa);
}

template <class T>
void check_product_of_integers() {
  Product in;
  float a[16][16];
  float b[16][8];
  uint32_t random = 12345;
  const auto draw = [&] {
    random = random * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<int>(random >> 20) % 201 - 100);
  };
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) in.a[i][k] = bits_of<T>(a[i][k] = draw());
    for (int j = 0; j < 8; ++j) in.b[i][j] = bits_of<T>(b[i][j] = draw());
    for (int j = 0; j < 8; ++j) in.c[i][j] = 3 * draw();
  }
  float d[16][8];
  multiply<T>(in, d);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = in.c[i][j];
      for (int k = 0; k < 16; ++k) sum += a[i][k] * b[k][j];  // whole numbers below 2^24: exact in any order
      CHECK_EQ(d[i][j], sum);
    }
  }
}

TEST(mma_multiplies_whole_numbers_exactly) {
  in_every_order([] {
    check_product_of_integers<bf16>();
    check_product_of_integers<f16>();
  });
}

template <class T>
void check_one_hot() {
  for (int k = 0; k < 16; ++k) {
    Product in{};
    for (int i = 0; i < 16; ++i) in.a[i][k] = bits_of<T>(static_cast<float>(i + 1));
    for (int j = 0; j < 8; ++j) in.b[k][j] = bits_of<T>(static_cast<float>(j + 1));
    float d[16][8];
    multiply<T>(in, d);
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) CHECK_EQ(d[i][j], static_cast<float>((i + 1) * (j + 1)));
    }
  }
}

TEST(mma_pairs_each_column_of_a_with_its_row_of_b) {
  check_one_hot<bf16>();
  check_one_hot<f16>();
}

template <class T>
void check_special_values(uint16_t nan, uint16_t infinity) {
  Product in{};
  const uint16_t one = bits_of<T>(1.0f);
  for (int k = 0; k < 16; ++k) {
    for (int j = 0; j < 8; ++j) in.b[k][j] = one;
  }
  in.b[7][3] = 0;
  in.b[2][5] = nan;
  in.a[4][7] = infinity;  // row 4: infinite, but for column 3, where it meets 0
  in.a[9][11] = nan;      // row 9
  in.c[12][1] = std::numeric_limits<float>::quiet_NaN();
  in.c[13][1] = -std::numeric_limits<float>::infinity();
  float d[16][8];
  multiply<T>(in, d);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      const bool is_nan = i == 9 || j == 5 || (i == 4 && j == 3) || (i == 12 && j == 1);
      CHECK_EQ(std::isnan(d[i][j]), is_nan);
      if (is_nan) continue;
      if (i == 4) {
        CHECK(std::isinf(d[i][j]) && d[i][j] > 0);
      } else if (i == 13 && j == 1) {
        CHECK(std::isinf(d[i][j]) && d[i][j] < 0);
      } else {
        CHECK_EQ(d[i][j], 0.0f);
      }
    }
  }
}

TEST(mma_keeps_nan_and_infinity) {
  in_every_order([] {
    check_special_values<bf16>(0x7FC0, 0x7F80);
    check_special_values<f16>(0x7E00, 0x7C00);
  });
}

TEST(mma_takes_subnormal_operands) {
  Product in{};
  in.a[0][0] = 0x0001;  // 2^-24 as fp16
  in.b[0][0] = bits_of<f16>(1024.0f);
  in.a[1][3] = 0x03FF;  // 1023 * 2^-24
  in.b[3][1] = bits_of<f16>(16384.0f);
  float d[16][8];
  multiply<f16>(in, d);
  CHECK_EQ(d[0][0], std::ldexp(1.0f, -14));
  CHECK_EQ(d[1][1], std::ldexp(1023.0f, -10));
  Product wide{};
  wide.a[2][5] = 0x0003;  // 3 * 2^-133 as bf16
  wide.b[5][6] = 0x7F00;  // 2^127
  multiply<bf16>(wide, d);
  CHECK_EQ(d[2][6], std::ldexp(3.0f, -6));
}

// c (16 x 8) = a (16 x 16) b (16 x 8), both row by row in shared memory: a as it is, b transposed while it is loaded.
template <class T>
FGK_GLOBAL void product_kernel(gptr<const T> a, gptr<const T> b, gptr<float> c) {
  dev::Shared shared;
  const sptr<T> sa = shared.take<T>(16 * 16);
  const sptr<T> sb = shared.take<T>(2 * 16 * 8);
  const int lane = dev::lane();
  dev::cp_async16(sa + lane * 8, a + lane * 8);
  dev::cp_async16(sb + lane * 8, b + lane % 16 * 8, lane < 16 ? 16 : 0);
  dev::cp_async_commit();
  dev::cp_async_wait<0>();
  dev::sync_warp();
  uint32_t ra[4];
  uint32_t rb[4];
  dev::ldmatrix_x4(ra, sa + lane % 16 * 16 + lane / 16 * 8);
  dev::ldmatrix_x4_trans(rb, sb + lane * 8);
  const uint32_t first[2] = {rb[0], rb[1]};
  float acc[4] = {0, 0, 0, 0};
  dev::mma_16816<T>(acc, ra, first);
  for (int r = 0; r < 4; ++r) c.st((lane / 4 + r / 2 * 8) * 8 + lane % 4 * 2 + r % 2, acc[r]);
}

template <class T>
void check_matrix_product() {
  Array<T> a(16 * 16);
  Array<T> b(16 * 8);
  Array<float> c(16 * 8);
  const auto number = [](int i) { return static_cast<float>(i * 7 % 31 - 15); };
  for (int i = 0; i < 16 * 16; ++i) a.host[i].bits = bits_of<T>(number(i));
  for (int i = 0; i < 16 * 8; ++i) b.host[i].bits = bits_of<T>(number(i + 5));
  dev::Buffers buffers;
  dev::launch("product", product_kernel<T>, {1, 32, 1024}, nullptr, buffers.in(a.to_device(), a.count(), "a"),
              buffers.in(b.to_device(), b.count(), "b"), buffers.out(c.to_device(), c.count(), "c"));
  c.from_device();
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += number(i * 16 + k) * number(k * 8 + j + 5);
      CHECK_EQ(c.host[i * 8 + j], sum);
    }
  }
}

TEST(copies_fragments_and_products_fit_together) {
  in_every_order([] {
    check_matrix_product<bf16>();
    check_matrix_product<f16>();
  });
}

}  // namespace matrix_tests
