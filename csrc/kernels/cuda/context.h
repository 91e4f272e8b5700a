// SPDX-License-Identifier: Apache-2.0
// Where a call runs.
#pragma once

#include <cstdint>

namespace fgk::cuda {

// `scratch(owner, bytes)` gives device memory that stays valid, in stream order, until the call's kernels are done;
// 16-byte aligned.
struct Context {
  void* stream = nullptr;
  void* (*scratch)(void* owner, int64_t bytes) = nullptr;
  void* owner = nullptr;
};

}  // namespace fgk::cuda
