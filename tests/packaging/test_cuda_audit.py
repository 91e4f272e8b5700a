# SPDX-License-Identifier: Apache-2.0
"""The audit of the CUDA kernels: what it reads, its occupancy arithmetic, and what it calls wrong."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import cuda_audit  # noqa: E402
from cuda_toolkit import find_nvcc  # noqa: E402

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1av' for 'sm_80'
ptxas info    : Function properties for _Z1av
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 512 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1av' for 'sm_90a'
ptxas info    : Function properties for _Z1av
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 38 registers, used 1 barriers
"""

SASS = """\
Fatbin elf code:
\tcode for sm_90a
\t\tFunction : _Z1av
        /*0000*/                   LDC R1, c[0x0][0x28] ;                       /* 0x00000a00ff017b82 */
        /*0010*/                   LDGSTS.E.BYPASS.128.ZFILL [R3], desc[UR4][R6.64], P0 ;   /* 0x00 */
        /*0020*/              @!P1 LDG.E.128.CONSTANT R4, desc[UR4][R6.64] ;    /* 0x000 */
        /*0030*/                   LDG.E.U16.CONSTANT R4, desc[UR4][R6.64] ;    /* 0x000 */
        /*0040*/               @P0 HMMA.16816.F32.BF16 R8, R4, R6, R8 ;         /* 0x000 */
        /*0050*/                   LDSM.16.M88.4 R12, [R2] ;                    /* 0x000 */
        /*0060*/                   STL [R1], R3 ;                               /* 0x000 */
        /*0070*/                   LDL.LU R3, [R1] ;                            /* 0x000 */
        /*0080*/                   STG.E.128 desc[UR4][R2.64], R4 ;             /* 0x000 */
        /*0090*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8] ;    /* 0x000 */
        /*00a0*/                   RED.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R5 ; /* 0x000 */
"""


def test_ptxas_report():
    assert cuda_audit.read_ptxas(PTXAS) == {
        ("_Z1av", "sm_80"): {"registers": 40, "stack_bytes": 16, "spill_bytes": 12, "shared_static": 512},
        ("_Z1av", "sm_90a"): {"registers": 38, "stack_bytes": 0, "spill_bytes": 0, "shared_static": 0},
    }


def test_machine_code():
    assert cuda_audit.read_sass(SASS) == {
        ("_Z1av", "sm_90a"): {
            "HMMA": 1,
            "HGMMA": 1,
            "LDSM": 1,
            "LDGSTS": 1,
            "LDG.128": 1,
            "LDG": 2,
            "STG.128": 1,
            "STG": 1,
            "atomics": 1,
            "local": 2,
        }
    }


@pytest.mark.parametrize(
    ("demangled", "expected"),
    [
        (
            "void fgk::cuda::kernel<fgk::cuda::Shape<fgk::cuda::Cores<fgk::dev::bf16>, 8, true> >(fgk::Params<int>)",
            "kernel<Shape<Cores<bf16>, 8, true>>",
        ),
        ("fgk::cuda::facts_kernel(fgk::dev::gptr<unsigned char const>, long)", "facts_kernel"),
        ("void fgk::cuda::(anonymous namespace)::add<float>(long)", "add<float>"),
        ("void fgk::cuda::_GLOBAL__N__5473fe7c_8_dummy_cu_bed09406::add<float>(long)", "add<float>"),
        ("void fgk::cuda::pick<(bool)1, (int)4>(long)", "pick<1, 4>"),
    ],
)
def test_names_are_readable(demangled, expected):
    assert cuda_audit.shorten(demangled) == expected


def test_launches_are_found_by_address_whatever_the_load_address():
    symbols = {0x1000: "main", 0x1100: "forward<bf16>", 0x1200: "sum"}
    text = "main\t0x555000001000\nFILIP\t0x555000001100\t64\t256\t4096\nother\t0x555000001200\t1\t128\t0\n"
    text += "again\t0x555000001100\t9\t256\t4096\nwide\t0x555000001100\t9\t256\t8192\n"
    assert cuda_audit.read_launches(text, symbols) == {
        "forward<bf16>": [
            {"case": "FILIP", "threads": 256, "shared_dynamic": 4096},
            {"case": "wide", "threads": 256, "shared_dynamic": 8192},
        ],
        "sum": [{"case": "other", "threads": 128, "shared_dynamic": 0}],
    }


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "expected"),
    [
        ("sm_80", 256, 32, 0, (8, "threads")),  # 8 x 256 = 2048 threads
        ("sm_80", 32, 16, 0, (32, "blocks")),
        ("sm_80", 256, 64, 0, (4, "registers")),  # 65536 / (64 x 256)
        ("sm_80", 256, 65, 0, (3, "registers")),  # 65 x 32 registers round up to 2304 a warp: 28 warps
        ("sm_90a", 128, 255, 0, (2, "registers")),  # 8192 a warp: 8 warps
        ("sm_80", 256, 32, 80 * 1024, (2, "shared memory")),  # 81 KiB each of 164
        ("sm_80", 256, 32, 82 * 1024, (1, "shared memory")),
        ("sm_90a", 256, 32, 227 * 1024, (1, "shared memory")),
        ("sm_90a", 256, 32, 228 * 1024, (0, "shared memory")),
    ],
)
def test_occupancy_worked_by_hand(architecture, threads, registers, shared, expected):
    sm = cuda_audit.MULTIPROCESSORS[architecture]
    assert cuda_audit.blocks_per_multiprocessor(sm, threads, registers, shared) == expected


ORACLE = """
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int arch, threads, registers, shared;
  while (std::scanf("%d %d %d %d", &arch, &threads, &registers, &shared) == 4) {
    cudaOccDeviceProp device{};
    device.computeMajor = arch / 10;
    device.computeMinor = arch % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = 2048;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = (arch == 80 ? 164 : 228) * 1024;
    device.sharedMemPerBlockOptin = (arch == 80 ? 163 : 227) * 1024;
    device.reservedSharedMemPerBlock = 1024;
    device.numSms = 1;
    cudaOccFuncAttributes function{};
    function.maxThreadsPerBlock = 1024;
    function.numRegs = registers;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = device.sharedMemPerBlockOptin;
    cudaOccDeviceState state{};
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result{};
    cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state, threads, shared);
    std::printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


def test_occupancy_equals_that_of_nvidias_own_calculator(tmp_path):
    nvcc = find_nvcc()
    header = nvcc and next(
        (
            folder
            for folder in (Path(nvcc).resolve().parents[1] / "include", Path("/usr/local/cuda/include"))
            if (folder / "cuda_occupancy.h").is_file()
        ),
        None,
    )
    if not header or not shutil.which("g++"):
        pytest.skip("needs cuda_occupancy.h of a CUDA toolkit, and g++")
    source, program = tmp_path / "oracle.cpp", tmp_path / "oracle"
    source.write_text(ORACLE)
    subprocess.run(["g++", "-I", header, source, "-o", program], check=True)
    questions = [
        (arch, threads, registers, shared)
        for arch, threads, registers, shared in itertools.product(
            (80, 90), (32, 96, 128, 256, 384, 1024), (16, 33, 40, 64, 65, 96, 128, 168), (0, 100, 20000, 48000, 110000)
        )
        if registers * threads <= 65536
    ]
    done = subprocess.run(
        [program],
        input="\n".join(" ".join(map(str, question)) for question in questions),
        check=True,
        capture_output=True,
        text=True,
    )
    for (arch, threads, registers, shared), expected in zip(questions, done.stdout.split(), strict=True):
        sm = cuda_audit.MULTIPROCESSORS["sm_80" if arch == 80 else "sm_90a"]
        got, _ = cuda_audit.blocks_per_multiprocessor(sm, threads, registers, shared)
        assert got == int(expected), (arch, threads, registers, shared)


def row(kernel: str, **changes: object) -> dict:
    instructions = dict.fromkeys(cuda_audit.INSTRUCTIONS, 0) | {"HMMA": 64, "LDSM": 24, "LDGSTS": 5, "LDG": 3}
    launch = {"case": "FILIP", "threads": 256, "shared_dynamic": 1024}
    base = {"kernel": kernel, "architecture": "sm_90a", "registers": 96, "stack_bytes": 0, "spill_bytes": 0}
    base |= {"shared_static": 0, "instructions": instructions}
    base["launches"] = [launch | cuda_audit.occupancy("sm_90a", base, launch)]
    for name, value in changes.items():
        (instructions if name in instructions else base)[name] = value
    return base


FORWARD = "late_interaction_forward_kernel<ForwardShape<TensorCores<bf16>, 8, 8, true, false>>"


def test_a_clean_kernel_has_no_faults():
    assert cuda_audit.faults({"nvcc": "13", "kernels": [row(FORWARD), row("sum<float>", spill_bytes=4)]}) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spill_bytes": 8}, "8 bytes of spills"),
        ({"local": 2}, "2 accesses to local memory"),
        ({"HMMA": 0}, "no HMMA"),
        ({"LDSM": 0}, "no LDSM"),
        ({"LDGSTS": 0}, "no LDGSTS"),
        ({"launches": []}, "launches it at no shape"),
    ],
)
def test_a_hot_kernel_with_a_fault_is_named(change, message):
    (fault,) = cuda_audit.faults({"nvcc": "13", "kernels": [row(FORWARD, **change)]})
    assert fault.startswith(FORWARD) and message in fault


def test_kernels_under_new_names_do_not_pass_unseen():
    (fault,) = cuda_audit.faults({"nvcc": "13", "kernels": [row("something_else<float>")]})
    assert "none of the kernels is a hot one" in fault


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Results and page in a folder of their own, as --update leaves them."""
    monkeypatch.setattr(cuda_audit, "ROOT", tmp_path)
    monkeypatch.setattr(cuda_audit, "RESULTS", tmp_path / "ptxas.json")
    monkeypatch.setattr(cuda_audit, "PAGE", tmp_path / "page.md")
    result = {"nvcc": "13.0.88", "kernels": [row(FORWARD), row("sum<float>")]}
    cuda_audit.PAGE.write_text("# Page\n\nbefore\n<!-- ptxas:begin -->\nold\n<!-- ptxas:end -->\nafter\n")
    monkeypatch.setattr(cuda_audit, "audit", lambda build, program: result)
    assert cuda_audit.main(["build", "--update"]) == 0
    return result


def test_what_was_written_is_found_fresh(tree, capsys):
    assert json.loads(cuda_audit.RESULTS.read_text()) == tree
    page = cuda_audit.PAGE.read_text()
    assert page.startswith("# Page\n\nbefore\n<!-- ptxas:begin -->\n") and page.endswith("<!-- ptxas:end -->\nafter\n")
    assert f"| `{FORWARD}` | 96 | 0 | 1.0 | 256 | 2 | 25 % | registers | 64 | 24 | 5 |" in page and "old" not in page
    assert cuda_audit.main(["build"]) == 0
    assert "2 kernels, 1 of them hot: no spills" in capsys.readouterr().out


def test_a_stale_file_or_table_fails(tree, capsys):
    tree["kernels"][0]["registers"] = 97
    assert cuda_audit.main(["build"]) == 1
    assert f"ptxas.json is stale: {FORWARD} for sm_90a" in capsys.readouterr().err
    tree["kernels"][0]["registers"] = 96
    cuda_audit.PAGE.write_text(cuda_audit.PAGE.read_text().replace("| 96 |", "| 95 |"))
    assert cuda_audit.main(["build"]) == 1
    assert "its table is not that of" in capsys.readouterr().err


def test_another_nvcc_is_not_compared_but_still_held_to_no_spills(tree, capsys):
    other = copy.deepcopy(tree)
    tree["nvcc"] = "14.0.1"
    tree["kernels"][0]["registers"] = 90
    assert cuda_audit.main(["build"]) == 0
    assert "not compared" in capsys.readouterr().out
    tree["kernels"][0]["spill_bytes"] = 4
    assert cuda_audit.main(["build"]) == 1
    assert other["nvcc"] == "13.0.88"


def test_a_page_without_markers_and_a_folder_without_objects_are_errors(tree, tmp_path, capsys, monkeypatch):
    cuda_audit.PAGE.write_text("nothing here")
    assert cuda_audit.main(["build"]) == 1
    assert "expected the lines <!-- ptxas:begin -->" in capsys.readouterr().err
    monkeypatch.undo()
    assert cuda_audit.main([str(tmp_path)]) == 1
    assert "no objects of CUDA kernels" in capsys.readouterr().err


def test_the_committed_results_are_clean_and_their_table_is_in_the_page():
    if not cuda_audit.RESULTS.is_file():
        pytest.fail(f"{cuda_audit.RESULTS} is missing: make cuda ARGS=--update")
    text = cuda_audit.RESULTS.read_text()
    result = json.loads(text)
    assert cuda_audit.faults(result) == [] and text == cuda_audit.dump(result)
    assert str(ROOT) not in text and '"/' not in text
    assert {row["architecture"] for row in result["kernels"]} == {"sm_80", "sm_90a"}
    page = cuda_audit.PAGE.read_text()
    assert cuda_audit.with_table(page, cuda_audit.table(result)) == page
