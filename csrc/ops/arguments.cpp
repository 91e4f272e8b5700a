// SPDX-License-Identifier: Apache-2.0
#include "arguments.h"

namespace fgk::ops {

void Arguments::check_sequence(const char* name, const Tensor& tensor) const {
  check_device(name, tensor, name_, first_);
  check(tensor.scalar_type() == type(), name, ": expected dtype ", dtype_name(type()), " like ", name_, ", got ",
        dtype_name(tensor));
}

void Arguments::check_parameter(const char* name, const Tensor& tensor) const {
  check_device(name, tensor, name_, first_);
  check(tensor.scalar_type() == accumulation(), name, ": expected real dtype ", dtype_name(accumulation()), " with ",
        name_, " of dtype ", dtype_name(type()), ", got ", dtype_name(tensor));
}

void Arguments::check_index(const char* name, const Tensor& tensor) const {
  check_device(name, tensor, name_, first_);
  check(tensor.scalar_type() == ScalarType::Int, name, ": expected dtype int32, got ", dtype_name(tensor));
}

void Arguments::check_sizes(const char* name, const Tensor& tensor, const char* letters,
                            std::initializer_list<int64_t> sizes) const {
  check(has_sizes(tensor, sizes), name, ": expected ", letters, " = ", shape(sizes), " like ", name_, ", got ",
        shape(tensor));
}

void Arguments::sequence(const char* name, const Tensor& tensor, const char* letters,
                         std::initializer_list<int64_t> sizes) const {
  check_sequence(name, tensor);
  check_sizes(name, tensor, letters, sizes);
}

void Arguments::parameter(const char* name, const Tensor& tensor, const char* letters,
                          std::initializer_list<int64_t> sizes) const {
  check_parameter(name, tensor);
  check_sizes(name, tensor, letters, sizes);
}

void Arguments::index(const char* name, const Tensor& tensor, const char* letters,
                      std::initializer_list<int64_t> sizes) const {
  check_index(name, tensor);
  check_sizes(name, tensor, letters, sizes);
}

void check_writable(const char* name, const Tensor& tensor) {
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    check(tensor.size(d) <= 1 || tensor.stride(d) != 0, name,
          ": written in place, expected elements that share no memory, got stride 0 in dimension ", d, " of ",
          shape(tensor));
  }
}

void check_entries(const char* name, const Tensor& indices, int64_t entries) {
  if (!device::host_reads()) return;
  const int32_t* values = static_cast<const int32_t*>(indices.const_data_ptr());
  std::vector<bool> used(static_cast<size_t>(entries), false);
  for (int64_t b = 0; b < indices.size(0); ++b) {
    const int64_t entry = values[b * indices.stride(0)];
    check(entry >= 0 && entry < entries, name, ": expected values in [0, ", entries, "), got ", entry, " at position ",
          b);
    check(!used[static_cast<size_t>(entry)], name, ": expected each value once, got ", entry, " again at position ", b);
    used[static_cast<size_t>(entry)] = true;
  }
}

}  // namespace fgk::ops
