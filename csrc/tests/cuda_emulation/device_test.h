// SPDX-License-Identifier: Apache-2.0
// The same kernel tests on a GPU and in the emulator: arrays that a kernel can reach, and orders to run in.
#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/device.cuh"

#if !defined(FGK_CUDA_EMULATION)
#include <cuda_runtime.h>
#endif

namespace device_test {

#if defined(FGK_CUDA_EMULATION)

template <class T>
class Array {
 public:
  explicit Array(std::vector<T> values) : host(std::move(values)) {}
  explicit Array(size_t count, T value = T{}) : host(count, value) {}
  int64_t count() const { return static_cast<int64_t>(host.size()); }
  T* to_device() { return host.data(); }
  void from_device() {}

  std::vector<T> host;
};

inline bool has_bulk_copy() { return true; }

// body() in every order of blocks and threads.
template <class Body>
void in_every_order(const Body& body) {
  using fgk::emulation::Order;
  const fgk::emulation::Options orders[] = {{Order::fifo, 0, true},
                                            {Order::lifo, 0, true},
                                            {Order::random, 1, true},
                                            {Order::random, 2, true},
                                            {Order::random, 3, true}};
  for (const auto& options : orders) {
    fgk::emulation::set_options(options);
    body();
  }
  fgk::emulation::reset_options();
}

#else

// A vector and its copy on the device.
template <class T>
class Array {
 public:
  explicit Array(std::vector<T> values) : host(std::move(values)) {}
  explicit Array(size_t count, T value = T{}) : host(count, value) {}
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { cudaFree(device_); }
  int64_t count() const { return static_cast<int64_t>(host.size()); }
  T* to_device() {
    if (device_ == nullptr) fgk::dev::detail::check(cudaMalloc(&device_, host.size() * sizeof(T)), "cudaMalloc");
    copy(device_, host.data(), cudaMemcpyHostToDevice);
    return device_;
  }
  void from_device() { copy(host.data(), device_, cudaMemcpyDeviceToHost); }

  std::vector<T> host;

 private:
  void copy(void* to, const void* from, cudaMemcpyKind kind) {
    fgk::dev::detail::check(cudaMemcpy(to, from, host.size() * sizeof(T), kind), "cudaMemcpy");
  }

  T* device_ = nullptr;
};

inline bool has_bulk_copy() {
  int device = 0;
  int major = 0;
  fgk::dev::detail::check(cudaGetDevice(&device), "cudaGetDevice");
  fgk::dev::detail::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                          "cudaDeviceGetAttribute");
  return major >= 9;
}

template <class Body>
void in_every_order(const Body& body) {
  body();
}

#endif

}  // namespace device_test
