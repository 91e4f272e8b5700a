// SPDX-License-Identifier: Apache-2.0
// The selective scan for one type of sequences.
#pragma once

#include "device_types.h"
#include "selective_scan.h"

namespace fgk::cuda {

// Defined once per type in selective_scan_<type>.cu.
template <class T>
void scan_forward(const SelectiveScanForward& args, const Context& context);
template <class T>
void scan_backward(const SelectiveScanBackward& args, const Context& context);

}  // namespace fgk::cuda
