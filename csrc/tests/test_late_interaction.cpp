// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of late interaction against a direct double-precision evaluation, without torch: every storage type,
// masks, strides, packed sequences, ties, NaN, int8 screening, gradients, one thread and several.
#include "kernels/cpu/late_interaction.h"
#include "late_interaction_shared_tests.h"
#include "threads.h"

namespace late_interaction_cases {
namespace {

void run_forward(const LateInteractionForward& args) { late_interaction_forward(args, check::threads()); }
void run_backward(const LateInteractionBackward& args) { late_interaction_backward(args, check::threads()); }

TEST(every_type_and_odd_shape) {
  std::mt19937 random(1);
  for (DType dtype : kFloatTypes) {
    for (int64_t dim : {1, 2, 3, 16, 33, 100}) {
      for (int64_t n : {1, 5, 16, 37, 50}) {
        for (int64_t m : {1, 2, 3, 7, 12, 29}) {
          const Tokens a = make_tokens(random, dtype, {n, n, n}, dim, false, dim % 2);
          const Tokens b = make_tokens(random, dtype, {m, m}, dim, false, 3);
          check_maxsim(a, b, (n + m) % 2 == 0, false);
          check_both(a, b, m % 2 == 0, false);
        }
      }
    }
  }
}

TEST(masks_and_padding_policies) {
  std::mt19937 random(2);
  for (DType dtype : kFloatTypes) {
    for (int64_t m : {1, 6, 40}) {
      for (int sign : {0, 1}) {  // 1: every similarity is negative
        Tokens a = make_tokens(random, dtype, {19, 19, 19}, 24, false, 0, sign);
        Tokens b = make_tokens(random, dtype, std::vector<int64_t>(4, m), 24, false, 0, -sign);
        draw_mask(random, a);
        draw_mask(random, b);
        for (bool zero : {false, true}) {
          check_maxsim(a, b, true, zero);
          check_both(a, b, true, zero);
        }
      }
    }
  }
}

TEST(packed_and_paired) {
  std::mt19937 random(3);
  const Tokens a = make_tokens(random, DType::f32, {3, 0, 40, 17}, 20, true);
  const Tokens b = make_tokens(random, DType::f32, {0, 50, 1, 13}, 20, true);
  check_maxsim(a, b, true, false);
  check_maxsim(a, b, false, false, 1);
  const Tokens q = make_tokens(random, DType::bf16, {9, 9}, 31, false);
  const Tokens d = make_tokens(random, DType::bf16, std::vector<int64_t>(6, 14), 31, false);
  check_maxsim(q, d, false, false, 3);
}

TEST(int8_documents_are_exact) {
  std::mt19937 random(4);
  for (DType dtype : kFloatTypes) {
    for (int64_t dim : {1, 4, 30, 64, 129}) {
      for (int64_t m : {1, 5, 13, 90}) {
        const Tokens q = make_tokens(random, dtype, {7, 7, 7, 7, 7}, dim, false);
        Tokens d = make_tokens(random, DType::i8, std::vector<int64_t>(3, m), dim, false, 4);
        check_maxsim(q, d, false, false);
        draw_mask(random, d);
        check_maxsim(q, d, true, true);
      }
    }
  }
}

TEST(int8_queries_that_cannot_be_rounded) {
  std::mt19937 random(5);
  Tokens q = make_tokens(random, DType::f32, {6}, 16, false);
  float* x = reinterpret_cast<float*>(q.bytes.data());
  for (int k = 0; k < 16; ++k) {
    x[k] = 0;             // zero token: every score 0, the first document token wins
    x[16 + k] *= 1e-35f;  // too small for a scale
    q.value[static_cast<size_t>(k)] = 0;
    q.value[static_cast<size_t>(16 + k)] = x[16 + k];
  }
  q.seal();
  Tokens d = make_tokens(random, DType::i8, {20, 20}, 16, false);
  check_maxsim(q, d, false, false);
  x[2 * 16 + 3] = NAN;
  float score[2];
  int16_t index[12];
  LateInteractionForward args;
  args.a = q.batch;
  args.b = d.batch;
  args.ab.scores = score;
  args.ab.score_y = 1;
  args.ab.indices = index;
  args.ab.index_y = 6;
  run_forward(args);
  CHECK(std::isnan(score[0]) && std::isnan(score[1]));
  CHECK(index[2] == 0 && index[8] == 0 && index[0] == 0);
}

TEST(ties_and_nan) { ties_take_the_lowest_index_and_nan_the_first(); }

TEST(threads_change_nothing) {
  std::mt19937 random(7);
  const Tokens a = make_tokens(random, DType::f32, std::vector<int64_t>(12, 49), 64, false);
  const Tokens b = make_tokens(random, DType::f32, std::vector<int64_t>(30, 33), 64, false);
  for (int count : {2, 3}) {
    check::thread_count() = count;
    check_maxsim(a, b, false, false);
    check_both(a, b, true, false);
  }
  check::thread_count() = 1;
}

TEST(zeros) { zeros_tie_with_zero_padding(); }

TEST(empty) { empty_sides(); }

TEST(gradients) {
  std::mt19937 random(9);
  for (int count : {1, 2, 8}) {
    check::thread_count() = count;
    for (DType dtype : kFloatTypes) {
      Tokens a = make_tokens(random, dtype, std::vector<int64_t>(5, 11), 23, false);
      const Tokens b = make_tokens(random, dtype, std::vector<int64_t>(3, 6), 23, false);
      const Tokens c = make_tokens(random, dtype, std::vector<int64_t>(10, 6), 23, false);
      draw_mask(random, a);
      for (bool for_a : {true, false}) {
        check_gradient(random, a, b, true, true, 0, for_a);
        check_gradient(random, a, b, false, false, 0, for_a);
        check_gradient(random, a, c, false, true, 2, for_a);
      }
    }
  }
  check::thread_count() = 1;
}

TEST(hostile_indices) { hostile_indices_are_ignored(); }

}  // namespace
}  // namespace late_interaction_cases
