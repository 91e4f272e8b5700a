// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of late interaction, executed by the emulator in three orders, against the definition in double
// precision. The shapes are small but reach every path: blocks of one, four and eight slots, several samples per block
// and several blocks per sample, rows that stay in shared memory and rows that are streamed, two and three stages,
// tiles that end anywhere, aligned and unaligned tokens, packed schedules.
#include "../late_interaction_shared_tests.h"
#include "kernel_test.h"
#include "kernels/cuda/late_interaction.h"

namespace late_interaction_cases {
namespace {

using kernel_test::check_all_written;
using kernel_test::in_every_order;
using kernel_test::Scratch;

void run_forward(const LateInteractionForward& args) {
  Scratch scratch;
  cuda::late_interaction_forward(args, scratch.context());
  if (args.a.batch > 0 && args.b.batch > 0) check_all_written(scratch);
}

void run_backward(const LateInteractionBackward& args) {
  Scratch scratch;
  cuda::late_interaction_backward(args, scratch.context());
  if (args.owner.total_tokens > 0 && args.owner.dim > 0) check_all_written(scratch);
}

std::vector<int64_t> equal(int64_t samples, int64_t length) {
  return std::vector<int64_t>(static_cast<size_t>(samples), length);
}

struct Shape {
  int64_t a, n, b, m, dim;
};

}  // namespace

TEST(one_direction) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      for (const Shape& s : {Shape{1, 5, 3, 40, 19},     // one slot: the flat shape
                             Shape{3, 33, 2, 150, 64},   // two samples per block, two tiles
                             Shape{1, 140, 2, 20, 32},   // two blocks per sample
                             Shape{2, 7, 5, 1, 130}}) {  // several chunks
        const Tokens a = make_tokens(random, dtype, equal(s.a, s.n), s.dim, false, 0, 1);
        const Tokens b = make_tokens(random, dtype, equal(s.b, s.m), s.dim, false, 0, s.m % 4 == 0 ? -1 : 0);
        check_maxsim(a, b, true, false, 0, Indices::narrow);
        check_maxsim(a, b, false, false, 0, Indices::none);
      }
    }
  });
}

TEST(both_directions) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      for (const Shape& s : {Shape{5, 20, 2, 37, 24},      // one slot per sample
                             Shape{3, 70, 1, 50, 16},      // three slots
                             Shape{2, 150, 2, 190, 8},     // five or six slots: the tall shape
                             Shape{1, 300, 1, 40, 40},     // columns are the longer side
                             Shape{1, 260, 1, 270, 8}}) {  // neither fits: twice one direction
        const Tokens a = make_tokens(random, dtype, equal(s.a, s.n), s.dim, false);
        const Tokens b = make_tokens(random, dtype, equal(s.b, s.m), s.dim, false);
        check_both(a, b, true, false, s.n % 20 == 0 ? Indices::narrow : Indices::none);
      }
    }
  });
}

TEST(masks_and_padding_policies) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      for (int sign : {0, 1}) {  // 1: every similarity is negative
        Tokens a = make_tokens(random, dtype, equal(3, 37), 24, false, 0, sign);
        Tokens b = make_tokens(random, dtype, equal(3, 45), 24, false, 0, -sign);
        draw_mask(random, a);
        draw_mask(random, b);
        for (bool zero : {false, true}) {
          check_maxsim(a, b, true, zero);
          check_both(a, b, !zero, zero);
        }
      }
    }
  });
}

TEST(unaligned_tokens) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      for (int64_t dim : {1, 13, 65}) {
        const Tokens a = make_tokens(random, dtype, equal(2, 9), dim, false, 1);
        const Tokens b = make_tokens(random, dtype, equal(2, 11), dim, false, 3);
        check_maxsim(a, b, false, false);
        check_both(a, b, false, false);
      }
    }
  });
}

TEST(int8_documents) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      for (const int64_t dim : {8, 72, 80}) {
        for (const int64_t pitch : {0, 3}) {
          const Tokens q = make_tokens(random, dtype, equal(2, 6), dim, false);
          Tokens d = make_tokens(random, DType::i8, equal(3, 21), dim, false, pitch, dim == 8 ? 1 : 0);
          check_maxsim(q, d, false, false);
          draw_mask(random, d);
          check_maxsim(q, d, true, true);
          check_gradient(random, q, d, false, true, 0, true);
        }
      }
    }
  });
}

// The terms of a sum are value * scale: with an infinite scale they cancel to NaN, or are NaN where the value is 0.
TEST(int8_documents_with_infinite_scales) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      for (const int64_t pitch : {0, 3}) {
        const Tokens q = make_tokens(random, dtype, equal(1, 3), 16, false, 0, 1);
        Tokens d = make_tokens(random, DType::i8, equal(3, 2), 16, false, pitch, 1);
        for (size_t k = 0; k < 16; ++k) {
          d.bytes[k] = d.bytes[static_cast<size_t>(2 * d.batch.sample_stride) + k] = static_cast<uint8_t>(k + 1);
        }
        d.bytes[static_cast<size_t>(2 * d.batch.sample_stride)] = 0;
        d.scales = {std::numeric_limits<float>::infinity(), 1, 1, 1, std::numeric_limits<float>::infinity(), 1};
        d.seal();
        Result result;
        LateInteractionForward args;
        args.a = q.batch;
        args.b = d.batch;
        place(args.ab, result, dtype == DType::f64, 3, 9, Indices::wide);
        args.ab.score_y = 1;
        args.ab.index_y = 3;
        run_forward(args);
        CHECK(std::isinf(result.score(dtype == DType::f64, 0)));
        CHECK(std::isfinite(result.score(dtype == DType::f64, 1)));
        CHECK(std::isnan(result.score(dtype == DType::f64, 2)));
      }
    }
  });
}

TEST(paired) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : {DType::bf16, DType::f32}) {
      for (const int64_t n : {9, 40, 135}) {
        Tokens q = make_tokens(random, dtype, equal(3, n), 31, false);
        const Tokens d = make_tokens(random, dtype, equal(6, 14), 31, false);
        draw_mask(random, q);
        check_maxsim(q, d, true, false, 2);
      }
    }
  });
}

TEST(packed) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      const Tokens a = make_tokens(random, dtype, {3, 0, 140, 17, 33}, 20, true);
      const Tokens b = make_tokens(random, dtype, {0, 150, 1, 13, 64}, 20, true);
      check_maxsim(a, b, true, false);
      check_maxsim(a, b, true, false, 1);
      const Tokens few = make_tokens(random, dtype, {11}, 20, true);
      check_maxsim(few, b, false, false, 0, Indices::narrow);
      const Tokens d = make_tokens(random, DType::i8, {5, 60, 7, 1, 9}, 20, true);
      check_maxsim(a, d, false, false, 1);
      const Tokens nothing = make_tokens(random, dtype, {0, 0}, 20, true);
      check_maxsim(nothing, b, true, false);
      check_maxsim(a, nothing, true, false);
    }
  });
}

// More sequences than the one block of the planning kernels has threads.
TEST(many_packed_sequences) {
  in_every_order([](std::mt19937& random) {
    std::vector<int64_t> lengths(300);
    for (int64_t& length : lengths) length = static_cast<int64_t>(random() % 3);
    const Tokens many = make_tokens(random, DType::bf16, lengths, 4, true);
    const Tokens one = make_tokens(random, DType::bf16, {5}, 4, true);
    check_maxsim(many, one, true, false);
    check_maxsim(one, many, true, false);
    check_gradient(random, one, many, false, true, 0, false);
  });
}

// Devices with little shared memory stream the rows, or stage two chunks instead of three.
TEST(shared_memory_of_other_devices) {
  in_every_order([](std::mt19937& random) {
    for (const int64_t kilobytes : {99, 163}) {
      emulation::set_limits({4, kilobytes * 1024});
      for (DType dtype : {DType::bf16, DType::f32}) {
        const int64_t dim = dtype == DType::bf16 ? 330 : 170;
        const Tokens a = make_tokens(random, dtype, equal(2, 140), dim, false);
        const Tokens b = make_tokens(random, dtype, equal(2, 200), dim, false);
        check_both(a, b, true, false);
        const Tokens long_rows = make_tokens(random, dtype, equal(1, 5), 4 * dim, false);
        const Tokens long_stream = make_tokens(random, dtype, equal(2, 20), 4 * dim, false);
        check_maxsim(long_rows, long_stream, false, false);
      }
    }
    emulation::set_limits({132, 232448});
    const Tokens a = make_tokens(random, DType::f64, equal(1, 130), 700, false);
    const Tokens b = make_tokens(random, DType::f64, equal(1, 33), 700, false);
    check_maxsim(a, b, false, false);
  });
}

TEST(more_partners_than_one_block_takes) {
  in_every_order([](std::mt19937& random) {
    emulation::set_limits({1, 232448});
    const Tokens a = make_tokens(random, DType::bf16, equal(5, 40), 16, false);
    const Tokens b = make_tokens(random, DType::bf16, equal(23, 18), 16, false);
    check_both(a, b, true, false);
    check_maxsim(a, b, true, false);
    const Tokens p = make_tokens(random, DType::bf16, {1, 2, 0, 9, 30, 4, 4, 7, 17, 3, 40}, 16, true);
    check_maxsim(p, p, true, false);
    emulation::set_limits({132, 232448});
  });
}

TEST(gradients) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kFloatTypes) {
      for (const int64_t dim : {23, 64, 300}) {
        Tokens a = make_tokens(random, dtype, equal(5, 11), dim, false, dim == 64 ? 0 : 1);
        Tokens b = make_tokens(random, dtype, equal(3, 46), dim, false);
        const Tokens c = make_tokens(random, dtype, equal(10, 6), dim, false);
        draw_mask(random, a);
        if (dim == 64) draw_mask(random, b);
        for (bool for_a : {true, false}) {
          check_gradient(random, a, b, true, true, 0, for_a);
          check_gradient(random, a, b, false, false, 0, for_a);
          check_gradient(random, a, c, false, true, 2, for_a);
        }
      }
      const Tokens p = make_tokens(random, dtype, {3, 0, 40, 17}, 20, true);
      const Tokens q = make_tokens(random, dtype, {0, 50, 1, 13}, 20, true);
      for (bool for_a : {true, false}) {
        check_gradient(random, p, q, false, true, 0, for_a);
        check_gradient(random, p, q, false, false, 1, for_a);
      }
    }
  });
}

TEST(more_partners_than_lanes) {
  in_every_order([](std::mt19937& random) {
    const Tokens a = make_tokens(random, DType::f32, equal(2, 3), 12, false);
    const Tokens b = make_tokens(random, DType::f32, equal(70, 2), 12, false);
    for (bool for_a : {true, false}) check_gradient(random, a, b, true, true, 0, for_a);
  });
}

TEST(ties_and_nan) {
  in_every_order([](std::mt19937&) { ties_take_the_lowest_index_and_nan_the_first(); });
}

TEST(zeros) {
  in_every_order([](std::mt19937&) { zeros_tie_with_zero_padding(); });
}

TEST(empty) {
  in_every_order([](std::mt19937&) { empty_sides(); });
}

TEST(hostile_indices) {
  in_every_order([](std::mt19937&) { hostile_indices_are_ignored(); });
}

// Offsets on a device are checked there: illegal ones make every score and gradient NaN and name no winner.
TEST(illegal_offsets) {
  in_every_order([](std::mt19937& random) {
    const Tokens good = make_tokens(random, DType::bf16, {3, 40, 5}, 16, true);
    const std::vector<std::vector<int64_t>> wrong = {{1, 3, 43, 48},  {0, 3, 43, 47},  {0, 3, 43, 49},
                                                     {0, 44, 43, 48}, {0, -5, 43, 48}, {0, int64_t(1) << 60, 43, 48}};
    for (const std::vector<int64_t>& offsets : wrong) {
      for (bool queries : {true, false}) {
        for (int64_t paired : {0, 1}) {
          Tokens bad = good;
          bad.offsets = offsets;
          bad.seal();
          const Tokens whole = [&] {
            Tokens copy = good;
            copy.seal();
            return copy;
          }();
          const Tokens& a = queries ? bad : whole;
          const Tokens& b = queries ? whole : bad;
          const int64_t columns = paired ? 1 : 3;
          std::vector<float> scores(static_cast<size_t>(3 * columns), 0.0f);
          std::vector<int16_t> index(static_cast<size_t>(48 * columns), 5);
          LateInteractionForward args;
          args.a = a.batch;
          args.b = b.batch;
          args.paired = paired;
          args.ab.scores = scores.data();
          args.ab.score_count = static_cast<int64_t>(scores.size());
          args.ab.score_x = paired ? 0 : 3;
          args.ab.score_y = 1;
          args.ab.indices = index.data();
          args.ab.index_count = static_cast<int64_t>(index.size());
          args.ab.index_x = 1;
          args.ab.index_y = paired ? 0 : 48;
          run_forward(args);
          for (float s : scores) CHECK(std::isnan(s));
          for (int16_t i : index) CHECK_EQ(i, -1);

          std::vector<uint16_t> gradient(48 * 16, 0);
          std::fill(index.begin(), index.end(), int16_t(0));
          LateInteractionBackward back;
          back.owner = a.batch;
          back.other = b.batch;
          back.own = args.ab;
          back.paired = paired;
          std::fill(scores.begin(), scores.end(), 1.0f);
          back.gradient = gradient.data();
          run_backward(back);
          for (uint16_t bits : gradient) CHECK((bits & 0x7FFF) > 0x7F80);
        }
      }
    }
  });
}

// A document that scores -inf everywhere it may is still a document: its first valid token wins.
TEST(minus_infinity_wins_over_nothing) {
  in_every_order([](std::mt19937& random) {
    Tokens a = make_tokens(random, DType::f32, {3}, 4, false, 0, 1);
    Tokens b = make_tokens(random, DType::f32, {6}, 4, false, 0, 1);
    float* tokens = reinterpret_cast<float*>(b.bytes.data());
    for (int t = 0; t < 6; ++t) tokens[4 * t] = -std::numeric_limits<float>::infinity();
    b.mask = {0, 0, 1, 0, 1, 1};
    b.seal();
    float score = 0;
    std::vector<int16_t> index(3, 9);
    LateInteractionForward args;
    args.a = a.batch;
    args.b = b.batch;
    args.ab.scores = &score;
    args.ab.score_count = 1;
    args.ab.indices = index.data();
    args.ab.index_count = 3;
    args.ab.index_x = 1;
    run_forward(args);
    CHECK(std::isinf(score) && score < 0);
    for (int16_t i : index) CHECK_EQ(i, 2);
  });
}

}  // namespace late_interaction_cases
