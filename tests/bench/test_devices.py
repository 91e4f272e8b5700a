# SPDX-License-Identifier: Apache-2.0
"""How a GPU is measured, on a stand-in for torch.cuda whose clock and allocator are made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fgkernels import bench
from fgkernels.bench import cli, devices, memory, registry, report, results, worker
from fgkernels.bench.runner import Settings, _sort_out

from .conftest import SETTINGS, make_document

MILLISECOND = 1.0


class FakeCuda:
    """torch.cuda as the benchmarks use it: ``work`` enqueues milliseconds, events read the stream's clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.allocated = self.peak = 0
        api = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                api.log.append("record")
                self.at = api.now

            def synchronize(self) -> None:
                api.log.append("wait")

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

        self.Event = Event

    def work(self, milliseconds: float) -> None:
        self.log.append("work")
        self.now += milliseconds

    def allocate(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated

    def memory_allocated(self) -> int:
        return self.allocated

    def max_memory_allocated(self) -> int:
        return self.peak

    def get_device_properties(self, device: str) -> SimpleNamespace:
        return SimpleNamespace(
            name="Example GPU",
            multi_processor_count=132,
            total_memory=80 << 30,
            major=9,
            minor=0,
            L2_cache_size=48 << 20,
        )


@pytest.fixture
def api() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def gpu(api: FakeCuda) -> devices.Cuda:
    return devices.Cuda(api, device="cpu", matrix_size=16, copy_bytes=1 << 12)


def test_time_is_that_between_events_on_an_idle_stream(gpu, api):
    api.work(7 * MILLISECOND)
    api.log.clear()
    assert gpu.time_calls(lambda: api.work(2 * MILLISECOND), 5) == pytest.approx(2e-3)
    assert api.log == ["synchronize", "record", *["work"] * 5, "record", "wait"]


def test_the_limits_count_multiply_adds_and_bytes_both_ways(gpu, api, monkeypatch):
    seen = []
    matmul = torch.matmul

    def timed_matmul(a, b, out):
        seen.append(a.dtype)
        api.work(3 * MILLISECOND)
        return matmul(a, b, out=out)

    monkeypatch.setattr(torch, "matmul", timed_matmul)
    for dtype, expected in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("int8", torch.float32)):
        seen.clear()
        compute, _ = gpu.probes(SimpleNamespace(dtype=dtype, probe=dtype), threads=1)
        assert compute() == pytest.approx(2 * 16**3 / 1e9 / 3e-3)
        assert set(seen) == {expected}
    monkeypatch.setattr(gpu, "time_calls", lambda call, repeats: (call(), 4e-3)[1])
    compute, traffic = gpu.probes(SimpleNamespace(dtype="float32", probe="exp_fma"), threads=1)
    assert compute is None
    assert traffic() == pytest.approx(2 * (1 << 12) / 1e9 / 4e-3)


def test_peak_memory_is_the_allocators_beyond_what_is_returned(gpu, api):
    api.allocate(1000)  # inputs

    def call():
        api.allocate(5000)
        api.allocate(-4500)
        return torch.zeros(100, dtype=torch.uint8)

    assert gpu.measure_peak(call) == memory.Peak(peak=5000, returned=100)


def test_inputs_move_and_leaves_stay_leaves(gpu):
    leaf = torch.ones(3, requires_grad=True)
    moved = gpu.place({"a": leaf, "mask": torch.ones(3).bool(), "count": 3})
    assert moved["a"].is_leaf and moved["a"].requires_grad and not moved["mask"].requires_grad
    assert moved["count"] == 3 and torch.equal(moved["a"], leaf)


def test_a_worker_on_the_gpu_times_with_its_clock_and_flushes_its_cache(monkeypatch, gpu, api):
    monkeypatch.setattr(devices, "find", {"cuda": gpu}.__getitem__)
    case = next(case for _, case in registry.select(case=["maxsim-small-cold"], device="cuda"))
    job = {"tiny": True, "device": "cuda", "names": ["fgkernels"], "threads": 1, "budget": 0, "rounds": 2}
    monkeypatch.setattr(gpu, "probes", lambda case, threads: (lambda: 3e5, lambda: 3e3))
    flushed = []
    monkeypatch.setattr(gpu, "flusher", lambda: lambda: flushed.append(1))
    monkeypatch.setattr(gpu, "time_calls", lambda call, repeats: (call(), 1e-3)[1])
    found = worker.time_case(case, {**job, "min_rounds": 2}, lambda text: None)
    assert found["timings"]["seconds"] == {"fgkernels": [1e-3, 1e-3]}
    assert len(flushed) == 2
    assert found["limits"]["fma"] == 3e5 and found["limits"]["kind"] == "memory"


def test_the_bar_of_the_gpu_has_a_case_that_the_cpu_does_not_run():
    shape = {"Na": 256, "n": 256, "Nb": 256, "m": 77, "D": 256}
    cases = {case.name: case for _, case in registry.select(device="cuda")}
    case = cases["filip-clip"]
    assert case.shape == shape and case.dtype == "bfloat16"
    assert {(bar.metric, bar.against, bar.target) for bar in case.bars if bar.device == "cuda"} == {
        ("limit", "fastest", 0.6),
        ("ratio", "eager", 5.0),
        ("ratio", "compiled", 3.0),
    }
    assert "filip-clip" not in {case.name for _, case in registry.select()}
    assert case.flops(shape) == 2 * 256**4 * 77


def test_bars_are_judged_on_their_own_device():
    document = make_document({"eager": 4.0, "compiled": 3.0})
    record = next(record for record in document["cases"] if record["name"] == "maxsim-fp32")
    case = next(case for _, case in registry.select(case=["maxsim-fp32"]))
    results.judge(record, case, SETTINGS)
    assert len(record["bars"]) == 2
    results.judge(record, case, Settings(threads=1, device="cuda"))
    assert record["bars"] == []


def test_packages_that_compute_on_the_cpu_are_left_out():
    case = next(case for _, case in registry.select(case=["maxsim-fp32"], device="cuda"))
    _, refused = _sort_out(case, Settings(threads=1, device="cuda"))
    assert refused["maxsim-cpu"] == "computes on cpu only"


def test_reports_name_the_gpu_and_who_served():
    document = make_document({"eager": 4.0})
    document["environment"] = {
        **document["environment"],
        "gpu": {"name": "Example GPU", "cuda": "13.0"},
        "backends": {"maxsim": "cuda"},
    }
    text = report.machine_text(document)
    assert text.startswith("Example GPU (CUDA 13.0), our ops on cuda, ") and "NOT BY A KERNEL" not in text.upper()
    document["environment"]["backends"] = {"maxsim": "reference"}
    assert "SERVED BY REFERENCE" in report.machine_text(document)


def test_a_device_that_is_not_there_is_an_error_at_once(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cli, "run", lambda *a: pytest.fail("a case was run"))
    with pytest.raises(SystemExit) as ending:
        bench.main(["--device", "cuda"])
    assert ending.value.code == 2 and "sees no CUDA device" in capsys.readouterr().err
    with pytest.raises(ValueError, match="device: expected one of cpu, cuda, got 'tpu'"):
        devices.find("tpu")
    # The list needs no device.
    assert bench.main(["--device", "cuda", "--list"]) == 0
    assert "filip-clip-train" in capsys.readouterr().out
