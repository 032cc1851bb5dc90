"""What the compilers say of every GPU kernel, on a machine that needs no GPU: registers, stack, spills, shared memory.

CUDA C++ kernels (``*.cu`` of csrc) are compiled by nvcc, Triton kernels (``triton`` of maskfeat_kernels) ahead of time.
Occupancy is an estimate: the share of a multiprocessor's threads that its registers and shared memory have room for::

    python -m benchmarks.kernel_report [--only cuda|triton]
"""

import argparse
import dataclasses
import importlib
import math
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks import machine
from benchmarks.report import aligned

ROOT = machine.ROOT
CUDA_SOURCES = sorted((ROOT / "csrc").rglob("*.cu"))
TRITON_MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "maskfeat_kernels").rglob("*.py")
    if "def ahead_of_time_cases" in path.read_text()
)

CUDA_ARCHITECTURES = (80, 90, 100)
AMD_ARCHITECTURE = "gfx942"
TRITON_TARGETS = (*map(str, CUDA_ARCHITECTURES), AMD_ARCHITECTURE)
NVCC_FLAGS = machine.flags()["NVCC_FLAGS"].split()

DYNAMIC_SHARED: dict[str, int] = {
    f"hog_{kernel}": size << 10
    for types in ("unsigned char, float", "Float16, float", "BFloat16, float", "float, float", "double, double")
    for kernel, size in (
        (f"blocks_kernel<{types}, false>", 32),
        (f"blocks_kernel<{types}, true>", 32),
        (f"pixels_kernel<{types}>", 28 if types == "double, double" else 16),
    )
}
"""Bytes of dynamic shared memory that a CUDA C++ kernel is launched with, by its name in the report: where the launch
chooses, what it aims at, or as much as the blocks of OpenCV take."""

SHARED_BYTES = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}  # of a multiprocessor
WARPS, BLOCKS, REGISTERS = 64, 32, 65536  # of a multiprocessor, on all three


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel on one target. Bytes are those of a thread (stack, spills) or of a block (shared memory)."""

    language: str  # "cuda" or "triton"
    name: str
    target: str  # "sm_90", "gfx942"
    threads: int  # of a block
    registers: int
    stack: int
    spills: int  # stores and loads together; on AMD the registers spilled
    static_shared: int
    dynamic_shared: int
    occupancy: float


class CompileError(RuntimeError):
    """A compiler refused a kernel; the message is its own."""


def faults(kernels: list[Kernel]) -> list[str]:
    """What must not be: a spill."""
    units = {True: "registers", False: "bytes"}
    return [f"{k.name} on {k.target} spills {k.spills} {units['gfx' in k.target]}" for k in kernels if k.spills]


# NVIDIA: both languages end in PTX, and ptxas says what it made of it


def cuda_kernels(sources: list[Path], architectures: tuple[int, ...] = CUDA_ARCHITECTURES) -> list[Kernel]:
    """The kernels of CUDA C++ sources. Raises CompileError."""
    kernels = []
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernels.ptx"
        for source in sources:
            for architecture in architectures:
                include = f"-I{ROOT / 'csrc'}"
                _call("nvcc", *NVCC_FLAGS, include, f"-arch=sm_{architecture}", "-ptx", source, "-o", ptx)
                kernels += kernels_of_ptx("cuda", ptx.read_text(), _ptxas())
    return kernels


def kernels_of_ptx(language: str, ptx: str, ptxas: str, dynamic_shared: int | None = None) -> list[Kernel]:
    """The kernels in a PTX text, assembled for the target that it names. Raises CompileError."""
    target = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)[1]
    bodies = re.split(r"\.entry\s+([\w$]+)\s*\(", ptx)
    body_of = dict(zip(bodies[1::2], bodies[2::2], strict=True))
    extern_shared = re.findall(r"^\.extern \.shared .*?([\w$]+)\[\]", ptx, re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.ptx"
        path.write_text(ptx)
        said = _call(ptxas, "-v", "--fmad=false", f"-arch={target}", path, "-o", path.with_suffix(".cubin"))
    kernels = []
    for symbol, facts in ptxas_facts(said).items():
        name = demangled(symbol)
        sides = re.search(r"\.(?:maxntid|reqntid)\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?", body_of[symbol])
        if sides is None:
            raise CompileError(f"{name} has no __launch_bounds__, so that its occupancy is left to chance")
        block = math.prod(int(side or 1) for side in sides.groups())
        dynamic = dynamic_shared
        if dynamic is None:
            if any(variable in body_of[symbol] for variable in extern_shared) and name not in DYNAMIC_SHARED:
                raise CompileError(f"{name} uses dynamic shared memory, and DYNAMIC_SHARED does not say how much")
            dynamic = DYNAMIC_SHARED.get(name, 0)
        shared = facts["static_shared"] + dynamic
        share = cuda_occupancy(int(re.search(r"\d+", target)[0]), block, facts["registers"], shared)
        kernels.append(Kernel(language, name, target, block, **facts, dynamic_shared=dynamic, occupancy=share))
    return sorted(kernels, key=lambda kernel: kernel.name)


def ptxas_facts(said: str) -> dict[str, dict[str, int]]:
    """Registers, stack, spills and static shared memory of each kernel (mangled name) in the output of ``ptxas -v``."""
    patterns = {"registers": r"Used (\d+) registers", "stack": r"(\d+) bytes stack frame"}
    patterns |= {"spills": r"(\d+) bytes spill (?:stores|loads)", "static_shared": r"(\d+) bytes smem"}
    parts = re.split(r"Compiling entry function '(\S+)' for '\w+'", said)
    return {
        symbol: {fact: sum(map(int, re.findall(pattern, text))) for fact, pattern in patterns.items()}
        for symbol, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def cuda_occupancy(architecture: int, threads: int, registers: int, shared: int) -> float:
    """Resident warps over those that fit a multiprocessor.

    A warp is given registers by 256, a block warps by 4 and shared memory by 128 bytes and 1 KiB for the system (CUDA
    occupancy calculator).
    """
    warps = -(-threads // 32)
    warps_by_registers = REGISTERS // (-(-registers * 32 // 256) * 256) // 4 * 4
    shared_of_block = -(-(shared + 1024) // 128) * 128
    blocks = min(BLOCKS, WARPS // warps, warps_by_registers // warps, SHARED_BYTES[architecture] // shared_of_block)
    return blocks * warps / WARPS


def demangled(symbol: str) -> str:
    """A kernel's name and template arguments, without namespaces and parameters."""
    name = _call("c++filt", symbol).strip().removeprefix("void ")
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|maskfeat::", "", name)
    return re.sub(r"\((?!anonymous).*\)$", "", name)


def _ptxas() -> str:
    beside = Path(shutil.which("nvcc")).resolve().with_name("ptxas")
    return str(beside) if beside.exists() else "ptxas"


# Triton


def triton_kernels(modules: list[str], targets: tuple[str, ...] = TRITON_TARGETS) -> list[Kernel]:
    """The kernels of some modules, in a process of its own: Triton's interpreter and its compiler do not mix."""
    interpret = os.environ.pop("TRITON_INTERPRET", None)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(compile_triton, modules, targets).result()
    finally:
        os.environ |= {"TRITON_INTERPRET": interpret} if interpret else {}


def compile_triton(modules: list[str], targets: tuple[str, ...]) -> list[Kernel]:
    """Compile the ``ahead_of_time_cases()`` of each module, (name, kernel, signature, constexprs, num_warps) each.

    ``signature`` maps every argument to its Triton type ("*fp32", "i64", "constexpr"), ``constexprs`` the constant ones
    to their values.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    kernels = []
    for module in modules:
        for name, kernel, signature, constexprs, warps in importlib.import_module(module).ahead_of_time_cases():
            options = {"num_warps": warps, "enable_fp_fusion": False}
            for target in targets:
                amd = target == AMD_ARCHITECTURE
                gpu = GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target), 32)
                built = triton.compile(ASTSource(kernel, signature, constexprs), target=gpu, options=options)
                if amd:
                    kernels.append(kernel_of_amdgcn(name, built.asm["amdgcn"]))
                    continue
                ptxas = tools / ("ptxas-blackwell" if int(target) >= 100 else "ptxas")
                (facts,) = kernels_of_ptx("triton", built.asm["ptx"], str(ptxas), built.metadata.shared)
                kernels.append(dataclasses.replace(facts, name=name))
    return kernels


def kernel_of_amdgcn(name: str, assembly: str) -> Kernel:
    """The kernel in an AMD assembly text, from the metadata at its end.

    Occupancy (CDNA 3): a SIMD unit has 512 vector registers a lane, given out by 8, for up to 8 wavefronts; a compute
    unit has 4 of them and 64 KiB of shared memory.
    """

    def fact(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", assembly)[1])

    registers, shared, threads = fact("vgpr_count"), fact("group_segment_fixed_size"), fact("max_flat_workgroup_size")
    wavefronts = threads // 64
    by_registers = min(8, 512 // (-(-max(registers, 1) // 8) * 8)) * 4
    groups = min(by_registers // wavefronts, (64 << 10) // shared if shared else by_registers)
    return Kernel(
        language="triton",
        name=name,
        target=AMD_ARCHITECTURE,
        threads=threads,
        registers=registers,
        stack=fact("private_segment_fixed_size"),
        spills=fact("vgpr_spill_count") + fact("sgpr_spill_count"),
        static_shared=0,
        dynamic_shared=shared,
        occupancy=groups * wavefronts / 32,
    )


def _call(*command) -> str:
    """What a tool printed. Raises CompileError with it if the tool failed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def table(kernels: list[Kernel]) -> list[str]:
    """The lines of a Markdown table: a row a kernel, "20 / 22" where the targets differ."""
    by_name: dict[tuple[str, str], list[dict]] = {}
    for kernel in kernels:
        facts = dataclasses.asdict(kernel) | {"occupancy %": round(100 * kernel.occupancy)}
        by_name.setdefault((kernel.language, kernel.name), []).append(facts)
    fields = [*[field.name for field in dataclasses.fields(Kernel)][2:-1], "occupancy %"]
    rows = [["", "", *(field.replace("_", " ") for field in fields)]]
    for names, group in by_name.items():
        values = [list(map(str, (facts[field] for facts in group))) for field in fields]
        rows.append([*names, *(" / ".join(v if len(set(v)) > 1 else v[:1]) for v in values)])
    return aligned(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("cuda", "triton"), help="kernels of one language")
    options = parser.parse_args()
    kernels = [] if options.only == "triton" else cuda_kernels(CUDA_SOURCES)
    if options.only != "cuda":
        kernels += triton_kernels(TRITON_MODULES)
    print(*table(kernels), sep="\n")
    if found := faults(kernels):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
