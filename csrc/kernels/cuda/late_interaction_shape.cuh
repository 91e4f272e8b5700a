// SPDX-License-Identifier: Apache-2.0
// Shapes of the late-interaction forward kernel: how a block's warps cover rows and columns, and what that takes.
#pragma once

#include "late_interaction_tile.cuh"

namespace fgk::cuda {

// kDown slots below each other, kWarps / kDown warps side by side over the columns; NT n8 tiles per warp.
template <class Math_, int kDown_, int NT_, bool kColumns_, bool kIndices_>
struct ForwardShape {
  using Math = Math_;
  using T = typename Math::T;
  using Acc = typename Math::Acc;
  static constexpr int kDown = kDown_;
  static constexpr int kAcross = kWarps / kDown;
  static constexpr int NT = NT_;
  static constexpr int kRows = kDown * kSlotRows;
  static constexpr int kTile = kAcross * NT * 8;
  static constexpr bool kColumns = kColumns_;
  static constexpr bool kIndices = kIndices_;

  // Blocks per multiprocessor that the registers shall allow: both directions and fp64 take more than 128 a thread.
  static constexpr int kMinBlocks = kColumns || sizeof(T) == 8 ? 1 : 2;
  static constexpr int kTileElements = kTile * kChunkElements<T>;
  static constexpr int kRowElements = kRows * kChunkElements<T>;
  // Dynamic shared memory: the carving in ForwardBlock's constructor.
  static constexpr int64_t block_bytes(int chunks, int stages, bool resident) {
    using dev::shared_bytes;
    const int64_t resident_rows = resident ? shared_bytes<T>(chunks * kRowElements) : 0;
    const int64_t slots = shared_bytes<int64_t>(kRows) + shared_bytes<int64_t>(8) + 3 * shared_bytes<int32_t>(8);
    const int64_t row =
        shared_bytes<Acc>(8) + shared_bytes<Acc>(kRows * kAcross) + shared_bytes<int32_t>(kRows * kAcross);
    const int64_t column = kColumns ? shared_bytes<Acc>(kTile * kDown) + shared_bytes<int32_t>(kTile * kDown) : 0;
    const int64_t staging = shared_bytes<T>(stages * (kTileElements + (resident ? 0 : kRowElements)));
    return resident_rows + staging + slots + row + column;
  }
};

}  // namespace fgk::cuda
