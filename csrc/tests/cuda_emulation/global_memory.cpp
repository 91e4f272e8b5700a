// SPDX-License-Identifier: Apache-2.0
// Global memory: the buffers of a call and the checks of every access. Written buffers have a shadow, a cell per
// element or 4 bytes, whichever is smaller.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>
#include <new>

#include "state.h"

namespace fgk::emulation::core {

struct Buffer {
  char* base = nullptr;
  int64_t bytes = 0;
  int64_t element = 1;
  BufferSet::Use use = BufferSet::Use::in;
  std::string name;
  Cell* cells = nullptr;  // from calloc: pages that nobody touches cost nothing
  int shift = 0;          // a cell is 1 << shift bytes
  bool unseen = false;    // written while the shadow was off
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(cells); }
};

namespace {

constexpr int kCellShift = 2;

int shift_of(int64_t bytes) { return bytes >= 4 ? 2 : bytes >= 2 ? 1 : 0; }

size_t cell_count(const Buffer& buffer, int shift) {
  return static_cast<size_t>((buffer.bytes + (int64_t{1} << shift) - 1) >> shift);
}

Cell* new_cells(const Buffer& buffer, int shift) {
  void* cells = std::calloc(cell_count(buffer, shift) + 1, sizeof(Cell));
  if (cells == nullptr) throw std::bad_alloc();
  return static_cast<Cell*>(cells);
}

// Gives the buffer smaller cells, for accesses smaller than its elements.
void refine(Buffer& buffer, int shift) {
  Cell* cells = new_cells(buffer, shift);
  const size_t count = cell_count(buffer, shift);
  for (size_t i = 0; i < count; ++i) cells[i] = buffer.cells[i >> (buffer.shift - shift)];
  std::free(buffer.cells);
  buffer.cells = cells;
  buffer.shift = shift;
}

std::string place(const GlobalPointer& p) {
  const Buffer& buffer = *p.buffer;
  std::string text = "element " + std::to_string(p.at / buffer.element - (p.at % buffer.element < 0 ? 1 : 0));
  const int64_t rest = (p.at % buffer.element + buffer.element) % buffer.element;
  if (rest != 0) text += " (byte " + std::to_string(rest) + " of it)";
  return text + " of '" + buffer.name + "'";
}

const char* verb(Access access) {
  return access == Access::read ? "reads " : access == Access::write ? "writes " : "updates ";
}

std::string what(const GlobalPointer& p, int bytes, Access access) {
  return verb(access) + std::to_string(bytes) + " bytes at " + place(p);
}

void check_place(const GlobalPointer& p, int bytes, int alignment, Access access, Site site) {
  if (p.buffer == nullptr) {
    fault(FaultKind::out_of_bounds, site, verb(access) + std::to_string(bytes) + " bytes through a null pointer");
  }
  const Buffer& buffer = *p.buffer;
  if (bytes > 0 && (p.at < p.low || p.at > p.high - bytes)) {
    std::string text = what(p, bytes, access) + ", which has " + std::to_string(buffer.bytes / buffer.element);
    if (p.low != 0 || p.high != buffer.bytes) {
      text += "; the slice is elements " + std::to_string(p.low / buffer.element) + " to " +
              std::to_string(p.high / buffer.element);
    }
    fault(FaultKind::out_of_bounds, site, text);
  }
  const uint64_t address = reinterpret_cast<uintptr_t>(buffer.base) + static_cast<uint64_t>(p.at);
  if ((address & static_cast<uint64_t>(alignment - 1)) != 0) {  // alignments are powers of two
    fault(FaultKind::misaligned, site,
          what(p, bytes, access) + ", an address that is not a multiple of " + std::to_string(alignment));
  }
}

void note_access(const GlobalPointer& p, int bytes, Access access, bool read_only, Site site) {
  Buffer& buffer = *p.buffer;
  if (buffer.cells == nullptr) buffer.cells = new_cells(buffer, buffer.shift);
  if (bytes >> buffer.shift == 0) refine(buffer, shift_of(bytes));
  const Accessor who = accessor(state.running, site);
  const int64_t last = (p.at + bytes - 1) >> buffer.shift;
  for (int64_t i = p.at >> buffer.shift; i <= last; ++i) {
    Cell& cell = buffer.cells[i];
    if (access != Access::write && cell.write.time == 0 && buffer.use == BufferSet::Use::out) {
      fault(FaultKind::uninitialized_global, site, what(p, bytes, access) + ", which no kernel has written");
    }
    const Finding finding = note(cell, access, who, state.times);
    if (finding.conflict != Conflict::none) {
      fault(finding.conflict == Conflict::in_block ? FaultKind::race_global : FaultKind::block_conflict, site,
            what(p, bytes, access) + ", which " + describe(finding));
    }
    if (read_only && (cell.write.time >= state.times.launch || cell.atomic.time >= state.times.launch)) {
      fault(FaultKind::read_only_load, site,
            what(p, bytes, access) + " through a pointer to const, which may hit a stale cache: this launch wrote it");
    }
  }
}

std::mutex outputs_mutex;
std::vector<Output> outputs;

Output describe_output(const Buffer& buffer) {
  Output output{buffer.name, buffer.base, buffer.bytes / buffer.element, {}};
  if (buffer.unseen) return output;
  if (buffer.cells == nullptr) {
    for (int64_t i = 0; i < output.count; ++i) output.unwritten.push_back(i);
    return output;
  }
  for (int64_t i = 0; i < output.count; ++i) {
    bool written = true;
    const int64_t last = ((i + 1) * buffer.element - 1) >> buffer.shift;
    for (int64_t c = (i * buffer.element) >> buffer.shift; c <= last; ++c) written &= buffer.cells[c].write.time != 0;
    if (!written) output.unwritten.push_back(i);
  }
  return output;
}

}  // namespace

char* global_access(const GlobalPointer& p, int bytes, Access access, bool read_only, Site site) {
  check_place(p, bytes, bytes, access, site);
  if (state.running == nullptr) {
    fault(FaultKind::out_of_bounds, site, what(p, bytes, access) + ", device memory, on the host");
  }
  if (p.buffer->use != BufferSet::Use::in) {
    if (state.options.shadow) {
      note_access(p, bytes, access, read_only, site);
    } else {
      p.buffer->unseen = true;
    }
  }
  return p.buffer->base + p.at;
}

const char* copy_source(const GlobalPointer& p, int valid_bytes, Site site) {
  if (valid_bytes == 0 && p.buffer == nullptr) return nullptr;
  check_place(p, valid_bytes, 16, Access::read, site);
  if (valid_bytes == 0) return nullptr;
  if (p.buffer->use != BufferSet::Use::in && state.options.shadow) {
    note_access(p, valid_bytes, Access::read, false, site);
  }
  return p.buffer->base + p.at;
}

GlobalPointer global_slice(GlobalPointer p, int64_t bytes, Site site) {
  if (p.buffer == nullptr) return p;
  if (bytes < 0) {
    fault(FaultKind::out_of_bounds, site,
          "takes a slice of " + std::to_string(bytes / p.buffer->element) + " elements of '" + p.buffer->name + "'");
  }
  p.low = std::max(p.low, p.at);
  p.high = std::min(p.high, advance(p.at, bytes, 1));
  return p;
}

struct BufferSet::List {
  std::list<Buffer> buffers;
};

BufferSet::BufferSet() : list_(new List) {}

BufferSet::~BufferSet() {
  std::vector<Output> written;
  for (const Buffer& buffer : list_->buffers) {
    if (buffer.use == Use::out) written.push_back(describe_output(buffer));
  }
  delete list_;
  const std::lock_guard<std::mutex> lock(outputs_mutex);
  outputs = std::move(written);
}

GlobalPointer BufferSet::add(void* data, int64_t count, int64_t size, bool integral, Use use, const char* name) {
  if (count < 0) {
    throw std::invalid_argument("buffer '" + std::string(name) + "' of " + std::to_string(count) + " elements");
  }
  if (data == nullptr) return {};
  char* base = static_cast<char*>(data);
  const int64_t bytes = count * size;
  for (const Buffer& other : list_->buffers) {
    const bool overlap = base < other.base + other.bytes && other.base < base + bytes;
    if (overlap && (use != Use::in || other.use != Use::in)) {
      throw Fault(FaultKind::aliased_buffers,
                  "buffer '" + std::string(name) + "' overlaps '" + other.name + "', and one of them is written");
    }
  }
  Buffer& buffer = list_->buffers.emplace_back();
  buffer.base = base;
  buffer.bytes = bytes;
  buffer.element = size;
  buffer.use = use;
  buffer.name = name;
  buffer.shift = std::min(kCellShift, shift_of(size));
  if (use == Use::out && bytes > 0) std::memset(base, integral ? 0xA5 : 0xFF, static_cast<size_t>(bytes));
  return {0, 0, bytes, &buffer};
}

}  // namespace fgk::emulation::core

namespace fgk::emulation {

std::vector<Output> last_outputs() {
  const std::lock_guard<std::mutex> lock(core::outputs_mutex);
  return core::outputs;
}

}  // namespace fgk::emulation
