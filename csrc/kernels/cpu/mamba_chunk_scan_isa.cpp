// SPDX-License-Identifier: Apache-2.0
// Mamba-2 scan forward of one ISA level.
#include "mamba_chunk_scan_isa.h"

namespace fgk {
namespace FGK_ISA_NS {
namespace {

constexpr int kStates = kVectorRegisters == 32 ? 16 : 8;

// y[t] += sum over NB states of C h, from the state `h` (NB, W) at the start of the steps to that at their end.
template <class V, int NB>
FGK_NOINLINE void scan_chunk(int64_t steps, const typename V::Scalar* x, const typename V::Scalar* dt,
                             const typename V::Scalar* decay, typename V::Scalar* y, const Operand<V>& B,
                             const Operand<V>& C, int64_t first_state, typename V::Scalar* h) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  Reg state[NB];
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) state[n] = V::load(h + n * W);
  for (int64_t t = 0; t < steps; ++t) {
    const Reg input = V::mul(V::set1(dt[t]), V::load(x + t * W));
    const Reg kept = V::set1(decay[t]);
    if (decay[t] == 0) {  // what came before doesn't count, not even its infinities
#pragma GCC unroll 16
      for (int n = 0; n < NB; ++n) state[n] = V::zero();
    }
    Reg sums[2] = {V::zero(), V::zero()};
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      state[n] = V::fma(kept, state[n], V::mul(input, B.template at<false>(t, first_state + n)));
      sums[n % 2] = V::fma(C.template at<false>(t, first_state + n), state[n], sums[n % 2]);
    }
    V::store(y + t * W, V::add(V::load(y + t * W), V::add(sums[0], sums[1])));
  }
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) V::store(h + n * W, state[n]);
}

template <class V>
class ForwardBlock : HeadLanes<V> {
  using Base = HeadLanes<V>;
  using Base::args_;
  using Base::kChunk;
  using Base::states_;
  using Base::W;
  using typename Base::Reg;
  using typename Base::Scalar;

 public:
  ForwardBlock(const ChunkScanPlan& plan, int64_t batch, int64_t head, int64_t block, void* memory)
      : Base(plan, batch, head, memory),
        block_(block),
        x_(this->arena_.template take<Scalar>(kChunk * W)),
        y_(this->arena_.template take<Scalar>(kChunk * W)),
        h_(this->arena_.template take<Scalar>(states_ * W)) {}

  int64_t bytes() const { return this->arena_.used(); }

  void run() {
    if (args_.initial_states) {
      load_rows<V>(h_, W, this->state_lanes(args_.initial_states, block_), 0, states_);
    } else {
      std::memset(h_, 0, static_cast<size_t>(states_ * W) * sizeof(Scalar));
    }
    const Reg D = this->skip(block_);
    for (int64_t c = 0; c < this->chunks(); ++c) {
      const int64_t count = this->chunk_length(c);
      this->load_steps(c);
      load_rows<V>(x_, W, this->lanes(args_.x, block_), c * kChunk, count);
      for (int64_t t = 0; t < count; ++t) {
        V::store(y_ + t * W, args_.D ? V::mul(D, V::load(x_ + t * W)) : V::zero());
      }
      if (args_.checkpoints) {
        store_rows<V>(this->checkpoint_lanes(args_.checkpoints, c, block_), 0, states_, h_, W);
      }
      const Operand<V> B = this->rows(this->plan_.B, c);
      const Operand<V> C = this->rows(this->plan_.C, c);
      for_states<kStates>(states_, [&](auto size, int64_t n) {
        scan_chunk<V, size()>(count, x_, this->dt_, this->decay_, y_, B, C, n, h_ + n * W);
      });
      finish(c * kChunk, count);
    }
    if (args_.final_states) store_rows<V>(this->state_lanes(args_.final_states, block_), 0, states_, h_, W);
  }

 private:
  void finish(int64_t first, int64_t count) {
    if (args_.z.data) {
      load_rows<V>(x_, W, this->lanes(args_.z, block_), first, count);
      for (int64_t t = 0; t < count; ++t) {
        V::store(y_ + t * W, V::mul(V::load(y_ + t * W), silu<V>(V::load(x_ + t * W))));
      }
    }
    store_rows<V>(this->lanes(args_.out, block_), first, count, y_, W);
  }

  int64_t block_;
  Scalar* x_;
  Scalar* y_;
  Scalar* h_;
};

template <class V>
void forward(const ChunkScanPlan& plan, int64_t batch, int64_t head, int64_t block, void* memory) {
  ForwardBlock<V>(plan, batch, head, block, memory).run();
}

// As many bytes as the larger of the two types takes.
int64_t forward_bytes(const ChunkScanPlan& plan) {
  const int64_t f32 = ForwardBlock<F32>(plan, 0, 0, 0, nullptr).bytes();
  const int64_t f64 = ForwardBlock<F64>(plan, 0, 0, 0, nullptr).bytes();
  return f32 > f64 ? f32 : f64;
}

}  // namespace

extern const ChunkScanTable kChunkScanTable;
const ChunkScanTable kChunkScanTable = {
    F32::W,       F64::W,       forward_bytes,           chunk_scan_backward_bytes,
    forward<F32>, forward<F64>, chunk_scan_backward_f32, chunk_scan_backward_f64,
};

}  // namespace FGK_ISA_NS
}  // namespace fgk
