// SPDX-License-Identifier: Apache-2.0
// The kernels of late interaction against a direct double-precision evaluation, without torch: every storage type,
// masks, strides, packed sequences, ties, NaN, int8 screening, gradients, one and two threads.
#include "kernels/cpu/late_interaction.h"

#include <cstdint>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "check.h"

namespace {

using namespace fgk;

void launch_threads(int workers, void (*body)(void*, int), void* context) {
  std::vector<std::thread> threads;
  for (int worker = 1; worker < workers; ++worker) threads.emplace_back(body, context, worker);
  body(context, 0);
  for (std::thread& thread : threads) thread.join();
}

Parallel threads(int count) {
  Parallel parallel;
  parallel.threads = count;
  parallel.launch = launch_threads;
  return parallel;
}

// Tokens in a storage type, with the doubles that they stand for. Rows lie `pitch` elements apart.
struct Tokens {
  TokenBatch batch;
  std::vector<double> value;  // (tokens, dim)
  std::vector<uint8_t> bytes;
  std::vector<float> scales;
  std::vector<uint8_t> mask;
  std::vector<int64_t> offsets;

  void seal() {
    batch.data = bytes.data();
    batch.scales = scales.empty() ? nullptr : scales.data();
    batch.mask = mask.empty() ? nullptr : mask.data();
    batch.offsets = offsets.empty() ? nullptr : offsets.data();
  }
  bool valid(int64_t s, int64_t i) const {
    return mask.empty() || mask[static_cast<size_t>(s * batch.length + i)] != 0;
  }
  const double* row(int64_t s, int64_t i) const { return value.data() + (batch.token_base(s) + i) * batch.dim; }
};

float round_to_bf16(float x, uint16_t& bits) {
  uint32_t wide;
  std::memcpy(&wide, &x, 4);
  bits = static_cast<uint16_t>((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
  wide = static_cast<uint32_t>(bits) << 16;
  std::memcpy(&x, &wide, 4);
  return x;
}

// Multiples of 1/64 below 4 in magnitude are exact in fp16: sign, exponent and mantissa follow from the integer.
double exact_half(int sixtyfourths, uint16_t& bits) {
  const double x = sixtyfourths / 64.0;
  if (x == 0) {
    bits = 0;
    return 0;
  }
  int exponent;
  const double fraction = std::frexp(std::fabs(x), &exponent);  // in [0.5, 1)
  const int mantissa = static_cast<int>(std::lround((fraction * 2 - 1) * 1024));
  bits = static_cast<uint16_t>((x < 0 ? 0x8000 : 0) | ((exponent - 1 + 15) << 10) | mantissa);
  return x;
}

Tokens make_tokens(std::mt19937& random, DType dtype, const std::vector<int64_t>& lengths, int64_t dim, bool packed,
                   int64_t extra_pitch = 0) {
  std::normal_distribution<float> normal(0.0f, 1.0f);
  Tokens out;
  TokenBatch& b = out.batch;
  b.dtype = dtype;
  b.batch = static_cast<int64_t>(lengths.size());
  b.dim = dim;
  int64_t tokens = 0;
  if (packed) {
    out.offsets.push_back(0);
    for (int64_t n : lengths) out.offsets.push_back(tokens += n);
  } else {
    b.length = lengths.empty() ? 0 : lengths[0];
    tokens = b.batch * b.length;
  }
  b.token_stride = dim + extra_pitch;
  b.sample_stride = b.length * b.token_stride;
  const int64_t width = dtype_bytes(dtype);
  out.bytes.assign(static_cast<size_t>(tokens * b.token_stride * width + 1), 0xFF);
  out.value.resize(static_cast<size_t>(tokens * dim));
  if (dtype == DType::i8) out.scales.resize(static_cast<size_t>(tokens));
  for (int64_t t = 0; t < tokens; ++t) {
    if (dtype == DType::i8) out.scales[static_cast<size_t>(t)] = 0.001f * (1 + static_cast<float>(random() % 100));
    for (int64_t k = 0; k < dim; ++k) {
      uint8_t* at = out.bytes.data() + (t * b.token_stride + k) * width;
      const float x = normal(random);
      double stored = x;
      uint16_t bits;
      switch (dtype) {
        case DType::f32:
          std::memcpy(at, &x, 4);
          break;
        case DType::f64:
          std::memcpy(at, &stored, 8);
          break;
        case DType::bf16:
          stored = round_to_bf16(x, bits);
          std::memcpy(at, &bits, 2);
          break;
        case DType::f16:
          stored = exact_half(static_cast<int>(random() % 256) - 128, bits);
          std::memcpy(at, &bits, 2);
          break;
        case DType::i8: {
          const int8_t byte = static_cast<int8_t>(static_cast<int>(random() % 256) - 128);
          std::memcpy(at, &byte, 1);
          stored = static_cast<double>(out.scales[static_cast<size_t>(t)]) * byte;
          break;
        }
      }
      out.value[static_cast<size_t>(t * dim + k)] = stored;
    }
  }
  out.seal();
  return out;
}

void draw_mask(std::mt19937& random, Tokens& tokens) {
  tokens.mask.resize(static_cast<size_t>(tokens.batch.batch * tokens.batch.length));
  for (uint8_t& m : tokens.mask) m = random() % 3 != 0;
  if (tokens.batch.batch > 1) {  // one sample without a valid token
    std::fill_n(tokens.mask.begin(), tokens.batch.length, uint8_t(0));
  }
  tokens.seal();
}

double dot(const double* a, const double* b, int64_t dim) {
  double sum = 0;
  for (int64_t k = 0; k < dim; ++k) sum += a[k] * b[k];
  return sum;
}

// Score of sample x of `own` against sample y of `other`, with the winner of every own token.
double naive_score(const Tokens& own, const Tokens& other, int64_t x, int64_t y, bool mean, bool zero,
                   std::vector<int64_t>& winner, std::vector<double>& best_of) {
  double total = 0;
  int64_t count = 0;
  winner.assign(static_cast<size_t>(own.batch.tokens(x)), -1);
  best_of.assign(winner.size(), 0);
  for (int64_t i = 0; i < own.batch.tokens(x); ++i) {
    if (!own.valid(x, i)) continue;
    ++count;
    bool any = false;
    double best = 0;
    int64_t from = -1;
    for (int64_t t = 0; t < other.batch.tokens(y); ++t) {
      const bool valid = other.valid(y, t);
      if (!valid && !zero) continue;
      const double s = valid ? dot(own.row(x, i), other.row(y, t), own.batch.dim) : 0;
      if (!any || s > best) {
        best = s;
        from = valid ? t : -1;
        any = true;
      }
    }
    total += best;
    best_of[static_cast<size_t>(i)] = best;
    winner[static_cast<size_t>(i)] = from;
  }
  return mean && count > 0 ? total / static_cast<double>(count) : total;
}

struct Result {
  std::vector<float> f32;
  std::vector<double> f64;
  std::vector<int32_t> index;
  double score(bool wide, size_t i) const { return wide ? f64[i] : f32[i]; }
  void* scores(bool wide, size_t n) {
    f32.assign(n, NAN);
    f64.assign(n, NAN);
    return wide ? static_cast<void*>(f64.data()) : f32.data();
  }
};

double tolerance(const Tokens& a) {
  return a.batch.dtype == DType::f64 ? 1e-11 : 2e-5 * std::sqrt(double(a.batch.dim + 1));
}

void check_direction(const Tokens& own, const Tokens& other, const Result& result, const DirectionOutput& out,
                     bool mean, bool zero, int64_t paired) {
  const bool wide = own.batch.dtype == DType::f64 || other.batch.dtype == DType::f64;
  std::vector<int64_t> winner;
  std::vector<double> best;
  for (int64_t x = 0; x < own.batch.batch; ++x) {
    const int64_t first = paired ? x * paired : 0;
    const int64_t last = paired ? (x + 1) * paired : other.batch.batch;
    for (int64_t y = first; y < last; ++y) {
      const double expected = naive_score(own, other, x, y, mean, zero, winner, best);
      const double got = result.score(wide, static_cast<size_t>(x * out.score_x + y * out.score_y));
      const double scale = 1 + std::fabs(expected);
      CHECK_NEAR(got, expected, tolerance(own) * scale * 4);
      for (int64_t i = 0; i < own.batch.tokens(x); ++i) {
        const int64_t position = own.batch.token_base(x) * out.index_x + y * out.index_y + i;
        const int64_t index = result.index[static_cast<size_t>(position)];
        if (index == winner[static_cast<size_t>(i)]) continue;
        // Another token may only win where it scores the same up to rounding.
        CHECK(index >= 0 && index < other.batch.tokens(y) && other.valid(y, index));
        if (index < 0 || index >= other.batch.tokens(y)) continue;
        CHECK_NEAR(dot(own.row(x, i), other.row(y, index), own.batch.dim), best[static_cast<size_t>(i)],
                   tolerance(own) * (1 + std::fabs(best[static_cast<size_t>(i)])));
      }
    }
  }
}

void check_maxsim(const Tokens& a, const Tokens& b, bool mean, bool zero, int64_t paired, int thread_count) {
  const bool wide = a.batch.dtype == DType::f64;
  int64_t own_tokens = 0;
  for (int64_t s = 0; s < a.batch.batch; ++s) own_tokens += a.batch.tokens(s);
  const int64_t columns = paired ? paired : b.batch.batch;
  Result result;
  LateInteractionForward args;
  args.a = a.batch;
  args.b = b.batch;
  args.mean = mean;
  args.zero_padding = zero;
  args.paired = paired;
  args.ab.scores = result.scores(wide, static_cast<size_t>(a.batch.batch * columns));
  result.index.assign(static_cast<size_t>(own_tokens * columns), 12345);
  args.ab.indices = result.index.data();
  args.ab.wide_indices = true;
  args.ab.score_y = 1;
  if (a.batch.offsets) {
    args.ab.index_x = 1;
    args.ab.index_y = paired ? 0 : own_tokens;
  } else {
    args.ab.index_x = paired ? 0 : b.batch.batch;
    args.ab.index_y = a.batch.length;
  }
  args.ab.score_x = paired ? 0 : b.batch.batch;
  late_interaction_forward(args, threads(thread_count));
  check_direction(a, b, result, args.ab, mean, zero, paired);
}

void check_both(const Tokens& a, const Tokens& b, bool mean, bool zero, int thread_count) {
  const bool wide = a.batch.dtype == DType::f64;
  const int64_t na = a.batch.batch, nb = b.batch.batch, n = a.batch.length, m = b.batch.length;
  Result ab, ba;
  LateInteractionForward args;
  args.a = a.batch;
  args.b = b.batch;
  args.mean = mean;
  args.zero_padding = zero;
  args.ab.scores = ab.scores(wide, static_cast<size_t>(na * nb));
  args.ba.scores = ba.scores(wide, static_cast<size_t>(na * nb));
  ab.index.assign(static_cast<size_t>(na * nb * n), 12345);
  ba.index.assign(static_cast<size_t>(na * nb * m), 12345);
  args.ab.indices = ab.index.data();
  args.ba.indices = ba.index.data();
  args.ab.wide_indices = args.ba.wide_indices = true;
  args.ab.score_x = args.ba.score_y = nb;
  args.ab.score_y = args.ba.score_x = 1;
  args.ab.index_x = nb;
  args.ab.index_y = n;
  args.ba.index_x = 1;
  args.ba.index_y = nb * m;
  late_interaction_forward(args, threads(thread_count));
  check_direction(a, b, ab, args.ab, mean, zero, 0);
  check_direction(b, a, ba, args.ba, mean, zero, 0);
}

const DType kFloatTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16};

}  // namespace

TEST(every_type_and_odd_shape) {
  std::mt19937 random(1);
  for (DType dtype : kFloatTypes) {
    for (int64_t dim : {1, 2, 3, 16, 33, 100}) {
      for (int64_t n : {1, 5, 16, 37, 50}) {
        for (int64_t m : {1, 2, 3, 7, 12, 29}) {
          const Tokens a = make_tokens(random, dtype, {n, n, n}, dim, false, dim % 2);
          const Tokens b = make_tokens(random, dtype, {m, m}, dim, false, 3);
          check_maxsim(a, b, (n + m) % 2 == 0, false, 0, 1);
          check_both(a, b, m % 2 == 0, false, 1);
        }
      }
    }
  }
}

TEST(masks_and_padding_policies) {
  std::mt19937 random(2);
  for (DType dtype : kFloatTypes) {
    for (int64_t m : {1, 6, 40}) {
      Tokens a = make_tokens(random, dtype, {19, 19, 19}, 24, false);
      Tokens b = make_tokens(random, dtype, std::vector<int64_t>(4, m), 24, false);
      draw_mask(random, a);
      draw_mask(random, b);
      for (bool zero : {false, true}) {
        check_maxsim(a, b, true, zero, 0, 1);
        check_both(a, b, true, zero, 1);
      }
    }
  }
}

TEST(packed_and_paired) {
  std::mt19937 random(3);
  const Tokens a = make_tokens(random, DType::f32, {3, 0, 40, 17}, 20, true);
  const Tokens b = make_tokens(random, DType::f32, {0, 50, 1, 13}, 20, true);
  check_maxsim(a, b, true, false, 0, 1);
  check_maxsim(a, b, false, false, 1, 1);
  const Tokens q = make_tokens(random, DType::bf16, {9, 9}, 31, false);
  const Tokens d = make_tokens(random, DType::bf16, std::vector<int64_t>(6, 14), 31, false);
  check_maxsim(q, d, false, false, 3, 1);
}

TEST(int8_documents_are_exact) {
  std::mt19937 random(4);
  for (DType dtype : kFloatTypes) {
    for (int64_t dim : {1, 4, 30, 64, 129}) {
      for (int64_t m : {1, 5, 13, 90}) {
        const Tokens q = make_tokens(random, dtype, {7, 7, 7, 7, 7}, dim, false);
        Tokens d = make_tokens(random, DType::i8, std::vector<int64_t>(3, m), dim, false, 4);
        check_maxsim(q, d, false, false, 0, 1);
        draw_mask(random, d);
        check_maxsim(q, d, true, true, 0, 1);
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
  check_maxsim(q, d, false, false, 0, 1);
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
  late_interaction_forward(args, threads(1));
  CHECK(std::isnan(score[0]) && std::isnan(score[1]));
  CHECK(index[2] == 0 && index[8] == 0 && index[0] == 0);
}

TEST(ties_take_the_lowest_index_and_nan_the_first) {
  std::mt19937 random(6);
  for (int64_t m : {5, 12, 31}) {
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
    late_interaction_forward(args, threads(1));
    for (int16_t i : ab) CHECK(i == 0);
    for (int16_t i : ba) CHECK(i == ba[0]);
    rows[3 * 8 + 1] = NAN;
    rows[4 * 8 + 1] = NAN;
    late_interaction_forward(args, threads(1));
    CHECK(std::isnan(s_ab) && std::isnan(s_ba));
    for (int16_t i : ab) CHECK(i == 3);
    CHECK(ba[3] == 0 && ba[4] == 0);
    rows[3 * 8 + 1] = -std::numeric_limits<float>::infinity();
    rows[4 * 8 + 1] = 1;
    late_interaction_forward(args, threads(1));
    CHECK(!std::isnan(s_ab));
  }
}

TEST(threads_change_nothing) {
  std::mt19937 random(7);
  const Tokens a = make_tokens(random, DType::f32, std::vector<int64_t>(12, 49), 64, false);
  const Tokens b = make_tokens(random, DType::f32, std::vector<int64_t>(30, 33), 64, false);
  check_maxsim(a, b, false, false, 0, 2);
  check_both(a, b, true, false, 2);
  check_both(a, b, true, false, 3);
}

TEST(empty_sides) {
  std::mt19937 random(8);
  const Tokens a = make_tokens(random, DType::f32, {4, 4}, 8, false);
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{}, std::vector<int64_t>{0, 0, 0}}) {
    const Tokens b = make_tokens(random, DType::f32, lengths, 8, false);
    check_maxsim(a, b, true, false, 0, 1);
    check_maxsim(b, a, true, false, 0, 1);
    check_both(a, b, true, true, 1);
    check_both(b, a, false, false, 1);
  }
  const Tokens p = make_tokens(random, DType::bf16, {4, 4}, 0, false);
  check_maxsim(p, p, false, false, 0, 1);
}

// The gradient is linear in what comes in: both directions of the definition, summed pair by pair.
TEST(gradients) {
  std::mt19937 random(9);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  for (DType dtype : kFloatTypes) {
    const bool wide = dtype == DType::f64;
    Tokens a = make_tokens(random, dtype, std::vector<int64_t>(5, 11), 23, false);
    Tokens b = make_tokens(random, dtype, std::vector<int64_t>(3, 6), 23, false);
    draw_mask(random, a);
    const int64_t na = 5, nb = 3, n = 11, m = 6, dim = 23;
    std::vector<double> g64(static_cast<size_t>(2 * na * nb));
    std::vector<float> g32(g64.size());
    for (size_t i = 0; i < g64.size(); ++i) g64[i] = g32[i] = normal(random);
    std::vector<int16_t> ab(static_cast<size_t>(na * nb * n)), ba(static_cast<size_t>(na * nb * m));
    std::vector<double> expected(static_cast<size_t>(na * n * dim), 0.0);
    std::vector<int64_t> winner;
    std::vector<double> best;
    for (int64_t x = 0; x < na; ++x) {
      int64_t count = 0;
      for (int64_t i = 0; i < n; ++i) count += a.valid(x, i);
      for (int64_t y = 0; y < nb; ++y) {
        naive_score(a, b, x, y, true, false, winner, best);
        for (int64_t i = 0; i < n; ++i) {
          const int64_t j = winner[static_cast<size_t>(i)];
          ab[static_cast<size_t>((x * nb + y) * n + i)] = static_cast<int16_t>(j);
          const double g = g64[static_cast<size_t>(x * nb + y)] / static_cast<double>(count);
          for (int64_t k = 0; j >= 0 && k < dim; ++k) {
            expected[static_cast<size_t>((x * n + i) * dim + k)] += g * b.row(y, j)[k];
          }
        }
        naive_score(b, a, y, x, true, false, winner, best);
        for (int64_t t = 0; t < m; ++t) {
          const int64_t i = winner[static_cast<size_t>(t)];
          ba[static_cast<size_t>((x * nb + y) * m + t)] = static_cast<int16_t>(i);
          const double g = g64[static_cast<size_t>(na * nb + x * nb + y)] / static_cast<double>(m);
          for (int64_t k = 0; i >= 0 && k < dim; ++k) {
            expected[static_cast<size_t>((x * n + i) * dim + k)] += g * b.row(y, t)[k];
          }
        }
      }
    }
    for (int thread_count : {1, 2, 8}) {
      std::vector<uint8_t> gradient(static_cast<size_t>(na * n * dim * dtype_bytes(dtype)), 0xFF);
      LateInteractionBackward args;
      args.owner = a.batch;
      args.other = b.batch;
      args.mean = true;
      args.own.scores = wide ? static_cast<void*>(g64.data()) : g32.data();
      args.from_other.scores =
          wide ? static_cast<void*>(g64.data() + na * nb) : static_cast<void*>(g32.data() + na * nb);
      args.own.indices = ab.data();
      args.from_other.indices = ba.data();
      args.own.score_x = args.from_other.score_y = nb;
      args.own.score_y = args.from_other.score_x = 1;
      args.own.index_x = nb;
      args.own.index_y = n;
      args.from_other.index_x = 1;
      args.from_other.index_y = nb * m;
      args.gradient = gradient.data();
      late_interaction_backward(args, threads(thread_count));
      if (dtype != DType::f32 && dtype != DType::f64)
        continue;  // half types: compared through torch in the Python tests
      for (size_t e = 0; e < expected.size(); ++e) {
        double got;
        float narrow;
        if (wide) {
          std::memcpy(&got, gradient.data() + e * 8, 8);
        } else {
          std::memcpy(&narrow, gradient.data() + e * 4, 4);
          got = narrow;
        }
        CHECK_NEAR(got, expected[e], (wide ? 1e-12 : 1e-5) * (1 + std::fabs(expected[e])));
      }
    }
  }
}

TEST(hostile_indices_are_ignored) {
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
  args.gradient = gradient.data();
  late_interaction_backward(args, threads(1));
  for (float x : gradient) CHECK(x == 0);
}
