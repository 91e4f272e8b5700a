// SPDX-License-Identifier: Apache-2.0
// One step of decoding with a selective scan, in place on its state; see StateUpdate. What costs time is reading and
// writing the state: a segment of a warp's lanes owns a channel's row, each lane 16 bytes of it at a time.
#pragma once

#include "sequence_math.cuh"

namespace fgk::cuda {

constexpr int kUpdateThreads = 128;

// Strides in elements. `vectors`: states lie side by side and rows start at multiples of what one load moves.
template <class T>
struct UpdateRows {
  gptr<const T> data;
  int64_t outer, head, channel, state;  // outer: batch; head or group
  bool vectors;
};

// T: type of x, dt, z, B, C and out; S: of the state.
template <class T, class S>
struct StateUpdateParams {
  using Acc = Accumulation<T>;

  gptr<S> state;
  int64_t state_entry, state_head, state_channel, state_state;
  bool state_vectors;
  gptr<const int32_t> entry;
  UpdateRows<T> x, dt, z, B, C;
  UpdateRows<Acc> A, D, bias;
  gptr<T> out;
  int64_t batch, heads, channels, entries;
  int64_t per_group;  // heads of a group, or channels where there is one head
  int32_t states;
  int32_t segment;  // lanes per row, a power of two
  bool softplus;
};

// States [first, first + N) of a row of `count`, zero behind its end.
template <int N, class T>
FGK_DEVICE void load_states(gptr<const T> row, int64_t stride, bool vectors, int first, int count,
                            Accumulation<T> (&to)[N]) {
  constexpr int kMost = 16 / static_cast<int>(sizeof(T));
  constexpr int kVector = N < kMost ? N : kMost;
  if (vectors && first + N <= count) {
    FGK_UNROLL
    for (int v = 0; v < N; v += kVector) {
      Accumulation<T> part[kVector];
      load_vector<T, kVector>(row, first + v, part);
      FGK_UNROLL
      for (int i = 0; i < kVector; ++i) to[v + i] = part[i];
    }
  } else {
    FGK_UNROLL
    for (int i = 0; i < N; ++i) to[i] = first + i < count ? to_acc(row.ld((first + i) * stride)) : Accumulation<T>(0);
  }
}

template <class T, class S>
FGK_GLOBAL void FGK_LAUNCH_BOUNDS(kUpdateThreads, sizeof(T) == 8 ? 3 : 8)
    state_update_kernel(StateUpdateParams<T, S> p) {
  using Acc = Accumulation<T>;
  constexpr int kItems = 16 / static_cast<int>(sizeof(S));
  const int64_t thread = dev::bid() * kUpdateThreads + dev::tid();
  const int lane = dev::lane() & (p.segment - 1);
  const int64_t row = thread / p.segment;
  const bool there = row < p.batch * p.heads * p.channels;
  const int64_t c = row % p.channels, h = row / p.channels % p.heads, b = row / p.channels / p.heads;
  const int64_t entry = !there ? -1 : p.entry ? p.entry.ld(b) : b;
  const bool legal = entry >= 0 && entry < p.entries;

  const auto number = [&](const auto& rows) {
    return legal && rows.data ? to_acc(rows.data.ld(b * rows.outer + h * rows.head + c * rows.channel)) : Acc(0);
  };
  const Acc x = number(p.x);
  Acc dt = number(p.dt) + number(p.bias);
  if (p.softplus) dt = softplus(dt);
  Acc y = 0;
  if (legal) {
    const int64_t group = (p.heads > 1 ? h : c) / p.per_group;
    const int last = p.states - 1;
    const gptr<S> state =
        p.state.slice(entry * p.state_entry + h * p.state_head + c * p.state_channel, last * p.state_state + 1);
    const gptr<const Acc> A = p.A.data.slice(h * p.A.head + c * p.A.channel, last * p.A.state + 1);
    const gptr<const T> B = p.B.data.slice(b * p.B.outer + group * p.B.head, last * p.B.state + 1);
    const gptr<const T> C = p.C.data.slice(b * p.C.outer + group * p.C.head, last * p.C.state + 1);
    for (int first = lane * kItems; first < p.states; first += p.segment * kItems) {
      Acc A_n[kItems], B_n[kItems], C_n[kItems];
      Accumulation<S> kept[kItems];
      const bool whole = p.state_vectors && first + kItems <= p.states;
      if (whole) {
        load_vector<S, kItems>(state, first, kept);
      } else {
        FGK_UNROLL
        for (int i = 0; i < kItems; ++i) {
          kept[i] = first + i < p.states ? to_acc(state.ld((first + i) * p.state_state)) : Accumulation<S>(0);
        }
      }
      load_states<kItems>(A, p.A.state, p.A.vectors, first, p.states, A_n);
      load_states<kItems>(B, p.B.state, p.B.vectors, first, p.states, B_n);
      load_states<kItems>(C, p.C.state, p.C.vectors, first, p.states, C_n);
      FGK_UNROLL
      for (int i = 0; i < kItems; ++i) {
        const Acc next = dev::fma(exponential(A_n[i] * dt), static_cast<Acc>(kept[i]), dt * B_n[i] * x);
        kept[i] = static_cast<Accumulation<S>>(next);
        y = dev::fma(C_n[i], next, y);
      }
      if (whole) {
        store_vector<S, kItems>(state, first, kept);
      } else {
        FGK_UNROLL
        for (int i = 0; i < kItems; ++i) {
          if (first + i < p.states) state.st((first + i) * p.state_state, from_acc<S>(kept[i]));
        }
      }
    }
  }
  FGK_NO_UNROLL
  for (int mask = p.segment / 2; mask > 0; mask /= 2) y += dev::shfl_xor(y, mask);
  if (!there || lane != 0) return;
  y = dev::fma(number(p.D), x, y);
  if (p.z.data) y *= silu(number(p.z));
  p.out.st(row, from_acc<T>(legal ? y : static_cast<Acc>(__builtin_nan(""))));
}

}  // namespace fgk::cuda
