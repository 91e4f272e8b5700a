# SPDX-License-Identifier: Apache-2.0
"""The command ``fgkernels``: facts about this installation, the demo and the benchmarks."""

from __future__ import annotations

import hashlib
import importlib
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ._version import __version__

USAGE = """\
usage: fgkernels COMMAND [OPTION ...]

  info     versions, CPU features, instruction-set levels, and which back end serves each operator and why
  demo     train, compare and show two small image-text models on handwritten digits
  bench    check, then time the operators against PyTorch and the limits of this machine

fgkernels COMMAND --help lists a command's options."""

#: Command -> module with main(argv), and the extra whose packages it may need.
_MODULES = {"demo": ("fgkernels.demo", "demo"), "bench": ("fgkernels.bench", "demo")}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command == "info":
        return _info(arguments)
    if command in _MODULES:
        return _run_module(command, arguments)
    print(f"fgkernels: unknown command {command!r}\n\n{USAGE}", file=sys.stderr)
    return 2


def _run_module(command: str, arguments: list[str]) -> int:
    name, extra = _MODULES[command]
    try:
        run: Callable[[list[str]], int | None] = importlib.import_module(name).main
        return run(arguments) or 0
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "fgkernels":
            raise
        print(f"fgkernels {command} needs {error.name}: pip install 'fgkernels[{extra}]'", file=sys.stderr)
        return 1


def _info(arguments: list[str]) -> int:
    if arguments:
        print("usage: fgkernels info", file=sys.stderr)
        return 0 if arguments[0] in ("-h", "--help") else 2
    for title, rows in _facts():
        print(title)
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            print(f"  {name:<{width}}  {value}")
        print()
    return 0


def _facts() -> Iterable[tuple[str, list[tuple[str, str]]]]:
    import torch

    from . import _backend
    from .ops import _library

    yield (
        "versions",
        [
            ("fgkernels", __version__),
            ("torch", f"{torch.__version__} (CUDA: {torch.version.cuda or 'no'}, HIP: {torch.version.hip or 'no'})"),
            ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
            ("platform", platform.platform()),
            ("threads", str(torch.get_num_threads())),
        ],
    )
    yield "library", _library_facts(_library.PATH, _library.ERROR)
    yield "CUDA library", _library_facts(_library.CUDA_PATH, _library.CUDA_ERROR)
    yield "processor", _processor_facts()
    rows = _backend.describe()
    yield (
        "operators: device, back end that serves it, and those that fgkernels.backend could choose instead",
        [(row.op, f"{row.device:<6} {row.backend:<14} {', '.join(row.on_request) or '-'}") for row in rows],
    )
    # The reasons hardly differ between operators: each is printed once.
    refusals = {(row.device, name, reason) for row in rows for name, reason in row.refused.items()}
    yield (
        "back ends that cannot serve a device here, and why",
        [(device, f"{name:<14} {reason}") for device, name, reason in sorted(refusals)],
    )


def _library_facts(path: Path, error: str | None) -> list[tuple[str, str]]:
    rows = [("loaded", "yes" if error is None else f"no: {error}")]
    if path.is_file():
        rows += [("path", str(path)), ("sha256", hashlib.sha256(path.read_bytes()).hexdigest())]
    return rows


def _processor_facts() -> list[tuple[str, str]]:
    try:
        from . import _native
    except ImportError as error:
        return [("fgkernels._native", f"not available ({error}); operators work without it, these facts do not")]
    try:
        level = _native.isa()
    except RuntimeError as error:
        level = f"none: {error}"
    build = _native.build_info()
    return [
        ("features", ", ".join(name for name, present in _native.cpu_features().items() if present) or "none"),
        ("level in use", level),
        ("levels that run here", ", ".join(_native.supported_isas())),
        ("levels compiled in", ", ".join(_native.isas())),
        ("compiler", build["compiler"]),
        ("runs with torch from", _torch_version(build["torch_target_version"])),
    ]


def _torch_version(target: str) -> str:
    """ "0x020a000000000000", as the stable ABI encodes versions, is 2.10."""
    number = int(target, 16)
    return f"{number >> 56}.{number >> 48 & 0xFF}"
