// SPDX-License-Identifier: Apache-2.0
#include "token_sides.h"

namespace fgk::ops {
namespace {

constexpr int64_t kMaxTokens = (int64_t(1) << 31) - 1;

void check_offsets(const char* name, const Tensor& offsets, const char* first_name, const Tensor& first) {
  check_device(name, offsets, first_name, first);
  const ScalarType type = offsets.scalar_type();
  check(offsets.dim() == 1 && offsets.size(0) >= 1 && (type == ScalarType::Int || type == ScalarType::Long), name,
        ": expected int32 or int64 (N + 1,), got ", dtype_name(offsets), " ", shape(offsets));
}

std::vector<int64_t> read_offsets(const char* name, const Tensor& offsets, const char* tokens_name, int64_t tokens) {
  const ScalarType type = offsets.scalar_type();
  const Tensor packed = dense(offsets);
  std::vector<int64_t> values(static_cast<size_t>(offsets.size(0)));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = type == ScalarType::Int ? static_cast<const int32_t*>(packed.const_data_ptr())[i]
                                        : static_cast<const int64_t*>(packed.const_data_ptr())[i];
  }
  check(values[0] == 0, name, ": expected to start at 0, got ", values[0]);
  for (size_t i = 1; i < values.size(); ++i) {
    check(values[i] >= values[i - 1], name, ": expected values that never decrease, got ", values[i], " after ",
          values[i - 1], " at position ", i);
  }
  check(values.back() == tokens, name, ": expected to end at the number of ", tokens_name, " tokens, ", tokens,
        ", got ", values.back());
  return values;
}

}  // namespace

DType check_tokens_like(const char* name, const Tensor& tokens, const char* first_name, const Tensor& first,
                        bool int8_allowed, bool has_scales, const char* letters) {
  check_device(name, tokens, first_name, first);
  const std::optional<DType> dtype = kernel_dtype(tokens);
  const bool int8 = dtype == DType::i8;
  const bool legal = dtype.has_value() && (int8 ? int8_allowed : *dtype == *kernel_dtype(first));
  check(legal, name, ": expected dtype ", dtype_name(first), " like ", first_name,
        int8_allowed ? ", or int8 with document_scales" : "", ", got ", dtype_name(tokens));
  const int64_t channels = first.size(first.dim() - 1);
  check(tokens.size(tokens.dim() - 1) == channels, name, ": expected ", letters, " with D = ", channels, " like ",
        first_name, ", got ", shape(tokens));
  if (int8_allowed) {
    check(!int8 || has_scales, "document_scales: required when documents are int8");
    check(int8 || !has_scales, "document_scales: only for int8 documents, got documents of dtype ", dtype_name(tokens));
  }
  return *dtype;
}

void check_per_token(const char* name, const OptionalTensor& values, const char* first_name, const Tensor& first,
                     ScalarType dtype, const char* letters, std::initializer_list<int64_t> sizes) {
  if (!values) return;
  check_device(name, *values, first_name, first);
  check(has_sizes(*values, sizes) && values->scalar_type() == dtype, name, ": expected ", dtype_name(dtype), " ",
        letters, " = ", shape(sizes), ", got ", dtype_name(*values), " ", shape(*values));
}

void attach_mask(Side& side, const OptionalTensor& mask) {
  if (!mask) return;
  side.mask = dense(*mask);
  side.batch.mask = static_cast<const uint8_t*>(side.mask->const_data_ptr());
}

void attach_scales(Side& side, const OptionalTensor& scales) {
  if (!scales) return;
  side.scales = dense(*scales);
  side.batch.scales = static_cast<const float*>(side.scales->const_data_ptr());
}

Side padded_side(const char* name, const Tensor& tokens, DType dtype) {
  const int64_t rank = tokens.dim();
  Side side;
  side.tokens = dense_channels(tokens);
  TokenBatch& batch = side.batch;
  batch.dtype = dtype;
  batch.dim = tokens.size(rank - 1);
  batch.length = tokens.size(rank - 2);
  batch.batch = tokens.size(0);
  check(batch.length <= kMaxTokens, name, ": expected at most 2^31 - 1 tokens per sample, got ", batch.length);
  if (rank == 4) {
    const int64_t candidates = tokens.size(1);
    const bool flat =
        tokens.size(0) <= 1 || candidates <= 1 || side.tokens.stride(0) == candidates * side.tokens.stride(1);
    if (!flat) side.tokens = torch::stable::contiguous(side.tokens);
    batch.batch *= candidates;
    batch.sample_stride = candidates == 1 ? side.tokens.stride(0) : side.tokens.stride(1);
  } else {
    batch.sample_stride = side.tokens.stride(0);
  }
  batch.token_stride = side.tokens.stride(rank - 2);
  batch.total_tokens = batch.batch * batch.length;
  batch.span = span(side.tokens);
  batch.data = side.tokens.const_data_ptr();
  return side;
}

Side packed_side(const char* name, const Tensor& tokens, DType dtype, const char* offsets_name, const Tensor& offsets,
                 const char* first_name, const Tensor& first) {
  check(tokens.size(0) <= kMaxTokens, name, ": expected at most 2^31 - 1 tokens, got ", tokens.size(0));
  check_offsets(offsets_name, offsets, first_name, first);
  Side side;
  side.tokens = dense_channels(tokens);
  TokenBatch& batch = side.batch;
  batch.dtype = dtype;
  batch.dim = tokens.size(1);
  batch.batch = offsets.size(0) - 1;
  if (device::host_reads()) {
    side.host_offsets = read_offsets(offsets_name, offsets, name, tokens.size(0));
    batch.offsets = side.host_offsets.data();
  } else {
    side.device_offsets = dense(torch::stable::to(offsets, ScalarType::Long));
    batch.offsets = static_cast<const int64_t*>(side.device_offsets->const_data_ptr());
  }
  batch.token_stride = side.tokens.stride(0);
  batch.total_tokens = tokens.size(0);
  batch.span = span(side.tokens);
  batch.data = side.tokens.const_data_ptr();
  return side;
}

}  // namespace fgk::ops
