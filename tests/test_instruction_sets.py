"""Each vector width of the CPU kernels returns the same bits: a process for every instruction set of this machine.

The widest is what all other tests run, against the oracles; the narrower ones are what older machines and arm64 run.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskfeat_kernels import (
    MASKFEAT,
    OPENCV,
    SKIMAGE,
    available_backends,
    fused_hog,
    fused_hog_tokens,
    fused_mask_tokens,
    fused_masked_gather,
)

pytestmark = pytest.mark.skipif("cpu" not in available_backends(), reason="no compiled kernels")

ROOT = Path(__file__).parent.parent
SIZES = ((64, 48), (16, 16), (48, 560), (96, 96))
DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
CHANGES = ({}, {"cell": (4, 4), "bins": 8}, {"cell": (16, 16), "bins": 18}, {"gaussian_window": 16}, {"cell": (5, 3)})


def run(instruction_set: str) -> str:
    """What this file prints as a program, or why it failed, with the kernels for an instruction set."""
    environment = {**os.environ, "MASKFEAT_CPU": instruction_set}
    command = [sys.executable, "-m", "tests.test_instruction_sets"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else done.stderr


@pytest.fixture(scope="module")
def names() -> list[str]:
    """As the refusal of an unknown one lists them."""
    refusal = re.search(
        "ValueError: MASKFEAT_CPU must be one of those that this machine has, (.*), got sse", run("sse")
    )
    assert refusal, run("sse")
    return refusal[1].split(", ")


def test_every_instruction_set_returns_the_same_bits(names):
    assert names[0] == "baseline"
    printed = {name: run(name) for name in names}
    assert all(text.startswith("{") for text in printed.values()), printed
    bits = {name: json.loads(text) for name, text in printed.items()}
    assert len(bits["baseline"]) > 200
    for name in names:
        assert {key for key, value in bits[name].items() if value != bits["baseline"][key]} == set(), name


def results() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        planes = torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8)
        ids = torch.randint(0, size[0] * size[1] // 256, (2, 9), generator=generator)
        for dtype in DTYPES:
            x = planes if dtype == torch.uint8 else (planes / 255).to(dtype)
            for layout in (torch.contiguous_format, torch.channels_last):
                x = x.contiguous(memory_format=layout)
                name = f"{list(size)}, {dtype}, {layout}"
                for changes in CHANGES:
                    if all(n % changes.get("gaussian_window", 1) == 0 for n in size):
                        yield f"hog, {name}, {changes}", fused_hog(x, **changes)
                for side in (8, 16):
                    grid = (size[0] // side) * (size[1] // side)
                    tokens = fused_hog_tokens(x, ids % grid, patch_size=side, spec=MASKFEAT)
                    yield f"tokens of {side}, {name}", tokens
            for spec in (SKIMAGE, OPENCV):
                y = x.detach().requires_grad_(x.is_floating_point())
                blocks = fused_hog(y, spec, cell=(8, 8), block=(2, 2))
                yield f"blocks, {name}, {spec}", blocks.detach()
                if y.requires_grad:
                    yield f"gradient, {name}, {spec}", torch.autograd.grad(blocks.sum(), y)[0]
    for dtype in DTYPES[1:]:
        for shape in ((3, 40, 72), (2, 9, 5), (33, 128, 1024)):  # the last exceeds what is kept in the cache
            x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
            token = torch.randn(shape[2], generator=generator).to(dtype).requires_grad_()
            ids = torch.randint(0, shape[1], (shape[0], 4 * shape[1] // 5), generator=generator)
            mask = torch.rand(shape[:2], generator=generator) < 0.4
            name = f"{list(shape)}, {dtype}"
            for move, y in (("gather", fused_masked_gather(x, ids)), ("mask", fused_mask_tokens(x, token, mask))):
                yield f"{move}, {name}", y.detach()
                gradients = torch.autograd.grad(y, (x, token), torch.ones_like(y) / 3, allow_unused=True)
                yield from ((f"gradient of {move}, {name}, {len(g.shape)}", g) for g in gradients if g is not None)


def digest(x: Tensor) -> str:
    return hashlib.sha256(x.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    print(json.dumps({name: digest(x) for name, x in results()}))
