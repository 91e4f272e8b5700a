// SPDX-License-Identifier: Apache-2.0
// The selective scan's outputs and states. A block owns a channel of a batch entry: it walks through its directions one
// after the other, in tiles, and adds their outputs up in map order, so that sums come out the same in every run.
//
// A tile: all threads load its steps (delta through softplus, u) into shared memory; each segment of lanes scans them
// for some states, the running state of each being handed from tile to tile; all threads add up the states' outputs.
#pragma once

#include "selective_scan_tile.cuh"

namespace fgk::cuda {

// Sums over directions of one row, in shared memory or, if that is too small, in scratch memory that no other block
// touches.
template <class Acc>
struct RowSums {
  sptr<Acc> near;
  gptr<Acc> far;

  FGK_DEVICE Acc ld(int t) const { return far ? far.ld(t) : near.ld(t); }
  FGK_DEVICE void st(int t, Acc v) const { far ? far.st(t, v) : near.st(t, v); }
};

// What a block of the kernel below takes from shared memory.
template <class T>
int64_t scan_forward_bytes(const ScanForwardParams<T>& p, bool sums_in_shared) {
  using Acc = Accumulation<T>;
  const int64_t tile = p.shape.template tile<T>();
  return dev::shared_bytes<Acc>(p.shape.joint_count()) + 3 * dev::shared_bytes<Acc>(tile) +
         dev::shared_bytes<Acc>(tile * p.shape.state_warps) + dev::shared_bytes<Acc>(p.states) +
         (p.checkpoints ? dev::shared_bytes<Acc>(p.staged_count()) : 0) +
         (sums_in_shared ? dev::shared_bytes<Acc>(p.length) : 0);
}

template <class T, bool kJoin>
class ScanForwardBlock {
 public:
  using Acc = Accumulation<T>;
  static constexpr int kItems = kScanItems<T>;

  FGK_DEVICE explicit ScanForwardBlock(const ScanForwardParams<T>& p)
      : p_(p),
        b_(static_cast<int>(dev::bid()) / p.channels),
        c_(static_cast<int>(dev::bid()) % p.channels),
        steps_(p.shape.template tile<T>()),
        thread_(p.shape, shared_) {
    dt_ = take_row(1);
    dtu_ = take_row(1);
    skip_ = take_row(1);
    parts_ = take_row(p.shape.state_warps);
    running_ = shared_.template take<Acc>(p.states);
    if (p.checkpoints) staged_ = shared_.template take<Acc>(p.staged_count());
    if (summed()) {
      if (p.sums) {
        sums_.far = p.sums.slice(dev::bid() * p.length, p.length);
      } else {
        sums_.near = shared_.template take<Acc>(p.length);
      }
    }
  }

  FGK_DEVICE void run() {
    if (summed()) {
      FGK_NO_UNROLL
      for (int t = dev::tid(); t < p_.length; t += dev::block_threads()) sums_.st(t, Acc(0));
    }
    for (int k = 0; k < p_.directions; ++k) direction(k);
    if (!summed()) return;
    dev::sync_block();
    FGK_NO_UNROLL
    for (int t = dev::tid(); t < p_.length; t += dev::block_threads()) store(t, sums_.ld(t));
  }

 private:
  FGK_DEVICE TileRow<T> take_row(int rows) { return {shared_.template take<Acc>(rows * steps_), steps_}; }
  FGK_DEVICE bool summed() const { return p_.directions > 1; }

  FGK_DEVICE void direction(int k) {
    const int64_t row = p_.row(b_, k, c_);
    FGK_NO_UNROLL
    for (int n = dev::tid(); n < p_.states; n += dev::block_threads()) {
      running_.st(n, p_.initial ? p_.initial.ld(row * p_.states + n) : Acc(0));
    }
    const ScanOrder<T> order(p_, k);
    for (int start = 0; start < p_.length; start += steps_) {
      load(k, order, start);
      dev::sync_block();
      scan(k, start);
      dev::sync_block();
      finish(order, start, row);
    }
    if (!p_.last_state) return;
    FGK_NO_UNROLL
    for (int n = dev::tid(); n < p_.states; n += dev::block_threads()) {
      p_.last_state.st(row * p_.states + n, running_.ld(n));
    }
  }

  // Steps behind the end change no state: delta is 0 there.
  FGK_DEVICE void load(int k, const ScanOrder<T>& order, int start) {
    const gptr<const T> u_row = p_.u.row(b_, k, c_, p_.length);
    const gptr<const T> delta_row = p_.delta.row(b_, k, c_, p_.length);
    const int64_t parameter = p_.parameter_row(k, c_);
    const Acc bias = p_.bias ? p_.bias.ld(parameter) : Acc(0);
    const Acc D = p_.D ? p_.D.ld(parameter) : Acc(0);
    FGK_NO_UNROLL
    for (int t = dev::tid(); t < steps_; t += dev::block_threads()) {
      Acc u = 0;
      Acc dt = 0;
      if (start + t < p_.length) {
        const int place = order.input(start + t, order.map(start + t));
        u = read_at(u_row, p_.u.position, place);
        dt = read_at(delta_row, p_.delta.position, place) + bias;
        if (p_.softplus) dt = softplus(dt);
      }
      dt_.st(t, dt);
      dtu_.st(t, dt * u);
      skip_.st(t, p_.D ? D * u : Acc(0));
    }
  }

  FGK_DEVICE void scan(int k, int start) {
    const int step = thread_.step();
    Acc dt[kItems], dtu[kItems], y[kItems] = {};
    dt_.load(step, dt);
    dtu_.load(step, dtu);
    const gptr<const Acc> A = p_.A.slice(p_.parameter_row(k, c_) * p_.states, p_.states);
    const ProjectionRows<T> B(p_, p_.B, b_, k, c_), C(p_, p_.C, b_, k, c_);
    const bool starts_chunk = p_.checkpoints && step % kChunkSteps == 0;

    int turn = 0;
    FGK_NO_UNROLL
    for (int first = 0; first < p_.states; first += p_.shape.states_at_once(), turn ^= 1) {
      const int n = first + thread_.state();
      const bool there = n < p_.states;
      Acc input[kItems] = {}, C_n[kItems] = {}, a[kItems];
      Acc rate = 0;
      Acc entering = 0;
      if (there) {
        rate = decay_rate(A.ld(n));
        entering = running_.ld(n);
        B.load(n, start + step, p_.length, input);
        C.load(n, start + step, p_.length, C_n);
      }
      Affine<Acc> own{1, 0};
      FGK_UNROLL
      for (int i = 0; i < kItems; ++i) {
        a[i] = decay(rate, dt[i]);
        input[i] *= dtu[i];
        own = {own.a * a[i], dev::fma(a[i], own.b, input[i])};
      }
      Acc h = thread_.before(own, entering, turn);
      if (there && starts_chunk) staged_.st(step / kChunkSteps * p_.states + n, h);
      FGK_UNROLL
      for (int i = 0; i < kItems; ++i) {
        h = dev::fma(a[i], h, input[i]);
        if (there) y[i] = dev::fma(C_n[i], h, y[i]);  // zero times infinity would be no zero
      }
      if constexpr (!kJoin) dev::sync_warp();  // other lanes have read running_
      if (there && thread_.last_in_tile()) running_.st(n, h);
    }
    thread_.store_sums(parts_, y);
  }

  FGK_DEVICE void finish(const ScanOrder<T>& order, int start, int64_t row) {
    const int count = dev::min(steps_, p_.length - start);
    FGK_NO_UNROLL
    for (int t = dev::tid(); t < count; t += dev::block_threads()) {
      Acc y = skip_.ld(t);
      FGK_NO_UNROLL
      for (int w = 0; w < p_.shape.state_warps; ++w) y += parts_.next(w).ld(t);
      const int place = order.map(start + t);
      if (place < 0) continue;
      if (summed()) {
        sums_.st(place, sums_.ld(place) + y);
      } else {
        store(place, y);
      }
    }
    if (!p_.checkpoints) return;
    const int chunk = start / kChunkSteps;
    const int chunks = dev::min((count + kChunkSteps - 1) / kChunkSteps, p_.chunks);
    const gptr<Acc> to = p_.checkpoints.slice((row * p_.chunks + chunk) * p_.states, int64_t{chunks} * p_.states);
    FGK_NO_UNROLL
    for (int i = dev::tid(); i < chunks * p_.states; i += dev::block_threads()) to.st(i, staged_.ld(i));
  }

  FGK_DEVICE void store(int place, Acc y) const {
    if (p_.z.data) y *= silu(to_acc(p_.z.row(b_, 0, c_, p_.length).ld(place * p_.z.position)));
    p_.out.row(b_, 0, c_, p_.length).st(place * p_.out.position, from_acc<T>(y));
  }

  const ScanForwardParams<T>& p_;
  const int b_, c_;
  const int steps_;
  dev::Shared shared_;
  ScanThread<T, kJoin> thread_;
  TileRow<T> dt_, dtu_, skip_;
  TileRow<T> parts_;   // outputs, one row per state warp
  sptr<Acc> running_;  // states before the tile
  sptr<Acc> staged_;   // states at the starts of the tile's chunks
  RowSums<Acc> sums_;
};

template <class T, bool kJoin>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kScanMaxThreads, 2) selective_scan_forward_kernel(ScanForwardParams<T> p) {
  ScanForwardBlock<T, kJoin>(p).run();
}

}  // namespace fgk::cuda
