// SPDX-License-Identifier: Apache-2.0
// Stacks that one OS thread switches between.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(FGK_FIBER_UCONTEXT)
#define FGK_FIBER_UCONTEXT
#endif
#if defined(FGK_FIBER_UCONTEXT)
#include <ucontext.h>
#endif

namespace fgk::emulation::core {

struct Fiber {
#if defined(FGK_FIBER_UCONTEXT)
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  // The stack, as AddressSanitizer wants to hear of it.
  const void* low = nullptr;
  size_t bytes = 0;
  void* fake_stack = nullptr;
};

// Stacks in one mapping, each above a page that traps.
class Stacks {
 public:
  // Makes room for `count` stacks; none of the present ones may be in use. Throws std::bad_alloc.
  void reserve(int count);
  // Fiber `i` will run entry() when it is switched to for the first time. entry never returns.
  void prepare(Fiber& fiber, int i, void (*entry)());
  // Forgets what AddressSanitizer knows of frames that were left without returning.
  void forget_frames();

 private:
  char* memory_ = nullptr;
  int count_ = 0;
};

// Leaves the running fiber for another one; returns when somebody switches back. `for_good`: nobody will.
void switch_fiber(Fiber& from, Fiber& to, bool for_good);
// To be called first thing by a fiber's entry.
void fiber_entered();

}  // namespace fgk::emulation::core
