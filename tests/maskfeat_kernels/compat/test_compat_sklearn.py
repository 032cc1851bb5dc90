"""The transformer of scikit-learn: its rules, the numbers of fused_hog, names of features, and refusals."""

import subprocess
import sys

import numpy as np
import pytest
import skimage.feature
import torch

from maskfeat_kernels import MASKFEAT, OPENCV, SKIMAGE, fused_hog
from maskfeat_kernels.compat import arrays

pytest.importorskip("sklearn")
if arrays._numpy_ops is None:
    pytest.skip("maskfeat_kernels._numpy_ops is not built", allow_module_level=True)

from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from maskfeat_kernels.compat.sklearn import HOGTransformer

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 2), dtype=np.uint8)
EXPECTED_FAILURES: dict[str, str] = {}  # none; the rows of all checks are images of one row of pixels
SKIPPED = {"check_array_api_input"}  # needs SCIPY_ARRAY_API in the environment


def test_check_estimator():
    results = check_estimator(
        HOGTransformer(cell=1, block=1), expected_failed_checks=EXPECTED_FAILURES, on_skip=None, on_fail="raise"
    )
    assert len(results) > 40
    assert {result["check_name"] for result in results if result["status"] != "passed"} <= SKIPPED


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64", "int64", ">f4"])
@pytest.mark.parametrize("spec", [None, MASKFEAT, OPENCV, SKIMAGE.replace(votes="linear", cell=5)])
def test_it_is_fused_hog_of_each_image(spec, dtype):
    images = IMAGES.astype(dtype)
    exact = images.astype("f8" if dtype == "int64" else images.dtype.newbyteorder("="))
    want = fused_hog(torch.from_numpy(np.moveaxis(exact, -1, 1)), spec or SKIMAGE).flatten(1).numpy()
    of_images = HOGTransformer(spec).fit_transform(images)
    of_rows = HOGTransformer(spec, image_shape=(24, 32, 2)).fit_transform(images.reshape(3, -1))
    assert of_images.dtype == want.dtype
    np.testing.assert_array_equal(of_images, of_rows)
    np.testing.assert_allclose(of_images, want, rtol=0, atol=2e-6)


def test_it_is_the_hog_of_scikit_image():
    images = IMAGES[..., 0]
    want = [skimage.feature.hog(image, 8, (4, 4), (2, 2)) for image in images]
    np.testing.assert_allclose(HOGTransformer(bins=8, cell=4, block=2).fit_transform(images), want, atol=1e-6)


def test_names_of_features_say_where_they_stand():
    x = np.zeros((1, 24, 32), np.uint8)
    x[0, 2, 9] = 255  # in the second of four cells across, which two blocks hold
    transformer = HOGTransformer(block=2).fit(x)
    names = transformer.get_feature_names_out()
    found = {name.rpartition("_")[0] for name in names[transformer.transform(x)[0] > 0]}
    assert found == {"row0_column0_down0_across1", "row0_column1_down0_across0"}
    assert len(set(names)) == len(names) == 2 * 3 * 4 * 9
    names = HOGTransformer(MASKFEAT).fit(IMAGES).get_feature_names_out()
    assert (names[0], names[-1]) == ("channel0_bin0_row0_column0", "channel1_bin8_row2_column3")
    names = HOGTransformer(OPENCV).fit(x).get_feature_names_out()
    assert names[-1] == "column2_row1_across1_down1_bin8"


def test_parameters_and_output():
    transformer = HOGTransformer(OPENCV, image_shape=(24, 32, 2), cell=4)
    assert transformer.get_params() == {
        "spec": OPENCV, "image_shape": (24, 32, 2), "bins": None, "cell": 4, "block": None,
    }  # fmt: skip
    copied = clone(transformer).set_params(cell=8, spec=MASKFEAT)
    assert copied.cell == 8 and copied.spec == MASKFEAT and transformer.cell == 4

    assert transformer.set_output(transform="default").fit_transform(IMAGES).shape == (3, 5 * 7 * 2 * 2 * 9)


@pytest.mark.parametrize(
    ("arguments", "x", "error", "message"),
    [
        ({}, IMAGES.reshape(3, -1), ValueError, "1 x 1536 pixels is smaller than a block of 24 x 24; image_shape says"),
        (
            {"image_shape": (24, 32)},
            IMAGES.reshape(3, -1),
            ValueError,
            r"image_shape \(24, 32\) is not that of samples",
        ),
        ({"image_shape": (24, 32)}, IMAGES, ValueError, r"samples of shape \(24, 32, 2\)"),
        ({"image_shape": 24}, IMAGES, ValueError, "image_shape must be .height, width. or .height, width, channels."),
        ({"image_shape": (24, 0)}, IMAGES, ValueError, "image_shape must be at least 1, got 0"),
        ({"image_shape": (24, "32")}, IMAGES, TypeError, "image_shape must be an int, got '32'"),
        ({"spec": "opencv"}, IMAGES, TypeError, "spec must be a HogSpec or None, got 'opencv'"),
        ({"bins": 0}, IMAGES, ValueError, "bins must be at least 1, got 0"),
        ({"spec": MASKFEAT.replace(gaussian_window=16)}, IMAGES, ValueError, "gaussian_window 16 does not tile"),
        ({}, IMAGES.astype(float) * np.nan, ValueError, "contains NaN"),
        ({}, IMAGES[0, 0, 0], ValueError, "Expected 2D array, got 1D array"),
        ({}, IMAGES[None], ValueError, "Found array with dim 5"),
    ],
)
def test_refusals(arguments, x, error, message):
    with pytest.raises(error, match=message):
        HOGTransformer(**arguments).fit(x)


def test_other_images_than_fitted_to_are_refused():
    transformer = HOGTransformer().fit(IMAGES)
    for other in (IMAGES[:, :, :, :1], np.swapaxes(IMAGES, 1, 2)):
        with pytest.raises(ValueError, match=r"images must be of shape \(24, 32, 2\), as fitted to"):
            transformer.transform(other)
    with pytest.raises(ValueError, match="X has 7 features, but HOGTransformer is expecting 1536"):
        transformer.transform(np.zeros((1, 7)))


@pytest.mark.slow  # scikit-learn takes long to import
def test_it_works_without_torch():
    code = """
import sys, numpy
from maskfeat_kernels.compat.sklearn import HOGTransformer
print(HOGTransformer().fit_transform(numpy.zeros((2, 24, 24))).shape, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(2, 81) False\n"
