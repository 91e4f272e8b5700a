# SPDX-License-Identifier: Apache-2.0
"""Every test starts from the same seed, thread count, ISA level and back end, and hypothesis has no deadline."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# Without a GPU Triton's kernels run in its interpreter, which must be known before anything imports triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import fgkernels
from fgkernels import _backend
from fgkernels.ops import _library

try:
    from fgkernels import _native
except ImportError:  # optional: the operators work without it
    _native = None

# pytest --hypothesis-profile long draws more.
for _profile, _examples in (("fgkernels", 60), ("long", 3000)):
    hypothesis.settings.register_profile(
        _profile, deadline=None, max_examples=_examples, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
hypothesis.settings.load_profile("fgkernels")


@dataclasses.dataclass(frozen=True)
class Implementation:
    """Something that computes the operators: a back end, the device it serves, and the CPU's ISA level."""

    name: str
    backend: str
    device: str = "cpu"
    isa: str | None = None

    @property
    def is_cpu_build(self) -> bool:
        """Whether it is the compiled CPU kernels: threads and ISA levels are theirs alone."""
        return self.backend == "cpu"

    @property
    def simulated(self) -> bool:
        """Whether GPU kernels run in an interpreter or emulator, hundreds of times slower than compiled ones."""
        return self.device == "cpu" and self.backend not in ("cpu", "reference")

    def refusal(self) -> str | None:
        """Why it cannot run here, None if it can."""
        return _backend._refusal(self.backend, self.device)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[Implementation]:
        """Calls are served by it and fresh tensors live on its device."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(fgkernels.backend(self.backend))
            if self.device != "cpu":
                torch.set_default_device(self.device)
                stack.callback(torch.set_default_device, None)
            if self.isa is not None:
                stack.callback(_native.set_isa, _native.isa())
                _native.set_isa(self.isa)
            yield self


_CPU = Implementation("cpu", "cpu")
_LEVELS = [Implementation(f"cpu-{level}", "cpu", isa=level) for level in (_native.supported_isas() if _native else [])]
_GPU_KERNELS = [Implementation("cuda-emulated", "cuda-emulated"), Implementation("triton", "triton")]
if torch.cuda.is_available():
    _GPU_KERNELS += [Implementation("cuda", "cuda", "cuda"), Implementation("triton-cuda", "triton", "cuda")]
_REFERENCE = Implementation("reference", "reference")

#: Fixture -> what it goes through.
_IMPLEMENTATIONS = {
    "implementation": [*(_LEVELS or [_CPU]), *_GPU_KERNELS],  # what kernels compute
    "operators": [_CPU, *_GPU_KERNELS],  # what doesn't depend on the CPU's ISA level
    "served": [_REFERENCE, _CPU, *_GPU_KERNELS],  # what the reference must do too
    "cpu_implementation": _LEVELS or [_CPU],  # what only the CPU build has, such as threads
    "backend": [_CPU, _REFERENCE],  # layers above the operators, for which one set of kernels will do
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parameters of the fixtures above; thread counts vary with the CPU build alone, as the others use no threads."""
    for fixture in _IMPLEMENTATIONS.keys() & set(metafunc.fixturenames):
        choices = _IMPLEMENTATIONS[fixture]
        if "threads" not in metafunc.fixturenames:
            metafunc.parametrize(fixture, choices, ids=[choice.name for choice in choices], indirect=True)
            continue
        pairs = [(choice, count) for choice in choices for count in ((1, 2) if choice.is_cpu_build else (1,))]
        ids = [f"{choice.name}-{count}thread{'s' * (count > 1)}" for choice, count in pairs]
        metafunc.parametrize([fixture, "threads"], pairs, ids=ids, indirect=True)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    random.seed(0)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # In this mode torch fills every fresh tensor with NaN (integers: their maximum): an element that a kernel leaves
    # unwritten fails its test.
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


def _use(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Each implementation, one after the other; one that cannot run here is skipped and says why."""
    reason = request.param.refusal()
    if reason is not None:
        pytest.skip(f"{request.param.name}: {reason}")
    with request.param.in_use():
        yield request.param


implementation = pytest.fixture(_use, name="implementation")
cpu_implementation = pytest.fixture(_use, name="cpu_implementation")
operators = pytest.fixture(_use, name="operators")
served = pytest.fixture(_use, name="served")


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both back ends that serve CPU tensors by default."""
    for used in _use(request):
        yield used.backend


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> int:
    torch.set_num_threads(request.param)
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `compiled` need the compiled library; they say why where it is absent."""
    if _library.LOADED:
        return
    for item in items:
        if item.get_closest_marker("compiled"):
            item.add_marker(pytest.mark.skip(reason=str(_library.ERROR)))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compiled: exercises the compiled operators, not the reference")


def pytest_report_header() -> list[str]:
    """Which implementations take part, so that a missing one is seen even where its skips are not printed."""
    lines = []
    for one in _IMPLEMENTATIONS["implementation"]:
        reason = one.refusal()
        lines.append(f"implementation {one.name}: {'takes part' if reason is None else f'not here, {reason}'}")
    if not torch.cuda.is_available():
        lines.append("implementations cuda, triton-cuda: not here, torch.cuda.is_available() is False")
    return lines
