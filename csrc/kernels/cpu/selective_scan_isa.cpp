// SPDX-License-Identifier: Apache-2.0
// Selective-scan forward of one ISA level. A block of W channels walks along the positions; the states of up to kStates
// of its recurrences stay in registers over a chunk of steps.
#include "selective_scan_isa.h"

namespace fgk {
namespace FGK_ISA_NS {
namespace {

constexpr int kStates = kVectorRegisters == 32 ? 16 : 4;

// y[t] += sum over NB states of C h, from the state `h` (NB, W) at the start of the steps to that at their end.
template <class V, int NB, bool kConstantB, bool kConstantC>
FGK_NOINLINE void scan_chunk(const Steps& steps, const typename V::Scalar* u, const typename V::Scalar* dt,
                             typename V::Scalar* y, const typename V::Scalar* A, const Operand<V>& B,
                             const Operand<V>& C, int64_t first_state, typename V::Scalar* h) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  Reg state[NB];
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) state[n] = V::load(h + n * W);
  for (int64_t t = steps.first; t < steps.last; ++t) {
    const int64_t row = steps.read(t);
    const Reg d = V::load(dt + row * W);
    const Reg input = V::mul(d, V::load(u + row * W));
    // Rounded anew at each step, which a factor within A would not be.
    const Reg exponent = V::mul(d, constant<V>(kLog2E));
    Reg sums[2] = {V::zero(), V::zero()};
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      const Reg decay = exp2<V>(V::mul(exponent, V::load(A + n * W)));
      const Reg added = V::mul(input, B.template at<kConstantB>(row, first_state + n));
      state[n] = V::fma(decay, state[n], added);
      sums[n % 2] = V::fma(C.template at<kConstantC>(row, first_state + n), state[n], sums[n % 2]);
    }
    typename V::Scalar* target = y + steps.write(t) * W;
    V::store(target, V::add(V::load(target), V::add(sums[0], sums[1])));
  }
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) V::store(h + n * W, state[n]);
}

template <class V>
LaneView row_lanes(const ScanProjection& projection, DType dtype, int64_t element, int64_t first, int64_t states) {
  LaneView view;
  view.dtype = dtype;
  view.data = static_cast<char*>(projection.data) + (element + first * projection.state) * dtype_bytes(dtype);
  view.channel = projection.state;
  view.position = projection.position;
  view.channels = static_cast<int>(states - first < V::W ? states - first : V::W);
  return view;
}

// Whole vectors of states at once; a row has no room for part of one.
template <class V>
void read_rows(typename V::Scalar* rows, const ScanProjection& projection, DType dtype, int64_t element, int64_t length,
               int64_t states) {
  int64_t n = 0;
  for (; n + V::W <= states; n += V::W) {
    load_rows<V>(rows + n, states, row_lanes<V>(projection, dtype, element, n, states), 0, length);
  }
  if (n == states) return;
  const LaneView rest = row_lanes<V>(projection, dtype, element, n, states);
  for (int64_t t = 0; t < length; ++t) {
    for (int c = 0; c < rest.channels; ++c) widen_row(rows + t * states + n + c, rest.at(c, t), dtype, 1, 1.0f);
  }
}

template <class V>
void write_rows(const ScanProjection& projection, DType dtype, int64_t element, int64_t length, int64_t states,
                const typename V::Scalar* rows) {
  for (int64_t n = 0; n < states; n += V::W) {
    store_rows<V>(row_lanes<V>(projection, dtype, element, n, states), 0, length, rows + n, states);
  }
}

template <class V>
class ForwardBlock : ScanLanes<V> {
  using Base = ScanLanes<V>;
  using Base::args_;
  using Base::states_;
  using Base::W;
  using typename Base::Reg;
  using typename Base::Scalar;

 public:
  ForwardBlock(const ScanPlan& plan, const ScanBlock& block, void* memory)
      : Base(plan, block, memory),
        u_(this->arena_.template take<Scalar>(plan.rows * W)),
        dt_(this->arena_.template take<Scalar>(plan.rows * W)),
        y_(this->arena_.template take<Scalar>(plan.rows * W)),
        h_(this->arena_.template take<Scalar>(states_ * W)),
        B_rows_(this->arena_.template take<Scalar>(chunked(args_.B, plan.B) ? kScanChunk * states_ : 0)),
        C_rows_(this->arena_.template take<Scalar>(chunked(args_.C, plan.C) ? kScanChunk * states_ : 0)) {}

  int64_t bytes() const { return this->arena_.used(); }

  void run() {
    if (!this->whole_) {
      start_direction(0);
      for (int64_t c = 0; c < scan_chunks(args_.length); ++c) {
        const int64_t first = c * kScanChunk;
        const int64_t count = this->steps(0, c).last;
        load_rows<V>(u_, W, this->lanes(args_.u, 0), first, count);
        load_delta(0, first, count);
        prefetch(first + count);
        std::memset(y_, 0, static_cast<size_t>(count * W) * sizeof(Scalar));
        add_skip(0, count);
        scan(0, c);
        finish(first, count);
      }
      end_direction(0);
      return;
    }
    const int64_t length = args_.length;
    std::memset(y_, 0, static_cast<size_t>(length * W) * sizeof(Scalar));
    for (int64_t k = 0; k < args_.directions; ++k) {
      start_direction(k);
      if (k == 0 || args_.u.direction != 0) load_rows<V>(u_, W, this->lanes(args_.u, k), 0, length);
      load_delta(k, 0, length);
      add_skip(k, length);
      for (int64_t c = 0; c < scan_chunks(length); ++c) scan(k, c);
      end_direction(k);
    }
    finish(0, length);
  }

 private:
  void start_direction(int64_t k) {
    this->load_direction(k);
    if (args_.initial_state) {
      load_rows<V>(h_, W, this->state_lanes(args_.initial_state, k), 0, states_);
    } else {
      std::memset(h_, 0, static_cast<size_t>(states_ * W) * sizeof(Scalar));
    }
  }

  void end_direction(int64_t k) {
    if (args_.last_state) store_rows<V>(this->state_lanes(args_.last_state, k), 0, states_, h_, W);
  }

  void load_delta(int64_t k, int64_t first, int64_t count) {
    load_rows<V>(dt_, W, this->lanes(args_.delta, k), first, count);
    this->to_steps(dt_, count, this->channel_values(args_.delta_bias, k));
  }

  void prefetch(int64_t first) const {
    const int64_t left = args_.length - first;
    const int64_t count = left < kScanChunk ? left : kScanChunk;
    prefetch_rows<V>(this->lanes(args_.u, 0), first, count);
    prefetch_rows<V>(this->lanes(args_.delta, 0), first, count);
    if (args_.z.data) prefetch_rows<V>(this->lanes(args_.z, 0), first, count);
  }

  // y += D u, for `count` rows.
  void add_skip(int64_t k, int64_t count) {
    if (args_.D == nullptr) return;
    const Reg D = this->channel_values(args_.D, k);
    const int32_t* order = args_.ordered && this->whole_ ? args_.table + k * args_.length : nullptr;
    for (int64_t t = 0; t < count; ++t) {
      Scalar* target = y_ + (order ? order[t] : t) * W;
      V::store(target, V::fma(D, V::load(u_ + t * W), V::load(target)));
    }
  }

  void scan(int64_t k, int64_t chunk) {
    if (args_.checkpoints) {
      store_rows<V>(this->checkpoint_lanes(args_.checkpoints, k, chunk), 0, states_, h_, W);
    }
    const Steps steps = this->steps(k, chunk);
    const Operand<V> B = chunk_rows(args_.B, this->plan_.B, this->B_, B_rows_, chunk, steps.last);
    const Operand<V> C = chunk_rows(args_.C, this->plan_.C, this->C_, C_rows_, chunk, steps.last);
    with_constants(args_.B.constant, args_.C.constant, [&](auto constant_B, auto constant_C) {
      for_states<kStates>(states_, [&](auto count, int64_t n) {
        scan_chunk<V, count(), constant_B(), constant_C()>(steps, u_, dt_, y_, this->A_ + n * W, B, C, n, h_ + n * W);
      });
    });
  }

  static bool chunked(const ScanProjection& projection, const ProjectionRows& rows) {
    return !projection.constant && rows.data == nullptr;
  }

  Operand<V> chunk_rows(const ScanProjection& projection, const ProjectionRows& rows, const Operand<V>& operand,
                        Scalar* memory, int64_t chunk, int64_t count) const {
    if (!chunked(projection, rows)) return this->at_chunk(operand, chunk);
    const int64_t element = this->block_.batch * projection.batch + this->block_.group * projection.group +
                            chunk * kScanChunk * projection.position;
    read_rows<V>(memory, projection, args_.dtype, element, count, states_);
    return {memory, states_};
  }

  // Gates y and writes it out.
  void finish(int64_t first, int64_t count) {
    if (args_.z.data) {
      load_rows<V>(u_, W, this->lanes(args_.z, 0), first, count);
      for (int64_t t = 0; t < count; ++t) {
        V::store(y_ + t * W, V::mul(V::load(y_ + t * W), silu<V>(V::load(u_ + t * W))));
      }
    }
    store_rows<V>(this->lanes(args_.out, 0), first, count, y_, W);
  }

  Scalar* u_;
  Scalar* dt_;
  Scalar* y_;
  Scalar* h_;
  Scalar* B_rows_;  // of a chunk, where they are not in place
  Scalar* C_rows_;
};

template <class V>
void forward_block(const ScanPlan& plan, const ScanBlock& block, void* memory) {
  ForwardBlock<V>(plan, block, memory).run();
}

// As many bytes as the larger of the two types takes.
int64_t forward_bytes(const ScanPlan& plan) {
  const ScanBlock block;
  const int64_t f32 = ForwardBlock<F32>(plan, block, nullptr).bytes();
  const int64_t f64 = ForwardBlock<F64>(plan, block, nullptr).bytes();
  return f32 > f64 ? f32 : f64;
}

}  // namespace

extern const SelectiveScanTable kSelectiveScanTable;
const SelectiveScanTable kSelectiveScanTable = {
    F32::W,
    F64::W,
    forward_bytes,
    scan_backward_bytes,
    forward_block<F32>,
    forward_block<F64>,
    scan_backward_f32,
    scan_backward_f64,
    read_rows<F32>,
    read_rows<F64>,
    write_rows<F32>,
    write_rows<F64>,
    state_update_f32,
    state_update_f64,
};

}  // namespace FGK_ISA_NS
}  // namespace fgk
