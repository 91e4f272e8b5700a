// SPDX-License-Identifier: Apache-2.0
// Each primitive of the device layer on a GPU, by the same tests that the emulator passes. A program of its own:
//   nvcc -std=c++17 -arch=native -DFGK_HAVE_BASELINE -I csrc -I csrc/tests -I csrc/tests/cuda_emulation
//     csrc/tests/cuda/test_device_conformance.cu csrc/kernels/cpu/isa.cpp -o test_device_conformance
// Exit code 77: there is no CUDA device.
#define FGK_CHECK_OWN_MAIN
#include "matrix_tests.h"
#include "mbarrier_tests.h"
#include "number_tests.h"
#include "primitive_tests.h"

int main() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess || devices == 0) {
    std::cout << "skipped: no CUDA device (" << cudaGetErrorString(status) << ")\n";
    return check::kSkipped;
  }
  return check::run();
}
