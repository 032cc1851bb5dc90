"""Builds a CUDA source into a program of its own, and runs it under a checker of memory accesses.

On the host (``cuda_on_host/``), g++ compiles it with a sanitizer; on a GPU, nvcc does, and compute-sanitizer
watches. A program takes tensors and numbers and hands back tensors; it holds neither Python nor torch, so that every
access belongs to the kernel and every array ends where its allocation ends.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
CSRC, SHIM = ROOT / "csrc", Path(__file__).parent / "cuda_on_host"

KERNELS = {
    "seeded_bugs": SHIM / "seeded_bugs.cu",
    "hog": CSRC / "hog/cuda/cells.cu",
    "hog_blocks": CSRC / "hog/cuda/blocks.cu",
    "masked_gather": CSRC / "tokens/cuda.cu",
}
"""Source of each kernel; its program is ``cuda_on_host/<name>_driver.cpp``."""

NEEDED = {"hog_blocks": (CSRC / "hog/plan.cpp",)}
"""What a program needs besides."""

ON_HOST = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}
HOST_FLAGS = ("-std=c++17", "-g1", "-Wall", "-Wno-unknown-pragmas", "-ffp-contract=off", f"-I{SHIM}")
ON_DEVICE = ("memcheck", "racecheck", "initcheck")

# The order of maskfeat::Dtype; numbers beyond it are for arrays whose type the kernel does not ask for.
DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)


Changes = tuple[tuple[str, str], ...]


@dataclasses.dataclass
class Result:
    """The exit status (0, the error of a launch, or the checker's), the tensors written, and what was said."""

    status: int
    out: list[Tensor]
    text: str


@dataclasses.dataclass
class Out:
    """A tensor that the program writes."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


def run(kernel: str, checker: str, *arguments, seed: int = 0, changes: Changes = ()) -> Result:
    """Run a program. Arguments: an int, a Tensor (any strides) or :class:`Out` (contiguous).

    ``seed`` chooses the order in which the host takes blocks and threads. ``changes`` are texts of the kernel's
    source, and what stands there instead.
    """
    environment = {**os.environ, "CUDA_ON_HOST_SEED": str(seed)}
    environment["TSAN_OPTIONS"] = "halt_on_error=1"
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
    if checker == "initcheck":
        environment["KEEP_UNINITIALISED"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        words, written = [], []
        for number, argument in enumerate(arguments):
            path = Path(folder) / str(number)
            if isinstance(argument, Tensor):
                words += _tensor_words(argument, path)
            elif isinstance(argument, Out):
                words.append(f"out:{path}:{math.prod(argument.shape) * argument.dtype.itemsize}")
                written.append((argument, path))
            else:
                words.append(str(argument))
        command = [*_watcher(checker), program(kernel, checker, changes), *words]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        out = [_read(path, what) for what, path in written if path.exists()]
    return Result(done.returncode, out, done.stdout)


def checked(kernel: str, checker: str, *arguments, **options) -> list[Tensor]:
    """The tensors that a program wrote; AssertionError with the checker's words if it found anything."""
    result = run(kernel, checker, *arguments, **options)
    if result.status:
        raise AssertionError(f"{kernel} under {checker} ended with {result.status}:\n{result.text}")
    return result.out


@functools.cache
def program(kernel: str, checker: str, changes: Changes = ()) -> Path:
    """The program of a kernel, as it is or with changes of its source."""
    driver = SHIM / f"{kernel}_driver.cpp"
    if checker in ON_DEVICE:
        return built_by_nvcc(kernel, driver)
    source, target, csrc = KERNELS[kernel], kernel_object(kernel, checker), CSRC
    if changes:
        csrc = _changed(kernel, changes)
        source, target = csrc / source.relative_to(CSRC), csrc / "changed.kernel.o"
    sanitizer = (ON_HOST[checker], "-fno-sanitize-recover=all")
    script = f"-Wl,-T,{SHIM / 'shared_memory.ld'}"
    plain = [_plain_object(part) for part in (driver, SHIM / "cuda_on_host.cpp", *NEEDED.get(kernel, ()))]
    with _once(target.with_suffix("")) as to_do:
        if to_do:
            _call("g++", *HOST_FLAGS, f"-I{csrc}", *sanitizer, "-x", "c++", "-c", source, "-o", target)
            _call("g++", *sanitizer, target, *plain, script, "-o", target.with_suffix(""))
    return target.with_suffix("")


def kernel_object(kernel: str, checker: str) -> Path:
    """The object file of a kernel, as ``program`` left it."""
    return _folder() / f"{kernel}-{checker}.kernel.o"


_CHANGED: list[tempfile.TemporaryDirectory] = []
"""Folders that are removed when Python ends."""


def _changed(kernel: str, changes: Changes) -> Path:
    """A copy of csrc where the second of two texts stands instead of the first, which is once in a kernel's folder."""
    _CHANGED.append(tempfile.TemporaryDirectory())
    folder = Path(_CHANGED[-1].name)
    shutil.copytree(CSRC, folder, dirs_exist_ok=True)
    room = folder / KERNELS[kernel].parent.relative_to(CSRC)
    for old, new in changes:
        found = [path for path in room.iterdir() if old in path.read_text()]
        if sum(path.read_text().count(old) for path in found) != 1:
            raise ValueError(f"{old!r} must occur once in {room.relative_to(folder)}")
        found[0].write_text(found[0].read_text().replace(old, new))
    return folder


@contextlib.contextmanager
def _once(target: Path) -> Iterator[bool]:
    """Whether a file of :func:`_folder` is to be made. Another process that asks meanwhile waits until it is there."""
    done = target.with_name(f"{target.name}.done")
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not done.exists()
        done.touch()


def why_not(checker: str) -> str | None:
    """None if programs can be built and run under ``checker`` here, else what is missing."""
    tools = ("nvcc", "compute-sanitizer", "nvidia-smi") if checker in ON_DEVICE else ("g++",)
    missing = [tool for tool in tools if not shutil.which(tool)]
    return f"not found: {', '.join(missing)}" if missing else None


@functools.cache
def built_by_nvcc(kernel: str, driver: Path, arch: str = "native") -> Path:
    """A program that runs on the device, unless the folder MASKFEAT_PROGRAMS has it already."""
    ready = Path(os.environ.get("MASKFEAT_PROGRAMS", ""), f"{kernel}-device")
    if "MASKFEAT_PROGRAMS" in os.environ and ready.exists():
        return ready
    target = _folder() / ready.name
    flags = ("-std=c++17", "-O3", "-fmad=false", "-lineinfo", f"-arch={arch}", f"-I{CSRC}")
    _call("nvcc", *flags, "-x", "cu", driver, KERNELS[kernel], *NEEDED.get(kernel, ()), "-o", target)
    return target


@functools.cache
def _plain_object(source: Path) -> Path:
    """What surrounds the kernel, without instrumentation."""
    target = _folder() / f"{source.stem}.o"
    with _once(target) as to_do:
        if to_do:
            _call("g++", *HOST_FLAGS, f"-I{CSRC}", "-O1", "-c", source, "-o", target)
    return target


@functools.cache
def _folder() -> Path:
    """Of all that is compiled here. It serves every process and session until a source or the compiler changes."""
    compiler = (
        subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout if shutil.which("g++") else b""
    )
    digest = hashlib.sha256(compiler + Path(__file__).read_bytes())
    for path in sorted(path for root in (CSRC, SHIM) for path in root.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    folder = ROOT / "build" / "cuda_on_host" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _watcher(checker: str) -> list[str]:
    if checker in ON_DEVICE:
        return ["compute-sanitizer", "--tool", checker, "--error-exitcode", "99"]
    # Older thread sanitizers do not start where the kernel spreads addresses further than they know.
    fixed = ["setarch", "--addr-no-randomize"]
    if checker != "thread" or not shutil.which(fixed[0]):
        return []
    return fixed if subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode == 0 else []


def _tensor_words(x: Tensor, path: Path) -> list[str]:
    storage = torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())
    storage.numpy().tofile(path)
    facts = (DTYPES.index(x.dtype), x.itemsize, x.storage_offset(), x.ndim, *x.shape, *x.stride())
    return [f"in:{path}", *map(str, facts)]


def _read(path: Path, what: Out) -> Tensor:
    written = torch.frombuffer(bytearray(path.read_bytes()), dtype=what.dtype) if math.prod(what.shape) else None
    return torch.empty(what.shape, dtype=what.dtype) if written is None else written.reshape(what.shape)


def _call(*command) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}")


if __name__ == "__main__":  # FOLDER ARCH: build all of them beforehand
    for name in KERNELS:
        shutil.copy2(built_by_nvcc(name, SHIM / f"{name}_driver.cpp", sys.argv[2]), sys.argv[1])
