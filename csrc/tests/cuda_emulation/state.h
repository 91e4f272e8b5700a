// SPDX-License-Identifier: Apache-2.0
// The emulator's state: one launch at a time, in plain globals because thread_local ones cost a fifth of the speed.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core.h"
#include "fiber.h"
#include "shadow.h"

namespace fgk::emulation::core {

constexpr int kLanes = dev::kWarpSize;

struct Warp;

struct Thread {
  enum class Status { ready, at_barrier, at_mbarrier, in_collective, exited };

  // A cp.async under way.
  struct Copy {
    const char* from;
    int64_t to;
    int valid_bytes;
    int64_t group;
    Site site;
  };

  Fiber fiber;
  int id = 0;
  int lane = 0;
  Warp* warp = nullptr;
  Status status = Status::ready;
  Site site{nullptr, 0};  // where it waits
  std::vector<Copy> copies;
  size_t landed = 0;  // of copies
  int64_t groups = 0;
};

struct Warp {
  uint64_t time = 0;  // of its last barrier, its own or the block's
  Thread* lanes = nullptr;
  int arrived = 0;
  Thread* first = nullptr;   // to arrive
  Thread* exited = nullptr;  // one that has returned
  Collective collective = Collective::sync_warp;
  Site site{nullptr, 0};
  // Results have their own places: a lane may deposit for the next collective before another has fetched its result.
  uint64_t value[kLanes];
  int argument[kLanes];
  uint64_t result[kLanes];
  SharedPointer row[kLanes];
  uint32_t matrix[kLanes][4];
  uint32_t a[kLanes][4];
  uint32_t b[kLanes][2];
  float c[kLanes][4];
  float d[kLanes][4];
};

struct State {
  // The launch.
  const char* kernel = "";
  Options options;
  void (*call)(const void*) = nullptr;
  const void* arguments = nullptr;
  int64_t shared_bytes = 0;
  uint64_t random = 0;
  std::vector<std::pair<uint64_t, int64_t>> block_starts;  // time and number of each block so far
  Times times;
  // The block.
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int at_barrier = 0;
  int exited = 0;
  Thread* first_at_barrier = nullptr;
  Thread* last_exited = nullptr;
  // Threads that can go on, a ring.
  Thread* ready[dev::kMaxThreads];
  unsigned ready_head = 0;
  unsigned ready_count = 0;
  Thread* running = nullptr;  // null: no kernel is
  Fiber host;
  Stacks stacks;
};
extern State state;

// Ends the launch with a fault of `thread` at `site`; the fiber that calls it never goes on.
[[noreturn]] void fault(FaultKind kind, const Thread* thread, Site site, const std::string& message);
// A fault of the running thread; on the host (no kernel is running) it throws.
[[noreturn]] void fault(FaultKind kind, Site site, const std::string& message);

std::string site_text(Site site);
bool same_site(const Site& a, const Site& b);
// Sites as numbers, for marks: the file's place in a list and 20 bits of line.
constexpr int kLineBits = 20;
constexpr uint32_t kLineMask = (1u << kLineBits) - 1;
struct KnownFile {
  const char* name;
  uint32_t index;
};
extern KnownFile last_file;
void find_file(const char* file);  // makes it the last one
inline uint32_t site_id(Site site) {
  if (site.file != last_file.name) find_file(site.file);
  return (last_file.index << kLineBits) | (static_cast<uint32_t>(site.line) & kLineMask);
}
Site site_of(uint32_t id);

inline Accessor accessor(const Thread* thread, Site site) { return {thread->id, thread->warp->time, site_id(site)}; }
// "which thread 3 (block 7) wrote at kernel.cuh:12".
std::string describe(const Finding& finding);

void make_ready(Thread* thread);
// Lets others run; returns when this thread, having been made ready again, has its turn.
void wait_for_turn();

// Poisons the block's shared memory.
void start_shared_memory();
// After a fault: what the shadow of shared memory says of the abandoned launch is void.
void forget_shared_memory();
// Where a cp.async finds its valid bytes; null if there are none.
const char* copy_source(const GlobalPointer& p, int valid_bytes, Site site);
// A row of 16 bytes that `lane` loads.
const char* load_row(const Thread* lane, const SharedPointer& p, Site site);

constexpr unsigned char kPoison = 0xFF;  // NaN in every floating-point type
// What a bulk copy does to the shadow of shared memory while it is under way, and to both when it lands.
void mark_in_flight(const SharedPointer& to, int64_t bytes);
void land_bulk(const SharedPointer& to, const char* from, int64_t bytes, Site site);

void check_finished_copies(const Thread* thread);
// `thread` returns: nobody may wait for it.
void check_nobody_waits_for(Thread* thread);

}  // namespace fgk::emulation::core
