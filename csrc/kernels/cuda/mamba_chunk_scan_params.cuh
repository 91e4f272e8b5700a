// SPDX-License-Identifier: Apache-2.0
// What the kernels of the Mamba-2 scan are launched with, and the decays within a chunk of steps.
//
// With s[i] the sum of dt A over the steps of a chunk up to i, the decay from step j to step i >= j is exp(s[i] -
// s[j]): a difference of sums, never a quotient of products, and 0 where the sequence changes in between. Sums are
// double, so that strong decays early in a chunk do not blur weak ones behind them.
#pragma once

#include "../common/mamba_chunk_scan.h"
#include "sequence_math.cuh"
#include "tile_product.cuh"

namespace fgk::cuda {

constexpr int kChunk = static_cast<int>(kChunkScanChunk);
constexpr int kChunkTiles = kChunk / kTile;

// (batch, position, head or group, channel or state).
template <class T>
struct HeadView {
  gptr<T> data;
  int64_t batch, row;
  int32_t position, column;
  bool vectors;  // channels or states lie side by side, and their vectors start at multiples of 16 bytes

  // `columns` elements of one position and head.
  FGK_DEVICE gptr<T> at(int64_t b, int t, int i, int columns) const {
    return data.slice(b * batch + i * row + static_cast<int64_t>(t) * position,
                      static_cast<int64_t>(columns - 1) * column + 1);
  }
};

// Elements of 16 bytes.
template <class T>
constexpr int kChunkItems = 16 / static_cast<int>(sizeof(T));

template <class T>
struct ChunkScanParams {
  using Acc = Accumulation<T>;

  HeadView<const T> x, dt, z, B, C;
  gptr<const Acc> A;
  gptr<const Acc> D;
  gptr<const Acc> dt_bias;
  gptr<const Acc> initial;
  gptr<const int32_t> seq_idx;
  int64_t batch;
  int32_t length, heads, channels, groups, states, chunks;
  bool D_per_channel, dt_softplus;
  bool state_vectors;  // of states and their gradients, as above
  Acc dt_min, dt_max;

  // Forward: the state at the start of each chunk. Backward: the checkpoints.
  gptr<const Acc> start_states;
  HeadView<T> out;

  FGK_DEVICE int64_t state_count() const { return static_cast<int64_t>(channels) * states; }
  // A state of (batch, chunks, heads, channels, states).
  template <class U>
  FGK_DEVICE gptr<U> chunk_state(gptr<U> all, int64_t b, int chunk, int head) const {
    return all.slice(((b * chunks + chunk) * heads + head) * state_count(), state_count());
  }
  FGK_DEVICE Acc skip(int head, int channel) const {
    if (!D) return 0;
    return D.ld(D_per_channel ? static_cast<int64_t>(head) * channels + channel : head);
  }
  FGK_DEVICE int group(int head) const { return head / (heads / groups); }
};

// What only the backward has.
template <class T>
struct ChunkScanGradientParams {
  using Acc = Accumulation<T>;

  ChunkScanParams<T> forward;
  HeadView<const T> grad_out;
  gptr<const Acc> end_gradients;  // by the state after each chunk
  // (batch, chunks, heads, kChunkTiles, kChunk): the gradient by each exponent dt A of a chunk, from each tile of
  // outputs.
  gptr<Acc> by_exponent;
  HeadView<T> dx, dz, ddt;
  gptr<Acc> dA, ddt_bias;  // (batch, chunks, heads)
  gptr<Acc> dD;            // (batch, chunks, heads, channels)
};

// A chunk of one batch entry: its steps of one head at a time, in shared memory.
template <class T>
class Chunk {
 public:
  using Acc = Accumulation<T>;

  static constexpr int64_t bytes() {
    return dev::shared_bytes<double>(kChunk) + 2 * dev::shared_bytes<Acc>(kChunk) + dev::shared_bytes<int32_t>(kChunk) +
           dev::shared_bytes<double>(kTileThreads / 32) + dev::shared_bytes<int32_t>(kTileThreads / 32);
  }

  FGK_DEVICE Chunk(const ChunkScanParams<T>& p, dev::Shared& shared, int64_t b, int chunk)
      : b(b),
        chunk(chunk),
        first(chunk * kChunk),
        rows(dev::min(kChunk, p.length - chunk * kChunk)),
        p_(p),
        sum_(shared.take<double>(kChunk)),
        dt_(shared.take<Acc>(kChunk)),
        slope_(shared.take<Acc>(kChunk)),
        segment_(shared.take<int32_t>(kChunk)),
        warp_sum_(shared.take<double>(kTileThreads / 32)),
        warp_segment_(shared.take<int32_t>(kTileThreads / 32)) {}

  // Takes the steps of a head. By the whole block, which it synchronises.
  FGK_DEVICE void load(int head) {
    const int i = dev::tid();
    Acc dt = 0, slope = 0;
    int32_t segment = 0;  // becomes the number of changes of the sequence up to step i
    if (i < rows) {
      const int t = first + i;
      Acc raw = to_acc(p_.dt.at(b, t, head, 1).ld(0));
      if (p_.dt_bias) raw += p_.dt_bias.ld(head);
      const Acc smooth = p_.dt_softplus ? softplus(raw) : raw;
      dt = smooth < p_.dt_min ? p_.dt_min : smooth > p_.dt_max ? p_.dt_max : smooth;
      slope = smooth < p_.dt_min || smooth > p_.dt_max ? Acc(0) : p_.dt_softplus ? softplus_slope(raw) : Acc(1);
      if (p_.seq_idx) {
        const int32_t now = p_.seq_idx.ld(b * p_.length + t);
        segment = t == 0 ? now != 0 : now != p_.seq_idx.ld(b * p_.length + t - 1);
      }
    }
    double sum = static_cast<double>(dt) * static_cast<double>(p_.A.ld(head));
    FGK_UNROLL
    for (int delta = 1; delta < 32; delta *= 2) {
      const double sum_below = dev::shfl_up(sum, delta);
      const int32_t segment_below = dev::shfl_up(segment, delta);
      if (dev::lane() >= delta) {
        sum += sum_below;
        segment += segment_below;
      }
    }
    dev::sync_block();
    if (dev::lane() == 31) {
      warp_sum_.st(dev::warp(), sum);
      warp_segment_.st(dev::warp(), segment);
    }
    dev::sync_block();
    for (int w = 0; w < dev::warp(); ++w) {
      sum += warp_sum_.ld(w);
      segment += warp_segment_.ld(w);
    }
    if (i < kChunk) {
      sum_.st(i, sum);
      dt_.st(i, dt);
      slope_.st(i, slope);
      segment_.st(i, segment);
    }
    dev::sync_block();
  }

  FGK_DEVICE int tiles() const { return (rows + kTile - 1) / kTile; }
  FGK_DEVICE int tile_rows(int tile) const { return dev::min(kTile, rows - tile * kTile); }
  FGK_DEVICE Acc dt(int i) const { return dt_.ld(i); }
  FGK_DEVICE Acc slope(int i) const { return slope_.ld(i); }
  // Of what step j adds, what is there after step i; 0 for i < j.
  FGK_DEVICE Acc decay(int i, int j) const {
    if (i < j || segment_.ld(i) != segment_.ld(j)) return 0;
    return exponential(static_cast<Acc>(sum_.ld(i) - sum_.ld(j)));
  }
  FGK_DEVICE Acc to_end(int j) const { return decay(kChunk - 1, j); }
  // Of the state at the start of the chunk, what is there after step i.
  FGK_DEVICE Acc from_start(int i) const {
    return segment_.ld(i) != 0 ? Acc(0) : exponential(static_cast<Acc>(sum_.ld(i)));
  }
  FGK_DEVICE Acc whole() const { return from_start(kChunk - 1); }

  // Factors of products (see tile_product.cuh): rows are steps of the chunk from `row0` on, columns are channels from
  // `column0` on. scale(step) multiplies rows.
  template <class Scale>
  FGK_DEVICE auto elements(const HeadView<const T>& view, int head, int row0, int column0, int columns,
                           const Scale& scale) const {
    return factor<kChunkItems<T>>(
        [this, &view, head, row0, column0, columns, scale](int row, int column, Acc(&to)[kChunkItems<T>]) {
          load(view, row0 + row, head, column0 + column, columns, to);
          const Acc by = row0 + row < rows ? scale(row0 + row) : Acc(0);
          FGK_UNROLL
          for (int q = 0; q < kChunkItems<T>; ++q) to[q] = by == Acc(0) ? Acc(0) : by * to[q];
        });
  }
  FGK_DEVICE auto elements(const HeadView<const T>& view, int head, int row0, int column0, int columns) const {
    return factor<kChunkItems<T>>(
        [this, &view, head, row0, column0, columns](int row, int column, Acc(&to)[kChunkItems<T>]) {
          load(view, row0 + row, head, column0 + column, columns, to);
        });
  }
  FGK_DEVICE auto x(int head, int row0, int channel0) const {
    return elements(p_.x, head, row0, channel0, p_.channels);
  }
  FGK_DEVICE auto B(int group, int row0, int state0) const { return elements(p_.B, group, row0, state0, p_.states); }
  FGK_DEVICE auto C(int group, int row0, int state0) const { return elements(p_.C, group, row0, state0, p_.states); }
  // The gradient by y, before the gate, times scale(step).
  template <class Scale>
  FGK_DEVICE auto gy(const HeadView<const T>& grad_out, int head, int row0, int channel0, const Scale& scale) const {
    return factor<kChunkItems<T>>(
        [this, &grad_out, head, row0, channel0, scale](int row, int column, Acc(&to)[kChunkItems<T>]) {
          load(grad_out, row0 + row, head, channel0 + column, p_.channels, to);
          const Acc by = row0 + row < rows ? scale(row0 + row) : Acc(0);
          Acc z[kChunkItems<T>];
          if (p_.z.data) load(p_.z, row0 + row, head, channel0 + column, p_.channels, z);
          FGK_UNROLL
          for (int q = 0; q < kChunkItems<T>; ++q) {
            if (p_.z.data && to[q] != Acc(0)) to[q] *= silu(z[q]);
            to[q] *= by;
          }
        });
  }
  FGK_DEVICE auto gy(const HeadView<const T>& grad_out, int head, int row0, int channel0) const {
    return gy(grad_out, head, row0, channel0, [](int) { return Acc(1); });
  }
  // Rows are channels of a state, columns its states.
  FGK_DEVICE auto state(gptr<const Acc> of, int channel0, int state0) const {
    return factor<kChunkItems<Acc>>([this, of, channel0, state0](int row, int column, Acc(&to)[kChunkItems<Acc>]) {
      const int channel = channel0 + row, first_state = state0 + column;
      const bool inside = channel < p_.channels;
      const int64_t at = static_cast<int64_t>(channel) * p_.states + first_state;
      if (inside && p_.state_vectors && first_state + kChunkItems<Acc> <= p_.states) {
        return load_vector<Acc, kChunkItems<Acc>>(of, at, to);
      }
      FGK_UNROLL
      for (int q = 0; q < kChunkItems<Acc>; ++q) to[q] = inside && first_state + q < p_.states ? of.ld(at + q) : Acc(0);
    });
  }

  // One element at step i of the chunk, zero outside of it.
  FGK_DEVICE Acc element(const HeadView<const T>& view, int i, int head, int column, int columns) const {
    if (i >= rows || column >= columns) return 0;
    return to_acc(view.at(b, first + i, head, columns).ld(static_cast<int64_t>(column) * view.column));
  }

  const int64_t b;
  const int chunk, first, rows;

 private:
  // Neighbouring elements at step i of the chunk, zeros outside of it.
  FGK_DEVICE void load(const HeadView<const T>& view, int i, int head, int column, int columns,
                       Acc (&to)[kChunkItems<T>]) const {
    const bool inside = i < rows && column < columns;
    const gptr<const T> from = inside ? view.at(b, first + i, head, columns) : view.data;
    if (inside && view.vectors && column + kChunkItems<T> <= columns) {
      return load_vector<T, kChunkItems<T>>(from, column, to);
    }
    FGK_UNROLL
    for (int q = 0; q < kChunkItems<T>; ++q) {
      to[q] = inside && column + q < columns ? to_acc(from.ld(static_cast<int64_t>(column + q) * view.column)) : Acc(0);
    }
  }

  const ChunkScanParams<T>& p_;
  sptr<double> sum_;
  sptr<Acc> dt_;
  sptr<Acc> slope_;
  sptr<int32_t> segment_;
  sptr<double> warp_sum_;
  sptr<int32_t> warp_segment_;
};

}  // namespace fgk::cuda
