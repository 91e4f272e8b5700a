// SPDX-License-Identifier: Apache-2.0
// The shadow's marks against the whole history: for random accesses and barriers, a conflict is found exactly when one
// of all earlier accesses is in conflict with the new one.
#include "shadow.h"

#include <random>
#include <vector>

#include "check.h"

namespace {

using namespace fgk::emulation::core;

constexpr int kThreads[] = {0, 1, 32, 33, 34};

struct Past {
  Access access;
  int thread;
  int launch;
  int block;
  int block_barriers;  // that the block had passed
  int warp_barriers;   // that the warp had
};

bool in_conflict(const Past& a, const Past& b) {
  if (a.access == b.access && a.access != Access::write) return false;
  if (a.launch != b.launch) return false;
  if (a.block != b.block) return true;
  if (a.thread == b.thread || a.block_barriers != b.block_barriers) return false;
  return a.thread / 32 != b.thread / 32 || a.warp_barriers == b.warp_barriers;
}

TEST(marks_find_what_the_history_finds) {
  std::mt19937 random(5);
  int conflicts = 0;
  for (int sequence = 0; sequence < 100000; ++sequence) {
    Cell cell{};
    Times times{1, 1, 1, 1};
    uint64_t warp_time[2] = {1, 1};
    Past now{Access::read, 0, 0, 0, 0, 0};
    int warp_barriers[2] = {0, 0};
    std::vector<Past> history;
    const auto all = [&](uint64_t time) { warp_time[0] = warp_time[1] = time; };
    for (int step = 0; step < 14; ++step) {
      const unsigned event = random() % 20;
      if (event == 0) {
        ++now.launch;
        ++now.block;
        times.launch = ++times.now;
        all(times.block = times.epoch = ++times.now);
      } else if (event == 1) {
        ++now.block;
        all(times.block = times.epoch = ++times.now);
      } else if (event < 5) {
        ++now.block_barriers;
        all(times.epoch = ++times.now);
      } else if (event < 8) {
        const unsigned warp = random() % 2;
        ++warp_barriers[warp];
        warp_time[warp] = ++times.now;
      } else {
        const unsigned kind = random() % 8;
        now.access = kind < 4 ? Access::read : kind < 7 ? Access::atomic : Access::write;
        now.thread = kThreads[random() % 5];
        now.warp_barriers = warp_barriers[now.thread / 32];
        bool expected = false;
        bool between_blocks = false;
        for (const Past& past : history) {
          if (!in_conflict(past, now)) continue;
          expected = true;
          between_blocks = between_blocks || past.block != now.block;
        }
        const Finding finding = note(cell, now.access, {now.thread, warp_time[now.thread / 32], 0}, times);
        CHECK_EQ(finding.conflict != Conflict::none, expected);
        if (expected) {
          ++conflicts;
          if (finding.conflict == Conflict::between_blocks) CHECK(between_blocks);
          break;
        }
        history.push_back(now);
      }
    }
    if (check::failures() > 5) return;
  }
  CHECK(conflicts > 10000);
}

}  // namespace
