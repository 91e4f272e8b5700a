// SPDX-License-Identifier: Apache-2.0
// Chooses shapes, shared and scratch memory of the selective-scan kernels, and launches them.
#pragma once

#include <stdexcept>
#include <string>

#include "kernel_call.cuh"
#include "selective_scan_arrange.cuh"
#include "selective_scan_backward.cuh"
#include "selective_scan_forward.cuh"
#include "selective_scan_types.cuh"
#include "sum_rows.cuh"

namespace fgk::cuda {

// Warps that follow each other along a sequence where there are too few states to go around.
constexpr int kMostPositionWarps = 4;

// What both launchers need of a call.
template <class T>
class ScanCall {
 public:
  using Acc = Accumulation<T>;

  ScanCall(const SelectiveScanForward& args, const Context& context) : args_(args), call_(context) {}

 protected:
  const Acc* acc(const void* p) const { return static_cast<const Acc*>(p); }
  Acc* acc(void* p) const { return static_cast<Acc*>(p); }

  int64_t group_rows() const { return args_.batch * args_.directions * args_.groups; }
  int64_t state_rows() const { return args_.batch * args_.directions * args_.channels; }
  int64_t parameter_rows(bool shared) const { return (shared ? 1 : args_.directions) * args_.channels; }

  SequenceView<const T> sequence_in(const ScanSequence& s, const char* name) {
    return {call_.buffers().in(static_cast<const T*>(s.data), s.span, name), s.batch, s.direction, s.channel,
            s.position};
  }
  SequenceView<T> sequence_out(const ScanSequence& s, const char* name) {
    return {call_.buffers().out(static_cast<T*>(s.data), s.span, name), s.batch, s.direction, s.channel, s.position};
  }

  // Fills in all but B and C.
  void describe(ScanInputs<T>& p) {
    p.u = sequence_in(args_.u, "u");
    p.delta = sequence_in(args_.delta, "delta");
    p.z = sequence_in(args_.z, "z");
    const int64_t rows = parameter_rows(args_.shared_parameters);
    p.A = call_.buffers().in(acc(args_.A), rows * args_.states, "A");
    p.D = call_.buffers().in(acc(args_.D), rows, "D");
    p.bias = call_.buffers().in(acc(args_.delta_bias), rows, "delta_bias");
    p.initial = call_.buffers().in(acc(args_.initial_state), state_rows() * args_.states, "initial_state");
    p.table = call_.buffers().in(args_.table, args_.directions * args_.length, "table");
    p.batch = static_cast<int32_t>(args_.batch);
    p.directions = static_cast<int32_t>(args_.directions);
    p.channels = static_cast<int32_t>(args_.channels);
    p.groups = static_cast<int32_t>(args_.groups);
    p.length = static_cast<int32_t>(args_.length);
    p.states = static_cast<int32_t>(args_.states);
    p.chunks = static_cast<int32_t>(scan_chunks(args_.length));
    p.shared_parameters = args_.shared_parameters;
    p.ordered = args_.ordered;
    p.softplus = args_.delta_softplus;
  }

  static int32_t row_pitch(int64_t length) {
    return static_cast<int32_t>(ceil_div(length, kScanItems<T>) * kScanItems<T>);
  }

  // B or C as the scan reads it; a copy in scan order where the caller's array is not fit for vectors.
  ProjectionView<T> projection(const ScanInputs<T>& p, const ScanProjection& from, const char* name) {
    ProjectionView<T> view{};
    view.direction = from.direction;
    if (from.constant) {
      view.constant = call_.buffers().in(acc(from.data), from.span, name);
      return view;
    }
    const gptr<const T> data = call_.buffers().in(static_cast<const T*>(from.data), from.span, name);
    const bool in_scan_order = !args_.table || args_.ordered;
    constexpr int kVector = 16 / static_cast<int>(sizeof(T));
    if (in_scan_order && from.position == 1 &&
        is_aligned<T>(from.data, kVector, from.batch, from.direction, from.group, from.state)) {
      view.rows = data;
      view.batch = from.batch;
      view.group = from.group;
      view.state = from.state;
      view.readable = p.length;
      return view;
    }
    const int32_t pitch = row_pitch(args_.length);
    const int64_t rows = group_rows();
    const gptr<T> copy = call_.template scratch<T>(rows * args_.states * pitch, "B or C in scan order");
    dev::launch("arrange_projection", arrange_projection_kernel<T>,
                {ArrangeBlock::blocks(rows, p.states, pitch), kArrangeThreads,
                 dev::shared_bytes<T>(kArrangeTile * kArrangePitch)},
                call_.stream(), p,
                ProjectionArray<const T>{data, from.batch, from.direction, from.group, from.state, from.position}, copy,
                pitch);
    view.rows = copy;
    view.state = pitch;
    view.group = args_.states * view.state;
    view.direction = args_.groups * view.group;
    view.batch = args_.directions * view.direction;
    view.readable = pitch;
    return view;
  }

  // A shape for a grid of `blocks` whose tiles take at most `longest` lanes a segment.
  ScanShape choose_shape(int64_t blocks, int longest) const {
    ScanShape shape{1, 1, 1};
    while (shape.segment < longest && shape.segment * kScanItems<T> < args_.length) shape.segment *= 2;
    // States per warp: several pay for what warps have in common, unless there are too few warps to hide latencies.
    const int64_t segments = ceil_div(args_.states, 32 / shape.segment);
    const int64_t wanted = blocks >= 4 * dev::limits().multiprocessors ? 4 : 2;
    const int64_t turns = ceil_div(segments, dev::min(ceil_div(segments, wanted), int64_t{kScanMaxWarps}));
    shape.state_warps = static_cast<int32_t>(ceil_div(segments, turns));
    if (shape.segment == 32 && shape.state_warps <= kScanMaxWarps / kMostPositionWarps) {
      shape.position_warps = static_cast<int32_t>(
          dev::min(ceil_div(args_.length, shape.tile<T>()), static_cast<int64_t>(kMostPositionWarps)));
    }
    return shape;
  }

  void check_shared(int64_t bytes) const {
    const int64_t limit = dev::limits().shared_per_block;
    if (bytes <= limit) return;
    throw std::runtime_error("selective scan on CUDA: " + std::to_string(args_.states) + " states take " +
                             std::to_string(bytes) + " bytes of shared memory per block, the device has " +
                             std::to_string(limit));
  }

  const SelectiveScanForward& args_;
  KernelCall call_;
};

template <class T>
class ScanForward : ScanCall<T> {
 public:
  using typename ScanCall<T>::Acc;

  ScanForward(const SelectiveScanForward& args, const Context& context) : ScanCall<T>(args, context) {}

  void run() {
    ScanForwardParams<T> p{};
    this->describe(p);
    p.B = this->projection(p, this->args_.B, "B");
    p.C = this->projection(p, this->args_.C, "C");
    const int64_t states = this->state_rows() * this->args_.states;
    dev::Buffers& buffers = this->call_.buffers();
    p.out = this->sequence_out(this->args_.out, "out");
    p.last_state = buffers.out(this->acc(this->args_.last_state), states, "last_state");
    p.checkpoints = buffers.out(this->acc(this->args_.checkpoints), states * p.chunks, "checkpoints");
    const int64_t blocks = this->args_.batch * this->args_.channels;
    p.shape = this->choose_shape(blocks, 32);
    // Rows longer than this would leave too few blocks on a multiprocessor.
    const int64_t most_for_sums = dev::limits().shared_per_block / 4;
    bool sums_in_shared = p.directions > 1;
    if (sums_in_shared && dev::shared_bytes<Acc>(p.length) > most_for_sums) {
      p.sums = this->call_.template scratch<Acc>(blocks * p.length, "sums over directions");
      sums_in_shared = false;
    }
    const int64_t bytes = scan_forward_bytes(p, sums_in_shared);
    this->check_shared(bytes);
    const auto kernel =
        p.shape.position_warps > 1 ? selective_scan_forward_kernel<T, true> : selective_scan_forward_kernel<T, false>;
    dev::launch("selective_scan_forward", kernel, {blocks, p.shape.threads(), bytes}, this->call_.stream(), p);
  }
};

template <class T>
class ScanBackward : ScanCall<T> {
 public:
  using typename ScanCall<T>::Acc;

  ScanBackward(const SelectiveScanBackward& args, const Context& context)
      : ScanCall<T>(args.forward, context), args_(args) {}

  void run() {
    ScanBackwardParams<T> p{};
    this->describe(p);
    p.B = this->projection(p, args_.forward.B, "B");
    p.C = this->projection(p, args_.forward.C, "C");
    p.pitch = this->row_pitch(p.length);
    dev::Buffers& buffers = this->call_.buffers();
    const int64_t rows = this->state_rows();
    p.grad_out = this->sequence_in(args_.grad_out, "grad_out");
    p.grad_last = buffers.in(this->acc(args_.grad_last_state), rows * p.states, "grad_last_state");
    p.checkpoints = buffers.in(this->acc(args_.checkpoints), rows * p.chunks * p.states, "checkpoints");
    p.ddelta = this->sequence_out(args_.ddelta, "ddelta");
    p.du = this->sequence_out(args_.du, "du");
    p.dz = this->sequence_out(args_.dz, "dz");
    if (p.directions > 1 && args_.du.direction == 0) p.du_parts = scratch(rows * p.length, "dx of directions");
    if (p.directions > 1 && p.z.data) p.y_parts = scratch(rows * p.length, "outputs of directions");
    p.carry = args_.dinitial_state ? buffers.out(this->acc(args_.dinitial_state), rows * p.states, "dinitial_state")
                                   : scratch(rows * p.states, "gradients of states");
    deal_channels(p);
    launch(p, this->group_rows() * p.sets);
    if (p.du_parts || p.y_parts) {
      dev::launch(
          "sum_directions", sum_directions_kernel<T>,
          {ceil_div(args_.forward.batch * args_.forward.channels * p.length, kArrangeThreads), kArrangeThreads, 0},
          this->call_.stream(), p);
    }
  }

 private:
  gptr<Acc> scratch(int64_t count, const char* name) { return this->call_.template scratch<Acc>(count, name); }

  // How many channels a block takes in turn: few, so that there are blocks enough, unless all scratch memory together
  // would take more than twice the inputs.
  void deal_channels(ScanBackwardParams<T>& p) const {
    const SelectiveScanForward& in = args_.forward;
    constexpr int64_t kNumber = sizeof(Acc);
    const int64_t group_channels = p.channels / p.groups;
    const int64_t rows = this->group_rows();
    const int64_t arrays = !in.B.constant + !in.C.constant;
    const int64_t set_bytes = rows * arrays * p.states * p.pitch * kNumber;
    const int64_t input_bytes = static_cast<int64_t>(sizeof(T)) *
                                (in.u.span + in.delta.span + in.z.span + args_.grad_out.span + in.B.span + in.C.span);
    const int64_t taken = (!!p.du_parts + !!p.y_parts) * this->state_rows() * p.length * kNumber;
    constexpr int64_t kAlwaysAllowed = int64_t{16} << 20;
    const int64_t most_sets = dev::max(2 * input_bytes - taken, kAlwaysAllowed) / dev::max(set_bytes, int64_t{1});
    constexpr int64_t kMostChannels = 16;
    constexpr int64_t kBlocksPerMultiprocessor = 4;
    const int64_t for_blocks = ceil_div(kBlocksPerMultiprocessor * dev::limits().multiprocessors, rows);
    const int64_t sets = arrays == 0 ? group_channels : dev::max(for_blocks, ceil_div(group_channels, kMostChannels));
    const int64_t allowed = dev::max(dev::min(dev::min(sets, most_sets), group_channels), int64_t{1});
    p.set_channels = static_cast<int32_t>(ceil_div(group_channels, allowed));
    p.sets = static_cast<int32_t>(ceil_div(group_channels, p.set_channels));
  }

  void launch(ScanBackwardParams<T>& p, int64_t blocks) {
    // Narrower tiles take less shared memory; they must still start at checkpoints.
    const int64_t limit = dev::limits().shared_per_block;
    constexpr int kShortest = kChunkSteps / kScanItems<T>;
    p.shape = this->choose_shape(blocks, 32);
    while (scan_backward_bytes(p, true) > limit / 2 && p.shape.segment > kShortest) {
      p.shape = this->choose_shape(blocks, p.shape.segment / 2);
    }
    p.rows_in_shared = scan_backward_bytes(p, true) <= limit;
    const int64_t bytes = scan_backward_bytes(p, p.rows_in_shared);
    this->check_shared(bytes);

    const SelectiveScanForward& in = args_.forward;
    const int64_t warps = p.shape.position_warps;
    const Part dA = part(p, args_.dA, in.shared_parameters, warps, p.states, "dA");
    const Part dB = part(p, in.B.constant ? args_.dB.data : nullptr, args_.dB.direction == 0, warps, p.states, "dB");
    const Part dC = part(p, in.C.constant ? args_.dC.data : nullptr, args_.dC.direction == 0, warps, p.states, "dC");
    const Part dD = part(p, args_.dD, in.shared_parameters, 1, 1, "dD");
    const Part dbias = part(p, args_.ddelta_bias, in.shared_parameters, 1, 1, "ddelta_bias");
    p.dA = dA.parts;
    p.dB_constant = dB.parts;
    p.dC_constant = dC.parts;
    p.dD = dD.parts;
    p.dbias = dbias.parts;
    const int64_t row_elements = blocks * p.states * p.pitch;
    if (!in.B.constant) p.dB_rows = scratch(row_elements, "dB of sets of channels");
    if (!in.C.constant) p.dC_rows = scratch(row_elements, "dC of sets of channels");
    const auto kernel =
        p.shape.position_warps > 1 ? selective_scan_backward_kernel<T, true> : selective_scan_backward_kernel<T, false>;
    dev::launch("selective_scan_backward", kernel, {blocks, p.shape.threads(), bytes}, this->call_.stream(), p);
    for (const Part* sums : {&dA, &dB, &dC, &dD, &dbias}) {
      if (sums->rows > 1) sum_rows(this->call_, gptr<const Acc>(sums->parts), 1, sums->rows, sums->columns, sums->out);
    }
    if (!in.B.constant) sum_projection(p, p.dB_rows, args_.dB, "dB");
    if (!in.C.constant) sum_projection(p, p.dC_rows, args_.dC, "dC");
  }

  // The gradient by a parameter: what blocks have of it, and where the sum goes; one and the same if there is one row.
  struct Part {
    gptr<Acc> parts, out;
    int64_t rows, columns;
  };
  Part part(const ScanBackwardParams<T>& p, void* data, bool over_directions, int64_t warps, int64_t states,
            const char* name) {
    if (!data) return {};
    Part out{};
    out.rows = args_.forward.batch * warps * (over_directions ? p.directions : 1);
    out.columns = this->parameter_rows(over_directions) * states;
    out.out = this->call_.buffers().out(this->acc(data), out.columns, name);
    out.parts = out.rows > 1 ? scratch(out.rows * out.columns, "parts of a parameter's gradient") : out.out;
    return out;
  }

  void sum_projection(const ScanBackwardParams<T>& p, gptr<Acc> rows, const ScanProjection& to, const char* name) {
    const gptr<T> data = this->call_.buffers().out(static_cast<T*>(to.data), to.span, name);
    dev::launch("sum_projection_gradient", sum_projection_gradient_kernel<T>,
                {ArrangeBlock::blocks(this->group_rows(), p.states, p.pitch), kArrangeThreads,
                 dev::shared_bytes<Acc>(kArrangeTile * kArrangePitch)},
                this->call_.stream(), p, gptr<const Acc>(rows), p.sets, p.pitch,
                ProjectionArray<T>{data, to.batch, to.direction, to.group, to.state, to.position});
  }

  const SelectiveScanBackward& args_;
};

template <class T>
void scan_forward(const SelectiveScanForward& args, const Context& context) {
  ScanForward<T>(args, context).run();
}

template <class T>
void scan_backward(const SelectiveScanBackward& args, const Context& context) {
  ScanBackward<T>(args, context).run();
}

}  // namespace fgk::cuda
