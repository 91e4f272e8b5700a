// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fgk {
namespace {

constexpr const char* kNames[kIsaCount] = {"baseline", "avx2", "avx512", "avx512_bf16", "neon"};
constexpr int kUnset = -1;

std::atomic<int> chosen{kUnset};

#if defined(__x86_64__)

// Bits that older compilers have no name for in __builtin_cpu_supports; whether the operating system keeps the
// registers follows from AVX and AVX-512F, which it does know.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1) != 0 && __builtin_cpu_supports("avx");
}

bool has_avx512_vnni() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ecx >> 11 & 1) != 0 && __builtin_cpu_supports("avx512f");
}

bool has_avx512_bf16() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1) != 0 && __builtin_cpu_supports("avx512f");
}

struct Cpu {
  CpuFeature features[9];
  bool runs[kIsaCount];
  Cpu() {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2");
    const bool fma = __builtin_cpu_supports("fma");
    const bool f16c = has_f16c();
    const bool f = __builtin_cpu_supports("avx512f");
    const bool bw = __builtin_cpu_supports("avx512bw");
    const bool vl = __builtin_cpu_supports("avx512vl");
    const bool dq = __builtin_cpu_supports("avx512dq");
    const bool bf16 = has_avx512_bf16();
    const bool vnni = has_avx512_vnni();
    const CpuFeature found[] = {{"avx2", avx2},   {"fma", fma},          {"f16c", f16c},
                                {"avx512f", f},   {"avx512bw", bw},      {"avx512vl", vl},
                                {"avx512dq", dq}, {"avx512_bf16", bf16}, {"avx512_vnni", vnni}};
    std::memcpy(features, found, sizeof(features));
    runs[static_cast<int>(Isa::baseline)] = true;
    runs[static_cast<int>(Isa::avx2)] = avx2 && fma && f16c;
    runs[static_cast<int>(Isa::avx512)] = runs[static_cast<int>(Isa::avx2)] && f && bw && vl && dq;
    runs[static_cast<int>(Isa::avx512_bf16)] = runs[static_cast<int>(Isa::avx512)] && bf16 && vnni;
    runs[static_cast<int>(Isa::neon)] = false;
  }
};

#elif defined(__aarch64__)

struct Cpu {
  CpuFeature features[4] = {{"neon", true}, {"dotprod", false}, {"bf16", false}, {"i8mm", false}};
  bool runs[kIsaCount] = {true, false, false, false, true};  // AArch64 always has Advanced SIMD
  Cpu() {
#if defined(__linux__)
    features[1].present = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#if defined(HWCAP2_BF16) && defined(HWCAP2_I8MM)
    features[2].present = (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
    features[3].present = (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
#endif
#endif
  }
};

#else

struct Cpu {
  CpuFeature features[1] = {{"portable", true}};
  bool runs[kIsaCount] = {true, false, false, false, false};
};

#endif

const Cpu& cpu() {
  static const Cpu found;
  return found;
}

bool in_range(Isa isa) { return static_cast<int>(isa) >= 0 && static_cast<int>(isa) < kIsaCount; }

int find_name(const char* name) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (name != nullptr && std::strcmp(name, kNames[i]) == 0) return i;
  }
  return -1;
}

int best_isa() {
  int best = static_cast<int>(Isa::baseline);
  for (int i = 0; i < kIsaCount; ++i) {
    if (isa_supported(static_cast<Isa>(i))) best = i;
  }
  return best;
}

// What FGKERNELS_ISA asked for, read once.
struct FromEnvironment {
  int isa = kUnset;
  std::string error;
  FromEnvironment() {
    const char* name = std::getenv("FGKERNELS_ISA");
    if (name == nullptr || *name == '\0') {
      isa = best_isa();
      return;
    }
    const int known = find_name(name);
    if (known >= 0 && isa_supported(static_cast<Isa>(known))) {
      isa = known;
      return;
    }
    error = std::string("FGKERNELS_ISA: expected one of");
    for (int i = 0; i < kIsaCount; ++i) {
      if (isa_supported(static_cast<Isa>(i))) error += std::string(" ") + kNames[i];
    }
    error += std::string(" on this machine, got '") + name + "'";
    if (known >= 0) {
      error += isa_compiled(static_cast<Isa>(known)) ? ", which this CPU cannot run"
                                                     : ", which this library was built without";
    }
  }
};

}  // namespace

Isa current_isa() {
  const int set = chosen.load(std::memory_order_relaxed);
  if (set != kUnset) return static_cast<Isa>(set);
  static const FromEnvironment environment;
  if (environment.isa == kUnset) throw std::runtime_error(environment.error);
  return static_cast<Isa>(environment.isa);
}

const char* isa_name(Isa isa) { return in_range(isa) ? kNames[static_cast<int>(isa)] : "unknown"; }

bool isa_compiled(Isa isa) {
#define FGK_SAME(level) || isa == Isa::level
  return false FGK_FOR_EACH_ISA(FGK_SAME);
#undef FGK_SAME
}

bool isa_supported(Isa isa) { return isa_compiled(isa) && cpu().runs[static_cast<int>(isa)]; }

int set_isa(const char* name) {
  const int known = find_name(name);
  if (known < 0) return -1;
  if (!isa_supported(static_cast<Isa>(known))) return -2;
  chosen.store(known, std::memory_order_relaxed);
  return 0;
}

const CpuFeature* cpu_features(int* count) {
  *count = static_cast<int>(sizeof(cpu().features) / sizeof(CpuFeature));
  return cpu().features;
}

}  // namespace fgk
