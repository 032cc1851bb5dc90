"""Layouts: index by index, there and back, and against what the libraries return."""

import itertools

import cv2
import numpy as np
import pytest
import skimage.feature
import torch

from maskfeat_kernels import (
    MASKFEAT,
    OPENCV,
    SKIMAGE,
    HogSpec,
    convert_layout,
    fused_hog,
    fused_hog_tokens,
    planes_to_tokens,
    tokens_to_planes,
)
from maskfeat_kernels.layouts import LAYOUTS

GRID, BLOCK, BINS = (3, 4), (2, 1), 5
SIZES = {"rows": 3, "columns": 4, "block_rows": 2, "block_columns": 1, "bins": 5}


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize("make", [np.arange, torch.arange])
@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_every_number_finds_its_place(source, target, make, lead):
    x = make(int(np.prod((*lead, *SIZES.values())))).reshape(*lead, -1)
    y = convert_layout(x, source, target, grid=GRID, block=BLOCK, bins=BINS)
    assert type(y) is type(x) and y.shape == x.shape
    lead_axes = (slice(None),) * len(lead)
    x_axes, y_axes = (
        np.asarray(v).reshape(*lead, *(SIZES[axis] for axis in LAYOUTS[layout]))
        for v, layout in ((x, source), (y, target))
    )
    for place in itertools.product(*map(range, SIZES.values())):
        at = dict(zip(SIZES, place, strict=True))
        a = x_axes[(*lead_axes, *(at[axis] for axis in LAYOUTS[source]))]
        b = y_axes[(*lead_axes, *(at[axis] for axis in LAYOUTS[target]))]
        assert np.array_equal(a, b)
    back = convert_layout(y, target, source, grid=GRID, block=BLOCK, bins=BINS)
    assert (back == x).all()


def test_input_may_have_its_axes():
    x = np.arange(2 * 120).reshape(2, 3, 4, 2, 1, 5)
    options = {"grid": GRID, "block": BLOCK, "bins": BINS}
    expected = convert_layout(x.reshape(2, -1), "rows", "columns", **options)
    np.testing.assert_array_equal(convert_layout(x, "rows", "columns", **options), expected)


IMAGE = np.random.default_rng(0).integers(0, 256, (128, 64, 3)).astype(np.uint8)
TENSOR = torch.from_numpy(IMAGE).permute(2, 0, 1)


@pytest.mark.skipif(not hasattr(cv2, "HOGDescriptor"), reason="this OpenCV has no HOGDescriptor")
def test_a_window_of_opencv():
    window = cv2.HOGDescriptor().compute(IMAGE)
    for layout in LAYOUTS:
        result = fused_hog(TENSOR, OPENCV, layout=layout).numpy()
        expected = convert_layout(window, "columns", layout, grid=(15, 7), block=(2, 2), bins=9)
        np.testing.assert_allclose(result.reshape(-1), expected, rtol=0, atol=1e-5)


def test_a_ravel_of_scikit_image():
    ravel = skimage.feature.hog(IMAGE, channel_axis=-1)
    for layout in LAYOUTS:
        result = fused_hog(TENSOR, SKIMAGE, layout=layout).numpy()
        expected = convert_layout(ravel, "rows", layout, grid=(14, 6), block=(3, 3), bins=9)
        np.testing.assert_allclose(result.reshape(-1), expected, rtol=0, atol=1e-6)


def test_a_classifier_moves_with_its_features():
    features, weights = np.random.default_rng(0).random((2, 3780))
    options = {"grid": (15, 7), "block": (2, 2), "bins": 9}
    moved = (convert_layout(x, "columns", "planes", **options) for x in (features, weights))
    assert np.dot(*moved) == pytest.approx(features @ weights)


@pytest.mark.parametrize("cells", [2, (2, 2), [2, 2], np.int64(2), np.array([2, 2]), (np.int32(2), 2)])
def test_tokens_are_those_of_fused_hog_tokens(cells):
    images = torch.stack([TENSOR, TENSOR.flip(-1)])
    planes = fused_hog(images)
    tokens = planes_to_tokens(planes, cells)
    assert torch.equal(tokens, fused_hog_tokens(images, torch.arange(32).expand(2, 32)))
    np.testing.assert_array_equal(planes_to_tokens(planes.numpy(), cells), tokens)
    assert torch.equal(tokens_to_planes(tokens, cells, grid=(8, 4)), planes)
    np.testing.assert_array_equal(tokens_to_planes(tokens.numpy(), cells, grid=(8, 4)), planes)


@pytest.mark.parametrize("grid, block", [(4, 2), ([4, 4], [2, 2]), (np.array([4, 4]), np.int64(2)), ((4, 4), 2)])
def test_pairs_are_taken_in_any_form(grid, block):
    x = np.arange(4 * 4 * 2 * 2 * 9)
    expected = convert_layout(x, "rows", "columns", grid=(4, 4), block=(2, 2))
    np.testing.assert_array_equal(convert_layout(x, "rows", "columns", grid=grid, block=block), expected)
    tokens = planes_to_tokens(x.reshape(1, 9, 8, 8), (2, 2))
    np.testing.assert_array_equal(tokens_to_planes(tokens, block, grid=grid), x.reshape(1, 9, 8, 8))
    np.testing.assert_array_equal(planes_to_tokens(x.reshape(1, 9, 8, 8), block), tokens)
    assert HogSpec(cell=grid, block=block, block_stride=grid).block_size == (8, 8)
    assert MASKFEAT.replace(cell=grid).cell == (4, 4)


@pytest.mark.parametrize(
    "wrong", [True, np.bool_(True), 2.0, "2", "22", None, (True, 2), [2, np.bool_(True)], (2, 2.0)]
)
def test_what_is_no_pair_is_refused_everywhere(wrong):
    x = np.zeros((1, 9, 4, 4))
    tokens = planes_to_tokens(x, 2)
    for call in (
        lambda: planes_to_tokens(x, wrong),
        lambda: tokens_to_planes(tokens, wrong, grid=2),
        lambda: tokens_to_planes(tokens, 2, grid=wrong),
        lambda: convert_layout(x, "planes", "rows", grid=wrong),
        lambda: convert_layout(x, "planes", "rows", grid=4, block=wrong),
        lambda: HogSpec(cell=wrong),
        lambda: HogSpec(block=wrong),
    ):
        with pytest.raises(TypeError, match=r"must be an int, got"):
            call()


@pytest.mark.parametrize("wrong", [(2,), [2, 2, 2], np.array([2, 2, 2]), (), np.array([])])
def test_pairs_have_two_numbers(wrong):
    for call in (
        lambda: planes_to_tokens(np.zeros((1, 9, 4, 4)), wrong),
        lambda: convert_layout(np.zeros(36), "rows", "columns", grid=wrong),
        lambda: HogSpec(cell=wrong),
    ):
        with pytest.raises(ValueError, match=r"must be an int or \("):
            call()


def test_truth_values_of_numpy():
    spec = HogSpec(sqrt=np.bool_(True), signed=np.bool_(False))
    assert spec.sqrt is True and spec.signed is False and spec == HogSpec(sqrt=True)
    for wrong in (1, "yes", None, 1.0):
        with pytest.raises(TypeError, match="sqrt must be True or False"):
            HogSpec(sqrt=wrong)
    for name in ("bins", "gaussian_window", "eps", "clip", "block_sigma"):
        for wrong in (True, np.bool_(True)):
            with pytest.raises(TypeError, match=f"{name} must be a"):
                HogSpec(**{name: wrong})


def test_tokens_of_oblong_patches():
    planes = np.arange(2 * 3 * 4 * 6 * 8).reshape(2, 3, 4, 6, 8)
    tokens = planes_to_tokens(planes, (3, 2))
    assert tokens.shape == (2, 8, 72)
    for patch, channel, bin_, y, x in itertools.product(range(8), range(3), range(4), range(3), range(2)):
        row, column = patch // 4 * 3 + y, patch % 4 * 2 + x
        element = ((channel * 4 + bin_) * 3 + y) * 2 + x
        assert (tokens[:, patch, element] == planes[:, channel, bin_, row, column]).all()
    np.testing.assert_array_equal(tokens_to_planes(tokens, (3, 2), grid=(2, 4), bins=4), planes)


@pytest.mark.parametrize(
    "call, names",
    [
        (lambda x: convert_layout(x, "rows", "column", grid=(1, 1)), "'column'"),
        (lambda x: convert_layout(x, "cols", "rows", grid=(1, 1)), "'cols'"),
        (lambda x: convert_layout(x, "rows", "columns", grid=(1, 2)), r"\(2, 9\)"),
        (lambda x: planes_to_tokens(x.reshape(1, 2, 3, 3), 2), "3 x 3 cells"),
        (lambda x: tokens_to_planes(x, 1, grid=(1, 1)), r"\(2, 9\)"),
        (lambda x: tokens_to_planes(x, 2, grid=(1, 2)), "multiple of 36"),
    ],
)
def test_bad_input_is_named(call, names):
    with pytest.raises(ValueError, match=names):
        call(np.zeros((2, 9)))
