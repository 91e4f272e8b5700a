// SPDX-License-Identifier: Apache-2.0
// The machine's limits, measured: multiply-add rate and streaming read bandwidth at the current ISA level.
#pragma once

namespace fgk {

enum class ProbeType : int { float32 = 0, float64 = 1, bfloat16 = 2, int8 = 3, exp_fma = 4 };

// GFLOP/s (int8: GOP/s) that `threads` threads reach together; a multiply-add counts as two operations. exp_fma: 1e9
// state updates of a selective scan per second, each an exponential and what multiplies and adds around it.
// bfloat16 and int8 use the dot-product instructions at level avx512_bf16, and fp32 multiply-adds at any other level.
// Throws std::invalid_argument on bad arguments, std::runtime_error as current_isa() does.
double probe_fma(ProbeType type, int threads, double seconds);

// GB/s (1e9 bytes) that `threads` threads read together, each streaming over its share of `megabytes` (1e6 bytes).
double probe_read(int threads, double megabytes, double seconds);

}  // namespace fgk
