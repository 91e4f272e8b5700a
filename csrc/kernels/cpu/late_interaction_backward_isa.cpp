// SPDX-License-Identifier: Apache-2.0
// Late-interaction gradients of one ISA level: walks the saved indices in a fixed order, so results never vary.
#include "../common/convert.h"
#include "late_interaction_isa.h"

namespace fgk {
namespace FGK_ISA_NS {
namespace {

template <class V>
FGK_INLINE void axpy(typename V::Scalar* sum, typename V::Scalar weight, const typename V::Scalar* x, int64_t n) {
  const typename V::Reg w = V::set1(weight);
  int64_t k = 0;
  for (; k + V::W <= n; k += V::W) V::store(sum + k, V::fma(w, V::load(x + k), V::load(sum + k)));
  for (; k < n; ++k) sum[k] += weight * x[k];
}

FGK_INLINE int64_t load_index(const DirectionOutput& direction, int64_t position) {
  return direction.wide_indices ? static_cast<const int32_t*>(direction.indices)[position]
                                : static_cast<const int16_t*>(direction.indices)[position];
}

template <class V>
class OwnerGradient {
  using Scalar = typename V::Scalar;

 public:
  OwnerGradient(const BackwardPlan& plan, const BackwardTask& task, void* memory)
      : plan_(plan), args_(plan.args), task_(task), dim_(plan.args.owner.dim), row_(static_cast<Scalar*>(memory)) {
    const int64_t row_bytes = (dim_ * static_cast<int64_t>(sizeof(Scalar)) + 63) / 64 * 64;
    sums_ = reinterpret_cast<Scalar*>(static_cast<char*>(memory) + row_bytes);
  }

  void run() {
    const int64_t base = first_row(task_.sample_first) + task_.token_first;
    if (plan_.in_place) sums_ = static_cast<Scalar*>(args_.gradient) + base * dim_;
    base_ = base;
    const int64_t rows = last_row() - base;
    if (rows > 0) std::memset(sums_, 0, static_cast<size_t>(rows * dim_) * sizeof(Scalar));
    if (args_.paired > 0) {
      for (int64_t o = task_.sample_first; o < task_.sample_last; ++o) {
        const int64_t k = args_.paired;
        const int64_t first = args_.owner_is_a ? o * k : o / k;
        const int64_t last = args_.owner_is_a ? (o + 1) * k : o / k + 1;
        for (int64_t p = first; p < last; ++p) add_pair(o, p);
      }
    } else {
      for (int64_t p = 0; p < args_.other.batch; ++p) {
        for (int64_t o = task_.sample_first; o < task_.sample_last; ++o) add_pair(o, p);
      }
    }
    if (plan_.in_place) return;
    char* gradient = static_cast<char*>(args_.gradient) + base * dim_ * dtype_bytes(args_.owner.dtype);
    narrow_row(gradient, args_.owner.dtype, sums_, rows * dim_);
  }

 private:
  int64_t first_row(int64_t o) const { return args_.owner.token_base(o); }
  int64_t token_last(int64_t o) const { return task_.token_last < 0 ? args_.owner.tokens(o) : task_.token_last; }
  int64_t last_row() const {
    const int64_t o = task_.sample_last - 1;
    return first_row(o) + token_last(o);
  }

  void add_pair(int64_t o, int64_t p) {
    Scalar* sums = sums_ + (first_row(o) - base_) * dim_;
    if (args_.own.scores) {
      const Scalar g = gradient_of(args_.own, o, p) * static_cast<Scalar>(plan_.own_weight[o]);
      const int64_t position = args_.owner.token_base(o) * args_.own.index_x + p * args_.own.index_y;
      const int64_t last = token_last(o);
      const int64_t tokens = args_.other.tokens(p);
      for (int64_t i = task_.token_first; i < last; ++i) {
        const int64_t winner = load_index(args_.own, position + i);
        if (winner >= 0 && winner < tokens) add_row(sums + i * dim_, g, p, winner);
      }
    }
    if (args_.from_other.scores) {
      const Scalar g = gradient_of(args_.from_other, p, o) * static_cast<Scalar>(plan_.other_weight[p]);
      const int64_t position = args_.other.token_base(p) * args_.from_other.index_x + o * args_.from_other.index_y;
      const int64_t tokens = args_.other.tokens(p);
      const int64_t last = token_last(o);
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t winner = load_index(args_.from_other, position + t);
        if (winner >= task_.token_first && winner < last) add_row(sums + winner * dim_, g, p, t);
      }
    }
  }

  Scalar gradient_of(const DirectionOutput& direction, int64_t x, int64_t y) const {
    return static_cast<const Scalar*>(direction.scores)[x * direction.score_x + y * direction.score_y];
  }

  // sum += weight * (token `t` of sample `p` of the other side)
  FGK_INLINE void add_row(Scalar* sum, Scalar weight, int64_t p, int64_t t) {
    const TokenBatch& other = args_.other;
    const char* token = other.token(p, t);
    if (other.dtype == (sizeof(Scalar) == 8 ? DType::f64 : DType::f32)) {
      axpy<V>(sum, weight, reinterpret_cast<const Scalar*>(token), dim_);
      return;
    }
    const float scale = other.scales ? other.scales[other.token_base(p) + t] : 1.0f;
    widen_row(row_, token, other.dtype, dim_, scale);
    axpy<V>(sum, weight, row_, dim_);
  }

  const BackwardPlan& plan_;
  const LateInteractionBackward& args_;
  const BackwardTask& task_;
  int64_t dim_;
  Scalar* row_;
  Scalar* sums_;
  int64_t base_ = 0;
};

}  // namespace

void backward_f32(const BackwardPlan& plan, const BackwardTask& task, void* accumulators) {
  OwnerGradient<F32>(plan, task, accumulators).run();
}

void backward_f64(const BackwardPlan& plan, const BackwardTask& task, void* accumulators) {
  OwnerGradient<F64>(plan, task, accumulators).run();
}

}  // namespace FGK_ISA_NS
}  // namespace fgk
