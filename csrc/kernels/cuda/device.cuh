// SPDX-License-Identifier: Apache-2.0
// The device layer: the primitives in which all CUDA kernels of this library are written.
//
// nvcc compiles them to CUDA (device_cuda.cuh: each is a line of CUDA or one instruction, and all inline assembly is
// there). With FGK_CUDA_EMULATION defined, a host compiler takes device_emulated.cuh from csrc/tests/cuda_emulation
// instead, which executes kernels on the CPU and checks every access; docs/cuda-emulation.md tells how.
//
// Macros      FGK_GLOBAL, FGK_DEVICE, FGK_HOST_DEVICE before a function's type; FGK_LAUNCH_BOUNDS(threads, min_blocks)
//             between a kernel's type and name; FGK_UNROLL, FGK_NO_UNROLL before a loop. A device function that wraps
//             primitives can end its parameters in FGK_SITE_PARAMETER and pass FGK_SITE_ARGUMENT on: faults then name
//             its caller.
// Indices     tid() bid() lane() warp() block_threads() grid_blocks(); grids and blocks are 1-D
// Global      gptr<T>: ld(i) st(i, v) ld_as<V>(i) st_as<V>(i, v) p + n slice(offset, count) as<U>() bool(p)
//             ld_as and st_as move a V of 4, 8 or 16 bytes that starts at element i, an address divisible by sizeof(V).
//             Loads through gptr<const T> may use the read-only cache: what they read must not change during a launch.
//             slice narrows what an access may touch (emulated; free on a device): use it per row or per sample.
// Shared      Shared, whose take<T>(count) carves arrays out of the block's dynamic shared memory; sptr<T>: as gptr
// Barriers    sync_block() sync_warp(): order memory among the threads they join. Nothing else does.
// Warp        shfl_xor shfl shfl_up shfl_down (int32, uint32, float, double), ballot any all, warp_sum warp_max; always
//             all 32 lanes
// cp.async    cp_async16(dst, src, valid_bytes) cp_async_commit() cp_async_wait<N>()
// mbarrier    mbarrier_init mbarrier_arrive mbarrier_arrive_expect mbarrier_wait, and bulk_copy, which completes on
// one;
//             only where FGK_BULK_COPY is defined (sm_90 and emulated)
// Tensor core ldmatrix_x4 ldmatrix_x4_trans ldmatrix_x2 mma_16816<T>
// Atomics     atomic_add (float, double, int32, uint32) and atomic_max (int32) on gptr and sptr, relaxed; they return
//             the old value
// Numbers     to_float from_float<T> pack2<T> unpack2<T> min max isnan fma exp2_fast exp_fast log2_fast rcp_fast
//             first_bit count_bits
// Host        launch() limits() Buffers shared_bytes<T>(count)
#pragma once

#include <cmath>

#include "device_types.h"

#if defined(FGK_CUDA_EMULATION)
#include "device_emulated.cuh"
#elif defined(__CUDACC__)
#include "device_cuda.cuh"
#include "device_cuda_host.cuh"
#else
#error "kernels are compiled by nvcc, or by a host compiler with FGK_CUDA_EMULATION"
#endif

namespace fgk::dev {

// Bytes of shared memory that Shared::take<T>(count) uses up.
template <class T>
FGK_HOST_DEVICE constexpr int64_t shared_bytes(int64_t count) {
  return (count * static_cast<int64_t>(sizeof(T)) + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
}

FGK_HOST_DEVICE float to_float(float x) { return x; }

FGK_HOST_DEVICE int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }
FGK_HOST_DEVICE int32_t max(int32_t a, int32_t b) { return a < b ? b : a; }
FGK_HOST_DEVICE uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
FGK_HOST_DEVICE uint32_t max(uint32_t a, uint32_t b) { return a < b ? b : a; }
FGK_HOST_DEVICE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
FGK_HOST_DEVICE int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }
// A NaN loses against a number.
FGK_HOST_DEVICE float min(float a, float b) { return fminf(a, b); }
FGK_HOST_DEVICE float max(float a, float b) { return fmaxf(a, b); }
FGK_HOST_DEVICE double min(double a, double b) { return fmin(a, b); }
FGK_HOST_DEVICE double max(double a, double b) { return fmax(a, b); }
FGK_HOST_DEVICE bool isnan(float x) { return x != x; }
FGK_HOST_DEVICE bool isnan(double x) { return x != x; }
FGK_HOST_DEVICE float fma(float a, float b, float c) { return fmaf(a, b, c); }
FGK_HOST_DEVICE double fma(double a, double b, double c) { return ::fma(a, b, c); }

// Sum of all lanes' values, in every lane; the order of the additions is the same in every lane and every run.
template <class T>
FGK_DEVICE T warp_sum(T v FGK_SITE_PARAMETER) {
  FGK_UNROLL
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) v += shfl_xor(v, mask FGK_SITE_ARGUMENT);
  return v;
}

// Largest of all lanes' values, in every lane. A NaN loses against a number, as in max().
template <class T>
FGK_DEVICE T warp_max(T v FGK_SITE_PARAMETER) {
  FGK_UNROLL
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) v = max(v, shfl_xor(v, mask FGK_SITE_ARGUMENT));
  return v;
}

}  // namespace fgk::dev
