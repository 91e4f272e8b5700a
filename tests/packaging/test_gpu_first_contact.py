# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu_first_contact.sh where there is no GPU: with nothing, and with stand-ins for all that it calls."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks/gpu_first_contact.sh"

# Notes its arguments; the check for missing pieces finds none, the GPU is an H100, and the tests fail.
PYTHON = """#!/bin/sh
case "$*" in
  -) cat >/dev/null ;;
  *get_device_capability*) echo 9.0 ;;
  -c*) ;;
  *) echo "python $* backend=${FGKERNELS_BACKEND:-} cuda=${FORCE_CUDA:-} arch=$TORCH_CUDA_ARCH_LIST" >>"$CALLS" ;;
esac
case "$*" in *"-m pytest "*) echo "1 failed"; exit 1 ;; esac
"""
PROGRAM = '#!/bin/sh\necho "$(basename "$0") $*" >>"$CALLS"\n'
# Where the compiler is asked for a program, one appears that does nothing.
NVCC = PROGRAM + 'for last; do :; done\nprintf "#!/bin/sh\\n" >"$last"\nchmod +x "$last"\n'


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder), "CALLS": str(folder / "calls"), **environment}
    return subprocess.run(["bash", str(SCRIPT), *arguments], env=variables, capture_output=True, text=True)


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    for name, text in {"python": PYTHON, "nvcc": NVCC, "nvidia-smi": PROGRAM, "compute-sanitizer": PROGRAM}.items():
        program = tmp_path / name
        program.write_text(text)
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
    return tmp_path


def test_what_is_missing_is_listed_and_nothing_is_started(tmp_path):
    done = run(tmp_path, str(tmp_path / "out"), PYTHON=sys.executable)
    assert done.returncode == 2
    assert "nvidia-smi: no NVIDIA driver here" in done.stderr
    assert "torch" in done.stderr and ("is no CUDA build" in done.stderr or "sees no GPU" in done.stderr)
    assert not (tmp_path / "out").exists()


def test_a_failing_step_stops_none_of_the_others(stand_ins):
    out = stand_ins / "out"
    done = run(stand_ins, str(out), PYTHON="python")
    assert done.returncode == 1, done.stderr
    summary = (out / "summary.txt").read_text()
    assert "FAILED   tests" in summary and "1 failed" in summary
    for name in ("build", "conformance", "small-calls", "bench", "bench-scans", "racecheck-calls", "bench-triton"):
        assert f"passed   {name} " in summary, summary
    calls = (stand_ins / "calls").read_text().splitlines()
    (build,) = [call for call in calls if "setup.py" in call]
    assert build.endswith("cuda=1 arch=9.0a")
    (conformance,) = [call for call in calls if call.startswith("nvcc ")]
    assert "-gencode=arch=compute_90a,code=sm_90a" in conformance and "test_device_conformance.cu" in conformance
    sanitized = [call for call in calls if call.startswith("compute-sanitizer ")]
    tools = {call.split("--tool ")[1].split()[0] for call in sanitized}
    assert tools == {"memcheck", "racecheck", "synccheck"} and len(sanitized) == 6
    benches = [call for call in calls if "fgkernels bench --device cuda" in call]
    assert ["backend=triton" in call for call in benches] == [False, False, True]


def test_what_does_not_fit_into_the_time_is_said(stand_ins):
    done = run(stand_ins, str(stand_ins / "out"), PYTHON="python", LIMIT="0")
    assert done.returncode == 1
    assert "SKIPPED  bench: no time left of 0 s" in done.stdout


def test_the_programs_that_it_names_are_there():
    text = SCRIPT.read_text()
    for path in (
        "csrc/tests/cuda/test_device_conformance.cu",
        "benchmarks/gpu_small_calls.py",
        "csrc/kernels/cpu/isa.cpp",
    ):
        assert path in text and (ROOT / path).is_file()
    from fgkernels.bench import registry

    words = text.split()
    named = {words[i + 1] for i, word in enumerate(words) if word == "--case"}
    assert named and named <= {case.name for _, case in registry.select(device="cuda")}


def test_the_small_calls_agree_with_the_reference():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/gpu_small_calls.py"), "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 44 and "WRONG" not in done.stdout
