// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/accelerator.h>

#include "../kernels/cuda/causal_conv1d.h"
#include "../kernels/cuda/late_interaction.h"
#include "../kernels/cuda/mamba_chunk_scan.h"
#include "../kernels/cuda/selective_scan.h"
#include "checks.h"

namespace fgk::ops::device {
namespace {

// One call on the current stream of a tensor's device. Scratch memory comes from torch's caching allocator, which hands
// a block out again only to work that the same stream does later: it may be freed when the kernels are enqueued.
class Call {
 public:
  explicit Call(const Tensor& like) : like_(like), guard_(like.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &context_.stream));
    context_.owner = this;
    context_.scratch = [](void* owner, int64_t bytes) { return static_cast<Call*>(owner)->scratch(bytes); };
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  const cuda::Context& context() const { return context_; }

 private:
  void* scratch(int64_t bytes) {
    scratch_.push_back(empty({bytes}, ScalarType::Byte, like_));
    return scratch_.back().mutable_data_ptr();
  }

  const Tensor& like_;
  torch::stable::accelerator::DeviceGuard guard_;
  std::vector<Tensor> scratch_;
  cuda::Context context_{};
};

}  // namespace

int32_t type() { return aoti_torch_device_type_cuda(); }

bool host_reads() { return false; }

void run(const LateInteractionForward& args, const Tensor& like) {
  Call call(like);
  cuda::late_interaction_forward(args, call.context());
}

void run(const LateInteractionBackward& args, const Tensor& like) {
  Call call(like);
  cuda::late_interaction_backward(args, call.context());
}

void run(const SelectiveScanForward& args, const Tensor& like) {
  Call call(like);
  cuda::selective_scan_forward(args, call.context());
}

void run(const SelectiveScanBackward& args, const Tensor& like) {
  Call call(like);
  cuda::selective_scan_backward(args, call.context());
}

void run(const StateUpdate& args, const Tensor& like) {
  Call call(like);
  cuda::state_update(args, call.context());
}

void run(const CrossScan& args, const Tensor& like) {
  Call call(like);
  cuda::cross_scan(args, call.context());
}

void run(const CausalConvForward& args, const Tensor& like) {
  Call call(like);
  cuda::causal_conv1d_forward(args, call.context());
}

void run(const CausalConvBackward& args, const Tensor& like) {
  Call call(like);
  cuda::causal_conv1d_backward(args, call.context());
}

void run(const CausalConvUpdate& args, const Tensor& like) {
  Call call(like);
  cuda::causal_conv1d_update(args, call.context());
}

void run(const ChunkScanForward& args, const Tensor& like) {
  Call call(like);
  cuda::chunk_scan_forward(args, call.context());
}

void run(const ChunkScanBackward& args, const Tensor& like) {
  Call call(like);
  cuda::chunk_scan_backward(args, call.context());
}

}  // namespace fgk::ops::device
