# SPDX-License-Identifier: Apache-2.0
"""Every test starts from the same seed, thread count, ISA level and back end, and hypothesis has no deadline."""

from __future__ import annotations

import random
from collections.abc import Iterator

import hypothesis
import pytest
import torch

import fgkernels
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

ISA_LEVELS = _native.supported_isas() if _native is not None else []


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


@pytest.fixture(params=ISA_LEVELS or ["default"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each ISA level that this machine runs, one after the other."""
    if _native is None:
        yield request.param
        return
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request: pytest.FixtureRequest) -> int:
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both back ends that serve CPU tensors."""
    if request.param == "cpu" and not _library.LOADED:
        pytest.skip(str(_library.ERROR))
    with fgkernels.backend(request.param):
        yield request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `compiled` need the compiled library; they say why where it is absent."""
    if _library.LOADED:
        return
    for item in items:
        if item.get_closest_marker("compiled"):
            item.add_marker(pytest.mark.skip(reason=str(_library.ERROR)))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compiled: exercises the compiled operators, not the reference")
