// SPDX-License-Identifier: Apache-2.0
// Bugs in synchronisation: barriers, copies, collectives.
#include "planted.h"

namespace {

using namespace planted;

// ---- barriers

// Hands each thread's number to the thread half a block away, through memory that is already initialised.
template <bool kBug>
FGK_GLOBAL void missing_barrier(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(kThreads);
  s.st(dev::tid(), 0.0f);
  dev::sync_block();
  HERE, s.st(dev::tid(), in.ld(dev::tid()));
  if (!kBug) dev::sync_block();
  out.st(dev::bid() * kThreads + dev::tid(), (HERE, s.ld((dev::tid() + kThreads / 2) % kThreads)));
}
PLANTED(missing_barrier, FaultKind::race_shared)

// A barrier of the warp where the block's is needed.
template <bool kBug>
FGK_GLOBAL void weak_barrier(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(kThreads);
  s.st(dev::tid(), 0.0f);
  dev::sync_block();
  HERE, s.st(dev::tid(), in.ld(dev::tid()));
  if (kBug) {
    dev::sync_warp();
  } else {
    dev::sync_block();
  }
  out.st(dev::bid() * kThreads + dev::tid(), (HERE, s.ld(kThreads - 1 - dev::tid())));
}
PLANTED(weak_barrier, FaultKind::race_shared)

// Within a warp; a shuffle orders no memory.
template <bool kBug>
FGK_GLOBAL void shuffle_for_a_barrier(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(kThreads);
  s.st(dev::tid(), 0.0f);
  dev::sync_block();
  HERE, s.st(dev::tid(), in.ld(dev::tid()));
  const float v = dev::shfl_xor(1.0f, 1);
  if (!kBug) dev::sync_warp();
  out.st(dev::bid() * kThreads + dev::tid(), v * (HERE, s.ld(dev::tid() ^ 1)));
}
PLANTED(shuffle_for_a_barrier, FaultKind::race_shared)

// The second round overwrites what others still read.
template <bool kBug>
FGK_GLOBAL void missing_barrier_before_reuse(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(kThreads);
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    HERE, s.st(dev::tid(), in.ld(round * kThreads + dev::tid()));
    dev::sync_block();
    sum += (HERE, s.ld(kThreads - 1 - dev::tid()));
    if (!kBug) dev::sync_block();
  }
  out.st(dev::bid() * kThreads + dev::tid(), sum);
}
PLANTED(missing_barrier_before_reuse, FaultKind::race_shared)

// All threads read a word, one of them writes it: whoever read last, somebody else has read it too.
template <bool kBug>
FGK_GLOBAL void write_among_readers(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(1);
  if (dev::tid() == 0) s.st(0, in.ld(0));
  dev::sync_block();
  const float v = (HERE, s.ld(0));
  if (!kBug) dev::sync_block();
  if (dev::tid() == kThreads - 1) HERE, s.st(0, v + 1);  // in one order it comes last
  out.st(dev::bid() * kThreads + dev::tid(), v);
}
PLANTED(write_among_readers, FaultKind::race_shared)

// The same by lanes of one warp.
template <bool kBug>
FGK_GLOBAL void write_among_lanes_that_read(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(2);
  if (dev::lane() == 0) s.st(dev::warp(), in.ld(0));
  dev::sync_warp();
  const float v = (HERE, s.ld(dev::warp()));
  if (!kBug) dev::sync_warp();
  if (dev::lane() == 31) HERE, s.st(dev::warp(), v + 1);
  out.st(dev::bid() * kThreads + dev::tid(), v);
}
PLANTED(write_among_lanes_that_read, FaultKind::race_shared)

template <bool kBug>
FGK_GLOBAL void two_lanes_store_one_word(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(kThreads);
  const int place = kBug && dev::tid() == 17 ? 16 : dev::tid();
  HERE, s.st(place, in.ld(0));  // the same value: still a race
  dev::sync_block();
  if (dev::tid() != 17) out.st(dev::bid() * kThreads + dev::tid(), s.ld(dev::tid()));
}
PLANTED(two_lanes_store_one_word, FaultKind::race_shared)

// Neighbouring bytes belong to different threads, which is no race; a store of two bytes reaches into the neighbour's.
template <bool kBug>
FGK_GLOBAL void store_reaches_into_the_next_byte(gptr<const float>, gptr<float> out) {
  dev::Shared shared;
  const sptr<uint8_t> s = shared.take<uint8_t>(kThreads);
  if (kBug && dev::tid() % 2 == 0) {
    HERE, s.as<uint16_t>().st(dev::tid() / 2, 0);
  } else {
    HERE, s.st(dev::tid(), 0);
  }
  dev::sync_block();
  out.st(dev::bid() * kThreads + dev::tid(), static_cast<float>(s.as<uint32_t>().ld(dev::tid() / 4)));
}
PLANTED(store_reaches_into_the_next_byte, FaultKind::race_shared)

template <bool kBug>
FGK_GLOBAL void plain_store_among_atomics(gptr<const float>, gptr<float> out) {
  dev::Shared shared;
  const sptr<int32_t> s = shared.take<int32_t>(1);
  if (dev::tid() == 0) s.st(0, 0);
  dev::sync_block();
  if (kBug && dev::tid() == 5) {
    HERE, s.st(0, 1);
  } else {
    HERE, dev::atomic_add(s, 0, 1);
  }
  dev::sync_block();
  out.st(dev::bid() * kThreads + dev::tid(), static_cast<float>(s.ld(0)));
}
PLANTED(plain_store_among_atomics, FaultKind::race_shared)

template <bool kBug>
FGK_GLOBAL void plain_load_among_atomics(gptr<const float>, gptr<float> out) {
  dev::Shared shared;
  const sptr<int32_t> s = shared.take<int32_t>(1);
  if (dev::tid() == 0) s.st(0, 0);
  dev::sync_block();
  HERE, dev::atomic_add(s, 0, 1);
  if (!kBug) dev::sync_block();
  out.st(dev::bid() * kThreads + dev::tid(), static_cast<float>((HERE, s.ld(0))));
}
PLANTED(plain_load_among_atomics, FaultKind::race_shared)

// Zeroed by the thread that counts first itself, with nobody told.
template <bool kBug>
FGK_GLOBAL void atomics_on_a_store_without_a_barrier(gptr<const float>, gptr<float> out) {
  dev::Shared shared;
  const sptr<int32_t> s = shared.take<int32_t>(1);
  if (dev::tid() == 0) s.st(0, 7);
  dev::sync_block();
  if (dev::tid() == 0) HERE, s.st(0, 0);
  if (!kBug) dev::sync_block();
  HERE, dev::atomic_add(s, 0, 1);
  dev::sync_block();
  out.st(dev::bid() * kThreads + dev::tid(), static_cast<float>(s.ld(0)));
}
PLANTED(atomics_on_a_store_without_a_barrier, FaultKind::race_shared)

template <bool kBug>
FGK_GLOBAL void read_of_unwritten_shared_memory(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(kThreads + 1);
  s.st(dev::tid(), in.ld(dev::tid()));
  if (!kBug && dev::tid() == 0) s.st(kThreads, 0.0f);
  dev::sync_block();
  out.st(dev::bid() * kThreads + dev::tid(), (HERE, s.ld(dev::tid() + 1)));
}
PLANTED(read_of_unwritten_shared_memory, FaultKind::uninitialized_shared)

// Half of the word is written.
template <bool kBug>
FGK_GLOBAL void read_of_a_half_written_word(gptr<const float>, gptr<float> out) {
  dev::Shared shared;
  const sptr<int16_t> s = shared.take<int16_t>(2 * kThreads);
  s.st(2 * dev::tid(), 1);
  if (!kBug) s.st(2 * dev::tid() + 1, 2);
  out.st(dev::bid() * kThreads + dev::tid(), static_cast<float>((HERE, s.as<int32_t>().ld(dev::tid()))));
}
PLANTED(read_of_a_half_written_word, FaultKind::uninitialized_shared)

template <bool kBug>
FGK_GLOBAL void divergent_barrier(gptr<const float>, gptr<float> out) {
  if (kBug && dev::warp() == 0) {
    HERE, dev::sync_block();
  } else {
    HERE, dev::sync_block();
  }
  out.st(dev::bid() * kThreads + dev::tid(), 1.0f);
}
template <>
FGK_GLOBAL void divergent_barrier<false>(gptr<const float>, gptr<float> out) {
  dev::sync_block();
  out.st(dev::bid() * kThreads + dev::tid(), 1.0f);
}
PLANTED(divergent_barrier, FaultKind::divergent_barrier)

template <bool kBug>
FGK_GLOBAL void exit_before_a_barrier(gptr<const float>, gptr<float> out) {
  if (kBug && dev::tid() >= 50) return;
  HERE, dev::sync_block();
  out.st(dev::bid() * kThreads + dev::tid(), 1.0f);
}
PLANTED(exit_before_a_barrier, FaultKind::exited_thread)

template <bool kBug>
FGK_GLOBAL void exit_before_a_shuffle(gptr<const float> in, gptr<float> out) {
  if (kBug && dev::tid() == 31) return;
  const float v = (HERE, dev::shfl_down(in.ld(dev::tid()), 1));
  out.st(dev::bid() * kThreads + dev::tid(), v);
}
PLANTED(exit_before_a_shuffle, FaultKind::exited_thread)

template <bool kBug>
FGK_GLOBAL void divergent_shuffle(gptr<const float> in, gptr<float> out) {
  float v = in.ld(dev::tid());
  if (kBug && dev::lane() < 16) {
    v = (HERE, dev::shfl_xor(v, 1));
  } else {
    v = (HERE, dev::shfl_xor(v, 1));
  }
  out.st(dev::bid() * kThreads + dev::tid(), v);
}
PLANTED(divergent_shuffle, FaultKind::divergent_collective)

// A reduction that some lanes leave early.
template <bool kBug>
FGK_GLOBAL void divergent_reduction(gptr<const float> in, gptr<float> out) {
  const float v = in.ld(dev::tid());
  if (kBug && dev::lane() == 3) {
    HERE, dev::sync_warp();
  } else {
    HERE, dev::warp_sum(v);
  }
  out.st(dev::bid() * kThreads + dev::tid(), v);
}
PLANTED(divergent_reduction, FaultKind::divergent_collective)

// Half of a warp waits for the block, half for the warp.
template <bool kBug>
FGK_GLOBAL void deadlock(gptr<const float> in, gptr<float> out) {
  float v = in.ld(dev::tid());
  if (kBug && dev::lane() < 16) {
    HERE, dev::sync_block();
    v = dev::shfl_xor(v, 1);
  } else {
    v = (HERE, dev::shfl_xor(v, 1));
    HERE, dev::sync_block();
  }
  out.st(dev::bid() * kThreads + dev::tid(), v);
}
PLANTED(deadlock, FaultKind::deadlock)

// ---- cp.async

enum class CopyBug { none, no_wait, weak_wait, no_commit, no_barrier, overwritten };

template <CopyBug kBug>
FGK_GLOBAL void copy(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(4 * kThreads);
  dev::cp_async16(s + 4 * dev::tid(), in.slice(4 * (dev::tid() % 32), 4));
  if (kBug == CopyBug::overwritten) HERE, s.st(4 * dev::tid() + 1, 0.0f);
  if (kBug != CopyBug::no_commit) dev::cp_async_commit();
  dev::sync_block();  // issued everywhere, arrived nowhere
  if (kBug == CopyBug::weak_wait) {
    dev::cp_async_wait<1>();
  } else if (kBug != CopyBug::no_wait) {
    dev::cp_async_wait<0>();
  }
  if (kBug != CopyBug::no_barrier) dev::sync_block();
  out.st(dev::bid() * kThreads + dev::tid(), (HERE, s.ld(4 * ((dev::tid() + 32) % kThreads))));
}

void expect_copy_bug(std::initializer_list<FaultKind> kinds, int line, planted::Kernel bug) {
  planted::expect(kinds, __FILE__, line, bug, copy<CopyBug::none>);
}

TEST(missing_wait_is_caught) { expect_copy_bug({FaultKind::in_flight}, __LINE__, copy<CopyBug::no_wait>); }
TEST(weak_wait_is_caught) { expect_copy_bug({FaultKind::in_flight}, __LINE__, copy<CopyBug::weak_wait>); }
TEST(missing_commit_is_caught) { expect_copy_bug({FaultKind::in_flight}, __LINE__, copy<CopyBug::no_commit>); }
TEST(missing_barrier_after_the_wait_is_caught) {
  // The other thread's data have not arrived, or have without this one being told.
  expect_copy_bug({FaultKind::in_flight, FaultKind::race_shared}, __LINE__, copy<CopyBug::no_barrier>);
}
TEST(store_into_a_copy_is_caught) { expect_copy_bug({FaultKind::in_flight}, __LINE__, copy<CopyBug::overwritten>); }

// The wait of one thread is not the wait of another.
template <bool kBug>
FGK_GLOBAL void wait_of_another_thread(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(4 * kThreads);
  dev::cp_async16(s + 4 * dev::tid(), in + 4 * (dev::tid() % 32));
  dev::cp_async_commit();
  if (!kBug || dev::tid() < 32) dev::cp_async_wait<0>();
  dev::sync_block();
  if (dev::tid() < 32) out.st(dev::bid() * kThreads + dev::tid(), (HERE, s.ld(4 * (dev::tid() + 32))));
  dev::cp_async_wait<0>();
}
PLANTED(wait_of_another_thread, FaultKind::in_flight, FaultKind::race_shared)

template <bool kBug>
FGK_GLOBAL void pending_copies(gptr<const float> in, gptr<float>) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(4 * kThreads);
  HERE, dev::cp_async16(s + 4 * dev::tid(), in + 4 * (dev::tid() % 32));
  dev::cp_async_commit();
  if (!kBug || dev::tid() != 33) dev::cp_async_wait<0>();
}
PLANTED(pending_copies, FaultKind::pending_copies)

template <bool kBug>
FGK_GLOBAL void bad_copy_size(gptr<const float> in, gptr<float>) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(4 * kThreads);
  HERE, dev::cp_async16(s + 4 * dev::tid(), in + 4 * (dev::tid() % 32), kBug ? 17 : 16);
  dev::cp_async_commit();
  dev::cp_async_wait<0>();
}
PLANTED(bad_copy_size, FaultKind::bad_copy_size)

// Refills a stage that other threads may still read.
template <bool kBug>
FGK_GLOBAL void refill_without_a_barrier(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(4 * kThreads);
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    HERE, dev::cp_async16(s + 4 * dev::tid(), in + 4 * (dev::tid() % 32 + round));
    dev::cp_async_commit();
    dev::cp_async_wait<0>();
    dev::sync_block();
    sum += (HERE, s.ld(4 * (kThreads - 1 - dev::tid())));
    if (!kBug) dev::sync_block();
  }
  out.st(dev::bid() * kThreads + dev::tid(), sum);
}
PLANTED(refill_without_a_barrier, FaultKind::race_shared, FaultKind::in_flight)

}  // namespace
