// SPDX-License-Identifier: Apache-2.0
// The device layer executed on the CPU; device.cuh describes the interface and includes this file. Each primitive ends
// in a Site, the source line of its caller, by which faults are reported and collectives are told apart.
#pragma once

#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>

#include "core.h"
#include "kernels/cuda/device_types.h"
#include "numbers.h"

#define FGK_GLOBAL __attribute__((unused))
#define FGK_DEVICE inline
#define FGK_HOST_DEVICE inline
#define FGK_LAUNCH_BOUNDS(threads, min_blocks)
#define FGK_UNROLL
#define FGK_NO_UNROLL
#define FGK_SITE_PARAMETER , ::fgk::emulation::Site site = ::fgk::emulation::Site::here()
#define FGK_SITE_ARGUMENT , site

namespace fgk::dev {

using emulation::Site;

// ---- indices

inline int tid() { return emulation::core::position.thread; }
inline int64_t bid() { return emulation::core::position.block; }
inline int lane() { return tid() % kWarpSize; }
inline int warp() { return tid() / kWarpSize; }
inline int block_threads() { return emulation::core::position.threads; }
inline int64_t grid_blocks() { return emulation::core::position.blocks; }

// ---- memory

namespace detail {

using emulation::core::Access;
using emulation::core::Collective;
using emulation::core::GlobalPointer;
using emulation::core::SharedPointer;

template <size_t N>
constexpr bool is_access = N == 1 || N == 2 || N == 4 || N == 8 || N == 16;

template <class V>
V read(const char* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <class V>
void write(char* p, const V& v) {
  std::memcpy(p, &v, sizeof(V));
}

template <class V>
char* access(GlobalPointer p, int64_t i, int64_t size, Access kind, bool read_only, Site site) {
  static_assert(is_access<sizeof(V)>, "one access moves 1, 2, 4, 8 or 16 bytes");
  p.at = emulation::core::advance(p.at, i, size);
  return emulation::core::global_access(p, sizeof(V), kind, read_only, site);
}

template <class V>
char* access(SharedPointer p, int64_t i, int64_t size, Access kind, Site site) {
  static_assert(is_access<sizeof(V)>, "one access moves 1, 2, 4, 8 or 16 bytes");
  p.at = emulation::core::advance(p.at, i, size);
  return emulation::core::shared_access(p, sizeof(V), kind, site);
}

}  // namespace detail

template <class T>
class gptr {
 public:
  using value = std::remove_const_t<T>;

  gptr() = default;
  explicit gptr(const detail::GlobalPointer& p) : p_(p) {}
  template <class U, std::enable_if_t<std::is_same_v<const U, T> && !std::is_same_v<U, T>, int> = 0>
  gptr(const gptr<U>& other) : p_(other.checked()) {}

  value ld(int64_t i, Site site = Site::here()) const { return load<value>(i, site); }
  template <class V>
  V ld_as(int64_t i, Site site = Site::here()) const {
    static_assert(is_vector<V>, "V has 4, 8 or 16 bytes");
    return load<V>(i, site);
  }
  template <class U = T, if_writable<U> = 0>
  void st(int64_t i, value v, Site site = Site::here()) const {
    detail::write(detail::access<value>(p_, i, sizeof(T), detail::Access::write, false, site), v);
  }
  template <class V, class U = T, if_writable<U> = 0>
  void st_as(int64_t i, const V& v, Site site = Site::here()) const {
    static_assert(is_vector<V>, "V has 4, 8 or 16 bytes");
    detail::write(detail::access<V>(p_, i, sizeof(T), detail::Access::write, false, site), v);
  }
  gptr operator+(int64_t n) const {
    detail::GlobalPointer p = p_;
    p.at = emulation::core::advance(p.at, n, sizeof(T));
    return gptr(p);
  }
  gptr slice(int64_t offset, int64_t count, Site site = Site::here()) const {
    return gptr(emulation::core::global_slice((*this + offset).p_, count * static_cast<int64_t>(sizeof(T)), site));
  }
  template <class U>
  gptr<copy_const<T, U>> as() const {
    return gptr<copy_const<T, U>>(p_);
  }
  explicit operator bool() const { return p_.buffer != nullptr; }
  const detail::GlobalPointer& checked() const { return p_; }

 private:
  template <class V>
  V load(int64_t i, Site site) const {
    return detail::read<V>(detail::access<V>(p_, i, sizeof(T), detail::Access::read, std::is_const_v<T>, site));
  }

  detail::GlobalPointer p_;
};

template <class T>
class sptr {
 public:
  using value = std::remove_const_t<T>;

  sptr() = default;
  explicit sptr(const detail::SharedPointer& p) : p_(p) {}
  template <class U, std::enable_if_t<std::is_same_v<const U, T> && !std::is_same_v<U, T>, int> = 0>
  sptr(const sptr<U>& other) : p_(other.checked()) {}

  value ld(int i, Site site = Site::here()) const { return load<value>(i, site); }
  template <class V>
  V ld_as(int i, Site site = Site::here()) const {
    static_assert(is_vector<V>, "V has 4, 8 or 16 bytes");
    return load<V>(i, site);
  }
  template <class U = T, if_writable<U> = 0>
  void st(int i, value v, Site site = Site::here()) const {
    detail::write(detail::access<value>(p_, i, sizeof(T), detail::Access::write, site), v);
  }
  template <class V, class U = T, if_writable<U> = 0>
  void st_as(int i, const V& v, Site site = Site::here()) const {
    static_assert(is_vector<V>, "V has 4, 8 or 16 bytes");
    detail::write(detail::access<V>(p_, i, sizeof(T), detail::Access::write, site), v);
  }
  sptr operator+(int n) const {
    detail::SharedPointer p = p_;
    p.at = emulation::core::advance(p.at, n, sizeof(T));
    return sptr(p);
  }
  sptr slice(int offset, int count, Site site = Site::here()) const {
    return sptr(emulation::core::shared_slice((*this + offset).p_, count * static_cast<int64_t>(sizeof(T)), site));
  }
  template <class U>
  sptr<copy_const<T, U>> as() const {
    return sptr<copy_const<T, U>>(p_);
  }
  const detail::SharedPointer& checked() const { return p_; }

 private:
  template <class V>
  V load(int i, Site site) const {
    return detail::read<V>(detail::access<V>(p_, i, sizeof(T), detail::Access::read, site));
  }

  detail::SharedPointer p_;
};

class Shared {
 public:
  template <class T>
  sptr<T> take(int count, Site site = Site::here()) {
    return sptr<T>(emulation::core::shared_take(used_, count, sizeof(T), site));
  }

 private:
  int64_t used_ = 0;
};

// ---- barriers

inline void sync_block(Site site = Site::here()) { emulation::core::block_barrier(site); }
inline void sync_warp(Site site = Site::here()) {
  emulation::core::exchange(detail::Collective::sync_warp, 0, 0, site);
}

// ---- warp collectives

namespace detail {

template <class T>
T shuffle(Collective collective, T v, int argument, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles move numbers of 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  bits = emulation::core::exchange(collective, bits, argument, site);
  std::memcpy(&v, &bits, sizeof(T));
  return v;
}

}  // namespace detail

template <class T>
T shfl_xor(T v, int mask, Site site = Site::here()) {
  return detail::shuffle(detail::Collective::shfl_xor, v, mask, site);
}
template <class T>
T shfl(T v, int lane, Site site = Site::here()) {
  return detail::shuffle(detail::Collective::shfl, v, lane, site);
}
template <class T>
T shfl_up(T v, int delta, Site site = Site::here()) {
  return detail::shuffle(detail::Collective::shfl_up, v, delta, site);
}
template <class T>
T shfl_down(T v, int delta, Site site = Site::here()) {
  return detail::shuffle(detail::Collective::shfl_down, v, delta, site);
}
inline uint32_t ballot(bool predicate, Site site = Site::here()) {
  return static_cast<uint32_t>(emulation::core::exchange(detail::Collective::ballot, predicate, 0, site));
}
inline bool any(bool predicate, Site site = Site::here()) {
  return emulation::core::exchange(detail::Collective::any, predicate, 0, site) != 0;
}
inline bool all(bool predicate, Site site = Site::here()) {
  return emulation::core::exchange(detail::Collective::all, predicate, 0, site) != 0;
}

// ---- cp.async

template <class T>
void cp_async16(sptr<T> dst, gptr<const T> src, int valid_bytes = 16, Site site = Site::here()) {
  emulation::core::copy_async(dst.checked(), src.checked(), valid_bytes, site);
}
template <class T>
void cp_async16(sptr<T> dst, gptr<T> src, int valid_bytes = 16, Site site = Site::here()) {
  emulation::core::copy_async(dst.checked(), src.checked(), valid_bytes, site);
}
inline void cp_async_commit(Site site = Site::here()) { emulation::core::copy_commit(site); }
template <int N>
void cp_async_wait(Site site = Site::here()) {
  static_assert(N >= 0, "a number of groups");
  emulation::core::copy_wait(N, site);
}

// ---- mbarriers and bulk copies

#define FGK_BULK_COPY 1

inline void mbarrier_init(sptr<uint64_t> barrier, int count, Site site = Site::here()) {
  emulation::core::mbarrier_init(barrier.checked(), count, site);
}
inline void mbarrier_arrive(sptr<uint64_t> barrier, Site site = Site::here()) {
  emulation::core::mbarrier_arrive(barrier.checked(), 0, site);
}
inline void mbarrier_arrive_expect(sptr<uint64_t> barrier, int bytes, Site site = Site::here()) {
  emulation::core::mbarrier_arrive(barrier.checked(), bytes, site);
}
inline void mbarrier_wait(sptr<uint64_t> barrier, uint32_t parity, Site site = Site::here()) {
  emulation::core::mbarrier_wait(barrier.checked(), parity, site);
}
template <class T>
void bulk_copy(sptr<T> dst, gptr<const T> src, int bytes, sptr<uint64_t> barrier, Site site = Site::here()) {
  emulation::core::copy_bulk(dst.checked(), src.checked(), bytes, barrier.checked(), site);
}

// ---- tensor cores

template <class T>
void ldmatrix_x4(uint32_t (&r)[4], sptr<T> row, Site site = Site::here()) {
  emulation::core::load_matrix(detail::Collective::ldmatrix_x4, r, row.checked(), site);
}
template <class T>
void ldmatrix_x4_trans(uint32_t (&r)[4], sptr<T> row, Site site = Site::here()) {
  emulation::core::load_matrix(detail::Collective::ldmatrix_x4_trans, r, row.checked(), site);
}
template <class T>
void ldmatrix_x2(uint32_t (&r)[2], sptr<T> row, Site site = Site::here()) {
  emulation::core::load_matrix(detail::Collective::ldmatrix_x2, r, row.checked(), site);
}

template <class T>
void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "T is bf16 or f16");
  emulation::core::multiply(std::is_same_v<T, bf16> ? detail::Collective::mma_bf16 : detail::Collective::mma_f16, c, a,
                            b, site);
}

// ---- atomics

namespace detail {

template <class T, class Combine>
T update(char* p, T v, Combine combine) {
  const T old = read<T>(p);
  write(p, combine(old, v));
  return old;
}

// Integers wrap.
template <class T>
T add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  } else {
    return a + b;
  }
}

template <class T>
constexpr bool is_addable =
    std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, int32_t> || std::is_same_v<T, uint32_t>;

}  // namespace detail

template <class T>
T atomic_add(gptr<T> p, int64_t i, std::common_type_t<T> v, Site site = Site::here()) {
  static_assert(detail::is_addable<T>, "atomic_add takes float, double, int32 or uint32");
  return detail::update(detail::access<T>(p.checked(), i, sizeof(T), detail::Access::atomic, false, site), v,
                        detail::add<T>);
}
template <class T>
T atomic_add(sptr<T> p, int i, std::common_type_t<T> v, Site site = Site::here()) {
  static_assert(detail::is_addable<T>, "atomic_add takes float, double, int32 or uint32");
  return detail::update(detail::access<T>(p.checked(), i, sizeof(T), detail::Access::atomic, site), v, detail::add<T>);
}
inline int32_t atomic_max(gptr<int32_t> p, int64_t i, int32_t v, Site site = Site::here()) {
  return detail::update(detail::access<int32_t>(p.checked(), i, sizeof(v), detail::Access::atomic, false, site), v,
                        [](int32_t a, int32_t b) { return a < b ? b : a; });
}
inline int32_t atomic_max(sptr<int32_t> p, int i, int32_t v, Site site = Site::here()) {
  return detail::update(detail::access<int32_t>(p.checked(), i, sizeof(v), detail::Access::atomic, site), v,
                        [](int32_t a, int32_t b) { return a < b ? b : a; });
}

// ---- host

inline Limits limits() { return emulation::core::limits(); }

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), const Launch& shape, void* /*stream*/, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument per parameter of the kernel");
  struct Call {
    void (*kernel)(P...);
    std::tuple<std::decay_t<P>...> arguments;
  };
  const Call call{kernel, std::tuple<std::decay_t<P>...>(static_cast<P>(args)...)};
  emulation::core::launch(
      name, shape,
      [](const void* erased) {
        const Call& c = *static_cast<const Call*>(erased);
        std::apply(c.kernel, c.arguments);
      },
      &call);
}

// Outputs start as NaN (integers: as 0xA5 bytes), so that an element which no kernel stores shows in the results, and
// are listed by emulation::last_outputs(). A written buffer may not overlap another one.
class Buffers {
 public:
  template <class T>
  gptr<const T> in(const T* p, int64_t count, const char* name) {
    return gptr<const T>(add(const_cast<T*>(p), count, Set::Use::in, name));
  }
  template <class T>
  gptr<T> out(T* p, int64_t count, const char* name) {
    return gptr<T>(add(p, count, Set::Use::out, name));
  }
  template <class T>
  gptr<T> inout(T* p, int64_t count, const char* name) {
    return gptr<T>(add(p, count, Set::Use::inout, name));
  }

 private:
  using Set = emulation::core::BufferSet;

  template <class T>
  detail::GlobalPointer add(T* p, int64_t count, Set::Use use, const char* name) {
    return set_.add(p, count, sizeof(T), std::is_integral_v<T>, use, name);
  }

  Set set_;
};

}  // namespace fgk::dev
