// SPDX-License-Identifier: Apache-2.0
// What a late-interaction call is, for every device: inputs, where results go, and what a backward is given.
//
// S(x, y, i, t) = <token i of sample x, token t of sample y>. The forward keeps, per token, the best value and its
// index; the (i, t) matrix of a pair never reaches memory.
#pragma once

#include <cstdint>

#include "types.h"

namespace fgk {

// Where the result of pair (x, y) of a direction goes. `x` is the sample whose tokens are reduced, `y` the other one.
// Element of the score: x * score_x + y * score_y. First index element of the pair: token_base(x) * index_x + y *
// index_y.
struct DirectionOutput {
  void* scores = nullptr;  // float, or double for double tokens; null: direction not wanted
  int64_t score_x = 0;
  int64_t score_y = 0;
  void* indices = nullptr;  // int16 or int32, -1 where no token won; may be null
  bool wide_indices = false;
  int64_t index_x = 0;
  int64_t index_y = 0;
  int64_t score_count = 0;  // elements between the first and the last one of scores, both included
  int64_t index_count = 0;  // likewise of indices
};

struct LateInteractionForward {
  TokenBatch a;
  TokenBatch b;
  DirectionOutput ab;  // per token of a, the best of b
  DirectionOutput ba;  // per token of b, the best of a
  bool mean = false;
  bool zero_padding = false;  // masked tokens of the other side enter a maximum as zero vectors
  // 0: all pairs. K > 0: sample x of a meets samples [x K, (x + 1) K) of b only; one direction (ab).
  int64_t paired = 0;
};

// Gradient with respect to the tokens of one side ("owner"), given what the forward saved:
//   own_indices:   for the owner's tokens, the winner among the other side's tokens (gather)
//   other_indices: for the other side's tokens, the winner among the owner's tokens (scatter)
// The *_x and *_y strides of both follow DirectionOutput, x being the sample whose tokens were reduced.
struct LateInteractionBackward {
  TokenBatch owner;  // data unused
  TokenBatch other;
  DirectionOutput own;         // scores: incoming gradient of the direction owner -> other, or null
  DirectionOutput from_other;  // scores: incoming gradient of the direction other -> owner, or null
  bool mean = false;
  int64_t paired = 0;        // K of the forward
  bool owner_is_a = true;    // which side of a paired call the owner was
  void* gradient = nullptr;  // dense, owner's token layout, owner's dtype
};

}  // namespace fgk
