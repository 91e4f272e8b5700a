// SPDX-License-Identifier: Apache-2.0
// Scratch memory of a call's workers. Included by planners only, never by *_isa.cpp files.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace fgk {

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Scratch memory of all workers, cut into 64-byte aligned pieces.
class Arena {
 public:
  Arena(int64_t bytes_per_worker, int workers) : stride_(round_up(std::max<int64_t>(bytes_per_worker, 64), 64)) {
    const size_t bytes = static_cast<size_t>(stride_) * static_cast<size_t>(workers);
    memory_.reset(static_cast<char*>(std::aligned_alloc(64, bytes)));
    if (memory_ == nullptr) throw std::bad_alloc();
#if defined(FGK_POISON_WORKSPACE)
    std::memset(memory_.get(), 0xFF, bytes);  // NaN in every floating type, -1 in every index
#endif
  }
  char* worker(int index) const { return memory_.get() + stride_ * index; }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  int64_t stride_;
  std::unique_ptr<char, Free> memory_;
};

// Lays out fields one after another: first with a null base to count bytes, then on real memory.
class Layout {
 public:
  explicit Layout(char* base) : base_(base) {}
  char* take(int64_t bytes) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += round_up(bytes, 64);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace fgk
