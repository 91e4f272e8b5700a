// SPDX-License-Identifier: Apache-2.0
// What every operator needs on the torch side: error texts, views of tensors for the kernels, allocation.
#pragma once

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/common/types.h"
#include "device.h"
#include "tensors.h"

namespace fgk::ops {

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
const char* dtype_name(ScalarType dtype);
const char* dtype_name(const Tensor& tensor);

// A call runs where its first tensor lives: that one must be on the library's device, every other one beside it.
void check_device(const char* name, const Tensor& tensor);
void check_device(const char* name, const Tensor& tensor, const char* first_name, const Tensor& first);

// float32, float64, bfloat16, float16 or int8; anything else is the caller's error.
std::optional<DType> kernel_dtype(const Tensor& tensor);

// The first tensor of a call: on the library's device, float32, float64, bfloat16 or float16.
DType check_float(const char* name, const Tensor& tensor);

bool has_sizes(const Tensor& tensor, std::initializer_list<int64_t> sizes);

// The tensor itself when its last dimension is dense, else a contiguous copy.
Tensor dense_channels(const Tensor& tensor);
Tensor dense(const Tensor& tensor);
// Likewise where neither of the last two dimensions is dense, as in the gradient of a sum, which is one expanded
// number.
Tensor dense_rows(const Tensor& tensor);

// Elements between the first and the last one that sizes and strides reach, both included.
int64_t span(const Tensor& tensor);

// Uninitialised and dense, on the device of `like`.
Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like);
Tensor empty(const int64_t* sizes, int64_t rank, ScalarType dtype, const Tensor& like);
Tensor zeros(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like);

// Uninitialised, of the tensor's sizes and dtype: dense, in the order of its dimensions.
Tensor empty_dense_like(const Tensor& tensor);

// The same, but where the last dimension but one is the tensor's unit-stride one and the last is not, as in
// channel-last memory, so it is here.
Tensor empty_following(const Tensor& tensor);

void fill_zero(Tensor tensor);

}  // namespace fgk::ops
