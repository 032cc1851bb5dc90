"""Builds the compiled kernels into maskfeat_kernels/_torch_ops.so; everything else is in pyproject.toml.

MASKFEAT_BUILD=cpu builds the CPU kernels, none builds nothing (the package then has its plain torch and Triton
backends), auto, the default, builds what the machine has the tools for. A requested build that cannot be done fails.
"""

import os
import platform
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

BUILD = os.environ.get("MASKFEAT_BUILD", "auto")
if BUILD not in ("auto", "cpu", "none"):
    sys.exit(f"MASKFEAT_BUILD must be auto, cpu or none, got {BUILD!r}")

CPU_SOURCES = ["csrc/hog_torch.cpp", "csrc/hog_cpu.cpp"]
HEADERS = ["csrc/hog_math.h", "csrc/image_view.h", "csrc/hog_cpu.h", "csrc/hog_cpu_kernel.h"]

# Each operation rounds once (-ffp-contract=off) and nothing is reassociated: every machine returns the same bits. Errno
# and floating-point traps are given up, or else no square root and no comparison would be vectorised.
CXX_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fvisibility=hidden"]
CXX_FLAGS += ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-unused-parameter"]
# The oldest torch whose stable ABI is used: the object then runs on it and on every later one.
STABLE_ABI = ("TORCH_TARGET_VERSION", "((2ULL<<56)|(10ULL<<48))")


class BuildTorchOps(build_ext):
    """Compiles against torch's headers; the result is loaded by torch.ops.load_library and ties itself to no Python."""

    def build_extension(self, ext):
        from torch.utils import cpp_extension

        ext.include_dirs += cpp_extension.include_paths()
        ext.library_dirs += cpp_extension.library_paths()
        print(f"building {ext.name}: CPU kernels for {platform.machine()}, {', '.join(ext.sources)}", flush=True)
        super().build_extension(ext)

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"

    def get_export_symbols(self, ext):
        return []


torch_ops = Extension(
    "maskfeat_kernels._torch_ops",
    sources=CPU_SOURCES,
    depends=HEADERS,
    include_dirs=["csrc"],
    define_macros=[STABLE_ABI],
    extra_compile_args=CXX_FLAGS,
    libraries=["torch", "torch_cpu"],
    language="c++",
)
setup(ext_modules=[] if BUILD == "none" else [torch_ops], cmdclass={"build_ext": BuildTorchOps})
