"""compat.skimage.hog against scikit-image: random parameters, dtypes, strides, pictures, errors."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import device_of
from skimage import data
from skimage.feature import hog as skimage_hog

from maskfeat_kernels import backend as backends
from maskfeat_kernels.compat import arrays
from maskfeat_kernels.compat.skimage import NORMS, hog

needs_module = pytest.mark.skipif(arrays._numpy_ops is None, reason="maskfeat_kernels._numpy_ops is not built")
DTYPES = ("uint8", "bool", "int16", "uint32", "int64", "float16", "float32", "float64")
ATOL = 1e-6
"""scikit-image's cells are float32 sums: of at most 12 x 12 magnitudes, they are off by some 2e-7."""


def random_case(seed: int) -> tuple[np.ndarray, dict]:
    """An image and options. Few levels make many channels equally strong."""
    rng = np.random.default_rng(seed)
    cell, block = rng.integers(2, 13, 2), rng.integers(1, 4, 2)
    size = cell * block + rng.integers(0, 30, 2)
    channels = int(rng.integers(0, 4))  # 0 is gray, without an axis
    image = rng.integers(0, rng.choice([3, 16, 256]), (*size, channels) if channels else size)
    axis = int(rng.integers(-3, 3)) if channels else None
    if channels:
        image = np.moveaxis(image, -1, axis)
    options = {
        "orientations": int(rng.integers(1, 20)),
        "pixels_per_cell": tuple(cell.tolist()),
        "cells_per_block": tuple(block.tolist()),
        "block_norm": list(NORMS)[seed % 4],
        "visualize": bool(rng.integers(2)),
        "transform_sqrt": bool(rng.integers(2)),
        "feature_vector": bool(rng.integers(2)),
        "channel_axis": axis,
    }
    return image.astype(DTYPES[rng.integers(len(DTYPES))]), options


def undecided_cells(image: np.ndarray, options: dict) -> np.ndarray:  # [rows, columns] bool
    """Cells with a pixel whose bin or channel depends on how the library at hand rounds arc tangents and lengths.

    Scaled whole numbers and roots lie on edges (sqrt 3 : 1, and sqrt 18 - sqrt 8 : sqrt 2), and gradients of different
    channels are equally long, in exact arithmetic only: differences of rounded ones miss by some ulps of the largest.
    """
    (c_row, c_col), bins = options["pixels_per_cell"], options["orientations"]
    if options["channel_axis"] is not None:
        image = np.moveaxis(image, options["channel_axis"], -1)
    rows, columns = image.shape[0] // c_row, image.shape[1] // c_col
    if not options["transform_sqrt"] and (image == np.round(image)).all():
        return np.zeros((rows, columns), bool)
    root = np.sqrt(image.astype(float)) if options["transform_sqrt"] else image.astype(float)
    root = root.reshape(*image.shape[:2], -1)
    slack = 8 * root.max() * np.finfo(np.float32 if image.dtype.char in "ef" else float).eps
    gy, gx = np.zeros_like(root), np.zeros_like(root)
    gy[1:-1], gx[:, 1:-1] = root[2:] - root[:-2], root[:, 2:] - root[:, :-2]
    edges = np.pi * np.arange(bins) / bins
    distance = np.abs(gx[..., None] * np.sin(edges) - gy[..., None] * np.cos(edges))
    on_axis = (gx == 0) | (gy == 0)  # exact zeros, whose bins are certain
    undecided = ((distance < slack).any(-1) & ~on_axis).any(-1)
    length = np.hypot(gx, gy)
    rival = length > length.max(-1, keepdims=True) - slack
    undecided |= (rival.sum(-1) > 1) & (length.max(-1) > 0)
    cells = undecided[: rows * c_row, : columns * c_col].reshape(rows, c_row, columns, c_col)
    return cells.any((1, 3))


def blocks_of(cells: np.ndarray, block: tuple[int, int]) -> np.ndarray:  # [R, C] bool
    """Blocks that hold one of the cells."""
    return np.lib.stride_tricks.sliding_window_view(cells, block).any((2, 3))


def compare(image, options, run, unsure=None):
    """The result of ``run`` is scikit-image's, but for the cells [rows, columns] that are ``unsure``."""
    expected, result = skimage_hog(image, **options), run(image, **options)
    if not options["visualize"]:
        expected, result = (expected,), (result,)
    if unsure is None:
        axis, (c_row, c_col) = options["channel_axis"], options["pixels_per_cell"]
        height, width = image.shape if axis is None else np.moveaxis(image, axis, -1).shape[:2]
        unsure = np.zeros((height // c_row, width // c_col), bool)
    for a, b in zip(expected, result, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
    shape = (*blocks_of(unsure, options["cells_per_block"]).shape, -1)
    error = np.abs(expected[0] - result[0]).reshape(shape).max(-1)
    sure = ~blocks_of(unsure, options["cells_per_block"])
    assert (error <= ATOL)[sure].all()
    if options["visualize"]:
        height, width = (n * side for n, side in zip(unsure.shape, options["pixels_per_cell"], strict=True))
        sure = np.ones(expected[1].shape, bool)
        sure[:height, :width] = ~np.kron(unsure, np.ones(options["pixels_per_cell"], bool))
        assert ((expected[1] != 0) == (result[1] != 0))[sure].all()
        np.testing.assert_allclose(result[1][sure], expected[1][sure], rtol=2e-6, atol=0)


@needs_module
@pytest.mark.parametrize("first", range(0, 240, 24))
def test_random_parameters(first):
    for seed in range(first, first + 24):
        compare(*random_case(seed), hog)


@needs_module
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket"])
@pytest.mark.parametrize("orientations", [8, 9, 12])
@pytest.mark.parametrize("transform_sqrt", [False, True])
def test_photographs(name, dtype, orientations, transform_sqrt):
    """Scaled to [0, 1], a photograph is full of ties that scikit-image decides by rounding."""
    image = getattr(data, name)()[:200, :240]
    image = image if dtype == "uint8" else (image / 255).astype(dtype)
    options = dict(orientations=orientations, channel_axis=-1, transform_sqrt=transform_sqrt)
    np.testing.assert_allclose(hog(image, **options), skimage_hog(image, **options), rtol=0, atol=ATOL)


@needs_module
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bins", [1, 2, 4, 6, 8, 9, 12, 18])
def test_gradients_that_rounding_has_put_beside_an_edge(bins, dtype):
    """A pixel for each direction some ulps to either side of each edge, for 0 and 180 degrees too: a few in no bin."""
    angles = np.pi * np.arange(2 * bins + 1)[:, None] / bins - np.pi
    ulps = np.arange(-6, 7) * np.finfo(dtype).eps
    gx, gy = np.cos(angles) * (1 + ulps), np.sin(angles) + np.where(np.abs(np.sin(angles)) < 1e-9, ulps, 0)
    cells = np.zeros((gx.size, 4, 3), dtype)
    cells[:, 1, 2], cells[:, 2, 1] = gx.ravel(), gy.ravel()  # the gradient at (1, 1)
    options = dict(orientations=bins, pixels_per_cell=(4, 3), cells_per_block=(1, 1), block_norm="L1")
    for cell in cells:
        np.testing.assert_allclose(hog(cell, **options), skimage_hog(cell, **options), rtol=0, atol=ATOL)


@needs_module
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_channels_that_only_rounding_tells_apart(dtype):
    """Lengths of channels that are equal but for some ulps, in each order of three; bins tell which was taken."""
    rng = np.random.default_rng(0)
    gradient = np.stack([(3.0, 4.0), (4.0, -3.0), (-5.0, 1e-9)]) / 255
    scale = 1 + rng.integers(-3, 4, (64, 64, 3)) * np.finfo(dtype).eps
    image = np.zeros((64, 3, 64, 3, 3))  # rows of cells, y, columns of cells, x, channel
    order = rng.permuted(np.tile(np.arange(3), (64, 64, 1)), axis=-1)
    image[:, 1, :, 2], image[:, 2, :, 1] = (gradient[order, axis] * scale for axis in (0, 1))
    image = image.reshape(192, 192, 3).astype(dtype)
    options = dict(pixels_per_cell=(3, 3), cells_per_block=(1, 1), channel_axis=-1)
    np.testing.assert_allclose(hog(image, **options), skimage_hog(image, **options), rtol=0, atol=ATOL)


@pytest.fixture
def tensor_hog(backend, monkeypatch):
    """hog of a tensor by the backend under test; the results come back as arrays."""
    monkeypatch.setattr(backends, "choose_backend", lambda device, name: backend)

    def run(image, **options):
        result = hog(torch.from_numpy(np.ascontiguousarray(image)).to(device_of(backend)), **options)
        result = result if isinstance(result, tuple) else (result,)
        arrays = tuple(x.cpu().numpy() for x in result)
        return arrays if options.get("visualize") else arrays[0]

    return run


@pytest.mark.sampled(lambda seed: seed == 1001)
@pytest.mark.parametrize("seed", range(1000, 1024))
def test_tensors(seed, tensor_hog):
    image, options = random_case(seed)
    compare(image, options, tensor_hog, undecided_cells(image, options))


@needs_module
@pytest.mark.parametrize("dtype", [*DTYPES, "longdouble", ">f4", ">i2", "object"])
def test_dtypes(dtype):
    image = np.random.default_rng(0).integers(0, 2, (40, 33)).astype(dtype)
    expected, result = skimage_hog(image), hog(image)
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result, expected, rtol=0, atol=ATOL)


@needs_module
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
def test_any_strides_and_read_only_memory(dtype):
    image = np.random.default_rng(0).integers(0, 256, (80, 90, 3)).astype(dtype)
    image.flags.writeable = False
    unaligned = np.zeros(80 * 90 * 3 * image.itemsize + 1, np.uint8)[1:].view(dtype).reshape(image.shape)
    unaligned[:] = image
    field = np.zeros((80, 90, 3), np.dtype([("pixel", dtype), ("other", "uint8")]))
    field["pixel"] = image
    views = image[::-1, ::-2], image[3:, 5::3, ::-1], image.transpose(1, 0, 2), unaligned, field["pixel"]
    views += (np.broadcast_to(image[:, :, :1], image.shape), np.asfortranarray(image), image[:, ::4][:24])
    for view in views:
        expected = skimage_hog(view, pixels_per_cell=(7, 5), channel_axis=-1)
        np.testing.assert_allclose(hog(view, pixels_per_cell=(7, 5), channel_axis=-1), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("options", [
    {"channel_axis": 0, "feature_vector": False}, pytest.param({"channel_axis": -1}, marks=pytest.mark.slow),
    pytest.param({"channel_axis": (2,), "transform_sqrt": True}, marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.uint8, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_compiled_without_graph_break(dtype, options):
    torch.compiler.reset()
    image = torch.randint(0, 256, (40, 48, 40), generator=torch.Generator().manual_seed(0)).to(dtype)
    compiled = torch.compile(hog, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(image, **options), hog(image, **options))


@needs_module
@pytest.mark.parametrize("norm", NORMS)
def test_infinity_marks_all_of_the_blocks_that_see_it(norm):
    """Where scikit-image has zeros too, beside the NaN of the infinite bin."""
    image = np.random.default_rng(0).integers(0, 256, (60, 60)).astype(float)
    image[20, 30] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-image's inf / inf
        expected = skimage_hog(image, block_norm=norm, feature_vector=False)
    wrong = np.isnan(expected).any((-3, -2, -1))
    assert wrong.any() and not wrong.all()
    for x in (image, torch.from_numpy(image)):
        result = np.asarray(hog(x, block_norm=norm, feature_vector=False))
        assert np.isnan(result[wrong]).all()
        np.testing.assert_allclose(result[~wrong], expected[~wrong], rtol=0, atol=ATOL)


@needs_module
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("sqrt", [False, True])
def test_nan_is_where_scikit_image_has_it(norm, sqrt):
    image = np.random.default_rng(0).integers(0, 256, (60, 60)).astype(float)
    image[20, 30] = -1 if sqrt else np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-image's root of a negative number
        expected = skimage_hog(image, block_norm=norm, transform_sqrt=sqrt, visualize=True)
    for a, b in zip(expected, hog(image, block_norm=norm, transform_sqrt=sqrt, visualize=True), strict=True):
        assert np.isnan(a).any() and not np.isnan(a).all()
        np.testing.assert_allclose(b, a, rtol=2e-6, atol=ATOL)


@needs_module
@pytest.mark.parametrize(
    "options",
    [
        {"orientations": 0},
        {"orientations": 0, "visualize": True},
        {"cells_per_block": (0, 2), "feature_vector": False},
        {"pixels_per_cell": (8.0, np.float64(8))},
        {"pixels_per_cell": [8, 8], "cells_per_block": np.array([2, 2])},
        {"orientations": np.int64(5)},
    ],
)
def test_unusual_parameters(options):
    image = np.arange(32 * 40, dtype=np.uint8).reshape(32, 40)
    expected, result = skimage_hog(image, **options), hog(image, **options)
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (expected, result)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b, a, rtol=0, atol=ATOL)


@pytest.mark.parametrize("as_image", [pytest.param(np.asarray, marks=needs_module), torch.from_numpy])
@pytest.mark.parametrize(
    "shape, options, error",
    [
        ((16, 40), {}, ValueError),
        ((40, 40), {"pixels_per_cell": (50, 8)}, ValueError),
        ((40, 40, 3), {}, ValueError),
        ((40, 40), {"channel_axis": -1}, ValueError),
        ((40, 40, 3), {"channel_axis": (0, 1)}, ValueError),
        ((40, 40, 0), {"channel_axis": -1}, ValueError),
        ((40, 40, 3), {"channel_axis": 5}, IndexError),
        ((40, 40), {"block_norm": "l2"}, ValueError),
        ((40, 40), {"block_norm": None}, ValueError),
        ((40, 40), {"block_norm": "l2", "orientations": 0}, ValueError),
        ((40, 40), {"orientations": 9.0}, TypeError),
        ((40, 40), {"orientations": -1}, ValueError),
        ((40, 40), {"pixels_per_cell": 8}, TypeError),
        ((40, 40), {"pixels_per_cell": "88"}, TypeError),
        ((40, 40), {"pixels_per_cell": (8, 8, 8)}, ValueError),
        ((40, 40), {"pixels_per_cell": (-8, 8)}, ValueError),
        ((40, 40), {"pixels_per_cell": (0, 8)}, ZeroDivisionError),
        ((40, 40), {"cells_per_block": 2}, TypeError),
        ((40, 40), {"cells_per_block": (2.0, 2)}, TypeError),
        ((40, 40), {"pixels_per_cell": (1, 1), "visualize": True}, IndexError),
    ],
)
def test_errors_are_those_of_scikit_image(as_image, shape, options, error):
    image = np.zeros(shape)
    with pytest.raises(error):
        skimage_hog(image, **options)
    with pytest.raises(error):
        hog(as_image(image), **options)


def test_a_complex_image_is_refused():
    for image in (np.zeros((40, 40), complex), torch.zeros(40, 40, dtype=torch.complex64)):
        with pytest.raises(ValueError, match="complex valued input is not supported"):
            hog(image)


@needs_module
@pytest.mark.parametrize("side", [8.5, np.float32(8.5), np.inf])
def test_a_fraction_of_a_pixel_is_refused(side):
    with pytest.raises(ValueError, match="pixels_per_cell must be whole numbers of pixels, got"):
        hog(np.zeros((40, 40)), pixels_per_cell=(side, 8))


def test_without_the_module_arrays_are_refused(monkeypatch):
    monkeypatch.setattr(arrays, "_numpy_ops", None)
    with pytest.raises(RuntimeError, match="_numpy_ops, which is not built"):
        hog(np.zeros((40, 40)))


@needs_module
def test_arrays_never_load_torch():
    code = """
import sys, numpy
from maskfeat_kernels.compat.opencv import HOGDescriptor
from maskfeat_kernels.compat.skimage import hog
hog(numpy.zeros((40, 40, 3)), visualize=True, channel_axis=-1)
HOGDescriptor().compute(numpy.zeros((128, 64, 3), numpy.uint8))
assert not {"torch", "triton", "cv2", "skimage"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
