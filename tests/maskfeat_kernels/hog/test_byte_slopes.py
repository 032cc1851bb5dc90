"""The bins of bytes in the CUDA kernel, emulated: a slope that is a few roundings off decides as the products do."""

import numpy as np
import pytest

from maskfeat_kernels.hog.plan import edge_cotangents

LARGEST = 4 * 255
UNIT = np.float32(2.0**-24)  # of a byte that is read as half precision


@pytest.mark.parametrize("ulps", [-1, 0, 1])  # the accuracy of rcp.approx, by the PTX manual
@pytest.mark.parametrize("bins", range(1, 10))
def test_slopes_reach_the_edges_that_products_reach(bins, ulps):
    gx = np.arange(LARGEST + 1, dtype=np.float32)[:, None] * UNIT
    gy = np.arange(-LARGEST, LARGEST + 1, dtype=np.float32)[None, :] * UNIT
    votes = (gx > 0) | (gy > 0)  # of the half plane; a gradient of zero has none
    with np.errstate(divide="ignore", invalid="ignore"):
        reciprocal = np.where(gx > 0, ((1 / gx).view(np.int32) + ulps).view(np.float32), np.float32(np.inf))
        slope = gy * reciprocal
    for cotangent in np.float32(edge_cotangents(bins)[: bins // 2]):
        shift = cotangent * np.float32(2.0**-21)
        assert np.array_equal((slope <= cotangent + shift)[votes], (gx * cotangent >= gy)[votes])
        assert np.array_equal((slope <= -cotangent + shift)[votes], (gx * -cotangent >= gy)[votes])
