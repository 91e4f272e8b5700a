// SPDX-License-Identifier: Apache-2.0
// int8 documents on VNNI, exact: the integer dot products only screen.
//
// A query token q is rounded to s q' (8 bits). For a document token d with scale c,
//   |<q, c d> - s c <q', d>| <= |c| * 128 * sum_k |q_k - s q'_k|,
// The likely winner is scored in fp32 from the unrounded query; every token whose upper bound falls below that score
// cannot win, and the few that remain are scored in fp32 too. Results are those of fp32 queries against dequantised
// documents.
#include <cmath>

#include "../common/convert.h"
#include "late_interaction_isa.h"
#include "late_interaction_tile.h"

namespace fgk {
namespace FGK_ISA_NS {
namespace {

constexpr int W = F32::W;
constexpr int32_t kNumberMask = kMaxInt8Segment - 1;
constexpr int kSelect = 0xCA;  // ternary logic: first ? second : third, bit by bit

struct Candidate {
  int32_t token;
  uint16_t vector;
  uint16_t lanes;
};

// What screening needs beside the fp32 rows of the group, carved from Workspace::extra (see int8_scratch_bytes).
struct Screen {
  int8_t* rounded;       // (block, step of four channels, lane, 4)
  int32_t* offset;       // 128 * sum q', taken off because documents enter as unsigned d + 128
  float* slack;          // bound on |score error| / (s |c|), rounding of the screen's own fp32 included
  float* inverse_scale;  // 1 / s
  uint16_t* screened;    // per vector of lanes: the lanes that screening covers
  float* scores;         // (segment tokens, block lanes)
  Candidate* candidates;
};

Screen carve(const ForwardPlan& plan, Workspace& work) {
  const int64_t lanes = plan.max_lanes;
  char* p = work.extra;
  auto take = [&p](int64_t bytes) {
    char* piece = p;
    p += (bytes + 63) / 64 * 64;
    return piece;
  };
  Screen screen;
  screen.rounded = reinterpret_cast<int8_t*>(take(lanes * ((plan.lanes.dim + 3) / 4 * 4)));
  screen.offset = reinterpret_cast<int32_t*>(take(lanes * 4));
  screen.slack = reinterpret_cast<float*>(take(lanes * 4));
  screen.inverse_scale = reinterpret_cast<float*>(take(lanes * 4));
  screen.screened = reinterpret_cast<uint16_t*>(take(lanes / W * 2));
  screen.scores = reinterpret_cast<float*>(take(plan.segment * kMaxBlockVectors * W * 4));
  screen.candidates =
      reinterpret_cast<Candidate*>(take((plan.segment * kMaxBlockVectors + 1) * int64_t(sizeof(Candidate))));
  return screen;
}

FGK_INLINE int64_t quads(const ForwardPlan& plan) { return (plan.lanes.dim + 3) / 4; }

// Rounds one query token; false when it has to be scored exactly throughout (Inf, NaN, or too small to scale).
bool round_lane(const float* q, int64_t dim, int8_t* dst, int64_t stride, int32_t& offset, float& slack,
                float& inverse_scale) {
  float top = 0;
  bool finite = true;
  for (int64_t k = 0; k < dim; ++k) {
    const float magnitude = std::fabs(q[k]);
    finite = finite && magnitude <= 3.402823466e38f;
    top = magnitude > top ? magnitude : top;
  }
  if (!finite || top < 1e-30f) return false;
  const float scale = top / 127.0f;
  inverse_scale = 127.0f / top;
  int32_t sum = 0;
  int32_t magnitude_sum = 0;
  double error = 0;
  for (int64_t k = 0; k < dim; ++k) {
    int32_t r = static_cast<int32_t>(std::lrint(q[k] * inverse_scale));
    r = r > 127 ? 127 : r < -127 ? -127 : r;
    dst[k / 4 * stride + k % 4] = static_cast<int8_t>(r);
    sum += r;
    magnitude_sum += r < 0 ? -r : r;
    error += std::fabs(static_cast<double>(q[k]) - static_cast<double>(scale) * r);
  }
  offset = 128 * sum;
  slack = static_cast<float>(128.0 * (1.001 * error / scale + magnitude_sum * 0x1p-20));
  return true;
}

void pack_group(const ForwardPlan& plan, const LaneGroup& group, Workspace& work, const Screen& screen) {
  const int64_t dim = plan.lanes.dim;
  float* rows = reinterpret_cast<float*>(work.packed_lanes);
  std::memset(screen.rounded, 0, static_cast<size_t>(group.lanes * quads(plan) * 4));
  std::memset(screen.offset, 0, static_cast<size_t>(group.lanes) * 4);
  std::memset(screen.slack, 0, static_cast<size_t>(group.lanes) * 4);
  std::memset(screen.inverse_scale, 0, static_cast<size_t>(group.lanes) * 4);
  std::memset(screen.screened, 0, static_cast<size_t>(group.lanes / W) * 2);
  for (int64_t s = group.first_sample; s < group.last_sample; ++s) {
    const int32_t* map = plan.lane_map(s);
    for (int64_t i = 0; i < plan.samples[s].valid; ++i) {
      const int64_t lane = plan.samples[s].first_lane + i;
      widen_row(rows + lane * dim, plan.lanes.token(s, map ? map[i] : i), plan.lanes.dtype, dim, 1.0f);
    }
  }
  const LaneSample& last = plan.samples[group.last_sample - 1];
  const int64_t used = last.first_lane + last.valid;
  for (int64_t block = 0; block < group.lanes;) {
    const int64_t lanes = block_vectors((group.lanes - block) / W) * W;
    for (int64_t lane = block; lane < block + lanes && lane < used; ++lane) {
      int8_t* dst = screen.rounded + block * quads(plan) * 4 + (lane - block) * 4;
      if (round_lane(rows + lane * dim, dim, dst, lanes * 4, screen.offset[lane], screen.slack[lane],
                     screen.inverse_scale[lane])) {
        screen.screened[lane / W] = static_cast<uint16_t>(screen.screened[lane / W] | (1u << (lane % W)));
      }
    }
    block += lanes;
  }
}

// The segment's tokens one after another, padded to whole quads.
void pack_segment(const ForwardPlan& plan, const StreamSample& stream, int64_t t0, int64_t tokens, char* dst) {
  const int64_t dim = plan.stream.dim;
  const int64_t row = quads(plan) * 4;
  for (int64_t t = 0; t < tokens; ++t, dst += row) {
    std::memset(dst + row - 4, 0, 4);
    std::memcpy(dst, plan.stream.token(stream.sample, stream.original(t0 + t)), static_cast<size_t>(dim));
  }
}

// Scales of the segment's valid tokens, in order; whether all are finite.
bool gather_scales(const ForwardPlan& plan, const StreamSample& stream, int64_t t0, int64_t tokens, float* dst) {
  const float* scales = plan.stream.scales + plan.stream.token_base(stream.sample);
  bool finite = true;
  for (int64_t t = 0; t < tokens; ++t) {
    dst[t] = scales[stream.original(t0 + t)];
    finite = finite && std::fabs(dst[t]) <= 3.402823466e38f;
  }
  return finite;
}

// acc += unsigned bytes of d times signed bytes of q, four per lane. GCC 12 spills every accumulator around the
// intrinsic, hence the instruction itself.
FGK_INLINE void dot_quads(__m512i& acc, __m512i d, __m512i q) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(d), "v"(q));
}

// c <q', d> of NV * W lanes with MT tokens, stored. `top` keeps the running maximum per lane with the token's number in
// its low bits: near enough to name a likely winner, for one instruction.
template <int NV, int MT>
FGK_NOINLINE void screen_tile(const int8_t* lanes, int64_t steps, const int32_t* offset, const char* stream,
                              int64_t stride, const float* scales, float* scores, int64_t t0, __m512* top) {
  constexpr int kBases = (MT + 2) / 3;
  __m512i acc[MT][NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    const __m512i start = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(offset + v * W));
#pragma GCC unroll 16
    for (int m = 0; m < MT; ++m) acc[m][v] = start;
  }
  const char* base[kBases];
#pragma GCC unroll 8
  for (int r = 0; r < kBases; ++r) base[r] = stream + 3 * r * stride;
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));  // signed d to unsigned d + 128
  const char* ahead = stream + MT * stride;
  for (int64_t k = 0; k < steps; ++k) {
    __builtin_prefetch(ahead + k * 64);
    __m512i q[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) q[v] = _mm512_loadu_si512(lanes + v * W * 4);
#pragma GCC unroll 16
    for (int m = 0; m < MT; ++m) {
      int32_t four;
      std::memcpy(&four, base[m / 3] + (m % 3) * stride, 4);
      const __m512i d = _mm512_xor_si512(flip, _mm512_set1_epi32(four));
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) dot_quads(acc[m][v], d, q[v]);
    }
    lanes += NV * W * 4;
#pragma GCC unroll 8
    for (int r = 0; r < kBases; ++r) base[r] += 4;
  }
  const __m512i number_bits = _mm512_set1_epi32(kNumberMask);
#pragma GCC unroll 16
  for (int m = 0; m < MT; ++m) {
    const __m512 scale = _mm512_set1_ps(scales[m]);
    const __m512i token = _mm512_set1_epi32(static_cast<int32_t>(t0 + m));
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const __m512 score = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(acc[m][v]));
      _mm512_storeu_ps(scores + (m * NV + v) * W, score);
      const __m512i numbered = _mm512_ternarylogic_epi32(number_bits, token, _mm512_castps_si512(score), kSelect);
      top[v] = _mm512_max_ps(top[v], _mm512_castsi512_ps(numbered));
    }
  }
}

float exact_score(const float* q, const int8_t* d, int64_t dim, float scale) {
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  int64_t k = 0;
  for (; k + 32 <= dim; k += 32) {
    for (int u = 0; u < 2; ++u) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(d + k + u * W));
      sum[u] = _mm512_fmadd_ps(_mm512_loadu_ps(q + k + u * W), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), sum[u]);
    }
  }
  for (; k < dim; k += W) {
    const __mmask16 inside = F32::first_lanes(static_cast<int>(dim - k < W ? dim - k : W));
    const __m128i bytes = _mm_maskz_loadu_epi8(inside, d + k);
    sum[0] =
        _mm512_fmadd_ps(_mm512_maskz_loadu_ps(inside, q + k), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), sum[0]);
  }
  return scale * _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}

struct Int8Pass {
  const ForwardPlan& plan;
  const Screen& screen;
  const StreamSample& stream;
  const float* rows;
  float* best;
  int32_t* index;
  int64_t t0;
  int64_t tokens;
  const char* documents;  // the segment's tokens, `stride` bytes apart
  int64_t stride;
  const float* scales;

  void score_exactly(int64_t lane, int64_t t) const {
    const int64_t dim = plan.lanes.dim;
    const int8_t* d = reinterpret_cast<const int8_t*>(documents + t * stride);
    const float score = exact_score(rows + lane * dim, d, dim, scales[t]);
    if (score > best[lane] || (score == best[lane] && t0 + t < index[lane])) {
      best[lane] = score;
      index[lane] = static_cast<int32_t>(t0 + t);
    }
  }

  // Every token in full precision, the document dequantised first so that Inf and NaN spread as in the reference.
  void exact_lane(int64_t lane) const {
    const int64_t dim = plan.lanes.dim;
    for (int64_t t = 0; t < tokens; ++t) {
      const int8_t* d = reinterpret_cast<const int8_t*>(documents + t * stride);
      float score = 0;
      for (int64_t k = 0; k < dim; ++k) score += rows[lane * dim + k] * (scales[t] * static_cast<float>(d[k]));
      if (best[lane] == best[lane] && (score != score || score > best[lane])) {
        best[lane] = score;
        index[lane] = static_cast<int32_t>(t0 + t);
      }
    }
  }

  template <int NV>
  void screen_block(int64_t block) const {
    const int64_t steps = quads(plan);
    const int8_t* lanes = screen.rounded + block * steps * 4;
    __m512 top[NV];
    for (int v = 0; v < NV; ++v) top[v] = _mm512_set1_ps(-INFINITY);
    constexpr int MT = tile_tokens<NV>();
    int64_t t = 0;
    auto run = [&](auto tile, int64_t n) {
      tile(lanes, steps, screen.offset + block, documents + t * stride, stride, scales + t, screen.scores + t * NV * W,
           t, top);
      t += n;
    };
    while (t + MT <= tokens) run(screen_tile<NV, MT>, MT);
    while (t + 4 <= tokens) run(screen_tile<NV, 4>, 4);
    while (t < tokens) run(screen_tile<NV, 1>, 1);

    __m512 slack[NV];
    __m512 floor[NV];
    __m512i likely[NV];
    __mmask16 screened[NV];
    for (int v = 0; v < NV; ++v) {
      const int64_t first = block + v * W;
      slack[v] = _mm512_loadu_ps(screen.slack + first);
      screened[v] = screen.screened[first / W];
      likely[v] = _mm512_and_si512(_mm512_castps_si512(top[v]), _mm512_set1_epi32(kNumberMask));
      alignas(64) int32_t number[W];
      _mm512_store_si512(number, likely[v]);
      for (unsigned lane = screened[v]; lane; lane &= lane - 1) {
        score_exactly(first + __builtin_ctz(lane), number[__builtin_ctz(lane)]);
      }
      const __m512 known = _mm512_mul_ps(_mm512_loadu_ps(best + first), _mm512_loadu_ps(screen.inverse_scale + first));
      floor[v] = _mm512_fnmadd_ps(_mm512_abs_ps(known), _mm512_set1_ps(1e-5f), known);
    }
    // First a list without branches, then the few that could still win.
    int64_t listed = 0;
    for (int64_t t1 = 0; t1 < tokens; ++t1) {
      const __m512 magnitude = _mm512_set1_ps(std::fabs(scales[t1]));
      const __m512i number = _mm512_set1_epi32(static_cast<int32_t>(t1));
      for (int v = 0; v < NV; ++v) {
        const __m512 upper = _mm512_fmadd_ps(slack[v], magnitude, _mm512_loadu_ps(screen.scores + (t1 * NV + v) * W));
        const __mmask16 open = _mm512_mask_cmpneq_epi32_mask(screened[v], likely[v], number);
        const __mmask16 reach = _mm512_mask_cmp_ps_mask(open, upper, floor[v], _CMP_GE_OQ);
        screen.candidates[listed] = {static_cast<int32_t>(t1), static_cast<uint16_t>(v), reach};
        listed += reach != 0;
      }
    }
    for (int64_t n = 0; n < listed; ++n) {
      const Candidate& candidate = screen.candidates[n];
      for (unsigned lane = candidate.lanes; lane; lane &= lane - 1) {
        score_exactly(block + candidate.vector * W + __builtin_ctz(lane), candidate.token);
      }
    }
  }
};

}  // namespace

void forward_int8(const ForwardPlan& plan, Workspace& work, const ForwardTask& task) {
  const LaneGroup& group = plan.groups[task.group];
  const Screen screen = carve(plan, work);
  if (work.packed_group != task.group) {
    pack_group(plan, group, work, screen);
    work.packed_group = task.group;
  }
  float* best = static_cast<float*>(work.row_best);
  int32_t* index = static_cast<int32_t*>(work.row_index);
  float* scales = static_cast<float*>(work.column_best);
  const LaneSample& last = plan.samples[group.last_sample - 1];
  const int64_t used = last.first_lane + last.valid;
  for (int64_t s = task.stream_first; s < task.stream_last; ++s) {
    const StreamSample stream = stream_sample(plan.stream, s, work.stream_token);
    for (int64_t lane = 0; lane < group.lanes; ++lane) {
      best[lane] = -INFINITY;
      index[lane] = 0;
    }
    for (int64_t t0 = 0; t0 < stream.valid; t0 += plan.segment) {
      const int64_t tokens = stream.valid - t0 < plan.segment ? stream.valid - t0 : plan.segment;
      const char* documents = plan.stream.token(s, stream.first + t0);
      int64_t stride = plan.stream.token_stride;
      if (stream.map != nullptr || plan.stream.dim % 4 != 0) {
        pack_segment(plan, stream, t0, tokens, work.packed_stream);
        documents = work.packed_stream;
        stride = quads(plan) * 4;
      }
      const bool finite = gather_scales(plan, stream, t0, tokens, scales);
      const Int8Pass pass{plan,      screen, stream, reinterpret_cast<const float*>(work.packed_lanes),
                          best,      index,  t0,     tokens,
                          documents, stride, scales};
      for (int64_t block = 0; finite && block < group.lanes;) {
        const int vectors = block_vectors((group.lanes - block) / W);
        if (vectors == 2) {
          pass.screen_block<2>(block);
        } else if (vectors == 1) {
          pass.screen_block<1>(block);
        } else {
          pass.screen_block<kMaxBlockVectors>(block);
        }
        block += vectors * W;
      }
      for (int64_t lane = 0; lane < used; ++lane) {
        const bool covered = finite && (screen.screened[lane / W] >> (lane % W) & 1);
        if (!covered) pass.exact_lane(lane);
      }
    }
    finish_rows<F32>(plan, group, stream, work);
  }
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
