"""The square root of the CUDA kernel, emulated: a reciprocal root that is a little off, and one Newton step."""

import numpy as np
import pytest


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
