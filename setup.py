"""Builds the compiled kernels; everything else is in pyproject.toml.

Two objects are made: maskfeat_kernels/_torch_ops.so, for torch, and the Python module maskfeat_kernels._numpy_ops, for
NumPy without torch.

MASKFEAT_BUILD=cuda builds the CPU and the CUDA kernels, cpu the CPU kernels, none nothing (the package then has its
plain torch and Triton backends); auto, the default, builds CUDA where a CUDA toolkit is found. No GPU is asked for. A
requested build that cannot be done fails. MASKFEAT_CUDA_ARCHS="80 90" chooses the architectures.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

BUILD = os.environ.get("MASKFEAT_BUILD", "auto")
if BUILD not in ("auto", "cuda", "cpu", "none"):
    sys.exit(f"MASKFEAT_BUILD must be auto, cuda, cpu or none, got {BUILD!r}")

# Compiled once, for both objects.
SHARED_SOURCES = [f"csrc/{name}.cpp" for name in ("instruction_set", "hog_blocks", "hog_blocks_cpu")]
TORCH_OPS = ("hog_torch", "hog_cpu", "hog_blocks_torch", "masked_gather_torch", "masked_gather_cpu")
TORCH_SOURCES = [f"csrc/{name}.cpp" for name in TORCH_OPS] + SHARED_SOURCES
CUDA_SOURCES = ["csrc/hog_cuda.cu", "csrc/hog_blocks_cuda.cu", "csrc/masked_gather_cuda.cu"]
HEADERS = sorted(str(path) for path in Path("csrc").glob("*.h"))

# Each operation rounds once (-ffp-contract=off, -fmad=false) and nothing is reassociated: every machine returns the
# same bits. Errno and floating-point traps are given up, or else no square root or comparison would be vectorised.
CXX_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fvisibility=hidden"]
CXX_FLAGS += ["-g0", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unused-parameter"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "--compress-mode=size", "-Xcompiler=-fPIC"]
CUDA_ARCHS = os.environ.get("MASKFEAT_CUDA_ARCHS", "80 90 100").split()
# The oldest torch whose stable ABI is used: the object then runs on it and on every later one.
STABLE_ABI = ("TORCH_TARGET_VERSION", "((2ULL<<56)|(10ULL<<48))")


def cuda_home() -> Path | None:
    """The CUDA toolkit: CUDA_HOME, its usual place, or where nvcc is."""
    nvcc = shutil.which("nvcc")
    homes = [Path(os.environ["CUDA_HOME"])] if "CUDA_HOME" in os.environ else [Path("/usr/local/cuda")]
    homes += [Path(nvcc).resolve().parents[1]] if nvcc else []
    return next((home for home in homes if (home / "bin" / "nvcc").exists()), None)


def pybind11_headers() -> list[str]:
    """Of pybind11 where it is installed, else of the copy that torch brings along."""
    if importlib.util.find_spec("pybind11"):
        import pybind11

        return [pybind11.get_include()]
    from torch.utils import cpp_extension

    return cpp_extension.include_paths()


class BuildOps(build_ext):
    """Builds _torch_ops, which torch.ops.load_library loads and which is tied to no Python, and then _numpy_ops."""

    nvcc: list[subprocess.Popen] = []  # noqa: RUF012

    def build_extension(self, ext):
        if ext is torch_ops:
            self.prepare_torch_ops(ext)
        else:
            import numpy

            ext.include_dirs += [numpy.get_include(), *pybind11_headers()]
            ext.extra_objects += self.compiler.object_filenames(SHARED_SOURCES, output_dir=self.build_temp)
        print(f"building {ext.name} for {platform.machine()}: {', '.join(ext.sources)}", flush=True)
        super().build_extension(ext)

    def prepare_torch_ops(self, ext):
        from torch.utils import cpp_extension

        ext.include_dirs += cpp_extension.include_paths()
        ext.library_dirs += cpp_extension.library_paths()
        home = None if BUILD == "cpu" else cuda_home()
        if BUILD == "cuda" and home is None:
            sys.exit("MASKFEAT_BUILD=cuda needs a CUDA toolkit: put nvcc on the PATH or set CUDA_HOME")
        if home is not None:
            ext.define_macros.append(("MASKFEAT_CUDA", "1"))
            self.nvcc = [self.compile_cuda(home / "bin" / "nvcc", source, ext) for source in CUDA_SOURCES]
            ext.library_dirs += [str(home / name) for name in ("lib64", "lib") if (home / name).exists()]
            ext.libraries += ["cudart_static", "dl", "rt", "pthread"]
            # torch's stream is a weak symbol of one of its libraries: a linker that drops what nothing strong needs
            # would make it a null pointer.
            ext.extra_link_args.append("-Wl,--no-as-needed")

    def compile_cuda(self, nvcc: Path, source: str, ext: Extension) -> subprocess.Popen:
        """Plain nvcc, as the kernels include no header of torch: it works beside a CPU-only torch and without a GPU."""
        target = Path(self.build_temp, source).with_suffix(".cuda.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        ext.extra_objects.append(str(target))
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHS]
        codes.append(f"-gencode=arch=compute_{CUDA_ARCHS[-1]},code=compute_{CUDA_ARCHS[-1]}")  # for later GPUs
        print(f"building {source} for sm_{', sm_'.join(CUDA_ARCHS)}", flush=True)
        return subprocess.Popen([nvcc, *NVCC_FLAGS, *codes, "-c", source, "-o", target])

    def get_libraries(self, ext):
        """Asked for just before the link: until here, nvcc has run beside the C++ compiler."""
        for process in self.nvcc:
            if process.wait():
                sys.exit(f"{' '.join(map(str, process.args))} failed")
        return super().get_libraries(ext)

    def get_ext_filename(self, fullname):
        if fullname.endswith("_torch_ops"):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def get_export_symbols(self, ext):
        return []


torch_ops = Extension(
    "maskfeat_kernels._torch_ops",
    sources=TORCH_SOURCES,
    depends=[*HEADERS, *CUDA_SOURCES],
    include_dirs=["csrc"],
    define_macros=[STABLE_ABI],
    extra_compile_args=CXX_FLAGS,
    libraries=["torch", "torch_cpu"],
    language="c++",
)
numpy_ops = Extension(
    "maskfeat_kernels._numpy_ops",
    sources=[f"csrc/{name}.cpp" for name in ("numpy_module", "numpy_opencv", "opencv_cpu", "opencv_groups")],
    depends=[*HEADERS, *SHARED_SOURCES],
    include_dirs=["csrc"],
    extra_compile_args=CXX_FLAGS,
    language="c++",
)
setup(ext_modules=[] if BUILD == "none" else [torch_ops, numpy_ops], cmdclass={"build_ext": BuildOps})
