// SPDX-License-Identifier: Apache-2.0
// What the operators need from the device that their library serves. Each library links one implementation:
// device_cpu.cpp, device_cuda.cpp, or csrc/tests/cuda_emulation/device_emulated.cpp.
#pragma once

#include "../kernels/common/causal_conv1d.h"
#include "../kernels/common/late_interaction.h"
#include "../kernels/common/mamba_chunk_scan.h"
#include "../kernels/common/selective_scan.h"
#include "tensors.h"

namespace fgk::ops::device {

// Device type of the library's tensors, in the numbering of LibTorch's C shim.
int32_t type();

// Whether the host can read the tensors' memory without a copy. Where it cannot, offsets and other indices go to the
// kernels as they are, since looking at them would make every call wait for the device.
bool host_reads();

// Runs (on a GPU: enqueues on the current stream) the call on the device of `like`, where all its tensors live.
void run(const LateInteractionForward& args, const Tensor& like);
void run(const LateInteractionBackward& args, const Tensor& like);
void run(const SelectiveScanForward& args, const Tensor& like);
void run(const SelectiveScanBackward& args, const Tensor& like);
void run(const StateUpdate& args, const Tensor& like);
void run(const CrossScan& args, const Tensor& like);
void run(const CausalConvForward& args, const Tensor& like);
void run(const CausalConvBackward& args, const Tensor& like);
void run(const CausalConvUpdate& args, const Tensor& like);
void run(const ChunkScanForward& args, const Tensor& like);
void run(const ChunkScanBackward& args, const Tensor& like);

}  // namespace fgk::ops::device
