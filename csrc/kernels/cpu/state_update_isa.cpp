// SPDX-License-Identifier: Apache-2.0
// One decoding step of one ISA level: the states of a channel lie across lanes, in pieces that the stack holds.
#include "selective_scan_isa.h"

namespace fgk {
namespace FGK_ISA_NS {
namespace {

constexpr int kPiece = 64;  // states at a time, a multiple of every W

template <class Scalar>
FGK_INLINE Scalar element(const void* data, DType dtype, int64_t index) {
  Scalar x;
  widen_row(&x, static_cast<const char*>(data) + index * dtype_bytes(dtype), dtype, 1, 1.0f);
  return x;
}

// Values [first, first + count) of a row with this stride, zeros up to a whole vector.
template <class V>
FGK_INLINE void read_piece(typename V::Scalar* piece, const void* data, DType dtype, int64_t row, int64_t stride,
                           int64_t first, int64_t count) {
  using Scalar = typename V::Scalar;
  const char* start = static_cast<const char*>(data) + (row + first * stride) * dtype_bytes(dtype);
  if (stride == 1) {
    widen_row(piece, start, dtype, count, 1.0f);
  } else {
    for (int64_t n = 0; n < count; ++n) piece[n] = element<Scalar>(start, dtype, n * stride);
  }
  for (int64_t n = count; n % V::W != 0; ++n) piece[n] = Scalar(0);
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

  void run(int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) channel(c);
  }

 private:
  Scalar row_value(const StateUpdate::Rows& rows, int64_t c) const {
    return element<Scalar>(rows.data, args_.dtype, batch_ * rows.batch + head_ * rows.head + c * rows.channel);
  }
  Scalar parameter_value(const StateUpdate::Parameter& parameter, int64_t c) const {
    if (parameter.data == nullptr) return Scalar(0);
    return element<Scalar>(parameter.data, parameter_, head_ * parameter.head + c * parameter.channel);
  }
  static Scalar first_lane(Reg x) {
    alignas(64) Scalar lanes[V::W];
    V::store(lanes, x);
    return lanes[0];
  }

  void channel(int64_t c) {
    Scalar dt = row_value(args_.dt, c) + parameter_value(args_.dt_bias, c);
    if (args_.dt_softplus) dt = first_lane(softplus<V>(V::set1(dt)));
    const Scalar x = row_value(args_.x, c);
    const int64_t group = args_.heads > 1 ? head_ / (args_.heads / args_.groups) : c / (args_.channels / args_.groups);
    const int64_t row = entry_ * args_.state_entry + head_ * args_.state_head + c * args_.state_channel;
    const int64_t A_row = head_ * args_.A.head + c * args_.A.channel;
    const int64_t B_row = batch_ * args_.B.batch + group * args_.B.group;
    const int64_t C_row = batch_ * args_.C.batch + group * args_.C.group;
    const Reg scaled_dt = V::set1(dt * static_cast<Scalar>(kLog2E));
    const Reg input = V::set1(dt * x);
    Reg sum = V::zero();
    for (int64_t first = 0; first < args_.states; first += kPiece) {
      const int64_t count = args_.states - first < kPiece ? args_.states - first : kPiece;
      read_piece<V>(h_, args_.state, args_.state_dtype, row, args_.state_state, first, count);
      read_piece<V>(A_, args_.A.data, parameter_, A_row, args_.A.state, first, count);
      read_piece<V>(B_, args_.B.data, args_.dtype, B_row, args_.B.state, first, count);
      read_piece<V>(C_, args_.C.data, args_.dtype, C_row, args_.C.state, first, count);
      for (int64_t n = 0; n < count; n += V::W) {
        const Reg decay = exp2<V>(V::mul(scaled_dt, V::load(A_ + n)));
        const Reg h = V::fma(decay, V::load(h_ + n), V::mul(input, V::load(B_ + n)));
        V::store(h_ + n, h);
        sum = V::fma(V::load(C_ + n), h, sum);
      }
      write_piece(row, first, count);
    }
    Scalar y = V::sum(sum) + parameter_value(args_.D, c) * x;
    if (args_.z.data) y *= first_lane(silu<V>(V::set1(row_value(args_.z, c))));
    const int64_t at = (batch_ * args_.heads + head_) * args_.channels + c;
    narrow_row(static_cast<char*>(args_.out) + at * dtype_bytes(args_.dtype), args_.dtype, &y, 1);
  }

  void write_piece(int64_t row, int64_t first, int64_t count) const {
    const int64_t size = dtype_bytes(args_.state_dtype);
    char* start = static_cast<char*>(args_.state) + (row + first * args_.state_state) * size;
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
  alignas(64) Scalar B_[kPiece];
  alignas(64) Scalar C_[kPiece];
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
