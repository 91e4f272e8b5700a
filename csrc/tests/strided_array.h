// SPDX-License-Identifier: Apache-2.0
// Arrays of numbers in the library's storage types and memory orders, and the doubles that they stand for.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "arrays.h"

namespace strided_array {

using fgk::DType;
using fgk::dtype_bytes;

// Storage order: as the sizes say; the last two sizes swapped; or as they say with three elements between rows, which
// start anywhere (padded) or, the sizes allowing, at multiples of 16 bytes (spaced).
enum class Layout { dense, swapped, padded, spaced };

// An array in a storage type, strided, and the doubles it stands for in the order of its sizes. No sizes: not there.
struct Array {
  DType dtype = DType::f32;
  std::vector<int64_t> size;
  std::vector<int64_t> stride;
  std::vector<uint8_t> memory;
  std::vector<double> value;
  int64_t start = 0;

  Array() = default;
  Array(DType type, std::vector<int64_t> sizes, Layout layout = Layout::dense) : dtype(type), size(std::move(sizes)) {
    const size_t rank = size.size();
    std::vector<size_t> order(rank);
    std::iota(order.begin(), order.end(), size_t{0});
    if (layout == Layout::swapped && rank > 1) std::swap(order[rank - 1], order[rank - 2]);
    stride.resize(rank);
    int64_t pitch = 1;
    for (size_t i = rank; i-- > 0;) {
      stride[order[i]] = pitch;
      pitch *= size[order[i]];
      if ((layout == Layout::padded || layout == Layout::spaced) && i + 1 == rank) pitch += 3;
    }
    start = layout == Layout::padded ? 1 : 0;
    memory.assign(static_cast<size_t>((start + span()) * dtype_bytes(dtype)), 0xFF);
    value.assign(static_cast<size_t>(std::accumulate(size.begin(), size.end(), int64_t{1}, std::multiplies<>())), 0.0);
  }

  explicit operator bool() const { return !size.empty(); }
  void* data() { return *this ? memory.data() + start * dtype_bytes(dtype) : nullptr; }
  int64_t span() const {
    int64_t last = 0;
    for (size_t i = 0; i < size.size(); ++i) {
      if (size[i] == 0) return 0;
      last += (size[i] - 1) * stride[i];
    }
    return last + 1;
  }
  // Stride of a dimension; 0 where all its places share one element.
  int64_t step(size_t i) const { return size[i] == 1 ? 0 : stride[i]; }

  // The number at a place whose indices may exceed a size of 1.
  double at(std::initializer_list<int64_t> place) const { return value[flat(place)]; }
  size_t flat(std::initializer_list<int64_t> place) const {
    int64_t i = 0;
    size_t axis = 0;
    for (int64_t p : place) {
      i = i * size[axis] + (size[axis] == 1 ? 0 : p);
      ++axis;
    }
    return static_cast<size_t>(i);
  }

  // Random multiples of `unit` in [low, high] x unit: exact in each type if both are below 256.
  void draw(std::mt19937& random, int low, int high, double unit) {
    std::uniform_int_distribution<int> integer(low, high);
    for (double& v : value) v = integer(random) * unit;
    store();
  }

  // Values must be exact in the storage type.
  void store() {
    for (size_t i = 0; i < value.size(); ++i) {
      arrays::write(dtype, memory.data(), element(i), value[i]);
      const double stored = arrays::read(dtype, memory.data(), element(i));
      if (stored != value[i]) check::fail(__FILE__, __LINE__) << value[i] << " is stored as " << stored << "\n";
    }
  }
  void load() {
    for (size_t i = 0; i < value.size(); ++i) value[i] = arrays::read(dtype, memory.data(), element(i));
  }

 private:
  int64_t element(size_t flat_index) const {
    int64_t rest = static_cast<int64_t>(flat_index);
    int64_t at = start;
    for (size_t axis = size.size(); axis-- > 0;) {
      at += rest % size[axis] * stride[axis];
      rest /= size[axis];
    }
    return at;
  }
};

}  // namespace strided_array
