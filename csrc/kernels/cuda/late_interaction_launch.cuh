// SPDX-License-Identifier: Apache-2.0
// Chooses shapes, shared memory and grids of the late-interaction kernels, and launches them.
#pragma once

#include <stdexcept>

#include "late_interaction_backward.cuh"
#include "late_interaction_call.cuh"
#include "late_interaction_forward.cuh"
#include "late_interaction_sum.cuh"

namespace fgk::cuda {

template <>
struct MathOf<float> {
  using type = MultiplyAdd<float>;
};
template <>
struct MathOf<double> {
  using type = MultiplyAdd<double>;
};
template <>
struct MathOf<dev::bf16> {
  using type = TensorCores<dev::bf16>;
};
template <>
struct MathOf<dev::f16> {
  using type = TensorCores<dev::f16>;
};

constexpr int kMaxDown = 8;  // slots of a block at most: samples up to 256 tokens can be rows of both directions

inline int64_t slots_of(int64_t tokens) { return (tokens + kSlotRows - 1) / kSlotRows; }

// n8 tiles per warp: as wide as the registers allow.
template <class T, int kDown, bool kColumns>
constexpr int kTilesAcross = sizeof(T) > 2 || kDown == 1 ? 4
                             : kColumns                  ? 10
                                                         : 8;

// How a block stages its operands within the device's shared memory.
struct Staging {
  bool resident;
  int stages;
  int64_t bytes;
};

template <class S>
Staging choose_staging(int chunks) {
  const int64_t limit = dev::limits().shared_per_block;
  constexpr int64_t kReserved = 1024;  // per block, by the driver
  for (const bool resident : {true, false}) {
    const Staging three{resident, 3, S::block_bytes(chunks, 3, resident)};
    const Staging two{resident, 2, S::block_bytes(chunks, 2, resident)};
    if (two.bytes > limit) continue;
    if (three.bytes > limit) return two;
    // A third buffer is worth less than a second block on the multiprocessor.
    const auto blocks = [&](const Staging& s) { return (limit + kReserved) / (s.bytes + kReserved); };
    return blocks(three) < S::kMinBlocks && blocks(two) > blocks(three) ? two : three;
  }
  throw std::runtime_error("late interaction on CUDA: the device has " + std::to_string(limit) +
                           " bytes of shared memory per block, " + std::to_string(S::block_bytes(chunks, 2, false)) +
                           " are needed");
}

// Partners per block: enough blocks to even out the multiprocessors, few enough to pay for loading the rows.
inline int64_t choose_partners_per_block(int64_t row_groups, int64_t partners) {
  constexpr int64_t kBlocksPerMultiprocessor = 8;
  constexpr int64_t kMost = 64;
  const int64_t wanted = kBlocksPerMultiprocessor * dev::limits().multiprocessors;
  int64_t per_block = dev::min(dev::max(row_groups * partners / wanted, int64_t{1}), kMost);
  const int64_t most_blocks = (int64_t{1} << 31) - 1;
  per_block = dev::max(per_block, (row_groups * partners + most_blocks - 1) / most_blocks);
  const int64_t pieces = (partners + per_block - 1) / per_block;
  return (partners + pieces - 1) / pieces;
}

template <class S>
void launch_forward(Call& call, ForwardParams<typename S::T, typename S::Acc>& p, int64_t partners) {
  const Staging staging = choose_staging<S>(p.chunks);
  p.resident = staging.resident;
  p.stages = staging.stages;
  p.partners_per_block = choose_partners_per_block(p.row_groups, partners);
  const int64_t pieces = (partners + p.partners_per_block - 1) / p.partners_per_block;
  dev::launch("late_interaction_forward", late_interaction_forward_kernel<S>,
              {p.row_groups * pieces, kThreads, staging.bytes}, call.stream(), p);
}

template <class T, int kDown, bool kColumns>
void launch_forward(Call& call, ForwardParams<T, typename MathOf<T>::type::Acc>& p, int64_t partners) {
  using Math = typename MathOf<T>::type;
  if (p.row.narrow || p.row.wide || p.column.narrow || p.column.wide) {
    launch_forward<ForwardShape<Math, kDown, kTilesAcross<T, kDown, kColumns>, kColumns, true>>(call, p, partners);
  } else {
    launch_forward<ForwardShape<Math, kDown, kTilesAcross<T, kDown, kColumns>, kColumns, false>>(call, p, partners);
  }
}

template <class T>
class Forward {
 public:
  using Acc = typename MathOf<T>::type::Acc;

  Forward(const LateInteractionForward& args, const Context& context) : args_(args), call_(context) {}

  void run() {
    if (!args_.ba.scores) return one_direction(args_.a, args_.b, args_.ab);
    const int64_t a_slots = slots_of(args_.a.length);
    const int64_t b_slots = slots_of(args_.b.length);
    const bool some = a_slots > 0 && b_slots > 0;
    if (!some || (a_slots > kMaxDown && b_slots > kMaxDown)) {
      one_direction(args_.a, args_.b, args_.ab);
      one_direction(args_.b, args_.a, args_.ba);
    } else if (b_slots > kMaxDown || filling(args_.a.length) >= filling(args_.b.length)) {
      both_directions(args_.a, args_.b, args_.ab, args_.ba);
    } else {
      both_directions(args_.b, args_.a, args_.ba, args_.ab);
    }
  }

 private:
  static int down_for(int64_t slots) { return slots <= 4 ? 4 : kMaxDown; }

  // Share of a block's rows that hold tokens when samples of this length are its rows; 0 if they do not fit.
  static double filling(int64_t length) {
    const int64_t slots = slots_of(length);
    if (slots == 0 || slots > kMaxDown) return 0;
    const int64_t down = down_for(slots);
    return static_cast<double>(down / slots * length) / static_cast<double>(down * kSlotRows);
  }

  ForwardParams<T, Acc> params(const TokenBatch& rows, const TokenBatch& stream, const DirectionOutput& row) {
    ForwardParams<T, Acc> p{};
    p.rows = call_.template tokens<T>(rows);
    p.stream = call_.template tokens<T>(stream);
    p.row = call_.template direction<Acc>(row);
    p.paired = args_.paired;
    p.mean = args_.mean;
    p.zero_padding = args_.zero_padding;
    p.chunks = static_cast<int32_t>((rows.dim + kChunkElements<T> - 1) / kChunkElements<T>);
    if (p.chunks == 0) p.chunks = 1;  // without channels every similarity is 0: one chunk of zeros
    return p;
  }

  static int32_t group_count(int64_t groups) {
    if (groups > INT32_MAX) throw std::runtime_error("late interaction on CUDA: expected at most 2^31 - 1 row blocks");
    return static_cast<int32_t>(groups);
  }

  void both_directions(const TokenBatch& rows, const TokenBatch& stream, const DirectionOutput& row,
                       const DirectionOutput& column) {
    ForwardParams<T, Acc> p = params(rows, stream, row);
    p.column = call_.template direction<Acc>(column);
    const int64_t slots = slots_of(rows.length);
    p.slots_per_sample = static_cast<int32_t>(slots);
    const int down = down_for(slots);
    const int64_t samples = down / slots;
    p.row_groups = group_count((rows.batch + samples - 1) / samples);
    if (down == 4) {
      launch_forward<T, 4, true>(call_, p, stream.batch);
    } else {
      launch_forward<T, kMaxDown, true>(call_, p, stream.batch);
    }
  }

  void one_direction(const TokenBatch& rows, const TokenBatch& stream, const DirectionOutput& row) {
    ForwardParams<T, Acc> p = params(rows, stream, row);
    const int64_t partners = args_.paired > 0 ? args_.paired : stream.batch;
    // Rows that fill one slot and could share a block with no others get the flat shape.
    const bool alone = args_.paired > 0 || rows.batch == 1;
    const bool flat = alone && (rows.offsets ? rows.total_tokens <= kSlotRows * rows.batch : rows.length <= kSlotRows);
    const int down = flat ? 1 : 4;

    SumParams<Acc> sum{};
    sum.row = p.row;
    sum.rows = p.rows;
    sum.partners = partners;
    sum.paired = args_.paired;
    sum.mean = args_.mean;
    int64_t slots = 0;  // in all; only counted where they are summed up afterwards
    if (rows.offsets) {
      p.illegal = sum.illegal = call_.check_offsets(p.rows, rows, p.stream, stream);
      const int align = args_.paired > 0 ? down : 1;
      const int64_t bound = rows.total_tokens / kSlotRows + rows.batch * align;
      slots = (bound + down - 1) / down * down;
      const Call::PackedRows packed = call_.deal_slots(p.rows, align, slots, p.illegal);
      p.slots = packed.slots;
      sum.slot_first = packed.slot_first;
      if (args_.paired == 0) p.order = call_.order_by_length(p.stream, p.illegal);
      p.slots_per_sample = kMaxDown + 1;
      p.row_groups = group_count(slots / down);
    } else {
      const int64_t per_sample = slots_of(rows.length);
      p.slots_per_sample = static_cast<int32_t>(per_sample);
      if (per_sample > down) {
        const int64_t groups = (per_sample + down - 1) / down;
        p.row_groups = group_count(rows.batch * groups);
        slots = rows.batch * groups * down;
        sum.slots_per_sample = groups * down;
      } else if (per_sample > 0) {
        const int64_t samples = args_.paired > 0 ? 1 : down / per_sample;
        p.row_groups = group_count((rows.batch + samples - 1) / samples);
      }
    }
    if (slots > 0) sum.partial = p.partial = call_.template scratch<Acc>(slots * partners, "sums of slots");
    if (p.row_groups > 0) {
      if (down == 1) {
        launch_forward<T, 1, false>(call_, p, partners);
      } else {
        launch_forward<T, 4, false>(call_, p, partners);
      }
    }
    if (p.row_groups > 0 && slots == 0) return;
    const int64_t blocks = (rows.batch * partners + kThreads - 1) / kThreads;
    constexpr int64_t kMostBlocks = 65536;
    dev::launch("sum_slots", sum_slots_kernel<Acc>, {dev::min(blocks, kMostBlocks), kThreads, 0}, call_.stream(), sum);
  }

  const LateInteractionForward& args_;
  Call call_;
};

template <class T>
void forward(const LateInteractionForward& args, const Context& context) {
  Forward<T>(args, context).run();
}

template <class Acc>
Incoming<Acc> incoming(Call& call, const DirectionOutput& direction) {
  Incoming<Acc> in{};
  if (!direction.scores) return in;
  in.scores = call.buffers().in(static_cast<const Acc*>(direction.scores), direction.score_count, "incoming gradient");
  if (direction.wide_indices) {
    in.wide = call.buffers().in(static_cast<const int32_t*>(direction.indices), direction.index_count, "alignment");
  } else {
    in.narrow = call.buffers().in(static_cast<const int16_t*>(direction.indices), direction.index_count, "alignment");
  }
  in.score_x = direction.score_x;
  in.score_y = direction.score_y;
  in.index_x = direction.index_x;
  in.index_y = direction.index_y;
  return in;
}

template <class T>
void backward(const LateInteractionBackward& args, const Context& context) {
  using Acc = typename MathOf<T>::type::Acc;
  Call call(context);
  BackwardParams<T, Acc> p{};
  p.owner = call.lengths(args.owner, args.mean && args.own.scores);
  p.other = call.template tokens<T>(args.other);
  p.own = incoming<Acc>(call, args.own);
  p.from_other = incoming<Acc>(call, args.from_other);
  p.illegal = call.check_offsets(p.owner, args.owner, p.other, args.other);
  p.owner_tokens = args.owner.total_tokens;
  p.gradient = call.buffers().out(static_cast<T*>(args.gradient), p.owner_tokens * args.owner.dim, "gradient");
  p.paired = args.paired;
  p.owner_is_a = args.owner_is_a;
  p.mean = args.mean;
  constexpr int kChannelsPerWarp = 32 * kUnitElements<T>;
  p.channel_blocks = static_cast<int32_t>((args.owner.dim + kChannelsPerWarp - 1) / kChannelsPerWarp);
  p.vectors = reinterpret_cast<uintptr_t>(args.gradient) % kUnitBytes == 0 && args.owner.dim % kUnitElements<T> == 0;
  const int64_t blocks = (p.owner_tokens * p.channel_blocks + kWarps - 1) / kWarps;
  dev::launch("late_interaction_backward", late_interaction_backward_kernel<T, Acc>, {blocks, kThreads, 0},
              call.stream(), p);
}

}  // namespace fgk::cuda
