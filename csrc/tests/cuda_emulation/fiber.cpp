// SPDX-License-Identifier: Apache-2.0
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define FGK_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FGK_ASAN 1
#endif
#endif
#if defined(FGK_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(FGK_FIBER_UCONTEXT)
// Saves the callee-saved registers on the stack, whose pointer goes to *save, and continues on stack `load`.
extern "C" void fgk_emulation_switch(void** save, void* load);
asm(R"(
  .text
  .p2align 4
  .globl fgk_emulation_switch
  .hidden fgk_emulation_switch
  .type fgk_emulation_switch, @function
fgk_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size fgk_emulation_switch, .-fgk_emulation_switch
)");
#endif

namespace fgk::emulation::core {
namespace {

#if defined(FGK_ASAN)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

size_t stride() { return kStackBytes + page_bytes(); }

#if defined(FGK_ASAN)
Fiber* left = nullptr;  // the fiber that was switched away from last
#endif

}  // namespace

void Stacks::reserve(int count) {
  if (count <= count_) return;
  if (memory_ != nullptr) munmap(memory_, stride() * static_cast<size_t>(count_));
  count_ = 0;
  void* memory = mmap(nullptr, stride() * static_cast<size_t>(count), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  memory_ = memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
  if (memory_ == nullptr) throw std::bad_alloc();
  for (int i = 0; i < count; ++i) mprotect(memory_ + stride() * static_cast<size_t>(i), page_bytes(), PROT_NONE);
  count_ = count;
  forget_frames();  // what was mapped here before may have been a stack
}

void Stacks::prepare(Fiber& fiber, int i, void (*entry)()) {
  char* low = memory_ + stride() * static_cast<size_t>(i) + page_bytes();
  // Stacks that all begin at the same place of a page would share a few cache sets.
  const size_t colour = static_cast<size_t>(i % 13) * 320;
  fiber.low = low;
  fiber.bytes = kStackBytes - colour;
  fiber.fake_stack = nullptr;
#if defined(FGK_ASAN)
  // The outermost frames of the thread that was here before have never returned.
  constexpr size_t kOutermost = 4096;
  __asan_unpoison_memory_region(low + fiber.bytes - kOutermost, kOutermost);
#endif
#if defined(FGK_FIBER_UCONTEXT)
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = low;
  fiber.context.uc_stack.ss_size = fiber.bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#else
  // As fgk_emulation_switch leaves a stack: six registers and where to go on; above, a return address for entry.
  void** top = reinterpret_cast<void**>(low + fiber.bytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int r = 0; r < 6; ++r) *--top = nullptr;
  fiber.stack_pointer = top;
#endif
}

void Stacks::forget_frames() {
#if defined(FGK_ASAN)
  if (memory_ != nullptr) __asan_unpoison_memory_region(memory_, stride() * static_cast<size_t>(count_));
#endif
}

void switch_fiber(Fiber& from, Fiber& to, bool for_good) {
#if defined(FGK_ASAN)
  left = &from;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.low, to.bytes);
#else
  static_cast<void>(for_good);
#endif
#if defined(FGK_FIBER_UCONTEXT)
  swapcontext(&from.context, &to.context);
#else
  fgk_emulation_switch(&from.stack_pointer, to.stack_pointer);
#endif
#if defined(FGK_ASAN)
  __sanitizer_finish_switch_fiber(from.fake_stack, &left->low, &left->bytes);
#endif
}

void fiber_entered() {
#if defined(FGK_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &left->low, &left->bytes);
#endif
}

}  // namespace fgk::emulation::core
