// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of the Mamba-2 scan against its definition, without torch.
#include "kernels/cpu/mamba_chunk_scan.h"

#include "mamba_chunk_scan_cases.h"
#include "threads.h"

namespace mamba_chunk_scan_cases {
namespace {

void run_forward(const ChunkScanForward& args) { chunk_scan_forward(args, check::threads()); }
void run_backward(const ChunkScanBackward& args) { chunk_scan_backward(args, check::threads()); }

constexpr DType kTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16};

void check_both(std::mt19937& random, DType dtype, const Shape& s, const Options& o) {
  check_forward(random, dtype, s, o);
  check_backward(random, dtype, s, o);
}

TEST(every_type_length_and_number_of_states) {
  std::mt19937 random(1);
  for (DType dtype : kTypes) {
    for (int64_t length : {1, 31, 128, 129}) {
      for (int64_t states : {1, 16, 21}) {
        Options o;
        o.initial_states = states % 2 == 1;
        check_both(random, dtype, {1, length, 2, 5, 1, states}, o);
      }
    }
  }
}

TEST(channels_fill_vectors_or_not) {
  std::mt19937 random(2);
  for (DType dtype : {DType::f32, DType::f64}) {
    for (int64_t channels : {1, 4, 8, 15, 16, 17, 40}) check_both(random, dtype, {1, 40, 3, channels, 1, 17}, {});
  }
}

TEST(options_one_by_one) {
  std::mt19937 random(3);
  for (int options = 0; options < 32; ++options) {
    Options o;
    o.d = static_cast<D>(options % 3);
    o.z = options & 1;
    o.dt_bias = options & 2;
    o.dt_softplus = options & 4;
    o.seq_idx = options & 8;
    o.initial_states = options & 16;
    if (options % 5 == 0) {
      o.dt_min = 0.1;
      o.dt_max = 0.4;
    }
    check_both(random, kTypes[options % 4], {1, 140, 4, 18, 2, 5}, o);
  }
}

TEST(slices_of_wider_rows) {
  std::mt19937 random(4);
  for (DType dtype : kTypes) {
    check_both(random, dtype, {1, 140, 6, 20, 3, 8, 1, true}, {});
    check_both(random, dtype, {1, 9, 2, 64, 1, 128, 3, false}, {});
  }
}

TEST(no_decay_and_total_decay) {
  std::mt19937 random(5);
  for (DType dtype : {DType::f32, DType::f64}) {
    for (double decay : {0.0, 80.0, 1e4}) {
      Options o;
      o.decay = decay;
      o.initial_states = true;
      check_both(random, dtype, {1, 140, 2, 3, 1, 4}, o);
    }
  }
}

TEST(without_states) {
  std::mt19937 random(6);
  check_forward(random, DType::f32, {1, 140, 2, 3, 1, 4}, {}, false, false);
  check_backward(random, DType::f32, {1, 140, 2, 3, 1, 4}, {}, false);
}

TEST(threads_change_nothing) {
  for (int count : {1, 2, 5}) {
    check::thread_count() = count;
    std::mt19937 random(7);
    check_both(random, DType::f32, {1, 140, 6, 17, 2, 16}, {});
  }
  check::thread_count() = 1;
}

TEST(nothing_to_do) {
  std::mt19937 random(8);
  for (const Shape& s :
       {Shape{0, 5, 2, 3, 1, 4}, Shape{2, 0, 2, 3, 1, 4}, Shape{2, 5, 2, 0, 1, 4}, Shape{2, 5, 2, 3, 1, 0}}) {
    Options o;
    o.initial_states = true;
    check_both(random, DType::f32, s, o);
  }
}

}  // namespace
}  // namespace mamba_chunk_scan_cases
