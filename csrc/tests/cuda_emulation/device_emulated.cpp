// SPDX-License-Identifier: Apache-2.0
// Device of libfgkernels_emulated: CPU tensors, the CUDA kernels, and the emulator that executes them.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "kernels/cuda/causal_conv1d.h"
#include "kernels/cuda/late_interaction.h"
#include "kernels/cuda/mamba_chunk_scan.h"
#include "kernels/cuda/selective_scan.h"
#include "ops/checks.h"

namespace fgk::ops::device {
namespace {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Block = std::unique_ptr<void, Free>;

// Scratch memory of one call: each piece a block of its own, so that AddressSanitizer sees its end, and poisoned.
class Scratch {
 public:
  cuda::Context context() {
    return {nullptr, [](void* owner, int64_t bytes) { return static_cast<Scratch*>(owner)->take(bytes); }, this};
  }

 private:
  void* take(int64_t bytes) {
    void* memory = nullptr;
    const size_t size = static_cast<size_t>(bytes > 0 ? bytes : 1);
    if (posix_memalign(&memory, 256, size) != 0) throw std::bad_alloc();  // as cudaMalloc aligns
    std::memset(memory, 0xFF, size);  // NaN in every floating type, -1 in every index
    blocks_.emplace_back(memory);
    return memory;
  }

  std::vector<Block> blocks_;
};

}  // namespace

int32_t type() { return aoti_torch_device_type_cpu(); }

bool host_reads() { return true; }

void run(const LateInteractionForward& args, const Tensor&) {
  Scratch scratch;
  cuda::late_interaction_forward(args, scratch.context());
}

void run(const LateInteractionBackward& args, const Tensor&) {
  Scratch scratch;
  cuda::late_interaction_backward(args, scratch.context());
}

void run(const SelectiveScanForward& args, const Tensor&) {
  Scratch scratch;
  cuda::selective_scan_forward(args, scratch.context());
}

void run(const SelectiveScanBackward& args, const Tensor&) {
  Scratch scratch;
  cuda::selective_scan_backward(args, scratch.context());
}

void run(const StateUpdate& args, const Tensor&) {
  Scratch scratch;
  cuda::state_update(args, scratch.context());
}

void run(const CrossScan& args, const Tensor&) {
  Scratch scratch;
  cuda::cross_scan(args, scratch.context());
}

void run(const CausalConvForward& args, const Tensor&) {
  Scratch scratch;
  cuda::causal_conv1d_forward(args, scratch.context());
}

void run(const CausalConvBackward& args, const Tensor&) {
  Scratch scratch;
  cuda::causal_conv1d_backward(args, scratch.context());
}

void run(const CausalConvUpdate& args, const Tensor&) {
  Scratch scratch;
  cuda::causal_conv1d_update(args, scratch.context());
}

void run(const ChunkScanForward& args, const Tensor&) {
  Scratch scratch;
  cuda::chunk_scan_forward(args, scratch.context());
}

void run(const ChunkScanBackward& args, const Tensor&) {
  Scratch scratch;
  cuda::chunk_scan_backward(args, scratch.context());
}

}  // namespace fgk::ops::device
