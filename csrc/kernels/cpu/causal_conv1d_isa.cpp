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

// Elements of up to W channels in storage, at the positions of a state or of x.
template <class V>
struct Storage {
  using S = typename V::Scalar;
  char* data;
  DType dtype;
  int64_t channel;
  int64_t position;
  int channels;

  Storage(const ConvSequence& s, DType type, int64_t row, int64_t first, int count)
      : data(static_cast<char*>(s.data) + (row * s.batch + first * s.channel) * dtype_bytes(type)),
        dtype(type),
        channel(s.channel),
        position(s.position),
        channels(count) {}

  template <class Stored, class Convert>
  void gather(S* lanes, int64_t p, const Convert& convert) const {
    const Stored* from = reinterpret_cast<const Stored*>(data) + p * position;
    for (int c = 0; c < channels; ++c) lanes[c] = convert(from[c * channel]);
  }
  void read(S* lanes, int64_t p) const {
    switch (dtype) {
      case DType::f32:
        return gather<float>(lanes, p, [](float x) { return static_cast<S>(x); });
      case DType::f64:
        return gather<double>(lanes, p, [](double x) { return static_cast<S>(x); });
      case DType::bf16:
        return gather<uint16_t>(lanes, p, [](uint16_t x) { return static_cast<S>(bf16_to_f32(x)); });
      default:
        return gather<uint16_t>(lanes, p, [](uint16_t x) { return static_cast<S>(f16_to_f32(x)); });
    }
  }
  void write(const S* lanes, int64_t p) const {
    const int64_t bytes = dtype_bytes(dtype);
    for (int c = 0; c < channels; ++c) narrow_row(data + (c * channel + p * position) * bytes, dtype, lanes + c, 1);
  }
  // Moves elements as they are stored.
  template <class Stored>
  void move(int64_t p, const Storage& from, int64_t from_position) const {
    Stored* to = reinterpret_cast<Stored*>(data) + p * position;
    const Stored* source = reinterpret_cast<const Stored*>(from.data) + from_position * from.position;
    for (int c = 0; c < channels; ++c) to[c * channel] = source[c * from.channel];
  }
  void copy(int64_t p, const Storage& from, int64_t from_position) const {
    switch (dtype_bytes(dtype)) {
      case 8:
        return move<uint64_t>(p, from, from_position);
      case 4:
        return move<uint32_t>(p, from, from_position);
      default:
        return move<uint16_t>(p, from, from_position);
    }
  }
};

template <class V>
void update(const CausalConvUpdate& args, int64_t b, int64_t channel) {
  using S = typename V::Scalar;
  const int taps = args.width - 1;
  const int channels = args.channels - channel < V::W ? static_cast<int>(args.channels - channel) : V::W;
  const int64_t entry = args.entry != nullptr ? args.entry[b] : b;
  const Storage<V> x(args.x, args.dtype, b, channel, channels);
  const Storage<V> out(args.out, args.dtype, b, channel, channels);
  const Storage<V> state(args.state, args.dtype, entry, channel, channels);
  const int64_t length = args.state_length;
  const bool ring = args.cache_seqlens != nullptr;
  // Where position t of x, or one before it, has its place in the state.
  const int64_t start = ring ? args.cache_seqlens[b] % length : length;
  const auto place = [&](int64_t t) { return ring ? ((start + t) % length + length) % length : start + t; };

  alignas(64) S weight[kMaxConvWidth][V::W] = {};
  alignas(64) S bias[V::W] = {};
  alignas(64) S window[kMaxConvWidth][V::W] = {};  // position t is at t % kMaxConvWidth
  for (int c = 0; c < channels; ++c) {
    const S* own = static_cast<const S*>(args.weight) + (channel + c) * args.width;
    for (int k = 0; k < args.width; ++k) weight[k][c] = own[taps - k];
    if (args.bias != nullptr) bias[c] = static_cast<const S*>(args.bias)[channel + c];
  }
  for (int t = -taps; t < 0; ++t) state.read(window[t + kMaxConvWidth], place(t));
  for (int64_t t = 0; t < args.steps; ++t) {
    x.read(window[t % kMaxConvWidth], t);
    typename V::Reg sum = V::load(bias);
    for (int k = 0; k < args.width; ++k) {
      sum = V::fma(V::load(weight[k]), V::load(window[(t - k + kMaxConvWidth) % kMaxConvWidth]), sum);
    }
    alignas(64) S result[V::W];
    V::store(result, args.silu ? silu<V>(sum) : sum);
    out.write(result, t);
  }
  if (ring) {
    for (int64_t t = args.steps > length ? args.steps - length : 0; t < args.steps; ++t) state.copy(place(t), x, t);
    return;
  }
  for (int64_t i = 0; i < length; ++i) {
    const int64_t from = i + args.steps;
    if (from < length) {
      state.copy(i, state, from);
    } else {
      state.copy(i, x, from - length);
    }
  }
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
