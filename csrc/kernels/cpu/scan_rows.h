// SPDX-License-Identifier: Apache-2.0
// What the planners of all recurrences share: B and C as rows of states, partial sums over channels.
#pragma once

#include <memory>

#include "selective_scan_plan.h"
#include "tasks.h"
#include "workspace.h"

namespace fgk {

const SelectiveScanTable& selective_scan_table();

// Below this many state updates a second thread costs more than it brings.
constexpr int64_t kParallelScanWork = int64_t(1) << 14;

inline int scan_workers(const Parallel& parallel, int64_t tasks, int64_t work) {
  return workers_for(parallel, tasks, work, kParallelScanWork);
}

// Into how many parts the `units` of a group (blocks of channels, heads) are split, each with sums of dB and dC of its
// own. A function of the shapes alone, so that the thread count changes no result: as many as keep 32 threads busy,
// within memory of the size of the inputs, and none without units.
inline int64_t scan_splits(int64_t groups_of_batch, int64_t units, int64_t channels, int64_t states_of_groups) {
  const int64_t wanted = 32 / std::max<int64_t>(1, groups_of_batch);
  const int64_t most = std::max<int64_t>(2, channels / std::max<int64_t>(1, states_of_groups));
  const int64_t splits = std::max<int64_t>(1, std::min({wanted, most, units}));
  const int64_t per_split = (units + splits - 1) / splits;
  return (units + per_split - 1) / per_split;
}

// Uninitialised numbers with room for a vector past the end.
template <class T>
class ScanMemory {
 public:
  explicit ScanMemory(int64_t count) : arena_((count + 16) * static_cast<int64_t>(sizeof(T)), 1) {}
  T* data() const { return reinterpret_cast<T*>(arena_.worker(0)); }

 private:
  Arena arena_;
};

// B, C, dB or dC of all (batch, direction, group), `length` rows of `states` each.
template <class T>
struct RowsOf {
  static constexpr bool kDouble = sizeof(T) == 8;
  static constexpr DType kType = kDouble ? DType::f64 : DType::f32;

  DType dtype;
  int64_t batch;
  int64_t directions;
  int64_t groups;
  int64_t length;
  int64_t states;
  const Parallel& parallel;

  int64_t count() const { return batch * directions * groups; }
  int64_t size() const { return length * states; }

  // The rows of states as they are, if they are such in the type that is computed in; else without data.
  ProjectionRows in_place(const ScanProjection& projection) const {
    if (projection.constant || dtype != kType || (projection.state != 1 && states != 1)) return {};
    return {projection.data, projection.batch, projection.direction, projection.group, projection.position};
  }

  // In place, else in `memory`.
  ProjectionRows lay_out(const ScanProjection& projection, std::unique_ptr<ScanMemory<T>>& memory) const {
    const ProjectionRows rows_in_place = in_place(projection);
    if (projection.constant || rows_in_place.data != nullptr) return rows_in_place;
    memory = std::make_unique<ScanMemory<T>>(count() * size());
    for_each(
        [&](int64_t index, int64_t element) {
          const SelectiveScanTable& table = selective_scan_table();
          T* rows = memory->data() + index * size();
          if constexpr (kDouble) {
            table.read_rows_f64(rows, projection, dtype, element, length, states);
          } else {
            table.read_rows_f32(rows, projection, dtype, element, length, states);
          }
        },
        projection);
    return {memory->data(), directions * groups * size(), groups * size(), size(), states};
  }

  // Adds the splits' sums in their order and writes them to dB or dC.
  void write_parts(const ScanProjection& target, T* parts, int64_t splits) const {
    for_each(
        [&](int64_t index, int64_t element) {
          const SelectiveScanTable& table = selective_scan_table();
          T* sum = parts + index * size();
          for (int64_t s = 1; s < splits; ++s) {
            const T* part = parts + (s * count() + index) * size();
            for (int64_t i = 0; i < size(); ++i) sum[i] += part[i];
          }
          if constexpr (kDouble) {
            table.write_rows_f64(target, dtype, element, length, states, sum);
          } else {
            table.write_rows_f32(target, dtype, element, length, states, sum);
          }
        },
        target);
  }

 private:
  // body(index, its first element in the projection).
  template <class Body>
  void for_each(const Body& body, const ScanProjection& projection) const {
    const int workers = scan_workers(parallel, count(), count() * size());
    for_tasks(parallel, workers, count(), [&](int64_t index, int) {
      const int64_t g = index % groups, k = index / groups % directions, b = index / (groups * directions);
      body(index, b * projection.batch + k * projection.direction + g * projection.group);
    });
  }
};

}  // namespace fgk
