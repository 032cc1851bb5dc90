"""Builds the compiled kernels; everything else is in pyproject.toml.

Two objects are made: maskfeat_kernels/_torch_ops.so, for torch, and the Python module maskfeat_kernels._numpy_ops, for
NumPy without torch.

MASKFEAT_BUILD=cuda builds the CPU and the CUDA kernels, cpu the CPU kernels, none nothing (the package then has its
plain torch and Triton backends). A requested build that cannot be done fails. auto, the default, adds the CUDA kernels
where a CUDA toolkit can compile them; where none can, the package says why when it is asked for its CUDA backend. No
GPU is needed. The version of a build with "cuda" names the toolkit, as 0.1.0+cu130, so that its wheels are told apart.

CUDA kernels are compiled for the GPUs of this machine, and where it has none for all architectures of CUDA_ARCHS.
MASKFEAT_CUDA_ARCHS="80 90" chooses others, and all those of CUDA_ARCHS; native is, where there is no GPU, the one that
is compiled fastest. MAX_JOBS limits how many compilers run at once.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info
from setuptools.errors import LinkError

# The slowest are first, so that no compiler waits for the last one. Both objects have the shared sources.
SHARED_SOURCES = ["csrc/hog/cpu/blocks.cpp", "csrc/hog/plan.cpp", "csrc/common/simd/instruction_set.cpp"]
TORCH_KERNELS = ["csrc/hog/cpu/cells.cpp", "csrc/tokens/cpu.cpp"]
TORCH_OPS = [f"csrc/{name}.cpp" for name in ("hog/torch", "tokens/torch", "common/build_record")]
NUMPY_SOURCES = ["csrc/hog/numpy.cpp", "csrc/numpy_module.cpp"]
NUMPY_SOURCES += [f"csrc/opencv/{name}.cpp" for name in ("numpy", "detector", "groups")]
CUDA_SOURCES = ["csrc/hog/cuda/cells.cu", "csrc/hog/cuda/blocks.cu", "csrc/tokens/cuda.cu"]

# Each operation rounds once (-ffp-contract=off, -fmad=false) and nothing is reassociated: every machine returns the
# same bits. Errno and floating-point traps are given up, or else no square root or comparison would be vectorised.
CXX_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fvisibility=hidden"]
CXX_FLAGS += ["-g0", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unused-parameter"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden"]
CUDA_LIBRARIES = ["cudart_static", "dl", "rt", "pthread"]
CUDA_ARCHS = ("75", "80", "90", "100", "120")  # T4; A100, RTX 30 and 40; H100; B200; RTX 50
FASTEST_ARCH = "80"
OLDEST_CUDA = (12, 1)  # kernels take more than 4,096 bytes of parameters
COMPRESSING_CUDA = (12, 8)  # has --compress-mode, which makes the object four times smaller
# The oldest torch whose stable ABI is used: the object then runs on it and on every later one.
STABLE_ABI = ("TORCH_TARGET_VERSION", "((2ULL<<56)|(10ULL<<48))")

TRIAL = """#include <cuda_runtime.h>
__global__ void kernel(int* out) { *out = 1; }
int run(int* out) { kernel<<<1, 1>>>(out); return cudaGetLastError(); }
"""


class Unusable(Exception):
    """Why no CUDA kernels can be built, in words."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit, and what it is to compile for."""

    home: Path
    version: tuple[int, int]
    archs: list[str]

    def flags(self) -> list[str]:
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in self.archs]
        codes.append(f"-gencode=arch=compute_{self.archs[-1]},code=compute_{self.archs[-1]}")  # for later GPUs
        compress = ["--compress-mode=size"] if self.version >= COMPRESSING_CUDA else []
        threads = max(1, jobs() // len(CUDA_SOURCES))  # an architecture each
        return [*NVCC_FLAGS, *compress, f"--threads={threads}", *codes]

    def library_dirs(self) -> list[str]:
        places = ("lib64", "lib", f"targets/{platform.machine()}-linux/lib")
        return [str(self.home / place) for place in places if (self.home / place).exists()]

    def compile(self, source: Path, target: Path) -> str:
        """Plain nvcc, as the kernels include no header of torch: it works beside a CPU-only torch and without a GPU."""
        output_of(self.home / "bin" / "nvcc", *self.flags(), "-Icsrc", "-c", source, "-o", target)
        return str(target)


def find_toolkit() -> Toolkit:
    """The CUDA toolkit of this machine; raises Unusable where there is none, or an old one."""
    homes = [Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")]
    if on_path := shutil.which("nvcc"):
        homes.append(Path(on_path).resolve().parents[1])
    home = next((home for home in homes if (home / "bin" / "nvcc").exists()), None)
    if home is None:
        raise Unusable("no CUDA toolkit was found: put nvcc on the PATH or set CUDA_HOME")
    nvcc = home / "bin" / "nvcc"
    release = re.search(r"release (\d+)\.(\d+)", output_of(nvcc, "--version"))
    if release is None:
        raise Unusable(f"{nvcc} --version names no release")
    version = int(release[1]), int(release[2])
    if version < OLDEST_CUDA:
        oldest = ".".join(map(str, OLDEST_CUDA))
        raise Unusable(f"{nvcc} is of CUDA {release[1]}.{release[2]}: {oldest} or newer is needed")
    known = re.findall(r"^compute_(\d+)", output_of(nvcc, "--list-gpu-arch"), re.MULTILINE)
    return Toolkit(home, version, choose_archs(known, nvcc))


def choose_archs(known: list[str], nvcc: Path) -> list[str]:
    """What MASKFEAT_CUDA_ARCHS asks for; raises Unusable for what ``nvcc`` does not know."""
    wanted = os.environ.get("MASKFEAT_CUDA_ARCHS", "").split()
    every = [arch for arch in CUDA_ARCHS if arch in known] or list(CUDA_ARCHS)
    if wanted in ([], ["native"]):
        wanted = [arch for arch in gpus() if arch in known] or ([FASTEST_ARCH] if wanted else every)
    elif wanted == ["all"]:
        wanted = every
    for arch in wanted:
        if re.sub("[af]$", "", arch) not in known:  # 90a is 90 with what only that GPU has
            raise Unusable(f"{nvcc} compiles for {', '.join(known) or 'nothing'}, not for {arch}")
    return sorted(set(wanted), key=lambda arch: int(re.sub("[af]$", "", arch)))


def gpus() -> list[str]:
    """The architectures of the GPUs of this machine, as ["90"]; none where no driver tells."""
    try:
        capabilities = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    except Unusable:
        return []
    return [capability.replace(".", "") for capability in re.findall(r"^\d+\.\d+", capabilities, re.MULTILINE)]


def output_of(*command) -> str:
    """What a command prints; raises Unusable where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise Unusable(f"{command[0]} does not run: {error.strerror}") from error
    if done.returncode == 0:
        return done.stdout
    text = (done.stderr + done.stdout).strip()
    print(text, file=sys.stderr, flush=True)
    lines = text.splitlines() or [f"exit status {done.returncode}"]
    raise Unusable(f"{command[0]} failed: {next((line for line in lines if 'error' in line.lower()), lines[-1])}")


def jobs() -> int:
    """How many compilers run at once: one a core, or as MAX_JOBS says."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("MAX_JOBS", "")
    return min(cores, max(1, int(limit))) if limit.isdecimal() else cores


def pybind11_headers() -> list[str]:
    """Of pybind11 where it is installed, else of the copy that torch brings along."""
    if importlib.util.find_spec("pybind11"):
        import pybind11

        return [pybind11.get_include()]
    from torch.utils import cpp_extension

    return cpp_extension.include_paths()


class BuildOps(build_ext):
    """Compiles all sources side by side; then links _torch_ops, which is tied to no Python, and _numpy_ops."""

    def build_extensions(self):
        import numpy
        from torch.utils import cpp_extension

        self.compiler.force = True  # what lies there may be of another MASKFEAT_BUILD
        with ThreadPoolExecutor(jobs()) as self.pool:
            try:
                cuda = self.start_cuda()
                kernels = self.start(TORCH_KERNELS)
                shared = self.start(SHARED_SOURCES)
                module = self.start(NUMPY_SOURCES, [numpy.get_include(), *pybind11_headers()])
                objects, directories, record = self.finish_cuda(cuda)
                ops = self.start(TORCH_OPS, cpp_extension.include_paths(), [STABLE_ABI, *record])
                kernels, shared, module, ops = map(finished, (kernels, shared, module, ops))
            except BaseException:
                self.pool.shutdown(cancel_futures=True)
                raise
        libraries = ["torch", "torch_cpu", *(CUDA_LIBRARIES if objects else [])]
        # torch's stream is a weak symbol of a library that libtorch.so needs. A linker that drops what nothing strong
        # needs makes it a null pointer, and this flag holds for the libraries that come after it.
        keep = ["-Wl,--no-as-needed"] if sys.platform == "linux" else []
        directories = [*cpp_extension.library_paths(), *directories]
        self.link(torch_ops, [*ops, *kernels, *shared, *objects], libraries, directories, keep)
        self.link(numpy_ops, [*module, *shared], self.get_libraries(numpy_ops), [], [])

    def start(self, sources: list[str], include_dirs=(), macros=()) -> list[Future]:
        options = {"output_dir": self.build_temp, "include_dirs": ["csrc", *include_dirs], "macros": list(macros)}
        return [self.pool.submit(self.compiler.compile, [s], extra_postargs=CXX_FLAGS, **options) for s in sources]

    def start_cuda(self) -> tuple[Toolkit, list[Future]] | str:
        """The toolkit and its objects to come, or why there are none."""
        if BUILD == "cpu":
            return "MASKFEAT_BUILD was cpu"
        try:
            toolkit = find_toolkit()
            self.try_out(toolkit)
        except Unusable as reason:
            return self.without_cuda(reason)
        print(f"building CUDA kernels for sm_{', sm_'.join(toolkit.archs)}", flush=True)
        objects = [Path(self.build_temp, source).with_suffix(".cuda.o") for source in CUDA_SOURCES]
        for path in objects:
            path.parent.mkdir(parents=True, exist_ok=True)
        return toolkit, [self.pool.submit(toolkit.compile, *job) for job in zip(CUDA_SOURCES, objects, strict=True)]

    def try_out(self, toolkit: Toolkit) -> None:
        """Compiles and links a kernel: an nvcc, a host compiler and libraries that do not go together show here."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "trial.cu")
            source.write_text(TRIAL)
            trial = toolkit.compile(source, source.with_suffix(".o"))
            try:
                options = {"libraries": CUDA_LIBRARIES, "library_dirs": toolkit.library_dirs(), "target_lang": "c++"}
                self.compiler.link_shared_object([trial], str(Path(folder, "trial.so")), **options)
            except LinkError as error:
                raise Unusable(f"no program links with the libraries of {toolkit.home}: {error}") from error

    def finish_cuda(self, cuda) -> tuple[list[str], list[str], list[tuple[str, str]]]:
        """CUDA objects, folders of their libraries, and macros that tell the other sources of them."""
        if not isinstance(cuda, str):
            toolkit, running = cuda
            try:
                objects = [future.result() for future in running]
                record = [("MASKFEAT_CUDA", "1"), ("MASKFEAT_CUDA_ARCHS", quoted(" ".join(toolkit.archs)))]
                return objects, toolkit.library_dirs(), record
            except Unusable as reason:
                cuda = self.without_cuda(reason)
        return [], [], [("MASKFEAT_NO_CUDA", quoted(cuda))]

    def without_cuda(self, reason: Unusable) -> str:
        """Ends the build if CUDA kernels were asked for by name."""
        if BUILD == "cuda":
            sys.exit(f"MASKFEAT_BUILD=cuda cannot be done: {reason}")
        print(f"building no CUDA kernels: {reason}", flush=True)
        return str(reason)

    def link(self, ext: Extension, objects: list[str], libraries: list[str], library_dirs: list[str], first: list[str]):
        options = {"libraries": libraries, "library_dirs": library_dirs, "extra_preargs": first, "target_lang": "c++"}
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), **options)

    def get_ext_filename(self, fullname):
        if fullname.endswith("_torch_ops"):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)


class Labelled(egg_info):
    """The version with its label. In an sdist, setup.cfg says that there is none, and wins over options of setup()."""

    def finalize_options(self):
        self.tag_build = label()
        super().finalize_options()


def label() -> str:
    """What the version ends in: the toolkit of a build that is asked for CUDA kernels, else nothing."""
    if BUILD != "cuda":
        return ""
    try:
        return "+cu{}{}".format(*find_toolkit().version)
    except Unusable as reason:
        sys.exit(f"MASKFEAT_BUILD=cuda cannot be done: {reason}")


def finished(objects: list[Future]) -> list[str]:
    return [path for future in objects for path in future.result()]


def quoted(text: str) -> str:
    """A C string."""
    return json.dumps(text.encode("ascii", "replace").decode())


BUILD = os.environ.get("MASKFEAT_BUILD", "auto")
torch_ops = Extension("maskfeat_kernels._torch_ops", sources=[])
numpy_ops = Extension("maskfeat_kernels._numpy_ops", sources=[])

if __name__ == "__main__":
    if BUILD not in ("auto", "cuda", "cpu", "none"):
        sys.exit(f"MASKFEAT_BUILD must be auto, cuda, cpu or none, got {BUILD!r}")
    if sys.platform == "win32" and BUILD in ("cuda", "cpu"):
        sys.exit(f"MASKFEAT_BUILD={BUILD} cannot be done: the kernels are compiled on Linux and macOS, or in WSL")
    builds = BUILD != "none" and sys.platform != "win32"
    setup(
        ext_modules=[torch_ops, numpy_ops] if builds else [],
        cmdclass={"build_ext": BuildOps, "egg_info": Labelled},
    )
