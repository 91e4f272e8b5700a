#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# sanitize.sh BIN: builds the torch-free C++ tests with sanitizers and runs them, with the cmake and ninja in BIN.
set -euo pipefail
bin=$(cd "$1" && pwd)
export ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1

# TSan of older compilers cannot live with the high-entropy address layout of newer kernels.
fixed_layout=()
setarch "$(uname -m)" -R true 2>/dev/null && fixed_layout=(setarch "$(uname -m)" -R)

for sanitizers in address,undefined thread; do
  build=build/sanitize-${sanitizers%%,*}
  "$bin/cmake" -S . -B "$build" -G Ninja -DCMAKE_MAKE_PROGRAM="$bin/ninja" -DFGK_BUILD_OPS=OFF -DFGK_BUILD_PYTHON=OFF \
    -DFGK_BUILD_TESTS=ON -DFGK_SANITIZE="$sanitizers"
  "$bin/cmake" --build "$build" --parallel "${MAX_JOBS:-$(nproc)}"
  "${fixed_layout[@]}" "$bin/ctest" --test-dir "$build" --output-on-failure --parallel 2
done
