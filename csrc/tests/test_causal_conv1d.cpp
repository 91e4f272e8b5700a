// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of the causal convolution against its definition in double precision: vectors along positions and
// across channels, in every storage type, at every alignment, with sequences and states, one thread and several.
#include "causal_conv1d_cases.h"
#include "kernels/cpu/causal_conv1d.h"
#include "threads.h"

namespace causal_conv1d_cases {
namespace {

void run_forward(const CausalConvForward& args) { causal_conv1d_forward(args, check::threads()); }
void run_backward(const CausalConvBackward& args) { causal_conv1d_backward(args, check::threads()); }
void run_update(const CausalConvUpdate& args) { causal_conv1d_update(args, check::threads()); }

// Shorter and longer than a vector, a chunk (1024 and 16) and a piece (4096); blocks of channels that are full or not.
const Shape kShapes[] = {{2, 3, 1, 4},
                         {3, 5, 2, 3},
                         {2, 2, 16, 4},
                         {1, 3, 37, 4, false, 1, 0},
                         {2, 2, 300, 3, false, 3, 5},
                         {1, 2, 1040, 2},
                         {1, 3, 2051, 4, false, 1, 2},
                         {1, 2, 4099, 4},
                         {2, 3, 9, 3, true},
                         {1, 16, 41, 4, true},
                         {2, 48, 33, 2, true, 0, 8},
                         {1, 19, 64, 4, true, 1, 2},
                         {1, 300, 18, 4, true},
                         {1, 2, 4101, 3, true}};

const Options kOptions[] = {{}, {false, false, false, false}, {true, true, true, true}, {false, true, true, false}};

TEST(forward) {
  std::mt19937 random(1);
  for (DType dtype : kFloatTypes) {
    for (const Shape& s : kShapes) {
      for (const Options& o : kOptions) check_forward(random, dtype, s, o);
    }
  }
}

TEST(backward) {
  std::mt19937 random(2);
  for (DType dtype : kFloatTypes) {
    for (const Shape& s : kShapes) {
      for (const Options& o : kOptions) check_backward(random, dtype, s, o);
    }
  }
}

TEST(update) {
  std::mt19937 random(3);
  for (DType dtype : kFloatTypes) {
    for (int width : {2, 3, 4}) {
      for (bool ring : {false, true}) {
        for (int64_t steps : {1, 3, 9}) {
          const int64_t least = width - 1;
          check_update(random, dtype, {2, 5, steps, width}, {least, true, true, ring, false});
          check_update(random, dtype, {3, 33, steps, width, true, 1, 1}, {least + 3, false, false, ring, true});
        }
      }
    }
  }
}

TEST(empty) {
  std::mt19937 random(4);
  for (bool channel_last : {false, true}) {
    for (const Shape& s :
         {Shape{0, 3, 5, 4, channel_last}, Shape{2, 0, 5, 4, channel_last}, Shape{2, 3, 0, 4, channel_last}}) {
      check_forward(random, DType::f32, s, {true, true, true, true});
      check_backward(random, DType::f32, s, {true, true, true, true});
    }
  }
}

TEST(threads) {
  std::mt19937 random(5);
  check::thread_count() = 2;
  for (bool channel_last : {false, true}) {
    const Shape s = {3, 40, 333, 4, channel_last};
    check_forward(random, DType::f32, s, {});
    check_backward(random, DType::f32, s, {true, true, true, true});
    check_update(random, DType::f32, {40, 80, 9, 4}, {5, true, true, true, true});
  }
  check::thread_count() = 1;
}

// Sums over the batch and positions have one order, whoever does the work.
TEST(threads_change_no_bit) {
  for (const Shape& s : {Shape{3, 50, 400, 4}, Shape{3, 50, 400, 4, true}, Shape{2, 3, 9000, 3}}) {
    std::vector<std::vector<uint8_t>> results;
    for (int count : {1, 2, 3}) {
      check::thread_count() = count;
      std::mt19937 random(6);
      Problem p(random, DType::f32, s, {});
      Sequence grad(DType::f32, s, s.length), dx(DType::f32, s, s.length);
      grad.fill(s, s.length, normal(random));
      Array dweight(DType::f32, s.channels * s.width), dbias(DType::f32, s.channels);
      CausalConvBackward args;
      args.forward = p.args;
      args.grad_out = grad.sealed();
      args.dx = dx.sealed();
      args.dweight = dweight.data();
      args.dbias = dbias.data();
      run_backward(args);
      results.push_back(dweight.bytes());
      results.back().insert(results.back().end(), dbias.bytes().begin(), dbias.bytes().end());
      CHECK(results.back() == results.front());
    }
    check::thread_count() = 1;
  }
}

// Elements that are neither next to each other along positions nor across channels, or that share memory: the same
// results as from a dense copy.
TEST(any_strides) {
  std::mt19937 random(7);
  const Shape s = {2, 21, 50, 4};
  for (DType dtype : kFloatTypes) {
    for (int kind = 0; kind < 3; ++kind) {
      // Gaps everywhere; one row for all channels and one value for all of its positions.
      const int64_t position = kind == 0 ? 3 : kind == 1 ? 1 : 0;
      const int64_t channel = kind == 0 ? 3 * s.length + 1 : 0;
      const int64_t batch = kind == 0 ? s.channels * channel : kind == 1 ? s.length : 1;
      const auto at = [&](int64_t b, int64_t c, int64_t t) { return b * batch + c * channel + t * position; };
      Problem p(random, dtype, s, {true, true, true, true});
      Array x(dtype, at(s.batch - 1, s.channels - 1, s.length - 1) + 1);
      x.fill(normal(random));
      Sequence grad(dtype, s, s.length);
      for (int64_t b = 0; b < s.batch; ++b) {
        for (int64_t c = 0; c < s.channels; ++c) {
          for (int64_t t = 0; t < s.length; ++t) {
            p.x.array.set(p.x.at(b, c, t), x.get(at(b, c, t)));
            grad.array.set(grad.at(b, c, t), x.get(at(b, c, t)));
          }
        }
      }
      const ConvSequence strided = {x.data(), batch, channel, position, x.count()};
      Array dweight(accumulation(dtype), s.channels * s.width), dbias(accumulation(dtype), s.channels),
          dinitial(accumulation(dtype), s.batch * s.channels * (s.width - 1));
      std::vector<Array> results[2];
      for (const bool plain : {true, false}) {
        Sequence out(dtype, s, s.length), dx(dtype, s, s.length);
        CausalConvBackward args;
        args.forward = p.args;
        args.forward.x = plain ? p.x.sealed() : strided;
        args.grad_out = plain ? grad.sealed() : strided;
        args.dx = dx.sealed();
        args.dweight = dweight.data();
        args.dbias = dbias.data();
        args.dinitial_state = dinitial.data();
        run_backward(args);
        CausalConvForward forward = args.forward;
        forward.out = out.sealed();
        run_forward(forward);
        results[plain] = {out.array, dx.array, dweight, dbias, dinitial};
      }
      for (size_t i = 0; i < results[0].size(); ++i) {
        for (int64_t k = 0; k < results[0][i].count(); ++k) {
          const double expected = results[1][i].get(k);
          CHECK_NEAR(results[0][i].get(k), expected,
                     64 * unit_roundoff(accumulation(dtype)) * (50 + std::fabs(expected)) +
                         2 * unit_roundoff(dtype) * std::fabs(expected) * (i < 2));
        }
      }
    }
  }
}

// NaN reaches what reads it, and no other sequence or channel.
TEST(nan_stays_in_its_sequence) {
  std::mt19937 random(8);
  for (bool channel_last : {false, true}) {
    Problem p(random, DType::f32, {1, 20, 40, 4, channel_last}, {true, true, false, true});
    for (int64_t t = 0; t < 40; ++t) p.seq_idx[static_cast<size_t>(t)] = t < 21 ? 0 : 1;
    p.x.array.set(p.x.at(0, 2, 20), NAN);
    Sequence out(DType::f32, p.s, 40), grad(DType::f32, p.s, 40), dx(DType::f32, p.s, 40);
    grad.fill(p.s, 40, normal(random));
    p.args.out = out.sealed();
    run_forward(p.args);
    Array dweight(DType::f32, 80), dbias(DType::f32, 20);
    CausalConvBackward args;
    args.forward = p.args;
    args.grad_out = grad.sealed();
    args.dx = dx.sealed();
    args.dweight = dweight.data();
    args.dbias = dbias.data();
    run_backward(args);
    for (int64_t c = 0; c < 20; ++c) {
      for (int64_t t = 0; t < 40; ++t) {
        CHECK_EQ(std::isnan(out.get(0, c, t)), c == 2 && t == 20);
        CHECK_EQ(std::isnan(dx.get(0, c, t)), c == 2 && t >= 17 && t <= 20);
      }
      for (int64_t j = 0; j < 4; ++j) CHECK_EQ(std::isnan(dweight.get(4 * c + j)), c == 2);
    }
  }
}

}  // namespace
}  // namespace causal_conv1d_cases
