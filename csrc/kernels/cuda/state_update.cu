// SPDX-License-Identifier: Apache-2.0
// Launches a decoding step.
#include "state_update.cuh"

#include "kernel_call.cuh"
#include "selective_scan.h"

namespace fgk::cuda {
namespace {

template <class T>
UpdateRows<T> rows(KernelCall& call, const StateUpdate::Rows& from, const char* name) {
  return {call.buffers().in(static_cast<const T*>(from.data), from.span, name),
          from.batch,
          from.head,
          from.channel,
          0,
          false};
}

// Vectors move `elements` of the state at a time, here up to 16 bytes each.
template <class T, class... Strides>
bool fits_vectors(const void* data, int elements, int64_t state, Strides... strides) {
  const int vector = static_cast<int>(dev::min(int64_t{elements}, int64_t{16 / sizeof(T)}));
  return state == 1 && is_aligned<T>(data, vector, strides...);
}

template <class Acc>
UpdateRows<Acc> parameter(KernelCall& call, const StateUpdate::Parameter& from, int elements, const char* name) {
  return {call.buffers().in(static_cast<const Acc*>(from.data), from.span, name),
          0,
          from.head,
          from.channel,
          from.state,
          fits_vectors<Acc>(from.data, elements, from.state, from.head, from.channel)};
}

template <class T>
UpdateRows<T> projection(KernelCall& call, const StateUpdate::Projection& from, int elements, const char* name) {
  return {
      call.buffers().in(static_cast<const T*>(from.data), from.span, name),    from.batch, from.group, 0, from.state,
      fits_vectors<T>(from.data, elements, from.state, from.batch, from.group)};
}

template <class T, class S>
void launch(const StateUpdate& args, const Context& context) {
  using Acc = Accumulation<T>;
  constexpr int kItems = 16 / static_cast<int>(sizeof(S));
  KernelCall call(context);
  StateUpdateParams<T, S> p{};
  p.state = call.buffers().inout(static_cast<S*>(args.state), args.state_span, "state");
  p.state_entry = args.state_entry;
  p.state_head = args.state_head;
  p.state_channel = args.state_channel;
  p.state_state = args.state_state;
  p.state_vectors =
      fits_vectors<S>(args.state, kItems, args.state_state, args.state_entry, args.state_head, args.state_channel);
  p.entry = call.buffers().in(args.entry, args.batch, "state_batch_indices");
  p.x = rows<T>(call, args.x, "x");
  p.dt = rows<T>(call, args.dt, "dt");
  p.z = rows<T>(call, args.z, "z");
  p.A = parameter<Acc>(call, args.A, kItems, "A");
  p.D = parameter<Acc>(call, args.D, kItems, "D");
  p.bias = parameter<Acc>(call, args.dt_bias, kItems, "dt_bias");
  p.B = projection<T>(call, args.B, kItems, "B");
  p.C = projection<T>(call, args.C, kItems, "C");
  const int64_t count = args.batch * args.heads * args.channels;
  p.out = call.buffers().out(static_cast<T*>(args.out), count, "out");
  p.batch = args.batch;
  p.heads = args.heads;
  p.channels = args.channels;
  p.entries = args.entries;
  p.per_group = (args.heads > 1 ? args.heads : args.channels) / args.groups;
  p.states = static_cast<int32_t>(args.states);
  p.segment = 1;
  while (p.segment < 32 && p.segment * kItems < args.states) p.segment *= 2;
  p.softplus = args.dt_softplus;
  dev::launch("state_update", state_update_kernel<T, S>,
              {ceil_div(count * p.segment, kUpdateThreads), kUpdateThreads, 0}, call.stream(), p);
}

}  // namespace

void state_update(const StateUpdate& args, const Context& context) {
  if (args.batch * args.heads * args.channels == 0) return;
  with_type(args.dtype, [&](auto type) {
    with_type(args.state_dtype, [&](auto state) { launch<decltype(type), decltype(state)>(args, context); });
  });
}

}  // namespace fgk::cuda
