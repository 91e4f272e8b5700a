// SPDX-License-Identifier: Apache-2.0
#include "scan_call.h"

namespace fgk::ops {
namespace {

ScanSequence sequence_view(const Tensor& tensor) {
  ScanSequence view;
  const int64_t rank = tensor.dim();
  view.data = data_of(tensor);
  view.batch = tensor.stride(0);
  view.direction = rank == 4 ? tensor.stride(1) : 0;
  view.channel = tensor.stride(rank - 2);
  view.position = tensor.stride(rank - 1);
  view.span = span(tensor);
  return view;
}

// A constant projection is (channels, states), the second dimension of a four-dimensional one the groups of a sequence
// or the directions of a map.
ScanProjection projection_view(const Tensor& tensor, bool map) {
  ScanProjection view;
  const int64_t rank = tensor.dim();
  view.data = data_of(tensor);
  view.span = span(tensor);
  view.constant = rank == 2;
  if (view.constant) return view;
  view.batch = tensor.stride(0);
  if (rank == 4) (map ? view.direction : view.group) = tensor.stride(1);
  view.state = tensor.stride(rank - 2);
  view.position = tensor.stride(rank - 1);
  return view;
}

int64_t states_of(const ScanInputs& inputs) { return inputs.A.size(inputs.A.dim() - 1); }

// A call without states is one with a single state that stays zero, since B and C are zero.
ScanInputs with_zero_state(const ScanInputs& inputs) {
  const ScalarType wide = inputs.A.scalar_type();
  const int64_t channels = inputs.delta.size(inputs.delta.dim() - 2);
  ScanInputs one = inputs;
  one.A = inputs.A.dim() == 2 ? zeros({channels, 1}, wide, inputs.u)
                              : zeros({inputs.A.size(0), channels, 1}, wide, inputs.u);
  one.B = one.C = zeros({channels, 1}, wide, inputs.u);
  one.initial_state = std::nullopt;
  return one;
}

// Inputs as the kernels read them.
struct Call {
  ScanInputs inputs;
  SelectiveScanForward args;

  explicit Call(const ScanInputs& from) : inputs(from) {
    const int64_t rank = inputs.delta.dim();
    args.dtype = *kernel_dtype(inputs.u);
    args.batch = inputs.delta.size(0);
    args.directions = rank == 4 ? inputs.delta.size(1) : 1;
    args.channels = inputs.delta.size(rank - 2);
    args.length = inputs.delta.size(rank - 1);
    args.states = states_of(inputs);
    args.shared_parameters = rank == 4 && inputs.A.dim() == 2;
    for (const Tensor* projection : {&inputs.B, &inputs.C}) {
      if (rank == 3 && projection->dim() == 4) args.groups = projection->size(1);
    }
    inputs.A = dense(inputs.A);
    if (inputs.B.dim() == 2) inputs.B = dense(inputs.B);
    if (inputs.C.dim() == 2) inputs.C = dense(inputs.C);
    inputs.D = dense(inputs.D);
    inputs.delta_bias = dense(inputs.delta_bias);
    inputs.initial_state = dense(inputs.initial_state);
    inputs.table = dense(inputs.table);

    args.u = sequence_view(inputs.u);
    args.delta = sequence_view(inputs.delta);
    if (inputs.z) args.z = sequence_view(*inputs.z);
    args.A = data_of(inputs.A);
    args.D = data_of(inputs.D);
    args.delta_bias = data_of(inputs.delta_bias);
    args.B = projection_view(inputs.B, map());
    args.C = projection_view(inputs.C, map());
    args.initial_state = data_of(inputs.initial_state);
    args.table = index_data(inputs.table);
    args.ordered = inputs.ordered;
    args.delta_softplus = inputs.delta_softplus;
  }

  bool map() const { return inputs.table.has_value(); }
  bool nothing_to_do() const { return args.batch * args.directions * args.channels * args.length == 0; }
  // Gradients of sequences follow their memory, those of maps are dense.
  Tensor sequence_gradient(const Tensor& input) const {
    return map() ? empty_dense_like(input) : empty_following(input);
  }
};

}  // namespace

ScanForwardOutputs scan_forward(const ScanInputs& inputs, bool with_last_state, bool with_checkpoints) {
  if (states_of(inputs) == 0) {
    ScanForwardOutputs outputs = scan_forward(with_zero_state(inputs), with_last_state, with_checkpoints);
    if (with_last_state) outputs.last_state = torch::stable::narrow(outputs.last_state, 2, 0, 0);
    if (with_checkpoints) outputs.checkpoints = torch::stable::narrow(outputs.checkpoints, 4, 0, 0);
    return outputs;
  }
  Call call(inputs);
  SelectiveScanForward& args = call.args;
  const ScalarType wide = inputs.A.scalar_type();
  ScanForwardOutputs outputs;
  outputs.out = call.map() ? empty({args.batch, args.channels, args.length}, inputs.u.scalar_type(), inputs.u)
                           : empty_following(inputs.u);
  if (with_last_state) outputs.last_state = empty({args.batch, args.channels, args.states}, wide, inputs.u);
  if (with_checkpoints) {
    outputs.checkpoints =
        empty({args.batch, args.directions, args.channels, scan_chunks(args.length), args.states}, wide, inputs.u);
  }
  if (call.nothing_to_do()) {
    fill_zero(outputs.out);  // of no directions
    if (with_last_state && inputs.initial_state) torch::stable::copy_(outputs.last_state, *inputs.initial_state);
    if (with_last_state && !inputs.initial_state) fill_zero(outputs.last_state);
    return outputs;
  }
  args.out = sequence_view(outputs.out);
  if (with_last_state) args.last_state = outputs.last_state.mutable_data_ptr();
  if (with_checkpoints) args.checkpoints = outputs.checkpoints.mutable_data_ptr();
  device::run(args, inputs.u);
  return outputs;
}

ScanGradients scan_backward(const ScanInputs& inputs, const Tensor& grad_out, const OptionalTensor& grad_last_state,
                            const Tensor& checkpoints) {
  const ScalarType wide = inputs.A.scalar_type();
  auto none = [&](ScalarType dtype) { return empty({0}, dtype, inputs.u); };
  auto parameter = [&](const OptionalTensor& input) { return input ? empty_dense_like(*input) : none(wide); };
  if (states_of(inputs) == 0) {
    const ScanInputs one = with_zero_state(inputs);
    const Call call(one);
    const Tensor zero = zeros(
        {call.args.batch, call.args.directions, call.args.channels, scan_chunks(call.args.length), 1}, wide, inputs.u);
    ScanGradients gradients = scan_backward(one, grad_out, std::nullopt, zero);
    gradients.A = empty_dense_like(inputs.A);
    gradients.B = empty_dense_like(inputs.B);
    gradients.C = empty_dense_like(inputs.C);
    gradients.initial_state = parameter(inputs.initial_state);
    return gradients;
  }
  const Call call(inputs);
  ScanGradients gradients;
  gradients.u = call.sequence_gradient(inputs.u);
  gradients.delta = call.sequence_gradient(inputs.delta);
  gradients.z = inputs.z ? empty_following(*inputs.z) : none(inputs.u.scalar_type());
  gradients.A = empty_dense_like(inputs.A);
  gradients.B = inputs.B.dim() == 2 ? empty_dense_like(inputs.B) : empty_following(inputs.B);
  gradients.C = inputs.C.dim() == 2 ? empty_dense_like(inputs.C) : empty_following(inputs.C);
  gradients.D = parameter(inputs.D);
  gradients.delta_bias = parameter(inputs.delta_bias);
  gradients.initial_state = parameter(inputs.initial_state);
  if (call.nothing_to_do()) {
    for (Tensor* gradient : {&gradients.u, &gradients.delta, &gradients.A, &gradients.B, &gradients.C, &gradients.D,
                             &gradients.z, &gradients.delta_bias, &gradients.initial_state}) {
      fill_zero(*gradient);
    }
    if (inputs.initial_state && grad_last_state) torch::stable::copy_(gradients.initial_state, *grad_last_state);
    return gradients;
  }

  SelectiveScanBackward args;
  args.forward = call.args;
  const Tensor grad = dense_rows(grad_out);
  args.grad_out = sequence_view(grad);
  const OptionalTensor last = dense(grad_last_state);
  args.grad_last_state = data_of(last);
  const Tensor kept = dense(checkpoints);
  args.checkpoints = data_of(kept);
  args.du = sequence_view(gradients.u);
  args.ddelta = sequence_view(gradients.delta);
  if (inputs.z) args.dz = sequence_view(gradients.z);
  args.dA = gradients.A.mutable_data_ptr();
  if (inputs.D) args.dD = gradients.D.mutable_data_ptr();
  if (inputs.delta_bias) args.ddelta_bias = gradients.delta_bias.mutable_data_ptr();
  args.dB = projection_view(gradients.B, call.map());
  args.dC = projection_view(gradients.C, call.map());
  if (inputs.initial_state) args.dinitial_state = gradients.initial_state.mutable_data_ptr();
  device::run(args, inputs.u);
  return gradients;
}

}  // namespace fgk::ops
