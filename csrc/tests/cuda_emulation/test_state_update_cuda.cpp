// SPDX-License-Identifier: Apache-2.0
// The CUDA kernel of a decoding step, executed by the emulator in three orders, against its definition.
#include "kernel_test.h"
#include "kernels/cuda/selective_scan.h"
#include "state_update_cases.h"

namespace state_update_cases {
namespace {

using kernel_test::in_every_order;
using kernel_test::Scratch;

}  // namespace

void run_update(const StateUpdate& args) {
  Scratch scratch;
  cuda::state_update(args, scratch.context());
  kernel_test::check_all_written(scratch);
}

TEST(types_and_states) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : arrays::kFloatTypes) {
      for (DType state_dtype : arrays::kFloatTypes) {
        for (int64_t states : {1, 2, 7, 16, 70, 300}) {
          Shape s;
          s.dtype = dtype;
          s.state_dtype = state_dtype;
          s.states = states;
          check_step(random, s);
        }
      }
    }
  });
}

TEST(options) {
  in_every_order([](std::mt19937& random) {
    for (int option = 0; option < 12; ++option) {
      Shape s;
      s.dtype = arrays::kFloatTypes[option % 4];
      s.state_dtype = option % 2 == 0 ? s.dtype : DType::f32;
      s.heads = option % 3 == 0 ? 1 : 4;
      s.channels = option % 3 == 0 ? 6 : 3;
      s.groups = option % 2 == 0 ? 2 : 1;
      s.states = option % 5 == 0 ? 5 : 32;
      s.d = option != 1;
      s.z = option != 2;
      s.bias = option != 3;
      s.softplus = option != 4;
      s.entries = option % 4 == 1;
      s.per_head = option % 3 == 1;
      s.layout = option % 4 == 0 ? Layout::swapped : option % 4 == 2 ? Layout::padded : Layout::dense;
      check_step(random, s);
    }
  });
}

// Rows that start at multiples of 16 bytes and end anywhere.
TEST(ends_of_rows) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : arrays::kFloatTypes) {
      for (int64_t states : {5, 13}) {
        Shape s;
        s.dtype = s.state_dtype = dtype;
        s.states = states;
        s.layout = Layout::spaced;
        check_step(random, s);
      }
    }
  });
}

// More rows than a block has lanes for, and a batch of none.
TEST(sizes) {
  in_every_order([](std::mt19937& random) {
    Shape s;
    s.batch = 2;
    s.channels = 133;
    check_step(random, s);
    s.batch = 0;
    Step nothing(random, s);
    Array out(s.dtype, {0, 1, 133});
    Scratch scratch;
    const int64_t launches = emulation::counters().launches;
    cuda::state_update(nothing.args(out), scratch.context());
    CHECK_EQ(emulation::counters().launches, launches);
  });
}

// Entries outside of the states: NaN, and every state stays as it is.
TEST(hostile_entries) {
  in_every_order([](std::mt19937& random) {
    Shape s;
    s.entries = true;
    Step p(random, s);
    const std::vector<double> before = p.state.value;
    p.entry = {-1, static_cast<int32_t>(p.state.size[0]), std::numeric_limits<int32_t>::min()};
    Array out(s.dtype, {s.batch, s.heads, s.channels});
    run_update(p.args(out));
    out.load();
    p.state.load();
    for (double v : out.value) CHECK(std::isnan(v));
    CHECK(p.state.value == before);
  });
}

}  // namespace state_update_cases
