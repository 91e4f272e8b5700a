// SPDX-License-Identifier: Apache-2.0
// mbarriers and bulk copies, where the device has them. The emulated test and the one for GPUs include this file.
#pragma once

#include <cstdint>
#include <vector>

#include "check.h"
#include "device_test.h"

namespace mbarrier_tests {

namespace dev = fgk::dev;
using dev::gptr;
using dev::sptr;
using device_test::Array;
using device_test::in_every_order;

constexpr int kStages = 2;
constexpr int kRow = 256;  // elements

// A warp fetches rows into a ring, three warps add them up: full[s] says that stage s is there, empty[s] that all have
// read it.
FGK_GLOBAL void ring_kernel(gptr<const int32_t> in, gptr<int32_t> out, int rows) {
#if defined(FGK_BULK_COPY)
  dev::Shared shared;
  const sptr<int32_t> ring = shared.take<int32_t>(kStages * kRow);
  const sptr<uint64_t> full = shared.take<uint64_t>(kStages);
  const sptr<uint64_t> empty = shared.take<uint64_t>(kStages);
  if (dev::tid() == 0) {
    for (int s = 0; s < kStages; ++s) {
      dev::mbarrier_init(full + s, 1);
      dev::mbarrier_init(empty + s, 96);
    }
  }
  dev::sync_block();
  if (dev::warp() == 0) {
    if (dev::lane() != 0) return;
    for (int row = 0; row < rows; ++row) {
      const int s = row % kStages;
      if (row >= kStages) dev::mbarrier_wait(empty + s, static_cast<uint32_t>(row / kStages - 1) & 1);
      dev::mbarrier_arrive_expect(full + s, kRow * 4);
      dev::bulk_copy(ring + s * kRow, in.slice(row * kRow, kRow), kRow * 4, full + s);
    }
    return;
  }
  int32_t sum = 0;
  for (int row = 0; row < rows; ++row) {
    const int s = row % kStages;
    dev::mbarrier_wait(full + s, static_cast<uint32_t>(row / kStages) & 1);
    for (int i = dev::tid() - 32; i < kRow; i += 96) sum += (row + 1) * ring.ld(s * kRow + i);
    dev::mbarrier_arrive(empty + s);
  }
  out.st(dev::bid() * 96 + dev::tid() - 32, sum);
#else
  static_cast<void>(in);
  static_cast<void>(out);
  static_cast<void>(rows);
#endif
}

TEST(bulk_copies_through_a_ring_of_stages) {
  if (!device_test::has_bulk_copy()) return;
  in_every_order([] {
    for (const int rows : {1, 2, 3, 9}) {
      Array<int32_t> in(static_cast<size_t>(rows * kRow));
      for (size_t i = 0; i < in.host.size(); ++i) in.host[i] = static_cast<int32_t>(i * i % 10007);
      Array<int32_t> out(2 * 96);
      dev::Buffers buffers;
      dev::launch("ring", ring_kernel, {2, 128, kStages * kRow * 4 + 2 * dev::shared_bytes<uint64_t>(kStages)}, nullptr,
                  buffers.in(in.to_device(), in.count(), "in"), buffers.out(out.to_device(), out.count(), "out"), rows);
      out.from_device();
      for (int t = 0; t < 2 * 96; ++t) {
        int32_t sum = 0;
        for (int row = 0; row < rows; ++row) {
          for (int i = t % 96; i < kRow; i += 96) sum += (row + 1) * in.host[row * kRow + i];
        }
        CHECK_EQ(out.host[t], sum);
      }
    }
  });
}

// Two warps write by turns what the other one reads: one lane arrives for its warp.
FGK_GLOBAL void turns_kernel(gptr<int32_t> out, int rounds) {
#if defined(FGK_BULK_COPY)
  dev::Shared shared;
  const sptr<int32_t> cells = shared.take<int32_t>(32);
  const sptr<uint64_t> turn = shared.take<uint64_t>(2);  // turn[w]: warp w has had its turn
  if (dev::tid() < 2) dev::mbarrier_init(turn + dev::tid(), 1);
  if (dev::warp() == 0) cells.st(dev::lane(), 0);
  dev::sync_block();
  const int other = 1 - dev::warp();
  for (int round = 0; round < rounds; ++round) {
    // Warp 0 begins; it waits for warp 1's turn of the round before.
    if (dev::warp() == 1 || round > 0) {
      dev::mbarrier_wait(turn + other, static_cast<uint32_t>(round - other) & 1);
    }
    const int32_t v = cells.ld((dev::lane() + 1) % 32);
    dev::sync_warp();
    cells.st(dev::lane(), v + dev::lane() + dev::warp());
    dev::sync_warp();
    if (dev::lane() == 0) dev::mbarrier_arrive(turn + dev::warp());
  }
  dev::sync_block();
  if (dev::warp() == 0) out.st(dev::lane(), cells.ld(dev::lane()));
#else
  static_cast<void>(out);
  static_cast<void>(rounds);
#endif
}

TEST(mbarriers_let_warps_take_turns) {
  if (!device_test::has_bulk_copy()) return;
  in_every_order([] {
    const int rounds = 5;
    Array<int32_t> out(32);
    dev::Buffers buffers;
    dev::launch("turns", turns_kernel, {1, 64, 128 + dev::shared_bytes<uint64_t>(2)}, nullptr,
                buffers.out(out.to_device(), 32, "out"), rounds);
    out.from_device();
    std::vector<int32_t> cells(32, 0);
    for (int turn = 0; turn < 2 * rounds; ++turn) {
      std::vector<int32_t> next(32);
      for (int i = 0; i < 32; ++i) next[i] = cells[(i + 1) % 32] + i + turn % 2;
      cells = next;
    }
    for (int i = 0; i < 32; ++i) CHECK_EQ(out.host[i], cells[i]);
  });
}

}  // namespace mbarrier_tests
