// SPDX-License-Identifier: Apache-2.0
// Bugs around mbarriers and bulk copies, planted in a ring of two stages: warp 0 fetches, warp 1 reads.
#include "planted.h"

namespace {

using namespace planted;

enum class Bug {
  none,
  no_barrier_after_init,
  not_initialised,
  no_wait_for_full,
  wrong_parity,
  wait_of_another_lane,
  no_wait_for_empty,
  too_few_arrivals,
  no_arrival,
  wrong_bytes,
  bad_size,
  not_waited_for,
  past_the_stage,
  past_the_row
};

constexpr int kStages = 2;
constexpr int kRow = 64;
constexpr int kRows = 4;

template <Bug kBug>
FGK_GLOBAL void ring(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> stages = shared.take<float>(kStages * kRow);
  const sptr<uint64_t> full = shared.take<uint64_t>(kStages);
  const sptr<uint64_t> empty = shared.take<uint64_t>(kStages);
  if (dev::tid() == 0) {
    for (int s = 0; s < kStages; ++s) {
      if (kBug != Bug::not_initialised) HERE, dev::mbarrier_init(full + s, 1);
      HERE, dev::mbarrier_init(empty + s, kBug == Bug::too_few_arrivals ? 16 : 32);
    }
  }
  if (kBug != Bug::no_barrier_after_init) dev::sync_block();
  if (dev::tid() == 0) {
    for (int row = 0; row < kRows; ++row) {
      const int s = row % kStages;
      if (row >= kStages && kBug != Bug::no_wait_for_empty) {
        HERE, dev::mbarrier_wait(empty + s, static_cast<uint32_t>(row / kStages - 1) & 1);
      }
      HERE, dev::mbarrier_arrive_expect(full + s, kRow * 4 + (kBug == Bug::wrong_bytes ? 16 : 0));
      const int bytes = kRow * 4 - (kBug == Bug::bad_size ? 8 : 0);
      const int shift = kBug == Bug::past_the_row ? 4 : 0;
      const sptr<float> to = stages.slice(s * kRow, kBug == Bug::past_the_stage ? kRow - 4 : kRow);
      HERE, dev::bulk_copy(to, in.slice(row * kRow, kRow) + shift, bytes, full + s);
    }
  }
  if (dev::warp() == 1) {
    float sum = 0;
    for (int row = 0; row < kRows; ++row) {
      const int s = row % kStages;
      const uint32_t parity = static_cast<uint32_t>(row / kStages + (kBug == Bug::wrong_parity ? 1 : 0)) & 1;
      const bool waits = kBug != Bug::no_wait_for_full && (kBug != Bug::wait_of_another_lane || dev::lane() == 5) &&
                         (kBug != Bug::not_waited_for || row + 1 < kRows);
      if (waits) HERE, dev::mbarrier_wait(full + s, parity);
      if (kBug == Bug::not_waited_for && !waits) continue;
      sum += (HERE, stages.ld(s * kRow + 2 * dev::lane()));
      if (kBug != Bug::no_arrival) HERE, dev::mbarrier_arrive(empty + s);
    }
    out.st(dev::bid() * kThreads + dev::tid(), sum);
  }
}

void expect_ring_bug(std::initializer_list<FaultKind> kinds, int line, planted::Kernel bug) {
  planted::expect(kinds, __FILE__, line, bug, ring<Bug::none>);
}

TEST(missing_barrier_after_mbarrier_init_is_caught) {
  // Others find no mbarrier, or one that they have not been told of.
  expect_ring_bug({FaultKind::bad_mbarrier, FaultKind::race_shared}, __LINE__, ring<Bug::no_barrier_after_init>);
}
TEST(mbarrier_that_is_not_initialised_is_caught) {
  expect_ring_bug({FaultKind::bad_mbarrier}, __LINE__, ring<Bug::not_initialised>);
}
TEST(missing_wait_for_a_bulk_copy_is_caught) {
  // Nothing has been written, a copy is under way, or it has landed for others.
  expect_ring_bug({FaultKind::uninitialized_shared, FaultKind::in_flight, FaultKind::race_shared}, __LINE__,
                  ring<Bug::no_wait_for_full>);
}
TEST(wait_with_the_wrong_parity_is_caught) {
  expect_ring_bug({FaultKind::uninitialized_shared, FaultKind::in_flight, FaultKind::race_shared, FaultKind::deadlock},
                  __LINE__, ring<Bug::wrong_parity>);
}
TEST(wait_of_another_lane_is_caught) {
  expect_ring_bug({FaultKind::uninitialized_shared, FaultKind::in_flight, FaultKind::race_shared}, __LINE__,
                  ring<Bug::wait_of_another_lane>);
}
TEST(bulk_copy_into_a_stage_that_is_still_read_is_caught) {
  expect_ring_bug({FaultKind::race_shared, FaultKind::in_flight, FaultKind::deadlock}, __LINE__,
                  ring<Bug::no_wait_for_empty>);
}
TEST(mbarrier_for_too_few_arrivals_is_caught) {
  // Twice as many arrivals as it was made for complete two phases: the wait is over too early, or never.
  expect_ring_bug({FaultKind::race_shared, FaultKind::in_flight, FaultKind::deadlock}, __LINE__,
                  ring<Bug::too_few_arrivals>);
}
TEST(missing_arrival_is_caught) { expect_ring_bug({FaultKind::deadlock}, __LINE__, ring<Bug::no_arrival>); }
TEST(wrong_number_of_expected_bytes_is_caught) {
  expect_ring_bug({FaultKind::deadlock}, __LINE__, ring<Bug::wrong_bytes>);
}
TEST(size_of_a_bulk_copy_that_is_no_multiple_of_16_is_caught) {
  expect_ring_bug({FaultKind::bad_copy_size}, __LINE__, ring<Bug::bad_size>);
}
TEST(bulk_copy_that_nobody_waits_for_is_caught) {
  expect_ring_bug({FaultKind::pending_copies}, __LINE__, ring<Bug::not_waited_for>);
}
TEST(bulk_copy_past_its_destination_is_caught) {
  expect_ring_bug({FaultKind::out_of_bounds}, __LINE__, ring<Bug::past_the_stage>);
}
TEST(bulk_copy_past_its_source_is_caught) {
  expect_ring_bug({FaultKind::out_of_bounds}, __LINE__, ring<Bug::past_the_row>);
}

// A reader arrives before it has read; the writer, which waits for the arrival alone, overwrites.
template <bool kBug>
FGK_GLOBAL void arrival_before_the_read(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> cell = shared.take<float>(1);
  const sptr<uint64_t> done = shared.take<uint64_t>(1);
  if (dev::tid() == 0) {
    dev::mbarrier_init(done, 1);
    cell.st(0, in.ld(0));
  }
  dev::sync_block();
  if (dev::tid() == 40) {
    if (kBug) dev::mbarrier_arrive(done);
    out.st(dev::bid(), (HERE, cell.ld(0)));
    if (!kBug) dev::mbarrier_arrive(done);
  }
  if (dev::tid() == 3) {
    dev::mbarrier_wait(done, 0);
    HERE, cell.st(0, 1.0f);
  }
}
PLANTED(arrival_before_the_read, FaultKind::race_shared)

// What happened before the block's first mbarrier was there is not ordered by it.
template <bool kBug>
FGK_GLOBAL void store_before_the_first_mbarrier(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> cell = shared.take<float>(1);
  const sptr<uint64_t> done = shared.take<uint64_t>(1);
  if (dev::tid() == 7) cell.st(0, 0.0f);
  dev::sync_block();
  if (dev::tid() == 40) HERE, cell.st(0, in.ld(0));
  if (!kBug) dev::sync_block();
  if (dev::tid() == 0) {
    dev::mbarrier_init(done, 1);
    out.st(dev::bid(), (HERE, cell.ld(0)));
  }
}
PLANTED(store_before_the_first_mbarrier, FaultKind::race_shared)

// One lane arrives for its warp, which has not met before.
template <bool kBug>
FGK_GLOBAL void arrival_for_a_warp(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> cells = shared.take<float>(32);
  const sptr<uint64_t> done = shared.take<uint64_t>(1);
  if (dev::tid() == 0) dev::mbarrier_init(done, 1);
  if (dev::warp() == 1) cells.st(dev::lane(), 0.0f);
  dev::sync_block();
  if (dev::warp() == 1) {
    HERE, cells.st(dev::lane(), in.ld(dev::lane()));
    if (!kBug) dev::sync_warp();
    if (dev::lane() == 31) dev::mbarrier_arrive(done);
  } else {
    dev::mbarrier_wait(done, 0);
    out.st(dev::bid() * kThreads + dev::tid(), (HERE, cells.ld(dev::lane())));
  }
}
PLANTED(arrival_for_a_warp, FaultKind::race_shared)

}  // namespace
