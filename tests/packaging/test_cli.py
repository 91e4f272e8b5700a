# SPDX-License-Identifier: Apache-2.0
"""The command line: dispatch and ``fgkernels info``."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import pytest

import fgkernels
from fgkernels import _backend, cli
from fgkernels.ops import _library


def test_info_states_versions_library_and_who_serves_each_operator(capsys):
    import torch

    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"fgkernels +{re.escape(fgkernels.__version__)}\n", out)
    assert torch.__version__ in out
    assert hashlib.sha256(_library.PATH.read_bytes()).hexdigest() in out
    for op in ("maxsim", "late_interaction", "maxsim_varlen"):
        assert re.search(rf"^  {op} +cpu +cpu", out, re.MULTILINE)
        assert re.search(rf"^  {op} +cuda +(reference|triton|cuda) ", out, re.MULTILINE)
    for row in _backend.describe():
        for name, reason in row.refused.items():
            assert re.search(rf"^  {row.device} +{name} +{re.escape(reason)}$", out, re.MULTILINE)


def test_info_gives_the_reason_of_a_chosen_back_end_that_cannot_serve(capsys, monkeypatch):
    monkeypatch.setattr(_backend, "_forced", "cuda")
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  maxsim +cpu +none +cpu, .*reference$", out, re.MULTILINE)
    assert out.count("cpu   cuda           it serves cuda tensors only, and these are on cpu") == 1


def test_help_lists_every_command(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in ("info", "demo", "bench"))


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == fgkernels.__version__


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["info", "nonsense"]])
def test_unknown_words_exit_with_status_2_and_the_usage(capsys, arguments):
    assert cli.main(arguments) == 2
    assert "usage: fgkernels" in capsys.readouterr().err


def test_commands_hand_their_arguments_on(monkeypatch):
    received = []
    module = type(sys)("fgkernels.bench")
    module.main = lambda argv: received.append(argv) or 3
    monkeypatch.setitem(sys.modules, "fgkernels.bench", module)
    assert cli.main(["bench", "--quick", "x"]) == 3
    assert received == [["--quick", "x"]]


def test_a_missing_package_names_the_extra_to_install(monkeypatch, capsys):
    module = type(sys)("fgkernels.demo")

    def missing(argv):
        raise ModuleNotFoundError("No module named 'mlxtend'", name="mlxtend")

    module.main = missing
    monkeypatch.setitem(sys.modules, "fgkernels.demo", module)
    assert cli.main(["demo"]) == 1
    assert "mlxtend" in (err := capsys.readouterr().err) and "fgkernels[demo]" in err


def test_python_dash_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "fgkernels", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fgkernels.__version__
