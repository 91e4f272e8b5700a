#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# keep_output.sh COMPILER ... -o OBJECT ...: runs the compiler and keeps what it prints in OBJECT.log too.
set -uo pipefail
object=
for argument in "$@"; do
  [ "${previous:-}" = -o ] && object=$argument
  previous=$argument
done
[ -n "$object" ] || exec "$@"
"$@" >"$object.log" 2>&1
status=$?
# The report of ptxas is for tools/cuda_audit.py; only what else there is concerns the reader.
grep -vE '^ptxas info|^    [0-9]+ bytes (stack frame|gmem)' "$object.log" >&2
exit $status
