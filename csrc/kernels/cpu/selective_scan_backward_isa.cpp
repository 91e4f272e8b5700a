// SPDX-License-Identifier: Apache-2.0
// Selective-scan gradients of one ISA level. Chunks are walked from the last to the first: the states of one chunk are
// recomputed from its checkpoint into scratch memory, then the recurrence of the gradients
//   dh[t] = C[t] g[t] + exp(dt[t + 1] A) dh[t + 1],   g = grad_out silu(z)
// runs over it backwards. Sums over channels (dB, dC) are taken over the lanes of each vector at once, in a fixed
// order.
#include "selective_scan_isa.h"

namespace fgk {
namespace FGK_ISA_NS {
namespace {

constexpr int kStates = kVectorRegisters == 32 ? 8 : 4;

// Scratch memory of one chunk and NB states: step by step, state by state.
template <class Scalar>
struct ChunkScratch {
  Scalar* before;    // h at the start of a step
  Scalar* decay;     // exp(dt A)
  Scalar* dA_lanes;  // (states, W) of the block, as are the next two, of a constant B and C
  Scalar* dB_lanes;
  Scalar* dC_lanes;
  Scalar* dB;  // rows of the sums over channels that the block adds to
  Scalar* dC;
  int64_t row;
};

// Arrays of rows of lanes.
template <class Scalar>
struct ChunkRows {
  const Scalar* u;
  const Scalar* dt;
  const Scalar* g;
  Scalar* y;  // null: not wanted
  Scalar* du;
  Scalar* ddt;
};

template <class V, int NB, bool kConstantB, bool kConstantC>
FGK_NOINLINE void recompute(const Steps& steps, const ChunkRows<typename V::Scalar>& rows, const typename V::Scalar* A,
                            const Operand<V>& B, const Operand<V>& C, int64_t first_state,
                            const typename V::Scalar* start, const ChunkScratch<typename V::Scalar>& scratch) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  LaneSums<V, NB> sums;
  Reg state[NB];
  Reg dC[NB];
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) {
    state[n] = V::load(start + n * W);
    if constexpr (kConstantC) dC[n] = V::load(scratch.dC_lanes + (first_state + n) * W);
  }
  int64_t at = 0;
  for (int64_t t = steps.first; t < steps.last; ++t) {
    const int64_t row = steps.read(t);
    const int64_t target = steps.write(t);
    const Reg d = V::load(rows.dt + row * W);
    const Reg input = V::mul(d, V::load(rows.u + row * W));
    const Reg exponent = V::mul(d, constant<V>(kLog2E));
    const Reg g = V::load(rows.g + target * W);
    typename V::Scalar* terms = kConstantC ? nullptr : sums.next(scratch.dC + row * scratch.row + first_state);
    Reg sum = V::zero();
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n, at += W) {
      V::store(scratch.before + at, state[n]);
      const Reg decay = exp2<V>(V::mul(exponent, V::load(A + n * W)));
      V::store(scratch.decay + at, decay);
      state[n] = V::fma(decay, state[n], V::mul(input, B.template at<kConstantB>(row, first_state + n)));
      if constexpr (kConstantC) {
        dC[n] = V::fma(g, state[n], dC[n]);
      } else {
        V::store(terms + n * W, V::mul(g, state[n]));
      }
      sum = V::fma(C.template at<kConstantC>(row, first_state + n), state[n], sum);
    }
    if constexpr (!kConstantC) sums.step_done();
    if (rows.y) V::store(rows.y + target * W, V::add(V::load(rows.y + target * W), sum));
  }
  sums.finish();
  if constexpr (kConstantC) {
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) V::store(scratch.dC_lanes + (first_state + n) * W, dC[n]);
  }
}

// `dh` (NB, W): on entry decay[t + 1] dh[t + 1] of the step after the last, on return that of the first step.
template <class V, int NB, bool kConstantB, bool kConstantC>
FGK_NOINLINE void reverse(const Steps& steps, const ChunkRows<typename V::Scalar>& rows, const typename V::Scalar* A,
                          const Operand<V>& B, const Operand<V>& C, int64_t first_state, typename V::Scalar* dh,
                          const ChunkScratch<typename V::Scalar>& scratch) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  LaneSums<V, NB> sums;
  Reg carry[NB];
  Reg dA[NB];
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) {
    carry[n] = V::load(dh + n * W);
    dA[n] = V::load(scratch.dA_lanes + (first_state + n) * W);
  }
  for (int64_t t = steps.last - 1; t >= steps.first; --t) {
    const int64_t row = steps.read(t);
    const Reg d = V::load(rows.dt + row * W);
    const Reg u = V::load(rows.u + row * W);
    const Reg g = V::load(rows.g + steps.write(t) * W);
    const Reg input = V::mul(d, u);
    Reg by_B = V::zero();
    Reg by_A = V::zero();
    const int64_t at = (t - steps.first) * NB * W;
    typename V::Scalar* terms = kConstantB ? nullptr : sums.next(scratch.dB + row * scratch.row + first_state);
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      const Reg gradient = V::fma(C.template at<kConstantC>(row, first_state + n), g, carry[n]);
      by_B = V::fma(gradient, B.template at<kConstantB>(row, first_state + n), by_B);
      if constexpr (kConstantB) {
        typename V::Scalar* sum = scratch.dB_lanes + (first_state + n) * W;
        V::store(sum, V::fma(gradient, input, V::load(sum)));
      } else {
        V::store(terms + n * W, V::mul(gradient, input));
      }
      carry[n] = V::mul(gradient, V::load(scratch.decay + at + n * W));
      const Reg decayed = V::mul(carry[n], V::load(scratch.before + at + n * W));
      dA[n] = V::fma(d, decayed, dA[n]);
      by_A = V::fma(V::load(A + n * W), decayed, by_A);
    }
    if constexpr (!kConstantB) sums.step_done();
    typename V::Scalar* du = rows.du + row * W;
    typename V::Scalar* ddt = rows.ddt + row * W;
    V::store(du, V::fma(d, by_B, V::load(du)));
    V::store(ddt, V::add(V::load(ddt), V::fma(u, by_B, by_A)));
  }
  sums.finish();
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) {
    V::store(dh + n * W, carry[n]);
    V::store(scratch.dA_lanes + (first_state + n) * W, dA[n]);
  }
}

template <class V>
class BackwardBlock : ScanLanes<V> {
  using Base = ScanLanes<V>;
  using Base::args_;
  using Base::states_;
  using Base::W;
  using typename Base::Reg;
  using typename Base::Scalar;

 public:
  BackwardBlock(const ScanPlan& scan, const ScanBackwardPlan* plan, const ScanBlock& block, int64_t split, void* memory)
      : Base(scan, block, memory), backward_(plan), split_(split) {
    auto rows = [&](bool wanted) { return this->arena_.template take<Scalar>(wanted ? scan.rows * W : 0); };
    u_ = rows(true);
    dt_ = rows(true);
    g_ = rows(true);
    du_ = rows(true);
    ddt_ = rows(true);
    y_ = rows(args_.z.data != nullptr);
    auto lanes = [&](int64_t count) { return this->arena_.template take<Scalar>(count * W); };
    start_ = lanes(kStates);
    dh_ = lanes(states_);
    scratch_.dA_lanes = lanes(states_);
    scratch_.dB_lanes = lanes(args_.B.constant ? states_ : 0);
    scratch_.dC_lanes = lanes(args_.C.constant ? states_ : 0);
    scratch_.before = lanes(kScanChunk * kStates);
    scratch_.decay = lanes(kScanChunk * kStates);
    scratch_.row = states_;
  }

  int64_t bytes() const { return this->arena_.used(); }

  void run() {
    const int64_t chunks = scan_chunks(args_.length);
    if (!this->whole_) {
      start_direction(0);
      for (int64_t c = chunks - 1; c >= 0; --c) {
        const int64_t first = c * kScanChunk;
        const int64_t count = this->steps(0, c).last;
        load_gradient(first, count);
        load_inputs(0, first, count);
        start_rows(0, count);
        scan(0, c);
        finish_delta(0, first, count);
        store_rows<V>(this->lanes(backward_->args.du, 0), first, count, du_, W);
        finish_gate(first, count);
      }
      end_direction(0);
      return;
    }
    const int64_t length = args_.length;
    load_gradient(0, length);
    const bool shared = backward_->args.du.direction == 0;
    for (int64_t k = 0; k < args_.directions; ++k) {
      start_direction(k);
      load_inputs(k, 0, length);
      if (!shared || k == 0) std::memset(du_, 0, static_cast<size_t>(length * W) * sizeof(Scalar));
      start_rows(k, length);
      for (int64_t c = chunks - 1; c >= 0; --c) scan(k, c);
      finish_delta(k, 0, length);
      if (!shared || k == args_.directions - 1) {
        store_rows<V>(this->lanes(backward_->args.du, k), 0, length, du_, W);
      }
      end_direction(k);
    }
    finish_gate(0, length);
  }

 private:
  void clear(Scalar* rows, int64_t count) { std::memset(rows, 0, static_cast<size_t>(count * W) * sizeof(Scalar)); }

  void start_direction(int64_t k) {
    this->load_direction(k);
    if (backward_->args.grad_last_state) {
      load_rows<V>(dh_, W, this->state_lanes(backward_->args.grad_last_state, k), 0, states_);
    } else {
      clear(dh_, states_);
    }
    clear(scratch_.dA_lanes, states_);
    if (args_.B.constant) clear(scratch_.dB_lanes, states_);
    if (args_.C.constant) clear(scratch_.dC_lanes, states_);
    dD_ = V::zero();
    dbias_ = V::zero();
  }

  void end_direction(int64_t k) {
    if (backward_->args.dinitial_state) store_states(backward_->args.dinitial_state, k, dh_);
    store_states(backward_->dA_parts, k, scratch_.dA_lanes);
    if (args_.B.constant) store_states(backward_->dB_constant_parts, k, scratch_.dB_lanes);
    if (args_.C.constant) store_states(backward_->dC_constant_parts, k, scratch_.dC_lanes);
    if (args_.D) store_channels(backward_->dD_parts, k, dD_);
    if (args_.delta_bias) store_channels(backward_->dbias_parts, k, dbias_);
  }

  void store_states(void* data, int64_t k, const Scalar* lanes) {
    store_rows<V>(this->state_lanes(data, k), 0, states_, lanes, W);
  }

  void store_channels(void* data, int64_t k, Reg values) {
    alignas(64) Scalar lanes[W];
    V::store(lanes, values);
    const int64_t row = this->block_.batch * args_.directions + k;
    store_rows<V>(this->parameter_lanes(data, row * args_.channels, 1), 0, 1, lanes, W);
  }

  // g = grad_out silu(z).
  void load_gradient(int64_t first, int64_t count) {
    load_rows<V>(g_, W, this->lanes(backward_->args.grad_out, 0), first, count);
    if (args_.z.data == nullptr) return;
    load_rows<V>(ddt_, W, this->lanes(args_.z, 0), first, count);
    for (int64_t t = 0; t < count; ++t) {
      V::store(g_ + t * W, V::mul(V::load(g_ + t * W), silu<V>(V::load(ddt_ + t * W))));
    }
    clear(y_, count);
  }

  void load_inputs(int64_t k, int64_t first, int64_t count) {
    if (!this->whole_ || k == 0 || args_.u.direction != 0) load_rows<V>(u_, W, this->lanes(args_.u, k), first, count);
    load_rows<V>(dt_, W, this->lanes(args_.delta, k), first, count);
    this->to_steps(dt_, count, this->channel_values(args_.delta_bias, k));
  }

  // What D u gives: du = D g (added to what other directions gave), dD = sum of g u, and its part of y.
  void start_rows(int64_t k, int64_t count) {
    clear(ddt_, count);
    if (!this->whole_) clear(du_, count);
    if (args_.D == nullptr) return;
    const Reg D = this->channel_values(args_.D, k);
    const int32_t* order = args_.ordered && this->whole_ ? args_.table + k * args_.length : nullptr;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t target = order ? order[t] : t;
      const Reg g = V::load(g_ + target * W);
      const Reg u = V::load(u_ + t * W);
      dD_ = V::fma(g, u, dD_);
      V::store(du_ + t * W, V::fma(D, g, V::load(du_ + t * W)));
      if (args_.z.data) V::store(y_ + target * W, V::fma(D, u, V::load(y_ + target * W)));
    }
  }

  void scan(int64_t k, int64_t chunk) {
    const Steps steps = this->steps(k, chunk);
    const Operand<V> B = this->at_chunk(this->B_, chunk);
    const Operand<V> C = this->at_chunk(this->C_, chunk);
    const LaneView checkpoint = this->checkpoint_lanes(backward_->args.checkpoints, k, chunk);
    const ChunkRows<Scalar> rows = {u_, dt_, g_, args_.z.data ? y_ : nullptr, du_, ddt_};
    scratch_.dB = parts(backward_->dB_parts, k, chunk);
    scratch_.dC = parts(backward_->dC_parts, k, chunk);
    with_constants(args_.B.constant, args_.C.constant, [&](auto constant_B, auto constant_C) {
      for_states<kStates>(states_, [&](auto count, int64_t n) {
        constexpr int NB = count();
        const Scalar* A = this->A_ + n * W;
        load_rows<V>(start_, W, checkpoint, n, NB);
        recompute<V, NB, constant_B(), constant_C()>(steps, rows, A, B, C, n, start_, scratch_);
        reverse<V, NB, constant_B(), constant_C()>(steps, rows, A, B, C, n, dh_ + n * W, scratch_);
      });
    });
  }

  // Row 0 of a chunk's steps in the sums of dB or dC that this block adds to.
  Scalar* parts(void* data, int64_t k, int64_t chunk) const {
    if (data == nullptr) return nullptr;
    const int64_t directions = args_.directions, groups = args_.groups;
    const int64_t row = ((split_ * args_.batch + this->block_.batch) * directions + k) * groups + this->block_.group;
    const int64_t first = this->whole_ ? 0 : chunk * kScanChunk;
    return static_cast<Scalar*>(data) + (row * args_.length + first) * states_;
  }

  void finish_delta(int64_t k, int64_t first, int64_t count) {
    const Reg bias = this->channel_values(args_.delta_bias, k);
    if (args_.delta_softplus) {
      load_rows<V>(dt_, W, this->lanes(args_.delta, k), first, count);
      for (int64_t t = 0; t < count; ++t) {
        const Reg slope = softplus_slope<V>(V::add(V::load(dt_ + t * W), bias));
        V::store(ddt_ + t * W, V::mul(V::load(ddt_ + t * W), slope));
      }
    }
    for (int64_t t = 0; t < count; ++t) dbias_ = V::add(dbias_, V::load(ddt_ + t * W));
    store_rows<V>(this->lanes(backward_->args.ddelta, k), first, count, ddt_, W);
  }

  // dz = grad_out y silu'(z).
  void finish_gate(int64_t first, int64_t count) {
    if (args_.z.data == nullptr) return;
    load_rows<V>(g_, W, this->lanes(backward_->args.grad_out, 0), first, count);
    load_rows<V>(ddt_, W, this->lanes(args_.z, 0), first, count);
    for (int64_t t = 0; t < count; ++t) {
      const Reg slope = silu_slope<V>(V::load(ddt_ + t * W));
      V::store(y_ + t * W, V::mul(V::mul(V::load(g_ + t * W), V::load(y_ + t * W)), slope));
    }
    store_rows<V>(this->lanes(backward_->args.dz, 0), first, count, y_, W);
  }

  const ScanBackwardPlan* backward_;
  int64_t split_;
  Scalar* u_;
  Scalar* dt_;
  Scalar* g_;
  Scalar* du_;
  Scalar* ddt_;
  Scalar* y_;
  Scalar* start_;
  Scalar* dh_;
  ChunkScratch<Scalar> scratch_;
  Reg dD_;
  Reg dbias_;
};

}  // namespace

int64_t scan_backward_bytes(const ScanPlan& plan) {
  const ScanBlock block;
  const int64_t f32 = BackwardBlock<F32>(plan, nullptr, block, 0, nullptr).bytes();
  const int64_t f64 = BackwardBlock<F64>(plan, nullptr, block, 0, nullptr).bytes();
  return f32 > f64 ? f32 : f64;
}

void scan_backward_f32(const ScanBackwardPlan& plan, const ScanBlock& block, int64_t split, void* memory) {
  BackwardBlock<F32>(plan.scan, &plan, block, split, memory).run();
}

void scan_backward_f64(const ScanBackwardPlan& plan, const ScanBlock& block, int64_t split, void* memory) {
  BackwardBlock<F64>(plan.scan, &plan, block, split, memory).run();
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
