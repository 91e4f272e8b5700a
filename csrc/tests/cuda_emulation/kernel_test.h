// SPDX-License-Identifier: Apache-2.0
// What the tests of all CUDA kernels share: scratch memory, orders to run in, and that every element was written.
#pragma once

#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "emulation.h"
#include "kernels/cuda/context.h"

namespace kernel_test {

// Scratch memory of one call.
class Scratch {
 public:
  fgk::cuda::Context context() {
    fgk::cuda::Context context;
    context.owner = this;
    context.scratch = [](void* owner, int64_t bytes) -> void* {
      auto& all = static_cast<Scratch*>(owner)->pieces_;
      all.push_back(std::make_unique<std::vector<uint64_t>>(static_cast<size_t>(bytes + 15) / 8 + 1));
      void* start = all.back()->data();
      return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(start) + 15) / 16 * 16);
    };
    return context;
  }
  bool holds(const void* data) const {
    for (const auto& piece : pieces_) {
      if (data >= piece->data() && data < piece->data() + piece->size()) return true;
    }
    return false;
  }

 private:
  std::vector<std::unique_ptr<std::vector<uint64_t>>> pieces_;
};

// After a call: no kernel left out an element of a result.
inline void check_all_written(const Scratch& scratch) {
  for (const fgk::emulation::Output& output : fgk::emulation::last_outputs()) {
    if (scratch.holds(output.data) || output.unwritten.empty()) continue;
    check::fail(__FILE__, __LINE__) << output.name << ": element " << output.unwritten[0] << " of " << output.count
                                    << " was never written\n";
  }
}

// Runs a body in each order of blocks and threads.
template <class Body>
void in_every_order(const Body& body) {
  using fgk::emulation::Order;
  for (const Order order : {Order::fifo, Order::lifo, Order::random}) {
    fgk::emulation::set_options({order, 7, true});
    std::mt19937 random(static_cast<unsigned>(order) + 1);
    body(random);
  }
  fgk::emulation::reset_options();
}

}  // namespace kernel_test
