"""Calls every op on Triton's own compiler and launcher with ``libcuda.c`` in place of a GPU; test_triton_on_stub.py.

::

    python calls.py count    {op: {kernel: variants}} over many shapes, as JSON; nothing is compiled
    python calls.py launch [OP ...]    compiles and launches the ops named, or all; {op: launches}, as JSON
"""

import collections
import contextlib
import ctypes
import json
import random
import sys

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils

from maskfeat_kernels import MASKFEAT, OPENCV, SKIMAGE, backend
from maskfeat_kernels import fused_hog as hog
from maskfeat_kernels import fused_hog_tokens as hog_tokens
from maskfeat_kernels import fused_mask_tokens as mask_tokens
from maskfeat_kernels import fused_masked_gather as masked_gather


class StubDriver(CudaDriver):
    """Triton's driver for a GPU that PyTorch does not see: tensors are on the CPU."""

    def __init__(self):
        self.utils, self.launcher_cls = CudaUtils(), CudaLauncher
        self.get_device_capability = lambda device: (9, 0)
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0
        self.set_current_device = lambda device: None

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def shapes() -> list[tuple[int, int, int, int]]:
    """Fifty of each class that Triton tells apart: ones, multiples of 16 and others, in batch, height and width."""
    chance = random.Random(0)
    any_sizes = [(chance.randint(1, 20), 3, chance.randint(24, 200), chance.randint(24, 200)) for _ in range(30)]
    even = [(chance.choice((1, 2, 16)), 3, 16 * chance.randint(2, 12), 16 * chance.randint(2, 12)) for _ in range(20)]
    return any_sizes + even


def call(op: str, shape: tuple[int, int, int, int]) -> None:
    """One call, and its gradient where it has one."""
    batch, _, height, width = shape
    x = torch.empty(shape)
    if op == "hog":
        hog(x, backend="triton")
    elif op == "hog_tokens":
        x = x[..., : height // 16 * 16, : width // 16 * 16].contiguous()
        hog_tokens(x, torch.zeros(batch, height, dtype=torch.int64), backend="triton")
    elif op == "moves":
        tokens, mask_token = (torch.empty(*size, 768, requires_grad=True) for size in ((batch, height), ()))
        masked_gather(tokens, torch.zeros(batch, width, dtype=torch.int64), backend="triton").sum().backward()
        mask = torch.zeros(batch, height, dtype=torch.bool)
        mask_tokens(tokens, mask_token, mask, backend="triton").sum().backward()
    elif op == "unspecific":
        _unspecific[(1,)](x, width)
    else:
        spec = {"maskfeat_gradient": MASKFEAT, "skimage": SKIMAGE, "opencv": OPENCV}[op]
        hog(x.requires_grad_(), spec, backend="triton").sum().backward()


OPS = ("hog", "hog_tokens", "moves", "maskfeat_gradient", "skimage", "opencv")


@triton.jit
def _unspecific(x, width):
    """A kernel that Triton compiles for each class: the count has to see it."""
    tl.store(x + width, 0)


def count() -> dict[str, dict[str, int]]:
    variants = collections.defaultdict(set)

    def note(*, key, fn, **_) -> bool:
        variants[fn.name.split(".")[-1]].add(key)
        return True  # do not compile

    triton.knobs.runtime.jit_cache_hook = note
    result = {}
    for op in (*OPS, "unspecific"):
        for shape in shapes():
            call(op, shape)
        result[op] = {kernel: len(keys) for kernel, keys in sorted(variants.items())}
        variants.clear()
    return result


def launch(ops: list[str]) -> dict[str, int]:
    result, stub = {}, ctypes.CDLL("libcuda.so.1")
    for op in ops or OPS:
        before = stub.stub_launches()
        for shape in ((2, 3, 48, 64), (1, 3, 41, 57)):
            call(op, shape)
        result[op] = stub.stub_launches() - before
    return result


if __name__ == "__main__":
    what, *ops = sys.argv[1:]
    triton.runtime.driver.set_active(StubDriver())
    backend.why_no_triton = lambda device: None  # its kernels are not run on the CPU tensors that they are given
    with contextlib.redirect_stdout(sys.stderr):
        result = count() if what == "count" else launch(ops)
    print(json.dumps(result))
