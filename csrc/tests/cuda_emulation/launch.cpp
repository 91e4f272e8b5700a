// SPDX-License-Identifier: Apache-2.0
// Launches: blocks one after another, the threads of a block as fibers, block barriers, faults.
#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>

#include "options.h"
#include "ordering.h"

namespace fgk::emulation::core {

Position position{};
State state;

namespace {

// Unwinds the fiber that a fault was found on.
struct Stop {};

std::exception_ptr failure;  // what ends the launch
Counters totals{0, 0};

uint64_t next_random() {  // splitmix64
  uint64_t z = (state.random += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// An unbiased enough number in [0, count), count below 2^32.
unsigned random_below(unsigned count) { return static_cast<unsigned>(((next_random() >> 32) * count) >> 32); }

Fault make_fault(FaultKind kind, const Thread* thread, Site site, const std::string& message) {
  std::string text = std::string("kernel ") + state.kernel + ", block " + std::to_string(position.block) + ", thread " +
                     std::to_string(thread->id);
  if (site.file != nullptr) text += ", " + site_text(site);
  text += ": " + std::string(fault_name(kind)) + ": " + message + " [" + repeat_hint(state.options) + "]";
  Fault fault(kind, text);
  fault.kernel = state.kernel;
  fault.block = position.block;
  fault.thread = thread->id;
  fault.file = site.file == nullptr ? "" : site.file;
  fault.line = site.line;
  return fault;
}

// The next thread in the launch's order.
Thread* take_ready() {
  constexpr unsigned kMask = dev::kMaxThreads - 1;
  const unsigned last = (state.ready_head + state.ready_count - 1) & kMask;
  if (state.options.order == Order::fifo) {
    Thread* thread = state.ready[state.ready_head];
    state.ready_head = (state.ready_head + 1) & kMask;
    --state.ready_count;
    return thread;
  }
  if (state.options.order == Order::random && state.ready_count > 1) {
    std::swap(state.ready[last], state.ready[(state.ready_head + random_below(state.ready_count)) & kMask]);
  }
  --state.ready_count;
  return state.ready[last];
}

[[noreturn]] void report_deadlock() {
  std::string text = "every thread waits:";
  int listed = 0;
  for (size_t i = 0; i < state.threads.size();) {
    const Thread& first = state.threads[i];
    size_t end = i + 1;
    while (end < state.threads.size() && state.threads[end].status == first.status &&
           (first.status == Thread::Status::exited || same_site(state.threads[end].site, first.site))) {
      ++end;
    }
    if (++listed > 8) {
      text += " ...";
      break;
    }
    text += (listed > 1 ? ", threads " : " threads ") + std::to_string(i) + " to " + std::to_string(end - 1);
    if (first.status == Thread::Status::exited) {
      text += " have returned";
    } else {
      text += std::string(first.status == Thread::Status::at_barrier    ? " in sync_block"
                          : first.status == Thread::Status::at_mbarrier ? " in mbarrier_wait"
                                                                        : " in a warp collective") +
              " at " + site_text(first.site);
    }
    i = end;
  }
  const auto waiting = std::find_if(state.threads.begin(), state.threads.end(),
                                    [](const Thread& thread) { return thread.status != Thread::Status::exited; });
  fault(FaultKind::deadlock, &*waiting, waiting->site, text);
}

// There is a thread that can go on, or a deadlock.
void need_ready() {
  while (state.ready_count == 0 && land_bulk_copy()) {
  }
  if (state.ready_count == 0) report_deadlock();
}

void run_thread(Thread* thread) {
  state.running = thread;
  position.thread = thread->id;
}

// The kernel on one thread; false: the launch ends here.
bool run_kernel(Thread* thread) {
  try {
    state.call(state.arguments);
    thread->status = Thread::Status::exited;
    check_finished_copies(thread);
    check_nobody_waits_for(thread);
    ++state.exited;
    state.last_exited = thread;
    thread->warp->exited = thread;
    if (state.exited == position.threads) check_finished_bulk_copies();
    if (state.exited < position.threads) need_ready();
    return state.exited < position.threads;
  } catch (const Stop&) {
    return false;
  } catch (...) {
    failure = std::current_exception();
    return false;
  }
}

void thread_main() {
  fiber_entered();
  Thread* thread = state.running;
  if (!run_kernel(thread)) switch_fiber(thread->fiber, state.host, true);
  Thread* next = take_ready();
  run_thread(next);
  switch_fiber(thread->fiber, next->fiber, true);
}

void start_block() {
  Times& times = state.times;
  times.epoch = times.block = ++times.now;
  state.block_starts.emplace_back(times.now, position.block);
  state.at_barrier = 0;
  state.exited = 0;
  state.ready_head = 0;
  state.ready_count = 0;
  start_shared_memory();
  start_mbarriers();
  for (size_t w = 0; w < state.warps.size(); ++w) {
    Warp& warp = state.warps[w];
    warp.time = times.now;
    warp.lanes = &state.threads[w * kLanes];
    warp.arrived = 0;
    warp.exited = nullptr;
  }
  for (size_t t = 0; t < state.threads.size(); ++t) {
    Thread& thread = state.threads[t];
    thread.id = static_cast<int>(t);
    thread.lane = static_cast<int>(t % kLanes);
    thread.warp = &state.warps[t / kLanes];
    thread.copies.clear();
    thread.landed = 0;
    thread.groups = 0;
    state.stacks.prepare(thread.fiber, thread.id, thread_main);
    make_ready(&thread);
  }
}

void run_block(int64_t block) {
  position.block = block;
  start_block();
  Thread* first = take_ready();
  run_thread(first);
  switch_fiber(state.host, first->fiber, false);
  state.running = nullptr;
  ++totals.blocks;
}

std::vector<int64_t> block_order(int64_t blocks) {
  std::vector<int64_t> order(static_cast<size_t>(blocks));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (state.options.order == Order::lifo) std::reverse(order.begin(), order.end());
  if (state.options.order == Order::random) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_below(static_cast<unsigned>(i))]);
  }
  return order;
}

void check_shape(const char* name, const dev::Launch& shape) {
  if (shape.blocks >= 0 && shape.blocks <= INT32_MAX && shape.threads >= kLanes && shape.threads <= dev::kMaxThreads &&
      shape.threads % kLanes == 0 && shape.shared_bytes >= 0 && shape.shared_bytes <= limits().shared_per_block) {
    return;
  }
  throw std::runtime_error("kernel " + std::string(name) + ": cannot be launched with " + std::to_string(shape.blocks) +
                           " blocks of " + std::to_string(shape.threads) + " threads and " +
                           std::to_string(shape.shared_bytes) + " bytes of shared memory");
}

std::mutex launch_mutex;

}  // namespace

void fault(FaultKind kind, const Thread* thread, Site site, const std::string& message) {
  if (state.running == nullptr) {
    throw Fault(kind, site_text(site) + ": " + fault_name(kind) + ": " + message);
  }
  failure = std::make_exception_ptr(make_fault(kind, thread, site, message));
  throw Stop();
}

void fault(FaultKind kind, Site site, const std::string& message) { fault(kind, state.running, site, message); }

void make_ready(Thread* thread) {
  thread->status = Thread::Status::ready;
  state.ready[(state.ready_head + state.ready_count) & (dev::kMaxThreads - 1)] = thread;
  ++state.ready_count;
}

void wait_for_turn() {
  Thread* self = state.running;
  need_ready();
  Thread* next = take_ready();
  if (next == self) return;
  run_thread(next);
  switch_fiber(self->fiber, next->fiber, false);
}

void block_barrier(Site site) {
  Thread* self = state.running;
  if (state.exited > 0) {
    fault(FaultKind::exited_thread, site,
          "waits in sync_block for thread " + std::to_string(state.last_exited->id) + ", which has returned");
  }
  if (state.at_barrier == 0) {
    state.first_at_barrier = self;
  } else if (!same_site(site, state.first_at_barrier->site)) {
    fault(FaultKind::divergent_barrier, site,
          "comes to this sync_block while thread " + std::to_string(state.first_at_barrier->id) +
              " waits in the one at " + site_text(state.first_at_barrier->site));
  }
  self->site = site;
  self->status = Thread::Status::at_barrier;
  if (++state.at_barrier == position.threads) {
    state.at_barrier = 0;
    state.times.epoch = ++state.times.now;
    for (Warp& warp : state.warps) warp.time = state.times.now;
    if (ordering.in_use()) ordering.join_block();
    for (Thread& thread : state.threads) make_ready(&thread);
  }
  wait_for_turn();
}

void check_nobody_waits_for(Thread* thread) {
  const Warp* warp = thread->warp;
  if (warp->arrived > 0) {
    fault(FaultKind::exited_thread, warp->first, warp->site,
          "waits in a warp collective for thread " + std::to_string(thread->id) + ", which returns");
  }
  if (state.at_barrier > 0) {
    fault(FaultKind::exited_thread, state.first_at_barrier, state.first_at_barrier->site,
          "waits in sync_block for thread " + std::to_string(thread->id) + ", which returns");
  }
}

std::string describe(const Finding& finding) {
  const Mark& mark = *finding.with;
  const bool between_blocks = finding.conflict == Conflict::between_blocks;
  std::string text = "thread " + std::to_string(mark.thread);
  if (between_blocks && mark.time < state.times.block) {
    const auto after =
        std::upper_bound(state.block_starts.begin(), state.block_starts.end(), mark.time,
                         [](uint64_t time, const std::pair<uint64_t, int64_t>& start) { return time < start.first; });
    text += " of block " + std::to_string(std::prev(after)->second);
  } else if (between_blocks) {
    text = "another block, and then " + text + " of this one,";
  }
  text += std::string(finding.did) + " at " + site_text(site_of(mark.site));
  return text + (between_blocks ? " in the same launch" : " with no barrier in between");
}

void launch(const char* name, const dev::Launch& shape, void (*call)(const void*), const void* arguments) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  check_shape(name, shape);
  ++totals.launches;
  if (shape.blocks == 0) return;
  state.kernel = name;
  state.options = current_options();
  state.random = state.options.seed;
  state.call = call;
  state.arguments = arguments;
  state.shared_bytes = shape.shared_bytes;
  state.block_starts.clear();
  state.times.launch = ++state.times.now;
  if (state.threads.size() != static_cast<size_t>(shape.threads)) {
    state.threads.resize(static_cast<size_t>(shape.threads));
    state.warps.resize(static_cast<size_t>(shape.threads / kLanes));
  }
  state.stacks.reserve(shape.threads);
  position = {0, shape.threads, 0, shape.blocks};
  failure = nullptr;
  for (const int64_t block : block_order(shape.blocks)) {
    run_block(block);
    if (failure != nullptr) {
      forget_shared_memory();
      state.stacks.forget_frames();
      std::rethrow_exception(std::exchange(failure, nullptr));
    }
  }
}

}  // namespace fgk::emulation::core

namespace fgk::emulation {

Counters counters() {
  const std::lock_guard<std::mutex> lock(core::launch_mutex);
  return core::totals;
}

}  // namespace fgk::emulation
