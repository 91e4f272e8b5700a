// SPDX-License-Identifier: Apache-2.0
// Token tensors of an operator, checked and turned into what the kernels read: padded (N, L, D) or packed behind
// offsets.
#pragma once

#include "checks.h"

namespace fgk::ops {

// One side of a call as checked: the kernel's view and the tensors that keep its memory alive.
struct Side {
  TokenBatch batch;
  Tensor tokens;
  OptionalTensor mask;
  OptionalTensor scales;
  std::vector<int64_t> host_offsets;  // where the host reads the tensors' memory
  OptionalTensor device_offsets;      // elsewhere
};

// The second side of a call: dtype and channels like the first, or int8 with scales.
DType check_tokens_like(const char* name, const Tensor& tokens, const char* first_name, const Tensor& first,
                        bool int8_allowed, bool has_scales, const char* letters);

// A mask or scales: absent, or of exactly this dtype and these sizes, on the device of the call's first tensor.
void check_per_token(const char* name, const OptionalTensor& values, const char* first_name, const Tensor& first,
                     ScalarType dtype, const char* letters, std::initializer_list<int64_t> sizes);

void attach_mask(Side& side, const OptionalTensor& mask);
void attach_scales(Side& side, const OptionalTensor& scales);

// tokens: (N, L, D), or (N, K, L, D) taken as N K samples.
Side padded_side(const char* name, const Tensor& tokens, DType dtype);

// tokens: (T, D), offsets: int32 or int64 (N + 1,) from 0 to T. Only where the host reads the tensors' memory are the
// values checked here; elsewhere the kernels do it.
Side packed_side(const char* name, const Tensor& tokens, DType dtype, const char* offsets_name, const Tensor& offsets,
                 const char* first_name, const Tensor& first);

}  // namespace fgk::ops
