#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# abi.sh PYTHON [OTHER]: tests the library that PYTHON's torch built, unchanged, with the torch of OTHER. Without OTHER a
# second environment with torch 2.14.1 is made.
set -euo pipefail
python=$1 other=${2:-}
library=fgkernels/libfgkernels.so
if [ -z "$other" ]; then
  bash tools/make_venv.sh "$python" .venv-abi
  other=.venv-abi/bin/python
  if [ requirements-dev.lock -nt .venv-abi/.dependencies ]; then
    sed '/^torch==/d' requirements-dev.lock >build/abi-constraints.txt
    "$other" -m pip install --constraint build/abi-constraints.txt torch==2.14.1 numpy safetensors pytest hypothesis
    touch .venv-abi/.dependencies
  fi
fi

sum=$(sha256sum "$library")
"$other" - "$("$python" -c 'import torch; print(torch.__version__)')" <<'EOF'
import sys

import torch

from fgkernels.ops import _library

assert torch.__version__ != sys.argv[1], f"the second torch is {sys.argv[1]} as well: this would test nothing"
assert _library.LOADED, _library.ERROR
print(f"{_library.PATH.name}, built with torch {sys.argv[1]}, is loaded in torch {torch.__version__}")
EOF
"$other" -m pytest -p no:cacheprovider tests/ops
[ "$sum" = "$(sha256sum "$library")" ] || { echo "the library was rebuilt meanwhile" >&2; exit 1; }
