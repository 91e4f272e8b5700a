// SPDX-License-Identifier: Apache-2.0
// The Mamba-2 scan in chunks of 128 steps, as matrix products (Dao and Gu 2024, section 6): what each chunk adds to
// the state, the states passed from chunk to chunk, the outputs of each chunk. The gradient by the states goes the same
// way back, with C in the place of B.
#pragma once

#include "mamba_chunk_scan_params.cuh"

namespace fgk::cuda {

constexpr int kPassThreads = 128;

// Block: a 64 x 64 tile of what a chunk adds to the state of a head, (channels, states); kGradient: of what the
// gradients of its outputs add to the gradient by the state at its start. The first tile's block stores the decay of
// the whole chunk too. Blocks: tiles of states fastest, tiles of channels, heads, chunks, batch.
template <class Math, class T, bool kGradient>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kTileThreads, 2)
    chunk_states_kernel(ChunkScanParams<T> p, HeadView<const T> grad_out, gptr<Accumulation<T>> states,
                        gptr<Accumulation<T>> decays) {
  using Acc = Accumulation<T>;
  const int state_tiles = (p.states + kTile - 1) / kTile, channel_tiles = (p.channels + kTile - 1) / kTile;
  int64_t rest = dev::bid();
  const int n0 = static_cast<int>(rest % state_tiles) * kTile;
  rest /= state_tiles;
  const int p0 = static_cast<int>(rest % channel_tiles) * kTile;
  rest /= channel_tiles;
  const int head = static_cast<int>(rest % p.heads);
  rest /= p.heads;
  dev::Shared shared;
  Chunk<T> chunk(p, shared, rest / p.chunks, static_cast<int>(rest % p.chunks));
  const typename Math::Operand memory(shared);
  chunk.load(head);
  const int group = p.group(head);

  typename Math::Tile tile;
  if constexpr (kGradient) {
    multiply<Depth::rows, Depth::rows>(tile, memory, chunk.rows,
                                       chunk.gy(grad_out, head, 0, p0, [&](int i) { return chunk.from_start(i); }),
                                       chunk.C(group, 0, n0));
  } else {
    multiply<Depth::rows, Depth::rows>(
        tile, memory, chunk.rows,
        chunk.elements(p.x, head, 0, p0, p.channels, [&](int j) { return chunk.to_end(j) * chunk.dt(j); }),
        chunk.B(group, 0, n0));
  }
  const gptr<Acc> state = p.chunk_state(states, chunk.b, chunk.chunk, head);
  tile.each([&](int row, int column, Acc& value) {
    if (p0 + row < p.channels && n0 + column < p.states) {
      state.st(static_cast<int64_t>(p0 + row) * p.states + n0 + column, value);
    }
  });
  if (n0 == 0 && p0 == 0 && dev::tid() == 0) {
    decays.st((chunk.b * p.chunks + chunk.chunk) * p.heads + head, chunk.whole());
  }
}

// Thread: one element of a head's state, through all chunks: what each of them adds becomes the state at its start, or
// with kGradient the gradient by the state at its end.
template <class Acc, bool kGradient>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kPassThreads, 8)
    pass_states_kernel(gptr<Acc> states, gptr<const Acc> decays, gptr<const Acc> first, gptr<Acc> last, int64_t batch,
                       int chunks, int heads, int64_t state_count) {
  const int64_t per_entry = heads * state_count;
  const int64_t item = dev::bid() * kPassThreads + dev::tid();
  if (item >= batch * per_entry) return;
  const int64_t b = item / per_entry, element = item % per_entry;
  Acc carry = first ? first.ld(item) : Acc(0);
  for (int step = 0; step < chunks; ++step) {
    const int64_t chunk = b * chunks + (kGradient ? chunks - 1 - step : step);
    const Acc decay = decays.ld(chunk * heads + element / state_count);
    const Acc added = states.ld(chunk * per_entry + element);
    states.st(chunk * per_entry + element, carry);
    carry = decay == Acc(0) ? added : decay * carry + added;
  }
  if (last) last.st(item, carry);
}

// What the state at the start of the chunk gives to a 64 x 64 tile of y: positions from tile * 64 on, channels from p0
// on.
template <class Math, class T>
FGK_DEVICE void add_start_state(const ChunkScanParams<T>& p, const Chunk<T>& chunk,
                                const typename Math::Operand& memory, int head, int tile, int p0,
                                typename Math::Tile& y) {
  using Acc = Accumulation<T>;
  const gptr<const Acc> state = p.chunk_state(p.start_states, chunk.b, chunk.chunk, head);
  multiply<Depth::columns, Depth::columns>(y, memory, p.states, chunk.C(p.group(head), tile * kTile, 0),
                                           chunk.state(state, p0, 0));
  y.each([&](int row, int, Acc& value) {
    const Acc decay = chunk.from_start(tile * kTile + row);
    value = decay == Acc(0) ? Acc(0) : decay * value;
  });
}

// What the steps of the chunk give to the same tile (if with_y), without D x. For each tile `from` of steps,
// with_scores(from) sees the decayed scores dt[j] C[i] B[j] in place, element (i, j).
template <class Math, class T, class WithScores>
FGK_DEVICE void add_chunk_steps(const ChunkScanParams<T>& p, const Chunk<T>& chunk,
                                const typename Math::Operand& scores, const typename Math::Operand& memory, int head,
                                int tile, int p0, bool with_y, typename Math::Tile& y, const WithScores& with_scores) {
  using Acc = Accumulation<T>;
  const int group = p.group(head);
  for (int from = 0; from <= tile; ++from) {
    typename Math::Tile products;
    multiply<Depth::columns, Depth::columns>(products, memory, p.states, chunk.C(group, tile * kTile, 0),
                                             chunk.B(group, from * kTile, 0));
    products.each([&](int row, int column, Acc& value) {
      const int j = from * kTile + column;
      scores.template set<Depth::columns>(row, column, chunk.decay(tile * kTile + row, j) * chunk.dt(j) * value);
    });
    with_scores(from);
    if (!with_y) continue;
    multiply_by<Depth::columns>(y, scores, memory, chunk.tile_rows(from), chunk.x(head, from * kTile, p0));
  }
}

// Block: outputs of 64 positions and 64 channels of a head. Blocks: tiles of channels fastest, tiles of positions,
// heads, chunks, batch.
template <class Math, class T>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kTileThreads, 2) chunk_outputs_kernel(ChunkScanParams<T> p) {
  using Acc = Accumulation<T>;
  const int channel_tiles = (p.channels + kTile - 1) / kTile;
  int64_t rest = dev::bid();
  const int p0 = static_cast<int>(rest % channel_tiles) * kTile;
  rest /= channel_tiles;
  const int tile = static_cast<int>(rest % kChunkTiles);
  rest /= kChunkTiles;
  const int head = static_cast<int>(rest % p.heads);
  rest /= p.heads;
  dev::Shared shared;
  Chunk<T> chunk(p, shared, rest / p.chunks, static_cast<int>(rest % p.chunks));
  const typename Math::Operand scores(shared), memory(shared);
  if (tile >= chunk.tiles()) return;
  chunk.load(head);

  typename Math::Tile y;
  add_start_state<Math>(p, chunk, memory, head, tile, p0, y);
  add_chunk_steps<Math>(p, chunk, scores, memory, head, tile, p0, true, y, [](int) {});
  fill_rows(memory, chunk.x(head, tile * kTile, p0));
  y.each([&](int row, int column, Acc& value) {
    const int i = tile * kTile + row, channel = p0 + column;
    if (i >= chunk.rows || channel >= p.channels) return;
    Acc out = value + p.skip(head, channel) * memory.template get<Depth::rows>(row, column);
    if (p.z.data) out *= silu(chunk.element(p.z, i, head, channel, p.channels));
    p.out.at(chunk.b, chunk.first + i, head, p.channels)
        .st(static_cast<int64_t>(channel) * p.out.column, from_acc<T>(out));
  });
}

}  // namespace fgk::cuda
