// SPDX-License-Identifier: Apache-2.0
// The CPU kernel of a decoding step against its definition, without torch.
#include "kernels/cpu/selective_scan.h"

#include "state_update_cases.h"
#include "threads.h"

namespace state_update_cases {

void run_update(const StateUpdate& args) { state_update(args, check::threads()); }

namespace {

constexpr DType kTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16};

TEST(types_states_and_channels) {
  std::mt19937 random(1);
  for (DType dtype : kTypes) {
    for (DType state_dtype : kTypes) {
      for (int64_t states : {1, 2, 7, 16, 64, 70, 300}) {
        Shape s;
        s.dtype = dtype;
        s.state_dtype = state_dtype;
        s.states = states;
        s.channels = states % 2 == 0 ? 5 : 67;
        check_step(random, s);
      }
    }
  }
}

TEST(options) {
  std::mt19937 random(2);
  for (int threads : {1, 3}) {
    check::thread_count() = threads;
    for (int options = 0; options < 128; ++options) {
      Shape s;
      s.dtype = kTypes[options % 4];
      s.state_dtype = options % 3 == 0 ? DType::f32 : s.dtype;
      s.heads = options & 1 ? 4 : 1;
      s.channels = options & 1 ? 34 : 130;
      s.groups = options & 2 ? 2 : 1;
      s.states = options & 4 ? 32 : 5;
      s.d = options & 8;
      s.z = options & 16;
      s.bias = options & 32;
      s.softplus = options & 64;
      s.entries = options % 5 == 1;
      s.per_head = options % 7 == 1;
      s.layout = options % 3 == 0 ? Layout::swapped : options % 3 == 1 ? Layout::padded : Layout::dense;
      check_step(random, s);
    }
  }
  check::thread_count() = 1;
}

}  // namespace
}  // namespace state_update_cases
