// SPDX-License-Identifier: Apache-2.0
// Work cut into tasks for the threads of a call. Included by planners only, never by *_isa.cpp files.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/parallel.h"

namespace fgk {

// As many as there are threads and tasks; one where `work` is less than `worth`, at which a second thread brings more
// than it costs.
inline int workers_for(const Parallel& parallel, int64_t tasks, int64_t work, int64_t worth) {
  if (work < worth) return 1;
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(parallel.threads, tasks)));
}

// Runs body(task, worker) for every task.
template <class Body>
void for_tasks(const Parallel& parallel, int workers, int64_t tasks, const Body& body) {
  TaskQueue queue(tasks);
  parallel.run(workers, [&](int worker) {
    for (int64_t task = queue.next(); task >= 0; task = queue.next()) body(task, worker);
  });
}

}  // namespace fgk
