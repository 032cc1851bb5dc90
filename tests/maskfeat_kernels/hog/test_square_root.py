"""Square roots are rounded correctly: of the pixels, where they decide between channels, and of the CUDA kernel.

The latter is emulated: a reciprocal root that is a little off, and one Newton step.
"""

import numpy as np
import pytest
import torch
from conftest import moved

from maskfeat_kernels import OPENCV, fused_hog
from maskfeat_kernels.hog import reference
from maskfeat_kernels.testing import byte_images


def root(x, reciprocal):  # float32 arrays
    """root() of csrc/hog/cuda: s + (x - s * s) * (reciprocal / 2), s = x * reciprocal, fused steps rounded once."""
    s = x * reciprocal
    residue = (x.astype(np.float64) - s.astype(np.float64) ** 2).astype(np.float32)
    step = residue.astype(np.float64) * (np.float32(0.5) * reciprocal).astype(np.float64)
    return (s.astype(np.float64) + step).astype(np.float32)


def reciprocal_root(x, ulps):
    """The nearest float32 to 1 / sqrt(x), moved by ``ulps`` units in the last place."""
    nearest = (1 / np.sqrt(x.astype(np.float64))).astype(np.float32)
    return (nearest.view(np.int32) + ulps).view(np.float32)


@pytest.mark.parametrize("ulps", [-2, -1, 0, 1, 2])
def test_roots_of_all_squares_that_bytes_have_are_rounded_correctly(ulps):
    x = np.arange(1, 2 * 1020**2 + 1, dtype=np.float32)
    assert np.array_equal(root(x, reciprocal_root(x, ulps)), np.sqrt(x))


@pytest.mark.parametrize("ulps", [-1, 0, 1])
def test_roots_of_floats_are_rounded_correctly_but_for_a_few_mantissas(ulps):
    x = np.arange(0x3F800000, 0x40800000, dtype=np.int32).view(np.float32)  # all of [1, 4)
    assert np.count_nonzero(root(x, reciprocal_root(x, ulps)) != np.sqrt(x)) < 8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_roots_of_the_reference(dtype):
    """Those of torch on a CPU may be off by one unit in the last place: of one in five float32."""
    huge = np.finfo(dtype).max
    pixels = [np.arange(256), np.random.default_rng(0).random(100_000), [0, huge, huge / 3, np.inf, -1, np.nan]]
    pixels = np.concatenate(pixels).astype(dtype)
    with np.errstate(invalid="ignore"):
        expected = np.sqrt(pixels)
    np.testing.assert_array_equal(reference.rounded_sqrt(torch.from_numpy(pixels)).numpy(), expected)


@pytest.mark.parametrize(
    ("dtype", "square", "left", "channel"),
    [
        (torch.uint8, 20, 1, 1),
        (torch.float32, 19, 16, 0),
        (torch.float64, 51, 1, 0),
        (torch.float64, 51, 16, 0),
    ],
)
def test_rounded_roots_decide_between_equal_channels(dtype, square, left, channel, backend):
    """The squares of the gradients are ``square`` in both channels; ``channel`` has the longer after rounding."""
    rounded = np.float64 if dtype == torch.float64 else np.float32
    root = np.sqrt(np.array([square, left, square - left], dtype=rounded))
    lengths = root[0] * root[0], root[1] * root[1] + root[2] * root[2]
    assert np.argmax(lengths) == channel

    x = torch.zeros(2, 3, 40, dtype=dtype)
    x[0, 2, 20] = square  # straight down: orientation 90 degrees, all of which is in bin 4
    x[1, 1, 21], x[1, 2, 20] = left, square - left
    pixels = {"cell": 1, "block": 1, "block_sigma": 0, "cells": "box", "norm": "none", "arithmetic": "exact"}
    histogram = fused_hog(moved(x, backend), OPENCV, backend=backend, layout="planes", **pixels)[:, 1, 20].cpu()
    assert (histogram[4] > 0.999 * square**0.5) == (channel == 0)


def test_the_reference_takes_the_channels_that_opencv_takes():
    """Of levels whose roots often make channels that are equal but for rounding, as 20 = 1 + 19."""
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "HOGDescriptor"):
        pytest.skip("this OpenCV has no HOGDescriptor")
    x = torch.tensor([0, 1, 19, 20], dtype=torch.uint8)[byte_images(3, 64, 64).long() % 4]
    describe = cv2.HOGDescriptor((64, 64), (16, 16), (8, 8), (8, 8), 9, 1, -1, 0, 0.2, True)
    expected = describe.compute(x.permute(1, 2, 0).contiguous().numpy())
    result = fused_hog(x, OPENCV, backend="reference").flatten().numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
