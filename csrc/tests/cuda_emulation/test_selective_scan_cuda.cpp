// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of the selective scan, executed by the emulator in three orders, against the definition in extended
// precision.
#include "kernel_test.h"
#include "kernels/cuda/selective_scan.h"
#include "selective_scan_cases.h"

namespace selective_scan_cases {
namespace {

using emulation::Order;
using kernel_test::in_every_order;
using kernel_test::Scratch;

constexpr dev::Limits kDevice = {132, 232448};

// A device of few multiprocessors: blocks take several channels, warps several states.
constexpr dev::Limits kSmallGrid = {1, 232448};

void on_device(const dev::Limits& limits, std::mt19937& random, const Shape& shape, const Wanted& wanted = {}) {
  emulation::set_limits(limits);
  check_scan(random, shape, wanted);
  emulation::set_limits(kDevice);
}

}  // namespace

void run_forward(const SelectiveScanForward& args) {
  Scratch scratch;
  cuda::selective_scan_forward(args, scratch.context());
  kernel_test::check_all_written(scratch);
}

void run_backward(const SelectiveScanBackward& args) {
  Scratch scratch;
  cuda::selective_scan_backward(args, scratch.context());
  kernel_test::check_all_written(scratch);
}

// Segments of every length, tiles that end anywhere, chunks that begin and end in the middle of one.
TEST(lengths_and_states) {
  in_every_order([](std::mt19937& random) {
    size_t turn = random();
    for (int64_t length : {1, 2, 7, 8, 25, 63, 64, 65, 130, 200}) {
      for (int64_t states : {1, 3, 16}) {
        Shape s;
        s.dtype = kTypes[turn++ % 4];
        s.length = length;
        s.states = states;
        s.batch = length < 30 ? 2 : 1;
        s.channels = length < 30 ? 3 : 2;
        s.initial = turn % 3 == 0;
        check_scan(random, s);
      }
    }
  });
}

// Rows of B and C that are read where they are: they start at multiples of 16 bytes and end anywhere.
TEST(ends_of_rows) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kTypes) {
      Shape s;
      s.dtype = dtype;
      s.batch = 1;
      s.channels = 2;
      s.length = 61;
      s.layout = Layout::spaced;
      check_scan(random, s);
      s.length = 101;
      s.constant_b = true;
      check_scan(random, s);
    }
  });
}

TEST(options) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kTypes) {
      for (int option = 0; option < 8; ++option) {
        Shape s;
        s.dtype = dtype;
        s.batch = 2;
        s.channels = 4;
        s.length = 41;
        s.states = 5;
        s.groups = option % 2 == 0 ? 1 : 2;
        s.d = option != 1;
        s.z = option != 2 && option != 5;
        s.bias = option != 3;
        s.softplus = option != 4 && option != 1;
        s.initial = option != 5;
        s.constant_b = option == 6 || option == 2;
        s.constant_c = option == 7 || option == 2;
        s.layout = option % 3 == 0 ? Layout::dense : option % 3 == 1 ? Layout::swapped : Layout::padded;
        check_scan(random, s);
      }
    }
  });
}

// More steps than a tile has: states, their gradients and the parameters' go from tile to tile, and with few states
// from warp to warp within a tile.
TEST(several_tiles) {
  in_every_order([](std::mt19937& random) {
    for (int64_t states : {1, 2, 5}) {
      for (DType dtype : {DType::f32, DType::f64}) {
        Shape s;
        s.dtype = dtype;
        s.batch = 1;
        s.channels = 2;
        s.length = dtype == DType::f64 ? 300 : 520;
        s.states = states;
        s.initial = true;
        s.constant_c = states == 2;
        s.layout = states == 5 ? Layout::padded : Layout::dense;
        check_scan(random, s);
      }
    }
    Shape s;
    s.dtype = DType::bf16;
    s.batch = 1;
    s.channels = 1;
    s.length = 1100;
    s.states = 1;
    s.initial = true;
    check_scan(random, s);
    s.constant_b = s.constant_c = true;
    check_scan(random, s);
  });
}

TEST(many_states) {
  in_every_order([](std::mt19937& random) {
    Shape s;
    s.batch = 1;
    s.channels = 2;
    s.length = 25;
    s.states = 256;
    on_device(kDevice, random, s);
    s.dtype = DType::f16;
    s.length = 70;
    s.states = 67;
    s.constant_b = true;
    on_device(kSmallGrid, random, s);
  });
}

// The directions of a map, in scan order or not, each with its own numbers or sharing them.
TEST(maps) {
  in_every_order([](std::mt19937& random) {
    size_t turn = random();
    for (int option = 0; option < 8; ++option) {
      for (int64_t directions : {1, 4}) {
        Shape s;
        s.dtype = kTypes[turn++ % 4];
        s.table = true;
        s.directions = directions;
        s.channels = 2;
        s.length = 35;
        s.states = option % 2 == 0 ? 4 : 1;
        s.ordered = option == 1 || option == 2;
        s.shared_parameters = option == 2 || option == 3;
        s.shared_u = option != 4;
        s.z = option != 5;
        s.d = option != 6;
        s.initial = option == 3;
        s.constant_b = option == 3 || option == 7;
        s.layout = option == 6 ? Layout::swapped : Layout::dense;
        check_scan(random, s);
      }
    }
    Shape s;
    s.table = true;
    s.directions = 3;
    s.batch = 1;
    s.channels = 1;
    s.length = 300;
    s.states = 2;
    check_scan(random, s);
  });
}

// Sums over directions, or gradients of B and C within a tile, that do not fit into shared memory; narrower tiles; and
// blocks that take several channels.
TEST(other_devices) {
  in_every_order([](std::mt19937& random) {
    Shape s;
    s.batch = 1;
    s.channels = 6;
    s.groups = 2;
    s.length = 300;
    s.states = 3;
    on_device(kSmallGrid, random, s);
    for (const DType dtype : {DType::f32, DType::f64}) {
      s.dtype = dtype;
      s.states = 20;
      s.channels = 4;
      s.length = 140;
      on_device({1, 26 * 1024}, random, s);
      on_device({1, 16 * 1024}, random, s);
    }
    Shape map;
    map.table = true;
    map.directions = 2;
    map.batch = 1;
    map.channels = 2;
    map.length = 140;
    map.states = 2;
    on_device({132, 20 * 1024}, random, map);
    map.length = 650;
    map.states = 12;
    on_device({132, 10 * 1024}, random, map, {true, true, false});
  });
}

TEST(results_that_nobody_asks_for) {
  in_every_order([](std::mt19937& random) {
    Shape s;
    check_scan(random, s, {false, false, false});
    check_scan(random, s, {true, false, false});
    check_scan(random, s, {false, true, false});
  });
}

TEST(numbers) {
  in_every_order([](std::mt19937& random) {
    for (DType dtype : kTypes) long_products_stay_finite(random, dtype);
    for (DType dtype : {DType::f32, DType::f64}) softplus_is_exact_in_its_tail(dtype);
  });
}

TEST(nothing_to_do) {
  std::mt19937 random(1);
  for (int which = 0; which < 3; ++which) {
    Shape s;
    (which == 0 ? s.batch : which == 1 ? s.channels : s.length) = 0;
    Problem p(random, s);
    SelectiveScanBackward back;
    back.forward = p.forward_args();
    Scratch scratch;
    const int64_t launches = emulation::counters().launches;
    cuda::selective_scan_forward(back.forward, scratch.context());
    cuda::selective_scan_backward(back, scratch.context());
    CHECK_EQ(emulation::counters().launches, launches);
  }
}

// Places outside of the map are read by nobody. What becomes of the results is not said; the other rows are right.
TEST(hostile_tables) {
  for (const Order order : {Order::fifo, Order::lifo, Order::random}) {
    emulation::set_options({order, 7, false});
    std::mt19937 random(3);
    for (int64_t directions : {1, 2}) {
      for (bool ordered : {false, true}) {
        Shape s;
        s.table = true;
        s.directions = directions;
        s.ordered = ordered;
        s.length = 70;
        Problem p(random, s);
        const int32_t wrong[] = {-1, 70, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()};
        for (int i = 0; i < 4; ++i) p.table[static_cast<size_t>(13 * i + 3)] = wrong[i];
        Array out(s.dtype, p.grad_out.size), du(s.dtype, p.u.size), ddelta(s.dtype, p.delta.size);
        Array dz(s.dtype, p.z.size), dA(p.A.dtype, p.A.size), dB(s.dtype, p.B.size), dC(s.dtype, p.C.size);
        Array dD(p.D.dtype, p.D.size), dbias(p.bias.dtype, p.bias.size);
        Array checkpoints(DType::f32, {s.batch, directions, s.channels, p.chunks(), s.states});
        SelectiveScanForward args = p.forward_args();
        args.out = Problem::sequence(out);
        args.checkpoints = checkpoints.data();
        Scratch scratch;
        cuda::selective_scan_forward(args, scratch.context());
        SelectiveScanBackward back;
        back.forward = p.forward_args();
        back.grad_out = Problem::sequence(p.grad_out);
        back.checkpoints = checkpoints.data();
        back.du = Problem::sequence(du);
        back.ddelta = Problem::sequence(ddelta);
        back.dz = Problem::sequence(dz);
        back.dA = dA.data();
        back.dD = dD.data();
        back.ddelta_bias = dbias.data();
        back.dB = Problem::projection(dB, false);
        back.dC = Problem::projection(dC, false);
        cuda::selective_scan_backward(back, scratch.context());
      }
    }
  }
  emulation::reset_options();
}

}  // namespace selective_scan_cases
