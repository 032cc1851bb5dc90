"""What only the built objects show: the libraries they load, their symbols, and the GPUs they hold kernels for."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

import maskfeat_kernels
from maskfeat_kernels import library

CSRC = Path(__file__).parents[2] / "csrc"
TORCH_OPS = Path(maskfeat_kernels.__file__).with_name("_torch_ops.so")
OBJECTS = sorted(TORCH_OPS.parent.glob("_*_ops*.so"))
STREAM = "aoti_torch_get_current_cuda_stream"

pytestmark = [
    pytest.mark.skipif(not TORCH_OPS.exists(), reason="no compiled kernels"),
    pytest.mark.skipif(not shutil.which("readelf") or sys.platform != "linux", reason="needs readelf and ELF files"),
]


def dynamic(path: Path) -> list[tuple[str, str]]:
    """The entries of the dynamic section: ("NEEDED", "libtorch.so")."""
    printed = subprocess.run(["readelf", "--dynamic", "--wide", path], check=True, capture_output=True, text=True)
    return re.findall(r"^ 0x\w+ \((\w+)\) *(?:Shared library: \[)?([^\]\n]*)", printed.stdout, re.MULTILINE)


def symbols(path: Path) -> list[tuple[str, str, bool]]:
    """Name, binding and whether it is defined, of the symbols that the loader sees, but for the C libraries'."""
    printed = subprocess.run(["readelf", "--dyn-syms", "--wide", path], check=True, capture_output=True, text=True)
    rows = [line.split() for line in printed.stdout.splitlines() if re.match(r" +\d+: \w{16} ", line)]
    return [(row[7], row[4], row[6] != "UND") for row in rows if len(row) > 7 and "@" not in row[7]]


def check_torch_ops(path: Path) -> None:
    """That an object loads in any torch >= 2.10, with CUDA or without, on the machines that its libraries allow."""
    needed = {value for tag, value in dynamic(path) if tag == "NEEDED"}
    # A torch with CUDA has the stream in a library that libtorch.so needs, and no other of these.
    assert {"libtorch.so", "libtorch_cpu.so"} <= needed
    # The CUDA runtime is inside, and no object names a Python, or a CUDA library that a machine without a GPU lacks.
    assert not [name for name in needed if re.match("libpython|libcu|libc10|libnv", name)]
    asked = {name: binding for name, binding, is_defined in symbols(path) if not is_defined}
    of_tools = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}
    # Functions in C of torch's stable ABI: a name in C++ would tie the object to one torch.
    assert [name for name in asked.keys() - of_tools if not re.match("aoti_torch_|torch_", name)] == []
    weak = [name for name, binding in asked.items() if binding == "WEAK" and name not in of_tools]
    assert set(weak) <= {STREAM, "torch_exception_get_what_without_backtrace"}  # not in every torch


def test_the_object_for_torch_needs_libtorch_and_its_stable_functions():
    check_torch_ops(TORCH_OPS)
    if library.cuda_archs:
        assert (STREAM, "WEAK", False) in symbols(TORCH_OPS)


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name.split(".")[0])
def test_an_object_has_no_paths_of_the_machine_that_built_it(path):
    assert not {"RPATH", "RUNPATH", "TEXTREL"} & {tag for tag, _ in dynamic(path)}


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name.split(".")[0])
def test_an_object_shows_other_libraries_no_function_of_ours_but_its_entries(path):
    shown = {name for name, binding, is_defined in symbols(path) if is_defined and binding == "GLOBAL"}
    entries = {"maskfeat_cuda_archs", "maskfeat_no_cuda"} if path == TORCH_OPS else {"PyInit__numpy_ops"}
    assert shown - {"_edata", "_end", "__bss_start"} == entries


def cuobjdump() -> str | None:
    """Of the CUDA toolkit, or the copy that Triton brings along."""
    triton = importlib.util.find_spec("triton")
    folders = triton.submodule_search_locations if triton else []
    copies = [Path(folder, "backends/nvidia/bin/cuobjdump") for folder in folders]
    return shutil.which("cuobjdump") or next((str(copy) for copy in copies if copy.exists()), None)


def check_kernels(path: Path, archs: list[str]) -> None:
    """That each file of kernels is there for each architecture, and for GPUs to come as the code of the newest."""
    tool = cuobjdump()
    if tool is None:
        pytest.skip("needs cuobjdump, of the CUDA toolkit or of triton")
    files = len(list(CSRC.rglob("*.cu")))
    for kind, wanted in (("elf", archs), ("ptx", archs[-1:])):
        printed = subprocess.run([tool, f"--list-{kind}", path], check=True, capture_output=True, text=True).stdout
        assert sorted(re.findall(r"sm_(\w+)\.", printed)) == sorted(wanted * files), kind


def test_every_file_of_kernels_is_there_for_every_architecture():
    if not library.cuda_archs:
        reason = library.why_not_compiled("cuda")
        assert "csrc/" not in reason, "a toolkit that compiles a trial kernel has to compile those of this package"
        pytest.skip(f"no CUDA kernels: {reason}")
    assert library.cuda_archs == sorted(library.cuda_archs, key=int)
    check_kernels(TORCH_OPS, library.cuda_archs)


ASK_FOR_THE_STREAM = """
#include "common/torch_device.h"
#define EXPORT extern "C" __attribute__((visibility("default")))
extern "C" const char* cudaGetErrorString(int) { return "text"; }
EXPORT const char* ask(int device, void** stream) try {
  *stream = maskfeat::current_stream(device);
  return "";
} catch (const std::exception& error) {
  static std::string text;
  return (text = error.what()).c_str();
}
EXPORT const char* check(int status) try {
  maskfeat::CudaDevice::check(status);
  return "";
} catch (const std::exception& error) {
  static std::string text;
  return (text = error.what()).c_str();
}
"""
FAKE_LIBTORCH_CUDA = f"""
extern "C" __attribute__((visibility("default")))
int {STREAM}(int device, void** stream) {{ return *stream = (void*)(0x1230L + device), 0; }}
"""
USE = """
import ctypes, shutil, sys, torch
def ask(path):
    library, stream = ctypes.CDLL(path), ctypes.c_void_p()
    library.ask.restype = library.check.restype = ctypes.c_char_p
    print(library.ask(4, ctypes.byref(stream)).decode().splitlines()[0:1], stream.value)
    return library
library = ask("./first.so")
print(*(library.check(status).decode().splitlines()[0:1] for status in (0, 209, 700)), sep="\\n")
ctypes.CDLL("./libtorch_cuda.so")
ask("./second.so")
"""


@pytest.mark.slow  # compiles torch's headers, 10 s
def test_a_stream_that_the_linker_has_lost_is_found_in_libtorch_cuda_or_refused(tmp_path):
    if torch.version.cuda or torch.version.hip:
        pytest.skip("this torch has its own libtorch_cuda.so, which test_slow finds")
    (tmp_path / "ask.cpp").write_text(ASK_FOR_THE_STREAM)
    (tmp_path / "fake.cpp").write_text(FAKE_LIBTORCH_CUDA)
    library = [os.environ.get("CXX", "g++"), "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden"]
    includes = [f"-I{path}" for path in (CSRC, *cpp_extension.include_paths())]
    macros = ["-DTORCH_TARGET_VERSION=((2ULL<<56)|(10ULL<<48))", "-DMASKFEAT_CUDA=1", '-DMASKFEAT_CUDA_ARCHS="80 90"']
    sources = ["ask.cpp", CSRC / "common/simd/instruction_set.cpp"]
    libraries = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu", "-o", "first.so"]
    subprocess.run([*library, *includes, *macros, *sources, *libraries], check=True, cwd=tmp_path)
    shutil.copy(tmp_path / "first.so", tmp_path / "second.so")
    name = "libtorch_cuda.so"
    subprocess.run([*library, "fake.cpp", f"-Wl,-soname,{name}", "-o", name], check=True, cwd=tmp_path)
    used = subprocess.run([sys.executable, "-c", USE], check=True, cwd=tmp_path, capture_output=True, text=True)
    refused, fine, no_image, other, found = used.stdout.splitlines()
    assert "this torch has no CUDA streams: install a torch that is built for CUDA" in refused and "None" in refused
    assert fine == "[]"
    assert "no kernel in this build, which is for the architectures 80 90: build with MASKFEAT_CUDA_ARCHS" in no_image
    assert "CUDA error 700 at the launch of a kernel: text" in other
    assert found == f"[] {0x1234}"


LOAD = """
import sys, torch
from maskfeat_kernels import ops
from torch._C import _dispatch_has_kernel_for_dispatch_key as has
names = "hog hog_tokens hog_blocks hog_blocks_backward masked_gather masked_scatter_add mask_tokens masked_sum".split()
print(torch.__version__, [name for name in names if not has("maskfeat_kernels::" + name, "CUDA")])
"""


@pytest.mark.slow
def test_in_a_torch_with_cuda_the_stream_is_that_of_its_library_also_without_a_gpu(tmp_path):
    """Of this Python, or of those that MASKFEAT_CUDA_PYTHONS names, whose torch is built for CUDA."""
    pythons = os.environ.get("MASKFEAT_CUDA_PYTHONS", sys.executable if torch.version.cuda else "").split()
    if not pythons or not library.cuda_archs:
        pytest.skip("needs CUDA kernels, and a torch built for CUDA: MASKFEAT_CUDA_PYTHONS='/path/bin/python ...'")
    for number, python in enumerate(pythons):
        log = tmp_path / f"{number}"
        environment = {**os.environ, "LD_DEBUG": "bindings", "LD_DEBUG_OUTPUT": str(log)}
        environment["PYTHONPATH"] = str(TORCH_OPS.parents[1])
        used = subprocess.run([python, "-c", LOAD], env=environment, capture_output=True, text=True, check=False)
        assert used.returncode == 0, used.stderr
        assert used.stdout.endswith(" []\n"), used.stdout
        bound = [
            line
            for path in tmp_path.glob(f"{number}.*")
            for line in path.read_text(errors="replace").splitlines()
            if f"`{STREAM}'" in line and "_torch_ops.so" in line.split(" to ")[0]
        ]
        print(used.stdout.split()[0], *bound, sep="\n")
        assert bound and all(re.search(r" to \S*/libtorch_cuda\.so ", line) for line in bound), used.stdout
