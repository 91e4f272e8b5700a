// SPDX-License-Identifier: Apache-2.0
#include "checks.h"

namespace fgk::ops {
namespace {

std::string join(const int64_t* sizes, int64_t rank) {
  std::ostringstream text;
  text << '(';
  for (int64_t d = 0; d < rank; ++d) text << (d ? ", " : "") << sizes[d];
  text << (rank == 1 ? ",)" : ")");
  return text.str();
}

}  // namespace

std::string shape(const Tensor& tensor) { return join(tensor.sizes().data(), tensor.dim()); }

std::string shape(std::initializer_list<int64_t> sizes) {
  return join(sizes.begin(), static_cast<int64_t>(sizes.size()));
}

const char* dtype_name(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(tensor.scalar_type());
  }
}

std::optional<DType> kernel_dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::Char:
      return DType::i8;
    default:
      return std::nullopt;
  }
}

Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

Tensor dense_channels(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

Tensor empty(const int64_t* sizes, int64_t rank, ScalarType dtype) {
  std::vector<int64_t> strides(static_cast<size_t>(rank));
  int64_t stride = 1;
  for (int64_t d = rank - 1; d >= 0; --d) {
    strides[static_cast<size_t>(d)] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  AtenTensorHandle handle = nullptr;
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(rank, sizes, strides.data(), type, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty(sizes.begin(), static_cast<int64_t>(sizes.size()), dtype);
}

Parallel torch_threads() {
  Parallel parallel;
  parallel.threads = static_cast<int>(torch::stable::get_num_threads());
  parallel.launch = [](int workers, void (*body)(void*, int), void* context) {
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
    });
  };
  return parallel;
}

}  // namespace fgk::ops
