// SPDX-License-Identifier: Apache-2.0
// What every operator needs on the torch side: error texts, views of tensors for the kernels, allocation, threads.
// The only door between LibTorch's stable ABI and the kernels.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/common/parallel.h"
#include "../kernels/common/types.h"

namespace fgk::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  ((text << parts), ...);
  throw std::runtime_error(text.str());
}

// check(condition, "queries: expected ..., got ", shape(queries))
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (__builtin_expect(!condition, 0)) fail(parts...);
}

std::string shape(const Tensor& tensor);
std::string shape(std::initializer_list<int64_t> sizes);
const char* dtype_name(const Tensor& tensor);

// float32, float64, bfloat16, float16 or int8; anything else is the caller's error.
std::optional<DType> kernel_dtype(const Tensor& tensor);

// The tensor itself when its last dimension is dense, else a contiguous copy.
Tensor dense_channels(const Tensor& tensor);
Tensor dense(const Tensor& tensor);

Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype);
Tensor empty(const int64_t* sizes, int64_t rank, ScalarType dtype);

// torch's own thread pool, as the kernels ask for it.
Parallel torch_threads();

}  // namespace fgk::ops
