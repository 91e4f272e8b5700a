// SPDX-License-Identifier: Apache-2.0
// Threads that a test program lends to CPU kernels.
#pragma once

#include <thread>
#include <vector>

#include "kernels/common/parallel.h"

namespace check {

inline int& thread_count() {
  static int count = 1;
  return count;
}

inline void launch_threads(int workers, void (*body)(void*, int), void* context) {
  std::vector<std::thread> threads;
  for (int worker = 1; worker < workers; ++worker) threads.emplace_back(body, context, worker);
  body(context, 0);
  for (std::thread& thread : threads) thread.join();
}

inline fgk::Parallel threads() {
  fgk::Parallel parallel;
  parallel.threads = thread_count();
  parallel.launch = launch_threads;
  return parallel;
}

}  // namespace check
