"""No GPU kernel spills, on any target; and the report sees a kernel that does."""

import dataclasses
import importlib.util
import shutil
import sys

import pytest

from benchmarks import kernel_report
from benchmarks.kernel_report import (
    CUDA_SOURCES,
    TRITON_MODULES,
    TRITON_TARGETS,
    CompileError,
    Kernel,
    cuda_kernels,
    cuda_occupancy,
    faults,
    kernel_of_amdgcn,
    ptxas_facts,
    table,
    triton_kernels,
)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
slow = pytest.mark.slow

MADE_UP_KERNEL = """
__global__ void BOUNDS cumulate(const float* x, float* out) {
  float values[64], sum = 0;
  for (int i = 0; i < 64; ++i) sum += values[i] = x[threadIdx.x + 1024 * i];
  __syncthreads();
  for (int i = 0; i < 64; ++i) out[threadIdx.x + 1024 * i] = values[i] / sum;
}
"""


# The kernels of HOG take nvcc 10 to 25 s an architecture, those of tokens 5.
COMPILES = [
    pytest.param(source, arch, marks=() if source.parent.name == "tokens" and arch == 90 else slow)
    for source in CUDA_SOURCES
    for arch in (80, 90, 100)
]


@needs_nvcc
@pytest.mark.parametrize("source, architecture", COMPILES, ids=lambda value: getattr(value, "name", None))
def test_no_cuda_kernel_spills(source, architecture):
    kernels = cuda_kernels([source], (architecture,))
    assert {kernel.target for kernel in kernels} == {f"sm_{architecture}"}
    assert faults(kernels) == []


@slow
@needs_triton
@pytest.mark.parametrize("target", ["90", "80", "100", "gfx942"])
def test_no_triton_kernel_spills(target):
    kernels = triton_kernels(TRITON_MODULES, (target,))
    assert {kernel.target.removeprefix("sm_").rstrip("a") for kernel in kernels} == {target}
    assert faults(kernels) == []


def made_up(tmp_path, bounds: str) -> list[Kernel]:
    source = tmp_path / "cumulate.cu"
    source.write_text(MADE_UP_KERNEL.replace("BOUNDS", bounds))
    return cuda_kernels([source], (90,))


@needs_nvcc
def test_a_cuda_kernel_that_spills_is_a_fault(tmp_path):
    (roomy,) = made_up(tmp_path, "__launch_bounds__(256)")
    assert (roomy.name, roomy.target, roomy.threads, roomy.spills) == ("cumulate", "sm_90", 256, 0)
    assert roomy.registers > 64
    assert faults([roomy]) == []
    (tight,) = made_up(tmp_path, "__launch_bounds__(1024, 2)")
    assert tight.registers <= 32
    assert tight.occupancy == 1
    assert tight.spills > 0
    assert faults([tight]) == [f"cumulate on sm_90 spills {tight.spills} bytes"]


@needs_nvcc
def test_a_cuda_kernel_without_launch_bounds_is_refused(tmp_path):
    with pytest.raises(CompileError, match="cumulate has no __launch_bounds__"):
        made_up(tmp_path, "")


@needs_nvcc
def test_dynamic_shared_memory_has_to_be_declared(tmp_path, monkeypatch):
    source = tmp_path / "dynamic.cu"
    source.write_text(
        "extern __shared__ float row[];\n"
        "__global__ void __launch_bounds__(64) turn(float* x) {\n"
        "  row[threadIdx.x] = x[threadIdx.x];\n  __syncthreads();\n  x[threadIdx.x] = row[63 - threadIdx.x];\n}\n"
    )
    with pytest.raises(CompileError, match="turn uses dynamic shared memory"):
        cuda_kernels([source], (90,))
    monkeypatch.setitem(kernel_report.DYNAMIC_SHARED, "turn", 256)
    (kernel,) = cuda_kernels([source], (90,))
    assert (kernel.static_shared, kernel.dynamic_shared) == (0, 256)


@needs_nvcc
def test_a_source_that_does_not_compile_is_an_error(tmp_path):
    with pytest.raises(CompileError, match="BOUND"):
        made_up(tmp_path, "UNKNOWN_BOUND")


@needs_triton
@pytest.mark.parametrize("targets", [("90",), pytest.param(TRITON_TARGETS, marks=slow)])
def test_a_triton_kernel_that_spills_is_a_fault(targets):
    kernels = triton_kernels(["tests.benchmarks.ahead_of_time_kernels"], targets)
    assert [(kernel.name, kernel.target.removeprefix("sm_").rstrip("a")) for kernel in kernels] == [
        (name, target) for name in ("fits", "spills") for target in targets
    ]
    spilling = [kernel for kernel in kernels if kernel.name == "spills" and kernel.target != "gfx942"]
    assert spilling
    assert faults(kernels) == [f"spills on {kernel.target} spills {kernel.spills} bytes" for kernel in spilling]


KERNEL = Kernel(
    language="cuda",
    name="hog<float, 9>",
    target="sm_90",
    threads=256,
    registers=65,
    stack=0,
    spills=0,
    static_shared=1024,
    dynamic_shared=0,
    occupancy=0.375,
)


def test_what_ptxas_says_is_understood():
    said = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1av' for 'sm_90'
ptxas info    : Function properties for _Z1av
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 256 bytes smem
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'
ptxas info    : Function properties for _Z1bv
    16 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 16 bytes cumulative stack size
"""
    assert ptxas_facts(said) == {
        "_Z1av": {"registers": 12, "stack": 0, "spills": 0, "static_shared": 256},
        "_Z1bv": {"registers": 64, "stack": 16, "spills": 44, "static_shared": 0},
    }


@pytest.mark.parametrize(
    "architecture, threads, registers, shared, occupancy",
    [
        (80, 256, 32, 0, 1.0),
        (80, 256, 33, 0, 0.75),  # 40 registers a thread are given: 51 warps, of which six blocks of 8 fit
        (90, 1024, 33, 0, 0.5),
        (90, 32, 16, 0, 0.5),  # 32 blocks
        (80, 128, 16, 40 << 10, 0.25),  # 164 KiB hold four blocks of 41
        (90, 128, 16, 40 << 10, 0.3125),  # 228 KiB hold five
        (90, 256, 255, 0, 0.125),
    ],
)
def test_cuda_occupancy(architecture, threads, registers, shared, occupancy):
    assert cuda_occupancy(architecture, threads, registers, shared) == occupancy


def test_amd_metadata_are_understood():
    assembly = """
    .group_segment_fixed_size: 16384
    .max_flat_workgroup_size: 256
    .private_segment_fixed_size: 8
    .sgpr_count:     20
    .sgpr_spill_count: 1
    .vgpr_count:     130
    .vgpr_spill_count: 2
"""
    kernel = kernel_of_amdgcn("gather", assembly)
    assert (kernel.registers, kernel.stack, kernel.spills, kernel.dynamic_shared) == (130, 8, 3, 16384)
    assert kernel.occupancy == 0.375, "136 of 512 registers: 3 wavefronts on each of 4 units, so 3 groups of 4"
    assert faults([kernel]) == ["gather on gfx942 spills 3 registers"]


def test_the_table_has_a_row_a_kernel():
    other = dataclasses.replace(KERNEL, target="sm_100", registers=72)
    header, rule, row = table([KERNEL, other])
    assert len(header) == len(rule) == len(row)
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["cuda", "hog<float, 9>", "sm_90 / sm_100", "256", "65 / 72", "0", "0", "1024", "0", "38"]


def test_the_command_prints_a_table_and_fails_on_a_fault(monkeypatch, capsys):
    kernels = [KERNEL]
    monkeypatch.setattr(kernel_report, "cuda_kernels", lambda sources: kernels)
    monkeypatch.setattr(sys, "argv", ["kernel_report", "--only", "cuda"])
    kernel_report.main()
    assert capsys.readouterr().out.splitlines() == table([KERNEL])
    kernels[0] = dataclasses.replace(KERNEL, spills=8)
    with pytest.raises(SystemExit, match="spills 8 bytes"):
        kernel_report.main()
