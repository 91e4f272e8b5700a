// SPDX-License-Identifier: Apache-2.0
// Late-interaction forward. A block keeps kDown slots of 32 row tokens and lets the tokens of its partner samples pass
// by in tiles; a warp multiplies one slot with its share of a tile. Per row the running maximum and its index stay in
// registers until the partner ends; per column (both directions) the maximum is complete with the tile. Similarities
// never reach memory.
//
// Pipeline: `stages` buffers of one 128-byte chunk of channels. Step k waits for its chunk, meets the others at a
// barrier, starts the copy that step k + stages - 1 needs (into the buffer that step k - 1 has finished with), and
// multiplies.
#pragma once

#include "late_interaction_maxima.cuh"
#include "late_interaction_shape.cuh"

namespace fgk::cuda {

template <class S>
struct ForwardBlock {
  using Math = typename S::Math;
  using T = typename S::T;
  using Acc = typename S::Acc;
  using Params = ForwardParams<T, Acc>;

  // Where the copies are: a chunk of a tile of a partner.
  struct Cursor {
    int64_t element;  // the tile's first token
    int partner, left, chunk;
  };

  // What a slot holds, as kept in shared memory.
  struct Slot {
    int sample, token, rows;
  };

  const Params& p;
  sptr<T> rows, stages;
  sptr<int64_t> row_element;  // where each row starts, -1: no token
  sptr<int64_t> slot_base;    // dense position of the first token of a slot's sample
  sptr<int32_t> slot_sample, slot_token, slot_rows;
  sptr<Acc> row_best, slot_total, column_best;
  sptr<int32_t> row_index, column_index;
  int first_partner = 0, last_partner = 0;
  WarpTile tile{0, 0, 0};
  Cursor ahead{};
  int write_stage = 0;  // the next buffer to fill; the one after it is the oldest filled one
  Best<Acc> best[kRowTiles][2];
  Acc column_sum = 0;

  FGK_DEVICE explicit ForwardBlock(const Params& params) : p(params) {
    dev::Shared shared;  // what has a fixed size comes first: its addresses are constants
    row_element = shared.take<int64_t>(S::kRows);
    slot_base = shared.take<int64_t>(8);
    slot_sample = shared.take<int32_t>(8);
    slot_token = shared.take<int32_t>(8);
    slot_rows = shared.take<int32_t>(8);
    slot_total = shared.take<Acc>(8);
    row_best = shared.take<Acc>(S::kRows * S::kAcross);
    row_index = shared.take<int32_t>(S::kRows * S::kAcross);
    if constexpr (S::kColumns) {
      column_best = shared.take<Acc>(S::kTile * S::kDown);
      column_index = shared.take<int32_t>(S::kTile * S::kDown);
    }
    stages = shared.take<T>(p.stages * stage_elements());
    if (p.resident) rows = shared.take<T>(p.chunks * S::kRowElements);
  }

  FGK_DEVICE int group() const { return static_cast<int>(dev::bid()) % p.row_groups; }
  // Of the block's rows; with packed rows slots are summed up elsewhere.
  FGK_DEVICE int samples() const {
    return p.paired > 0 || p.slots_per_sample > S::kDown ? 1 : S::kDown / p.slots_per_sample;
  }
  FGK_DEVICE static int down() { return dev::warp() / S::kAcross; }
  FGK_DEVICE static int across() { return dev::warp() % S::kAcross; }
  FGK_DEVICE int stage_elements() const { return S::kTileElements + (p.resident ? 0 : S::kRowElements); }

  // ---- which rows, which partners ----

  FGK_DEVICE RowSlot find_slot(int j) const {
    if (p.slots) return p.slots.ld(static_cast<int64_t>(group()) * S::kDown + j);
    const int per_sample = p.slots_per_sample;
    int64_t sample = -1;
    int within;
    if (per_sample > S::kDown) {
      const int groups = (per_sample + S::kDown - 1) / S::kDown;
      within = group() % groups * S::kDown + j;
      if (within < per_sample) sample = group() / groups;
    } else {
      within = j % per_sample;
      if (j / per_sample < samples()) sample = static_cast<int64_t>(group()) * samples() + j / per_sample;
    }
    if (sample >= p.rows.batch) sample = -1;
    return {static_cast<int32_t>(sample), within * kSlotRows};
  }

  FGK_DEVICE void find_rows() {
    const int row = dev::tid();
    if (row < S::kRows) {
      const int j = row / kSlotRows;
      const RowSlot found = find_slot(j);
      int64_t element = -1;
      int count = 0;
      if (found.sample >= 0) {
        count = dev::min(p.rows.tokens(found.sample) - found.token, kSlotRows);
        if (dev::lane() < count) {
          element = p.rows.element(found.sample) + (found.token + dev::lane()) * p.rows.token_stride;
        }
      }
      row_element.st(row, element);
      if (dev::lane() == 0) {
        slot_sample.st(j, found.sample);
        slot_token.st(j, found.token);
        slot_rows.st(j, count);
        slot_base.st(j, found.sample < 0 ? 0 : p.rows.token_base(found.sample));
      }
    }
    dev::sync_block();
    tile.row_tiles = (slot_rows.ld(down()) + 15) / 16;
    tile.across = across();
  }

  FGK_DEVICE Slot slot_at(int j) const { return {slot_sample.ld(j), slot_token.ld(j), slot_rows.ld(j)}; }

  // The partners of this block: a stretch of all of them, or of the own ones when samples come in pairs.
  FGK_DEVICE void choose_partners() {
    const Slot first = slot_at(0);
    if (first.sample < 0) return;  // slots are filled from the first one on: this block has none
    const int64_t own = p.paired > 0 ? first.sample * p.paired : 0;
    const int64_t end = own + (p.paired > 0 ? p.paired : p.stream.batch);
    const int64_t begin = own + static_cast<int>(dev::bid()) / p.row_groups * p.partners_per_block;
    first_partner = static_cast<int>(dev::min(begin, end));
    last_partner = static_cast<int>(dev::min(begin + p.partners_per_block, end));
  }

  FGK_DEVICE int partner_at(int i) const { return p.order ? p.order.ld(i) : i; }

  // ---- copies ----

  FGK_DEVICE void stage_rows(int chunk, sptr<T> to) const {
    FGK_NO_UNROLL
    for (int i = dev::tid(); i < S::kRows * kUnits; i += kThreads) {
      const int row = i / kUnits, unit = i % kUnits;
      const int64_t element = row_element.ld(row);
      stage_unit<T>(p.rows, element >= 0, element, chunk * kChunkElements<T> + unit * kUnitElements<T>,
                    to + staged<T>(row, unit));
    }
  }

  // Moves the cursor to the next partner that has tokens, from `partner` on.
  FGK_DEVICE void seek(int partner) {
    ahead = {0, partner, 0, 0};
    for (; ahead.partner < last_partner; ++ahead.partner) {
      const int y = partner_at(ahead.partner);
      ahead.left = p.stream.tokens(y);
      ahead.element = p.stream.element(y);
      if (ahead.left > 0) return;
    }
  }

  // Starts the copies of the next chunk. A group is committed even when there is nothing left, so that waits count.
  FGK_DEVICE void issue() {
    if (ahead.partner < last_partner) {
      const sptr<T> to = stages + write_stage * stage_elements();
      const int count = dev::min(ahead.left, S::kTile);
      const int padded = (count + 15) / 16 * 16;  // columns are read in pairs of n8 tiles
      FGK_NO_UNROLL
      for (int i = dev::tid(); i < padded * kUnits; i += kThreads) {
        const int row = i / kUnits, unit = i % kUnits;
        const float factor =
            p.stream.scales && row < count ? early_scale(p.stream.scales.ld(position_ahead() + row)) : 1;
        stage_unit<T>(p.stream, row < count, ahead.element + row * p.stream.token_stride,
                      ahead.chunk * kChunkElements<T> + unit * kUnitElements<T>, to + staged<T>(row, unit), factor);
      }
      if (!p.resident) stage_rows(ahead.chunk, to + S::kTileElements);
      if (++ahead.chunk == p.chunks) {
        ahead.chunk = 0;
        ahead.left -= S::kTile;
        ahead.element += S::kTile * p.stream.token_stride;
        if (ahead.left <= 0) seek(ahead.partner + 1);
      }
    }
    dev::cp_async_commit();
    write_stage = next_stage();
  }

  // Dense position of the first token of the tile under the cursor.
  FGK_DEVICE int64_t position_ahead() const {
    const int y = partner_at(ahead.partner);
    return p.stream.token_base(y) + p.stream.tokens(y) - ahead.left;
  }

  FGK_DEVICE int next_stage() const { return write_stage + 1 == p.stages ? 0 : write_stage + 1; }

  FGK_DEVICE void wait_for_oldest() const {
    if (p.stages == 3) {
      dev::cp_async_wait<1>();
    } else {
      dev::cp_async_wait<0>();
    }
  }

  // ---- one tile ----

  FGK_DEVICE void multiply_tile(int columns, Acc (&acc)[kRowTiles][S::NT][4]) {
    const int n16 = (columns + 15) / 16;
    tile.pairs = n16 > across() ? (n16 - across() + S::kAcross - 1) / S::kAcross : 0;
    clear_tile(acc);
    FGK_NO_UNROLL
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      wait_for_oldest();
      dev::sync_block();
      const sptr<T> b = stages + next_stage() * stage_elements();
      const sptr<T> a = p.resident ? rows + chunk * S::kRowElements : b + S::kTileElements;
      issue();
      const int channels = dev::min(p.rows.dim - chunk * kChunkElements<T>, kChunkElements<T>);
      const sptr<T> own = a + down() * kSlotRows * kChunkElements<T>;
      Math::template multiply<S::NT, S::kAcross>(acc, own, b, channels, tile);
    }
  }

  FGK_DEVICE static void consider(Best<Acc>& best, Acc value, int index, bool allowed) {
    if constexpr (S::kIndices) {
      take(best, value, index, allowed);
    } else {
      best.value = allowed & ((value > best.value) | dev::isnan(value)) ? value : best.value;
    }
  }

  static constexpr uint32_t kAllColumns = 0xFFFFFFFFu >> (32 - 2 * S::NT);

  // Which of the accumulators' columns hold a valid token, bit 2 nt + c; int8 tokens get their
  // scales on the way.
  FGK_DEVICE uint32_t valid_columns(int64_t y, int first, int columns, Acc (&acc)[kRowTiles][S::NT][4]) const {
    if (columns == S::kTile && !p.stream.mask && !p.stream.scales) return kAllColumns;
    const int64_t base = p.stream.token_base(y) + first;
    uint32_t valid = 0;
    FGK_UNROLL
    for (int nt = 0; nt < S::NT; ++nt) {
      FGK_UNROLL
      for (int c = 0; c < 2; ++c) {
        const int column = tile_column<S::kAcross>(nt, c, across());
        if (column >= columns) continue;
        if (!p.stream.mask || p.stream.mask.ld(base + column)) valid |= 1u << (2 * nt + c);
        if (!p.stream.scales) continue;
        const Acc scale = static_cast<Acc>(late_scale(p.stream.scales.ld(base + column)));
        FGK_UNROLL
        for (int mt = 0; mt < kRowTiles; ++mt) {
          acc[mt][nt][c] *= scale;
          acc[mt][nt][2 + c] *= scale;
        }
      }
    }
    return valid;
  }

  FGK_DEVICE void update_rows(int first, uint32_t valid, const Acc (&acc)[kRowTiles][S::NT][4]) {
    if (valid == kAllColumns) {
      update_rows<true>(first, valid, acc);
    } else if (valid != 0) {
      update_rows<false>(first, valid, acc);
    }
  }

  template <bool kAll>
  FGK_DEVICE void update_rows(int first, uint32_t valid, const Acc (&acc)[kRowTiles][S::NT][4]) {
    FGK_UNROLL
    for (int nt = 0; nt < S::NT; ++nt) {
      if (!kAll && nt / 2 >= tile.pairs) break;
      FGK_UNROLL
      for (int c = 0; c < 2; ++c) {
        const bool allowed = kAll || (valid >> (2 * nt + c) & 1) != 0;
        const int index = first + tile_column<S::kAcross>(nt, c, across());
        FGK_UNROLL
        for (int mt = 0; mt < kRowTiles; ++mt) {
          FGK_UNROLL
          for (int h = 0; h < 2; ++h) consider(best[mt][h], acc[mt][nt][2 * h + c], index, allowed);
        }
      }
    }
  }

  // ---- rows: once per partner ----

  FGK_DEVICE void start_rows(int first_valid) {
    FGK_UNROLL
    for (int mt = 0; mt < kRowTiles; ++mt) {
      FGK_UNROLL
      for (int h = 0; h < 2; ++h) best[mt][h] = {-kInfinity<Acc>, first_valid};
    }
  }

  FGK_DEVICE void share_rows() {
    FGK_UNROLL
    for (int mt = 0; mt < kRowTiles; ++mt) {
      FGK_UNROLL
      for (int h = 0; h < 2; ++h) {
        Best<Acc> b = best[mt][h];
        FGK_UNROLL
        for (int mask = 1; mask <= 2; mask *= 2) b = better_of(b, from_lane<S::kIndices>(b, mask));
        if ((dev::lane() & 3) != 0) continue;
        const int place = across() * S::kRows + down() * kSlotRows + tile_row(mt, h);
        row_best.st(place, b.value);
        row_index.st(place, b.index);
      }
    }
  }

  // Thread r ends row r: joins the warps side by side, writes the winner, sums up its slot.
  FGK_DEVICE void finish_rows(int y) {
    const SampleFacts about = p.stream.about(y);
    const bool some = about.valid > 0;
    if (some) {
      share_rows();
      dev::sync_block();
    }
    if (dev::warp() < S::kDown) {
      const int j = dev::warp();
      const Slot own = slot_at(j);
      const int64_t base = slot_base.ld(j);
      const bool inside = dev::lane() < own.rows;
      const bool counts = inside && (!p.rows.mask || p.rows.mask.ld(base + own.token + dev::lane()));
      Best<Acc> b{0, -1};
      if (some && counts) {
        b = row_entry(0, j);
        for (int w = 1; w < S::kAcross; ++w) b = better_of(b, row_entry(w, j));
        if (p.zero_padding) raise_to_zero(b, about.first_masked);
      }
      if (S::kIndices && inside) {
        p.row.store_index(base * p.row.index_x + y * p.row.index_y + own.token + dev::lane(), b.index);
      }
      const Acc total = dev::warp_sum(b.value);
      if (dev::lane() == 0) {
        if (p.partial) {
          const int64_t partners = p.paired > 0 ? p.paired : p.stream.batch;
          const int64_t k = p.paired > 0 ? y - own.sample * p.paired : y;
          if (own.sample >= 0) p.partial.st((static_cast<int64_t>(group()) * S::kDown + j) * partners + k, total);
        } else {
          slot_total.st(j, total);
        }
      }
    }
    if (p.partial) return;
    dev::sync_block();
    const int per_sample = p.slots_per_sample;
    const int s = dev::tid();
    if (s >= samples()) return;
    const Slot own = slot_at(s * per_sample);
    if (own.sample < 0) return;
    Acc total = 0;
    FGK_NO_UNROLL
    for (int j = 0; j < per_sample; ++j) total += slot_total.ld(s * per_sample + j);
    const int valid = p.rows.about(own.sample).valid;
    if (p.mean && valid > 0) total /= static_cast<Acc>(valid);
    p.row.scores.st(own.sample * p.row.score_x + y * p.row.score_y, total);
  }

  FGK_DEVICE Best<Acc> row_entry(int w, int j) const {
    const int place = w * S::kRows + j * kSlotRows + dev::lane();
    return {row_best.ld(place), row_index.ld(place)};
  }

  // ---- columns: once per tile ----

  // The best row of this warp's slot for each of its columns, joined over the eight lanes that share a column.
  FGK_DEVICE void share_columns(const Acc (&acc)[kRowTiles][S::NT][4]) {
    const Slot own = slot_at(down());
    const int first_valid = own.sample < 0 ? 0 : p.rows.about(own.sample).first_valid;
    bool counts[kRowTiles][2];
    FGK_UNROLL
    for (int mt = 0; mt < kRowTiles; ++mt) {
      FGK_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int row = tile_row(mt, h);
        counts[mt][h] = row < own.rows && (!p.rows.mask || p.rows.mask.ld(slot_base.ld(down()) + own.token + row));
      }
    }
    Best<Acc> best_row[2 * S::NT];
    FGK_UNROLL
    for (int nt = 0; nt < S::NT; ++nt) {
      FGK_UNROLL
      for (int c = 0; c < 2; ++c) {
        Best<Acc>& b = best_row[2 * nt + c];
        b = {-kInfinity<Acc>, first_valid};
        FGK_UNROLL
        for (int mt = 0; mt < kRowTiles; ++mt) {
          FGK_UNROLL
          for (int h = 0; h < 2; ++h) {
            consider(b, acc[mt][nt][2 * h + c], own.token + tile_row(mt, h), counts[mt][h]);
          }
        }
      }
    }
    const int mine = join_lanes<S::kIndices, 2 * S::NT>(best_row);
    if (mine < 0) return;
    constexpr int kMine = joined(2 * S::NT);
    FGK_UNROLL
    for (int k = 0; k < kMine; ++k) {
      const int place = down() * S::kTile + tile_column<S::kAcross>((mine + k) / 2, (mine + k) & 1, across());
      column_best.st(place, best_row[k].value);
      column_index.st(place, best_row[k].index);
    }
  }

  // Warp s ends the columns of the group's sample s. Each lane adds up the columns that it ends.
  FGK_DEVICE void finish_column_tile(int64_t y, int first, int columns) {
    dev::sync_block();
    const int s = dev::warp();
    if (s >= samples()) return;
    const Slot own = slot_at(s * p.slots_per_sample);
    if (own.sample < 0) return;
    const SampleFacts about = p.rows.about(own.sample);
    const int64_t base = p.stream.token_base(y);
    FGK_NO_UNROLL
    for (int column = dev::lane(); column < columns; column += 32) {
      const bool counts = !p.stream.mask || p.stream.mask.ld(base + first + column);
      Best<Acc> b{0, -1};
      if (counts && about.valid > 0) {
        b = column_entry(s * p.slots_per_sample, column);
        FGK_NO_UNROLL
        for (int j = 1; j < p.slots_per_sample; ++j) {
          b = better_of(b, column_entry(s * p.slots_per_sample + j, column));
        }
        if (p.zero_padding) raise_to_zero(b, about.first_masked);
      }
      column_sum += b.value;
      if (S::kIndices) {
        const int64_t at = base * p.column.index_x + own.sample * p.column.index_y + first + column;
        p.column.store_index(at, b.index);
      }
    }
  }

  FGK_DEVICE Best<Acc> column_entry(int j, int column) const {
    const int place = j * S::kTile + column;
    return {column_best.ld(place), column_index.ld(place)};
  }

  FGK_DEVICE void finish_columns(int y) {
    const int s = dev::warp();
    Acc total = dev::warp_sum(column_sum);
    column_sum = 0;
    if (s >= samples() || dev::lane() != 0) return;
    const Slot own = slot_at(s * p.slots_per_sample);
    if (own.sample < 0) return;
    const int valid = p.stream.about(y).valid;
    if (p.mean && valid > 0) total /= static_cast<Acc>(valid);
    p.column.scores.st(y * p.column.score_x + own.sample * p.column.score_y, total);
  }

  FGK_DEVICE void run() {
    find_rows();
    choose_partners();
    if (first_partner >= last_partner) return;
    if (p.resident) {
      for (int chunk = 0; chunk < p.chunks; ++chunk) stage_rows(chunk, rows + chunk * S::kRowElements);
      dev::cp_async_commit();
    }
    seek(first_partner);
    for (int stage = 1; stage < p.stages; ++stage) issue();

    Acc acc[kRowTiles][S::NT][4];
    for (int partner = first_partner; partner < last_partner; ++partner) {
      const int y = partner_at(partner);
      const int tokens = p.stream.tokens(y);
      start_rows(p.stream.about(y).first_valid);
      for (int first = 0; first < tokens; first += S::kTile) {
        const int columns = dev::min(tokens - first, S::kTile);
        multiply_tile(columns, acc);
        const uint32_t valid = valid_columns(y, first, columns, acc);
        update_rows(first, valid, acc);
        if constexpr (S::kColumns) {
          share_columns(acc);
          finish_column_tile(y, first, columns);
        }
      }
      finish_rows(y);
      if constexpr (S::kColumns) finish_columns(y);
    }
    dev::cp_async_wait<0>();
  }
};

template <class S>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kThreads, S::kMinBlocks)
    late_interaction_forward_kernel(ForwardParams<typename S::T, typename S::Acc> p) {
  if (p.illegal && p.illegal.ld(0) != 0) {  // the sums become NaN elsewhere; winners are named here
    const int64_t step = dev::grid_blocks() * kThreads;
    for (int64_t i = dev::bid() * kThreads + dev::tid(); i < p.row.index_count; i += step) p.row.store_index(i, -1);
    return;
  }
  ForwardBlock<S> block(p);
  block.run();
}

}  // namespace fgk::cuda
