// SPDX-License-Identifier: Apache-2.0
#include "checks.h"

#include <algorithm>
#include <utility>

namespace fgk::ops {
namespace {

std::string join(const int64_t* sizes, int64_t rank) {
  std::ostringstream text;
  text << '(';
  for (int64_t d = 0; d < rank; ++d) text << (d ? ", " : "") << sizes[d];
  text << (rank == 1 ? ",)" : ")");
  return text.str();
}

int32_t device_type(const Tensor& tensor) {
  int32_t type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

// As torch prints it: cpu, meta, cuda:0.
std::string device_name(const Tensor& tensor) {
  const int32_t type = device_type(tensor);
  const int32_t index = tensor.get_device_index();
  const std::string suffix = index < 0 ? "" : ":" + std::to_string(index);
  if (type == aoti_torch_device_type_cpu()) return "cpu";
  if (type == aoti_torch_device_type_meta()) return "meta";
  if (type == aoti_torch_device_type_cuda()) return "cuda" + suffix;
  if (type == aoti_torch_device_type_xpu()) return "xpu" + suffix;
  if (type == aoti_torch_device_type_mps()) return "mps" + suffix;
  return "of type " + std::to_string(type) + suffix;
}

}  // namespace

std::string shape(const Tensor& tensor) { return join(tensor.sizes().data(), tensor.dim()); }

std::string shape(std::initializer_list<int64_t> sizes) {
  return join(sizes.begin(), static_cast<int64_t>(sizes.size()));
}

const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
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
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return torch::headeronly::toString(dtype);
  }
}

const char* dtype_name(const Tensor& tensor) { return dtype_name(tensor.scalar_type()); }

void check_device(const char* name, const Tensor& tensor) {
  check(device_type(tensor) == device::type(), name, ": expected a ",
        device::type() == aoti_torch_device_type_cpu() ? "CPU" : "CUDA", " tensor, got device ", device_name(tensor));
}

void check_device(const char* name, const Tensor& tensor, const char* first_name, const Tensor& first) {
  const bool same = device_type(tensor) == device::type() && tensor.get_device_index() == first.get_device_index();
  check(same, name, ": expected device ", device_name(first), " like ", first_name, ", got ", device_name(tensor));
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

DType check_float(const char* name, const Tensor& tensor) {
  check_device(name, tensor);
  const std::optional<DType> dtype = kernel_dtype(tensor);
  check(dtype.has_value() && *dtype != DType::i8, name, ": expected dtype float32, float64, bfloat16 or float16, got ",
        dtype_name(tensor));
  return *dtype;
}

bool has_sizes(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  if (tensor.dim() != static_cast<int64_t>(sizes.size())) return false;
  return std::equal(sizes.begin(), sizes.end(), tensor.sizes().data());
}

Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

Tensor dense_channels(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

Tensor dense_rows(const Tensor& tensor) {
  for (int64_t d = tensor.dim() - 2; d < tensor.dim(); ++d) {
    if (tensor.size(d) <= 1 || tensor.stride(d) == 1) return tensor;
  }
  return torch::stable::contiguous(tensor);
}

int64_t span(const Tensor& tensor) {
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) == 0) return 0;
    last += (tensor.size(d) - 1) * tensor.stride(d);
  }
  return last + 1;
}

namespace {

Tensor empty_strided(const int64_t* sizes, const std::vector<int64_t>& strides, ScalarType dtype, const Tensor& like) {
  const int64_t rank = static_cast<int64_t>(strides.size());
  AtenTensorHandle handle = nullptr;
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(rank, sizes, strides.data(), type, device::type(), like.get_device_index(), &handle));
  return Tensor(handle);
}

std::vector<int64_t> dense_strides(const int64_t* sizes, int64_t rank) {
  std::vector<int64_t> strides(static_cast<size_t>(rank));
  int64_t stride = 1;
  for (int64_t d = rank - 1; d >= 0; --d) {
    strides[static_cast<size_t>(d)] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  return strides;
}

}  // namespace

Tensor empty(const int64_t* sizes, int64_t rank, ScalarType dtype, const Tensor& like) {
  return empty_strided(sizes, dense_strides(sizes, rank), dtype, like);
}

Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  return empty(sizes.begin(), static_cast<int64_t>(sizes.size()), dtype, like);
}

Tensor zeros(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  Tensor tensor = empty(sizes, dtype, like);
  fill_zero(tensor);
  return tensor;
}

Tensor empty_dense_like(const Tensor& tensor) {
  return empty(tensor.sizes().data(), tensor.dim(), tensor.scalar_type(), tensor);
}

Tensor empty_following(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (last < 1 || tensor.stride(last - 1) != 1 || tensor.stride(last) == 1) return empty_dense_like(tensor);
  std::vector<int64_t> sizes(tensor.sizes().data(), tensor.sizes().data() + tensor.dim());
  std::swap(sizes[sizes.size() - 2], sizes.back());
  std::vector<int64_t> strides = dense_strides(sizes.data(), tensor.dim());
  std::swap(strides[strides.size() - 2], strides.back());
  return empty_strided(tensor.sizes().data(), strides, tensor.scalar_type(), tensor);
}

void fill_zero(Tensor tensor) {
  if (tensor.numel() > 0) torch::stable::zero_(tensor);
}

}  // namespace fgk::ops
