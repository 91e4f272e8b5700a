// SPDX-License-Identifier: Apache-2.0
// Launches the kernels of the Mamba-2 scan.
#pragma once

#include <stdexcept>
#include <string>

#include "kernel_call.cuh"
#include "mamba_chunk_scan.h"
#include "mamba_chunk_scan_backward.cuh"
#include "mamba_chunk_scan_forward.cuh"
#include "sum_rows.cuh"
#include "tensor_core_tiles.cuh"

namespace fgk::cuda {

// States, and gradients that end in sums over all positions, are as exact as their type; results of 16 bits come from
// tensor cores.
template <class T>
using ChunkScanMath = MultiplyAddTiles<Accumulation<T>>;
template <class T>
using NarrowMath = std::conditional_t<sizeof(T) == 2, TensorCoreTiles, ChunkScanMath<T>>;

inline int32_t chunk_scan_size(int64_t size, const char* name) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1024;  // sums of an index and a tile do not overflow
  if (size > kMost) {
    throw std::runtime_error("mamba_chunk_scan on CUDA: expected at most " + std::to_string(kMost) + " " + name +
                             ", got " + std::to_string(size));
  }
  return static_cast<int32_t>(size);
}

template <class T>
class ChunkScanCall : public KernelCall {
 public:
  using Acc = Accumulation<T>;
  using Math = ChunkScanMath<T>;
  using KernelCall::KernelCall;

  HeadView<const T> in(const HeadSequence& s, const char* name) {
    return view(buffers().in(static_cast<const T*>(s.data), s.span, name), s, s.head, s.channel);
  }
  HeadView<const T> in(const HeadProjection& s, const char* name) {
    return view(buffers().in(static_cast<const T*>(s.data), s.span, name), s, s.group, s.state);
  }
  HeadView<T> out(const HeadSequence& s, const char* name) {
    return view(buffers().out(static_cast<T*>(s.data), s.span, name), s, s.head, s.channel);
  }
  gptr<const Acc> parameter(const void* data, int64_t count, const char* name) {
    return buffers().in(static_cast<const Acc*>(data), count, name);
  }
  gptr<Acc> result(void* data, int64_t count, const char* name) {
    return buffers().out(static_cast<Acc*>(data), count, name);
  }

  ChunkScanParams<T> params(const ChunkScanForward& args) {
    ChunkScanParams<T> p{};
    p.x = in(args.x, "x");
    p.dt = in(args.dt, "dt");
    p.z = in(args.z, "z");
    p.B = in(args.B, "B");
    p.C = in(args.C, "C");
    p.A = parameter(args.A, args.heads, "A");
    p.D = parameter(args.D, args.D_per_channel ? args.heads * args.channels : args.heads, "D");
    p.dt_bias = parameter(args.dt_bias, args.heads, "dt_bias");
    p.initial = parameter(args.initial_states, args.batch * args.heads * args.channels * args.states, "initial_states");
    p.seq_idx = buffers().in(args.seq_idx, args.batch * args.length, "seq_idx");
    p.batch = args.batch;
    p.length = chunk_scan_size(args.length, "positions");
    p.heads = chunk_scan_size(args.heads, "heads");
    p.channels = chunk_scan_size(args.channels, "channels per head");
    p.groups = chunk_scan_size(args.groups, "groups");
    p.states = chunk_scan_size(args.states, "states");
    p.chunks = static_cast<int32_t>(chunk_scan_chunks(args.length));
    p.D_per_channel = args.D_per_channel;
    p.dt_softplus = args.dt_softplus;
    p.dt_min = static_cast<Acc>(args.dt_min);
    p.dt_max = static_cast<Acc>(args.dt_max);
    return p;
  }

  static int64_t chunk_heads(const ChunkScanParams<T>& p) { return p.batch * p.chunks * p.heads; }
  static int64_t tiles(int64_t size) { return ceil_div(size, kTile); }
  template <class M = Math>
  static constexpr int64_t shared_bytes() {
    return Chunk<T>::bytes() + 2 * M::Operand::bytes();
  }

  // States, or gradients by states, through all chunks; see the kernels. `states` has an element per chunk, head,
  // channel and state.
  template <bool kGradient>
  void pass_states(const ChunkScanParams<T>& p, const HeadView<const T>& grad_out, gptr<Acc> states,
                   gptr<const Acc> first, gptr<Acc> last) {
    const gptr<Acc> decays = this->template scratch<Acc>(chunk_heads(p), "decays");
    const int64_t state_count = static_cast<int64_t>(p.channels) * p.states;
    dev::launch(kGradient ? "chunk_state_gradients" : "chunk_states", chunk_states_kernel<Math, T, kGradient>,
                {chunk_heads(p) * tiles(p.channels) * tiles(p.states), kTileThreads, shared_bytes()}, stream(), p,
                grad_out, states, decays);
    dev::launch("pass_states", pass_states_kernel<Acc, kGradient>,
                {ceil_div(p.batch * p.heads * state_count, kPassThreads), kPassThreads, 0}, stream(), states,
                gptr<const Acc>(decays), first, last, p.batch, p.chunks, p.heads, state_count);
  }

 private:
  template <class U, class Sequence>
  static HeadView<U> view(gptr<U> data, const Sequence& s, int64_t row, int64_t column) {
    return {data,
            s.batch,
            row,
            chunk_scan_size(s.position, "elements from position to position"),
            chunk_scan_size(column, "elements from channel to channel"),
            column == 1 && is_aligned<T>(s.data, kChunkItems<T>, s.batch, row, s.position)};
  }
};

// Whether vectors of states start at multiples of 16 bytes.
template <class T>
bool states_are_vectors(const ChunkScanParams<T>& p, const void* states) {
  using Acc = Accumulation<T>;
  return is_aligned<Acc>(states, kChunkItems<Acc>, static_cast<int64_t>(p.states));
}

template <class T>
void forward_chunks(const ChunkScanForward& args, const Context& context) {
  using Acc = Accumulation<T>;
  using Math = NarrowMath<T>;
  ChunkScanCall<T> call(context);
  ChunkScanParams<T> p = call.params(args);
  p.out = call.out(args.out, "out");
  const int64_t state_count = args.heads * args.channels * args.states;
  const int64_t all = args.batch * p.chunks * state_count;
  const gptr<Acc> states = args.checkpoints != nullptr ? call.result(args.checkpoints, all, "checkpoints")
                                                       : call.template scratch<Acc>(all, "states");
  const gptr<Acc> last = call.result(args.final_states, args.batch * state_count, "final_states");
  call.template pass_states<false>(p, {}, states, p.initial, last);
  p.start_states = states;
  p.state_vectors = states_are_vectors(p, args.checkpoints);
  dev::launch(
      "chunk_outputs", chunk_outputs_kernel<Math, T>,
      {call.chunk_heads(p) * kChunkTiles * call.tiles(p.channels), kTileThreads, call.template shared_bytes<Math>()},
      call.stream(), p);
}

// dB or dC, dense, from its sums over shares of the heads of a group.
template <class T, bool kOfB>
void launch_projection_gradient(ChunkScanCall<T>& call, const ChunkScanGradientParams<T>& g, const HeadProjection& to) {
  using Acc = Accumulation<T>;
  const ChunkScanParams<T>& p = g.forward;
  const int64_t rows = p.batch * p.length * p.groups;
  const int64_t tiles = p.batch * p.chunks * p.groups * kChunkTiles * call.tiles(p.states);
  const int64_t heads_per_group = p.heads / p.groups;
  const int64_t wanted =
      dev::max(int64_t{1}, dev::min(heads_per_group, 4 * dev::limits().multiprocessors / dev::max(int64_t{1}, tiles)));
  const int64_t heads_per_share = ceil_div(heads_per_group, wanted);
  const int64_t shares = ceil_div(heads_per_group, heads_per_share);
  const gptr<T> result = call.buffers().out(static_cast<T*>(to.data), rows * p.states, kOfB ? "dB" : "dC");
  const gptr<Acc> partial =
      call.template scratch<Acc>(rows * shares * p.states, kOfB ? "shares of dB" : "shares of dC");
  dev::launch(kOfB ? "chunk_gradients_of_B" : "chunk_gradients_of_C",
              chunk_projection_gradients_kernel<NarrowMath<T>, T, kOfB>,
              {tiles * shares, kTileThreads, call.template shared_bytes<NarrowMath<T>>()}, call.stream(), g,
              static_cast<int>(shares), static_cast<int>(heads_per_share), partial);
  sum_rows(call, gptr<const Acc>(partial), rows, shares, p.states, result);
}

template <class T>
void backward_chunks(const ChunkScanBackward& args, const Context& context) {
  using Acc = Accumulation<T>;
  using Math = ChunkScanMath<T>;
  const ChunkScanForward& f = args.forward;
  ChunkScanCall<T> call(context);
  ChunkScanGradientParams<T> g{};
  g.forward = call.params(f);
  ChunkScanParams<T>& p = g.forward;
  const int64_t state_count = f.heads * f.channels * f.states;
  const int64_t chunk_heads = call.chunk_heads(p), pieces = f.batch * p.chunks;
  p.start_states = call.parameter(args.checkpoints, pieces * state_count, "checkpoints");
  g.grad_out = call.in(args.grad_out, "grad_out");
  g.dx = call.out(args.dx, "dx");
  g.dz = call.out(args.dz, "dz");
  g.ddt = call.out(args.ddt, "ddt");
  const gptr<const Acc> grad_final = call.parameter(args.grad_final_states, f.batch * state_count, "grad_final_states");
  const gptr<Acc> dinitial = call.result(args.dinitial_states, f.batch * state_count, "dinitial_states");
  const gptr<Acc> dA = call.result(args.dA, f.heads, "dA");
  const gptr<Acc> dD = call.result(args.dD, f.D_per_channel ? f.heads * f.channels : f.heads, "dD");
  const gptr<Acc> ddt_bias = call.result(args.ddt_bias, f.heads, "ddt_bias");

  const gptr<Acc> end_gradients = call.template scratch<Acc>(pieces * state_count, "gradients by states");
  call.template pass_states<true>(p, g.grad_out, end_gradients, grad_final, dinitial);
  g.end_gradients = end_gradients;
  p.state_vectors = states_are_vectors(p, args.checkpoints);
  g.by_exponent = call.template scratch<Acc>(chunk_heads * kChunkTiles * kChunk, "gradients by exponents");
  g.dA = call.template scratch<Acc>(chunk_heads, "partial dA");
  if (ddt_bias) g.ddt_bias = call.template scratch<Acc>(chunk_heads, "partial ddt_bias");
  if (dD) g.dD = call.template scratch<Acc>(chunk_heads * f.channels, "partial dD");

  const int64_t sums = PlainTile<Acc>::bytes();
  dev::launch("chunk_output_gradients", chunk_output_gradients_kernel<Math, T>,
              {chunk_heads * kChunkTiles, kTileThreads,
               call.shared_bytes() + sums + 2 * dev::shared_bytes<Acc>(kTile) + dev::shared_bytes<Acc>(kChunk)},
              call.stream(), g);
  dev::launch("chunk_input_gradients", chunk_input_gradients_kernel<Math, T>,
              {chunk_heads, kTileThreads, call.shared_bytes() + sums + 2 * dev::shared_bytes<Acc>(kChunk)},
              call.stream(), g);
  launch_projection_gradient<T, true>(call, g, args.dB);
  launch_projection_gradient<T, false>(call, g, args.dC);
  sum_rows(call, gptr<const Acc>(g.dA), 1, pieces, f.heads, dA);
  if (ddt_bias) sum_rows(call, gptr<const Acc>(g.ddt_bias), 1, pieces, f.heads, ddt_bias);
  if (!dD) return;
  if (f.D_per_channel) return sum_rows(call, gptr<const Acc>(g.dD), 1, pieces, f.heads * f.channels, dD);
  const gptr<Acc> by_channel = call.template scratch<Acc>(f.heads * f.channels, "dD by channel");
  sum_rows(call, gptr<const Acc>(g.dD), 1, pieces, f.heads * f.channels, by_channel);
  sum_rows(call, gptr<const Acc>(by_channel), f.heads, f.channels, 1, dD);
}

}  // namespace fgk::cuda
