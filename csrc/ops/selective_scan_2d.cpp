// SPDX-License-Identifier: Apache-2.0
#include "selective_scan_2d.h"

#include "scan_call.h"

namespace fgk::ops {
namespace {

constexpr int64_t kMaxPositions = (int64_t(1) << 31) - 1;

// int32 (K, L); where the host reads them, its rows are checked to be permutations. Elsewhere the kernels see to it
// that no position leads out of the map.
Tensor check_table(const Arguments& arguments, const Tensor& table, int64_t directions, int64_t length) {
  check(length <= kMaxPositions, "table: expected at most 2^31 - 1 positions, got ", length);
  arguments.index("table", table, "(K, L)", {directions, length});
  const Tensor packed = dense(table);
  if (!device::host_reads()) return packed;
  const int32_t* row = static_cast<const int32_t*>(packed.const_data_ptr());
  std::vector<bool> seen;
  for (int64_t k = 0; k < directions; ++k, row += length) {
    seen.assign(static_cast<size_t>(length), false);
    for (int64_t t = 0; t < length; ++t) {
      const int64_t position = row[t];
      check(position >= 0 && position < length && !seen[static_cast<size_t>(position)], "table: expected row ", k,
            " to be a permutation of [0, ", length, "), got ", position, " at step ", t);
      seen[static_cast<size_t>(position)] = true;
    }
  }
  return packed;
}

int64_t table_rows(const Tensor& table) {
  check(table.dim() == 2, "table: expected int32 (K, L), got ", dtype_name(table), " ", shape(table));
  return table.size(0);
}

ScanInputs check_scan_2d(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                         const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias,
                         const Tensor& table, bool delta_softplus, bool ordered) {
  check(ordered ? x.dim() == 4 : x.dim() == 3 || x.dim() == 4, "x: expected ",
        ordered ? "(B, K, E, L) in scan order" : "(B, E, L) or (B, K, E, L)", ", got ", shape(x));
  const Arguments arguments("x", x);
  const int64_t rank = x.dim(), directions = table_rows(table);
  const int64_t batch = x.size(0), channels = x.size(rank - 2), length = x.size(rank - 1);
  check(rank == 3 || x.size(1) == directions, "x: expected (B, K, E, L) with K = ", directions, " like table, got ",
        shape(x));
  arguments.sequence("delta", delta, "(B, K, E, L)", {batch, directions, channels, length});
  arguments.check_parameter("A", A);
  const bool shared = A.dim() == 2;
  check(shared || A.dim() == 3, "A: expected (K, E, N) or shared (E, N), got ", shape(A));
  const int64_t states = A.size(A.dim() - 1);
  if (shared) {
    arguments.check_sizes("A", A, "(E, N)", {channels, states});
  } else {
    arguments.check_sizes("A", A, "(K, E, N)", {directions, channels, states});
  }
  arguments.sequence("B", B, "(B, K, N, L)", {batch, directions, states, length});
  arguments.sequence("C", C, "(B, K, N, L)", {batch, directions, states, length});
  for (const auto& [name, parameter] : {std::make_pair("D", &D), std::make_pair("delta_bias", &delta_bias)}) {
    if (shared) {
      arguments.parameter(name, *parameter, "(E,)", {channels});
    } else {
      arguments.parameter(name, *parameter, "(K, E)", {directions, channels});
    }
  }
  arguments.sequence("z", z, "(B, E, L)", {batch, channels, length});
  const Tensor packed = check_table(arguments, table, directions, length);
  return {x, delta, A, B, C, D, z, delta_bias, std::nullopt, packed, ordered, delta_softplus};
}

}  // namespace

std::tuple<Tensor, Tensor> selective_scan_2d(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                                             const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                             const OptionalTensor& delta_bias, const Tensor& table, bool delta_softplus,
                                             bool ordered) {
  const ScanForwardOutputs outputs =
      scan_forward(check_scan_2d(x, delta, A, B, C, D, z, delta_bias, table, delta_softplus, ordered), false, true);
  return {outputs.out, outputs.checkpoints};
}

Tensor selective_scan_2d_fwd(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                             const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias,
                             const Tensor& table, bool delta_softplus, bool ordered) {
  return scan_forward(check_scan_2d(x, delta, A, B, C, D, z, delta_bias, table, delta_softplus, ordered), false, false)
      .out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> selective_scan_2d_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
    const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias, const Tensor& table,
    const Tensor& checkpoints, bool delta_softplus, bool ordered) {
  const ScanInputs inputs = check_scan_2d(x, delta, A, B, C, D, z, delta_bias, table, delta_softplus, ordered);
  const Arguments arguments("x", x);
  const int64_t batch = x.size(0), channels = x.size(x.dim() - 2), length = x.size(x.dim() - 1);
  const int64_t states = A.size(A.dim() - 1);
  arguments.sequence("grad_out", grad_out, "(B, E, L)", {batch, channels, length});
  arguments.parameter("checkpoints", checkpoints, "(B, K, E, ceil(L / 64), N)",
                      {batch, table.size(0), channels, scan_chunks(length), states});
  ScanGradients gradients = scan_backward(inputs, grad_out, std::nullopt, checkpoints);
  return {gradients.u, gradients.delta, gradients.A, gradients.B,
          gradients.C, gradients.D,     gradients.z, gradients.delta_bias};
}

Tensor cross_scan(const Tensor& x, const Tensor& table) {
  check(x.dim() == 3, "x: expected (B, C, L), got ", shape(x));
  const Arguments arguments("x", x);
  const int64_t batch = x.size(0), channels = x.size(1), length = x.size(2), directions = table_rows(table);
  const Tensor packed = check_table(arguments, table, directions, length);
  Tensor out = empty({batch, directions, channels, length}, arguments.type(), x);
  if (out.numel() == 0) return out;
  CrossScan args;
  args.dtype = arguments.dtype();
  args.batch = batch;
  args.directions = directions;
  args.channels = channels;
  args.length = length;
  args.x = {data_of(x), x.stride(0), 0, x.stride(1), x.stride(2), span(x)};
  args.table = static_cast<const int32_t*>(packed.const_data_ptr());
  args.out = out.mutable_data_ptr();
  device::run(args, x);
  return out;
}

Tensor cross_merge(const Tensor& y, const Tensor& table) {
  check(y.dim() == 4, "y: expected (B, K, C, L), got ", shape(y));
  const Arguments arguments("y", y);
  const int64_t batch = y.size(0), directions = y.size(1), channels = y.size(2), length = y.size(3);
  const Tensor packed = check_table(arguments, table, directions, length);
  Tensor out = empty({batch, channels, length}, arguments.type(), y);
  if (y.numel() == 0) {
    fill_zero(out);  // of no directions
    return out;
  }
  CrossScan args;
  args.dtype = arguments.dtype();
  args.batch = batch;
  args.directions = directions;
  args.channels = channels;
  args.length = length;
  args.x = {data_of(y), y.stride(0), y.stride(1), y.stride(2), y.stride(3), span(y)};
  args.table = static_cast<const int32_t*>(packed.const_data_ptr());
  args.merge = true;
  args.out = out.mutable_data_ptr();
  device::run(args, y);
  return out;
}

}  // namespace fgk::ops
