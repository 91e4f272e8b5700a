// SPDX-License-Identifier: Apache-2.0
// launch_shapes MULTIPROCESSORS SHARED_BYTES_PER_BLOCK: what the launchers ask for on such a GPU. Prints, separated by
// tabs, "main" and its address, then per launch the case, the address of the kernel, blocks, threads and bytes of
// dynamic shared memory. No kernel runs: the linker puts __wrap_... below in the place of the emulator's launch.
// tools/cuda_audit.py reads this, and puts names to the addresses.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda_emulation/emulation.h"
#include "kernels/cuda/late_interaction.h"
#include "scan_shapes.h"
#include "shapes.h"

std::string current_case;

// fgk::emulation::core::launch(const char* name, const dev::Launch&, void (*call)(const void*), const void* arguments);
// the arguments begin with the kernel.
extern "C" void __wrap__ZN3fgk9emulation4core6launchEPKcRKNS_3dev6LaunchEPFvPKvES9_(const char*,
                                                                                    const fgk::dev::Launch& shape,
                                                                                    void (*)(const void*),
                                                                                    const void* arguments) {
  std::printf("%s\t%p\t%lld\t%d\t%lld\n", current_case.c_str(), *static_cast<void* const*>(arguments),
              static_cast<long long>(shape.blocks), shape.threads, static_cast<long long>(shape.shared_bytes));
}

namespace fgk {
namespace {

struct Shape {
  int64_t na, n, nb, m, dim;
};

TokenBatch padded(Memory& memory, DType dtype, int64_t batch, int64_t length, int64_t dim) {
  TokenBatch out;
  out.dtype = dtype;
  out.batch = batch;
  out.length = length;
  out.dim = dim;
  out.sample_stride = length * dim;
  out.token_stride = dim;
  out.total_tokens = batch * length;
  out.span = out.total_tokens * dim;
  out.data = memory.take(out.span * dtype_bytes(dtype));
  return out;
}

TokenBatch packed(Memory& memory, DType dtype, int64_t batch, int64_t length, int64_t dim) {
  TokenBatch out = padded(memory, dtype, batch, length, dim);
  int64_t* offsets = static_cast<int64_t*>(memory.take((batch + 1) * 8));
  for (int64_t s = 0; s <= batch; ++s) offsets[s] = s * length;
  out.offsets = offsets;
  out.length = 0;
  out.sample_stride = 0;
  return out;
}

void add_mask(Memory& memory, TokenBatch& batch) {
  batch.mask = static_cast<const uint8_t*>(memory.take(batch.batch * batch.length));
}

// The launchers never look at the strides of results.
DirectionOutput direction(Memory& memory, DType dtype, int64_t pairs, int64_t tokens, bool indices) {
  DirectionOutput out;
  out.score_count = pairs;
  out.scores = memory.take(pairs * (dtype == DType::f64 ? 8 : 4));
  if (!indices) return out;
  out.index_count = pairs * tokens;
  out.indices = memory.take(out.index_count * 2);
  return out;
}

void forward(const std::string& name, DType dtype, const Shape& s, bool both, bool indices, bool masked = false,
             bool is_packed = false) {
  current_case = name;
  Memory memory;
  LateInteractionForward args;
  args.a = (is_packed ? packed : padded)(memory, dtype, s.na, s.n, s.dim);
  args.b = (is_packed ? packed : padded)(memory, dtype, s.nb, s.m, s.dim);
  if (masked) add_mask(memory, args.b);
  args.ab = direction(memory, dtype, s.na * s.nb, s.n, indices);
  if (both) args.ba = direction(memory, dtype, s.na * s.nb, s.m, indices);
  cuda::late_interaction_forward(args, memory.context());
}

void backward(const std::string& name, DType dtype, const Shape& s, bool for_a) {
  current_case = name;
  Memory memory;
  LateInteractionBackward args;
  const TokenBatch a = padded(memory, dtype, s.na, s.n, s.dim);
  const TokenBatch b = padded(memory, dtype, s.nb, s.m, s.dim);
  const DirectionOutput ab = direction(memory, dtype, s.na * s.nb, s.n, true);
  const DirectionOutput ba = direction(memory, dtype, s.na * s.nb, s.m, true);
  args.owner = for_a ? a : b;
  args.other = for_a ? b : a;
  args.own = for_a ? ab : ba;
  args.from_other = for_a ? ba : ab;
  args.owner_is_a = for_a;
  args.gradient = memory.take(args.owner.span * dtype_bytes(dtype));
  cuda::late_interaction_backward(args, memory.context());
}

// The shapes of the benchmarks (benchmarks/README.md); the first case of a kernel is the one that its row shows.
void late_interaction() {
  constexpr Shape kFilip{256, 256, 256, 77, 256}, kPatches{256, 49, 256, 77, 256}, kColbert{32, 32, 1000, 180, 128},
      kOneQuery{1, 32, 1000, 180, 128};
  for (const NamedType& type : kNamedTypes) {
    const std::string dtype = type.name;
    for (const bool indices : {false, true}) {
      const std::string kept = indices ? ", for a backward pass" : "";
      forward("FILIP 256 x 77 tokens " + dtype + kept, type.dtype, kFilip, true, indices);
      forward("FILIP 49 x 77 tokens " + dtype + kept, type.dtype, kPatches, true, indices, true);
      forward("ColBERT " + dtype + kept, type.dtype, kColbert, false, indices);
      forward("ColBERT, one query " + dtype + kept, type.dtype, kOneQuery, false, indices);
      forward("ColBERT, packed " + dtype + kept, type.dtype, kColbert, false, indices, false, true);
    }
    backward("FILIP 256 x 77 tokens " + dtype + ", gradient of a", type.dtype, kFilip, true);
    backward("FILIP 256 x 77 tokens " + dtype + ", gradient of b", type.dtype, kFilip, false);
  }
}

}  // namespace
}  // namespace fgk

int main(int count, char** values) {
  if (count != 3) {
    std::fprintf(stderr, "usage: launch_shapes MULTIPROCESSORS SHARED_BYTES_PER_BLOCK\n");
    return 2;
  }
  fgk::emulation::set_limits({std::atoi(values[1]), std::atoll(values[2])});
  std::printf("main\t%p\n", reinterpret_cast<void*>(&main));
  fgk::late_interaction();
  fgk::scan_shapes::all();
}
