"""Triton's own compiler and launcher on a driver without a GPU: how often a kernel is compiled, and its launch.

What the interpreter, which runs all other tests of Triton here, cannot show. The kernels are not run.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

STUB = Path(__file__).parent / "triton_on_stub"
pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(not shutil.which("gcc"), reason="gcc builds the stub of the driver and Triton's launcher"),
    pytest.mark.skipif(
        not Path(sysconfig.get_path("include"), "Python.h").exists(), reason="Triton's launcher needs Python.h"
    ),
]

TILES = 3
"""Programs of 2, 8 or 32 cells across."""
MOVES = {"_gather_kernel": 1, "_scatter_add_kernel": 1, "_mask_kernel": 2, "_sum_kernel": 2}
"""Masking a gradient takes the mask token of another alignment; a sum has a first level and others."""
BLOCKS = {"cells_kernel": TILES, "normalise_kernel": 1, "spread_kernel": 1, "pixels_kernel": 1}
"""Of a HOG of blocks and its gradient."""
MOST = {
    "hog": {"_hog_kernel": 2 * TILES},  # rows of whole words, or not
    "hog_tokens": {"_hog_kernel": 2},
    "moves": MOVES,
    "skimage": BLOCKS,
    "opencv": BLOCKS,
    "maskfeat_gradient": {"_hog_kernel": 2 * TILES, "cells_kernel": TILES, "spread_kernel": 1, "pixels_kernel": 1},
}
"""Variants of each kernel that fifty shapes may lead to: a second or more of compiling each."""


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """calls(word, ...): what ``calls.py`` prints for these words."""
    folder = tmp_path_factory.mktemp("stub")
    library = folder / "libcuda.so.1"
    subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", STUB / "libcuda.c", "-o", library], check=True
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": str(STUB.parents[2]),
    }

    def run(*words: str) -> dict:
        command = [sys.executable, str(STUB / "calls.py"), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.slow
def test_no_kernel_is_compiled_for_each_class_of_sizes(calls):
    variants = calls("count")
    assert variants.pop("unspecific") == {"_unspecific": 2}, "the count is blind: width is a multiple of 16, or not"
    assert variants.keys() == MOST.keys()
    for op, kernels in variants.items():
        assert kernels.keys() == MOST[op].keys(), op
        assert all(number <= MOST[op][kernel] for kernel, number in kernels.items()), (op, kernels)


@pytest.mark.slow
def test_a_kernel_is_compiled_and_launched(calls):
    assert calls("launch", "hog") == {"hog": 2}


@pytest.mark.slow
def test_every_kernel_is_compiled_and_launched(calls):
    """Twice each: a gather and its gradient, a mask and its two gradients; of blocks two kernels, and three back."""
    blocks = 2 * (2 + 3)
    expected = {"hog": 2, "hog_tokens": 2, "moves": 2 * (2 + 3), "skimage": blocks, "opencv": blocks}
    assert calls("launch") == expected | {"maskfeat_gradient": 2 * (1 + 3)}
