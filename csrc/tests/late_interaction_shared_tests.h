// SPDX-License-Identifier: Apache-2.0
// Tests of late interaction whose answers are known without arithmetic, the same for every implementation.
#pragma once

#include <algorithm>

#include "late_interaction_cases.h"

namespace late_interaction_cases {
namespace {

void ties_take_the_lowest_index_and_nan_the_first() {
  std::mt19937 random(6);
  for (int64_t m : {5, 12, 31, 150}) {
    Tokens a = make_tokens(random, DType::f32, {21}, 8, false);
    Tokens b = make_tokens(random, DType::f32, {m}, 8, false);
    float* rows = reinterpret_cast<float*>(b.bytes.data());
    for (int64_t t = 1; t < m; ++t) std::memcpy(rows + t * 8, rows, 8 * sizeof(float));
    std::vector<int16_t> ab(21), ba(static_cast<size_t>(m));
    float s_ab, s_ba;
    LateInteractionForward args;
    args.a = a.batch;
    args.b = b.batch;
    args.ab.scores = &s_ab;
    args.ba.scores = &s_ba;
    args.ab.indices = ab.data();
    args.ba.indices = ba.data();
    args.ab.index_x = args.ba.index_x = 1;
    args.ab.score_count = args.ba.score_count = 1;
    args.ab.index_count = 21;
    args.ba.index_count = m;
    run_forward(args);
    for (int16_t i : ab) CHECK(i == 0);
    for (int16_t i : ba) CHECK(i == ba[0]);
    rows[3 * 8 + 1] = NAN;
    rows[4 * 8 + 1] = NAN;
    run_forward(args);
    CHECK(std::isnan(s_ab) && std::isnan(s_ba));
    for (int16_t i : ab) CHECK(i == 3);
    CHECK(ba[3] == 0 && ba[4] == 0);
    rows[3 * 8 + 1] = -std::numeric_limits<float>::infinity();
    rows[4 * 8 + 1] = 1;
    run_forward(args);
    CHECK(!std::isnan(s_ab));
  }
}

// All similarities are 0, like those of padding: the lower index wins, and padding has no index.
void zeros_tie_with_zero_padding() {
  std::mt19937 random(11);
  const Tokens q = make_tokens(random, DType::f32, {2}, 4, false);
  constexpr size_t kLength = 40;
  Tokens d = make_tokens(random, DType::f32, std::vector<int64_t>(4, kLength), 4, false);
  std::fill(d.bytes.begin(), d.bytes.end(), uint8_t(0));
  const std::vector<uint8_t> heads[] = {{0, 1, 0}, {1, 0, 1}, {1, 1, 1}, {0, 0, 1}};
  d.mask.assign(4 * kLength, 1);
  for (size_t y = 0; y < 4; ++y) {
    std::copy(heads[y].begin(), heads[y].end(), d.mask.begin() + static_cast<int64_t>(y * kLength));
    d.mask[y * kLength + 35] = 0;
  }
  d.seal();
  const int16_t expected[] = {-1, 0, 0, -1};
  float scores[4], back[4];
  std::vector<int16_t> index(8, 9), back_index(4 * kLength, 9);
  LateInteractionForward args;
  args.a = q.batch;
  args.b = d.batch;
  args.zero_padding = true;
  args.ab.scores = scores;
  args.ab.score_count = 4;
  args.ab.score_y = 1;
  args.ab.indices = index.data();
  args.ab.index_count = 8;
  args.ab.index_y = 2;
  run_forward(args);
  for (int y = 0; y < 4; ++y) {
    CHECK_EQ(scores[y], 0.0f);
    CHECK_EQ(index[static_cast<size_t>(2 * y)], expected[y]);
    CHECK_EQ(index[static_cast<size_t>(2 * y + 1)], expected[y]);
  }
  // The same documents as the side whose tokens the columns are matched with.
  args = {};
  args.a = d.batch;
  args.b = q.batch;
  args.zero_padding = true;
  args.ab.scores = back;
  args.ab.score_count = 4;
  args.ab.score_x = 1;
  args.ab.indices = back_index.data();
  args.ab.index_count = 4 * kLength;
  args.ab.index_x = 1;
  args.ba.scores = scores;
  args.ba.score_count = 4;
  args.ba.score_y = 1;
  args.ba.indices = index.data();
  args.ba.index_count = 8;
  args.ba.index_x = 4;
  args.ba.index_y = 2;
  run_forward(args);
  for (int x = 0; x < 4; ++x) {
    CHECK_EQ(index[static_cast<size_t>(2 * x)], expected[x]);
    CHECK_EQ(index[static_cast<size_t>(2 * x + 1)], expected[x]);
  }
}

void empty_sides() {
  std::mt19937 random(8);
  const Tokens a = make_tokens(random, DType::f32, {4, 4}, 8, false);
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{}, std::vector<int64_t>{0, 0, 0}}) {
    const Tokens b = make_tokens(random, DType::f32, lengths, 8, false);
    check_maxsim(a, b, true, false);
    check_maxsim(b, a, true, false);
    check_both(a, b, true, true);
    check_both(b, a, false, false);
  }
  const Tokens p = make_tokens(random, DType::bf16, {4, 4}, 0, false);
  check_maxsim(p, p, false, false);
}

void hostile_indices_are_ignored() {
  std::mt19937 random(10);
  const Tokens a = make_tokens(random, DType::f32, {4}, 5, false);
  const Tokens b = make_tokens(random, DType::f32, {3}, 5, false);
  std::vector<int16_t> own = {3, -7, 32000, 3};
  std::vector<int16_t> other = {4, -2, 30000};
  float g = 1;
  std::vector<float> gradient(20, NAN);
  LateInteractionBackward args;
  args.owner = a.batch;
  args.other = b.batch;
  args.own.scores = args.from_other.scores = &g;
  args.own.indices = own.data();
  args.from_other.indices = other.data();
  args.own.index_x = args.from_other.index_x = 1;
  args.own.score_count = args.from_other.score_count = 1;
  args.own.index_count = 4;
  args.from_other.index_count = 3;
  args.gradient = gradient.data();
  run_backward(args);
  for (float x : gradient) CHECK(x == 0);
}

}  // namespace
}  // namespace late_interaction_cases
