// SPDX-License-Identifier: Apache-2.0
// Shared memory and the copies that arrive there.
//
// Its shadow has a cell per word of 4 bytes; a word that is accessed in smaller parts gets a cell per byte until the
// block ends or the word is written whole.
#include <cstring>

#include "ordering.h"

namespace fgk::emulation::core {
namespace {

constexpr int kWord = 4;
constexpr int kCopyBytes = 16;
constexpr unsigned kWholeWord = 0xF;

struct SharedMemory {
  alignas(128) char bytes[256 * 1024];
  Cell words[sizeof(bytes) / kWord];
  Cell parts[sizeof(bytes)];
  uint64_t divided[sizeof(bytes) / kWord];  // when the word got its cells per byte; 0: it has none
};
SharedMemory memory;  // zero pages until a kernel needs them

bool is_divided(int64_t word) { return memory.divided[word] >= state.times.block && memory.divided[word] != 0; }

std::string bytes_text(int bytes, const SharedPointer& p) {
  return std::to_string(bytes) + " bytes at shared byte " + std::to_string(p.at);
}

const char* verb(Access access) {
  return access == Access::read ? "reads " : access == Access::write ? "writes " : "updates ";
}

// An access under way, for the shadow and for messages.
struct Event {
  const SharedPointer& p;
  int bytes;
  Access access;
  const Thread* thread;
  Site site;
  Accessor who;
  Times times;
};

[[noreturn]] void fault(FaultKind kind, const Event& event, const std::string& message) {
  fault(kind, event.thread, event.site, verb(event.access) + bytes_text(event.bytes, event.p) + message);
}

bool in_flight(const Mark& write) { return (write.flags & Mark::in_flight) != 0 && write.time >= state.times.block; }

// The bytes of `mask` in `word`, whose cell this is.
void note_cell(Cell& cell, int64_t word, unsigned mask, const Event& event) {
  if (in_flight(cell.write)) {
    fault(FaultKind::in_flight, event,
          ", where a cp.async of thread " + std::to_string(cell.write.thread) + " at " +
              site_text(site_of(cell.write.site)) + " has not been waited for");
  }
  if (event.access != Access::write && cell.write.time < state.times.block) {
    fault(FaultKind::uninitialized_shared, event, ", which this block has not written");
  }
  const Finding finding = note(cell, event.access, event.who, event.times);
  if (finding.conflict == Conflict::none) return;
  if (!ordering.in_use() || !ordering.settles(finding, word, mask, event.access, event.who.thread)) {
    fault(FaultKind::race_shared, event, ", which " + describe(finding));
  }
  mark_access(cell, event.access, event.who, event.times);
}

// The usual case, a read of whole words that were written before the block's last barrier; false: it is another case.
bool note_settled_read(const SharedPointer& p, int bytes, const Thread* thread, Site site) {
  const uint64_t block = state.times.block;
  const uint64_t epoch = state.times.epoch;
  const uint64_t now = thread->warp->time;
  const Accessor who{thread->id, now, site_id(site)};
  const int64_t end = (p.at + bytes) / kWord;
  for (int64_t word = p.at / kWord; word < end; ++word) {
    Cell& cell = memory.words[word];
    if (memory.divided[word] >= block || cell.write.time < block || cell.write.time >= epoch ||
        cell.atomic.time >= epoch || (cell.write.flags & Mark::in_flight) != 0) {
      return false;
    }
    Mark& read = cell.read;
    if (read.time == now && read.thread == who.thread) continue;
    const uint16_t flags = read.time < epoch ? uint16_t{0} : merged_flags(read, who, {0, epoch, epoch, epoch});
    read = {now, static_cast<uint16_t>(who.thread), flags, who.site};
  }
  return true;
}

void note_access(const SharedPointer& p, int bytes, Access access, const Thread* thread, Site site) {
  Event event{p, bytes, access, thread, site, accessor(thread, site), state.times};
  // The arena starts anew with each block, so that the block's barriers are all there is to order accesses.
  event.times.launch = event.times.block = event.times.epoch;
  const int64_t first = p.at / kWord;
  if (bytes < kWord) {
    if (!is_divided(first)) {
      for (int i = 0; i < kWord; ++i) memory.parts[first * kWord + i] = memory.words[first];
      memory.divided[first] = state.times.now;
    }
    for (int i = 0; i < bytes; ++i) {
      const unsigned mask = 1u << (p.at + i) % kWord;
      note_cell(memory.parts[p.at + i], first, mask, event);
      if (ordering.in_use()) ordering.record(first, mask, access, thread->id);
    }
    return;
  }
  for (int64_t word = first; word < first + bytes / kWord; ++word) {
    const bool divided = is_divided(word);
    if (divided) {
      for (int i = 0; i < kWord; ++i) note_cell(memory.parts[word * kWord + i], word, 1u << i, event);
    } else {
      note_cell(memory.words[word], word, kWholeWord, event);
    }
    if (ordering.in_use()) ordering.record(word, kWholeWord, access, thread->id);
    if (divided && access == Access::write) {
      memory.words[word] = memory.parts[word * kWord];
      memory.divided[word] = 0;
    }
  }
}

char* checked(const SharedPointer& p, int bytes, Access access, const Thread* thread, Site site) {
  if (p.at < p.low || p.at > p.high - bytes) {
    fault(FaultKind::out_of_bounds, thread, site,
          verb(access) + bytes_text(bytes, p) + " outside its array, bytes " + std::to_string(p.low) + " to " +
              std::to_string(p.high) + " of shared memory");
  }
  if ((p.at & (bytes - 1)) != 0) {  // sizes are powers of two
    fault(FaultKind::misaligned, thread, site,
          verb(access) + bytes_text(bytes, p) + ", not a multiple of " + std::to_string(bytes));
  }
  if (state.options.shadow) {
    const bool settled =
        access == Access::read && bytes >= kWord && !ordering.in_use() && note_settled_read(p, bytes, thread, site);
    if (!settled) note_access(p, bytes, access, thread, site);
  }
  return memory.bytes + p.at;
}

void land(Thread* thread, const Thread::Copy& copy) {
  char* to = memory.bytes + copy.to;
  if (copy.valid_bytes > 0) std::memcpy(to, copy.from, static_cast<size_t>(copy.valid_bytes));
  std::memset(to + copy.valid_bytes, 0, static_cast<size_t>(kCopyBytes - copy.valid_bytes));
  if (!state.options.shadow) return;
  const Accessor who = accessor(thread, copy.site);
  for (int64_t word = copy.to / kWord; word < (copy.to + kCopyBytes) / kWord; ++word) {
    memory.words[word].write = {who.time, static_cast<uint16_t>(who.thread), 0, who.site};
  }
}

}  // namespace

char* shared_access(const SharedPointer& p, int bytes, Access access, Site site) {
  return checked(p, bytes, access, state.running, site);
}

const char* load_row(const Thread* lane, const SharedPointer& p, Site site) {
  return checked(p, 16, Access::read, lane, site);
}

SharedPointer shared_slice(SharedPointer p, int64_t bytes, Site site) {
  if (bytes < 0) {
    fault(FaultKind::out_of_bounds, site, "takes a slice of " + std::to_string(bytes) + " bytes of shared memory");
  }
  if (p.at > p.low) p.low = p.at;
  if (p.at + bytes < p.high) p.high = p.at + bytes;
  return p;
}

SharedPointer shared_take(int64_t& used, int64_t count, int64_t size, Site site) {
  const int64_t bytes = count * size;
  if (count < 0 || used + bytes > state.shared_bytes) {
    fault(FaultKind::shared_overrun, site,
          "takes " + std::to_string(count) + " elements of " + std::to_string(size) + " bytes after " +
              std::to_string(used) + " bytes of shared memory, but the launch asked for " +
              std::to_string(state.shared_bytes));
  }
  const SharedPointer array{used, used, used + bytes};
  used += (bytes + dev::kSharedAlignment - 1) / dev::kSharedAlignment * dev::kSharedAlignment;
  return array;
}

void start_shared_memory() { std::memset(memory.bytes, kPoison, static_cast<size_t>(state.shared_bytes)); }

void forget_shared_memory() {
  const size_t bytes = static_cast<size_t>(state.shared_bytes);
  std::memset(memory.words, 0, sizeof(Cell) * (bytes / kWord + 1));
  std::memset(memory.divided, 0, sizeof(uint64_t) * (bytes / kWord + 1));
}

void copy_async(const SharedPointer& to, const GlobalPointer& from, int valid_bytes, Site site) {
  Thread* thread = state.running;
  if (valid_bytes < 0 || valid_bytes > kCopyBytes) {
    fault(FaultKind::bad_copy_size, site, "copies " + std::to_string(valid_bytes) + " valid bytes of 16");
  }
  const char* source = copy_source(from, valid_bytes, site);
  char* destination = checked(to, kCopyBytes, Access::write, thread, site);
  std::memset(destination, kPoison, kCopyBytes);
  mark_in_flight(to, kCopyBytes);
  thread->copies.push_back({source, to.at, valid_bytes, thread->groups, site});
}

void mark_in_flight(const SharedPointer& to, int64_t bytes) {
  if (!state.options.shadow) return;
  for (int64_t word = to.at / kWord; word < (to.at + bytes) / kWord; ++word) {
    memory.words[word].write.flags |= Mark::in_flight;
  }
}

void land_bulk(const SharedPointer& to, const char* from, int64_t bytes, Site site) {
  std::memcpy(memory.bytes + to.at, from, static_cast<size_t>(bytes));
  if (!state.options.shadow) return;
  const uint16_t writer = static_cast<uint16_t>(ordering.copies());
  for (int64_t word = to.at / kWord; word < (to.at + bytes) / kWord; ++word) {
    memory.words[word].write = {state.times.now, writer, 0, site_id(site)};
    ordering.record(word, kWholeWord, Access::write, writer);
  }
}

void copy_commit(Site /*site*/) { ++state.running->groups; }

void copy_wait(int groups, Site /*site*/) {
  Thread* thread = state.running;
  std::vector<Thread::Copy>& copies = thread->copies;
  while (thread->landed < copies.size() && copies[thread->landed].group < thread->groups - groups) {
    land(thread, copies[thread->landed]);
    ++thread->landed;
  }
  // A pipeline always has copies under way: what has landed goes when it is half of the list.
  if (2 * thread->landed >= copies.size()) {
    copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(thread->landed));
    thread->landed = 0;
  }
}

void check_finished_copies(const Thread* thread) {
  if (thread->landed == thread->copies.size()) return;
  const Thread::Copy& copy = thread->copies[thread->landed];
  fault(FaultKind::pending_copies, thread, copy.site,
        "returns before it has waited for this cp.async" +
            std::string(copy.group == thread->groups ? ", which is in no committed group" : ""));
}

}  // namespace fgk::emulation::core
