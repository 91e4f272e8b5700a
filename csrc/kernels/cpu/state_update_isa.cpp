// SPDX-License-Identifier: Apache-2.0
// One decoding step of one ISA level, for a run of channels of one head: what there is one of per channel lies across
// lanes first, then the states of one channel after the other do.
#include "scan_isa.h"
#include "selective_scan_plan.h"

namespace fgk {
namespace FGK_ISA_NS {

void state_update_f32(const StateUpdate& args, int64_t batch, int64_t head, int64_t first, int64_t last);
void state_update_f64(const StateUpdate& args, int64_t batch, int64_t head, int64_t first, int64_t last);

namespace {

constexpr int kPiece = 64;  // states or channels at a time, a multiple of every W

// `count` elements of a row with this stride, and zeros up to a whole vector. In place where they can be read like
// that.
template <class V>
FGK_INLINE const typename V::Scalar* read_piece(typename V::Scalar* piece, const void* data, DType dtype, int64_t first,
                                                int64_t stride, int64_t count) {
  using Scalar = typename V::Scalar;
  const int64_t size = dtype_bytes(dtype);
  const char* start = static_cast<const char*>(data) + first * size;
  if (stride == 1 && dtype == kLaneType<V> && count % V::W == 0) return reinterpret_cast<const Scalar*>(start);
  if (stride == 1) {
    widen_row(piece, start, dtype, count, 1.0f);
  } else if (stride == 0) {
    widen_row(piece, start, dtype, 1, 1.0f);
    for (int64_t i = 1; i < count; ++i) piece[i] = piece[0];
  } else {
    for (int64_t i = 0; i < count; ++i) widen_row(piece + i, start + i * stride * size, dtype, 1, 1.0f);
  }
  for (int64_t i = count; i % V::W != 0; ++i) piece[i] = Scalar(0);
  return piece;
}

template <class V>
class StateStep {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;

 public:
  StateStep(const StateUpdate& args, int64_t batch, int64_t head)
      : args_(args),
        parameter_(args.dtype == DType::f64 ? DType::f64 : DType::f32),
        batch_(batch),
        head_(head),
        entry_(args.entry ? args.entry[batch] : batch) {}

  // At most kPiece channels.
  void run(int64_t first, int64_t last) {
    const int64_t count = last - first;
    alignas(64) Scalar x_piece[kPiece], dt_piece[kPiece], bias_piece[kPiece], y[kPiece], steps[kPiece];
    const Scalar* x = rows(x_piece, args_.x, first, count);
    const Scalar* dt = rows(dt_piece, args_.dt, first, count);
    const Scalar* bias = args_.dt_bias.data ? parameters(bias_piece, args_.dt_bias, first, count) : nullptr;
    for (int64_t i = 0; i < count; i += V::W) {
      Reg step = V::load(dt + i);
      if (bias) step = V::add(step, V::load(bias + i));
      V::store(steps + i, args_.dt_softplus ? softplus<V>(step) : step);
    }
    for (int64_t i = 0; i < count; ++i) y[i] = channel(first + i, steps[i], x[i]);
    for (int64_t i = count; i % V::W != 0; ++i) y[i] = Scalar(0);
    if (args_.D.data) {
      const Scalar* D = parameters(bias_piece, args_.D, first, count);
      for (int64_t i = 0; i < count; i += V::W) {
        V::store(y + i, V::fma(V::load(D + i), V::load(x + i), V::load(y + i)));
      }
    }
    if (args_.z.data) {
      const Scalar* z = rows(bias_piece, args_.z, first, count);
      for (int64_t i = 0; i < count; i += V::W) V::store(y + i, V::mul(V::load(y + i), silu<V>(V::load(z + i))));
    }
    const int64_t at = (batch_ * args_.heads + head_) * args_.channels + first;
    narrow_row(static_cast<char*>(args_.out) + at * dtype_bytes(args_.dtype), args_.dtype, y, count);
  }

 private:
  const Scalar* rows(Scalar* piece, const StateUpdate::Rows& from, int64_t first, int64_t count) const {
    const int64_t at = batch_ * from.batch + head_ * from.head + first * from.channel;
    return read_piece<V>(piece, from.data, args_.dtype, at, from.channel, count);
  }
  const Scalar* parameters(Scalar* piece, const StateUpdate::Parameter& from, int64_t first, int64_t count) const {
    const int64_t at = head_ * from.head + first * from.channel;
    return read_piece<V>(piece, from.data, parameter_, at, from.channel, count);
  }

  // The states of B or C from `first` on; the piece is kept for the channels of a group.
  struct Shared {
    alignas(64) Scalar piece[kPiece];
    const Scalar* data = nullptr;
    int64_t group = -1;
    int64_t first = -1;
  };
  const Scalar* shared(Shared& kept, const StateUpdate::Projection& from, int64_t group, int64_t first, int64_t count) {
    if (kept.group != group || kept.first != first) {
      const int64_t at = batch_ * from.batch + group * from.group + first * from.state;
      kept.data = read_piece<V>(kept.piece, from.data, args_.dtype, at, from.state, count);
      kept.group = group;
      kept.first = first;
    }
    return kept.data;
  }

  // Updates the states of a channel; sum of C h.
  FGK_INLINE Scalar channel(int64_t c, Scalar dt, Scalar x) {
    const int64_t group = args_.heads > 1 ? head_ / (args_.heads / args_.groups) : c / (args_.channels / args_.groups);
    const int64_t row = entry_ * args_.state_entry + head_ * args_.state_head + c * args_.state_channel;
    const int64_t A_row = head_ * args_.A.head + c * args_.A.channel;
    const Reg exponent = V::set1(dt * static_cast<Scalar>(kLog2E));
    const Reg input = V::set1(dt * x);
    const bool one_decay = args_.A.state == 0;
    Reg decay = V::zero();
    if (one_decay && args_.states > 0) {
      decay = exp2<V>(V::mul(exponent, V::set1(*read_piece<V>(A_, args_.A.data, parameter_, A_row, 0, 1))));
    }
    Reg sum = V::zero();
    for (int64_t first = 0; first < args_.states; first += kPiece) {
      const int64_t count = args_.states - first < kPiece ? args_.states - first : kPiece;
      const int64_t at = row + first * args_.state_state;
      const Scalar* h = read_piece<V>(h_, args_.state, args_.state_dtype, at, args_.state_state, count);
      const Scalar* A =
          one_decay ? nullptr
                    : read_piece<V>(A_, args_.A.data, parameter_, A_row + first * args_.A.state, args_.A.state, count);
      const Scalar* B = shared(B_, args_.B, group, first, count);
      const Scalar* C = shared(C_, args_.C, group, first, count);
      for (int64_t n = 0; n < count; n += V::W) {
        if (!one_decay) decay = exp2<V>(V::mul(exponent, V::load(A + n)));
        const Reg next = V::fma(decay, V::load(h + n), V::mul(input, V::load(B + n)));
        V::store(const_cast<Scalar*>(h) + n, next);  // the piece, or the state itself
        sum = V::fma(V::load(C + n), next, sum);
      }
      if (h == h_) write_piece(at, count);
    }
    return V::sum(sum);
  }

  void write_piece(int64_t at, int64_t count) const {
    const int64_t size = dtype_bytes(args_.state_dtype);
    char* start = static_cast<char*>(args_.state) + at * size;
    if (args_.state_state == 1) {
      narrow_row(start, args_.state_dtype, h_, count);
      return;
    }
    for (int64_t n = 0; n < count; ++n) {
      narrow_row(start + n * args_.state_state * size, args_.state_dtype, h_ + n, 1);
    }
  }

  const StateUpdate& args_;
  DType parameter_;
  int64_t batch_;
  int64_t head_;
  int64_t entry_;
  alignas(64) Scalar h_[kPiece];
  alignas(64) Scalar A_[kPiece];
  Shared B_;
  Shared C_;
};

}  // namespace

void state_update_f32(const StateUpdate& args, int64_t batch, int64_t head, int64_t first, int64_t last) {
  StateStep<F32>(args, batch, head).run(first, last);
}

void state_update_f64(const StateUpdate& args, int64_t batch, int64_t head, int64_t first, int64_t last) {
  StateStep<F64>(args, batch, head).run(first, last);
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
