// SPDX-License-Identifier: Apache-2.0
#include "probe.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "isa.h"

namespace fgk {

#define FGK_DECLARE(level)                              \
  namespace level {                                     \
  double probe_float32(int64_t iterations);             \
  double probe_float64(int64_t iterations);             \
  double probe_bfloat16(int64_t iterations);            \
  double probe_int8(int64_t iterations);                \
  double probe_exp_fma(int64_t iterations);             \
  uint64_t probe_read(const void* data, int64_t bytes); \
  }
FGK_FOR_EACH_ISA(FGK_DECLARE)
#undef FGK_DECLARE

namespace {

using Clock = std::chrono::steady_clock;
using FmaLoop = double (*)(int64_t);
using ReadLoop = uint64_t (*)(const void*, int64_t);

constexpr int kMaxThreads = 4096;
constexpr double kMaxSeconds = 60;
constexpr double kMaxMegabytes = 1e6;
constexpr double kWarmUpSeconds = 0.02;
constexpr int64_t kChunk = 256 * 1024;

FmaLoop fma_loop(ProbeType type, Isa isa) {
  switch (isa) {
#define FGK_CASE(level)                                                                                                \
  case Isa::level: {                                                                                                   \
    constexpr FmaLoop loops[] = {level::probe_float32, level::probe_float64, level::probe_bfloat16, level::probe_int8, \
                                 level::probe_exp_fma};                                                                \
    return loops[static_cast<int>(type)];                                                                              \
  }
    FGK_FOR_EACH_ISA(FGK_CASE)
#undef FGK_CASE
    default:
      throw std::runtime_error("this ISA level is not compiled in");
  }
}

ReadLoop read_loop(Isa isa) {
  switch (isa) {
#define FGK_CASE(level) \
  case Isa::level:      \
    return level::probe_read;
    FGK_FOR_EACH_ISA(FGK_CASE)
#undef FGK_CASE
    default:
      throw std::runtime_error("this ISA level is not compiled in");
  }
}

void check(bool good, const char* name, const char* expected, double got) {
  if (good) return;
  throw std::invalid_argument(std::string(name) + ": expected " + expected + ", got " + std::to_string(got));
}

void check_common(int threads, double seconds) {
  check(threads >= 1 && threads <= kMaxThreads, "threads", "1 to 4096", threads);
  check(seconds > 0 && seconds <= kMaxSeconds, "seconds", "more than 0 and at most 60", seconds);
}

// Runs worker() on every thread again and again and adds up their rates (amount per second). Only the time in which all
// threads run is counted: it begins when every thread is warm, and ends before any thread leaves.
template <class MakeWorker>
double total_rate(int threads, double seconds, const MakeWorker& make_worker) {
  enum Phase { kWarmUp, kMeasure, kStop };
  std::atomic<int> phase{kWarmUp};
  std::atomic<int> ready{0};
  std::atomic<int> counted{0};
  std::atomic<bool> failed{false};
  std::vector<double> rates(threads, 0.0);
  std::exception_ptr error;
  Clock::time_point begin;  // the same for all: a thread that had to wait for its core counts as slow

  const auto body = [&](int index) {
    try {
      auto worker = make_worker(index);
      ready.fetch_add(1);
      while (phase.load(std::memory_order_acquire) == kWarmUp) worker();
      double amount = 0;
      if (phase.load(std::memory_order_acquire) == kMeasure) {
        amount += worker();
        counted.fetch_add(1);
      }
      while (phase.load(std::memory_order_acquire) == kMeasure) amount += worker();
      rates[index] = amount / std::chrono::duration<double>(Clock::now() - begin).count();
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  try {
    for (int i = 0; i < threads; ++i) pool.emplace_back(body, i);
  } catch (...) {
    if (!failed.exchange(true)) error = std::current_exception();
  }
  const auto pause = [](double s) { std::this_thread::sleep_for(std::chrono::duration<double>(s)); };
  while (ready.load() < threads && !failed.load()) pause(0.001);
  if (!failed.load()) {
    pause(kWarmUpSeconds);
    begin = Clock::now();
    phase.store(kMeasure, std::memory_order_release);
    pause(seconds);
    while (counted.load() < threads && !failed.load()) pause(0.001);
  }
  phase.store(kStop, std::memory_order_release);
  for (std::thread& thread : pool) thread.join();
  if (error) std::rethrow_exception(error);
  double total = 0;
  for (double rate : rates) total += rate;
  return total;
}

}  // namespace

double probe_fma(ProbeType type, int threads, double seconds) {
  check_common(threads, seconds);
  check(static_cast<int>(type) >= 0 && static_cast<int>(type) <= 4, "type", "0 to 4", static_cast<int>(type));
  const FmaLoop loop = fma_loop(type, current_isa());
  constexpr int64_t kIterations = 10000;  // tens of microseconds, so that no thread runs on alone for long
  return total_rate(threads, seconds, [&](int) { return [loop] { return loop(kIterations); }; }) * 1e-9;
}

double probe_read(int threads, double megabytes, double seconds) {
  check_common(threads, seconds);
  check(megabytes > 0 && megabytes <= kMaxMegabytes, "megabytes", "more than 0 and at most 1000000", megabytes);
  const ReadLoop loop = read_loop(current_isa());
  const int64_t chunks = static_cast<int64_t>(megabytes * 1e6 / threads / kChunk) + 1;

  const auto make_worker = [&](int) {
    // The thread that reads the memory also touches it first, so that it lies on the thread's own NUMA node.
    std::shared_ptr<void> memory(std::aligned_alloc(4096, chunks * kChunk), std::free);
    if (memory == nullptr) throw std::bad_alloc();
    std::memset(memory.get(), 1, chunks * kChunk);
    return [memory, loop, chunks, next = int64_t{0}]() mutable {
      volatile uint64_t sink = loop(static_cast<const char*>(memory.get()) + next * kChunk, kChunk);
      (void)sink;
      next = next + 1 < chunks ? next + 1 : 0;
      return static_cast<double>(kChunk);
    };
  };
  return total_rate(threads, seconds, make_worker) * 1e-9;
}

}  // namespace fgk
