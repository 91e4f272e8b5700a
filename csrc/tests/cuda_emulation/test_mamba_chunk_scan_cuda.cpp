// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of the Mamba-2 scan, executed by the emulator in three orders, against the recurrence in double
// precision: one chunk and several, tiles that end anywhere, several tiles of channels and of states, shares of heads.
#include "../mamba_chunk_scan_cases.h"
#include "kernel_test.h"
#include "kernels/cuda/mamba_chunk_scan.h"

namespace mamba_chunk_scan_cases {
namespace {

using kernel_test::check_all_written;
using kernel_test::in_every_order;
using kernel_test::Scratch;

void run_forward(const ChunkScanForward& args) {
  Scratch scratch;
  cuda::chunk_scan_forward(args, scratch.context());
  check_all_written(scratch);
}

void run_backward(const ChunkScanBackward& args) {
  Scratch scratch;
  cuda::chunk_scan_backward(args, scratch.context());
  check_all_written(scratch);
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// (batch, length, heads, channels, groups, states, lead, sliced)
const Shape kShapes[] = {{1, 1, 1, 1, 1, 1, 0, false},     // the smallest
                         {2, 37, 2, 5, 1, 7, 0, false},    // less than a tile
                         {1, 100, 2, 8, 2, 4, 1, true},    // two tiles of one chunk
                         {2, 128, 1, 16, 1, 8, 0, false},  // exactly one chunk; vectors of everything
                         {1, 300, 3, 4, 1, 5, 3, true},    // three chunks, the last one of one tile
                         {1, 20, 2, 70, 1, 3, 0, false},   // two tiles of channels
                         {1, 70, 2, 4, 2, 67, 0, false}};  // two tiles of states

// D, z, dt_bias, initial_states, seq_idx, dt_softplus, dt_min, dt_max, decay
const Options kOptions[] = {{D::head, true, true, true, true, true, 0, kInfinity, 1},
                            {D::none, false, false, false, false, true, 0, kInfinity, 0.1},
                            {D::channel, false, true, true, false, true, 0.1, 0.4, 1}};

// What products of 16 bits on tensor cores leave out.
double factors(DType dtype) { return dtype == DType::bf16 || dtype == DType::f16 ? 0x1p-15 : 0; }

// Each shape with each option once, in one type after the other: over four shapes, each option meets each type.
template <class Body>
void each_case(const Body& body) {
  size_t turn = 0;
  for (const Shape& s : kShapes) {
    for (const Options& o : kOptions) body(kFloatTypes[turn++ % 4], s, o);
  }
}

TEST(forward) {
  in_every_order([](std::mt19937& random) {
    each_case([&](DType dtype, const Shape& s, const Options& o) {
      check_forward(random, dtype, s, o, factors(dtype), o.z);
    });
  });
}

TEST(backward) {
  in_every_order([](std::mt19937& random) {
    each_case([&](DType dtype, const Shape& s, const Options& o) {
      check_backward(random, dtype, s, o, o.z, factors(dtype));
    });
  });
}

// Several heads per block, or one: the shares are added up.
TEST(shares_of_heads) {
  in_every_order([](std::mt19937& random) {
    for (const int multiprocessors : {1, 2, 132}) {
      emulation::set_limits({multiprocessors, 232448});
      check_backward(random, DType::f32, {1, 12, 10, 3, 2, 4}, {});
    }
  });
  emulation::set_limits({132, 232448});
}

// dt A down to -80 a step beside steps that hardly decay: finite, and as exact as ever.
TEST(decays_of_all_sizes) {
  in_every_order([](std::mt19937& random) {
    for (const double decay : {80.0, 1e-6, 0.0}) {
      Options o;
      o.decay = decay;
      o.initial_states = true;
      o.dt_scale = 3;
      check_forward(random, DType::f32, {1, 150, 1, 3, 1, 4}, o);
      check_backward(random, DType::f32, {1, 150, 1, 3, 1, 4}, o);
    }
  });
}

TEST(empty) {
  std::mt19937 random(3);
  Options o;
  o.initial_states = true;
  for (const Shape& s : {Shape{0, 5, 2, 3, 1, 4}, Shape{2, 0, 2, 3, 1, 4}, Shape{2, 5, 2, 3, 1, 0}}) {
    check_forward(random, DType::f32, s, o);
    check_backward(random, DType::f32, s, o);
  }
}

// Sums over the batch, positions and heads have one order, whatever the order of the blocks.
TEST(same_bits_in_every_order) {
  std::vector<std::vector<float>> results;
  in_every_order([&](std::mt19937&) {
    std::mt19937 random(9);
    Problem p(random, DType::f32, {2, 140, 4, 3, 1, 5}, {});
    Block grad_out(DType::f32, p.s, 4, 3), dx(DType::f32, p.s, 4, 3, true), dz = dx;
    Block ddt(DType::f32, p.s, 4, 1, true), dB(DType::f32, p.s, 1, 5, true), dC = dB;
    grad_out.fill(normal(random));
    Array checkpoints(DType::f32, 2 * 2 * 4 * 3 * 5);
    checkpoints.fill(normal(random));
    std::vector<float> sums(12);
    ChunkScanBackward args;
    args.forward = p.args;
    args.grad_out = grad_out.sequence();
    args.checkpoints = checkpoints.data();
    args.dx = dx.sequence();
    args.ddt = ddt.sequence();
    args.dz = dz.sequence();
    args.dA = sums.data();
    args.dD = sums.data() + 4;
    args.ddt_bias = sums.data() + 8;
    args.dB = dB.projection();
    args.dC = dC.projection();
    run_backward(args);
    for (const Block* block : {&dB, &dC}) {
      for (int64_t k = 0; k < block->array.count(); ++k) sums.push_back(static_cast<float>(block->array.get(k)));
    }
    results.push_back(sums);
  });
  for (const std::vector<float>& r : results) CHECK(r == results[0]);
}

// The gradients of these tests are those of their own forward: central differences, in double precision.
TEST(gradients_of_the_definition) {
  std::mt19937 random(17);
  for (const Options& o : kOptions) {
    const Shape s{1, 9, 2, 2, 1, 3};
    Problem p(random, DType::f64, s, o);
    Block grad_out(DType::f64, s, s.heads, s.channels);
    grad_out.fill(normal(random));
    Array grad_final(DType::f64, s.heads * s.channels * s.states);
    grad_final.fill(normal(random));
    const auto loss = [&] {
      const Evaluation e(p, nullptr, nullptr, false);
      double sum = 0;
      e.out.each(
          [&](int64_t b, int64_t t, int64_t i, int64_t c) { sum += e.out.get(b, t, i, c) * grad_out.get(b, t, i, c); });
      for (int64_t k = 0; k < grad_final.count(); ++k)
        sum += e.final_states[static_cast<size_t>(k)] * grad_final.get(k);
      return sum;
    };
    const auto slope = [&](Array& array, int64_t at) {
      constexpr double kStep = 1e-6;
      const double x = array.get(at);
      array.set(at, x + kStep);
      const double above = loss();
      array.set(at, x - kStep);
      const double below = loss();
      array.set(at, x);
      return (above - below) / (2 * kStep);
    };
    const Evaluation e(p, &grad_out, &grad_final, false);
    const auto check_block = [&](Block& block, const Block& gradient) {
      gradient.each([&](int64_t b, int64_t t, int64_t i, int64_t c) {
        CHECK_NEAR(gradient.get(b, t, i, c), slope(block.array, block.at(b, t, i, c)), 1e-7);
      });
    };
    const auto check_array = [&](Array& array, const std::vector<double>& gradient) {
      for (int64_t k = 0; k < array.count(); ++k) CHECK_NEAR(gradient[static_cast<size_t>(k)], slope(array, k), 1e-7);
    };
    check_block(p.x, e.dx);
    check_block(p.dt, e.ddt);
    check_block(p.B, e.dB);
    check_block(p.C, e.dC);
    if (o.z) check_block(p.z, e.dz);
    check_array(p.A, e.dA);
    check_array(p.d, e.dd);
    check_array(p.dt_bias, e.ddt_bias);
    check_array(p.initial, e.dinitial);
  }
}

}  // namespace
}  // namespace mamba_chunk_scan_cases
