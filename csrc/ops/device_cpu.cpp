// SPDX-License-Identifier: Apache-2.0
#include "../kernels/cpu/causal_conv1d.h"
#include "../kernels/cpu/cross_scan.h"
#include "../kernels/cpu/late_interaction.h"
#include "../kernels/cpu/mamba_chunk_scan.h"
#include "../kernels/cpu/selective_scan.h"
#include "device.h"

namespace fgk::ops::device {
namespace {

// torch's own thread pool, as the kernels ask for it.
Parallel torch_threads() {
  Parallel parallel;
  parallel.threads = static_cast<int>(torch::stable::get_num_threads());
  parallel.launch = [](int workers, void (*body)(void*, int), void* context) {
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
    });
  };
  return parallel;
}

}  // namespace

int32_t type() { return aoti_torch_device_type_cpu(); }

bool host_reads() { return true; }

void run(const LateInteractionForward& args, const Tensor&) { late_interaction_forward(args, torch_threads()); }

void run(const LateInteractionBackward& args, const Tensor&) { late_interaction_backward(args, torch_threads()); }

void run(const SelectiveScanForward& args, const Tensor&) { selective_scan_forward(args, torch_threads()); }

void run(const SelectiveScanBackward& args, const Tensor&) { selective_scan_backward(args, torch_threads()); }

void run(const StateUpdate& args, const Tensor&) { state_update(args, torch_threads()); }

void run(const CrossScan& args, const Tensor&) { cross_scan(args, torch_threads()); }

void run(const CausalConvForward& args, const Tensor&) { causal_conv1d_forward(args, torch_threads()); }

void run(const CausalConvBackward& args, const Tensor&) { causal_conv1d_backward(args, torch_threads()); }

void run(const CausalConvUpdate& args, const Tensor&) { causal_conv1d_update(args, torch_threads()); }

void run(const ChunkScanForward& args, const Tensor&) { chunk_scan_forward(args, torch_threads()); }

void run(const ChunkScanBackward& args, const Tensor&) { chunk_scan_backward(args, torch_threads()); }

}  // namespace fgk::ops::device
