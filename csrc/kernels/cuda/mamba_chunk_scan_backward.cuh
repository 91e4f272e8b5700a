// SPDX-License-Identifier: Apache-2.0
// Gradients of the Mamba-2 scan within its chunks, from the state at the start of each chunk and the gradient by the
// state at its end. With M[i, j] the decay from step j to step i, S = C B^T and G = gy x^T of a chunk:
//   dx[j]   = dt[j] (sum_i M S[i, j] gy[i] + to_end[j] g_end B[j]) + D gy[j]
//   dB[j]   = dt[j] (sum_i M G[i, j] C[i] + to_end[j] x[j] g_end),  dC[i] = sum_j M G[i, j] dt[j] B[j] + from_start[i]
//   gy[i] h0 d/d(dt[k] A) = sum over j < k <= i of M S G[i, j] dt[j], plus what flows from the first state and to the
//   last one
//                  past step k. Sums of such terms only: no difference of sums, which decays would drown.
#pragma once

#include "mamba_chunk_scan_forward.cuh"

namespace fgk::cuda {

// A 64 x 64 tile of plain numbers in the memory of an operand that is not in use, summed along its rows or columns by
// the whole block.
template <class Acc>
class PlainTile {
 public:
  static constexpr int kPitch = kTile + 1;
  static constexpr int64_t bytes() { return dev::shared_bytes<Acc>(kTileThreads); }

  FGK_DEVICE PlainTile(sptr<Acc> memory, dev::Shared& shared) : at_(memory), parts_(shared.take<Acc>(kTileThreads)) {}

  FGK_DEVICE void store(int row, int column, Acc v) const { at_.st(row * kPitch + column, v); }

  // sums[row] += each row's sum, after a barrier; the next one makes sums visible.
  FGK_DEVICE void add_row_sums(sptr<Acc> sums) const {
    dev::sync_block();
    Acc total = 0;
    for (int c = 0; c < kPart; ++c) total += at_.ld(row() * kPitch + part() * kPart + c);
    total += dev::shfl_xor(total, 1);
    total += dev::shfl_xor(total, 2);
    if (part() == 0) sums.st(row(), sums.ld(row()) + total);
  }

  // sums[row] += the sum over columns of tile values times those of a factor, which goes through the memory of this
  // tile.
  template <class Tile, class Operand, class F>
  FGK_DEVICE void add_row_sums_of_products(Tile values, const Operand& memory, const F& factor, sptr<Acc> sums) const {
    fill_rows(memory, factor);
    values.each([&](int row, int column, Acc& value) { value *= memory.template get<Depth::rows>(row, column); });
    dev::sync_block();
    values.each([&](int row, int column, Acc& value) { store(row, column, value); });
    add_row_sums(sums);
  }

  // sums[k] += over rows i >= first_row(k) the sum of carry[i] and the elements left of column k; carry[i] += the sum
  // of row i. After a barrier; the next one makes both visible.
  FGK_DEVICE void add_sums_left_of(sptr<Acc> carry, bool triangular, sptr<Acc> sums) const {
    dev::sync_block();
    Acc own = 0;
    for (int c = 0; c < kPart; ++c) own += at_.ld(row() * kPitch + part() * kPart + c);
    const Acc first = carry.ld(row());
    Acc left = first, total = first;
    for (int q = 0; q < kTile / kPart; ++q) {
      const Acc other = dev::shfl(own, dev::lane() / 4 * 4 + q);
      if (q < part()) left += other;
      total += other;
    }
    for (int c = 0; c < kPart; ++c) {
      const int at = row() * kPitch + part() * kPart + c;
      const Acc v = at_.ld(at);
      at_.st(at, left);
      left += v;
    }
    dev::sync_block();
    if (part() == 0) carry.st(row(), total);
    const int k = dev::tid() % kTile, quarter = dev::tid() / kTile;
    Acc sum = 0;
    for (int r = quarter * kPart; r < (quarter + 1) * kPart; ++r) {
      if (!triangular || r >= k) sum += at_.ld(r * kPitch + k);
    }
    parts_.st(dev::tid(), sum);
    dev::sync_block();
    if (dev::tid() < kTile) {
      sum = sums.ld(k);
      for (int q = 0; q < kTile / kPart; ++q) sum += parts_.ld(q * kTile + k);
      sums.st(k, sum);
    }
  }

  // The sum of every thread's value, in a fixed order; to thread 0.
  FGK_DEVICE Acc block_sum(Acc v) const {
    v = dev::warp_sum(v);
    dev::sync_block();
    if (dev::lane() == 0) parts_.st(dev::warp(), v);
    dev::sync_block();
    Acc total = 0;
    for (int w = 0; w < kTileThreads / 32; ++w) total += parts_.ld(w);
    return total;
  }

 private:
  // Four neighbouring threads share a row.
  static constexpr int kPart = kTile * kTile / kTileThreads;
  FGK_DEVICE int row() const { return dev::tid() / 4; }
  FGK_DEVICE int part() const { return dev::tid() % 4; }

  sptr<Acc> at_;
  sptr<Acc> parts_;
};

// Block: 64 positions of a head. Stores what their outputs give to the gradients by the exponents of the chunk, and dz,
// which takes y. Blocks: tiles of positions fastest, heads, chunks, batch.
template <class Math, class T>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kTileThreads, sizeof(T) == 8 ? 1 : 2)
    chunk_output_gradients_kernel(ChunkScanGradientParams<T> g) {
  using Acc = Accumulation<T>;
  const ChunkScanParams<T>& p = g.forward;
  int64_t rest = dev::bid();
  const int tile = static_cast<int>(rest % kChunkTiles), i0 = tile * kTile;
  rest /= kChunkTiles;
  const int head = static_cast<int>(rest % p.heads);
  rest /= p.heads;
  dev::Shared shared;
  Chunk<T> chunk(p, shared, rest / p.chunks, static_cast<int>(rest % p.chunks));
  const typename Math::Operand scores(shared), memory(shared);
  const PlainTile<Acc> plain(memory.memory(), shared);
  const sptr<Acc> from_start = shared.take<Acc>(kTile);    // what the first state gives to y, times gy
  const sptr<Acc> carry = shared.take<Acc>(kTile);         // sums of rows over the tiles of steps so far
  const sptr<Acc> by_exponent = shared.take<Acc>(kChunk);  // from pairs of steps before and outputs after it
  if (tile >= chunk.tiles()) return;
  if (dev::tid() < kTile) {
    from_start.st(dev::tid(), Acc(0));
    carry.st(dev::tid(), Acc(0));
  }
  if (dev::tid() < kChunk) by_exponent.st(dev::tid(), Acc(0));
  chunk.load(head);

  const bool gated = bool(p.z.data);
  for (int p0 = 0; p0 < p.channels; p0 += kTile) {
    typename Math::Tile y;
    add_start_state<Math>(p, chunk, memory, head, tile, p0, y);
    plain.add_row_sums_of_products(y, memory, chunk.gy(g.grad_out, head, i0, p0), from_start);
    if (p0 > 0 && !gated) continue;
    add_chunk_steps<Math>(p, chunk, scores, memory, head, tile, p0, gated, y, [&](int from) {
      if (p0 > 0) return;
      const int j0 = from * kTile;
      typename Math::Tile products;
      multiply<Depth::columns, Depth::columns>(products, memory, p.channels, chunk.gy(g.grad_out, head, i0, 0),
                                               chunk.x(head, j0, 0));
      dev::sync_block();
      products.each([&](int row, int column, Acc& value) {
        plain.store(row, column, value * scores.template get<Depth::columns>(row, column));
      });
      plain.add_sums_left_of(carry, from == tile, by_exponent.slice(j0, kTile));
    });
    if (!gated) continue;
    fill_rows(memory, chunk.x(head, i0, p0));
    y.each([&](int row, int column, Acc& value) {
      const int i = i0 + row, channel = p0 + column;
      if (i >= chunk.rows || channel >= p.channels) return;
      const Acc out = value + p.skip(head, channel) * memory.template get<Depth::rows>(row, column);
      const Acc grad = chunk.element(g.grad_out, i, head, channel, p.channels);
      const Acc dz = grad * out * silu_slope(chunk.element(p.z, i, head, channel, p.channels));
      g.dz.at(chunk.b, chunk.first + i, head, p.channels)
          .st(static_cast<int64_t>(channel) * g.dz.column, from_acc<T>(dz));
    });
  }
  dev::sync_block();
  const int64_t slot = (chunk.b * p.chunks + chunk.chunk) * p.heads + head;
  const int k = dev::tid();
  if (k >= kChunk) return;
  Acc total = by_exponent.ld(k);
  for (int row = dev::max(k - i0, 0); row < kTile; ++row) total += from_start.ld(row);
  g.by_exponent.st((slot * kChunkTiles + tile) * kChunk + k, total);
}

// Block: dx and ddt of a chunk of a head, and what the chunk adds to dA, dD and ddt_bias. Blocks: heads fastest,
// chunks, batch.
template <class Math, class T>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kTileThreads, 2) chunk_input_gradients_kernel(ChunkScanGradientParams<T> g) {
  using Acc = Accumulation<T>;
  const ChunkScanParams<T>& p = g.forward;
  const int head = static_cast<int>(dev::bid() % p.heads), group = p.group(head);
  const int64_t rest = dev::bid() / p.heads;
  dev::Shared shared;
  Chunk<T> chunk(p, shared, rest / p.chunks, static_cast<int>(rest % p.chunks));
  const typename Math::Operand scores(shared), memory(shared);
  const PlainTile<Acc> plain(memory.memory(), shared);
  const sptr<Acc> by_step = shared.take<Acc>(kChunk);  // by dt[j] but for its part in decays
  const sptr<Acc> to_end = shared.take<Acc>(kChunk);   // x[j] g_end B[j], decayed: what step j gives beyond the chunk
  if (dev::tid() < kChunk) {
    by_step.st(dev::tid(), Acc(0));
    to_end.st(dev::tid(), Acc(0));
  }
  chunk.load(head);
  const gptr<const Acc> end_gradient = p.chunk_state(g.end_gradients, chunk.b, chunk.chunk, head);

  for (int tile = 0; tile < chunk.tiles(); ++tile) {
    const int j0 = tile * kTile;
    for (int p0 = 0; p0 < p.channels; p0 += kTile) {
      typename Math::Tile dx;
      multiply<Depth::columns, Depth::columns>(dx, memory, p.states, chunk.B(group, j0, 0),
                                               chunk.state(end_gradient, p0, 0));
      dx.each([&](int row, int, Acc& value) { value *= chunk.to_end(j0 + row); });
      plain.add_row_sums_of_products(dx, memory, chunk.x(head, j0, p0), to_end.slice(j0, kTile));
      for (int from = tile; from < chunk.tiles(); ++from) {
        const int i0 = from * kTile;
        typename Math::Tile products;
        multiply<Depth::columns, Depth::columns>(products, memory, p.states, chunk.C(group, i0, 0),
                                                 chunk.B(group, j0, 0));
        products.each([&](int row, int column, Acc& value) {
          scores.template set<Depth::rows>(row, column, value * chunk.decay(i0 + row, j0 + column));
        });
        multiply_by<Depth::rows>(dx, scores, memory, chunk.tile_rows(from), chunk.gy(g.grad_out, head, i0, p0));
      }
      plain.add_row_sums_of_products(dx, memory, chunk.x(head, j0, p0), by_step.slice(j0, kTile));
      fill_rows(memory, chunk.gy(g.grad_out, head, j0, p0));
      dx.each([&](int row, int column, Acc& value) {
        const int j = j0 + row, channel = p0 + column;
        if (j >= chunk.rows || channel >= p.channels) return;
        const Acc total = chunk.dt(j) * value + p.skip(head, channel) * memory.template get<Depth::rows>(row, column);
        g.dx.at(chunk.b, chunk.first + j, head, p.channels)
            .st(static_cast<int64_t>(channel) * g.dx.column, from_acc<T>(total));
      });
    }
  }

  // What flows from the first state to the last one.
  const gptr<const Acc> start = p.chunk_state(p.start_states, chunk.b, chunk.chunk, head);
  Acc through = 0;
  for (int64_t e = dev::tid(); e < p.state_count(); e += kTileThreads) through += start.ld(e) * end_gradient.ld(e);
  through = chunk.whole() * plain.block_sum(through);

  const int64_t slot = (chunk.b * p.chunks + chunk.chunk) * p.heads + head;
  const int k = dev::tid();
  Acc dA = 0, ddt = 0;
  if (k < chunk.rows) {
    Acc exponent = through;
    for (int tile = 0; tile < chunk.tiles(); ++tile) {
      exponent += gptr<const Acc>(g.by_exponent).ld((slot * kChunkTiles + tile) * kChunk + k);
    }
    for (int j = 0; j < k; ++j) exponent += chunk.dt(j) * to_end.ld(j);
    dA = chunk.dt(k) * exponent;
    ddt = chunk.slope(k) * (by_step.ld(k) + p.A.ld(head) * exponent);
    g.ddt.at(chunk.b, chunk.first + k, head, 1).st(0, from_acc<T>(ddt));
  }
  dA = plain.block_sum(dA);
  if (k == 0) g.dA.st(slot, dA);
  if (g.ddt_bias) {
    ddt = plain.block_sum(ddt);
    if (k == 0) g.ddt_bias.st(slot, ddt);
  }
  for (int channel = k; g.dD && channel < p.channels; channel += kTileThreads) {
    Acc dD = 0;
    for (int i = 0; i < chunk.rows; ++i) {
      Acc gy = chunk.element(g.grad_out, i, head, channel, p.channels);
      if (p.z.data && gy != Acc(0)) gy *= silu(chunk.element(p.z, i, head, channel, p.channels));
      dD += gy * chunk.element(p.x, i, head, channel, p.channels);
    }
    g.dD.st(slot * p.channels + channel, dD);
  }
}

// Block: a 64 x 64 tile (positions, states) of dB (kOfB) or dC of a group, summed over a share of its heads. Blocks:
// tiles of states fastest, tiles of positions, shares, groups, chunks, batch. `result`: (batch, length, groups, shares,
// states), dense.
template <class Math, class T, bool kOfB>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kTileThreads, sizeof(T) == 8 ? 1 : 2)
    chunk_projection_gradients_kernel(ChunkScanGradientParams<T> g, int shares, int heads_per_share,
                                      gptr<Accumulation<T>> result) {
  using Acc = Accumulation<T>;
  using Tile = typename Math::Tile;
  const ChunkScanParams<T>& p = g.forward;
  const int state_tiles = (p.states + kTile - 1) / kTile;
  int64_t rest = dev::bid();
  const int n0 = static_cast<int>(rest % state_tiles) * kTile;
  rest /= state_tiles;
  const int tile = static_cast<int>(rest % kChunkTiles), t0 = tile * kTile;
  rest /= kChunkTiles;
  const int share = static_cast<int>(rest % shares);
  rest /= shares;
  const int group = static_cast<int>(rest % p.groups);
  rest /= p.groups;
  dev::Shared shared;
  Chunk<T> chunk(p, shared, rest / p.chunks, static_cast<int>(rest % p.chunks));
  const typename Math::Operand scores(shared), memory(shared);
  if (tile >= chunk.tiles()) return;

  const int heads_per_group = p.heads / p.groups;
  const int first_head = group * heads_per_group + share * heads_per_share;
  const int end_head = dev::min(first_head + heads_per_share, (group + 1) * heads_per_group);
  Tile total;
  for (int head = first_head; head < end_head; ++head) {
    chunk.load(head);
    const gptr<const Acc> state = p.chunk_state(kOfB ? g.end_gradients : p.start_states, chunk.b, chunk.chunk, head);
    if constexpr (kOfB) {
      const auto decay = [&](int j) { return chunk.to_end(j) * chunk.dt(j); };
      multiply<Depth::columns, Depth::rows>(
          total, memory, p.channels, chunk.elements(p.x, head, t0, 0, p.channels, decay), chunk.state(state, 0, n0));
    } else {
      const auto decay = [&](int i) { return chunk.from_start(i); };
      multiply<Depth::columns, Depth::rows>(total, memory, p.channels, chunk.gy(g.grad_out, head, t0, 0, decay),
                                            chunk.state(state, 0, n0));
    }
  }
  // The tiles that this one meets: itself, and those behind it in time for dB, before it for dC.
  for (int other = kOfB ? tile : 0; other <= (kOfB ? chunk.tiles() - 1 : tile); ++other) {
    const int other0 = other * kTile;
    Tile weights;  // decayed gy x^T of the two tiles, summed over heads
    for (int head = first_head; head < end_head; ++head) {
      chunk.load(head);
      Tile products;
      if constexpr (kOfB) {
        multiply<Depth::columns, Depth::columns>(products, memory, p.channels, chunk.x(head, t0, 0),
                                                 chunk.gy(g.grad_out, head, other0, 0));
      } else {
        multiply<Depth::columns, Depth::columns>(products, memory, p.channels, chunk.gy(g.grad_out, head, t0, 0),
                                                 chunk.x(head, other0, 0));
      }
      products.each([&](int row, int column, Acc& value) {
        const int i = kOfB ? other0 + column : t0 + row, j = kOfB ? t0 + row : other0 + column;
        value *= chunk.decay(i, j) * chunk.dt(j);
      });
      weights.add(products);
    }
    weights.each([&](int row, int column, Acc& value) { scores.template set<Depth::columns>(row, column, value); });
    multiply_by<Depth::columns>(total, scores, memory, chunk.tile_rows(other),
                                kOfB ? chunk.C(group, other0, n0) : chunk.B(group, other0, n0));
  }
  total.each([&](int row, int column, Acc& value) {
    if (t0 + row >= chunk.rows || n0 + column >= p.states) return;
    const int64_t position = chunk.b * p.length + chunk.first + t0 + row;
    result.st(((position * p.groups + group) * shares + share) * p.states + n0 + column, value);
  });
}

}  // namespace fgk::cuda
