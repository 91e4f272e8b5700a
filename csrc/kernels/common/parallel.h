// SPDX-License-Identifier: Apache-2.0
// How a kernel asks its host for threads: the host (torch, a C++ test, a C program) supplies `launch`.
#pragma once

#include <cstdint>

namespace fgk {

struct Parallel {
  int threads = 1;
  // Calls body(context, worker) once for each worker in [0, workers), possibly at the same time.
  void (*launch)(int workers, void (*body)(void* context, int worker), void* context) = nullptr;

  template <class Body>
  void run(int workers, const Body& body) const {
    if (workers <= 1 || launch == nullptr) {
      for (int worker = 0; worker < workers; ++worker) body(worker);
      return;
    }
    launch(
        workers, [](void* context, int worker) { (*static_cast<const Body*>(context))(worker); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

// Hands out [0, count) one by one; the order of work never changes a result, only who does it.
class TaskQueue {
 public:
  explicit TaskQueue(int64_t count) : count_(count) {}
  int64_t next() {
    const int64_t task = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
    return task < count_ ? task : -1;
  }

 private:
  int64_t next_ = 0;
  int64_t count_;
};

}  // namespace fgk
