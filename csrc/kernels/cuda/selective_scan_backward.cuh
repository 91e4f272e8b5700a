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
  TileRow<T> near;  // states rows
  gptr<Acc> far;    // (states, pitch)
  int pitch;
  bool in_shared;

  // Items of the thread whose first step is `step` of the tile that starts at `start`. The same thread takes the same
  // places for each channel, so no barrier is needed.
  FGK_DEVICE void add(int n, int start, int step, bool first, Acc (&v)[kScanItems<T>]) const {
    if (in_shared) {
      const TileRow<T> row = near.next(n);
      if (!first) {
        Acc sum[kScanItems<T>];
        row.load(step, sum);
        FGK_UNROLL
        for (int i = 0; i < kScanItems<T>; ++i) v[i] += sum[i];
      }
      row.store(step, v);
    } else if (start + step < pitch) {
      constexpr int kVector = kScanItems<T> / 2;
      const int64_t at = int64_t{n} * pitch + start + step;
      FGK_UNROLL
      for (int half = 0; half < kScanItems<T>; half += kVector) {
        Acc sum[kVector] = {};
        if (!first) load_own(at + half, sum);
        FGK_UNROLL
        for (int i = 0; i < kVector; ++i) sum[i] += v[half + i];
        store_vector<Acc, kVector>(far, at + half, sum);
      }
    }
  }

  // Copies a tile's rows from shared memory to where the next kernel finds them.
  FGK_DEVICE void flush(int states, int start) const {
    const int count = dev::min(near.steps, pitch - start);
    for (int i = dev::tid(); i < states * near.steps; i += dev::block_threads()) {
      const int n = i / near.steps, t = i % near.steps;
      if (t < count) far.st(int64_t{n} * pitch + start + t, near.next(n).ld(t));
    }
  }

 private:
  template <int kVector>
  FGK_DEVICE void load_own(int64_t at, Acc (&to)[kVector]) const {
    FGK_UNROLL
    for (int i = 0; i < kVector; ++i) to[i] = far.ld(at + i);
  }
};

template <class T, bool kJoin>
class ScanBackwardBlock {
 public:
  using Acc = Accumulation<T>;
  static constexpr int kItems = kScanItems<T>;

  FGK_DEVICE explicit ScanBackwardBlock(const ScanBackwardParams<T>& p)
      : p_(p), steps_(p.shape.template tile<T>()), thread_(p.shape, shared_) {
    int64_t rest = dev::bid();
    const int set = static_cast<int>(rest % p.sets);
    rest /= p.sets;
    const int64_t group = rest % p.groups;
    rest /= p.groups;
    k_ = rest % p.directions;
    b_ = rest / p.directions;
    const int64_t group_channels = p.channels / p.groups;
    first_channel_ = group * group_channels + set * p.set_channels;
    last_channel_ = dev::min(first_channel_ + p.set_channels, (group + 1) * group_channels);
    dt_ = take_row(1);
    dtu_ = take_row(1);
    g_ = take_row(1);
    u_ = take_row(1);
    slope_ = take_row(1);
    gate_ = take_row(1);
    parts_ = take_row(kParts * p.shape.state_warps);
    channel_sums_ = shared_.template take<Acc>(2 * kScanMaxWarps);
    dB_ = take_gradient(p.dB_rows, dev::bid());
    dC_ = take_gradient(p.dC_rows, dev::bid());
  }

  static int64_t shared_bytes(const ScanBackwardParams<T>& p, bool rows_in_shared) {
    const int64_t tile = p.shape.template tile<T>();
    const int rows = rows_in_shared ? !p.B.constant + !p.C.constant : 0;
    return dev::shared_bytes<Acc>(ScanThread<T, kJoin>::joint_count(p.shape)) + 6 * dev::shared_bytes<Acc>(tile) +
           dev::shared_bytes<Acc>(tile * kParts * p.shape.state_warps) + dev::shared_bytes<Acc>(2 * kScanMaxWarps) +
           rows * dev::shared_bytes<Acc>(tile * p.states);
  }

  FGK_DEVICE void run() {
    const ScanOrder<T> order(p_, k_);
    for (int start = (p_.length - 1) / steps_ * steps_; start >= 0; start -= steps_) {
      for (int64_t c = first_channel_; c < last_channel_; ++c) {
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
  static constexpr int kParts = 3;  // of each step and state warp: sums over states of dh B, of dh dA-terms, of C h

  FGK_DEVICE TileRow<T> take_row(int rows) { return {shared_.template take<Acc>(rows * steps_), steps_}; }
  FGK_DEVICE RowGradient<T> take_gradient(gptr<Acc> rows, int64_t block) {
    if (!rows) return {};
    const int64_t count = int64_t{p_.states} * p_.pitch;
    RowGradient<T> gradient{{}, rows.slice(block * count, count), p_.pitch, p_.rows_in_shared};
    if (p_.rows_in_shared) gradient.near = take_row(p_.states);
    return gradient;
  }
  FGK_DEVICE bool last_tile(int start) const { return start + steps_ >= p_.length; }

  FGK_DEVICE void load(const ScanOrder<T>& order, int64_t c, int start) {
    const gptr<const T> u_row = p_.u.row(b_, k_, c, p_.length);
    const gptr<const T> delta_row = p_.delta.row(b_, k_, c, p_.length);
    const gptr<const T> grad_row = p_.grad_out.row(b_, 0, c, p_.length);
    const Acc bias = p_.bias ? p_.bias.ld(p_.parameter_row(k_, c)) : Acc(0);
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
      dt_.st(t, dt);
      dtu_.st(t, dt * u);
      g_.st(t, g);
      u_.st(t, u);
      slope_.st(t, slope);
      gate_.st(t, gate);
    }
  }

  FGK_DEVICE void scan(int64_t c, int start) {
    const int step = thread_.step();
    const int64_t row = p_.row(b_, k_, c);
    const bool first_channel = c == first_channel_;
    Acc dt[kItems], dtu[kItems], g[kItems];
    dt_.load(step, dt);
    dtu_.load(step, dtu);
    g_.load(step, g);
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
      Acc B_n[kItems] = {}, C_n[kItems] = {}, a[kItems], before[kItems], gradient[kItems];
      Acc A_n = 0, entering = 0, from_behind = 0;
      if (there) {
        A_n = A.ld(n);
        entering = checkpoint.ld(n);
        from_behind = !last_tile(start) ? carry.ld(n) : p_.grad_last ? p_.grad_last.ld(row * p_.states + n) : Acc(0);
        B.load(n, start + step, p_.length, B_n);
        C.load(n, start + step, p_.length, C_n);
      }
      const Acc rate = decay_rate(A_n);
      Affine<Acc> own{1, 0};
      FGK_UNROLL
      for (int i = 0; i < kItems; ++i) {
        a[i] = decay(rate, dt[i]);
        own = {own.a * a[i], dev::fma(a[i], own.b, B_n[i] * dtu[i])};
      }
      Acc h = thread_.before(own, entering);
      Acc dC_sum = 0;
      FGK_UNROLL
      for (int i = 0; i < kItems; ++i) {
        before[i] = h;
        h = dev::fma(a[i], h, B_n[i] * dtu[i]);
        y[i] = dev::fma(C_n[i], h, y[i]);
        gradient[i] = g[i] * h;
        dC_sum += gradient[i];
      }
      if (there && dC_.far) dC_.add(n, start, step, first_channel, gradient);

      own.b = 0;
      FGK_UNROLL
      for (int i = kItems - 1; i >= 0; --i) own.b = a[i] * dev::fma(C_n[i], g[i], own.b);
      Acc x = thread_.behind(own, from_behind);
      Acc dA_sum = 0, dB_sum = 0;
      FGK_UNROLL
      for (int i = kItems - 1; i >= 0; --i) {
        const Acc dh = dev::fma(C_n[i], g[i], x);
        x = a[i] * dh;
        const Acc term = x * before[i];
        dA_sum = dev::fma(term, dt[i], dA_sum);
        dh_decay[i] = dev::fma(term, A_n, dh_decay[i]);
        dh_B[i] = dev::fma(dh, B_n[i], dh_B[i]);
        gradient[i] = dh * dtu[i];
        dB_sum += gradient[i];
      }
      if (there && dB_.far) dB_.add(n, start, step, first_channel, gradient);
      if (!kJoin) dev::sync_warp();  // other lanes have read `carry`
      if (there && thread_.first_in_tile()) carry.st(n, x);
      add_parameter(p_.dA, c, n, there, start, dA_sum);
      if (p_.dB_constant) add_parameter(p_.dB_constant, c, n, there, start, dB_sum);
      if (p_.dC_constant) add_parameter(p_.dC_constant, c, n, there, start, dC_sum);
    }
    thread_.store_sums(parts_, dh_B);
    thread_.store_sums(parts_.next(p_.shape.state_warps), dh_decay);
    if (p_.z.data) thread_.store_sums(parts_.next(2 * p_.shape.state_warps), y);
  }

  // Adds a thread's part of the gradient by a number per channel and state.
  FGK_DEVICE void add_parameter(gptr<Acc> to, int64_t c, int n, bool there, int start, Acc v) const {
    v = thread_.segment_sum(v);
    if (!there || !thread_.first_in_warp()) return;
    const int64_t part = b_ * p_.shape.position_warps + thread_.position_warp();
    const int64_t i = ((part * p_.directions + k_) * p_.channels + c) * p_.states + n;
    to.st(i, last_tile(start) ? v : to.ld(i) + v);
  }

  FGK_DEVICE Acc sum_part(int part, int t) const {
    Acc sum = 0;
    for (int w = 0; w < p_.shape.state_warps; ++w) sum += parts_.next(part * p_.shape.state_warps + w).ld(t);
    return sum;
  }

  FGK_DEVICE void finish(const ScanOrder<T>& order, int64_t c, int start) {
    const Acc D = p_.D ? p_.D.ld(p_.parameter_row(k_, c)) : Acc(0);
    const int64_t map_row = p_.row(b_, k_, c) * p_.length;
    Acc dD = 0, dbias = 0;
    for (int t = dev::tid(); t < steps_; t += dev::block_threads()) {
      if (start + t >= p_.length) continue;
      const int in_map = order.map(start + t);
      const int place = order.input(start + t, in_map);
      const Acc u = u_.ld(t), g = g_.ld(t), along_B = sum_part(0, t);
      const Acc du = dev::fma(dt_.ld(t), along_B, D * g);
      const Acc ddelta = dev::fma(u, along_B, sum_part(1, t)) * slope_.ld(t);
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
        p_.dz.row(b_, 0, c, p_.length).st(in_map * p_.dz.position, from_acc<T>(gate_.ld(t) * y));
      }
    }
    dD = dev::warp_sum(dD);
    dbias = dev::warp_sum(dbias);
    if (dev::lane() == 0) {
      channel_sums_.st(2 * dev::warp(), dD);
      channel_sums_.st(2 * dev::warp() + 1, dbias);
    }
    unsettled_ = c;
    unsettled_first_ = last_tile(start);
  }

  // After a barrier: hands the last channel's sums of finish() on.
  FGK_DEVICE void settle() {
    const int which = dev::tid();  // 0: dD, 1: ddelta_bias
    if (unsettled_ < 0 || which > 1) return;
    const gptr<Acc> to = which == 0 ? p_.dD : p_.dbias;
    if (!to) return;
    Acc sum = 0;
    for (int w = 0; w < dev::block_threads() / 32; ++w) sum += channel_sums_.ld(2 * w + which);
    const int64_t i = p_.row(b_, k_, unsettled_);
    to.st(i, unsettled_first_ ? sum : to.ld(i) + sum);
  }

  const ScanBackwardParams<T>& p_;
  const int steps_;
  dev::Shared shared_;
  ScanThread<T, kJoin> thread_;
  int64_t b_, k_, first_channel_, last_channel_;
  // Of each step: delta, delta u, the gradient of the sum over states, u, the slope of softplus, and what turns that
  // sum into the gradient of z.
  TileRow<T> dt_, dtu_, g_, u_, slope_, gate_;
  TileRow<T> parts_;
  sptr<Acc> channel_sums_;
  RowGradient<T> dB_, dC_;
  int64_t unsettled_ = -1;
  bool unsettled_first_ = false;
};

template <class T, bool kJoin>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kScanMaxThreads, 2) selective_scan_backward_kernel(ScanBackwardParams<T> p) {
  ScanBackwardBlock<T, kJoin>(p).run();
}

}  // namespace fgk::cuda
