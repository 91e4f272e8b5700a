// SPDX-License-Identifier: Apache-2.0
#include "mamba_chunk_scan.h"

#include "../kernels/common/mamba_chunk_scan.h"
#include "arguments.h"

namespace fgk::ops {
namespace {

HeadSequence sequence_view(const Tensor& tensor) {
  const int64_t channel = tensor.dim() == 4 ? tensor.stride(3) : 0;
  return {data_of(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2), channel, span(tensor)};
}

HeadProjection projection_view(const Tensor& tensor) {
  return {data_of(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3), span(tensor)};
}

struct Inputs {
  Tensor x, dt, A, B, C;
  OptionalTensor D, z, dt_bias, initial_states, seq_idx;
  bool dt_softplus;
  double dt_min, dt_max;
};

void check_inputs(const Inputs& in) {
  check(in.x.dim() == 4, "x: expected (B, L, H, P), got ", shape(in.x));
  const Arguments arguments("x", in.x);
  const int64_t batch = in.x.size(0), length = in.x.size(1), heads = in.x.size(2), channels = in.x.size(3);
  arguments.sequence("dt", in.dt, "(B, L, H)", {batch, length, heads});
  arguments.parameter("A", in.A, "(H,)", {heads});
  arguments.check_sequence("B", in.B);
  check(in.B.dim() == 4 && in.B.size(0) == batch && in.B.size(1) == length && in.B.size(2) > 0 &&
            heads % in.B.size(2) == 0,
        "B: expected (B, L, G, N) with (B, L) = ", shape({batch, length}), " like x and G a divisor of H = ", heads,
        ", got ", shape(in.B));
  const int64_t groups = in.B.size(2), states = in.B.size(3);
  arguments.check_sequence("C", in.C);
  check(has_sizes(in.C, {batch, length, groups, states}),
        "C: expected (B, L, G, N) = ", shape({batch, length, groups, states}), " like B, got ", shape(in.C));
  if (in.D && in.D->dim() == 2) {
    arguments.parameter("D", in.D, "(H, P)", {heads, channels});
  } else {
    arguments.parameter("D", in.D, "(H,)", {heads});
  }
  arguments.sequence("z", in.z, "(B, L, H, P)", {batch, length, heads, channels});
  arguments.parameter("dt_bias", in.dt_bias, "(H,)", {heads});
  arguments.parameter("initial_states", in.initial_states, "(B, H, P, N)", {batch, heads, channels, states});
  arguments.index("seq_idx", in.seq_idx, "(B, L)", {batch, length});
  check(in.dt_min <= in.dt_max, "dt_limit: expected a minimum that is no more than the maximum, got (", in.dt_min, ", ",
        in.dt_max, ")");
}

// A call without states is one with a single state that stays zero, since B and C are zero.
Inputs with_zero_state(const Inputs& inputs) {
  Inputs one = inputs;
  one.B = one.C = zeros({inputs.x.size(0), inputs.x.size(1), 1, 1}, inputs.x.scalar_type(), inputs.x);
  one.initial_states = std::nullopt;
  return one;
}

// Checked inputs as the kernels read them.
struct Call {
  Inputs inputs;
  ChunkScanForward args;

  explicit Call(const Inputs& from) : inputs(from) {
    inputs.A = dense(inputs.A);
    inputs.D = dense(inputs.D);
    inputs.dt_bias = dense(inputs.dt_bias);
    inputs.initial_states = dense(inputs.initial_states);
    inputs.seq_idx = dense(inputs.seq_idx);
    args.dtype = *kernel_dtype(inputs.x);
    args.batch = inputs.x.size(0);
    args.length = inputs.x.size(1);
    args.heads = inputs.x.size(2);
    args.channels = inputs.x.size(3);
    args.groups = inputs.B.size(2);
    args.states = inputs.B.size(3);
    args.x = sequence_view(inputs.x);
    args.dt = sequence_view(inputs.dt);
    if (inputs.z) args.z = sequence_view(*inputs.z);
    args.A = data_of(inputs.A);
    args.D = data_of(inputs.D);
    args.D_per_channel = inputs.D && inputs.D->dim() == 2;
    args.dt_bias = data_of(inputs.dt_bias);
    args.B = projection_view(inputs.B);
    args.C = projection_view(inputs.C);
    args.initial_states = data_of(inputs.initial_states);
    args.seq_idx = index_data(inputs.seq_idx);
    args.dt_softplus = inputs.dt_softplus;
    args.dt_min = inputs.dt_min;
    args.dt_max = inputs.dt_max;
  }

  Tensor state() const {
    return empty({args.batch, args.heads, args.channels, args.states}, inputs.A.scalar_type(), inputs.x);
  }
  Tensor checkpoints() const {
    return empty({args.batch, chunk_scan_chunks(args.length), args.heads, args.channels, args.states},
                 inputs.A.scalar_type(), inputs.x);
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(const Inputs& inputs, bool with_checkpoints) {
  if (inputs.B.size(3) == 0) {
    auto [out, states, checkpoints] = forward(with_zero_state(inputs), with_checkpoints);
    if (with_checkpoints) checkpoints = torch::stable::narrow(checkpoints, 4, 0, 0);
    return {out, torch::stable::narrow(states, 3, 0, 0), checkpoints};
  }
  Call call(inputs);
  ChunkScanForward& args = call.args;
  Tensor out = empty_dense_like(inputs.x);
  Tensor states = call.state();
  Tensor checkpoints;
  if (with_checkpoints) checkpoints = call.checkpoints();
  if (out.numel() == 0) {
    if (inputs.initial_states) {
      torch::stable::copy_(states, *inputs.initial_states);
    } else {
      fill_zero(states);
    }
    return {out, states, checkpoints};
  }
  args.out = sequence_view(out);
  args.final_states = states.mutable_data_ptr();
  if (with_checkpoints) args.checkpoints = checkpoints.mutable_data_ptr();
  device::run(args, inputs.x);
  return {out, states, checkpoints};
}

struct Gradients {
  Tensor x, dt, A, B, C, D, z, dt_bias, initial_states;
};

Gradients backward(const Inputs& inputs, const Tensor& grad_out, const OptionalTensor& grad_final_states,
                   const Tensor& checkpoints) {
  auto gradient = [&](const OptionalTensor& input, ScalarType type) {
    return input ? empty_dense_like(*input) : empty({0}, type, inputs.x);
  };
  const ScalarType wide = inputs.A.scalar_type();
  if (inputs.B.size(3) == 0) {
    const Inputs one = with_zero_state(inputs);
    const Tensor zero = Call(one).checkpoints();
    fill_zero(zero);
    Gradients gradients = backward(one, grad_out, std::nullopt, zero);
    gradients.B = empty_dense_like(inputs.B);
    gradients.C = empty_dense_like(inputs.C);
    gradients.initial_states = gradient(inputs.initial_states, wide);
    return gradients;
  }
  const Call call(inputs);
  Gradients gradients = {empty_dense_like(inputs.x),
                         empty_dense_like(inputs.dt),
                         empty_dense_like(inputs.A),
                         empty_dense_like(inputs.B),
                         empty_dense_like(inputs.C),
                         gradient(inputs.D, wide),
                         gradient(inputs.z, inputs.x.scalar_type()),
                         gradient(inputs.dt_bias, wide),
                         gradient(inputs.initial_states, wide)};
  if (inputs.x.numel() == 0) {
    for (const Tensor& zero : {gradients.dt, gradients.A, gradients.B, gradients.C, gradients.D, gradients.dt_bias,
                               gradients.initial_states}) {
      fill_zero(zero);
    }
    if (inputs.initial_states && grad_final_states) torch::stable::copy_(gradients.initial_states, *grad_final_states);
    return gradients;
  }
  ChunkScanBackward args;
  args.forward = call.args;
  const Tensor grad = dense_rows(grad_out);
  args.grad_out = sequence_view(grad);
  const OptionalTensor last = dense(grad_final_states);
  args.grad_final_states = data_of(last);
  const Tensor kept = dense(checkpoints);
  args.checkpoints = data_of(kept);
  args.dx = sequence_view(gradients.x);
  args.ddt = sequence_view(gradients.dt);
  if (inputs.z) args.dz = sequence_view(gradients.z);
  args.dA = gradients.A.mutable_data_ptr();
  if (inputs.D) args.dD = gradients.D.mutable_data_ptr();
  if (inputs.dt_bias) args.ddt_bias = gradients.dt_bias.mutable_data_ptr();
  args.dB = projection_view(gradients.B);
  args.dC = projection_view(gradients.C);
  if (inputs.initial_states) args.dinitial_states = gradients.initial_states.mutable_data_ptr();
  device::run(args, inputs.x);
  return gradients;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> mamba_chunk_scan(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                                                    const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                                    const OptionalTensor& dt_bias, const OptionalTensor& initial_states,
                                                    const OptionalTensor& seq_idx, bool dt_softplus, double dt_min,
                                                    double dt_max) {
  const Inputs inputs = {x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, dt_softplus, dt_min, dt_max};
  check_inputs(inputs);
  return forward(inputs, true);
}

std::tuple<Tensor, Tensor> mamba_chunk_scan_fwd(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                                                const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                                const OptionalTensor& dt_bias, const OptionalTensor& initial_states,
                                                const OptionalTensor& seq_idx, bool dt_softplus, double dt_min,
                                                double dt_max) {
  const Inputs inputs = {x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, dt_softplus, dt_min, dt_max};
  check_inputs(inputs);
  const auto [out, states, checkpoints] = forward(inputs, false);
  return {out, states};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mamba_chunk_scan_backward(
    const Tensor& grad_out, const OptionalTensor& grad_final_states, const Tensor& x, const Tensor& dt, const Tensor& A,
    const Tensor& B, const Tensor& C, const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias,
    const OptionalTensor& initial_states, const OptionalTensor& seq_idx, const Tensor& checkpoints, bool dt_softplus,
    double dt_min, double dt_max) {
  const Inputs inputs = {x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, dt_softplus, dt_min, dt_max};
  check_inputs(inputs);
  const Arguments arguments("x", x);
  const int64_t batch = x.size(0), length = x.size(1), heads = x.size(2), channels = x.size(3), states = B.size(3);
  arguments.sequence("grad_out", grad_out, "(B, L, H, P)", {batch, length, heads, channels});
  arguments.parameter("grad_final_states", grad_final_states, "(B, H, P, N)", {batch, heads, channels, states});
  arguments.parameter("checkpoints", checkpoints, "(B, ceil(L / 128), H, P, N)",
                      {batch, chunk_scan_chunks(length), heads, channels, states});
  const Gradients gradients = backward(inputs, grad_out, grad_final_states, checkpoints);
  return {gradients.x, gradients.dt,      gradients.A,
          gradients.B, gradients.C,       gradients.D,
          gradients.z, gradients.dt_bias, gradients.initial_states};
}

}  // namespace fgk::ops
