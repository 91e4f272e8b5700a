// SPDX-License-Identifier: Apache-2.0
// Around the selective scan's kernels: B and C brought into scan order, so that the scan reads them in vectors, their
// gradients added up and brought back, and gradients added up over directions.
#pragma once

#include "selective_scan_tile.cuh"

namespace fgk::cuda {

constexpr int kArrangeThreads = 256;
constexpr int kArrangeTile = 32;  // steps and states of a block
constexpr int kArrangePitch = kArrangeTile + 1;

// B, C or their gradient as the caller has it; see ScanProjection.
template <class T>
struct ProjectionArray {
  gptr<T> data;
  int64_t batch, direction, group, state, position;

  // Whether neighbouring states lie closer together than neighbouring positions.
  FGK_DEVICE bool by_state() const { return state < position; }
};

// What a block of the two kernels below works on: 32 steps of 32 states of a (batch, direction, group).
struct ArrangeBlock {
  int64_t row;  // (batch, direction, group)
  int b, k, g;
  int first_step, first_state;

  FGK_DEVICE ArrangeBlock(int directions, int groups, int states, int pitch) {
    const int step_tiles = (pitch + kArrangeTile - 1) / kArrangeTile;
    const int state_tiles = (states + kArrangeTile - 1) / kArrangeTile;
    int64_t rest = dev::bid();
    first_step = static_cast<int>(rest % step_tiles) * kArrangeTile;
    rest /= step_tiles;
    first_state = static_cast<int>(rest % state_tiles) * kArrangeTile;
    row = rest / state_tiles;
    const int whole = static_cast<int>(row);  // fewer than blocks
    g = whole % groups;
    k = whole / groups % directions;
    b = whole / groups / directions;
  }
  static int64_t blocks(int64_t rows, int states, int pitch) {
    const auto tiles = [](int64_t count) { return (count + kArrangeTile - 1) / kArrangeTile; };
    return rows * tiles(states) * tiles(pitch);
  }
};

// Calls body(step, state), relative to the block's first ones, for all of its tile: lanes along the states or the
// steps.
template <class Body>
FGK_DEVICE void for_arrange_tile(bool by_state, const Body& body) {
  for (int i = dev::warp(); i < kArrangeTile; i += kArrangeThreads / 32) {
    const int step = by_state ? i : dev::lane();
    const int state = by_state ? dev::lane() : i;
    body(step, state);
  }
}

// out (batch, directions, groups, states, pitch): rows in scan order, zero behind the end; NaN where the table names no
// place of the map.
template <class T>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kArrangeThreads, 4)
    arrange_projection_kernel(ScanInputs<T> p, ProjectionArray<const T> from, gptr<T> out, int pitch) {
  dev::Shared shared;
  const sptr<T> tile = shared.take<T>(kArrangeTile * kArrangePitch);
  const ArrangeBlock block(p.directions, p.groups, p.states, pitch);
  const ScanOrder<T> order(p, block.k);
  const gptr<const T> data = from.data + (block.b * from.batch + block.k * from.direction + block.g * from.group);
  for_arrange_tile(from.by_state(), [&](int step, int state) {
    const int t = block.first_step + step, n = block.first_state + state;
    T value = from_acc<T>(Accumulation<T>(0));
    if (t < p.length && n < p.states) {
      const int place = order.input(t, order.map(t));
      value = place < 0 ? from_acc<T>(kNoNumber<Accumulation<T>>) : data.ld(n * from.state + place * from.position);
    }
    tile.st(state * kArrangePitch + step, value);
  });
  dev::sync_block();
  const int64_t row_elements = int64_t{p.states} * pitch;
  const gptr<T> to = out.slice(block.row * row_elements, row_elements);
  for_arrange_tile(false, [&](int step, int state) {
    const int t = block.first_step + step, n = block.first_state + state;
    if (t < pitch && n < p.states) to.st(int64_t{n} * pitch + t, tile.ld(state * kArrangePitch + step));
  });
}

// The gradient of B or C: sums over sets of rows (batch, directions, groups, sets, states, pitch), in their order.
template <class T>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kArrangeThreads, 4)
    sum_projection_gradient_kernel(ScanInputs<T> p, gptr<const Accumulation<T>> rows, int sets, int pitch,
                                   ProjectionArray<T> to) {
  using Acc = Accumulation<T>;
  dev::Shared shared;
  const sptr<Acc> tile = shared.take<Acc>(kArrangeTile * kArrangePitch);
  const ArrangeBlock block(p.directions, p.groups, p.states, pitch);
  const ScanOrder<T> order(p, block.k);
  const int64_t set_elements = int64_t{p.states} * pitch;
  const gptr<const Acc> from = rows.slice(block.row * sets * set_elements, sets * set_elements);
  for_arrange_tile(false, [&](int step, int state) {
    const int t = block.first_step + step, n = block.first_state + state;
    if (t >= p.length || n >= p.states) return;
    Acc sum = 0;
    for (int s = 0; s < sets; ++s) sum += from.ld(s * set_elements + int64_t{n} * pitch + t);
    tile.st(state * kArrangePitch + step, sum);
  });
  dev::sync_block();
  const gptr<T> data = to.data + (block.b * to.batch + block.k * to.direction + block.g * to.group);
  for_arrange_tile(to.by_state(), [&](int step, int state) {
    const int t = block.first_step + step, n = block.first_state + state;
    if (t >= p.length || n >= p.states) return;
    const int place = order.input(t, order.map(t));
    if (place < 0) return;
    data.st(n * to.state + place * to.position, from_acc<T>(tile.ld(state * kArrangePitch + step)));
  });
}

// dx and dz (batch, channels, length) from what the directions have of them. Thread: one position.
template <class T>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kArrangeThreads, 4) sum_directions_kernel(ScanBackwardParams<T> p) {
  using Acc = Accumulation<T>;
  const int64_t i = dev::bid() * kArrangeThreads + dev::tid();
  const int64_t row_elements = int64_t{p.channels} * p.length;
  if (i >= p.batch * row_elements) return;
  const int b = static_cast<int>(i / row_elements), c = static_cast<int>(i / p.length % p.channels);
  const int64_t t = i % p.length;
  const auto sum = [&](const gptr<Acc>& parts) {
    Acc total = 0;
    for (int k = 0; k < p.directions; ++k) total += parts.ld(p.row(b, k, c) * p.length + t);
    return total;
  };
  if (p.du_parts) p.du.row(b, 0, c, p.length).st(t * p.du.position, from_acc<T>(sum(p.du_parts)));
  if (p.y_parts) {
    const Acc g = to_acc(p.grad_out.row(b, 0, c, p.length).ld(t * p.grad_out.position));
    const Acc z = to_acc(p.z.row(b, 0, c, p.length).ld(t * p.z.position));
    p.dz.row(b, 0, c, p.length).st(t * p.dz.position, from_acc<T>(g * silu_slope(z) * sum(p.y_parts)));
  }
}

}  // namespace fgk::cuda
