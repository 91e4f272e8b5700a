// SPDX-License-Identifier: Apache-2.0
// Maps read in the order of a table, and such orders summed up; see CrossScan. A block owns some rows (batch entries'
// channels): it reads them side by side into shared memory, follows the table there, and writes side by side.
#pragma once

#include "sequence_math.cuh"

namespace fgk::cuda {

constexpr int kCrossThreads = 256;

template <class T>
struct CrossParams {
  gptr<const T> x;
  int64_t x_batch, x_direction, x_channel, x_position;
  gptr<const int32_t> table;  // (directions, length)
  gptr<T> out;
  int64_t rows, channels;  // rows: batch entries times channels
  int32_t directions, length;
  int32_t block_rows;
  int32_t read_directions;  // of x: all when they are summed up, else 1
  bool staged;              // the block's rows fit into shared memory
};

template <class T>
class CrossBlock {
 public:
  using Acc = Accumulation<T>;

  FGK_DEVICE explicit CrossBlock(const CrossParams<T>& p)
      : p_(p),
        first_(dev::bid() * p.block_rows),
        rows_(static_cast<int>(dev::min(p.rows - first_, int64_t{p.block_rows}))) {}

  FGK_DEVICE void run(bool merge) {
    if (p_.staged) {
      dev::Shared shared;
      staged_ = shared.take<T>(p_.block_rows * p_.read_directions * p_.length);
      const int count = rows_ * p_.read_directions * p_.length;
      for (int i = dev::tid(); i < count; i += kCrossThreads) {
        const int line = i / p_.length;
        staged_.st(i, global(line / p_.read_directions, line % p_.read_directions, i % p_.length));
      }
      dev::sync_block();
    }
    merge ? sum() : gather();
  }

 private:
  FGK_DEVICE T global(int row, int k, int place) const {
    const int64_t b = (first_ + row) / p_.channels, c = (first_ + row) % p_.channels;
    return p_.x.ld(b * p_.x_batch + k * p_.x_direction + c * p_.x_channel + place * p_.x_position);
  }
  // What the table's entry `at` of direction k names; NaN outside of the map.
  FGK_DEVICE T read(int row, int k, int at) const {
    const int place = p_.table.ld(int64_t{k} * p_.length + at);
    if (place < 0 || place >= p_.length) return from_acc<T>(static_cast<Acc>(__builtin_nan("")));
    const int from = p_.read_directions > 1 ? k : 0;
    return p_.staged ? staged_.ld((row * p_.read_directions + from) * p_.length + place) : global(row, from, place);
  }

  FGK_DEVICE void gather() const {
    for (int i = dev::tid(); i < rows_ * p_.directions * p_.length; i += kCrossThreads) {
      const int t = i % p_.length, k = i / p_.length % p_.directions, row = i / p_.length / p_.directions;
      const int64_t b = (first_ + row) / p_.channels, c = (first_ + row) % p_.channels;
      p_.out.st(((b * p_.directions + k) * p_.channels + c) * p_.length + t, read(row, k, t));
    }
  }
  FGK_DEVICE void sum() const {
    for (int i = dev::tid(); i < rows_ * p_.length; i += kCrossThreads) {
      const int t = i % p_.length, row = i / p_.length;
      Acc total = 0;
      for (int k = 0; k < p_.directions; ++k) total += to_acc(read(row, k, t));
      p_.out.st((first_ + row) * p_.length + t, from_acc<T>(total));
    }
  }

  const CrossParams<T>& p_;
  const int64_t first_;
  const int rows_;
  sptr<T> staged_;
};

template <class T>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kCrossThreads, 4) cross_scan_kernel(CrossParams<T> p) {
  CrossBlock<T>(p).run(false);
}

template <class T>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kCrossThreads, 4) cross_merge_kernel(CrossParams<T> p) {
  CrossBlock<T>(p).run(true);
}

}  // namespace fgk::cuda
