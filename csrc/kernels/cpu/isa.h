// SPDX-License-Identifier: Apache-2.0
// Instruction-set levels: which ones this library holds, which ones this CPU can run, which one kernels use now.
#pragma once

// FGK_FOR_EACH_ISA(X) expands X(level) for every level compiled in, ascending; CMake defines FGK_HAVE_<LEVEL>.
#ifdef FGK_HAVE_BASELINE
#define FGK_IF_BASELINE(X) X(baseline)
#else
#define FGK_IF_BASELINE(X)
#endif
#ifdef FGK_HAVE_AVX2
#define FGK_IF_AVX2(X) X(avx2)
#else
#define FGK_IF_AVX2(X)
#endif
#ifdef FGK_HAVE_AVX512
#define FGK_IF_AVX512(X) X(avx512)
#else
#define FGK_IF_AVX512(X)
#endif
#ifdef FGK_HAVE_AVX512_BF16
#define FGK_IF_AVX512_BF16(X) X(avx512_bf16)
#else
#define FGK_IF_AVX512_BF16(X)
#endif
#ifdef FGK_HAVE_NEON
#define FGK_IF_NEON(X) X(neon)
#else
#define FGK_IF_NEON(X)
#endif
#define FGK_FOR_EACH_ISA(X) FGK_IF_BASELINE(X) FGK_IF_AVX2(X) FGK_IF_AVX512(X) FGK_IF_AVX512_BF16(X) FGK_IF_NEON(X)

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
