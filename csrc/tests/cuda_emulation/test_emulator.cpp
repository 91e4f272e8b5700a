// SPDX-License-Identifier: Apache-2.0
// The emulator itself: orders and how they are chosen, outputs never written, what is left after a fault.
#include <array>
#include <cstdlib>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "kernels/cuda/device.cuh"

namespace {

namespace dev = fgk::dev;
namespace emulation = fgk::emulation;
using dev::gptr;
using dev::sptr;
using emulation::Fault;
using emulation::FaultKind;
using emulation::Order;

// Sets a variable of the environment, or unsets it, until the end of the scope.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) {
    const char* old = std::getenv(name);
    had_ = old != nullptr;
    if (had_) old_ = old;
    set(value);
  }
  ~Environment() { set(had_ ? old_.c_str() : nullptr); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  void set(const char* value) { value == nullptr ? unsetenv(name_) : setenv(name_, value, 1); }
  const char* name_;
  bool had_;
  std::string old_;
};

constexpr const char* kOrder = "FGKERNELS_EMULATION_ORDER";
constexpr const char* kShadow = "FGKERNELS_EMULATION_SHADOW";

// ---- orders

std::vector<int64_t> trace;

FGK_GLOBAL void trace_kernel() {
  trace.push_back(dev::bid() * 1000 + dev::tid());
  dev::sync_block();
  trace.push_back(dev::bid() * 1000 + dev::tid() + 500);
}

std::vector<int64_t> trace_of(const emulation::Options& options) {
  emulation::set_options(options);
  trace.clear();
  dev::launch("trace", trace_kernel, {5, 64, 0}, nullptr);
  emulation::reset_options();
  return trace;
}

TEST(fifo_and_lifo_go_through_blocks_and_threads_from_either_end) {
  const std::vector<int64_t> fifo = trace_of({Order::fifo, 0, true});
  const std::vector<int64_t> lifo = trace_of({Order::lifo, 0, true});
  CHECK_EQ(fifo.size(), size_t{5 * 64 * 2});
  CHECK_EQ(lifo.size(), fifo.size());
  for (int64_t i = 0; i < 5 * 128; ++i) {
    const int64_t after_barrier = i % 128 / 64 * 500;
    CHECK_EQ(fifo[i], i / 128 * 1000 + i % 64 + after_barrier);
    CHECK_EQ(lifo[i], (4 - i / 128) * 1000 + 63 - i % 64 + after_barrier);
  }
}

TEST(random_orders_are_permutations_that_the_seed_decides) {
  const std::vector<int64_t> first = trace_of({Order::random, 11, true});
  CHECK(first == trace_of({Order::random, 11, true}));
  const std::vector<int64_t> second = trace_of({Order::random, 12, true});
  CHECK(first != second);
  for (const std::vector<int64_t>& got : {first, second}) {
    CHECK(std::set<int64_t>(got.begin(), got.end()).size() == 5 * 128);
    for (int64_t i = 0; i < 5 * 128; ++i) {
      CHECK_EQ(got[i] / 1000, got[i / 128 * 128] / 1000);  // a block at a time
      CHECK_EQ(got[i] % 1000 >= 500, i % 128 >= 64);       // and nobody overtakes a barrier
    }
    // Threads come in another order before the barrier than after it.
    bool same = true;
    for (int64_t i = 0; i < 64; ++i) same &= got[i] + 500 == got[i + 64];
    CHECK(!same);
  }
}

std::string order_in_fault();

TEST(environment_chooses_the_order_of_each_launch) {
  emulation::reset_options();
  {
    const Environment order(kOrder, "lifo");
    trace.clear();
    dev::launch("trace", trace_kernel, {5, 64, 0}, nullptr);
    CHECK(trace == trace_of({Order::lifo, 0, true}));
  }
  {
    const Environment order(kOrder, "random:11");
    trace.clear();
    dev::launch("trace", trace_kernel, {5, 64, 0}, nullptr);
    CHECK(trace == trace_of({Order::random, 11, true}));
    CHECK_EQ(order_in_fault(), "random:11");
  }
  {
    const Environment order(kOrder, nullptr);
    const std::string one = order_in_fault();
    CHECK_EQ(one.find("random:"), size_t{0});
    CHECK(one != order_in_fault());  // a fresh seed for each launch
  }
}

TEST(environment_with_an_unknown_value_names_the_variable_and_the_value) {
  emulation::reset_options();
  const auto refused = [](const char* name, const char* value) {
    const Environment variable(name, value);
    try {
      dev::launch("trace", trace_kernel, {1, 32, 0}, nullptr);
    } catch (const std::invalid_argument& e) {
      const std::string text = e.what();
      return text.find(name) != std::string::npos && text.find("'" + std::string(value) + "'") != std::string::npos;
    }
    return false;
  };
  for (const char* value : {"", "FIFO", "random:", "random:x", "random:-1", "random:99999999999999999999999"}) {
    CHECK(refused(kOrder, value));
  }
  for (const char* value : {"", "2", "true"}) CHECK(refused(kShadow, value));
}

// ---- faults

FGK_GLOBAL void racing_kernel(gptr<int32_t> out) { out.st(0, dev::tid()); }

void race() {
  int32_t out[2] = {};
  dev::Buffers buffers;
  dev::launch("racing", racing_kernel, {1, 32, 0}, nullptr, buffers.inout(out, 2, "out"));
}

// What the fault of a race says about how to repeat it.
std::string order_in_fault() {
  try {
    race();
  } catch (const Fault& fault) {
    const std::string text = fault.what();
    const std::string marker = std::string(kOrder) + "=";
    const size_t start = text.find(marker) + marker.size();
    return text.substr(start, text.find(']') - start);
  }
  return "no fault";
}

TEST(a_fault_says_where_it_is_and_with_whom) {
  emulation::set_options({Order::fifo, 0, true});
  try {
    race();
    CHECK(false);
  } catch (const Fault& fault) {
    CHECK_EQ(fault.kernel, "racing");
    CHECK_EQ(fault.block, int64_t{0});
    CHECK_EQ(fault.thread, 1);
    CHECK(fault.kind == FaultKind::race_global);
    const std::string at = fault.file + ":" + std::to_string(fault.line);
    const std::string expected = "kernel racing, block 0, thread 1, " + at +
                                 ": race in global memory: writes 4 bytes at element 0 of 'out', which thread 0 has "
                                 "written at " +
                                 at + " with no barrier in between [repeat with FGKERNELS_EMULATION_ORDER=fifo]";
    CHECK_EQ(std::string(fault.what()), expected);
  }
  emulation::reset_options();
}

TEST(without_the_shadow_races_pass) {
  emulation::set_options({Order::fifo, 0, false});
  race();
  emulation::reset_options();
  const Environment shadow(kShadow, "0");
  race();
}

FGK_GLOBAL void unwaited_copy_kernel(gptr<const float> in, gptr<float> out, int32_t wait) {
  dev::Shared shared;
  const sptr<float> s = shared.take<float>(128);
  const bool before = dev::isnan(s.ld(4 * dev::tid()));  // poison of a new block
  s.st(4 * dev::tid(), 7.0f);
  dev::cp_async16(s + 4 * dev::tid(), in + 4 * dev::tid());
  dev::cp_async_commit();
  if (wait != 0) dev::cp_async_wait<0>();
  out.st(dev::tid(), before ? s.ld(4 * dev::tid()) : 0.0f);
  dev::cp_async_wait<0>();
}

TEST(without_the_shadow_poison_still_shows) {
  emulation::set_options({Order::lifo, 0, false});
  std::vector<float> in(128, 3.0f);
  std::vector<float> out(32);
  for (const int wait : {0, 1}) {
    dev::Buffers buffers;
    dev::launch("unwaited_copy", unwaited_copy_kernel, {1, 32, 512}, nullptr, buffers.in(in.data(), 128, "in"),
                buffers.out(out.data(), 32, "out"), wait);
    for (const float x : out) CHECK(wait == 0 ? std::isnan(x) : x == 3.0f);
  }
  emulation::reset_options();
}

FGK_GLOBAL void throwing_kernel() {
  dev::sync_block();
  if (dev::tid() == 20) throw std::runtime_error("out of a kernel");
  dev::sync_block();
}

TEST(exceptions_of_a_kernel_reach_the_launcher) {
  for (int i = 0; i < 3; ++i) {
    std::string text;
    try {
      dev::launch("throwing", throwing_kernel, {1, 64, 0}, nullptr);
    } catch (const std::runtime_error& e) {
      text = e.what();
    }
    CHECK_EQ(text, "out of a kernel");
    CHECK_EQ(trace_of({Order::fifo, 0, true}).size(), size_t{5 * 64 * 2});
  }
}

TEST(device_memory_cannot_be_touched_on_the_host) {
  float values[4] = {};
  dev::Buffers buffers;
  const gptr<float> p = buffers.inout(values, 4, "values");
  CHECK(static_cast<bool>(p));
  CHECK_THROWS(p.ld(0), Fault);
  CHECK_THROWS(p.st(0, 1.0f), Fault);
}

FGK_GLOBAL void deep_kernel(gptr<float> out) {
  volatile float values[8192];  // half of a thread's stack
  for (int i = 0; i < 8192; ++i) values[i] = static_cast<float>(dev::tid());
  dev::sync_block();
  out.st(dev::tid(), values[8191] + values[0]);
}

TEST(threads_have_stacks_of_their_own) {
  std::vector<float> out(1024);
  dev::Buffers buffers;
  dev::launch("deep", deep_kernel, {1, 1024, 0}, nullptr, buffers.out(out.data(), 1024, "out"));
  for (int i = 0; i < 1024; ++i) CHECK_EQ(out[i], 2.0f * static_cast<float>(i));
}

// ---- outputs

FGK_GLOBAL void partial_kernel(gptr<float> floats, gptr<int16_t> shorts, gptr<double>) {
  const int64_t i = dev::bid() * dev::block_threads() + dev::tid();
  if (i % 3 != 0) floats.st(i, 1.0f);
  if (i < 60) shorts.st(i, 1);
}

TEST(outputs_that_no_kernel_has_stored_are_listed_and_poisoned) {
  std::vector<float> floats(64, 5.0f);
  std::vector<int16_t> shorts(64, 5);
  std::vector<double> doubles(2, 5.0);
  {
    dev::Buffers buffers;
    const auto f = buffers.out(floats.data(), 64, "floats");
    const auto s = buffers.out(shorts.data(), 64, "shorts");
    const auto d = buffers.out(doubles.data(), 2, "doubles");
    dev::launch("partial", partial_kernel, {2, 32, 0}, nullptr, f, s, d);
  }
  const std::vector<emulation::Output> outputs = emulation::last_outputs();
  CHECK_EQ(outputs.size(), size_t{3});
  CHECK_EQ(outputs[0].name, "floats");
  CHECK(outputs[0].data == floats.data() && outputs[0].count == 64);
  std::vector<int64_t> thirds;
  for (int64_t i = 0; i < 64; i += 3) thirds.push_back(i);
  CHECK(outputs[0].unwritten == thirds);
  CHECK((outputs[1].unwritten == std::vector<int64_t>{60, 61, 62, 63}));
  CHECK((outputs[2].unwritten == std::vector<int64_t>{0, 1}));
  for (int i = 0; i < 64; ++i) CHECK(i % 3 == 0 ? std::isnan(floats[i]) : floats[i] == 1.0f);
  for (int i = 0; i < 64; ++i) CHECK_EQ(shorts[i], i < 60 ? 1 : static_cast<int16_t>(0xA5A5));
  CHECK(std::isnan(doubles[0]) && std::isnan(doubles[1]));
}

FGK_GLOBAL void double_kernel(gptr<float> values) { values.st(dev::tid(), 2 * values.ld(dev::tid())); }
FGK_GLOBAL void copy_kernel(gptr<const float> values, gptr<float> out) {
  out.st(dev::tid(), values.ld(31 - dev::tid()));
}

TEST(launches_see_each_others_stores) {
  std::vector<float> scratch(32, 3.0f);
  std::vector<float> out(32);
  {
    dev::Buffers buffers;
    const gptr<float> s = buffers.inout(scratch.data(), 32, "scratch");
    dev::launch("double", double_kernel, {1, 32, 0}, nullptr, s);
    dev::launch("double", double_kernel, {1, 32, 0}, nullptr, s);
    dev::launch("copy", copy_kernel, {1, 32, 0}, nullptr, s, buffers.out(out.data(), 32, "out"));
  }
  for (const float x : out) CHECK_EQ(x, 12.0f);
  CHECK_EQ(emulation::last_outputs().size(), size_t{1});
  CHECK(emulation::last_outputs()[0].unwritten.empty());
}

// ---- several OS threads

FGK_GLOBAL void sum_kernel(gptr<const int32_t> in, gptr<int32_t> out) {
  dev::Shared shared;
  const sptr<int32_t> s = shared.take<int32_t>(64);
  s.st(dev::tid(), in.ld(dev::bid() * 64 + dev::tid()));
  dev::sync_block();
  const int32_t sum = dev::warp_sum(s.ld(dev::lane()) + s.ld(32 + dev::lane()));
  if (dev::tid() == 0) out.st(dev::bid(), sum);
}

TEST(launches_of_several_os_threads_take_turns) {
  const int64_t before = emulation::counters().launches;
  std::array<bool, 4> right{};
  std::vector<std::thread> pool;
  for (size_t t = 0; t < right.size(); ++t) {
    pool.emplace_back([t, &right] {
      right[t] = true;
      for (int round = 0; round < 20; ++round) {
        std::vector<int32_t> in(8 * 64, static_cast<int32_t>(t) + 1);
        std::vector<int32_t> out(8);
        dev::Buffers buffers;
        dev::launch("sum", sum_kernel, {8, 64, 256}, nullptr, buffers.in(in.data(), 8 * 64, "in"),
                    buffers.out(out.data(), 8, "out"));
        for (const int32_t sum : out) right[t] = right[t] && sum == 64 * (static_cast<int32_t>(t) + 1);
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
  for (const bool r : right) CHECK(r);
  CHECK_EQ(emulation::counters().launches - before, int64_t{80});
}

TEST(limits_are_those_of_an_h100_until_a_test_sets_others) {
  CHECK_EQ(dev::limits().multiprocessors, 132);
  CHECK_EQ(dev::limits().shared_per_block, int64_t{232448});
  emulation::set_limits({8, 1024});
  CHECK_EQ(dev::limits().multiprocessors, 8);
  CHECK_THROWS(dev::launch("trace", trace_kernel, {1, 32, 1040}, nullptr), std::runtime_error);
  emulation::set_limits({132, 232448});
}

}  // namespace
