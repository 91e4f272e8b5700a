// SPDX-License-Identifier: Apache-2.0
// The host's side of one call of an operator, whatever its family.
#pragma once

#include "../common/types.h"
#include "context.h"
#include "device.cuh"

namespace fgk::cuda {

// The call's stream, its scratch memory, and the buffers that its kernels see.
class KernelCall {
 public:
  explicit KernelCall(const Context& context) : context_(context) {}

  void* stream() const { return context_.stream; }
  dev::Buffers& buffers() { return buffers_; }

  template <class T>
  dev::gptr<T> scratch(int64_t count, const char* name) {
    void* memory = context_.scratch(context_.owner, count * static_cast<int64_t>(sizeof(T)));
    return buffers_.out(static_cast<T*>(memory), count, name);
  }

 private:
  const Context& context_;
  dev::Buffers buffers_;
};

// body(T()) for the type T of tokens or sequences.
template <class Body>
void with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f64:
      return body(double());
    case DType::f32:
      return body(float());
    case DType::bf16:
      return body(dev::bf16());
    default:
      return body(dev::f16());
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fgk::cuda
