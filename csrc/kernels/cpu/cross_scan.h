// SPDX-License-Identifier: Apache-2.0
// Gathers of a map along several scan orders, and sums over them, on the CPU.
#pragma once

#include "../common/parallel.h"
#include "../common/selective_scan.h"

namespace fgk {

void cross_scan(const CrossScan& args, const Parallel& parallel);

}  // namespace fgk
