// SPDX-License-Identifier: Apache-2.0
// The device layer in CUDA; see device.cuh for what is offered. Every asm statement of the library is in this file.
// Needs sm_80 or newer.
#pragma once

#include <cuda_fp16.h>

#include "device_types.h"

#define FGK_GLOBAL __global__
#define FGK_DEVICE __device__ __forceinline__
#define FGK_HOST_DEVICE __host__ __device__ __forceinline__
#define FGK_LAUNCH_BOUNDS(threads, min_blocks) __launch_bounds__(threads, min_blocks)
#define FGK_UNROLL _Pragma("unroll")
#define FGK_NO_UNROLL _Pragma("unroll 1")
// Emulated primitives take the source line they are called from; on a device there is no such parameter.
#define FGK_SITE_PARAMETER
#define FGK_SITE_ARGUMENT

namespace fgk::dev {

// ---- indices

FGK_DEVICE int tid() { return static_cast<int>(threadIdx.x); }
FGK_DEVICE int64_t bid() { return static_cast<int64_t>(blockIdx.x); }
FGK_DEVICE int lane() { return static_cast<int>(threadIdx.x % kWarpSize); }
FGK_DEVICE int warp() { return static_cast<int>(threadIdx.x / kWarpSize); }
FGK_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
FGK_DEVICE int64_t grid_blocks() { return static_cast<int64_t>(gridDim.x); }

// ---- memory

namespace detail {

// The plain CUDA type that moves N bytes in one instruction.
template <size_t N>
struct Word;
template <>
struct Word<1> {
  using type = unsigned char;
};
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned int;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

template <class To, class From>
FGK_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <class V>
FGK_DEVICE V load(const void* p) {
  // A copy first: a memcpy from memory would be taken apart into bytes.
  const typename Word<sizeof(V)>::type word = *static_cast<const typename Word<sizeof(V)>::type*>(p);
  return bit_cast<V>(word);
}

template <class V>
FGK_DEVICE V load_read_only(const void* p) {  // ld.global.nc
  return bit_cast<V>(__ldg(static_cast<const typename Word<sizeof(V)>::type*>(p)));
}

template <class V>
FGK_DEVICE void store(void* p, const V& v) {
  using W = typename Word<sizeof(V)>::type;
  *static_cast<W*>(p) = bit_cast<W>(v);
}

// One instruction, as above: the compiler takes assignments of vectors apart.
template <class V>
FGK_DEVICE void store_global(void* p, const V& v) {
  if constexpr (sizeof(V) == 16) {
    __stwb(static_cast<uint4*>(p), bit_cast<uint4>(v));
  } else if constexpr (sizeof(V) == 8) {
    __stwb(static_cast<uint2*>(p), bit_cast<uint2>(v));
  } else {
    store(p, v);
  }
}

}  // namespace detail

// Pointer to global memory. Null converts to false.
template <class T>
class gptr {
 public:
  using value = std::remove_const_t<T>;

  gptr() = default;
  FGK_HOST_DEVICE explicit gptr(T* p) : p_(p) {}
  template <class U, std::enable_if_t<std::is_same_v<const U, T> && !std::is_same_v<U, T>, int> = 0>
  FGK_HOST_DEVICE gptr(const gptr<U>& other) : p_(other.pointer()) {}

  FGK_DEVICE value ld(int64_t i) const { return load<value>(i); }
  template <class V>
  FGK_DEVICE V ld_as(int64_t i) const {
    static_assert(is_vector<V>, "V has 4, 8 or 16 bytes");
    return load<V>(i);
  }
  template <class U = T, if_writable<U> = 0>
  FGK_DEVICE void st(int64_t i, value v) const {
    detail::store(p_ + i, v);
  }
  template <class V, class U = T, if_writable<U> = 0>
  FGK_DEVICE void st_as(int64_t i, const V& v) const {
    static_assert(is_vector<V>, "V has 4, 8 or 16 bytes");
    detail::store_global(p_ + i, v);
  }
  FGK_HOST_DEVICE gptr operator+(int64_t n) const { return gptr(p_ + n); }
  FGK_HOST_DEVICE gptr slice(int64_t offset, int64_t /*count*/) const { return gptr(p_ + offset); }
  template <class U>
  FGK_HOST_DEVICE gptr<copy_const<T, U>> as() const {
    return gptr<copy_const<T, U>>(reinterpret_cast<copy_const<T, U>*>(p_));
  }
  FGK_HOST_DEVICE explicit operator bool() const { return p_ != nullptr; }
  FGK_HOST_DEVICE T* pointer() const { return p_; }

 private:
  template <class V>
  FGK_DEVICE V load(int64_t i) const {
    if constexpr (std::is_const_v<T>) {
      return detail::load_read_only<V>(p_ + i);
    } else {
      return detail::load<V>(p_ + i);
    }
  }

  T* p_ = nullptr;
};

// Pointer to the block's shared memory.
template <class T>
class sptr {
 public:
  using value = std::remove_const_t<T>;

  sptr() = default;
  FGK_DEVICE explicit sptr(T* p) : p_(p) {}
  template <class U, std::enable_if_t<std::is_same_v<const U, T> && !std::is_same_v<U, T>, int> = 0>
  FGK_DEVICE sptr(const sptr<U>& other) : p_(other.pointer()) {}

  FGK_DEVICE value ld(int i) const { return detail::load<value>(p_ + i); }
  template <class V>
  FGK_DEVICE V ld_as(int i) const {
    static_assert(is_vector<V>, "V has 4, 8 or 16 bytes");
    return detail::load<V>(p_ + i);
  }
  template <class U = T, if_writable<U> = 0>
  FGK_DEVICE void st(int i, value v) const {
    detail::store(p_ + i, v);
  }
  template <class V, class U = T, if_writable<U> = 0>
  FGK_DEVICE void st_as(int i, const V& v) const {
    static_assert(is_vector<V>, "V has 4, 8 or 16 bytes");
    detail::store(p_ + i, v);
  }
  FGK_DEVICE sptr operator+(int n) const { return sptr(p_ + n); }
  FGK_DEVICE sptr slice(int offset, int /*count*/) const { return sptr(p_ + offset); }
  template <class U>
  FGK_DEVICE sptr<copy_const<T, U>> as() const {
    return sptr<copy_const<T, U>>(reinterpret_cast<copy_const<T, U>*>(p_));
  }
  FGK_DEVICE T* pointer() const { return p_; }
  // The address as PTX instructions of the shared state space take it.
  FGK_DEVICE uint32_t address() const { return static_cast<uint32_t>(__cvta_generic_to_shared(p_)); }

 private:
  T* p_ = nullptr;
};

// The block's dynamic shared memory, handed out from its start. Every thread takes the same arrays in the same order.
class Shared {
 public:
  template <class T>
  FGK_DEVICE sptr<T> take(int count) {
    extern __shared__ __align__(16) unsigned char arena[];
    T* p = reinterpret_cast<T*>(arena + used_);
    used_ += (count * static_cast<int>(sizeof(T)) + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
    return sptr<T>(p);
  }

 private:
  int used_ = 0;
};

// ---- barriers

FGK_DEVICE void sync_block() { __syncthreads(); }
FGK_DEVICE void sync_warp() { __syncwarp(); }

// ---- warp collectives

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

template <class T>
FGK_DEVICE T shfl_xor(T v, int mask) {
  return __shfl_xor_sync(kAllLanes, v, mask);
}
// The value of lane `lane` modulo 32.
template <class T>
FGK_DEVICE T shfl(T v, int lane) {
  return __shfl_sync(kAllLanes, v, lane);
}
// The value of the lane `delta` below; lanes without one keep their own.
template <class T>
FGK_DEVICE T shfl_up(T v, int delta) {
  return __shfl_up_sync(kAllLanes, v, static_cast<unsigned>(delta));
}
// The value of the lane `delta` above; lanes without one keep their own.
template <class T>
FGK_DEVICE T shfl_down(T v, int delta) {
  return __shfl_down_sync(kAllLanes, v, static_cast<unsigned>(delta));
}
FGK_DEVICE uint32_t ballot(bool predicate) { return __ballot_sync(kAllLanes, predicate); }
FGK_DEVICE bool any(bool predicate) { return __any_sync(kAllLanes, predicate) != 0; }
FGK_DEVICE bool all(bool predicate) { return __all_sync(kAllLanes, predicate) != 0; }

// ---- cp.async

// Starts a copy of 16 bytes, both addresses divisible by 16: `valid_bytes` (0 to 16) from src, zeros for the rest.
template <class T>
FGK_DEVICE void cp_async16(sptr<T> dst, gptr<const T> src, int valid_bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(dst.address()),
               "l"(__cvta_generic_to_global(src.pointer())), "r"(valid_bytes)
               : "memory");
}
template <class T>
FGK_DEVICE void cp_async16(sptr<T> dst, gptr<T> src, int valid_bytes = 16) {
  cp_async16(dst, gptr<const T>(src), valid_bytes);
}
// Closes a group: this thread's copies since the last commit.
FGK_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until at most N of this thread's latest groups are under way. Other threads see the data after the next barrier.
template <int N>
FGK_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// ---- mbarriers and bulk copies (sm_90)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define FGK_BULK_COPY 1

// For `count` arrivals per phase, visible to bulk copies too. By one thread; a sync_block comes before its first use.
FGK_DEVICE void mbarrier_init(sptr<uint64_t> barrier, int count) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;\n"
      "fence.proxy.async.shared::cta;\n" ::"r"(barrier.address()),
      "r"(count)
      : "memory");
}
// Counts the thread in; what it did before is seen by those who wait for the phase.
FGK_DEVICE void mbarrier_arrive(sptr<uint64_t> barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier.address()) : "memory");
}
// The same, and the phase is complete only when copies have brought `bytes` bytes more.
FGK_DEVICE void mbarrier_arrive_expect(sptr<uint64_t> barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier.address()), "r"(bytes)
               : "memory");
}
// Until the phase of this parity is complete; the first phase has parity 0.
FGK_DEVICE void mbarrier_wait(sptr<uint64_t> barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n"
        "}\n"
        : "=r"(done)
        : "r"(barrier.address()), "r"(parity)
        : "memory");
  } while (done == 0);
}
// One thread starts a copy of `bytes` bytes, a multiple of 16 as both addresses are; it completes on `barrier`.
template <class T>
FGK_DEVICE void bulk_copy(sptr<T> dst, gptr<const T> src, int bytes, sptr<uint64_t> barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(dst.address()),
      "l"(__cvta_generic_to_global(src.pointer())), "r"(bytes), "r"(barrier.address())
      : "memory");
}
#endif

// ---- tensor cores

// r[j] is this lane's pair of the 8 x 8 matrix j of 16-bit elements (row lane / 4, columns 2 (lane % 4) and the next),
// whose row i of 16 bytes, at an address divisible by 16, is given by lane 8 j + i.
template <class T>
FGK_DEVICE void ldmatrix_x4(uint32_t (&r)[4], sptr<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address())
               : "memory");
}
// The same with each matrix transposed: the pair is column lane / 4, rows 2 (lane % 4) and the next.
template <class T>
FGK_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], sptr<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address())
               : "memory");
}
// Two matrices; the addresses of lanes 16 to 31 are not used.
template <class T>
FGK_DEVICE void ldmatrix_x2(uint32_t (&r)[2], sptr<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row.address())
               : "memory");
}

// c += a b for one 16 x 8 tile of the warp, 16 deep; T is bf16 or f16, sums are fp32. With g = lane / 4, t = lane % 4:
//   a[0] row g, a[1] row g + 8, columns 2 t and 2 t + 1;  a[2], a[3] the same rows, 8 columns on
//   b[0] column g, rows 2 t and 2 t + 1;                  b[1] the same column, 8 rows on
//   c[0], c[1] row g, columns 2 t and 2 t + 1;            c[2], c[3] row g + 8
template <class T>
FGK_DEVICE void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "T is bf16 or f16");
  if constexpr (std::is_same_v<T, bf16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// ---- atomics

template <class T>
FGK_DEVICE T atomic_add(gptr<T> p, int64_t i, std::common_type_t<T> v) {
  return atomicAdd(p.pointer() + i, v);
}
template <class T>
FGK_DEVICE T atomic_add(sptr<T> p, int i, std::common_type_t<T> v) {
  return atomicAdd(p.pointer() + i, v);
}
FGK_DEVICE int32_t atomic_max(gptr<int32_t> p, int64_t i, int32_t v) { return atomicMax(p.pointer() + i, v); }
FGK_DEVICE int32_t atomic_max(sptr<int32_t> p, int i, int32_t v) { return atomicMax(p.pointer() + i, v); }

// ---- numbers

FGK_DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
FGK_DEVICE float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }

// Two floats in one register, rounded to nearest even, `lo` in the low half; NaN becomes 0x7FFF.
template <class T>
FGK_DEVICE uint32_t pack2(float lo, float hi) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "T is bf16 or f16");
  uint32_t bits;
  if constexpr (std::is_same_v<T, bf16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(bits) : "f"(hi), "f"(lo));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(bits) : "f"(hi), "f"(lo));
  }
  return bits;
}
template <class T>
FGK_DEVICE void unpack2(uint32_t bits, float& lo, float& hi) {
  lo = to_float(T{static_cast<uint16_t>(bits & 0xFFFF)});
  hi = to_float(T{static_cast<uint16_t>(bits >> 16)});
}
// Rounds to nearest even; NaN becomes 0x7FFF.
template <class T>
FGK_DEVICE T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return T{static_cast<uint16_t>(pack2<T>(x, 0.0f) & 0xFFFF)};
  }
}

// Number of the lowest bit set (bits is not 0), and how many are set.
FGK_DEVICE int first_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }
FGK_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }

// Approximations of the special function unit, relative error about 2^-22; denormal operands and results are zero.
FGK_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
FGK_DEVICE float exp_fast(float x) { return exp2_fast(x * 1.4426950408889634f); }
FGK_DEVICE float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
FGK_DEVICE float rcp_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace fgk::dev
