// SPDX-License-Identifier: Apache-2.0
#include "causal_conv1d.h"

#include "../kernels/common/causal_conv1d.h"
#include "arguments.h"

namespace fgk::ops {
namespace {

ConvSequence sequence_view(const Tensor& tensor) {
  return {data_of(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2), span(tensor)};
}

// Checks x, weight and bias; returns the width.
int check_weights(const Arguments& arguments, const Tensor& weight, const OptionalTensor& bias) {
  const int64_t channels = arguments.first().size(1);
  arguments.check_parameter("weight", weight);
  const bool legal = weight.dim() == 2 && weight.size(0) == channels && weight.size(1) >= kMinConvWidth &&
                     weight.size(1) <= kMaxConvWidth;
  check(legal, "weight: expected (D, W) with D = ", channels, " like x and W from ", kMinConvWidth, " to ",
        kMaxConvWidth, ", got ", shape(weight));
  arguments.parameter("bias", bias, "(D,)", {channels});
  return static_cast<int>(weight.size(1));
}

// A checked call as the kernels read it, without the output.
struct Call {
  Tensor weight;
  OptionalTensor bias, seq_idx, initial_state;
  CausalConvForward args;

  Call(const Tensor& x, const Tensor& weight_in, const OptionalTensor& bias_in, const OptionalTensor& seq_idx_in,
       const OptionalTensor& initial_state_in, bool silu) {
    check(x.dim() == 3, "x: expected (B, D, L), got ", shape(x));
    const Arguments arguments("x", x);
    args.dtype = arguments.dtype();
    args.batch = x.size(0);
    args.channels = x.size(1);
    args.length = x.size(2);
    args.width = check_weights(arguments, weight_in, bias_in);
    args.silu = silu;
    arguments.index("seq_idx", seq_idx_in, "(B, L)", {args.batch, args.length});
    arguments.parameter("initial_state", initial_state_in, "(B, D, W - 1)",
                        {args.batch, args.channels, args.width - 1});
    weight = dense(weight_in);
    bias = dense(bias_in);
    seq_idx = dense(seq_idx_in);
    initial_state = dense(initial_state_in);
    args.x = sequence_view(x);
    args.weight = data_of(weight);
    args.bias = data_of(bias);
    args.seq_idx = index_data(seq_idx);
    args.initial_state = data_of(initial_state);
  }
};

}  // namespace

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& seq_idx,
                     const OptionalTensor& initial_state, bool silu) {
  Call call(x, weight, bias, seq_idx, initial_state, silu);
  Tensor out = empty_following(x);
  if (out.numel() == 0) return out;
  call.args.out = sequence_view(out);
  device::run(call.args, x);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward(const Tensor& grad_out, const Tensor& x,
                                                                  const Tensor& weight, const OptionalTensor& bias,
                                                                  const OptionalTensor& seq_idx,
                                                                  const OptionalTensor& initial_state, bool silu) {
  const Call call(x, weight, bias, seq_idx, initial_state, silu);
  const Arguments arguments("x", x);
  arguments.sequence("grad_out", grad_out, "(B, D, L)", {call.args.batch, call.args.channels, call.args.length});
  const ScalarType wide = arguments.accumulation();
  Tensor dx = empty_following(x);
  Tensor dweight = empty_dense_like(weight);
  Tensor dbias = bias ? empty_dense_like(*bias) : arguments.no_gradient(wide);
  Tensor dinitial_state = initial_state ? empty_dense_like(*initial_state) : arguments.no_gradient(wide);
  if (dx.numel() == 0) {
    for (const Tensor& gradient : {dweight, dbias, dinitial_state}) fill_zero(gradient);
    return {dx, dweight, dbias, dinitial_state};
  }
  CausalConvBackward args;
  args.forward = call.args;
  const Tensor grad = dense_rows(grad_out);
  args.grad_out = sequence_view(grad);
  args.dx = sequence_view(dx);
  args.dweight = dweight.mutable_data_ptr();
  if (bias) args.dbias = dbias.mutable_data_ptr();
  if (initial_state) args.dinitial_state = dinitial_state.mutable_data_ptr();
  device::run(args, x);
  return {dx, dweight, dbias, dinitial_state};
}

Tensor causal_conv1d_update(const Tensor& x, const Tensor& conv_state, const Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& cache_seqlens, const OptionalTensor& conv_state_indices, bool silu) {
  check(x.dim() == 3, "x: expected (B, D, S), got ", shape(x));
  const Arguments arguments("x", x);
  const int64_t batch = x.size(0), channels = x.size(1);
  CausalConvUpdate args;
  args.dtype = arguments.dtype();
  args.width = check_weights(arguments, weight, bias);
  arguments.check_sequence("conv_state", conv_state);
  check(conv_state.dim() == 3 && conv_state.size(1) == channels && conv_state.size(2) >= args.width - 1,
        "conv_state: expected (E, D, S) with D = ", channels, " like x and S >= W - 1 = ", args.width - 1, ", got ",
        shape(conv_state));
  check_writable("conv_state", conv_state);
  arguments.index("cache_seqlens", cache_seqlens, "(B,)", {batch});
  arguments.index("conv_state_indices", conv_state_indices, "(B,)", {batch});
  if (conv_state_indices) {
    check_entries("conv_state_indices", *conv_state_indices, conv_state.size(0));
  } else {
    check(conv_state.size(0) == batch, "conv_state: expected (B, D, S) with B = ", batch,
          " like x, or conv_state_indices, got ", shape(conv_state));
  }
  const OptionalTensor seqlens = dense(cache_seqlens);
  if (seqlens && device::host_reads()) {
    const int32_t* values = index_data(seqlens);
    for (int64_t b = 0; b < batch; ++b) {
      check(values[b] >= 0, "cache_seqlens: expected values >= 0, got ", values[b], " at position ", b);
    }
  }
  Tensor out = empty_following(x);
  if (out.numel() == 0) return out;
  const Tensor dense_weight = dense(weight);
  const OptionalTensor dense_bias = dense(bias);
  const OptionalTensor entry = dense(conv_state_indices);
  args.batch = batch;
  args.channels = channels;
  args.steps = x.size(2);
  args.silu = silu;
  args.x = sequence_view(x);
  args.state = sequence_view(conv_state);
  args.state.data = conv_state.mutable_data_ptr();
  args.entries = conv_state.size(0);
  args.state_length = conv_state.size(2);
  args.entry = index_data(entry);
  args.cache_seqlens = index_data(seqlens);
  args.weight = data_of(dense_weight);
  args.bias = data_of(dense_bias);
  args.out = sequence_view(out);
  device::run(args, x);
  return out;
}

}  // namespace fgk::ops
