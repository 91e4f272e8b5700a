// SPDX-License-Identifier: Apache-2.0
// Entry points of the emulator behind the primitives of device_emulated.cuh. Every one runs on the fiber of the CUDA
// thread that calls it, unless it says "host".
#pragma once

#include <cstdint>

#include "emulation.h"

namespace fgk::emulation {

// Source line of a primitive's caller.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

namespace core {

// The running thread's place in its launch.
struct Position {
  int thread;
  int threads;
  int64_t block;
  int64_t blocks;
};
extern Position position;

enum class Access { read, write, atomic };

struct Buffer;

// Offsets count bytes from the buffer's start; accesses must lie in [low, high).
struct GlobalPointer {
  int64_t at = 0;
  int64_t low = 0;
  int64_t high = 0;
  Buffer* buffer = nullptr;
};

// Offsets count bytes from the start of the block's shared memory.
struct SharedPointer {
  int64_t at = 0;
  int64_t low = 0;
  int64_t high = 0;
};

// at + n * size, wrapping like an address.
constexpr int64_t advance(int64_t at, int64_t n, int64_t size) {
  return static_cast<int64_t>(static_cast<uint64_t>(at) + static_cast<uint64_t>(n) * static_cast<uint64_t>(size));
}

// Checks an access of `bytes` bytes at offset p.at, divisible by `bytes`, and tells where the memory is.
char* global_access(const GlobalPointer& p, int bytes, Access access, bool read_only, Site site);
char* shared_access(const SharedPointer& p, int bytes, Access access, Site site);
// Narrows [low, high) to the `bytes` bytes from p.at on. Callable on the host.
GlobalPointer global_slice(GlobalPointer p, int64_t bytes, Site site);
SharedPointer shared_slice(SharedPointer p, int64_t bytes, Site site);
// The next array of shared memory after `used` bytes, which grows.
SharedPointer shared_take(int64_t& used, int64_t count, int64_t size, Site site);

void copy_async(const SharedPointer& to, const GlobalPointer& from, int valid_bytes, Site site);
void copy_commit(Site site);
void copy_wait(int groups, Site site);

void block_barrier(Site site);

void mbarrier_init(const SharedPointer& p, int count, Site site);
void mbarrier_arrive(const SharedPointer& p, int64_t expected_bytes, Site site);
void mbarrier_wait(const SharedPointer& p, unsigned parity, Site site);
void copy_bulk(const SharedPointer& to, const GlobalPointer& from, int64_t bytes, const SharedPointer& p, Site site);

enum class Collective {
  sync_warp,
  shfl_xor,
  shfl,
  shfl_up,
  shfl_down,
  ballot,
  any,
  all,
  ldmatrix_x2,
  ldmatrix_x4,
  ldmatrix_x4_trans,
  mma_bf16,
  mma_f16
};
// All lanes give a value and an argument, and get what the collective makes of them.
uint64_t exchange(Collective collective, uint64_t value, int argument, Site site);
void load_matrix(Collective collective, uint32_t* result, const SharedPointer& row, Site site);
void multiply(Collective collective, float* c, const uint32_t* a, const uint32_t* b, Site site);

// Host. Buffers of one call.
class BufferSet {
 public:
  BufferSet();
  ~BufferSet();
  BufferSet(const BufferSet&) = delete;
  BufferSet& operator=(const BufferSet&) = delete;

  enum class Use { in, out, inout };
  GlobalPointer add(void* data, int64_t count, int64_t size, bool integral, Use use, const char* name);

 private:
  struct List;
  List* list_;
};

// Host. Runs call(arguments) on every thread of every block.
void launch(const char* name, const dev::Launch& shape, void (*call)(const void*), const void* arguments);
dev::Limits limits();

}  // namespace core
}  // namespace fgk::emulation
