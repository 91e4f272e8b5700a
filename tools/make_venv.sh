#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# make_venv.sh PYTHON FOLDER: creates a virtual environment with pip unless there is one.
set -euo pipefail
python=$1 folder=$2
[ -x "$folder/bin/pip" ] && exit 0
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "Python 3.10 or newer is needed, and $python is $("$python" -V 2>&1); name another one: make PYTHON=python3.12" >&2
  exit 1
}
# Debian's python3 comes without ensurepip unless python3-venv is installed; its pip can fill the environment instead.
"$python" -m venv "$folder" 2>/dev/null || {
  "$python" -m venv --clear --without-pip "$folder"
  "$python" -m pip --python "$folder/bin/python" install pip
}
