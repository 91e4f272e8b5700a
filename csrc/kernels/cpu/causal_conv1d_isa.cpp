// SPDX-License-Identifier: Apache-2.0
// Causal convolution of one ISA level: its entry points, and the step for decoding.
#include "causal_conv1d_lanes.h"
#include "causal_conv1d_rows.h"

namespace fgk {
namespace FGK_ISA_NS {
namespace {

// Calls body with the filter's width as a constant.
template <class Body>
void with_width(int width, const Body& body) {
  switch (width) {
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    default:
      return body(std::integral_constant<int, 4>{});
  }
}

template <class V>
void forward_rows(const ConvPlan& plan, const ConvTask& task, void* memory) {
  with_width(plan.args.width, [&](auto width) { ConvRows<V, width>(plan, task, memory).forward(); });
}
template <class V>
void backward_rows(const ConvPlan& plan, const ConvTask& task, void* memory) {
  with_width(plan.args.width, [&](auto width) { ConvRows<V, width>(plan, task, memory).backward(); });
}
template <class V>
void forward_lanes(const ConvPlan& plan, const ConvTask& task, void* memory) {
  with_width(plan.args.width, [&](auto width) { ConvLanes<V, width>(plan, task, memory).forward(); });
}
template <class V>
void backward_lanes(const ConvPlan& plan, const ConvTask& task, void* memory) {
  with_width(plan.args.width, [&](auto width) { ConvLanes<V, width>(plan, task, memory).backward(); });
}

// ---- decoding ----

// How an element is stored, and as what it is computed with.
template <class S>
struct Plain {
  using Stored = S;
  static FGK_INLINE S widen(Stored x) { return x; }
  static FGK_INLINE Stored narrow(S x) { return x; }
};
struct Bf16 {
  using Stored = uint16_t;
  static FGK_INLINE float widen(Stored x) { return bf16_to_f32(x); }
  static FGK_INLINE Stored narrow(float x) { return f32_to_bf16(x); }
};
struct F16 {
  using Stored = uint16_t;
  static FGK_INLINE float widen(Stored x) { return f16_to_f32(x); }
  static FGK_INLINE Stored narrow(float x) { return f32_to_f16(x); }
};

constexpr int64_t kUpdateSteps = 8;  // computed before their activation is

template <class V, class Element, int Width>
void update_channels(const CausalConvUpdate& args, int64_t b, int64_t channel) {
  using S = typename V::Scalar;
  using Stored = typename Element::Stored;
  constexpr int kTaps = Width - 1;
  const int channels = args.channels - channel < V::W ? static_cast<int>(args.channels - channel) : V::W;
  const auto first_element = [&](const ConvSequence& s, int64_t row) {
    return static_cast<Stored*>(s.data) + row * s.batch + channel * s.channel;
  };
  const Stored* x = first_element(args.x, b);
  Stored* out = first_element(args.out, b);
  Stored* state = first_element(args.state, args.entry != nullptr ? args.entry[b] : b);
  const int64_t length = args.state_length;
  const bool ring = args.cache_seqlens != nullptr;
  const int64_t start = ring ? args.cache_seqlens[b] % length : length;
  // The element of the first channel's state where position t of x, or one before it, has its place.
  const auto place = [&](int64_t t) {
    return (ring ? ((start + t) % length + length) % length : start + t) * args.state.position;
  };

  S window[V::W][kTaps];
  for (int j = 0; j < kTaps; ++j) {
    const Stored* from = state + place(j - kTaps);
    for (int c = 0; c < channels; ++c) window[c][j] = Element::widen(from[c * args.state.channel]);
  }
  const S* weight = static_cast<const S*>(args.weight) + channel * Width;
  const S* bias = args.bias != nullptr ? static_cast<const S*>(args.bias) + channel : nullptr;
  alignas(64) S sums[kUpdateSteps][V::W] = {};
  for (int64_t first = 0; first < args.steps; first += kUpdateSteps) {
    const int64_t steps = args.steps - first < kUpdateSteps ? args.steps - first : kUpdateSteps;
    for (int c = 0; c < channels; ++c) {
      S(&before)[kTaps] = window[c];
      for (int64_t t = 0; t < steps; ++t) {
        const S value = Element::widen(x[c * args.x.channel + (first + t) * args.x.position]);
        S sum = bias != nullptr ? bias[c] : S(0);
        sum += weight[c * Width + kTaps] * value;
#pragma GCC unroll 4
        for (int j = kTaps - 1; j >= 0; --j) sum += weight[c * Width + j] * before[j];
#pragma GCC unroll 4
        for (int j = 0; j + 1 < kTaps; ++j) before[j] = before[j + 1];
        before[kTaps - 1] = value;
        sums[t][c] = sum;
      }
    }
    for (int64_t t = 0; t < steps; ++t) {
      if (args.silu) V::store(sums[t], silu<V>(V::load(sums[t])));
      Stored* to = out + (first + t) * args.out.position;
      for (int c = 0; c < channels; ++c) to[c * args.out.channel] = Element::narrow(sums[t][c]);
    }
  }

  // Elements go into the state as they are stored.
  const auto move = [&](int64_t to, const Stored* from, int64_t stride) {
    for (int c = 0; c < channels; ++c) state[to + c * args.state.channel] = from[c * stride];
  };
  if (ring) {
    for (int64_t t = args.steps > length ? args.steps - length : 0; t < args.steps; ++t) {
      move(place(t), x + t * args.x.position, args.x.channel);
    }
    return;
  }
  for (int64_t i = 0; i < length; ++i) {
    const int64_t from = i + args.steps;
    if (from < length) {
      move(i * args.state.position, state + from * args.state.position, args.state.channel);
    } else {
      move(i * args.state.position, x + (from - length) * args.x.position, args.x.channel);
    }
  }
}

template <class V>
void update(const CausalConvUpdate& args, int64_t b, int64_t channel) {
  with_width(args.width, [&](auto width) {
    if constexpr (sizeof(typename V::Scalar) == 8) {
      update_channels<V, Plain<double>, width>(args, b, channel);
    } else if (args.dtype == DType::f32) {
      update_channels<V, Plain<float>, width>(args, b, channel);
    } else if (args.dtype == DType::bf16) {
      update_channels<V, Bf16, width>(args, b, channel);
    } else {
      update_channels<V, F16, width>(args, b, channel);
    }
  });
}

template <class V>
constexpr CausalConvTable::Kernels kernels() {
  return {forward_rows<V>, forward_lanes<V>, backward_rows<V>, backward_lanes<V>, update<V>};
}

}  // namespace

extern const CausalConvTable kCausalConvTable;
const CausalConvTable kCausalConvTable = {F32::W, F64::W, kernels<F32>(), kernels<F64>()};

}  // namespace FGK_ISA_NS
}  // namespace fgk
