// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "emulation.h"

namespace fgk::emulation::core {

// Those that were set, else the environment's. Throws std::invalid_argument.
Options current_options();
// How to repeat a launch that ran with `options`.
std::string repeat_hint(const Options& options);

}  // namespace fgk::emulation::core
