// SPDX-License-Identifier: Apache-2.0
// What the operators need from the device that their library serves. Each library links one implementation:
// device_cpu.cpp, device_cuda.cpp, or csrc/tests/cuda_emulation/device_emulated.cpp.
#pragma once

#include "../kernels/common/late_interaction.h"
#include "tensors.h"

namespace fgk::ops::device {

// Device type of the library's tensors, in the numbering of LibTorch's C shim.
int32_t type();

// Whether the host can read the tensors' memory without a copy. Where it cannot, packed offsets go to the kernels as
// they are, since looking at them would make every call wait for the device.
bool host_reads();

// Runs (on a GPU: enqueues on the current stream) the call on the device of `like`, where all its tensors live.
void run(const LateInteractionForward& args, const Tensor& like);
void run(const LateInteractionBackward& args, const Tensor& like);

}  // namespace fgk::ops::device
