// SPDX-License-Identifier: Apache-2.0
// Late interaction by its definition in double precision, and checks of an implementation against it: scores, winners
// and gradients of tokens in every storage type, masked, strided or packed. Included by one test program per
// implementation, which defines run_forward and run_backward.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/common/late_interaction.h"

namespace late_interaction_cases {
namespace {

using namespace fgk;

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

// Tokens of independent normal entries (fp16, int8: uniform). `sign` 1 or -1 gives all of them that sign, so that two
// sides of different signs have negative similarities only. Gaps between rows are NaN (int8: -1).
Tokens make_tokens(std::mt19937& random, DType dtype, const std::vector<int64_t>& lengths, int64_t dim, bool packed,
                   int64_t extra_pitch = 0, int sign = 0) {
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
  b.total_tokens = tokens;
  b.span = tokens > 0 && dim > 0 ? (tokens - 1) * b.token_stride + dim : 0;
  const int64_t width = dtype_bytes(dtype);
  out.bytes.assign(static_cast<size_t>(b.span * width), 0xFF);
  out.value.resize(static_cast<size_t>(tokens * dim));
  if (dtype == DType::i8) out.scales.resize(static_cast<size_t>(tokens));
  for (int64_t t = 0; t < tokens; ++t) {
    if (dtype == DType::i8) out.scales[static_cast<size_t>(t)] = 0.001f * (1 + static_cast<float>(random() % 100));
    for (int64_t k = 0; k < dim; ++k) {
      uint8_t* at = out.bytes.data() + (t * b.token_stride + k) * width;
      const float drawn = normal(random);
      const float x = sign == 0 ? drawn : static_cast<float>(sign) * std::fabs(drawn);
      const int whole = static_cast<int>(random() % 256);
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
          stored = exact_half(sign == 0 ? whole - 128 : sign * (1 + whole / 2), bits);
          std::memcpy(at, &bits, 2);
          break;
        case DType::i8: {
          const int8_t byte = static_cast<int8_t>(sign == 0 ? whole - 128 : sign * (whole / 2));
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

// The call under test; each program that includes this file defines it.
void run_forward(const LateInteractionForward& args);
void run_backward(const LateInteractionBackward& args);

struct Result {
  std::vector<float> f32;
  std::vector<double> f64;
  std::vector<int32_t> index;
  std::vector<int16_t> narrow;
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
      for (int64_t i = 0; out.indices != nullptr && i < own.batch.tokens(x); ++i) {
        const int64_t position = own.batch.token_base(x) * out.index_x + y * out.index_y + i;
        const size_t place = static_cast<size_t>(position);
        const int64_t index = out.wide_indices ? result.index[place] : result.narrow[place];
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

// How a forward call asks for its winners.
enum class Indices { wide, narrow, none };

// Output storage of one direction, of exactly the elements that the call may write.
void place(DirectionOutput& out, Result& result, bool wide_scores, size_t scores, size_t indices, Indices kind) {
  out.scores = result.scores(wide_scores, scores);
  out.score_count = static_cast<int64_t>(scores);
  result.index.assign(indices, 12345);
  result.narrow.assign(indices, 12345);
  if (kind == Indices::none) return;
  out.wide_indices = kind == Indices::wide;
  out.indices = out.wide_indices ? static_cast<void*>(result.index.data()) : result.narrow.data();
  out.index_count = static_cast<int64_t>(indices);
}

void check_maxsim(const Tokens& a, const Tokens& b, bool mean, bool zero, int64_t paired = 0,
                  Indices kind = Indices::wide) {
  const bool wide = a.batch.dtype == DType::f64;
  const int64_t own_tokens = a.batch.total_tokens;
  const int64_t columns = paired ? paired : b.batch.batch;
  Result result;
  LateInteractionForward args;
  args.a = a.batch;
  args.b = b.batch;
  args.mean = mean;
  args.zero_padding = zero;
  args.paired = paired;
  place(args.ab, result, wide, static_cast<size_t>(a.batch.batch * columns), static_cast<size_t>(own_tokens * columns),
        kind);
  args.ab.score_y = 1;
  if (a.batch.offsets) {
    args.ab.index_x = 1;
    args.ab.index_y = paired ? 0 : own_tokens;
  } else {
    args.ab.index_x = paired ? 0 : b.batch.batch;
    args.ab.index_y = a.batch.length;
  }
  args.ab.score_x = paired ? 0 : b.batch.batch;
  run_forward(args);
  check_direction(a, b, result, args.ab, mean, zero, paired);
}

void check_both(const Tokens& a, const Tokens& b, bool mean, bool zero, Indices kind = Indices::wide) {
  const bool wide = a.batch.dtype == DType::f64;
  const int64_t na = a.batch.batch, nb = b.batch.batch, n = a.batch.length, m = b.batch.length;
  Result ab, ba;
  LateInteractionForward args;
  args.a = a.batch;
  args.b = b.batch;
  args.mean = mean;
  args.zero_padding = zero;
  place(args.ab, ab, wide, static_cast<size_t>(na * nb), static_cast<size_t>(na * nb * n), kind);
  place(args.ba, ba, wide, static_cast<size_t>(na * nb), static_cast<size_t>(na * nb * m), kind);
  args.ab.score_x = args.ba.score_y = nb;
  args.ab.score_y = args.ba.score_x = 1;
  args.ab.index_x = nb;
  args.ab.index_y = n;
  args.ba.index_x = 1;
  args.ba.index_y = nb * m;
  run_forward(args);
  check_direction(a, b, ab, args.ab, mean, zero, 0);
  check_direction(b, a, ba, args.ba, mean, zero, 0);
}

double read_stored(const uint8_t* at, DType dtype) {
  if (dtype == DType::f64) {
    double x;
    std::memcpy(&x, at, 8);
    return x;
  }
  float x = 0;
  uint16_t bits;
  if (dtype == DType::f32) {
    std::memcpy(&x, at, 4);
    return x;
  }
  std::memcpy(&bits, at, 2);
  if (dtype == DType::bf16) {
    const uint32_t whole = static_cast<uint32_t>(bits) << 16;
    std::memcpy(&x, &whole, 4);
    return x;
  }
  const int exponent = bits >> 10 & 31;
  const double mantissa = bits & 1023;
  const double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits >> 15 ? -size : size;
}

// One unit in the last place of a stored value of size 1, from rounding the gradient to the owner's type.
double rounding(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 1e-13;
    case DType::f32:
      return 1e-6;
    case DType::bf16:
      return 1.0 / 128;
    default:
      return 1.0 / 1024;
  }
}

// Gradients of the tokens of `owner`, when sides a and b meet in one direction (a's tokens reduced) or in both. The
// gradient is linear in what comes in: the directions of the definition, summed pair by pair.
void check_gradient(std::mt19937& random, const Tokens& a, const Tokens& b, bool both, bool mean, int64_t paired,
                    bool for_a) {
  std::normal_distribution<float> normal(0.0f, 1.0f);
  const Tokens& owner = for_a ? a : b;
  const Tokens& other = for_a ? b : a;
  const bool wide = a.batch.dtype == DType::f64;
  const int64_t na = a.batch.batch, nb = b.batch.batch, dim = a.batch.dim;
  const bool packed = a.batch.offsets != nullptr;
  const int64_t columns = paired ? paired : nb;
  std::vector<double> expected(static_cast<size_t>(owner.batch.total_tokens * dim), 0.0);
  std::vector<double> size(expected.size(), 0.0);
  std::vector<double> g64[2];
  std::vector<float> g32[2];
  std::vector<int16_t> index[2];
  DirectionOutput direction[2];
  for (int d = 0; d < (both ? 2 : 1); ++d) {
    const Tokens& reduced = d == 0 ? a : b;
    const Tokens& offering = d == 0 ? b : a;
    DirectionOutput& out = direction[d];
    if (packed) {
      out.index_x = 1;
      out.index_y = paired ? 0 : a.batch.total_tokens;
    } else if (d == 0) {
      out.index_x = paired ? 0 : nb;
      out.index_y = a.batch.length;
    } else {
      out.index_x = 1;
      out.index_y = nb * b.batch.length;
    }
    out.score_x = d == 1 ? 1 : paired ? 0 : nb;
    out.score_y = d == 1 ? nb : 1;
    index[d].assign(static_cast<size_t>(d == 0 ? a.batch.total_tokens * columns : b.batch.total_tokens * na), -1);
    g64[d].resize(static_cast<size_t>(na * columns));
    g32[d].resize(g64[d].size());
    for (size_t i = 0; i < g64[d].size(); ++i) g64[d][i] = g32[d][i] = normal(random);
    std::vector<int64_t> winner;
    std::vector<double> best;
    for (int64_t x = 0; x < reduced.batch.batch; ++x) {
      int64_t count = 0;
      for (int64_t i = 0; i < reduced.batch.tokens(x); ++i) count += reduced.valid(x, i);
      const int64_t first = paired ? x * paired : 0;
      const int64_t last = paired ? first + paired : offering.batch.batch;
      for (int64_t y = first; y < last; ++y) {
        naive_score(reduced, offering, x, y, mean, false, winner, best);
        double g = g64[d][static_cast<size_t>(x * out.score_x + y * out.score_y)];
        if (mean && count > 0) g /= static_cast<double>(count);
        for (int64_t i = 0; i < reduced.batch.tokens(x); ++i) {
          const int64_t t = winner[static_cast<size_t>(i)];
          const int64_t place = reduced.batch.token_base(x) * out.index_x + y * out.index_y + i;
          index[d][static_cast<size_t>(place)] = static_cast<int16_t>(t);
          if (t < 0) continue;
          const bool own = (d == 0) == for_a;  // the owner's tokens are reduced
          const int64_t to = own ? owner.batch.token_base(x) + i : owner.batch.token_base(y) + t;
          const double* from = own ? other.row(y, t) : other.row(x, i);
          for (int64_t k = 0; k < dim; ++k) {
            expected[static_cast<size_t>(to * dim + k)] += g * from[k];
            size[static_cast<size_t>(to * dim + k)] += std::fabs(g * from[k]);
          }
        }
      }
    }
    out.scores = wide ? static_cast<void*>(g64[d].data()) : g32[d].data();
    out.score_count = static_cast<int64_t>(g64[d].size());
    out.indices = index[d].data();
    out.index_count = static_cast<int64_t>(index[d].size());
  }
  const int64_t width = dtype_bytes(owner.batch.dtype);
  std::vector<uint8_t> gradient(expected.size() * static_cast<size_t>(width), 0xFF);
  LateInteractionBackward args;
  args.owner = owner.batch;
  args.other = other.batch;
  args.mean = mean;
  args.paired = paired;
  args.owner_is_a = for_a;
  args.own = for_a ? direction[0] : direction[1];
  args.from_other = for_a ? direction[1] : direction[0];
  args.gradient = gradient.data();
  run_backward(args);
  for (size_t e = 0; e < expected.size(); ++e) {
    const double got = read_stored(gradient.data() + e * static_cast<size_t>(width), owner.batch.dtype);
    CHECK_NEAR(got, expected[e], rounding(owner.batch.dtype) * (1e-3 + std::fabs(expected[e])) + 1e-6 * size[e]);
  }
}

const DType kFloatTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16};

}  // namespace
}  // namespace late_interaction_cases
