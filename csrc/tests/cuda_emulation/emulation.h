// SPDX-License-Identifier: Apache-2.0
// What a test says to the emulator of CUDA kernels, and what it hears back. docs/cuda-emulation.md is the guide.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda/device_types.h"

namespace fgk::emulation {

enum class FaultKind {
  out_of_bounds,         // access outside a buffer, a slice, an array in shared memory, or through a null pointer
  misaligned,            // address not divisible by the size of the access
  shared_overrun,        // arrays taken from shared memory exceed the launch's bytes
  uninitialized_shared,  // read of shared memory that this block has not written
  uninitialized_global,  // read of an output that has not been written
  race_shared,           // two threads, one of them writing, not ordered by a barrier
  race_global,           // the same in global memory, within a block
  block_conflict,        // the same between two blocks of one launch
  read_only_load,        // load through a const pointer of memory that the launch has written
  in_flight,             // access to the destination of a cp.async that has not been waited for
  pending_copies,        // thread returns before it has waited for its copies
  bad_copy_size,         // cp_async16 of less than 0 or more than 16 valid bytes; bulk_copy of no multiple of 16
  bad_mbarrier,          // mbarrier that is not there, or is asked for what it cannot do
  divergent_collective,  // lanes of one warp meet in different collectives
  divergent_barrier,     // threads of one block meet in different block barriers
  exited_thread,         // threads wait for one that has returned
  deadlock,              // every thread waits
  aliased_buffers,       // a written buffer overlaps another one
};

const char* fault_name(FaultKind kind);

// Thrown by dev::launch when a kernel breaks a rule. `block`, `thread`, `file` and `line` are those of the access or
// the collective at fault; what() says all of it, and how to run the same order again.
struct Fault : std::runtime_error {
  Fault(FaultKind fault_kind, const std::string& message) : std::runtime_error(message), kind(fault_kind) {}
  FaultKind kind;
  std::string kernel;
  int64_t block = -1;
  int thread = -1;
  std::string file;
  int line = 0;
};

// Order of blocks, and of the threads of a block wherever several can go on.
enum class Order { fifo, lifo, random };

struct Options {
  Order order = Order::random;
  uint64_t seed = 0;
  bool shadow = true;  // races, uninitialised reads and outputs never written are found
};

// Options of the launches that follow. Without a call, and after reset_options, each launch reads the environment:
// FGKERNELS_EMULATION_ORDER = fifo | lifo | random | random:<seed> (default: random, a fresh seed per launch) and
// FGKERNELS_EMULATION_SHADOW = 0 | 1 (default 1); other values make launches throw std::invalid_argument.
void set_options(const Options& options);
void reset_options();

// What dev::limits() reports; default: 132 multiprocessors, 232448 bytes.
void set_limits(const dev::Limits& limits);

// An output buffer (Buffers::out) after its last launch.
struct Output {
  std::string name;
  const void* data;
  int64_t count;                   // elements
  std::vector<int64_t> unwritten;  // elements that no kernel has stored, ascending
};

// Outputs of the last dev::Buffers that was destroyed in this process, in the order of their registration. Elements
// count as written where the shadow was off.
std::vector<Output> last_outputs();

// Launches and blocks run by this process so far.
struct Counters {
  int64_t launches;
  int64_t blocks;
};
Counters counters();

}  // namespace fgk::emulation
