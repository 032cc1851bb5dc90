"""HogSpec: what it accepts, what it refuses and how it says so."""

import math

import pytest

from maskfeat_kernels import MASKFEAT, HogSpec
from maskfeat_kernels.hog.plan import edge_cotangents, gaussian_kernel
from maskfeat_kernels.hog.spec import DALAL_TRIGGS, OPENCV, SKIMAGE

NEW_FIELDS = (
    "sqrt", "gradient", "channels", "signed", "angle_from", "votes", "cells", "reduction", "block", "block_stride",
    "block_sigma", "norm", "eps", "clip", "arithmetic", "layout",
)  # fmt: skip


def test_maskfeat_is_nine_bins_of_eight_pixel_cells():
    assert MASKFEAT == HogSpec(bins=9, cell=8, gaussian_window=0) == HogSpec()


@pytest.mark.parametrize("cell, kept", [(8, (8, 8)), ((4, 6), (4, 6)), ([4, 6], (4, 6))])
def test_cell_is_kept_as_height_and_width(cell, kept):
    assert HogSpec(cell=cell).cell == kept


def test_specs_are_values():
    assert HogSpec(cell=8) == HogSpec(cell=(8, 8))
    assert hash(HogSpec(cell=8)) == hash(HogSpec(cell=[8, 8]))
    with pytest.raises(AttributeError):
        MASKFEAT.bins = 12


@pytest.mark.parametrize("stride, kept, pixels", [
    (None, None, (4, 6)), (12, (12, 12), (12, 12)), ((4, 6), None, (4, 6)), ([4, 3], (4, 3), (4, 3)),
])  # fmt: skip
def test_the_stride_of_one_cell_is_the_default(stride, kept, pixels):
    spec = HogSpec(cell=(4, 6), block_stride=stride)
    assert (spec.block_stride, spec.stride) == (kept, pixels)


def test_the_size_of_a_block_is_in_pixels():
    assert HogSpec(cell=(4, 6), block=(3, 2)).block_size == (12, 12)
    assert (SKIMAGE.block_size, OPENCV.block_size) == ((24, 24), (16, 16))


@pytest.mark.parametrize("spec, shares", [
    (SKIMAGE, True), (OPENCV, False), (DALAL_TRIGGS, False), (SKIMAGE.replace(block_stride=16), True),
    (SKIMAGE.replace(block_stride=4), False), (SKIMAGE.replace(block_sigma=4), False), (MASKFEAT, True),
])  # fmt: skip
def test_blocks_share_cells_that_weigh_pixels_the_same(spec, shares):
    assert spec.shares_cells is shares


@pytest.mark.parametrize("change", [
    dict(sqrt=True), dict(gradient="central"), dict(channels="strongest"), dict(signed=True),
    dict(angle_from="horizontal"), dict(votes="linear"), dict(cells="bilinear"), dict(reduction="mean"), dict(block=2),
    dict(block_stride=16), dict(block_sigma=1), dict(norm="l2"), dict(eps=1e-3), dict(clip=0.1), dict(layout="rows"),
], ids=str)  # fmt: skip
def test_the_family_of_maskfeat_is_bins_cell_and_window(change):
    assert HogSpec(bins=12, cell=(4, 2), gaussian_window=16, block_stride=(4, 2)).is_maskfeat
    assert not MASKFEAT.replace(**change).is_maskfeat


def test_replace_changes_what_is_named_and_keeps_the_rest():
    assert HogSpec(bins=6, cell=(4, 5)).replace(bins=12) == HogSpec(bins=12, cell=(4, 5))


BAD = [
    (dict(bins=0), ValueError, "bins must be at least 1, got 0"),
    (dict(bins=-3), ValueError, "bins must be at least 1, got -3"),
    (dict(bins=9.0), TypeError, "bins must be an int, got 9.0"),
    (dict(bins="9"), TypeError, "bins must be an int, got '9'"),
    (dict(bins=None), TypeError, "bins must be an int, got None"),
    (dict(cell=0), ValueError, "cell must be at least 1, got 0"),
    (dict(cell=(8, -1)), ValueError, "cell must be at least 1, got -1"),
    (dict(cell=8.0), TypeError, "cell must be an int, got 8.0"),
    (dict(cell=(8, 8, 8)), ValueError, r"cell must be an int or \(height, width\), got \(8, 8, 8\)"),
    (dict(cell=()), ValueError, r"cell must be an int or \(height, width\), got \(\)"),
    (dict(gaussian_window=-16), ValueError, "gaussian_window must be at least 0, got -16"),
    (dict(gaussian_window=1.5), TypeError, "gaussian_window must be an int, got 1.5"),
    (dict(gradient="prewitt"), ValueError, "gradient must be one of sobel, central, got 'prewitt'"),
    (dict(channels="mean"), ValueError, "channels must be one of each, strongest, got 'mean'"),
    (dict(angle_from=0), ValueError, "angle_from must be one of vertical, horizontal, got 0"),
    (dict(votes=None), ValueError, "votes must be one of hard, linear, got None"),
    (dict(cells="round"), ValueError, "cells must be one of box, bilinear, got 'round'"),
    (dict(reduction="max"), ValueError, "reduction must be one of sum, mean, got 'max'"),
    (dict(norm="L2"), ValueError, "norm must be one of unit, none, l1, l1-sqrt, l2, l2-hys, got 'L2'"),
    (dict(arithmetic="dlib"), ValueError, "arithmetic must be one of exact, opencv, skimage, got 'dlib'"),
    (dict(layout="flat"), ValueError, "layout must be one of planes, rows, columns, got 'flat'"),
    (dict(sqrt=1), TypeError, "sqrt must be True or False, got 1"),
    (dict(signed="no"), TypeError, "signed must be True or False, got 'no'"),
    (dict(block=0), ValueError, "block must be at least 1, got 0"),
    (dict(block=(1, 2, 3)), ValueError, r"block must be an int or \(down, across\), got \(1, 2, 3\)"),
    (dict(block_stride=-8), ValueError, "block_stride must be at least 1, got -8"),
    (dict(block_stride=8.0), TypeError, "block_stride must be an int, got 8.0"),
    (dict(block_sigma=-1), ValueError, "block_sigma must be finite and not negative, got -1"),
    (dict(eps=math.nan), ValueError, "eps must be finite and not negative, got nan"),
    (dict(eps=0), ValueError, "eps must be at least 1e-18, so that a flat block is divided by more than 0, got 0.0"),
    (dict(eps="1"), TypeError, "eps must be a number, got '1'"),
    (dict(bins=True), TypeError, "bins must be an int, got True"),
    (dict(clip=math.inf), ValueError, "clip must be finite and not negative, got inf"),
    (dict(eps="small"), TypeError, "eps must be a number, got 'small'"),
    (dict(arithmetic="opencv"), ValueError,
     "arithmetic 'opencv' goes with votes 'linear' and norm 'l2-hys', got 'hard' and 'unit'"),
    (dict(arithmetic="skimage", signed=True), ValueError,
     "arithmetic 'skimage' goes with unsigned 'hard' votes, got votes 'hard', signed True"),
    (dict(arithmetic="skimage", votes="linear"), ValueError,
     "arithmetic 'skimage' goes with unsigned 'hard' votes, got votes 'linear', signed False"),
    (dict(gaussian_window=16, cells="bilinear", block_stride=4), ValueError,
     "gaussian_window 16 goes with cells that blocks share: 'box' cells, no block_sigma, and a block_stride of whole "
     r"cells; got 'bilinear', 0.0 and \(4, 4\)"),
]  # fmt: skip


@pytest.mark.parametrize("options, error, message", BAD, ids=[str(options) for options, _, _ in BAD])
def test_bad_values_are_named(options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        HogSpec(**options)
    with pytest.raises(error, match=f"^{message}$"):
        MASKFEAT.replace(**options)


@pytest.mark.parametrize(
    "name, hint",
    [
        ("nbins", "did you mean 'bins'?"),
        ("celll", "did you mean 'cell'?"),
        ("gaussian", "did you mean 'gaussian_window'?"),
        ("zzz", "known: bins, cell, gaussian_window, " + ", ".join(NEW_FIELDS)),
    ],
)
def test_an_unknown_option_comes_with_the_nearest_known_one(name, hint):
    with pytest.raises(TypeError) as raised:
        MASKFEAT.replace(**{name: 1})
    assert str(raised.value) == f"unknown HOG option {name!r}; {hint}"


@pytest.mark.parametrize("bins", range(1, 73))
def test_edge_cotangents_are_those_of_the_inner_edges(bins):
    got = edge_cotangents(bins)
    assert len(got) == bins - 1
    for k, cotangent in enumerate(got, start=1):
        angle = math.pi * k / bins
        assert cotangent == pytest.approx(math.cos(angle) / math.sin(angle), rel=2e-14, abs=1e-15)
        assert cotangent == -got[bins - k - 1]
        assert 2 * k != bins or cotangent == 0
        assert 4 * k != bins or cotangent == 1
        assert 4 * k != 3 * bins or cotangent == -1


def test_gaussian_kernel_literal():
    # Standard deviation 4 // 2 = 2 at -1.5, -0.5, 0.5, 1.5.
    far, near = math.exp(-(1.5**2) / 8), math.exp(-(0.5**2) / 8)
    total = 2 * (far + near)
    assert gaussian_kernel(4) == pytest.approx([far / total, near / total, near / total, far / total], rel=1e-15)


@pytest.mark.parametrize("side", [1, 2, 3, 7, 16])
def test_gaussian_kernel_sums_to_one_and_is_symmetric(side):
    kernel = gaussian_kernel(side)
    assert len(kernel) == side
    assert sum(kernel) == pytest.approx(1, rel=1e-15)
    assert kernel == pytest.approx(kernel[::-1], rel=1e-15)
