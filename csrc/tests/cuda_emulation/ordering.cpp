// SPDX-License-Identifier: Apache-2.0
#include "ordering.h"

#include <algorithm>

namespace fgk::emulation::core {

Ordering ordering;

void Ordering::use() {
  if (in_use_) return;
  in_use_ = true;
  const size_t parties = static_cast<size_t>(copies()) + 1;
  known_.assign(parties * parties, 0);
  stamps_.assign(parties, state.times.now);
  history_.resize(static_cast<size_t>(state.shared_bytes / 4 + 1));
  for (std::vector<Event>& events : history_) events.clear();
}

void Ordering::release(int thread, Clocks& to) {
  known(thread, thread) = stamps_[static_cast<size_t>(thread)];
  to.resize(stamps_.size(), 0);
  for (int of = 0; of <= copies(); ++of) {
    uint64_t& clock = to[static_cast<size_t>(of)];
    clock = std::max(clock, known(thread, of));
  }
  stamps_[static_cast<size_t>(thread)] = ++state.times.now;
}

void Ordering::acquire(int thread, const Clocks& from) {
  for (size_t of = 0; of < from.size(); ++of) {
    uint64_t& clock = known(thread, static_cast<int>(of));
    clock = std::max(clock, from[of]);
  }
}

void Ordering::join_warp(int first_lane) {
  Clocks joined;
  for (int lane = first_lane; lane < first_lane + kLanes; ++lane) release(lane, joined);
  for (int lane = first_lane; lane < first_lane + kLanes; ++lane) acquire(lane, joined);
}

void Ordering::join_block() {
  Clocks joined;
  for (int thread = 0; thread < copies(); ++thread) release(thread, joined);
  for (int thread = 0; thread < copies(); ++thread) acquire(thread, joined);
}

bool Ordering::settles(const Finding& finding, int64_t word, unsigned mask, Access access, int thread) const {
  bool remembered = false;
  for (const Event& event : history_[static_cast<size_t>(word)]) {
    remembered = remembered || event.thread == finding.with->thread;
    const bool harmless = access == event.access && access != Access::write;
    if ((event.mask & mask) == 0 || event.thread == thread || harmless) continue;
    if (event.stamp > known(thread, event.thread)) return false;
  }
  return remembered;
}

void Ordering::record(int64_t word, unsigned mask, Access access, int thread) {
  std::vector<Event>& events = history_[static_cast<size_t>(word)];
  const uint64_t stamp = stamps_[static_cast<size_t>(thread)];
  if (access == Access::write) {
    // What came before is ordered before this write, by which later accesses are judged.
    events.erase(std::remove_if(events.begin(), events.end(), [&](const Event& e) { return (e.mask & ~mask) == 0; }),
                 events.end());
  } else {
    for (Event& event : events) {
      if (event.thread == thread && event.access == access && event.mask == mask) {
        event.stamp = stamp;
        return;
      }
    }
  }
  events.push_back({stamp, static_cast<uint16_t>(thread), static_cast<uint8_t>(mask), access});
}

}  // namespace fgk::emulation::core
