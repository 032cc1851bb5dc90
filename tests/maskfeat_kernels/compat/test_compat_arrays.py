"""The module for NumPy against the plain torch meaning: batches, regions, strides; direct calls that make no sense."""

import numpy as np
import pytest
import torch

from maskfeat_kernels import DALAL_TRIGGS, MASKFEAT, OPENCV, SKIMAGE
from maskfeat_kernels.compat import arrays
from maskfeat_kernels.hog import reference
from maskfeat_kernels.hog.plan import Region, block_shape, pack, whole

if arrays._numpy_ops is None:
    pytest.skip("maskfeat_kernels._numpy_ops is not built", allow_module_level=True)

slow = pytest.mark.slow
SPECS = {
    "opencv": OPENCV,
    "skimage": SKIMAGE,
    "dalal_triggs": DALAL_TRIGGS,
    "each_channel": SKIMAGE.replace(channels="each", layout="planes"),
    "maskfeat_blocks": MASKFEAT.replace(block=2),
}


@pytest.mark.parametrize("dtype", ["uint8", "float32", *(pytest.param(d, marks=slow) for d in ("float16", "float64"))])
@pytest.mark.parametrize("shape", [(40, 33), (3, 40, 33), (2, 3, 40, 33), (2, 1, 2, 40, 33), (0, 3, 40, 33)])
@pytest.mark.parametrize("name", SPECS)
def test_batches(name, shape, dtype):
    spec = SPECS[name]
    x = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)[..., ::-1]
    for region in (whole(spec, 40, 33), Region(-13, -5, 70, 50, 48)):
        result = arrays.hog_blocks(x, spec, region)
        expected = reference.hog(torch.from_numpy(x.astype(float)), spec, region).numpy()
        assert result.shape == expected.shape and result.dtype == (np.float64 if dtype == "float64" else np.float32)
        assert result.flags.c_contiguous
        # Sums in another order. The coefficients of OpenCV's polynomial are rounded to float32.
        exact = 5e-8 if spec.arithmetic == "opencv" else 1e-12
        np.testing.assert_allclose(result, expected, rtol=0, atol=exact if dtype == "float64" else 2e-6)


X = np.zeros((3, 40, 33), np.uint8)
NUMBERS, REALS = pack(SKIMAGE)
REGION = whole(SKIMAGE, 40, 33)
SHAPE = block_shape(SKIMAGE, REGION)


@pytest.mark.parametrize(
    "arguments, error, names",
    [
        ((X.tolist(), NUMBERS, REALS, REGION, SHAPE), TypeError, "incompatible function arguments"),
        ((X[0, 0], NUMBERS, REALS, REGION, SHAPE), ValueError, "C, H, W"),
        ((X.astype(np.int32), NUMBERS, REALS, REGION, SHAPE), ValueError, "uint8, float16, float32 or float64"),
        ((X.astype(bool), NUMBERS, REALS, REGION, SHAPE), ValueError, "uint8, float16, float32 or float64"),
        ((X.astype(">f4"), NUMBERS, REALS, REGION, SHAPE), ValueError, "native byte order"),
        ((X[:0], NUMBERS, REALS, REGION, SHAPE), ValueError, "channels"),
        ((X[:, :0], NUMBERS, REALS, REGION, SHAPE), ValueError, "no pixels"),
        ((X, NUMBERS, REALS, REGION, (*SHAPE, 2)), ValueError, "shape"),
        ((X, NUMBERS[:-1], REALS, REGION, SHAPE), ValueError, "not the parameters"),
        ((X, NUMBERS, REALS[:-1], REGION, SHAPE), ValueError, "not the parameters"),
        ((X, NUMBERS, REALS, REGION[:4], SHAPE), TypeError, "incompatible function arguments"),
        ((np.zeros(41, np.uint8)[1:].view("f4").reshape(2, 5), NUMBERS, REALS, REGION, SHAPE), ValueError, "aligned"),
    ],
)
def test_direct_calls_stay_inside_their_memory(arguments, error, names):
    with pytest.raises(error, match=names):
        arrays._numpy_ops.hog_blocks(*arguments)


@pytest.mark.parametrize(
    "axis, size",
    [
        ((8, 8, 1, 1, 7, 1, 8, 0), 200_000),  # each block begins a pixel earlier in its pixels than the one before
        ((1000, 8, 1, 1, 9, 1, 8, 0), 400_000),  # and a pixel later
        ((8, 8, 1, 1, 8, 1, 9, 0), 1),  # a cell longer than its block
        ((1, 1, 1, 1, 1, 1, 1, 0), 67280421310721),  # 274177 rows of these are 2^64 + 1 blocks
    ],
)
def test_tables_that_leave_the_image_are_refused(axis, size):
    square, length = (8, 8, 1, 1, 8, 1, 8, 0), axis[6]
    rows, reals = (axis, 2 * [1.0] * length) if size > 10**9 else (square, [1.0] * (8 + length))
    region = (0, 0, 274177 if size > 10**9 else 8, axis[0] + axis[1] * (size - 1), 0)
    with pytest.raises(ValueError, match="not the parameters"):
        arrays._numpy_ops.hog_blocks(X, [1, *NUMBERS[1:10], *rows, *axis], [1e-5, 1e-5, 0.2, *reals], region, (1, size))
