// SPDX-License-Identifier: Apache-2.0
// Gradients of the selective scan. A block owns some channels of one group, in one direction of one batch entry: it
// walks through the tiles from the last to the first and, in each, through its channels, so that their parts of the
// gradients of B and C add up where only this block writes. What several blocks have of one result (dB, dC, parameters'
// gradients over the batch, dx and dz over directions) is left in scratch memory and added up by later kernels in a
// fixed order: no atomics, the same bits in every run.
//
// The states of a tile are computed again from the checkpoint at its start; with a[t] = exp(A dt[t]) and
// x[t] = a[t + 1] dh[t + 1], what step t + 1 hands back, a second scan against the steps' order gives
// dh[t] = C[t] g[t] + x[t], from which all gradients follow.
#pragma once

#include "selective_scan_tile.cuh"

namespace fgk::cuda {

// One channel's part of dB or dC within a tile: to the rows of the block, in shared or in scratch memory.
template <class T>
struct RowGradient {
  using Acc = Accumulation<T>;
  static constexpr int kHalf = TileRow<T>::kHalf;

  TileRow<T> near;  // states rows
  gptr<Acc> far;    // (states, pitch)
  int pitch;
  bool in_shared;

  // One half of the items of the thread whose first step is `step` of the tile that starts at `start`. The same thread
  // takes the same places for each channel, so no barrier is needed.
  FGK_DEVICE void add_half(int n, int start, int step, int half, bool first, Acc (&v)[kHalf]) const {
    if (in_shared) {
      const TileRow<T> row = near.next(n);
      if (!first) {
        Acc sum[kHalf];
        row.load_half(step, half, sum);
        FGK_UNROLL
        for (int i = 0; i < kHalf; ++i) v[i] += sum[i];
      }
      row.store_half(step, half, v);
    } else if (start + step < pitch) {
      const int64_t at = int64_t{n} * pitch + start + step + half * kHalf;
      FGK_UNROLL
      for (int i = 0; i < kHalf; ++i) v[i] += first ? Acc(0) : far.ld(at + i);
      store_vector<Acc, kHalf>(far, at, v);
    }
  }

  // Copies a tile's rows from shared memory to where the next kernel finds them.
  FGK_DEVICE void flush(int states, int start) const {
    const int count = dev::min(near.steps, pitch - start);
    FGK_NO_UNROLL
    for (int i = dev::tid(); i < states * near.steps; i += dev::block_threads()) {
      const int n = i / near.steps, t = i % near.steps;
      if (t < count) far.st(int64_t{n} * pitch + start + t, near.next(n).ld(t));
    }
  }
};

// Of each step: delta, delta u, the gradient by the sum over states, u, the slope of softplus, and the factor of that
// sum in the gradient by z.
enum ScanStepRow { kDelta, kDeltaU, kGradient, kInput, kSlope, kGate, kScanStepRows };

// Of each step and state warp: sums over its states of dh B, of A times what dh gives its decay, and of C h.
constexpr int kScanParts = 3;

// What a block of the kernel below takes from shared memory.
template <class T>
int64_t scan_backward_bytes(const ScanBackwardParams<T>& p, bool rows_in_shared) {
  using Acc = Accumulation<T>;
  const int64_t tile = p.shape.template tile<T>();
  const int rows = rows_in_shared ? !p.B.constant + !p.C.constant : 0;
  return dev::shared_bytes<Acc>(p.shape.joint_count()) +
         dev::shared_bytes<Acc>(tile * (kScanStepRows + kScanParts * p.shape.state_warps)) +
         dev::shared_bytes<Acc>(2 * kScanMaxWarps) + rows * dev::shared_bytes<Acc>(tile * p.states);
}

template <class T, bool kJoin>
class ScanBackwardBlock {
 public:
  using Acc = Accumulation<T>;
  static constexpr int kItems = kScanItems<T>;
  static constexpr int kHalf = TileRow<T>::kHalf;

  FGK_DEVICE explicit ScanBackwardBlock(const ScanBackwardParams<T>& p)
      : p_(p), steps_(p.shape.template tile<T>()), thread_(p.shape, shared_) {
    int rest = static_cast<int>(dev::bid());
    const int set = rest % p.sets;
    rest /= p.sets;
    const int group = rest % p.groups;
    rest /= p.groups;
    k_ = rest % p.directions;
    b_ = rest / p.directions;
    const int group_channels = p.channels / p.groups;
    first_channel_ = group * group_channels + set * p.set_channels;
    last_channel_ = dev::min(first_channel_ + p.set_channels, (group + 1) * group_channels);
    rows_ = take_row(kScanStepRows + kScanParts * p.shape.state_warps);
    channel_sums_ = shared_.template take<Acc>(2 * kScanMaxWarps);
    dB_ = take_gradient(p.dB_rows, dev::bid());
    dC_ = take_gradient(p.dC_rows, dev::bid());
  }

  FGK_DEVICE void run() {
    const ScanOrder<T> order(p_, k_);
    for (int start = (p_.length - 1) / steps_ * steps_; start >= 0; start -= steps_) {
      for (int c = first_channel_; c < last_channel_; ++c) {
        load(order, c, start);
        dev::sync_block();
        settle();
        scan(c, start);
        dev::sync_block();
        finish(order, c, start);
      }
      if (!p_.rows_in_shared) continue;
      if (dB_.far) dB_.flush(p_.states, start);
      if (dC_.far) dC_.flush(p_.states, start);
    }
    dev::sync_block();
    settle();
  }

 private:
  FGK_DEVICE TileRow<T> take_row(int rows) { return {shared_.template take<Acc>(rows * steps_), steps_}; }
  FGK_DEVICE TileRow<T> of_steps(ScanStepRow row) const { return rows_.next(row); }
  // A part of the steps, one row per state warp.
  FGK_DEVICE TileRow<T> parts(int part) const { return rows_.next(kScanStepRows + part * p_.shape.state_warps); }
  FGK_DEVICE RowGradient<T> take_gradient(gptr<Acc> rows, int64_t block) {
    if (!rows) return {};
    const int64_t count = int64_t{p_.states} * p_.pitch;
    RowGradient<T> gradient{{}, rows.slice(block * count, count), p_.pitch, p_.rows_in_shared};
    if (p_.rows_in_shared) gradient.near = take_row(p_.states);
    return gradient;
  }
  FGK_DEVICE bool last_tile(int start) const { return start + steps_ >= p_.length; }

  FGK_DEVICE void load(const ScanOrder<T>& order, int c, int start) {
    const gptr<const T> u_row = p_.u.row(b_, k_, c, p_.length);
    const gptr<const T> delta_row = p_.delta.row(b_, k_, c, p_.length);
    const gptr<const T> grad_row = p_.grad_out.row(b_, 0, c, p_.length);
    const Acc bias = p_.bias ? p_.bias.ld(p_.parameter_row(k_, c)) : Acc(0);
    FGK_NO_UNROLL
    for (int t = dev::tid(); t < steps_; t += dev::block_threads()) {
      Acc u = 0, dt = 0, slope = 1, g = 0, gate = 0;
      if (start + t < p_.length) {
        const int in_map = order.map(start + t);
        const int place = order.input(start + t, in_map);
        u = read_at(u_row, p_.u.position, place);
        dt = read_at(delta_row, p_.delta.position, place) + bias;
        if (p_.softplus) {
          slope = softplus_slope(dt);
          dt = softplus(dt);
        }
        g = read_at(grad_row, p_.grad_out.position, in_map);
        if (p_.z.data) {
          const Acc z = read_at(p_.z.row(b_, 0, c, p_.length), p_.z.position, in_map);
          gate = g * silu_slope(z);
          g *= silu(z);
        }
      }
      of_steps(kDelta).st(t, dt);
      of_steps(kDeltaU).st(t, dt * u);
      of_steps(kGradient).st(t, g);
      of_steps(kInput).st(t, u);
      of_steps(kSlope).st(t, slope);
      of_steps(kGate).st(t, gate);
    }
  }

  FGK_DEVICE void scan(int c, int start) {
    const int step = thread_.step();
    const int64_t row = p_.row(b_, k_, c);
    const bool first_channel = c == first_channel_;
    Acc dh_B[kItems] = {}, dh_decay[kItems] = {}, y[kItems] = {};
    const gptr<const Acc> A = p_.A.slice(p_.parameter_row(k_, c) * p_.states, p_.states);
    const int chunk = start / kChunkSteps;
    const gptr<const Acc> checkpoint = p_.checkpoints.slice((row * p_.chunks + chunk) * p_.states, p_.states);
    const gptr<Acc> carry = p_.carry.slice(row * p_.states, p_.states);
    const ProjectionRows<T> B(p_, p_.B, b_, k_, c), C(p_, p_.C, b_, k_, c);

    FGK_NO_UNROLL
    for (int first = 0; first < p_.states; first += p_.shape.states_at_once()) {
      const int n = first + thread_.state();
      const bool there = n < p_.states;
      Acc B_n[kItems] = {}, C_n[kItems] = {}, a[kItems];
      Acc rate = 0, entering = 0, from_behind = 0;
      if (there) {
        rate = decay_rate(A.ld(n));
        entering = checkpoint.ld(n);
        from_behind = !last_tile(start) ? carry.ld(n) : p_.grad_last ? p_.grad_last.ld(row * p_.states + n) : Acc(0);
        B.load(n, start + step, p_.length, B_n);
        C.load(n, start + step, p_.length, C_n);
      }
      Affine<Acc> own{1, 0};
      FGK_UNROLL
      for (int half = 0; half < 2; ++half) {
        Acc dt[kHalf], dtu[kHalf];
        of_steps(kDelta).load_half(step, half, dt);
        of_steps(kDeltaU).load_half(step, half, dtu);
        FGK_UNROLL
        for (int j = 0; j < kHalf; ++j) {
          const int i = half * kHalf + j;
          a[i] = decay(rate, dt[j]);
          own = {own.a * a[i], dev::fma(a[i], own.b, B_n[i] * dtu[j])};
        }
      }
      Acc h = thread_.before(own, entering, 0);
      Acc before[kItems];
      Acc dC_sum = 0;
      own = {1, 0};  // from here on: against the steps' order
      FGK_UNROLL
      for (int half = 0; half < 2; ++half) {
        Acc dtu[kHalf], g[kHalf], gradient[kHalf];
        of_steps(kDeltaU).load_half(step, half, dtu);
        of_steps(kGradient).load_half(step, half, g);
        FGK_UNROLL
        for (int j = 0; j < kHalf; ++j) {
          const int i = half * kHalf + j;
          before[i] = h;
          h = dev::fma(a[i], h, B_n[i] * dtu[j]);
          if (there) y[i] = dev::fma(C_n[i], h, y[i]);  // zero times infinity would be no zero
          gradient[j] = g[j] * h;
          dC_sum += gradient[j];
          own.a *= a[i];
          own.b = dev::fma(own.a, C_n[i] * g[j], own.b);
        }
        if (there && dC_.far) dC_.add_half(n, start, step, half, first_channel, gradient);
      }

      Acc x = thread_.behind(own, from_behind, 1);
      // Read again rather than kept in a register meanwhile.
      const Acc A_n = there ? A.ld(n) : Acc(0);
      Acc dA_sum = 0, dB_sum = 0;
      FGK_UNROLL
      for (int half = 1; half >= 0; --half) {
        Acc dt[kHalf], dtu[kHalf], g[kHalf], gradient[kHalf];
        of_steps(kDelta).load_half(step, half, dt);
        of_steps(kDeltaU).load_half(step, half, dtu);
        of_steps(kGradient).load_half(step, half, g);
        FGK_UNROLL
        for (int j = kHalf - 1; j >= 0; --j) {
          const int i = half * kHalf + j;
          const Acc dh = dev::fma(C_n[i], g[j], x);
          x = a[i] * dh;
          const Acc term = x * before[i];
          dA_sum = dev::fma(term, dt[j], dA_sum);
          if (there) {
            dh_decay[i] = dev::fma(term, A_n, dh_decay[i]);
            dh_B[i] = dev::fma(dh, B_n[i], dh_B[i]);
          }
          gradient[j] = dh * dtu[j];
          dB_sum += gradient[j];
        }
        if (there && dB_.far) dB_.add_half(n, start, step, half, first_channel, gradient);
      }
      if (!kJoin) dev::sync_warp();  // other lanes have read `carry`
      if (there && thread_.first_in_tile()) carry.st(n, x);
      add_parameter(p_.dA, c, n, there, start, dA_sum);
      if (p_.dB_constant) add_parameter(p_.dB_constant, c, n, there, start, dB_sum);
      if (p_.dC_constant) add_parameter(p_.dC_constant, c, n, there, start, dC_sum);
    }
    thread_.store_sums(parts(0), dh_B);
    thread_.store_sums(parts(1), dh_decay);
    if (p_.z.data) thread_.store_sums(parts(2), y);
  }

  // Adds a thread's part of the gradient by a number per channel and state.
  FGK_DEVICE void add_parameter(gptr<Acc> to, int c, int n, bool there, int start, Acc v) const {
    v = thread_.segment_sum(v);
    if (!there || !thread_.first_in_warp()) return;
    const int64_t part = int64_t{b_} * p_.shape.position_warps + thread_.position_warp();
    const int64_t i = ((part * p_.directions + k_) * p_.channels + c) * p_.states + n;
    to.st(i, last_tile(start) ? v : to.ld(i) + v);
  }

  FGK_DEVICE Acc sum_part(int part, int t) const {
    Acc sum = 0;
    FGK_NO_UNROLL
    for (int w = 0; w < p_.shape.state_warps; ++w) sum += parts(part).next(w).ld(t);
    return sum;
  }

  FGK_DEVICE void finish(const ScanOrder<T>& order, int c, int start) {
    const Acc D = p_.D ? p_.D.ld(p_.parameter_row(k_, c)) : Acc(0);
    const int64_t map_row = p_.row(b_, k_, c) * p_.length;
    Acc dD = 0, dbias = 0;
    FGK_NO_UNROLL
    for (int t = dev::tid(); t < steps_; t += dev::block_threads()) {
      if (start + t >= p_.length) continue;
      const int in_map = order.map(start + t);
      const int place = order.input(start + t, in_map);
      const Acc u = of_steps(kInput).ld(t), g = of_steps(kGradient).ld(t), along_B = sum_part(0, t);
      const Acc du = dev::fma(of_steps(kDelta).ld(t), along_B, D * g);
      const Acc ddelta = dev::fma(u, along_B, sum_part(1, t)) * of_steps(kSlope).ld(t);
      dD = dev::fma(g, u, dD);
      dbias += ddelta;
      if (place < 0) continue;
      p_.ddelta.row(b_, k_, c, p_.length).st(place * p_.ddelta.position, from_acc<T>(ddelta));
      if (p_.du_parts) {
        p_.du_parts.st(map_row + place, du);
      } else {
        p_.du.row(b_, k_, c, p_.length).st(place * p_.du.position, from_acc<T>(du));
      }
      if (!p_.z.data || in_map < 0) continue;
      const Acc y = dev::fma(D, u, sum_part(2, t));
      if (p_.y_parts) {
        p_.y_parts.st(map_row + in_map, y);
      } else {
        p_.dz.row(b_, 0, c, p_.length).st(in_map * p_.dz.position, from_acc<T>(of_steps(kGate).ld(t) * y));
      }
    }
    dD = dev::warp_sum(dD);
    dbias = dev::warp_sum(dbias);
    if (dev::lane() == 0) {
      channel_sums_.st(2 * dev::warp(), dD);
      channel_sums_.st(2 * dev::warp() + 1, dbias);
    }
    unsettled_ = 2 * c + last_tile(start);
  }

  // After a barrier: hands the last channel's sums of finish() on.
  FGK_DEVICE void settle() {
    const int which = dev::tid();  // 0: dD, 1: ddelta_bias
    if (unsettled_ < 0 || which > 1) return;
    const gptr<Acc> to = which == 0 ? p_.dD : p_.dbias;
    if (!to) return;
    Acc sum = 0;
    FGK_NO_UNROLL
    for (int w = 0; w < dev::block_threads() / 32; ++w) sum += channel_sums_.ld(2 * w + which);
    const int64_t i = p_.row(b_, k_, unsettled_ / 2);
    to.st(i, unsettled_ % 2 != 0 ? sum : to.ld(i) + sum);
  }

  const ScanBackwardParams<T>& p_;
  const int steps_;
  dev::Shared shared_;
  ScanThread<T, kJoin> thread_;
  int b_, k_, first_channel_, last_channel_;
  TileRow<T> rows_;  // ScanStepRow, then parts
  sptr<Acc> channel_sums_;
  RowGradient<T> dB_, dC_;
  int unsettled_ = -1;  // 2 c, or 2 c + 1 if there is no sum of channel c yet
};

template <class T, bool kJoin>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kScanMaxThreads, sizeof(T) == 8 ? 1 : 2)
    selective_scan_backward_kernel(ScanBackwardParams<T> p) {
  ScanBackwardBlock<T, kJoin>(p).run();
}

}  // namespace fgk::cuda
