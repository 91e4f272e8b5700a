// SPDX-License-Identifier: Apache-2.0
// Mamba-2 scan gradients of one ISA level: all channels of one head, chunks from the last to the first. States of a
// chunk are recomputed from its checkpoint; sums over channels (dB, dC, ddt) are taken over the lanes of each vector.
#include "mamba_chunk_scan_isa.h"

namespace fgk {
namespace FGK_ISA_NS {
namespace {

constexpr int kStates = kVectorRegisters == 32 ? 16 : 8;

template <class Scalar>
struct ChunkRows {
  const Scalar* x;
  const Scalar* g;
  Scalar* y;  // null: not wanted
  Scalar* dx;
  const Scalar* dt;
  const Scalar* decay;
  Scalar* before;    // (steps, NB, W): h at the start of a step
  Scalar* kept;      // (steps, W): terms of the sum of dh h[t - 1]
  Scalar* taken_in;  // (steps, W): terms of the sum of x (dh B)
  Scalar* dB;        // (steps, states), sums over channels that the head adds to
  Scalar* dC;
  int64_t states;
};

template <class V>
FGK_INLINE void add_to(typename V::Scalar* target, typename V::Reg value) {
  V::store(target, V::add(V::load(target), value));
}

template <class V, int NB>
FGK_NOINLINE void recompute(int64_t steps, const ChunkRows<typename V::Scalar>& rows, const Operand<V>& B,
                            const Operand<V>& C, int64_t first_state, const typename V::Scalar* start) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  LaneSums<V, NB> sums;
  Reg state[NB];
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) state[n] = V::load(start + n * W);
  for (int64_t t = 0; t < steps; ++t) {
    const Reg input = V::mul(V::set1(rows.dt[t]), V::load(rows.x + t * W));
    const Reg kept = V::set1(rows.decay[t]);
    const Reg g = V::load(rows.g + t * W);
    if (rows.decay[t] == 0) {
#pragma GCC unroll 16
      for (int n = 0; n < NB; ++n) state[n] = V::zero();
    }
    Reg sum = V::zero();
    const int64_t at = t * NB * W;
    typename V::Scalar* terms = sums.next(rows.dC + t * rows.states + first_state);
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      V::store(rows.before + at + n * W, state[n]);
      state[n] = V::fma(kept, state[n], V::mul(input, B.template at<false>(t, first_state + n)));
      V::store(terms + n * W, V::mul(g, state[n]));
      sum = V::fma(C.template at<false>(t, first_state + n), state[n], sum);
    }
    sums.step_done();
    if (rows.y) add_to<V>(rows.y + t * W, sum);
  }
  sums.finish();
}

// `dh` (NB, W): on entry decay[t + 1] dh[t + 1] of the step after the last, on return that of the first step.
template <class V, int NB>
FGK_NOINLINE void reverse(int64_t steps, const ChunkRows<typename V::Scalar>& rows, const Operand<V>& B,
                          const Operand<V>& C, int64_t first_state, typename V::Scalar* dh) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  LaneSums<V, NB> sums;
  Reg carry[NB];
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) carry[n] = V::load(dh + n * W);
  for (int64_t t = steps - 1; t >= 0; --t) {
    const Reg x = V::load(rows.x + t * W);
    const Reg dt = V::set1(rows.dt[t]);
    const Reg input = V::mul(dt, x);
    const Reg g = V::load(rows.g + t * W);
    const Reg decay = V::set1(rows.decay[t]);
    Reg by_B = V::zero();
    Reg kept = V::zero();
    const int64_t at = t * NB * W;
    typename V::Scalar* terms = sums.next(rows.dB + t * rows.states + first_state);
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      const Reg gradient = V::fma(C.template at<false>(t, first_state + n), g, carry[n]);
      by_B = V::fma(gradient, B.template at<false>(t, first_state + n), by_B);
      kept = V::fma(gradient, V::load(rows.before + at + n * W), kept);
      V::store(terms + n * W, V::mul(gradient, input));
      carry[n] = V::mul(gradient, decay);
    }
    sums.step_done();
    if (rows.decay[t] == 0) {
#pragma GCC unroll 16
      for (int n = 0; n < NB; ++n) carry[n] = V::zero();
    }
    add_to<V>(rows.dx + t * W, V::mul(dt, by_B));
    add_to<V>(rows.kept + t * W, kept);
    add_to<V>(rows.taken_in + t * W, V::mul(x, by_B));
  }
  sums.finish();
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) V::store(dh + n * W, carry[n]);
}

template <class V>
class BackwardHead : HeadLanes<V> {
  using Base = HeadLanes<V>;
  using Base::args_;
  using Base::kChunk;
  using Base::states_;
  using Base::W;
  using typename Base::Reg;
  using typename Base::Scalar;

 public:
  BackwardHead(const ChunkScanPlan& scan, const ChunkScanBackwardPlan* plan, int64_t batch, int64_t head, int64_t split,
               void* memory)
      : Base(scan, batch, head, memory), backward_(plan), split_(split), blocks_((args_.channels + W - 1) / W) {
    auto lanes = [&](int64_t count) { return this->arena_.template take<Scalar>(count * W); };
    const int64_t rows = blocks_ * kChunk;
    x_ = lanes(rows);
    g_ = lanes(rows);
    dx_ = lanes(rows);
    y_ = lanes(args_.z.data ? rows : 0);
    dD_ = lanes(args_.D ? blocks_ : 0);
    dh_ = lanes(blocks_ * states_);
    start_ = lanes(kStates);
    before_ = lanes(kChunk * kStates);
    kept_ = lanes(kChunk);
    taken_in_ = lanes(kChunk);
    sums_ = this->arena_.template take<Scalar>(2 * kChunk);
  }

  int64_t bytes() const { return this->arena_.used(); }

  void run() {
    for (int64_t p = 0; p < blocks_; ++p) {
      Scalar* dh = dh_ + p * states_ * W;
      if (backward_->args.grad_final_states) {
        load_rows<V>(dh, W, this->state_lanes(backward_->args.grad_final_states, p), 0, states_);
      } else {
        clear(dh, states_);
      }
    }
    if (args_.D) clear(dD_, blocks_);
    double dA = 0, dbias = 0;  // one number each from all steps
    for (int64_t c = this->chunks() - 1; c >= 0; --c) {
      this->load_steps(c);
      for (int64_t p = 0; p < blocks_; ++p) load_chunk(c, p);
      clear(kept_, kChunk);
      clear(taken_in_, kChunk);
      scan(c);
      for (int64_t p = 0; p < blocks_; ++p) finish_chunk(c, p);
      finish_steps(c, dA, dbias);
    }
    const int64_t row = this->batch_ * args_.heads + this->head_;
    static_cast<Scalar*>(backward_->dA_parts)[row] = static_cast<Scalar>(dA);
    if (args_.dt_bias) static_cast<Scalar*>(backward_->dbias_parts)[row] = static_cast<Scalar>(dbias);
    for (int64_t p = 0; p < blocks_; ++p) {
      if (args_.D) store_rows<V>(this->inner_lanes(backward_->dD_parts, row, 1, p), 0, 1, dD_ + p * W, W);
      if (backward_->args.dinitial_states == nullptr) continue;
      store_rows<V>(this->state_lanes(backward_->args.dinitial_states, p), 0, states_, dh_ + p * states_ * W, W);
    }
  }

 private:
  void clear(Scalar* rows, int64_t count) { std::memset(rows, 0, static_cast<size_t>(count * W) * sizeof(Scalar)); }

  // x, g = grad_out silu(z), and what D x gives: dx = D g, dD, its part of y.
  void load_chunk(int64_t c, int64_t p) {
    const int64_t first = c * kChunk, count = this->chunk_length(c);
    Scalar* x = x_ + p * kChunk * W;
    Scalar* g = g_ + p * kChunk * W;
    Scalar* dx = dx_ + p * kChunk * W;
    load_rows<V>(x, W, this->lanes(args_.x, p), first, count);
    load_rows<V>(g, W, this->lanes(backward_->args.grad_out, p), first, count);
    if (args_.z.data) {
      load_rows<V>(dx, W, this->lanes(args_.z, p), first, count);
      for (int64_t t = 0; t < count; ++t) {
        V::store(g + t * W, V::mul(V::load(g + t * W), silu<V>(V::load(dx + t * W))));
      }
    }
    const Reg D = this->skip(p);
    Reg dD = V::zero();
    for (int64_t t = 0; t < count; ++t) {
      const Reg row = V::load(x + t * W), gradient = V::load(g + t * W);
      dD = V::fma(gradient, row, dD);
      V::store(dx + t * W, args_.D ? V::mul(D, gradient) : V::zero());
      if (args_.z.data) V::store(y_ + (p * kChunk + t) * W, args_.D ? V::mul(D, row) : V::zero());
    }
    if (args_.D) add_to<V>(dD_ + p * W, dD);
  }

  void scan(int64_t c) {
    const int64_t count = this->chunk_length(c);
    const Operand<V> B = this->rows(this->plan_.B, c);
    const Operand<V> C = this->rows(this->plan_.C, c);
    const int64_t group = this->head_ / (args_.heads / args_.groups);
    const int64_t row = ((split_ * args_.batch + this->batch_) * args_.groups + group) * args_.length + c * kChunk;
    ChunkRows<Scalar> rows = {};
    rows.dt = this->dt_;
    rows.decay = this->decay_;
    rows.before = before_;
    rows.kept = kept_;
    rows.taken_in = taken_in_;
    rows.dB = static_cast<Scalar*>(backward_->dB_parts) + row * states_;
    rows.dC = static_cast<Scalar*>(backward_->dC_parts) + row * states_;
    rows.states = states_;
    for (int64_t p = 0; p < blocks_; ++p) {
      const int64_t at = p * kChunk * W;
      rows.x = x_ + at;
      rows.g = g_ + at;
      rows.y = args_.z.data ? y_ + at : nullptr;
      rows.dx = dx_ + at;
      for_states<kStates>(states_, [&](auto size, int64_t n) {
        constexpr int NB = size();
        load_rows<V>(start_, W, this->checkpoint_lanes(backward_->args.checkpoints, c, p), n, NB);
        recompute<V, NB>(count, rows, B, C, n, start_);
        reverse<V, NB>(count, rows, B, C, n, dh_ + (p * states_ + n) * W);
      });
    }
  }

  void finish_chunk(int64_t c, int64_t p) {
    const int64_t first = c * kChunk, count = this->chunk_length(c);
    Scalar* dx = dx_ + p * kChunk * W;
    store_rows<V>(this->lanes(backward_->args.dx, p), first, count, dx, W);
    if (args_.z.data == nullptr) return;
    Scalar* y = y_ + p * kChunk * W;
    Scalar* z = g_ + p * kChunk * W;
    load_rows<V>(dx, W, this->lanes(backward_->args.grad_out, p), first, count);
    load_rows<V>(z, W, this->lanes(args_.z, p), first, count);
    for (int64_t t = 0; t < count; ++t) {
      const Reg gradient = V::mul(V::load(dx + t * W), V::load(y + t * W));
      V::store(y + t * W, V::mul(gradient, silu_slope<V>(V::load(z + t * W))));
    }
    store_rows<V>(this->lanes(backward_->args.dz, p), first, count, y, W);
  }

  // d dt = sum of x (dh B) + A decay (dh h[t - 1]), through the clamp and softplus.
  void finish_steps(int64_t c, double& dA, double& dbias) {
    const int64_t count = this->chunk_length(c);
    Scalar* kept = sums_;
    Scalar* taken_in = sums_ + kChunk;
    std::memset(sums_, 0, static_cast<size_t>(2 * kChunk) * sizeof(Scalar));
    LaneSums<V, 1> sums_of_kept, sums_of_taken_in;
    for (int64_t t = 0; t < count; ++t) {
      V::store(sums_of_kept.next(kept + t), V::load(kept_ + t * W));
      sums_of_kept.step_done();
      V::store(sums_of_taken_in.next(taken_in + t), V::load(taken_in_ + t * W));
      sums_of_taken_in.step_done();
    }
    sums_of_kept.finish();
    sums_of_taken_in.finish();
    const Scalar A = this->head_value(args_.A);
    const int64_t size = dtype_bytes(args_.dtype);
    const HeadSequence& out = backward_->args.ddt;
    char* target = static_cast<char*>(out.data) +
                   (this->batch_ * out.batch + this->head_ * out.head + c * kChunk * out.position) * size;
    for (int64_t t = 0; t < count; t += W) {
      alignas(64) Scalar slopes[W];
      V::store(slopes, args_.dt_softplus ? softplus_slope<V>(V::load(this->raw_ + t)) : V::set1(1));
      for (int64_t i = t; i < count && i < t + W; ++i) {
        const Scalar by_decay = this->decay_[i] * kept[i];
        dA += static_cast<double>(this->dt_[i]) * by_decay;
        const Scalar dt = this->unclamped_[i];
        const bool clamped = dt < static_cast<Scalar>(args_.dt_min) || dt > static_cast<Scalar>(args_.dt_max);
        const Scalar gradient = clamped ? Scalar(0) : (taken_in[i] + A * by_decay) * slopes[i - t];
        dbias += gradient;
        narrow_row(target + i * out.position * size, args_.dtype, &gradient, 1);
      }
    }
  }

  const ChunkScanBackwardPlan* backward_;
  int64_t split_;
  int64_t blocks_;  // of the head's channels
  Scalar* x_;
  Scalar* g_;
  Scalar* dx_;
  Scalar* y_;
  Scalar* dD_;
  Scalar* dh_;
  Scalar* start_;
  Scalar* before_;
  Scalar* kept_;
  Scalar* taken_in_;
  Scalar* sums_;
};

}  // namespace

int64_t chunk_scan_backward_bytes(const ChunkScanPlan& plan) {
  const int64_t f32 = BackwardHead<F32>(plan, nullptr, 0, 0, 0, nullptr).bytes();
  const int64_t f64 = BackwardHead<F64>(plan, nullptr, 0, 0, 0, nullptr).bytes();
  return f32 > f64 ? f32 : f64;
}

void chunk_scan_backward_f32(const ChunkScanBackwardPlan& plan, int64_t batch, int64_t head, int64_t split,
                             void* memory) {
  BackwardHead<F32>(plan.scan, &plan, batch, head, split, memory).run();
}

void chunk_scan_backward_f64(const ChunkScanBackwardPlan& plan, int64_t batch, int64_t head, int64_t split,
                             void* memory) {
  BackwardHead<F64>(plan.scan, &plan, batch, head, split, memory).run();
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
