// SPDX-License-Identifier: Apache-2.0
// mbarriers and the bulk copies that complete on them. A copy lands at the latest moment: when no thread can go on and
// one waits for it. It counts as a write by nobody, which only those know of who have waited on its mbarrier.
#include <cstring>
#include <map>

#include "ordering.h"

namespace fgk::emulation::core {
namespace {

constexpr int kBytes = 8;
constexpr int64_t kMaxCount = (1 << 20) - 1;

struct Mbarrier {
  int64_t count = 0;    // arrivals per phase
  int64_t pending = 0;  // still to come
  int64_t bytes = 0;    // of copies, still to come
  uint64_t phase = 0;   // that is under way
  Clocks gathering;     // what those who have arrived know
  Clocks done;          // the same of the last phase that is complete
  std::vector<Thread*> waiters;
};

struct BulkCopy {
  const char* from;
  SharedPointer to;
  int64_t bytes;
  Mbarrier* barrier;
  const Thread* thread;
  Site site;
};

std::map<int64_t, Mbarrier> barriers;  // by their place in shared memory
std::vector<BulkCopy> copies;

Mbarrier& find(const SharedPointer& p, Site site) {
  const auto found = barriers.find(p.at);
  if (found == barriers.end()) {
    fault(FaultKind::bad_mbarrier, site, "no mbarrier has been initialised at shared byte " + std::to_string(p.at));
  }
  shared_access(p, kBytes, Access::atomic, site);
  return found->second;
}

void complete_if_done(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
  barrier.done = barrier.gathering;
  for (Thread* thread : barrier.waiters) make_ready(thread);
  barrier.waiters.clear();
}

}  // namespace

void start_mbarriers() {
  barriers.clear();
  copies.clear();
  ordering.start_block();
}

void mbarrier_init(const SharedPointer& p, int count, Site site) {
  if (count < 1 || count > kMaxCount) {
    fault(FaultKind::bad_mbarrier, site, "an mbarrier of " + std::to_string(count) + " arrivals");
  }
  ordering.use();
  shared_access(p, kBytes, Access::write, site);
  if (barriers.count(p.at) != 0) {
    fault(FaultKind::bad_mbarrier, site, "the mbarrier at shared byte " + std::to_string(p.at) + " is there already");
  }
  Mbarrier& barrier = barriers[p.at];
  barrier.count = barrier.pending = count;
}

void mbarrier_arrive(const SharedPointer& p, int64_t expected_bytes, Site site) {
  Mbarrier& barrier = find(p, site);
  barrier.bytes += expected_bytes;
  if (expected_bytes < 0 || barrier.bytes > kMaxCount) {
    fault(FaultKind::bad_mbarrier, site,
          "expects " + std::to_string(expected_bytes) + " more bytes, in all " + std::to_string(barrier.bytes));
  }
  ordering.release(state.running->id, barrier.gathering);
  --barrier.pending;
  complete_if_done(barrier);
}

void mbarrier_wait(const SharedPointer& p, unsigned parity, Site site) {
  Mbarrier& barrier = find(p, site);
  Thread* thread = state.running;
  if (parity > 1) fault(FaultKind::bad_mbarrier, site, "waits for parity " + std::to_string(parity));
  while (barrier.phase % 2 == parity) {
    thread->site = site;
    thread->status = Thread::Status::at_mbarrier;
    barrier.waiters.push_back(thread);
    wait_for_turn();
  }
  ordering.acquire(thread->id, barrier.done);
}

void copy_bulk(const SharedPointer& to, const GlobalPointer& from, int64_t bytes, const SharedPointer& p, Site site) {
  constexpr int kUnit = 16;
  Mbarrier& barrier = find(p, site);
  if (bytes <= 0 || bytes % kUnit != 0 || bytes > kMaxCount) {
    fault(FaultKind::bad_copy_size, site, "a bulk copy of " + std::to_string(bytes) + " bytes");
  }
  const char* source = copy_source(from, static_cast<int>(bytes), site);
  for (int64_t i = 0; i < bytes; i += kUnit) {
    SharedPointer unit = to;
    unit.at += i;
    std::memset(shared_access(unit, kUnit, Access::write, site), kPoison, kUnit);
    mark_in_flight(unit, kUnit);
  }
  copies.push_back({source, to, bytes, &barrier, state.running, site});
}

bool land_bulk_copy() {
  for (size_t i = 0; i < copies.size(); ++i) {
    const BulkCopy copy = copies[i];
    Mbarrier& barrier = *copy.barrier;
    if (barrier.waiters.empty()) continue;
    copies.erase(copies.begin() + static_cast<std::ptrdiff_t>(i));
    land_bulk(copy.to, copy.from, copy.bytes, copy.site);
    ordering.release(ordering.copies(), barrier.gathering);
    barrier.bytes -= copy.bytes;
    complete_if_done(barrier);
    return true;
  }
  return false;
}

void check_finished_bulk_copies() {
  if (copies.empty()) return;
  fault(FaultKind::pending_copies, copies.front().thread, copies.front().site,
        "the block ends before anybody has waited for this bulk copy");
}

}  // namespace fgk::emulation::core
