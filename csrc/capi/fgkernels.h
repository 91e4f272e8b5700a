/* SPDX-License-Identifier: Apache-2.0 */
/* The plain C interface of libfgkernels, for programs without Python. No function throws or aborts on bad input. */
#ifndef FGKERNELS_H
#define FGKERNELS_H

#if defined(_WIN32)
#define FGK_API __declspec(dllexport)
#else
#define FGK_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

FGK_API const char* fgk_version(void);
FGK_API const char* fgk_compiler(void);

/* What went wrong in this thread's last call that failed; "" before the first failure. */
FGK_API const char* fgk_last_error(void);

/* ISA levels. All known levels are numbered 0 .. fgk_isa_count() - 1, ascending; a name is NULL out of that range. */
FGK_API int fgk_isa_count(void);
FGK_API const char* fgk_isa_name(int isa);
FGK_API int fgk_isa_compiled(int isa);     /* 1 when the library holds kernels of this level */
FGK_API int fgk_isa_supported(int isa);    /* 1 when moreover this machine can run them */
FGK_API int fgk_isa_current(void);         /* -1 when FGKERNELS_ISA is unusable: see fgk_last_error() */
FGK_API int fgk_isa_set(const char* name); /* 0; -1 unknown name; -2 not compiled in, or this CPU cannot run it */

/* CPU features that decide between the levels, numbered from 0. */
FGK_API int fgk_cpu_feature_count(void);
FGK_API const char* fgk_cpu_feature_name(int feature);
FGK_API int fgk_cpu_feature_present(int feature);

/* Machine limits, measured at the current ISA level with `threads` threads. Negative on error. */
enum fgk_probe_type {
  FGK_PROBE_FLOAT32 = 0,
  FGK_PROBE_FLOAT64 = 1,
  FGK_PROBE_BFLOAT16 = 2,
  FGK_PROBE_INT8 = 3,
  FGK_PROBE_EXP_FMA = 4
};
FGK_API double fgk_probe_fma(int type, int threads, double seconds); /* GFLOP/s, int8: GOP/s, exp_fma: 1e9 updates/s */
FGK_API double fgk_probe_read(int threads, double megabytes, double seconds); /* GB/s */

#ifdef __cplusplus
}
#endif

#endif
