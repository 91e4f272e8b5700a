// SPDX-License-Identifier: Apache-2.0
// The device layer's primitives in the emulator; csrc/tests/cuda/test_device_conformance.cu is the same on a GPU.
#include "matrix_tests.h"
#include "mbarrier_tests.h"
#include "number_tests.h"
#include "primitive_tests.h"
