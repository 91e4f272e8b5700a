// SPDX-License-Identifier: Apache-2.0
// Gathers and sums over scan orders of one ISA level.
#include "cross_scan_plan.h"
#include "lanes.h"

namespace fgk {
namespace FGK_ISA_NS {
namespace {

char* source(const CrossScan& args, int64_t b, int64_t k, int64_t c) {
  const int64_t element = b * args.x.batch + k * args.x.direction + c * args.x.channel;
  return static_cast<char*>(args.x.data) + element * dtype_bytes(args.dtype);
}

// The row of a result that channel c of direction k (of a sum: of all directions) has.
char* target(const CrossScan& args, int64_t b, int64_t k, int64_t c) {
  const int64_t row = args.merge ? b * args.channels + c : (b * args.directions + k) * args.channels + c;
  return static_cast<char*>(args.out) + row * args.length * dtype_bytes(args.dtype);
}

// Calls body(t, position) for the steps [first, last) of direction k.
template <class Body>
FGK_INLINE void visit(const CrossScanPlan& plan, int64_t k, int64_t first, int64_t last, const Body& body) {
  const int32_t* table = plan.args.table + k * plan.args.length;
  const int64_t end = plan.args.length - 1;
  switch (plan.orders[k]) {
    case Order::forwards:
      for (int64_t t = first; t < last; ++t) body(t, t);
      break;
    case Order::backwards:
      for (int64_t t = first; t < last; ++t) body(t, end - t);
      break;
    case Order::any:
      for (int64_t t = first; t < last; ++t) body(t, static_cast<int64_t>(table[t]));
      break;
  }
}

// Elements are moved as they are stored.
template <class Stored>
void gather_rows(const CrossScanPlan& plan, const CrossScanTask& task) {
  const CrossScan& args = plan.args;
  const int64_t stride = args.x.position;
  for (int64_t c = task.channel_first; c < task.channel_last; ++c) {
    const Stored* from = reinterpret_cast<const Stored*>(source(args, task.batch, 0, c));
    for (int64_t k = 0; k < args.directions; ++k) {
      Stored* to = reinterpret_cast<Stored*>(target(args, task.batch, k, c));
      if (stride == 1) {
        visit(plan, k, task.first, task.last, [&](int64_t t, int64_t p) { to[t] = from[p]; });
      } else {
        visit(plan, k, task.first, task.last, [&](int64_t t, int64_t p) { to[t] = from[p * stride]; });
      }
    }
  }
}

template <class S, class Stored, class Convert>
void merge_rows(const CrossScanPlan& plan, const CrossScanTask& task, S* sums, const Convert& convert) {
  const CrossScan& args = plan.args;
  const int64_t stride = args.x.position;
  for (int64_t c = task.channel_first; c < task.channel_last; ++c) {
    char* to = target(args, task.batch, 0, c);
    for (int64_t first = task.first; first < task.last; first += kCrossScanRowChunk) {
      const int64_t last = first + kCrossScanRowChunk < task.last ? first + kCrossScanRowChunk : task.last;
      for (int64_t i = 0; i < last - first; ++i) sums[i] = S(0);
      for (int64_t k = 0; k < args.directions; ++k) {
        const Stored* from = reinterpret_cast<const Stored*>(source(args, task.batch, k, c));
        if (stride == 1) {
          visit(plan, k, first, last, [&](int64_t t, int64_t p) { sums[t - first] += convert(from[p]); });
        } else {
          visit(plan, k, first, last, [&](int64_t t, int64_t p) { sums[t - first] += convert(from[p * stride]); });
        }
      }
      narrow_row(to + first * dtype_bytes(args.dtype), args.dtype, sums, last - first);
    }
  }
}

template <class S>
void rows(const CrossScanPlan& plan, const CrossScanTask& task, void* memory) {
  S* sums = static_cast<S*>(memory);
  const DType dtype = plan.args.dtype;
  if (plan.args.merge) {
    switch (dtype) {
      case DType::f32:
        return merge_rows<S, float>(plan, task, sums, [](float x) { return static_cast<S>(x); });
      case DType::f64:
        return merge_rows<S, double>(plan, task, sums, [](double x) { return static_cast<S>(x); });
      case DType::bf16:
        return merge_rows<S, uint16_t>(plan, task, sums, [](uint16_t x) { return static_cast<S>(bf16_to_f32(x)); });
      default:
        return merge_rows<S, uint16_t>(plan, task, sums, [](uint16_t x) { return static_cast<S>(f16_to_f32(x)); });
    }
  }
  switch (dtype_bytes(dtype)) {
    case 8:
      return gather_rows<uint64_t>(plan, task);
    case 4:
      return gather_rows<uint32_t>(plan, task);
    default:
      return gather_rows<uint16_t>(plan, task);
  }
}

// Rows of channels, a few positions at a time, which are then turned round.
template <class V>
void lanes(const CrossScanPlan& plan, const CrossScanTask& task, void* memory) {
  using S = typename V::Scalar;
  const CrossScan& args = plan.args;
  const int64_t channels = task.channel_last - task.channel_first;
  const int64_t row = (channels + V::W - 1) / V::W * V::W;
  S* sums = static_cast<S*>(memory);
  S* addend = sums + kCrossScanLaneChunk * row;
  const int64_t bytes = dtype_bytes(args.dtype);
  const int64_t results = args.merge ? 1 : args.directions;
  for (int64_t first = task.first; first < task.last; first += kCrossScanLaneChunk) {
    const int64_t last = first + kCrossScanLaneChunk < task.last ? first + kCrossScanLaneChunk : task.last;
    for (int64_t result = 0; result < results; ++result) {
      const int64_t k_last = args.merge ? args.directions : result + 1;
      for (int64_t k = result; k < k_last; ++k) {
        const char* from = source(args, task.batch, args.merge ? k : 0, task.channel_first);
        visit(plan, k, first, last, [&](int64_t t, int64_t p) {
          S* sum = sums + (t - first) * row;
          S* values = k == result ? sum : addend;
          widen_row(values, from + p * args.x.position * bytes, args.dtype, channels, 1.0f);
          if (k == result) {
            for (int64_t c = channels; c < row; ++c) sum[c] = S(0);
          } else {
            for (int64_t c = 0; c < channels; ++c) sum[c] += addend[c];
          }
        });
      }
      for (int64_t c = 0; c < channels; c += V::W) {
        LaneView view;
        view.data = target(args, task.batch, result, task.channel_first + c);
        view.dtype = args.dtype;
        view.channel = args.length;
        view.position = 1;
        view.channels = channels - c < V::W ? static_cast<int>(channels - c) : V::W;
        store_rows<V>(view, first, last - first, sums + c, row);
      }
    }
  }
}

}  // namespace

extern const CrossScanTable kCrossScanTable;
const CrossScanTable kCrossScanTable = {F32::W, F64::W, {rows<float>, lanes<F32>}, {rows<double>, lanes<F64>}};

}  // namespace FGK_ISA_NS
}  // namespace fgk
