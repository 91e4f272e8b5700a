// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of selective scans against their definition, without torch.
#include "kernels/cpu/selective_scan.h"

#include "selective_scan_cases.h"
#include "threads.h"

namespace selective_scan_cases {

void run_forward(const SelectiveScanForward& args) { selective_scan_forward(args, check::threads()); }
void run_backward(const SelectiveScanBackward& args) { selective_scan_backward(args, check::threads()); }

namespace {

TEST(every_type_length_and_number_of_states) {
  std::mt19937 random(1);
  for (DType dtype : kTypes) {
    for (int64_t length : {1, 2, 17, 63, 64, 65, 130}) {
      for (int64_t states : {1, 3, 4, 7, 16, 21}) {
        Shape s;
        s.dtype = dtype;
        s.channels = length % 2 == 0 ? 16 : 5;
        s.length = length;
        s.states = states;
        s.initial = states % 2 == 1;
        check_scan(random, s);
      }
    }
  }
}

TEST(channels_fill_vectors_or_not) {
  std::mt19937 random(2);
  for (DType dtype : {DType::f32, DType::f64}) {
    for (int64_t channels : {1, 4, 7, 8, 15, 16, 17, 33, 80}) {
      Shape s;
      s.dtype = dtype;
      s.channels = channels;
      s.length = 70;
      s.states = 17;
      check_scan(random, s);
    }
  }
}

TEST(options_one_by_one) {
  std::mt19937 random(3);
  for (int options = 0; options < 64; ++options) {
    Shape s;
    s.dtype = kTypes[options % 4];
    s.d = options & 1;
    s.z = options & 2;
    s.bias = options & 4;
    s.softplus = options & 8;
    s.constant_b = options & 16;
    s.constant_c = options & 32;
    s.initial = options % 3 == 0;
    s.channels = 20;
    s.length = 66;
    s.states = 9;
    check_scan(random, s);
  }
}

TEST(groups_and_layouts) {
  std::mt19937 random(4);
  for (DType dtype : kTypes) {
    for (Layout layout : {Layout::dense, Layout::swapped, Layout::padded}) {
      for (int64_t groups : {1, 2, 6}) {
        Shape s;
        s.dtype = dtype;
        s.layout = layout;
        s.groups = groups;
        s.channels = 36;
        s.length = 83;
        s.states = groups == 2 ? 16 : 5;
        check_scan(random, s);
      }
    }
  }
}

TEST(tables) {
  std::mt19937 random(5);
  for (DType dtype : kTypes) {
    for (int mode = 0; mode < 3; ++mode) {  // shared u, u per direction, scan order
      for (bool shared_parameters : {false, true}) {
        for (bool constant : {false, true}) {
          Shape s;
          s.dtype = dtype;
          s.directions = 3;
          s.table = true;
          s.ordered = mode == 2;
          s.shared_u = mode == 0;
          s.shared_parameters = shared_parameters;
          s.constant_b = constant;
          s.channels = 18;
          s.length = 77;
          s.states = 6;
          s.z = !constant;
          s.initial = constant;
          check_scan(random, s);
        }
      }
    }
  }
}

TEST(many_states_and_short_sequences) {
  std::mt19937 random(6);
  for (DType dtype : {DType::f32, DType::f64}) {
    Shape s;
    s.dtype = dtype;
    s.directions = 4;
    s.table = s.ordered = s.shared_parameters = true;
    s.batch = 1;
    s.channels = 40;
    s.length = 25;
    s.states = 256;
    check_scan(random, s);
  }
}

// So long that B and C are laid out chunk by chunk.
TEST(long_sequence) {
  std::mt19937 random(10);
  for (DType dtype : {DType::f32, DType::bf16}) {
    Shape s;
    s.dtype = dtype;
    s.batch = 1;
    s.channels = 2;
    s.length = 70001;
    s.states = 17;
    Wanted forward;
    forward.backward = false;
    check_scan(random, s, forward);
  }
}

TEST(tails_and_long_products) {
  std::mt19937 random(7);
  for (DType dtype : {DType::f32, DType::f64}) {
    softplus_is_exact_in_its_tail(dtype);
    long_products_stay_finite(random, dtype);
  }
}

TEST(threads_change_nothing) {
  Shape s;
  s.batch = 1;
  s.channels = 200;
  s.length = 150;
  s.states = 16;
  for (int count : {1, 2, 5}) {
    check::thread_count() = count;
    std::mt19937 random(8);
    check_scan(random, s);
  }
  check::thread_count() = 1;
}

TEST(nothing_to_do) {
  std::mt19937 random(9);
  for (int which = 0; which < 3; ++which) {
    Shape s;
    (which == 0 ? s.batch : which == 1 ? s.length : s.states) = 0;
    s.initial = which == 1;
    check_scan(random, s);
  }
}

}  // namespace
}  // namespace selective_scan_cases
