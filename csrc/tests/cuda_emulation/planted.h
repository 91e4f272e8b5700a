// SPDX-License-Identifier: Apache-2.0
// Frame of the tests with planted bugs: a kernel with a bug must end in the right fault at the right line in every
// order, and its corrected twin must run.
#pragma once

#include <algorithm>
#include <bitset>
#include <initializer_list>
#include <string>
#include <vector>

#include "check.h"
#include "device_test.h"
#include "kernels/cuda/device.cuh"

namespace planted {

namespace dev = fgk::dev;
using dev::gptr;
using dev::sptr;
using fgk::emulation::Fault;
using fgk::emulation::FaultKind;

inline std::bitset<4096>& suspects() {
  static std::bitset<4096> lines;
  return lines;
}

// In a kernel: `HERE, access;` on the lines where the fault may be reported.
#define HERE planted::suspects().set(__LINE__)

constexpr int kThreads = 64;
constexpr int kBlocks = 2;
constexpr int kElements = 256;

using Kernel = void (*)(gptr<const float>, gptr<float>);

// Two blocks of two warps; `in` counts up, `out` has two elements per thread, shared memory has 4 KiB.
inline void run(Kernel kernel) {
  std::vector<float> in(kElements);
  for (int i = 0; i < kElements; ++i) in[i] = static_cast<float>(i);
  std::vector<float> out(kElements);
  dev::Buffers buffers;
  dev::launch("planted", kernel, {kBlocks, kThreads, 4096}, nullptr, buffers.in(in.data(), kElements, "in"),
              buffers.out(out.data(), kElements, "out"));
}

// run_bug() must throw a fault of one of `kinds` at a line marked HERE of `file`.
template <class Run>
void expect_fault(std::initializer_list<FaultKind> kinds, const char* file, int line, const Run& run_bug) {
  device_test::in_every_order([&] {
    suspects().reset();
    try {
      run_bug();
      check::fail(file, line) << "the planted bug was not caught\n";
    } catch (const Fault& fault) {
      if (std::find(kinds.begin(), kinds.end(), fault.kind) == kinds.end() || fault.kernel != "planted" ||
          fault.file != file || !suspects().test(static_cast<size_t>(fault.line)) || fault.block < 0 ||
          fault.block >= kBlocks || fault.thread < 0 || fault.thread >= kThreads ||
          std::string(fault.what()).find("repeat with FGKERNELS_EMULATION_ORDER=") == std::string::npos) {
        check::fail(file, line) << "another fault was expected than: " << fault.what() << "\n";
      }
    }
  });
}

inline void expect(std::initializer_list<FaultKind> kinds, const char* file, int line, Kernel bug, Kernel corrected) {
  expect_fault(kinds, file, line, [&] { run(bug); });
  device_test::in_every_order([&] { run(corrected); });
}

}  // namespace planted

// kernel<true> has the bug, kernel<false> is the corrected twin; the kinds of fault that may be found come last.
#define PLANTED(kernel, ...) \
  TEST(kernel##_is_caught) { planted::expect({__VA_ARGS__}, __FILE__, __LINE__, kernel<true>, kernel<false>); }
