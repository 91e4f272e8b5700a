// SPDX-License-Identifier: Apache-2.0
// Entry points of the selective scan in CUDA.
#include "selective_scan.h"

#include <stdexcept>

#include "kernel_call.cuh"
#include "selective_scan_types.cuh"

namespace fgk::cuda {
namespace {

void check_sizes(const SelectiveScanForward& args) {
  constexpr int64_t kMost = int64_t{1} << 30;
  for (const int64_t size : {args.batch, args.directions, args.channels, args.length, args.states}) {
    if (size > kMost) throw std::runtime_error("selective scan on CUDA: expected sizes of at most 2^30");
  }
}

bool is_empty(const SelectiveScanForward& args) {
  return args.batch * args.directions * args.channels * args.length * args.states == 0;
}

}  // namespace

void selective_scan_forward(const SelectiveScanForward& args, const Context& context) {
  check_sizes(args);
  if (is_empty(args)) return;
  with_type(args.dtype, [&](auto type) { scan_forward<decltype(type)>(args, context); });
}

void selective_scan_backward(const SelectiveScanBackward& args, const Context& context) {
  check_sizes(args.forward);
  if (is_empty(args.forward)) return;
  with_type(args.forward.dtype, [&](auto type) { scan_backward<decltype(type)>(args, context); });
}

}  // namespace fgk::cuda
