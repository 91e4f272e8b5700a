// SPDX-License-Identifier: Apache-2.0
// Order by mbarriers. Those let single threads wait for each other, which the clocks of shadow.h cannot express; so a
// block that has initialised one keeps a vector clock per thread and a history of the accesses to each word. When the
// shadow finds a conflict, they say whether mbarriers order the two accesses after all.
#pragma once

#include <cstdint>
#include <vector>

#include "state.h"

namespace fgk::emulation::core {

using Clocks = std::vector<uint64_t>;  // per thread, then one for bulk copies: what is known of its accesses

// Of the running block.
class Ordering {
 public:
  bool in_use() const { return in_use_; }
  void start_block() { in_use_ = false; }
  void use();

  // The number that stands for bulk copies among the threads.
  int copies() const { return position.threads; }
  // The thread publishes what it knows and has done; its later accesses are later.
  void release(int thread, Clocks& to);
  void acquire(int thread, const Clocks& from);
  void join_warp(int first_lane);
  void join_block();

  // Whether the thread's access is ordered after all that it is in conflict with, such as `finding`, which the history
  // must know of. `mask` has a bit per byte of the word.
  bool settles(const Finding& finding, int64_t word, unsigned mask, Access access, int thread) const;
  void record(int64_t word, unsigned mask, Access access, int thread);

 private:
  struct Event {
    uint64_t stamp;
    uint16_t thread;
    uint8_t mask;
    Access access;
  };

  uint64_t& known(int by, int of) { return known_[static_cast<size_t>(by * (copies() + 1) + of)]; }
  uint64_t known(int by, int of) const { return known_[static_cast<size_t>(by * (copies() + 1) + of)]; }

  bool in_use_ = false;
  std::vector<uint64_t> known_;
  std::vector<uint64_t> stamps_;  // of each thread's accesses from now on
  std::vector<std::vector<Event>> history_;
};
extern Ordering ordering;

// Lets a bulk copy arrive that somebody waits for; false: there is none.
bool land_bulk_copy();
void start_mbarriers();
// The block ends: no bulk copy may be under way.
void check_finished_bulk_copies();

}  // namespace fgk::emulation::core
