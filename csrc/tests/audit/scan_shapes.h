// SPDX-License-Identifier: Apache-2.0
// Launches of the scans and the convolution at the shapes of the benchmarks (benchmarks/README.md); the first case of a
// kernel is the one that its row shows.
#pragma once

#include "kernels/cuda/causal_conv1d.h"
#include "kernels/cuda/mamba_chunk_scan.h"
#include "kernels/cuda/selective_scan.h"
#include "shapes.h"

namespace fgk {
namespace scan_shapes {

inline int64_t acc_bytes(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

inline void* numbers(Memory& memory, DType dtype, int64_t count) { return memory.take(count * dtype_bytes(dtype)); }
inline void* sums(Memory& memory, DType dtype, int64_t count) { return memory.take(count * acc_bytes(dtype)); }

// --- selective scans

struct Scan {
  int64_t batch, directions, channels, length, states;
};

inline ScanSequence sequence(Memory& memory, DType dtype, const Scan& s, bool per_direction) {
  ScanSequence out;
  out.position = 1;
  out.channel = s.length;
  out.direction = per_direction ? s.channels * s.length : 0;
  out.batch = (per_direction ? s.directions : 1) * s.channels * s.length;
  out.span = s.batch * out.batch;
  out.data = numbers(memory, dtype, out.span);
  return out;
}

inline ScanProjection projection(Memory& memory, DType dtype, const Scan& s) {
  ScanProjection out;
  out.position = 1;
  out.state = s.length;
  out.group = out.direction = s.states * s.length;
  out.batch = s.directions * out.direction;
  out.span = s.batch * out.batch;
  out.data = numbers(memory, dtype, out.span);
  return out;
}

inline SelectiveScanForward scan_inputs(Memory& memory, DType dtype, const Scan& s) {
  SelectiveScanForward args;
  const bool map = s.directions > 1;
  args.dtype = dtype;
  args.batch = s.batch;
  args.directions = s.directions;
  args.channels = s.channels;
  args.length = s.length;
  args.states = s.states;
  args.u = sequence(memory, dtype, s, false);
  args.delta = sequence(memory, dtype, s, true);
  args.z = sequence(memory, dtype, s, false);
  args.A = sums(memory, dtype, s.directions * s.channels * s.states);
  args.D = sums(memory, dtype, s.directions * s.channels);
  args.delta_bias = sums(memory, dtype, s.directions * s.channels);
  args.B = projection(memory, dtype, s);
  args.C = projection(memory, dtype, s);
  args.delta_softplus = true;
  if (map) args.table = static_cast<const int32_t*>(memory.take(s.directions * s.length * 4));
  return args;
}

inline void selective_scan(const std::string& name, DType dtype, const Scan& s) {
  current_case = name;
  Memory memory;
  SelectiveScanForward args = scan_inputs(memory, dtype, s);
  args.out = sequence(memory, dtype, s, false);
  const int64_t states = s.batch * s.directions * s.channels * s.states;
  args.last_state = sums(memory, dtype, states);
  args.checkpoints = sums(memory, dtype, states * scan_chunks(s.length));
  cuda::selective_scan_forward(args, memory.context());
}

inline void selective_scan_gradient(const std::string& name, DType dtype, const Scan& s) {
  current_case = name + ", gradient";
  Memory memory;
  SelectiveScanBackward args;
  args.forward = scan_inputs(memory, dtype, s);
  args.grad_out = sequence(memory, dtype, s, false);
  args.checkpoints = sums(memory, dtype, s.batch * s.directions * s.channels * s.states * scan_chunks(s.length));
  args.du = sequence(memory, dtype, s, false);
  args.ddelta = sequence(memory, dtype, s, true);
  args.dz = sequence(memory, dtype, s, false);
  args.dA = sums(memory, dtype, s.directions * s.channels * s.states);
  args.dD = sums(memory, dtype, s.directions * s.channels);
  args.ddelta_bias = sums(memory, dtype, s.directions * s.channels);
  args.dB = projection(memory, dtype, s);
  args.dC = projection(memory, dtype, s);
  cuda::selective_scan_backward(args, memory.context());
}

inline void cross_scan(const std::string& name, DType dtype, const Scan& s, bool merge) {
  current_case = name;
  Memory memory;
  CrossScan args;
  args.dtype = dtype;
  args.batch = s.batch;
  args.directions = s.directions;
  args.channels = s.channels;
  args.length = s.length;
  args.merge = merge;
  args.x = sequence(memory, dtype, s, merge);
  args.table = static_cast<const int32_t*>(memory.take(s.directions * s.length * 4));
  args.out = numbers(memory, dtype, s.batch * (merge ? 1 : s.directions) * s.channels * s.length);
  cuda::cross_scan(args, memory.context());
}

inline void state_update(const std::string& name, DType dtype, DType state, const Scan& s) {
  current_case = name;
  Memory memory;
  StateUpdate args;
  args.dtype = dtype;
  args.state_dtype = state;
  args.batch = args.entries = s.batch;
  args.heads = 1;
  args.channels = s.channels;
  args.states = s.states;
  args.state_state = 1;
  args.state_channel = s.states;
  args.state_head = args.state_entry = s.channels * s.states;
  args.state_span = s.batch * args.state_entry;
  args.state = numbers(memory, state, args.state_span);
  for (StateUpdate::Rows* rows : {&args.x, &args.dt, &args.z}) {
    *rows = {numbers(memory, dtype, s.batch * s.channels), s.channels, s.channels, 1, s.batch * s.channels};
  }
  args.A = {sums(memory, dtype, s.channels * s.states), 0, s.states, 1, s.channels * s.states};
  for (StateUpdate::Parameter* parameter : {&args.D, &args.dt_bias}) {
    *parameter = {sums(memory, dtype, s.channels), 0, 1, 0, s.channels};
  }
  for (StateUpdate::Projection* from : {&args.B, &args.C}) {
    *from = {numbers(memory, dtype, s.batch * s.states), s.states, s.states, 1, s.batch * s.states};
  }
  args.dt_softplus = true;
  args.out = numbers(memory, dtype, s.batch * s.channels);
  cuda::state_update(args, memory.context());
}

// --- causal convolution

struct Convolution {
  int64_t batch, channels, length;
  int width;
  bool channel_last;
};

inline ConvSequence conv_sequence(Memory& memory, DType dtype, const Convolution& s, int64_t length) {
  ConvSequence out;
  out.position = s.channel_last ? s.channels : 1;
  out.channel = s.channel_last ? 1 : length;
  out.batch = s.channels * length;
  out.span = s.batch * out.batch;
  out.data = numbers(memory, dtype, out.span);
  return out;
}

inline void causal_conv1d(const std::string& name, DType dtype, const Convolution& s) {
  Memory memory;
  CausalConvForward args;
  args.dtype = dtype;
  args.batch = s.batch;
  args.channels = s.channels;
  args.length = s.length;
  args.width = s.width;
  args.silu = true;
  args.x = conv_sequence(memory, dtype, s, s.length);
  args.weight = sums(memory, dtype, s.channels * s.width);
  args.bias = sums(memory, dtype, s.channels);
  args.out = conv_sequence(memory, dtype, s, s.length);
  current_case = name;
  cuda::causal_conv1d_forward(args, memory.context());

  CausalConvBackward back;
  back.forward = args;
  back.grad_out = args.out;
  back.dx = conv_sequence(memory, dtype, s, s.length);
  back.dweight = sums(memory, dtype, s.channels * s.width);
  back.dbias = sums(memory, dtype, s.channels);
  current_case = name + ", gradient";
  cuda::causal_conv1d_backward(back, memory.context());

  CausalConvUpdate update;
  update.dtype = dtype;
  update.batch = update.entries = s.batch;
  update.channels = s.channels;
  update.steps = 1;
  update.width = s.width;
  update.x = conv_sequence(memory, dtype, s, 1);
  update.state = conv_sequence(memory, dtype, s, s.width);
  update.state_length = s.width;
  update.weight = args.weight;
  update.out = conv_sequence(memory, dtype, s, 1);
  current_case = name + ", one step";
  cuda::causal_conv1d_update(update, memory.context());
}

// --- Mamba-2

inline void mamba_chunk_scan(const std::string& name, DType dtype) {
  constexpr int64_t kBatch = 2, kLength = 2048, kHeads = 24, kChannels = 64, kStates = 128;
  Memory memory;
  const auto heads = [&](int64_t channels) {
    const int64_t row = kHeads * channels, count = kBatch * kLength * row;
    return HeadSequence{numbers(memory, dtype, count),          kLength * row, row, channels,
                        channels > 1 ? int64_t{1} : int64_t{0}, count};
  };
  const auto group = [&] {
    const int64_t count = kBatch * kLength * kStates;
    return HeadProjection{numbers(memory, dtype, count), kLength * kStates, kStates, kStates, 1, count};
  };
  const int64_t states = kBatch * kHeads * kChannels * kStates;
  ChunkScanForward args;
  args.dtype = dtype;
  args.batch = kBatch;
  args.length = kLength;
  args.heads = kHeads;
  args.channels = kChannels;
  args.states = kStates;
  args.x = heads(kChannels);
  args.dt = heads(1);
  args.A = sums(memory, dtype, kHeads);
  args.D = sums(memory, dtype, kHeads);
  args.dt_bias = sums(memory, dtype, kHeads);
  args.B = group();
  args.C = group();
  args.dt_softplus = true;
  args.out = heads(kChannels);
  args.final_states = sums(memory, dtype, states);
  args.checkpoints = sums(memory, dtype, states * chunk_scan_chunks(kLength));
  current_case = name;
  cuda::chunk_scan_forward(args, memory.context());

  ChunkScanBackward back;
  back.forward = args;
  back.grad_out = args.out;
  back.checkpoints = args.checkpoints;
  back.dx = heads(kChannels);
  back.ddt = heads(1);
  back.dA = sums(memory, dtype, kHeads);
  back.dD = sums(memory, dtype, kHeads);
  back.ddt_bias = sums(memory, dtype, kHeads);
  back.dB = group();
  back.dC = group();
  current_case = name + ", gradient";
  cuda::chunk_scan_backward(back, memory.context());
}

inline void all() {
  constexpr Scan kLong{1, 1, 1536, 1024, 16}, kVim{1, 1, 384, 196, 16}, kShort{4, 4, 640, 25, 256},
      kMap{1, 4, 192, 56 * 56, 16}, kFewStates{1, 1, 1536, 4096, 4};  // warps share a row
  for (const NamedType& type : kNamedTypes) {
    const std::string dtype = type.name;
    for (const auto& [name, shape] : {std::pair<const char*, Scan>{"scan of 1536 x 1024, 16 states, ", kLong},
                                      {"scan of 384 x 196, 16 states, ", kVim},
                                      {"scan of 640 x 25 in 4 orders, 256 states, ", kShort},
                                      {"map of 192 x 56 x 56 in 4 directions, 16 states, ", kMap},
                                      {"scan of 1536 x 4096, 4 states, ", kFewStates}}) {
      selective_scan(name + dtype, type.dtype, shape);
      selective_scan_gradient(name + dtype, type.dtype, shape);
    }
    cross_scan("map of 192 x 56 x 56 to 4 directions, " + dtype, type.dtype, kMap, false);
    cross_scan("map of 192 x 56 x 56 from 4 directions, " + dtype, type.dtype, kMap, true);
    for (const NamedType& state : kNamedTypes) {
      state_update("step of 1536 channels, 16 states of " + std::string(state.name) + ", " + dtype, type.dtype,
                   state.dtype, kLong);
    }
    for (const bool channel_last : {false, true}) {
      for (const int width : {4, 3, 2}) {
        causal_conv1d("convolution of 2 x 768 x 2048, " + std::to_string(width) + " taps, " + dtype, type.dtype,
                      {2, 768, 2048, width, channel_last});
      }
    }
    mamba_chunk_scan("Mamba-2 scan of 2 x 2048, 24 heads of 64, 128 states, " + dtype, type.dtype);
  }
}

}  // namespace scan_shapes
}  // namespace fgk
