// SPDX-License-Identifier: Apache-2.0
#include "selective_scan.h"

#include "scan_call.h"

namespace fgk::ops {
namespace {

// B or C: (B, N, L) or (B, G, N, L) in u's dtype, or constant (D, N) in the accumulation type. Returns G.
int64_t check_projection(const Arguments& arguments, const char* name, const Tensor& tensor, int64_t states) {
  const Tensor& u = arguments.first();
  const int64_t batch = u.size(0), channels = u.size(1), length = u.size(2);
  if (tensor.dim() == 2) {
    arguments.parameter(name, tensor, "(D, N)", {channels, states});
    return 1;
  }
  check(tensor.dim() == 3 || tensor.dim() == 4, name, ": expected (B, N, L), (B, G, N, L) or constant (D, N), got ",
        shape(tensor));
  if (tensor.dim() == 3) {
    arguments.sequence(name, tensor, "(B, N, L)", {batch, states, length});
    return 1;
  }
  const int64_t groups = tensor.size(1);
  arguments.sequence(name, tensor, "(B, G, N, L)", {batch, groups, states, length});
  check(groups > 0 && channels % groups == 0, name, ": expected (B, G, N, L) with G a divisor of D = ", channels,
        ", got ", shape(tensor));
  return groups;
}

ScanInputs check_scan(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                      const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias,
                      const OptionalTensor& initial_state, bool delta_softplus) {
  check(u.dim() == 3, "u: expected (B, D, L), got ", shape(u));
  const Arguments arguments("u", u);
  const int64_t batch = u.size(0), channels = u.size(1), length = u.size(2);
  arguments.sequence("delta", delta, "(B, D, L)", {batch, channels, length});
  arguments.check_parameter("A", A);
  check(A.dim() == 2 && A.size(0) == channels, "A: expected (D, N) with D = ", channels, " like u, got ", shape(A));
  const int64_t states = A.size(1);
  const int64_t groups = check_projection(arguments, "B", B, states);
  const int64_t C_groups = check_projection(arguments, "C", C, states);
  check(B.dim() == 2 || C.dim() == 2 || groups == C_groups, "C: expected as many groups as B, ", groups, ", got ",
        shape(C));
  arguments.parameter("D", D, "(D,)", {channels});
  arguments.sequence("z", z, "(B, D, L)", {batch, channels, length});
  arguments.parameter("delta_bias", delta_bias, "(D,)", {channels});
  arguments.parameter("initial_state", initial_state, "(B, D, N)", {batch, channels, states});
  return {u, delta, A, B, C, D, z, delta_bias, initial_state, std::nullopt, false, delta_softplus};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A,
                                                  const Tensor& B, const Tensor& C, const OptionalTensor& D,
                                                  const OptionalTensor& z, const OptionalTensor& delta_bias,
                                                  const OptionalTensor& initial_state, bool delta_softplus) {
  const ScanForwardOutputs outputs =
      scan_forward(check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus), true, true);
  return {outputs.out, outputs.last_state, outputs.checkpoints};
}

std::tuple<Tensor, Tensor> selective_scan_fwd(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                              const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                              const OptionalTensor& delta_bias, const OptionalTensor& initial_state,
                                              bool delta_softplus) {
  const ScanForwardOutputs outputs =
      scan_forward(check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus), true, false);
  return {outputs.out, outputs.last_state};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> selective_scan_backward(
    const Tensor& grad_out, const OptionalTensor& grad_last_state, const Tensor& u, const Tensor& delta,
    const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
    const OptionalTensor& delta_bias, const OptionalTensor& initial_state, const Tensor& checkpoints,
    bool delta_softplus) {
  const ScanInputs inputs = check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus);
  const Arguments arguments("u", u);
  const int64_t batch = u.size(0), channels = u.size(1), length = u.size(2), states = A.size(1);
  arguments.sequence("grad_out", grad_out, "(B, D, L)", {batch, channels, length});
  arguments.parameter("grad_last_state", grad_last_state, "(B, D, N)", {batch, channels, states});
  arguments.parameter("checkpoints", checkpoints, "(B, 1, D, ceil(L / 64), N)",
                      {batch, 1, channels, scan_chunks(length), states});
  ScanGradients gradients = scan_backward(inputs, grad_out, grad_last_state, checkpoints);
  return {gradients.u,          gradients.delta,        gradients.A, gradients.B, gradients.C, gradients.D, gradients.z,
          gradients.delta_bias, gradients.initial_state};
}

Tensor selective_state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                              const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                              const OptionalTensor& dt_bias, const OptionalTensor& state_batch_indices,
                              bool dt_softplus) {
  check(x.dim() == 2 || x.dim() == 3, "x: expected (B, D) or (B, H, P), got ", shape(x));
  const Arguments arguments("x", x);
  const bool heads = x.dim() == 3;
  const int64_t batch = x.size(0), outer = x.size(1), inner = heads ? x.size(2) : 0;
  const std::initializer_list<int64_t> with_heads = {batch, outer, inner}, without_heads = {batch, outer};
  const std::initializer_list<int64_t>& row_sizes = heads ? with_heads : without_heads;
  const char* row_letters = heads ? "(B, H, P)" : "(B, D)";
  const char* parameter_letters = heads ? "(H, P)" : "(D,)";

  check_device("state", state, "x", x);
  const std::optional<DType> state_dtype = kernel_dtype(state);
  check(state_dtype.has_value() && *state_dtype != DType::i8,
        "state: expected dtype float32, float64, bfloat16 or float16, got ", dtype_name(state));
  const bool fits = state.dim() == x.dim() + 1 && state.size(1) == outer && (!heads || state.size(2) == inner);
  check(fits, "state: expected ", heads ? "(E, H, P, N)" : "(E, D, N)", " with ",
        heads ? "(H, P) = " : "(D,) = ", heads ? shape({outer, inner}) : shape({outer}), " like x, got ", shape(state));
  check_writable("state", state);
  const int64_t states = state.size(state.dim() - 1);
  arguments.sequence("dt", dt, row_letters, row_sizes);
  if (heads) {
    arguments.parameter("A", A, "(H, P, N)", {outer, inner, states});
  } else {
    arguments.parameter("A", A, "(D, N)", {outer, states});
  }
  int64_t groups = 1;
  for (const auto& [name, projection] : {std::make_pair("B", &B), std::make_pair("C", &C)}) {
    check(projection->dim() == 2 || projection->dim() == 3, name, ": expected (B, N) or (B, G, N), got ",
          shape(*projection));
    const int64_t own = projection->dim() == 3 ? projection->size(1) : 1;
    if (projection->dim() == 2) {
      arguments.sequence(name, *projection, "(B, N)", {batch, states});
    } else {
      arguments.sequence(name, *projection, "(B, G, N)", {batch, own, states});
    }
    check(own > 0 && outer % own == 0, name, ": expected (B, G, N) with G a divisor of ", heads ? "H" : "D", " = ",
          outer, ", got ", shape(*projection));
    check(projection == &B || own == groups, name, ": expected as many groups as B, ", groups, ", got ",
          shape(*projection));
    groups = own;
  }
  for (const auto& [name, parameter] : {std::make_pair("D", &D), std::make_pair("dt_bias", &dt_bias)}) {
    if (heads) {
      arguments.parameter(name, *parameter, parameter_letters, {outer, inner});
    } else {
      arguments.parameter(name, *parameter, parameter_letters, {outer});
    }
  }
  arguments.sequence("z", z, row_letters, row_sizes);
  arguments.index("state_batch_indices", state_batch_indices, "(B,)", {batch});
  if (state_batch_indices) {
    check_entries("state_batch_indices", *state_batch_indices, state.size(0));
  } else {
    check(state.size(0) == batch, "state: expected ", heads ? "(B, H, P, N)" : "(B, D, N)", " with B = ", batch,
          " like x, or state_batch_indices, got ", shape(state));
  }

  if (states == 0) {  // as with one state that stays zero
    const ScalarType wide = arguments.accumulation();
    const Tensor B1 = zeros({batch, 1}, arguments.type(), x);
    const Tensor A1 = heads ? zeros({outer, inner, 1}, wide, x) : zeros({outer, 1}, wide, x);
    const Tensor h = heads ? zeros({batch, outer, inner, 1}, wide, x) : zeros({batch, outer, 1}, wide, x);
    return selective_state_update(h, x, dt, A1, B1, B1, D, z, dt_bias, std::nullopt, dt_softplus);
  }
  Tensor out = empty_dense_like(x);
  if (out.numel() == 0) return out;
  StateUpdate args;
  args.dtype = arguments.dtype();
  args.state_dtype = *state_dtype;
  args.batch = batch;
  args.heads = heads ? outer : 1;
  args.channels = heads ? inner : outer;
  args.groups = groups;
  args.states = states;
  const int64_t rank = state.dim();
  args.state = state.mutable_data_ptr();
  args.state_entry = state.stride(0);
  args.state_head = heads ? state.stride(1) : 0;
  args.state_channel = state.stride(rank - 2);
  args.state_state = state.stride(rank - 1);
  args.state_span = span(state);
  args.entries = state.size(0);
  const OptionalTensor entry = dense(state_batch_indices);
  args.entry = index_data(entry);
  auto rows = [&](const Tensor& tensor) {
    StateUpdate::Rows view;
    view.data = tensor.const_data_ptr();
    view.batch = tensor.stride(0);
    view.head = heads ? tensor.stride(1) : 0;
    view.channel = tensor.stride(heads ? 2 : 1);
    view.span = span(tensor);
    return view;
  };
  auto parameter = [&](const Tensor& tensor, bool per_state) {
    StateUpdate::Parameter view;
    view.data = tensor.const_data_ptr();
    view.head = heads ? tensor.stride(0) : 0;
    view.channel = tensor.stride(heads ? 1 : 0);
    view.state = per_state ? tensor.stride(tensor.dim() - 1) : 0;
    view.span = span(tensor);
    return view;
  };
  auto projection = [&](const Tensor& tensor) {
    StateUpdate::Projection view;
    view.data = tensor.const_data_ptr();
    view.batch = tensor.stride(0);
    view.group = tensor.dim() == 3 ? tensor.stride(1) : 0;
    view.state = tensor.stride(tensor.dim() - 1);
    view.span = span(tensor);
    return view;
  };
  args.x = rows(x);
  args.dt = rows(dt);
  if (z) args.z = rows(*z);
  args.A = parameter(A, true);
  if (D) args.D = parameter(*D, false);
  if (dt_bias) args.dt_bias = parameter(*dt_bias, false);
  args.B = projection(B);
  args.C = projection(C);
  args.dt_softplus = dt_softplus;
  args.out = out.mutable_data_ptr();
  device::run(args, x);
  return out;
}

}  // namespace fgk::ops
