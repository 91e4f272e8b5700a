// SPDX-License-Identifier: Apache-2.0
// Checks of a call's tensors against its first one.
#pragma once

#include "checks.h"

namespace fgk::ops {

// Sequences share the dtype of the first tensor; parameters and states have the accumulation type: float64 for float64,
// else float32. Sizes are those of the call, `letters` names them: check.sequence("z", z, "(B, D, L)", {2, 16, 8}).
class Arguments {
 public:
  Arguments(const char* name, const Tensor& first) : name_(name), first_(first), dtype_(check_float(name, first)) {}

  DType dtype() const { return dtype_; }
  ScalarType type() const { return first_.scalar_type(); }
  ScalarType accumulation() const { return dtype_ == DType::f64 ? ScalarType::Double : ScalarType::Float; }
  const Tensor& first() const { return first_; }

  void sequence(const char* name, const Tensor& tensor, const char* letters,
                std::initializer_list<int64_t> sizes) const;
  void parameter(const char* name, const Tensor& tensor, const char* letters,
                 std::initializer_list<int64_t> sizes) const;
  void index(const char* name, const Tensor& tensor, const char* letters, std::initializer_list<int64_t> sizes) const;

  void sequence(const char* name, const OptionalTensor& tensor, const char* letters,
                std::initializer_list<int64_t> sizes) const {
    if (tensor) sequence(name, *tensor, letters, sizes);
  }
  void parameter(const char* name, const OptionalTensor& tensor, const char* letters,
                 std::initializer_list<int64_t> sizes) const {
    if (tensor) parameter(name, *tensor, letters, sizes);
  }
  void index(const char* name, const OptionalTensor& tensor, const char* letters,
             std::initializer_list<int64_t> sizes) const {
    if (tensor) index(name, *tensor, letters, sizes);
  }

  // Parts of the above, for tensors whose sizes are not all those of the first.
  void check_sequence(const char* name, const Tensor& tensor) const;
  void check_parameter(const char* name, const Tensor& tensor) const;
  void check_index(const char* name, const Tensor& tensor) const;
  void check_sizes(const char* name, const Tensor& tensor, const char* letters,
                   std::initializer_list<int64_t> sizes) const;

  // A tensor without elements stands for the gradient of an absent input.
  Tensor no_gradient(ScalarType type) const { return empty({0}, type, first_); }

 private:
  const char* name_;
  const Tensor& first_;
  DType dtype_;
};

// An input's memory for the kernels' structures, which serve inputs and outputs alike.
inline void* data_of(const Tensor& tensor) { return const_cast<void*>(tensor.const_data_ptr()); }
inline const void* data_of(const OptionalTensor& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }
inline const int32_t* index_data(const OptionalTensor& tensor) { return static_cast<const int32_t*>(data_of(tensor)); }

inline OptionalTensor dense(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(dense(*tensor)) : std::nullopt;
}

// Refuses a tensor that is written in place while several of its elements share memory.
void check_writable(const char* name, const Tensor& tensor);

// Rows of a state that the batch entries use: int32 (B,) in [0, entries), none of them twice. Values are checked where
// the host reads them.
void check_entries(const char* name, const Tensor& indices, int64_t entries);

}  // namespace fgk::ops
