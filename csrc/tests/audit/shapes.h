// SPDX-License-Identifier: Apache-2.0
// What launch_shapes' cases share: the memory of a call, and the storage types by name.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/types.h"
#include "kernels/cuda/context.h"

// What the next launches are reported as.
extern std::string current_case;

namespace fgk {

// Memory of one call; nobody reads or writes what the kernels would.
class Memory {
 public:
  void* take(int64_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, static_cast<size_t>(bytes > 0 ? bytes : 1)) != 0) std::abort();
    blocks_.emplace_back(memory);
    return memory;
  }
  cuda::Context context() {
    return {nullptr, [](void* owner, int64_t bytes) { return static_cast<Memory*>(owner)->take(bytes); }, this};
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::vector<std::unique_ptr<void, Free>> blocks_;
};

struct NamedType {
  const char* name;
  DType dtype;
};
constexpr NamedType kNamedTypes[] = {
    {"bf16", DType::bf16}, {"f16", DType::f16}, {"f32", DType::f32}, {"f64", DType::f64}};

}  // namespace fgk
