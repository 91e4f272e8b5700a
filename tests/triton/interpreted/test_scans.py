# SPDX-License-Identifier: Apache-2.0
"""What the operators' tests cannot see of the scans and the convolution: a GPU's blocks, scans and addresses."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch

import fgkernels.triton
from fgkernels.ops import _library

from . import scans

CALLS = {
    "scan": scans.selective_scan,
    "one step": lambda: scans.selective_scan(length=1, states=1),
    "many states": lambda: scans.selective_scan(length=20, states=70, channels=6),
    "channels of 20": lambda: scans.selective_scan(length=130, states=2, channels=40),
    "map": scans.selective_scan_2d,
    "ordered": lambda: scans.selective_scan_2d(ordered=True),
    "convolution": scans.causal_conv1d,
    "channel-last convolution": lambda: scans.causal_conv1d(channel_last=True),
    "long convolution": lambda: scans.causal_conv1d(length=300, channels=5),
    "chunks": scans.mamba_chunk_scan,
    "chunks of bfloat16": lambda: scans.mamba_chunk_scan(length=70, dtype=torch.bfloat16),
}


@pytest.fixture
def kernels(interpreter: None) -> dict:
    from fgkernels.triton import causal_conv1d, mamba_chunk_scan, selective_scan, selective_scan_2d

    families = (causal_conv1d, mamba_chunk_scan, selective_scan, selective_scan_2d)
    return {name: function for family in families for name, function in family.KERNELS.items()}


@pytest.fixture
def gpu_plan(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the sizes that a GPU gets."""
    from fgkernels.triton import _mamba_chunk_scan_calls, _selective_scan_plan, _state_update, causal_conv1d, device

    for module in (_mamba_chunk_scan_calls, _selective_scan_plan, _state_update, causal_conv1d):
        monkeypatch.setattr(module, "INTERPRETED", False)

    monkeypatch.setattr(_mamba_chunk_scan_calls, "multiprocessors", lambda device: 132)  # heads in two shares

    def first_configuration(kernel: device.Kernel, device, blocks, **arguments) -> None:
        sizes = kernel.configs[0].kwargs
        # The kernels are told that the interpreter runs them: its sums and scans of whole arrays are tested elsewhere.
        flags = {"INTERPRETER": True} if "INTERPRETER" in arguments else {}
        kernel.function[(blocks({**arguments, **sizes}),)](**{**arguments, **flags}, **sizes)

    monkeypatch.setattr(device.Kernel, "launch", first_configuration)


def test_one_function_per_operator(kernels: dict) -> None:
    """With the schema's arguments in the schema's order."""
    if not _library.LOADED:
        pytest.skip(str(_library.ERROR))
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fgkernels::")}
    others = ("maxsim", "late_interaction")
    assert set(kernels) == {name.split(".")[0] for name in names if not name.startswith(others)}
    for name, function in kernels.items():
        schema = _library.op(name)._schema
        assert list(inspect.signature(function).parameters) == [argument.name for argument in schema.arguments]


@pytest.mark.parametrize("name", CALLS)
def test_gpu_blocks(kernels: dict, gpu_plan: None, name: str) -> None:
    scans.check(kernels, CALLS[name]())


@pytest.mark.parametrize("name", ["scan", "map", "ordered", "convolution", "chunks"])
def test_nothing_outside_the_tensors(kernels: dict, checked_memory, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    scans.check(kernels, CALLS[name]())


def test_tables_that_are_no_permutations(kernels: dict, checked_memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where nobody reads them on the host: whatever they hold, nothing outside the tensors is touched."""
    from fgkernels.triton import selective_scan_2d

    monkeypatch.setattr(selective_scan_2d, "checked_on_cpu", lambda *_: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    x, y, table = torch.randn(1, 2, 5), torch.randn(1, 3, 2, 5), torch.tensor([[0, 1, 2, 3, 4], [5] * 5, [-1] * 5])
    table = table.to(torch.int32)
    kernels["cross_scan"](x, table)
    kernels["cross_merge"](y, table)
    A, B = scans.decays(3, 2, 2), torch.randn(1, 3, 2, 5)
    for ordered in (False, True):
        arguments = (y if ordered else x, y, A, B, B, None, None, None, table)
        _, checkpoints = kernels["selective_scan_2d"](*arguments, True, ordered)
        kernels["selective_scan_2d_backward"](x, *arguments, checkpoints, True, ordered)


def test_entries_that_do_not_exist(kernels: dict, checked_memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: rows of a state that aren't there are neither read nor written, and the others are updated."""
    from fgkernels.triton import causal_conv1d, selective_scan

    for module in (causal_conv1d, selective_scan):
        monkeypatch.setattr(module, "checked_on_cpu", lambda *_: None)
    entries = torch.tensor([3, 1, -1], dtype=torch.int32)
    x, A = torch.randn(3, 4), scans.decays(4, 2)
    state, B = torch.randn(3, 4, 2), torch.randn(3, 2)
    before = state.clone()
    kernels["selective_state_update"](state, x, x, A, B, B, None, None, None, entries, True)
    conv_state, weight = torch.randn(3, 4, 5), torch.randn(4, 4)
    conv_before = conv_state.clone()
    kernels["causal_conv1d_update"](x[..., None], conv_state, weight, None, None, entries, True)
    for value, old in ((state, before), (conv_state, conv_before)):
        assert [torch.equal(value[i], old[i]) for i in range(3)] == [True, False, True]


def test_little_scratch_memory(kernels: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partial sums of some chunks and batch entries at a time change nothing."""
    from fgkernels.triton import _selective_scan_calls

    for call in (scans.selective_scan(length=200), scans.selective_scan_2d()):
        whole = scans.results(kernels, call)
        with monkeypatch.context() as patch:
            patch.setattr(_selective_scan_calls, "parts", lambda batch, chunks, *_: (1, 1 if chunks > 2 else chunks))
            parts = scans.check(kernels, call)
        assert all(torch.equal(one, two) for one, two in zip(whole[:3], parts[:3], strict=True))


def test_parts_stay_within_the_budget(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from fgkernels.triton import _selective_scan_plan as plan

    monkeypatch.setattr(plan, "SCRATCH_BYTES", 1000)
    assert plan.parts(8, 4, 10, 0, True) == (8, 4)
    assert plan.parts(8, 4, 100, 0, True) == (2, 4)
    assert plan.parts(8, 4, 100, 600, True) == (3, 4)
    assert plan.parts(8, 40, 100, 0, True) == (1, 10)
    assert plan.parts(8, 40, 100, 0, False) == (1, 40)
    assert plan.parts(8, 40, 10**6, 0, True) == (1, 1)


def launched(*arrays: np.ndarray, function, outputs: int) -> list[np.ndarray]:
    """Runs a device function of (rows, columns) blocks in a kernel of its own."""
    tensors = [torch.from_numpy(array) for array in arrays]
    found = [torch.empty_like(tensors[0]) for _ in range(outputs)]
    function(*tensors, *found)
    return [value.numpy() for value in found]


def test_scans_of_the_gpu(kernels: dict) -> None:
    """The interpreter has whole-array forms of the scans; here they meet the GPU's, element by element."""
    from . import device_functions

    generator = np.random.default_rng(0)
    decay, increment = generator.uniform(0.2, 1.0, (3, 16)), generator.standard_normal((3, 16))
    for reverse in (False, True):
        forms = [
            launched(decay, increment, function=device_functions.scanner(reverse, form), outputs=2)
            for form in (True, False)
        ]
        state = np.zeros(3)
        for place in range(16)[:: -1 if reverse else 1]:
            state = decay[:, place] * state + increment[:, place]
            assert np.allclose(forms[0][1][:, place], state, rtol=1e-13)
        for whole, single in zip(*forms, strict=True):
            assert np.allclose(whole, single, rtol=1e-13)


def test_running_sums_of_the_gpu(kernels: dict) -> None:
    """In two parts, which hold what one rounds off: neighbouring sums differ by the number added."""
    from . import device_functions

    values = (-80 * np.random.default_rng(0).uniform(0.01, 1.0, (3, 64))).astype(np.float32)
    exact = values.astype(np.float64).cumsum(1)
    for form in (True, False):
        high, low = launched(values, function=device_functions.summer(form), outputs=2)
        assert np.abs(high.astype(np.float64) + low - exact).max() <= 2**-40 * np.abs(exact).max()
        difference = (high[:, 1:] - high[:, :-1]) + (low[:, 1:] - low[:, :-1])
        assert np.allclose(difference, values[:, 1:], rtol=2e-7)


@pytest.mark.parametrize("left", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("right", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_in_pieces(kernels: dict, left: torch.dtype, right: torch.dtype) -> None:
    """What a GPU's matrix units multiply in 16-bit pieces has float32's precision."""
    from . import device_functions

    a, b = (torch.randn(16, 16).to(dtype) for dtype in (left, right))
    out = torch.empty(16, 16)
    device_functions.multiply(a, b, out)
    exact = a.double() @ b.double()
    bound = (a.double().abs() @ b.double().abs()).max().item()
    assert (out.double() - exact).abs().max().item() <= 8 * torch.finfo(torch.float32).eps * bound


def test_tails(kernels: dict) -> None:
    """softplus to 1e-6 of its value far down, where 1 + exp(x) is 1."""
    from . import device_functions

    x = torch.cat([torch.linspace(-85, 25, 4096), torch.tensor([20.0, 20.000002, 0.0, -0.0])])
    value, gradient = torch.empty_like(x), torch.empty_like(x)
    device_functions.soften(x, value, gradient)
    wide = x.double()
    exact = torch.where(wide > 20, wide, torch.log1p(torch.exp(wide)))
    assert ((value.double() - exact) / exact).abs().max() <= 1e-6
    slope = torch.where(wide > 20, 1.0, torch.sigmoid(wide))
    assert ((gradient.double() - slope) / slope).abs().max() <= 1e-6
    assert math.isfinite(value.sum().item())


def test_interpreted_rounding(kernels: dict) -> None:
    """To the nearest bfloat16 and to even, as torch and a GPU round."""
    from . import device_functions

    values = torch.cat(
        [torch.randn(1000), torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 3.4e38, 1.00390625])]
    )
    out = torch.empty(values.shape, dtype=torch.bfloat16)
    device_functions.round_to(values, out)
    expected = values.to(torch.bfloat16)
    assert torch.equal(out.nan_to_num(123), expected.nan_to_num(123)) and out[-3].isnan()
    assert fgkernels.triton.interpreted()
