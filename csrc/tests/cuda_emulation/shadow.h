// SPDX-License-Identifier: Apache-2.0
// Shadow memory: for each cell of memory who wrote and who read it last, and whether a barrier has come since.
//
// Barriers are the only order: a block barrier orders everything before it in the block, sync_warp everything before it
// in the warp. So the time of a warp's last barrier is clock enough: an access of another thread is ordered before the
// running one if it came before the block's last barrier, or in the same warp before the warp's last barrier.
#pragma once

#include <cstdint>

#include "core.h"

namespace fgk::emulation::core {

// The clock, which every barrier advances, and the moments that decide what is ordered before the running thread.
struct Times {
  uint64_t now = 0;
  uint64_t launch = 0;
  uint64_t block = 0;
  uint64_t epoch = 0;  // the last block barrier
};

// The thread that makes an access. `time`: its warp's last barrier.
struct Accessor {
  int thread;
  uint64_t time;
  uint32_t site;
};

// An access, or several of which any would be in conflict with the same later ones.
struct Mark {
  enum Flag : uint16_t {
    other_lane = 1,   // also by another lane of the warp since its last barrier
    other_warp = 2,   // also by another warp since the block's last barrier
    other_block = 4,  // also by another block of the launch
    in_flight = 8,    // destination of a cp.async or a bulk copy
  };
  uint64_t time;  // 0: never
  uint16_t thread;
  uint16_t flags;
  uint32_t site;
};

struct Cell {
  Mark write;   // plain stores
  Mark atomic;  // which are in conflict with plain accesses only
  Mark read;    // plain loads
};

enum class Conflict { none, in_block, between_blocks };

// Whether the accesses of `mark` include one that is not ordered before what `who` does now.
inline Conflict conflict(const Mark& mark, const Accessor& who, const Times& times) {
  if (mark.time < times.launch) return Conflict::none;
  if (mark.time < times.block || (mark.flags & Mark::other_block) != 0) return Conflict::between_blocks;
  if (mark.time < times.epoch) return Conflict::none;
  if ((mark.flags & Mark::other_warp) != 0 || mark.thread / dev::kWarpSize != who.thread / dev::kWarpSize) {
    return Conflict::in_block;
  }
  if (mark.time < who.time) return Conflict::none;
  return mark.thread != who.thread || (mark.flags & Mark::other_lane) != 0 ? Conflict::in_block : Conflict::none;
}

// The flags of a mark that is to stand for its accesses and one more, by `who`.
inline uint16_t merged_flags(const Mark& mark, const Accessor& who, const Times& times) {
  if (mark.time < times.launch) return 0;
  if (mark.time < times.block) return Mark::other_block;
  const int block = mark.flags & Mark::other_block;
  if (mark.time < times.epoch) return static_cast<uint16_t>(block);
  const int warp = mark.flags & Mark::other_warp;
  if (mark.thread / dev::kWarpSize != who.thread / dev::kWarpSize) {
    return static_cast<uint16_t>(block | Mark::other_warp);
  }
  if (mark.time < who.time) return static_cast<uint16_t>(block | warp);
  const int lane = mark.thread != who.thread ? int{Mark::other_lane} : mark.flags & Mark::other_lane;
  return static_cast<uint16_t>(block | warp | lane);
}

struct Finding {
  Conflict conflict = Conflict::none;
  const Mark* with = nullptr;
  const char* did = "";  // what it conflicts with
};

// Marks an access that is ordered after all that it could be in conflict with.
inline void mark_access(Cell& cell, Access access, const Accessor& who, const Times& times) {
  Mark& mark = access == Access::read ? cell.read : access == Access::write ? cell.write : cell.atomic;
  const uint16_t flags = access == Access::write ? uint16_t{0} : merged_flags(mark, who, times);
  mark = {who.time, static_cast<uint16_t>(who.thread), flags, who.site};
}

// Marks the access unless it is in conflict with an earlier one.
inline Finding note(Cell& cell, Access access, const Accessor& who, const Times& times) {
  Conflict found = conflict(cell.write, who, times);
  if (found != Conflict::none) return {found, &cell.write, " has written"};
  if (access != Access::atomic) {
    found = conflict(cell.atomic, who, times);
    if (found != Conflict::none) return {found, &cell.atomic, " has updated"};
  }
  if (access != Access::read) {
    found = conflict(cell.read, who, times);
    if (found != Conflict::none) return {found, &cell.read, " has read"};
  }
  mark_access(cell, access, who, times);
  return {};
}

}  // namespace fgk::emulation::core
