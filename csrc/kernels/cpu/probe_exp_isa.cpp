// SPDX-License-Identifier: Apache-2.0
// The inner loop of the probe for recurrences, compiled once per ISA level.
#include "vector_math.h"

namespace fgk {
namespace FGK_ISA_NS {

// State updates h <- exp(d a) h + x b, y <- y + c h of a selective scan with every operand in a register: as fast as
// the scan's arithmetic goes. Returns the updates it did.
double probe_exp_fma(int64_t iterations) {
  using Reg = F32::Reg;
  constexpr int kChains = 8;  // enough to hide every latency, few enough to stay in registers
  Reg state[kChains], rate[kChains];
#pragma GCC unroll 8
  for (int n = 0; n < kChains; ++n) {
    state[n] = F32::zero();
    rate[n] = F32::set1(-0.1f * static_cast<float>(n + 1));
  }
  Reg d = F32::set1(0.5f), b = F32::set1(0.25f), c = F32::set1(0.125f), y = F32::zero();
  for (int64_t i = 0; i < iterations; ++i) {
    // Opaque, or the compiler would take what doesn't change out of the loop.
    asm volatile("" : "+m"(d), "+m"(b), "+m"(c));
    const Reg step = d;
    Reg sum = F32::zero();
#pragma GCC unroll 8
    for (int n = 0; n < kChains; ++n) {
      state[n] = F32::fma(exp2<F32>(F32::mul(step, rate[n])), state[n], F32::mul(step, b));
      // As in a scan, whose B differs from state to state, the product is one per update.
      asm volatile("" : "+m"(b));
      sum = F32::fma(c, state[n], sum);
    }
    y = F32::add(y, sum);
  }
  asm volatile("" : : "m"(y));
  return static_cast<double>(iterations) * kChains * F32::W;
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
