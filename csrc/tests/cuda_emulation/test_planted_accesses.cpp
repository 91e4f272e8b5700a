// SPDX-License-Identifier: Apache-2.0
// Bugs in addresses, and conflicts in global memory.
#include <type_traits>

#include "planted.h"

namespace {

using namespace planted;

// ---- what does not compile

template <class P, class = void>
constexpr bool has_store = false;
template <class P>
constexpr bool has_store<P, std::void_t<decltype(std::declval<P>().st(0, typename P::value{}))>> = true;
template <class P, class = void>
constexpr bool has_vector_store = false;
template <class P>
constexpr bool has_vector_store<P, std::void_t<decltype(std::declval<P>().template st_as<dev::Vec4>(0, dev::Vec4{}))>> =
    true;

static_assert(has_store<gptr<float>> && has_store<sptr<float>> && has_vector_store<gptr<float>>);
static_assert(!has_store<gptr<const float>> && !has_vector_store<gptr<const float>>);
static_assert(!has_store<sptr<const float>> && !has_vector_store<sptr<const float>>);
static_assert(std::is_same_v<decltype(std::declval<gptr<const float>>().as<int32_t>()), gptr<const int32_t>>);
static_assert(std::is_convertible_v<gptr<float>, gptr<const float>>);
static_assert(!std::is_convertible_v<gptr<const float>, gptr<float>>);
static_assert(!std::is_convertible_v<gptr<float>, bool>);
static_assert(std::is_trivially_copyable_v<gptr<float>> && std::is_trivially_destructible_v<sptr<float>>);

// ---- bounds

template <bool kBug>
FGK_GLOBAL void off_by_one(gptr<const float> in, gptr<float> out) {
  const int64_t i = dev::bid() * kThreads + dev::tid() + (kElements - kBlocks * kThreads);
  out.st(i, (HERE, in.ld(kBug ? i + 1 : i)));
}
PLANTED(off_by_one, FaultKind::out_of_bounds)

template <bool kBug>
FGK_GLOBAL void negative_index(gptr<const float> in, gptr<float> out) {
  HERE, (out + dev::bid()).st(kBug && dev::tid() == 3 ? -2 : 2 * dev::tid(), in.ld(0));
}
PLANTED(negative_index, FaultKind::out_of_bounds)

template <bool kBug>
FGK_GLOBAL void huge_index(gptr<const float> in, gptr<float> out) {
  const int64_t i = kBug ? (int64_t{1} << 61) + dev::tid() : dev::tid();
  out.st(dev::bid() * kThreads + dev::tid(), (HERE, in.ld(i)));
}
PLANTED(huge_index, FaultKind::out_of_bounds)

// Rows of 32: the bug reads the first element of the next row, which is memory of the same tensor.
template <bool kBug>
FGK_GLOBAL void off_by_one_into_the_next_row(gptr<const float> in, gptr<float> out) {
  const gptr<const float> row = in.slice((dev::bid() * 2 + dev::warp()) * 32, 32);
  out.st(dev::bid() * kThreads + dev::tid(), (HERE, row.ld(kBug ? dev::lane() + 1 : dev::lane())));
}
PLANTED(off_by_one_into_the_next_row, FaultKind::out_of_bounds)

FGK_GLOBAL void off_by_one_without_a_slice(gptr<const float> in, gptr<float> out) {
  const gptr<const float> row = in + (dev::bid() * 2 + dev::warp()) * 32;
  out.st(dev::bid() * kThreads + dev::tid(), row.ld(dev::lane() + 1));
}
TEST(without_a_slice_the_next_row_is_fair_game) { run(off_by_one_without_a_slice); }

// A vector that starts inside and ends outside.
template <bool kBug>
FGK_GLOBAL void vector_over_the_end(gptr<const float> in, gptr<float> out) {
  const gptr<const float> row = in.slice(0, kBug ? kThreads * 4 - 1 : kThreads * 4);
  const dev::Vec16 v = (HERE, row.ld_as<dev::Vec16>(dev::tid() * 4));
  out.as<uint32_t>().st(dev::bid() * kThreads + dev::tid(), v.x);
}
PLANTED(vector_over_the_end, FaultKind::out_of_bounds)

template <bool kBug>
FGK_GLOBAL void copy_of_bytes_beyond_the_end(gptr<const float> in, gptr<float>) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(4 * kThreads);
  const gptr<const float> row = in.slice(0, 6);
  const int left = 6 - 4 * dev::tid();
  const int valid = left >= 4 ? 16 : left > 0 ? left * 4 : 0;
  HERE, dev::cp_async16(s + 4 * dev::tid(), row + 4 * dev::tid(), kBug && dev::tid() == 1 ? 12 : valid);
  dev::cp_async_commit();
  dev::cp_async_wait<0>();
}
PLANTED(copy_of_bytes_beyond_the_end, FaultKind::out_of_bounds)

template <bool kBug>
FGK_GLOBAL void null_pointer(gptr<const float> in, gptr<float> out) {
  const gptr<const float> maybe = kBug ? gptr<const float>() : in;
  out.st(dev::bid() * kThreads + dev::tid(), (HERE, maybe.ld(0)));
}
PLANTED(null_pointer, FaultKind::out_of_bounds)

// Into the array that was taken next.
template <bool kBug>
FGK_GLOBAL void past_a_shared_array(gptr<const float> in, gptr<float> out) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(kThreads);
  const sptr<float> next = shared.take<float>(kThreads);
  next.st(dev::tid(), 0.0f);
  HERE, s.st(dev::tid() + (kBug ? 1 : 0), in.ld(0));
  out.st(dev::bid() * kThreads + dev::tid(), next.ld(dev::tid()));
}
PLANTED(past_a_shared_array, FaultKind::out_of_bounds)

template <bool kBug>
FGK_GLOBAL void past_a_shared_slice(gptr<const float> in, gptr<float>) {
  dev::Shared shared;
  const sptr<float> row = shared.take<float>(2 * 32).slice(32 * dev::warp(), 32);
  HERE, row.st(dev::lane() + (kBug && dev::warp() == 0 ? 1 : 0), in.ld(0));
}
PLANTED(past_a_shared_slice, FaultKind::out_of_bounds)

template <bool kBug>
FGK_GLOBAL void shared_overrun(gptr<const float>, gptr<float>) {
  dev::Shared shared;
  shared.take<float>(1000);
  HERE, shared.take<float>(kBug ? 25 : 24);
}
PLANTED(shared_overrun, FaultKind::shared_overrun)

template <bool kBug>
FGK_GLOBAL void row_of_a_matrix_outside(gptr<const float>, gptr<float>) {
  dev::Shared shared;
  const sptr<uint32_t> s = shared.take<uint32_t>(32 * 4);
  if (dev::warp() != 0) return;
  for (int k = 0; k < 4; ++k) s.st(dev::lane() * 4 + k, 0);
  dev::sync_warp();
  uint32_t r[4];
  HERE, dev::ldmatrix_x4(r, s + (dev::lane() + (kBug ? 1 : 0)) * 4);
}
PLANTED(row_of_a_matrix_outside, FaultKind::out_of_bounds)

// ---- alignment

template <bool kBug>
FGK_GLOBAL void misaligned_global_vector(gptr<const float> in, gptr<float> out) {
  const dev::Vec8 v = (HERE, in.ld_as<dev::Vec8>(dev::tid() * 2 + (kBug ? 1 : 0)));
  out.as<uint32_t>().st(dev::bid() * kThreads + dev::tid(), v.y);
}
PLANTED(misaligned_global_vector, FaultKind::misaligned)

template <bool kBug>
FGK_GLOBAL void misaligned_shared_vector(gptr<const float>, gptr<float>) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(4 * kThreads + 4);
  HERE, (s + (kBug ? 2 : 4)).st_as<dev::Vec16>(4 * dev::tid(), dev::Vec16{});
}
PLANTED(misaligned_shared_vector, FaultKind::misaligned)

template <bool kBug>
FGK_GLOBAL void misaligned_copy(gptr<const float> in, gptr<float>) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(4 * kThreads);
  HERE, dev::cp_async16(s + 4 * dev::tid(), in + 2 * dev::tid() / (kBug ? 1 : 2) * (kBug ? 1 : 4) % 128);
  dev::cp_async_commit();
  dev::cp_async_wait<0>();
}
PLANTED(misaligned_copy, FaultKind::misaligned)

template <bool kBug>
FGK_GLOBAL void misaligned_matrix_row(gptr<const float>, gptr<float>) {
  dev::Shared shared;
  const sptr<uint32_t> s = shared.take<uint32_t>(2 * 32 * 8);
  for (int k = 0; k < 8; ++k) s.st(dev::tid() * 8 + k, 0);
  dev::sync_block();
  uint32_t r[4];
  HERE, dev::ldmatrix_x4_trans(r, s + dev::tid() * (kBug ? 5 : 4));
}
PLANTED(misaligned_matrix_row, FaultKind::misaligned)

// ---- global memory

template <bool kBug>
FGK_GLOBAL void blocks_store_one_element(gptr<const float> in, gptr<float> out) {
  if (dev::tid() == 0) HERE, out.st(kBug ? 0 : dev::bid(), in.ld(0));
}
PLANTED(blocks_store_one_element, FaultKind::block_conflict)

// Works where block 0 happens to run first.
template <bool kBug>
FGK_GLOBAL void block_reads_what_another_wrote(gptr<const float> in, gptr<float> out) {
  if (dev::tid() == 0) HERE, out.st(dev::bid(), in.ld(0));
  dev::sync_block();
  if (dev::tid() == 1) out.st(8 + dev::bid(), (HERE, out.ld(kBug ? 0 : dev::bid())));
}
PLANTED(block_reads_what_another_wrote, FaultKind::block_conflict, FaultKind::uninitialized_global)

template <bool kBug>
FGK_GLOBAL void threads_store_one_element(gptr<const float> in, gptr<float> out) {
  HERE, out.st(dev::bid() * kThreads + dev::tid() / (kBug ? 2 : 1), in.ld(0));
}
PLANTED(threads_store_one_element, FaultKind::race_global)

template <bool kBug>
FGK_GLOBAL void missing_barrier_in_global_memory(gptr<const float> in, gptr<float> out) {
  const gptr<float> mine = out.slice(dev::bid() * kThreads, kThreads);
  mine.st(dev::tid(), 0.0f);
  dev::sync_block();
  HERE, mine.st(dev::tid(), in.ld(dev::tid()));
  if (!kBug) dev::sync_block();
  const float v = (HERE, mine.ld(kThreads - 1 - dev::tid()));
  dev::sync_block();
  mine.st(dev::tid(), v);
}
PLANTED(missing_barrier_in_global_memory, FaultKind::race_global)

// Each block zeroes the counter that all of them add to.
template <bool kBug>
FGK_GLOBAL void blocks_zero_a_common_counter(gptr<const float>, gptr<float> out) {
  const int64_t counter = kBug ? 0 : dev::bid();
  if (dev::tid() == 0) HERE, out.st(counter, 0.0f);
  dev::sync_block();
  HERE, dev::atomic_add(out, counter, 1.0f);
}
PLANTED(blocks_zero_a_common_counter, FaultKind::block_conflict)

template <bool kBug>
FGK_GLOBAL void read_of_an_unwritten_output(gptr<const float>, gptr<float> out) {
  const int64_t i = dev::bid() * kThreads + dev::tid();
  if (!kBug) out.st(i, 1.0f);
  out.st(kElements - 1 - i, (HERE, out.ld(i)));
}
PLANTED(read_of_an_unwritten_output, FaultKind::uninitialized_global)

template <bool kBug>
FGK_GLOBAL void atomic_on_an_unwritten_output(gptr<const float>, gptr<float> out) {
  const int64_t i = dev::bid() * kThreads + dev::tid();
  if (!kBug) out.st(i, 0.0f);
  HERE, dev::atomic_add(out, i, 1.0f);
}
PLANTED(atomic_on_an_unwritten_output, FaultKind::uninitialized_global)

// The read-only cache does not see the launch's own stores.
template <bool kBug>
FGK_GLOBAL void read_only_load_of_written_memory(gptr<const float>, gptr<float> out) {
  const int64_t i = dev::bid() * kThreads + dev::tid();
  out.st(i, 1.0f);
  if (kBug) {
    out.st(i, (HERE, gptr<const float>(out).ld(i)));
  } else {
    out.st(i, out.ld(i));
  }
}
PLANTED(read_only_load_of_written_memory, FaultKind::read_only_load)

// Blocks write neighbouring elements of 1 and 2 bytes, which is no conflict; the bug writes two of them.
template <class T, bool kBug>
void neighbouring_elements(gptr<T> out) {
  if (dev::tid() != 0) return;
  if (kBug && dev::bid() == 0) {
    HERE, out.template as<uint32_t>().st(0, 0);
  } else {
    HERE, out.st(dev::bid(), T{});
  }
}

template <class T>
void check_neighbouring_elements(int line) {
  alignas(4) T out[4] = {};
  const auto launch = [&](void (*kernel)(gptr<T>)) {
    dev::Buffers buffers;
    dev::launch("planted", kernel, {kBlocks, kThreads, 0}, nullptr, buffers.inout(out, 4, "out"));
  };
  expect_fault({FaultKind::block_conflict}, __FILE__, line, [&] { launch(neighbouring_elements<T, true>); });
  device_test::in_every_order([&] { launch(neighbouring_elements<T, false>); });
}

TEST(blocks_may_write_neighbouring_small_elements) {
  check_neighbouring_elements<int16_t>(__LINE__);
  check_neighbouring_elements<int8_t>(__LINE__);
  check_neighbouring_elements<dev::bf16>(__LINE__);
}

// All blocks read an element, then one of them writes it; it was itself the last one to read.
template <bool kBug>
FGK_GLOBAL void last_reader_writes(gptr<float> values) {
  if (dev::tid() != 0) return;
  const float v = (HERE, values.ld(0));
  HERE, values.st(kBug ? 0 : 1 + dev::bid(), v);
}

TEST(a_block_may_not_write_what_another_has_read) {
  float values[8] = {};
  const auto launch = [&](void (*kernel)(gptr<float>)) {
    dev::Buffers buffers;
    dev::launch("planted", kernel, {kBlocks, kThreads, 0}, nullptr, buffers.inout(values, 8, "values"));
  };
  expect_fault({FaultKind::block_conflict}, __FILE__, __LINE__, [&] { launch(last_reader_writes<true>); });
  device_test::in_every_order([&] { launch(last_reader_writes<false>); });
}

// Smaller accesses than the buffer's elements get shadow cells of their own.
template <bool kBug>
FGK_GLOBAL void halves_of_an_element(gptr<float> values) {
  const gptr<uint16_t> halves = values.as<uint16_t>();
  if (dev::tid() < 2) HERE, halves.st(2 * dev::bid() + (kBug ? 0 : dev::tid()), uint16_t{1});
}

TEST(threads_may_write_the_halves_of_one_element) {
  float values[8] = {};
  const auto launch = [&](void (*kernel)(gptr<float>)) {
    dev::Buffers buffers;
    dev::launch("planted", kernel, {kBlocks, kThreads, 0}, nullptr, buffers.inout(values, 8, "values"));
  };
  expect_fault({FaultKind::race_global}, __FILE__, __LINE__, [&] { launch(halves_of_an_element<true>); });
  device_test::in_every_order([&] { launch(halves_of_an_element<false>); });
}

TEST(written_buffers_may_not_overlap) {
  float values[8] = {};
  dev::Buffers buffers;
  buffers.in(values, 4, "first");
  buffers.in(values + 2, 4, "second");
  bool caught = false;
  try {
    buffers.inout(values + 5, 3, "third");
  } catch (const Fault& fault) {
    caught = fault.kind == FaultKind::aliased_buffers &&
             std::string(fault.what()).find("'third' overlaps 'second'") != std::string::npos;
  }
  CHECK(caught);
  buffers.inout(values + 6, 2, "fourth");
  CHECK_THROWS(buffers.in(values, -1, "fifth"), std::invalid_argument);
}

}  // namespace
