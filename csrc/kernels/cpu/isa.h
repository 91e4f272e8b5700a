// SPDX-License-Identifier: Apache-2.0
// Instruction-set levels: which ones this library holds, which ones this CPU can run, which one kernels use now.
#pragma once

// FGK_FOR_EACH_ISA(X) expands X(level) for every level compiled in, ascending, FGK_FOR_EACH_ISA_WITH(X, a, b) expands
// X(level, a, b); CMake defines FGK_HAVE_<LEVEL>.
#ifdef FGK_HAVE_BASELINE
#define FGK_IF_BASELINE(...) __VA_ARGS__
#else
#define FGK_IF_BASELINE(...)
#endif
#ifdef FGK_HAVE_AVX2
#define FGK_IF_AVX2(...) __VA_ARGS__
#else
#define FGK_IF_AVX2(...)
#endif
#ifdef FGK_HAVE_AVX512
#define FGK_IF_AVX512(...) __VA_ARGS__
#else
#define FGK_IF_AVX512(...)
#endif
#ifdef FGK_HAVE_AVX512_BF16
#define FGK_IF_AVX512_BF16(...) __VA_ARGS__
#else
#define FGK_IF_AVX512_BF16(...)
#endif
#ifdef FGK_HAVE_NEON
#define FGK_IF_NEON(...) __VA_ARGS__
#else
#define FGK_IF_NEON(...)
#endif
#define FGK_FOR_EACH_ISA(X)    \
  FGK_IF_BASELINE(X(baseline)) \
  FGK_IF_AVX2(X(avx2)) FGK_IF_AVX512(X(avx512)) FGK_IF_AVX512_BF16(X(avx512_bf16)) FGK_IF_NEON(X(neon))
#define FGK_FOR_EACH_ISA_WITH(X, a, b) \
  FGK_IF_BASELINE(X(baseline, a, b))   \
  FGK_IF_AVX2(X(avx2, a, b))           \
  FGK_IF_AVX512(X(avx512, a, b)) FGK_IF_AVX512_BF16(X(avx512_bf16, a, b)) FGK_IF_NEON(X(neon, a, b))

// Defines `const Table& getter()`: the object `name` of the level that kernels run at. Each level's namespace has one.
#define FGK_DECLARE_TABLE(level, Table, name) \
  namespace level {                           \
  extern const Table name;                    \
  }
#define FGK_TABLE_CASE(level, Table, name) \
  case Isa::level:                         \
    return level::name;
#define FGK_DEFINE_TABLE_GETTER(getter, Table, name)     \
  FGK_FOR_EACH_ISA_WITH(FGK_DECLARE_TABLE, Table, name)  \
  const Table& getter() {                                \
    switch (current_isa()) {                             \
      FGK_FOR_EACH_ISA_WITH(FGK_TABLE_CASE, Table, name) \
      default:                                           \
        return baseline::name;                           \
    }                                                    \
  }

namespace fgk {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, neon = 4 };
constexpr int kIsaCount = 5;

// The level kernels run at: the last set_isa(), else FGKERNELS_ISA (read once), else the best of this CPU.
// Throws std::runtime_error when FGKERNELS_ISA names a level that is unknown or cannot run here.
Isa current_isa();

const char* isa_name(Isa isa);
bool isa_compiled(Isa isa);
bool isa_supported(Isa isa);    // compiled in, and this CPU and its operating system can run it
int set_isa(const char* name);  // 0; -1 unknown name; -2 known, but not compiled in or not runnable here

struct CpuFeature {
  const char* name;
  bool present;
};
// The CPU features that decide between levels, as the operating system lets programs use them.
const CpuFeature* cpu_features(int* count);

}  // namespace fgk
