#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lint.sh BIN: formatting and static checks, with the tools in the folder BIN.
set -euo pipefail
bin=$1
"$bin/ruff" check .
"$bin/ruff" format --check .
find csrc python \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) -print0 | xargs -0 "$bin/clang-format" --dry-run -Werror
if grep -rnE '#[[:space:]]*include[[:space:]]*[<"](torch|ATen|c10)/' csrc/kernels; then
  echo "csrc/kernels must not include torch headers" >&2
  exit 1
fi
missing=$(find csrc python cmake tools fgkernels tests benchmarks examples -type f \
  \( -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cmake' -o -name '*.sh' \) -print0 |
  xargs -0 grep -L 'SPDX-License-Identifier: Apache-2.0' || true)
if [ -n "$missing" ]; then
  printf 'no licence line in:\n%s\n' "$missing" >&2
  exit 1
fi
echo "lint: clean"
