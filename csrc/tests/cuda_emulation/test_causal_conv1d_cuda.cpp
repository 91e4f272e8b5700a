// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of the causal convolution, executed by the emulator in three orders, against the definition in
// double precision: both layouts, rows that start anywhere, vectors that end anywhere, several runs and pieces.
#include "../causal_conv1d_cases.h"
#include "kernel_test.h"
#include "kernels/cuda/causal_conv1d.h"

namespace causal_conv1d_cases {
namespace {

using kernel_test::check_all_written;
using kernel_test::in_every_order;
using kernel_test::Scratch;

void run_forward(const CausalConvForward& args) {
  Scratch scratch;
  cuda::causal_conv1d_forward(args, scratch.context());
  // Gaps between rows belong to nobody.
  if (args.out.span == args.batch * args.channels * args.length && args.out.span > 0) check_all_written(scratch);
}

void run_backward(const CausalConvBackward& args) {
  Scratch scratch;
  cuda::causal_conv1d_backward(args, scratch.context());
  const CausalConvForward& f = args.forward;
  if (args.dx.span == f.batch * f.channels * f.length && args.dx.span > 0) check_all_written(scratch);
}

void run_update(const CausalConvUpdate& args) {
  Scratch scratch;
  cuda::causal_conv1d_update(args, scratch.context());
}

// Rows of every phase, shorter and longer than a vector or a warp's share; channel vectors that are full or not.
const Shape kShapes[] = {{2, 3, 1, 4},
                         {1, 5, 37, 4},
                         {2, 2, 300, 3},
                         {2, 3, 21, 2, false, 1, 0},
                         {1, 3, 70, 4, false, 3, 5},
                         {2, 2, 64, 4, false, 0, 8},
                         {1, 2, 40, 4, false, 0, 0, 1},
                         {1, 8, 19, 3, true, 0, 0, 1},
                         {2, 3, 9, 3, true},
                         {1, 16, 41, 4, true},
                         {2, 8, 70, 2, true, 0, 8},
                         {1, 19, 25, 4, true, 1, 2}};

const Options kOptions[] = {{}, {false, false, false, false}, {true, true, true, true}, {false, true, true, false}};

TEST(forward) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      for (const Shape& s : kShapes) {
        for (const Options& o : kOptions) check_forward(random, dtype, s, o);
      }
    }
  });
}

TEST(backward) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      for (const Shape& s : kShapes) {
        for (const Options& o : kOptions) check_backward(random, dtype, s, o);
      }
    }
  });
}

// On a small GPU a thread's run is long, and a warp takes several steps.
TEST(long_runs) {
  in_every_order([](std::mt19937& random) {
    emulation::set_limits({1, 232448});
    for (DType dtype : {DType::bf16, DType::f64}) {
      const int64_t length = dtype == DType::bf16 ? 700 : 330;
      for (bool channel_last : {false, true}) {
        check_forward(random, dtype, {1, 65, length, 4, channel_last}, {});
        check_backward(random, dtype, {1, 65, length, 4, channel_last}, {true, true, true, true});
      }
    }
    emulation::set_limits({132, 232448});
  });
}

TEST(update) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      for (int width : {2, 3, 4}) {
        for (bool ring : {false, true}) {
          for (int64_t steps : {1, 3, 9}) {
            const int64_t least = width - 1;
            check_update(random, dtype, {2, 5, steps, width}, {least, true, true, ring, false});
            check_update(random, dtype, {3, 4, steps, width, true, 1, 1}, {least + 3, false, false, ring, true});
          }
        }
      }
    }
  });
}

// Rows of the state that do not exist: zeros come out, and nothing is written.
TEST(update_of_missing_rows) {
  std::mt19937 random(5);
  for (const int32_t missing : {-1, 2, INT32_MAX, INT32_MIN}) {
    Problem p(random, DType::f32, {2, 3, 2, 4}, {true, true, false, false});
    Sequence state(DType::f32, {2, 3, 3, 4}, 3), out(DType::f32, p.s, 2);
    state.fill(p.s, 3, normal(random));
    const std::vector<uint8_t> before = state.array.bytes();
    const int32_t entry[] = {missing, missing};
    CausalConvUpdate args;
    args.batch = 2;
    args.channels = 3;
    args.steps = 2;
    args.width = 4;
    args.silu = true;
    args.x = p.args.x;
    args.state = state.sealed();
    args.entries = 2;
    args.state_length = 3;
    args.entry = entry;
    args.weight = p.args.weight;
    args.bias = p.args.bias;
    args.out = out.sealed();
    run_update(args);
    for (int64_t i = 0; i < out.array.count(); ++i) CHECK_EQ(out.array.get(i), 0.0);
    CHECK(state.array.bytes() == before);
  }
}

TEST(empty) {
  std::mt19937 random(3);
  for (bool channel_last : {false, true}) {
    for (const Shape& s :
         {Shape{0, 3, 5, 4, channel_last}, Shape{2, 0, 5, 4, channel_last}, Shape{2, 3, 0, 4, channel_last}}) {
      check_forward(random, DType::f32, s, {true, true, true, true});
      check_backward(random, DType::f32, s, {true, true, true, true});
    }
  }
}

// Sums over the batch and positions have one order, whatever the order of the blocks.
TEST(same_bits_in_every_order) {
  for (bool channel_last : {false, true}) {
    std::vector<std::vector<float>> results;
    in_every_order([&](std::mt19937&) {
      std::mt19937 random(9);
      Problem p(random, DType::f32, {3, 5, 400, 4, channel_last}, {});
      Sequence grad(DType::f32, p.s, p.s.length), dx(DType::f32, p.s, p.s.length);
      grad.fill(p.s, p.s.length, normal(random));
      std::vector<float> sums(5 * 4 + 5);
      CausalConvBackward args;
      args.forward = p.args;
      args.grad_out = grad.sealed();
      args.dx = dx.sealed();
      args.dweight = sums.data();
      args.dbias = sums.data() + 20;
      run_backward(args);
      results.push_back(sums);
    });
    for (const std::vector<float>& r : results) CHECK(r == results[0]);
  }
}

}  // namespace
}  // namespace causal_conv1d_cases
