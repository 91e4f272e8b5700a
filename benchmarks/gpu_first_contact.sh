#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# gpu_first_contact.sh [OUT]: everything that this repository can only learn from an NVIDIA GPU, in under ten minutes:
# builds with FORCE_CUDA=1, then runs the conformance program of the device primitives, the GPU tests, compute-sanitizer
# and the benchmarks. A step that fails does not stop the next one; OUT (default: gpu-first-contact) keeps the log of
# each, and the summary comes last. Exit status: 0 all passed, 1 some step failed, 2 something is missing here.
#
# PYTHON names an interpreter with a CUDA build of torch >= 2.10, pytest, hypothesis, cmake, ninja, pybind11 (and Triton,
# which comes with torch). LIMIT: seconds for everything, 600 by default.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${1:-gpu-first-contact}
limit=${LIMIT:-600}
started=$SECONDS

# ---- what is missing

missing=()
needs() { # NAME HINT: a program on PATH
  command -v "$1" >/dev/null || missing+=("$1: $2")
}
needs nvidia-smi "no NVIDIA driver here"
[ -n "${CUDACXX:-}${CUDA_HOME:-}" ] || needs nvcc "install the CUDA toolkit, or set CUDACXX or CUDA_HOME"
needs g++ "a C++17 compiler is needed"
if command -v "$python" >/dev/null; then
  while IFS= read -r line; do missing+=("$line"); done < <("$python" - <<'PYTHON'
import importlib.util
import shutil

for name in ("torch", "numpy", "safetensors", "pytest", "hypothesis", "cmake", "ninja", "pybind11"):
    program = name in ("cmake", "ninja") and shutil.which(name)
    if importlib.util.find_spec(name) is None and not program:
        print(f"{name}: {'a CUDA build of torch is needed' if name == 'torch' else 'pip install ' + name}")
if importlib.util.find_spec("torch"):
    import torch

    if torch.version.cuda is None:
        print(f"torch {torch.__version__} is no CUDA build")
    elif not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU")
PYTHON
  )
else
  missing+=("$python: set PYTHON to an interpreter with a CUDA build of torch")
fi
if [ ${#missing[@]} -gt 0 ]; then
  echo "gpu_first_contact: cannot start, missing here:" >&2
  printf '  %s\n' "${missing[@]}" >&2
  exit 2
fi

# ---- steps

mkdir -p "$out"
summary=()
failed=0
# step NAME SECONDS COMMAND...: at most that long, and no longer than what is left of the whole.
step() {
  local name=$1 seconds=$2 left=$((limit - SECONDS + started)) begun=$SECONDS status
  shift 2
  if [ "$left" -le 5 ]; then
    summary+=("SKIPPED  $name: no time left of $limit s")
    failed=1
    return
  fi
  [ "$seconds" -lt "$left" ] || seconds=$left
  echo "== $name"
  timeout --kill-after=10 "$seconds" "$@" >"$out/$name.log" 2>&1
  status=$?
  if [ $status -eq 0 ]; then
    summary+=("passed   $name ($((SECONDS - begun)) s)")
  else
    failed=1
    [ $status -ne 124 ] || echo "stopped after $seconds s" >>"$out/$name.log"
    summary+=("FAILED   $name ($((SECONDS - begun)) s, status $status): $(tail -n 1 "$out/$name.log")")
    tail -n 15 "$out/$name.log"
  fi
}
skip() { summary+=("skipped  $1: $2"); }

# The first GPU only, and machine code for it alone: a third of the time to compile.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
case $capability in 9.0) capability=9.0a ;; esac
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability} FORCE_CUDA=1
nvcc=${CUDACXX:-$([ -z "${CUDA_HOME:-}" ] || echo "$CUDA_HOME/bin/nvcc")}
nvcc=${nvcc:-nvcc}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

step machine 30 nvidia-smi
step build 240 "$python" setup.py --quiet build_ext --inplace
step info 60 "$python" -m fgkernels info

conformance=$out/test_device_conformance
compute=${capability//[!0-9a]/}
step conformance-build 120 "$nvcc" -std=c++17 -O2 -lineinfo "-gencode=arch=compute_$compute,code=sm_$compute" \
  -DFGK_HAVE_BASELINE -I csrc -I csrc/tests -I csrc/tests/cuda_emulation \
  csrc/tests/cuda/test_device_conformance.cu csrc/kernels/cpu/isa.cpp -o "$conformance"
step conformance 60 "$conformance"
step small-calls 60 "$python" benchmarks/gpu_small_calls.py

parallel=()
"$python" -c 'import xdist' 2>/dev/null && parallel=(-n 4)
# Both implementations with device="cuda": the ids end in cuda and triton-cuda.
step tests 240 "$python" -m pytest -q "${parallel[@]}" -p no:cacheprovider tests/ops -k "cuda and not emulated"

step bench 180 "$python" -m fgkernels bench --device cuda --budget 3 --out "$out/bench" \
  --case filip-clip --case filip-clip-train --case maxsim-collection --case maxsim-int8 --case maxsim-ragged
# Without torch.compile, which takes longer here than everything else together.
step bench-scans 120 "$python" -m fgkernels bench --device cuda --budget 2 --no-compile --out "$out/bench-scans" \
  --case scan-gpu --case scan-gpu-train --case scan2d --case scan2d-train --case conv-train --case chunk-train
sanitizer=$(command -v compute-sanitizer || echo "$(dirname "$(command -v "$nvcc")")/compute-sanitizer")
if [ -x "$sanitizer" ]; then
  # Without torch's pool every tensor has bounds of its own.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for check in memcheck racecheck synccheck; do
    step "$check-conformance" 60 "$sanitizer" --tool $check --error-exitcode 9 "$conformance"
    step "$check-calls" 90 "$sanitizer" --tool $check --error-exitcode 9 "$python" benchmarks/gpu_small_calls.py
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  skip sanitizer "no compute-sanitizer here; it is part of the CUDA toolkit"
fi

if "$python" -c 'import triton' 2>/dev/null; then
  FGKERNELS_BACKEND=triton step bench-triton 90 "$python" -m fgkernels bench --device cuda --budget 3 --no-compile \
    --out "$out/bench-triton" --case filip-clip --case filip-clip-train --case scan-gpu --case scan2d
else
  skip bench-triton "no Triton here"
fi

# ---- summary

{
  echo "gpu_first_contact: $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1), compute capability $capability"
  printf '  %s\n' "${summary[@]}"
  echo "  $((SECONDS - started)) s in all; logs and results in $out"
} | tee "$out/summary.txt"
for name in bench bench-scans; do
  [ ! -f "$out/$name/results.md" ] || cat "$out/$name/results.md"
done
exit $failed
