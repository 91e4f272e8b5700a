// SPDX-License-Identifier: Apache-2.0
// The host's side of the device layer in CUDA: launches, device limits, buffers.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "device_cuda.cuh"

namespace fgk::dev {

namespace detail {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

}  // namespace detail

// Limits of the current device. Throws std::runtime_error when there is none.
inline Limits limits() {
  constexpr int kDevices = 64;
  // Both numbers in one word, so that threads that fill an entry at the same time write the same thing.
  static std::atomic<int64_t> known[kDevices];
  int device = 0;
  detail::check(cudaGetDevice(&device), "cudaGetDevice");
  int64_t packed = device < kDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (packed == 0) {
    int multiprocessors = 0;
    int shared = 0;
    detail::check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
                  "cudaDeviceGetAttribute(cudaDevAttrMultiProcessorCount)");
    detail::check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                  "cudaDeviceGetAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)");
    packed = (static_cast<int64_t>(multiprocessors) << 32) | shared;
    if (device < kDevices) known[device].store(packed, std::memory_order_relaxed);
  }
  return {static_cast<int>(packed >> 32), packed & 0xFFFFFFFF};
}

// Enqueues kernel(args...) on `stream` (a cudaStream_t). Throws std::runtime_error with the kernel's name and CUDA's
// text when it cannot be launched.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), const Launch& shape, void* stream, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument per parameter of the kernel");
  if (shape.blocks == 0) return;
  if (shape.blocks < 0 || shape.blocks > INT32_MAX || shape.threads < kWarpSize || shape.threads > kMaxThreads ||
      shape.threads % kWarpSize != 0 || shape.shared_bytes < 0 || shape.shared_bytes > INT32_MAX) {
    throw std::runtime_error("kernel " + std::string(name) + ": cannot be launched with " +
                             std::to_string(shape.blocks) + " blocks of " + std::to_string(shape.threads) +
                             " threads and " + std::to_string(shape.shared_bytes) + " bytes of shared memory");
  }
  constexpr int64_t kWithoutOptIn = 48 * 1024;
  if (shape.shared_bytes > kWithoutOptIn) {
    detail::check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)),
        name);
  }
  kernel<<<static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.threads),
           static_cast<size_t>(shape.shared_bytes), static_cast<cudaStream_t>(stream)>>>(static_cast<P>(args)...);
  detail::check(cudaGetLastError(), name);
}

// Device memory of one call, as kernels take it: read (in), written (out: not read before it is written), or both
// (inout). Counts are elements, names are for messages. A null pointer gives a null gptr.
class Buffers {
 public:
  template <class T>
  gptr<const T> in(const T* p, int64_t /*count*/, const char* /*name*/) {
    return gptr<const T>(p);
  }
  template <class T>
  gptr<T> out(T* p, int64_t /*count*/, const char* /*name*/) {
    return gptr<T>(p);
  }
  template <class T>
  gptr<T> inout(T* p, int64_t /*count*/, const char* /*name*/) {
    return gptr<T>(p);
  }
};

}  // namespace fgk::dev
