#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# arm.sh BIN: cross-compiles the torch-free kernels and their tests for 64-bit Arm and runs them under qemu.
set -euo pipefail
bin=$(cd "$1" && pwd)
for program in aarch64-linux-gnu-g++ qemu-aarch64-static; do
  command -v "$program" >/dev/null || {
    echo "$program not found; on Debian or Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user-static" >&2
    exit 1
  }
done
"$bin/cmake" -S . -B build/arm -G Ninja -DCMAKE_MAKE_PROGRAM="$bin/ninja" -DFGK_BUILD_OPS=OFF -DFGK_BUILD_PYTHON=OFF \
  -DFGK_BUILD_TESTS=ON -DCMAKE_TOOLCHAIN_FILE="$PWD/cmake/aarch64-linux.cmake"
"$bin/cmake" --build build/arm --parallel "${MAX_JOBS:-$(nproc)}"
"$bin/ctest" --test-dir build/arm --output-on-failure --parallel 2
