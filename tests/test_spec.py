"""HogSpec: what it accepts, what it refuses and how it says so."""

import math

import pytest

from maskfeat_kernels import MASKFEAT, HogSpec
from maskfeat_kernels.spec import edge_cotangents, gaussian_kernel


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
]


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
        ("cells", "did you mean 'cell'?"),
        ("gaussian", "did you mean 'gaussian_window'?"),
        ("zzz", "known: bins, cell, gaussian_window"),
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
