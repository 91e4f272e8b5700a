// SPDX-License-Identifier: Apache-2.0
// Chooses between the kernels of the causal convolution by the sequences' strides, and launches them.
#pragma once

#include <stdexcept>
#include <string>

#include "causal_conv1d.h"
#include "causal_conv1d_channels.cuh"
#include "causal_conv1d_rows.cuh"
#include "causal_conv1d_update.cuh"
#include "kernel_call.cuh"
#include "sum_rows.cuh"

namespace fgk::cuda {

inline int32_t conv_positions(int64_t count, const char* name) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1024;  // sums of a position and a few vectors do not overflow
  if (count > kMost) {
    throw std::runtime_error("causal_conv1d on CUDA: " + std::string(name) + ": expected at most " +
                             std::to_string(kMost) + " positions, got " + std::to_string(count));
  }
  return static_cast<int32_t>(count);
}

template <class T, class U>
ConvView<T> conv_view(const ConvSequence& s, gptr<U> data) {
  return {data, s.batch, s.channel, s.position};
}

// Elements by which an array starts off an address that is divisible by 16.
template <class T>
int32_t conv_lead(const ConvSequence& s) {
  return static_cast<int32_t>(reinterpret_cast<uintptr_t>(s.data) % 16 / sizeof(T));
}

template <class T>
class ConvCall : public KernelCall {
 public:
  using Acc = Accumulation<T>;
  using KernelCall::KernelCall;

  gptr<const T> in(const ConvSequence& s, const char* name) {
    return buffers().in(static_cast<const T*>(s.data), s.span, name);
  }
  gptr<T> out(const ConvSequence& s, const char* name) { return buffers().out(static_cast<T*>(s.data), s.span, name); }
  gptr<const Acc> parameter(const void* data, int64_t count, const char* name) {
    return buffers().in(static_cast<const Acc*>(data), count, name);
  }
  gptr<Acc> result(void* data, int64_t count, const char* name) {
    return buffers().out(static_cast<Acc*>(data), count, name);
  }

  // What the forward and the backward share.
  ConvParams<T> params(const CausalConvForward& args) {
    ConvParams<T> p{};
    p.x = conv_view<const T>(args.x, in(args.x, "x"));
    p.weight = parameter(args.weight, args.channels * args.width, "weight");
    p.bias = parameter(args.bias, args.channels, "bias");
    p.initial = parameter(args.initial_state, args.batch * args.channels * (args.width - 1), "initial_state");
    if (args.length > 0) p.seq_idx = buffers().in(args.seq_idx, args.batch * args.length, "seq_idx");
    p.batch = args.batch;
    p.channels = args.channels;
    p.length = conv_positions(args.length, "x");
    p.silu = args.silu;
    p.x_lead = conv_lead<T>(args.x);
    return p;
  }
};

// Vectors that a row may take, wherever it starts.
template <class T>
int32_t conv_row_vectors(const ConvParams<T>& p) {
  const int64_t most = p.length + (p.contiguous ? kConvItems<T> - 1 : 0);
  return static_cast<int32_t>(ceil_div(most, kConvItems<T>)) - p.first_vector;
}

// Work items per unit, so that there are about `units` per multiprocessor.
inline int32_t conv_share(int64_t items, int64_t units, int64_t least, int64_t most) {
  return static_cast<int32_t>(dev::max(least, dev::min(most, items / (units * dev::limits().multiprocessors))));
}

template <class T, int kWidth>
void launch_conv_forward(ConvCall<T>& call, ConvParams<T>& p, const CausalConvForward& args) {
  if (args.x.position == 1) {
    p.contiguous = args.out.position == 1;
    p.vectors = conv_row_vectors(p);
    dev::launch("conv_forward_rows", conv_forward_rows_kernel<T, kWidth>,
                {ceil_div(p.batch * p.channels * p.vectors, kConvRowThreads), kConvRowThreads, 0}, call.stream(), p);
    return;
  }
  constexpr int kItems = kConvForwardChannels<T>;
  const int64_t vectors = ceil_div(p.channels, kItems);
  p.aligned = args.x.channel == 1 && args.out.channel == 1 &&
              is_aligned<T>(args.x.data, kItems, args.x.batch, args.x.position) &&
              is_aligned<T>(args.out.data, kItems, args.out.batch, args.out.position);
  p.run = conv_share(p.batch * vectors * p.length, 1024, 8, 32);
  dev::launch("conv_forward_channels", conv_forward_channels_kernel<T, kWidth>,
              {ceil_div(p.batch * vectors * ceil_div(p.length, p.run), kConvChannelThreads), kConvChannelThreads, 0},
              call.stream(), p);
}

template <class T, int kWidth>
void launch_conv_backward(ConvCall<T>& call, ConvParams<T>& p, const CausalConvBackward& args) {
  using Acc = Accumulation<T>;
  const ConvSequence &x = args.forward.x, &grad_out = args.grad_out, &dx = args.dx;
  const gptr<Acc> dweight = call.result(args.dweight, p.channels * kWidth, "dweight");
  const gptr<Acc> dbias = call.result(args.dbias, p.channels, "dbias");
  const bool rows = x.position == 1 || p.length == 0;
  constexpr int kItems = kConvBackwardChannels<T>;
  const int64_t vectors = ceil_div(p.channels, kItems);
  int64_t pieces;
  if (rows) {
    p.contiguous = x.position == 1 && grad_out.position == 1 && dx.position == 1;
    p.first_vector = p.dinitial ? -static_cast<int32_t>(ceil_div(kWidth - 1, kConvItems<T>)) : 0;
    p.vectors = conv_row_vectors(p);
    p.steps = conv_share(p.batch * p.channels * ceil_div(p.vectors, 32), 32, 1, 8);
    pieces = p.batch * ceil_div(p.vectors, 32 * p.steps);
  } else {
    p.aligned = x.channel == 1 && grad_out.channel == 1 && dx.channel == 1 &&
                is_aligned<T>(x.data, kItems, x.batch, x.position) &&
                is_aligned<T>(grad_out.data, kItems, grad_out.batch, grad_out.position) &&
                is_aligned<T>(dx.data, kItems, dx.batch, dx.position);
    p.run = conv_share(p.batch * vectors * p.length, 512, 16, 64);
    pieces = p.batch * ceil_div(p.length, static_cast<int64_t>(p.run) * kConvChannelWarps);
  }
  p.dweight = call.template scratch<Acc>(pieces * p.channels * kWidth, "partial dweight");
  if (dbias) p.dbias = call.template scratch<Acc>(pieces * p.channels, "partial dbias");
  if (rows) {
    const int64_t warps = pieces * p.channels;
    dev::launch("conv_backward_rows", conv_backward_rows_kernel<T, kWidth>,
                {ceil_div(warps, kConvRowThreads / 32), kConvRowThreads, 0}, call.stream(), p);
  } else {
    const int64_t shared = dev::shared_bytes<Acc>(kConvChannelWarps * (kWidth + 1) * 32 * kItems);
    dev::launch("conv_backward_channels", conv_backward_channels_kernel<T, kWidth>,
                {pieces * ceil_div(p.channels, 32 * kItems), kConvChannelThreads, shared}, call.stream(), p);
  }
  sum_rows(call, gptr<const Acc>(p.dweight), 1, pieces, p.channels * kWidth, dweight);
  if (dbias) sum_rows(call, gptr<const Acc>(p.dbias), 1, pieces, p.channels, dbias);
}

// body(std::integral_constant<int, width>).
template <class Body>
void with_conv_width(int width, const Body& body) {
  switch (width) {
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    case 4:
      return body(std::integral_constant<int, 4>());
    default:
      throw std::runtime_error("causal_conv1d on CUDA: expected a width of 2, 3 or 4, got " + std::to_string(width));
  }
}

template <class T>
void conv_forward(const CausalConvForward& args, const Context& context) {
  ConvCall<T> call(context);
  ConvParams<T> p = call.params(args);
  p.out = conv_view<T>(args.out, call.out(args.out, "out"));
  p.out_lead = conv_lead<T>(args.out);
  with_conv_width(args.width, [&](auto width) { launch_conv_forward<T, width()>(call, p, args); });
}

template <class T>
void conv_backward(const CausalConvBackward& args, const Context& context) {
  const CausalConvForward& forward = args.forward;
  ConvCall<T> call(context);
  ConvParams<T> p = call.params(forward);
  p.grad_out = conv_view<const T>(args.grad_out, call.in(args.grad_out, "grad_out"));
  p.grad_out_lead = conv_lead<T>(args.grad_out);
  p.out = conv_view<T>(args.dx, call.out(args.dx, "dx"));
  p.out_lead = conv_lead<T>(args.dx);
  p.dinitial =
      call.result(args.dinitial_state, forward.batch * forward.channels * (forward.width - 1), "dinitial_state");
  with_conv_width(forward.width, [&](auto width) { launch_conv_backward<T, width()>(call, p, args); });
}

template <class T>
void conv_update(const CausalConvUpdate& args, const Context& context) {
  ConvCall<T> call(context);
  ConvUpdateParams<T> p{};
  p.x = conv_view<const T>(args.x, call.in(args.x, "x"));
  p.state = conv_view<T>(args.state, call.buffers().inout(static_cast<T*>(args.state.data), args.state.span, "state"));
  p.out = conv_view<T>(args.out, call.out(args.out, "out"));
  p.weight = call.parameter(args.weight, args.channels * args.width, "weight");
  p.bias = call.parameter(args.bias, args.channels, "bias");
  p.entry = call.buffers().in(args.entry, args.batch, "conv_state_indices");
  p.cache_seqlens = call.buffers().in(args.cache_seqlens, args.batch, "cache_seqlens");
  p.batch = args.batch;
  p.channels = args.channels;
  p.entries = args.entries;
  p.steps = conv_positions(args.steps, "x");
  p.state_length = conv_positions(args.state_length, "conv_state");
  p.width = args.width;
  p.silu = args.silu;
  if (args.width < kMinConvWidth || args.width > kMaxConvWidth || args.state_length < args.width - 1) {
    throw std::runtime_error(
        "causal_conv1d_update on CUDA: expected a width of 2, 3 or 4 and a state of at least "
        "width - 1 positions");
  }
  dev::launch("conv_update", conv_update_kernel<T>,
              {ceil_div(p.batch * p.channels, kConvUpdateThreads), kConvUpdateThreads, 0}, call.stream(), p);
}

}  // namespace fgk::cuda
