// SPDX-License-Identifier: Apache-2.0
// How a block scans a tile of steps: h -> a h + b of each step, composed within a thread, over the lanes of a segment
// by shuffles, and over the warps that follow each other through shared memory.
#pragma once

#include "selective_scan_params.cuh"

namespace fgk::cuda {

// h -> a h + b.
template <class Acc>
struct Affine {
  Acc a, b;
};

// exp(A delta), A as decay_rate gives it.
FGK_DEVICE float decay_rate(float A) { return A * 1.4426950408889634f; }
FGK_DEVICE float decay(float rate, float delta) { return dev::exp2_fast(rate * delta); }
FGK_DEVICE double decay_rate(double A) { return A; }
FGK_DEVICE double decay(double rate, double delta) { return exponential(rate * delta); }

// Numbers of a tile in shared memory, one per step. The two 16-byte halves of a thread's items lie apart, so that the
// vectors of neighbouring threads fill all banks.
template <class T>
struct TileRow {
  using Acc = Accumulation<T>;
  static constexpr int kHalf = kScanItems<T> / 2;

  sptr<Acc> data;
  int steps;

  FGK_DEVICE int place(int t) const { return t / kHalf % 2 * (steps / 2) + t / (2 * kHalf) * kHalf + t % kHalf; }
  FGK_DEVICE Acc ld(int t) const { return data.ld(place(t)); }
  FGK_DEVICE void st(int t, Acc v) const { data.st(place(t), v); }
  FGK_DEVICE TileRow next(int rows) const { return {data + rows * steps, steps}; }

  // One half of the items of the thread whose first one is step t.
  FGK_DEVICE void load_half(int t, int half, Acc (&to)[kHalf]) const {
    const Half v = data.template ld_as<Half>(half * (steps / 2) + t / 2);
    FGK_UNROLL
    for (int i = 0; i < kHalf; ++i) to[i] = v.value[i];
  }
  FGK_DEVICE void store_half(int t, int half, const Acc (&from)[kHalf]) const {
    Half v;
    FGK_UNROLL
    for (int i = 0; i < kHalf; ++i) v.value[i] = from[i];
    data.template st_as<Half>(half * (steps / 2) + t / 2, v);
  }

  // All of them.
  FGK_DEVICE void load(int t, Acc (&to)[2 * kHalf]) const {
    FGK_UNROLL
    for (int half = 0; half < 2; ++half) {
      Acc part[kHalf];
      load_half(t, half, part);
      FGK_UNROLL
      for (int i = 0; i < kHalf; ++i) to[half * kHalf + i] = part[i];
    }
  }
  FGK_DEVICE void store(int t, const Acc (&from)[2 * kHalf]) const {
    FGK_UNROLL
    for (int half = 0; half < 2; ++half) {
      Acc part[kHalf];
      FGK_UNROLL
      for (int i = 0; i < kHalf; ++i) part[i] = from[half * kHalf + i];
      store_half(t, half, part);
    }
  }

 private:
  struct alignas(16) Half {
    Acc value[kHalf];
  };
};

// Where a thread stands in its block's tile, and its share of the scans. kJoin: there are several position warps, whose
// segments have all lanes.
template <class T, bool kJoin>
class ScanThread {
 public:
  using Acc = Accumulation<T>;
  static constexpr int kItems = kScanItems<T>;

  // Takes shared memory.
  FGK_DEVICE ScanThread(const ScanShape& shape, dev::Shared& shared)
      : segment_(shape.segment),
        lane_(dev::lane() & (shape.segment - 1)),
        position_warps_(kJoin ? shape.position_warps : 1),
        position_warp_(kJoin ? dev::warp() % shape.position_warps : 0),
        state_warp_(kJoin ? dev::warp() / shape.position_warps : dev::warp()) {
    if constexpr (kJoin) joint_ = shared.take<Acc>(shape.joint_count());
  }

  // First of the thread's steps within the tile.
  FGK_DEVICE int step() const { return (position_warp_ * segment() + lane_) * kItems; }
  // Which of the states that are under way at a time is the thread's.
  FGK_DEVICE int state() const { return state_warp_ * (32 / segment()) + dev::lane() / segment(); }
  FGK_DEVICE int state_warp() const { return state_warp_; }
  FGK_DEVICE int position_warp() const { return position_warp_; }
  FGK_DEVICE bool first_in_warp() const { return lane_ == 0; }
  FGK_DEVICE bool first_in_tile() const { return lane_ == 0 && position_warp_ == 0; }
  FGK_DEVICE bool last_in_tile() const { return lane_ == segment() - 1 && position_warp_ == position_warps_ - 1; }

  // h before the thread's steps, whose composition is `own`, given h before the tile. Two scans with no barrier
  // in between take turns 0 and 1.
  FGK_DEVICE Acc before(const Affine<Acc>& own, Acc entering, int turn) const {
    Affine<Acc> all = own;
    FGK_NO_UNROLL
    for (int d = 1; d < segment(); d *= 2) {
      const Acc a = dev::shfl_up(all.a, d);
      const Acc b = dev::shfl_up(all.b, d);
      if (lane_ >= d) all = {all.a * a, dev::fma(all.a, b, all.b)};
    }
    if constexpr (kJoin) {
      const sptr<Acc> joint = publish(all, lane_ == segment() - 1, turn);
      FGK_NO_UNROLL
      for (int w = 0; w < position_warp_; ++w) entering = dev::fma(joint.ld(2 * w), entering, joint.ld(2 * w + 1));
    }
    const Acc a = dev::shfl_up(all.a, 1);
    const Acc b = dev::shfl_up(all.b, 1);
    return lane_ == 0 ? entering : dev::fma(a, entering, b);
  }

  // The same against the steps' order: what comes out of the later steps for the thread's last one.
  FGK_DEVICE Acc behind(const Affine<Acc>& own, Acc entering, int turn) const {
    Affine<Acc> all = own;
    FGK_NO_UNROLL
    for (int d = 1; d < segment(); d *= 2) {
      const Acc a = dev::shfl_down(all.a, d);
      const Acc b = dev::shfl_down(all.b, d);
      if (lane_ + d < segment()) all = {all.a * a, dev::fma(all.a, b, all.b)};
    }
    if constexpr (kJoin) {
      const sptr<Acc> joint = publish(all, lane_ == 0, turn);
      FGK_NO_UNROLL
      for (int w = position_warps_ - 1; w > position_warp_; --w) {
        entering = dev::fma(joint.ld(2 * w), entering, joint.ld(2 * w + 1));
      }
    }
    const Acc a = dev::shfl_down(all.a, 1);
    const Acc b = dev::shfl_down(all.b, 1);
    return lane_ == segment() - 1 ? entering : dev::fma(a, entering, b);
  }

  // Sum over the lanes of the segment, in each of them.
  FGK_DEVICE Acc segment_sum(Acc v) const {
    FGK_NO_UNROLL
    for (int mask = segment() / 2; mask > 0; mask /= 2) v += dev::shfl_xor(v, mask);
    return v;
  }

  // Adds up what the warp's segments have of the same steps, and leaves the sums in the row of the state warp.
  FGK_DEVICE void store_sums(const TileRow<T>& rows, Acc (&v)[kItems]) const {
    FGK_NO_UNROLL
    for (int mask = segment(); mask < 32; mask *= 2) {
      FGK_UNROLL
      for (int i = 0; i < kItems; ++i) v[i] += dev::shfl_xor(v[i], mask);
    }
    if (dev::lane() < segment()) rows.next(state_warp_).store(step(), v);
  }

 private:
  // Shows the warp's composition to the other position warps of the state; two buffers, so that one barrier is enough.
  FGK_DEVICE sptr<Acc> publish(const Affine<Acc>& all, bool whole, int turn) const {
    const sptr<Acc> joint = joint_ + (turn * block_warps() + state_warp_ * position_warps_) * 2;
    if (whole) {
      joint.st(2 * position_warp_, all.a);
      joint.st(2 * position_warp_ + 1, all.b);
    }
    dev::sync_block();
    return joint;
  }
  FGK_DEVICE int segment() const { return kJoin ? 32 : segment_; }
  FGK_DEVICE static int block_warps() { return dev::block_threads() / 32; }

  int segment_, lane_, position_warps_, position_warp_, state_warp_;
  sptr<Acc> joint_;
};

// A thread's steps of a row of B or C, zero behind the sequence's end.
template <class T>
FGK_DEVICE void load_steps(const ProjectionView<T>& view, gptr<const T> row, int t, int length,
                           Accumulation<T> (&to)[kScanItems<T>]) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  if (t + kScanItems<T> <= view.readable) {
    FGK_UNROLL
    for (int v = 0; v < kScanItems<T>; v += kVector) {
      Accumulation<T> part[kVector];
      load_vector<T, kVector>(row, t + v, part);
      FGK_UNROLL
      for (int i = 0; i < kVector; ++i) to[v + i] = part[i];
    }
  } else {
    FGK_UNROLL
    for (int i = 0; i < kScanItems<T>; ++i) to[i] = t + i < length ? to_acc(row.ld(t + i)) : Accumulation<T>(0);
  }
}

// One channel's B or C in one direction.
template <class T>
struct ProjectionRows {
  using Acc = Accumulation<T>;
  const ProjectionView<T>& view;
  int64_t start;

  FGK_DEVICE ProjectionRows(const ScanInputs<T>& p, const ProjectionView<T>& from, int b, int k, int c)
      : view(from),
        start(from.rows ? b * from.batch + k * from.direction + p.group_of(c) * from.group
                        : k * from.direction + int64_t{c} * p.states) {}

  FGK_DEVICE void load(int n, int t, int length, Acc (&to)[kScanItems<T>]) const {
    if (view.rows) return load_steps(view, view.rows.slice(start + n * view.state, row_count(length)), t, length, to);
    const Acc v = view.constant.ld(start + n);
    FGK_UNROLL
    for (int i = 0; i < kScanItems<T>; ++i) to[i] = v;
  }

 private:
  FGK_DEVICE int row_count(int length) const { return dev::max(view.readable, length); }
};

// Where the steps of one direction are: the place in the map, and where u, delta, B and C are read. A place outside of
// the map is none: -1.
template <class T>
struct ScanOrder {
  gptr<const int32_t> row;
  int length;
  bool ordered;

  FGK_DEVICE ScanOrder(const ScanInputs<T>& p, int k) : length(p.length), ordered(p.ordered) {
    if (p.table) row = p.table.slice(int64_t{k} * p.length, p.length);
  }
  FGK_DEVICE int map(int t) const {
    if (!row) return t;
    const int position = row.ld(t);
    return position >= 0 && position < length ? position : -1;
  }
  FGK_DEVICE int input(int t, int in_map) const { return ordered ? t : in_map; }
};

template <class Acc>
constexpr Acc kNoNumber = static_cast<Acc>(__builtin_nan(""));

// The number at a place; NaN where there is none.
template <class T>
FGK_DEVICE Accumulation<T> read_at(gptr<const T> row, int64_t stride, int place) {
  return place < 0 ? kNoNumber<Accumulation<T>> : to_acc(row.ld(place * stride));
}

}  // namespace fgk::cuda
