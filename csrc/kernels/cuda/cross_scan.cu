// SPDX-License-Identifier: Apache-2.0
// Launches cross scans and merges.
#include "cross_scan.cuh"

#include <stdexcept>

#include "kernel_call.cuh"
#include "selective_scan.h"

namespace fgk::cuda {
namespace {

template <class T>
void launch(const CrossScan& args, const Context& context) {
  KernelCall call(context);
  CrossParams<T> p{};
  p.x = call.buffers().in(static_cast<const T*>(args.x.data), args.x.span, "x");
  p.x_batch = args.x.batch;
  p.x_direction = args.x.direction;
  p.x_channel = args.x.channel;
  p.x_position = args.x.position;
  p.table = call.buffers().in(args.table, args.directions * args.length, "table");
  p.rows = args.batch * args.channels;
  p.out =
      call.buffers().out(static_cast<T*>(args.out), p.rows * args.length * (args.merge ? 1 : args.directions), "out");
  p.channels = args.channels;
  p.directions = static_cast<int32_t>(args.directions);
  p.length = static_cast<int32_t>(args.length);
  p.read_directions = args.merge ? p.directions : 1;
  // Short rows share a block, so that its threads have something to do; long ones leave room for a second block.
  constexpr int64_t kElementsPerBlock = 4096;
  const int64_t row_elements = args.directions * args.length;
  p.block_rows = static_cast<int32_t>(dev::max(int64_t{1}, dev::min(p.rows, kElementsPerBlock / row_elements)));
  const int64_t bytes = dev::shared_bytes<T>(p.block_rows * p.read_directions * args.length);
  p.staged = bytes <= dev::limits().shared_per_block / 2;
  dev::launch(args.merge ? "cross_merge" : "cross_scan", args.merge ? cross_merge_kernel<T> : cross_scan_kernel<T>,
              {ceil_div(p.rows, p.block_rows), kCrossThreads, p.staged ? bytes : 0}, call.stream(), p);
}

}  // namespace

void cross_scan(const CrossScan& args, const Context& context) {
  if (args.batch * args.directions * args.channels * args.length == 0) return;
  constexpr int64_t kMostElements = int64_t{1} << 30;
  if (args.directions * args.length > kMostElements) {
    throw std::runtime_error("cross scan on CUDA: expected at most 2^30 entries of the table");
  }
  with_type(args.dtype, [&](auto type) { launch<decltype(type)>(args, context); });
}

}  // namespace fgk::cuda
