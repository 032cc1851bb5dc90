"""``skimage.feature.hog`` on the kernels of this package: ``from maskfeat_kernels.compat.skimage import hog``."""

import functools
import math
import operator
from typing import Any

import numpy as np

from ..hog.plan import whole
from ..hog.spec import SKIMAGE, HogSpec
from .arrays import Array, hog_blocks, is_tensor, like, to_numpy

NORMS = {"L1": "l1", "L1-sqrt": "l1-sqrt", "L2": "l2", "L2-Hys": "l2-hys"}


def hog(
    image: Any,  # [H, W], or with channel_axis [H, W, C] in any order
    orientations: int = 9,
    pixels_per_cell: tuple[int, int] = (8, 8),
    cells_per_block: tuple[int, int] = (3, 3),
    block_norm: str = "L2-Hys",
    visualize: bool = False,
    transform_sqrt: bool = False,
    feature_vector: bool = True,
    *,
    channel_axis: int | None = None,
) -> Any:  # [R * C * block_rows * block_columns * orientations], or with these five axes; and [H, W]
    r"""Histograms of oriented gradients with the definition, parameters and errors of scikit-image's ``hog``.

    The gradient is the pixel after minus the pixel before, of the strongest channel. A pixel votes with its length for
    the bin that holds :math:`\operatorname{atan2}(g_y, g_x) \bmod \pi`. A cell is the mean of its votes. Each block of
    cells is normalised.

    Args:
        image: anything that ``numpy.asarray`` takes, of any real dtype, a torch tensor on any device, or an array of
            CuPy, JAX or another library with ``__dlpack__``. float16 and float32 give float32, all others float64.
        visualize: return a picture [H, W] too, drawn as scikit-image draws it: of the cells before normalisation.
            (:func:`maskfeat_kernels.hog_image` draws the result itself.)

    The other arguments, and what is raised, are scikit-image's. The results of arrays are within 1e-6 of its own, with
    up to 126 orientations and cells of 32 x 32 pixels. In larger cells it is off by up to 1e-5 itself, as it adds up
    in float32. This holds also where rounding decides, because a gradient lies on the edge of a bin or is equally long
    in two channels. Whole numbers, and so all bytes, have no such gradients; photographs scaled to [0, 1], or with
    ``transform_sqrt``, have many.

    Tensors and other arrays give their kind on their device; a float tensor that requires a gradient gets one. On the
    CPU the C library rounds their bins; NumPy's vectorised arc tangent takes some pixels in 100,000 to another bin. On
    a GPU the bins are those of exact arithmetic. In a scaled photograph this moves up to a tenth of the entries, by up
    to 0.3. Beside an infinite pixel, or where squares are beyond float32 (differences of 1e19), all of a block is NaN,
    where scikit-image also has zeros.

    Refused, where scikit-image mixes two sizes or draws at the other side of the picture: cells of a fraction of a
    pixel (ValueError), and a picture of cells of one pixel (IndexError).

    Source: scikit-image 0.26, ``skimage.feature.hog``.
    """
    if not is_tensor(image) and hasattr(image, "__dlpack_device__") and not isinstance(image, np.ndarray):
        from ..interchange import through_tensors

        sizes, options = (orientations, pixels_per_cell, cells_per_block), (visualize, transform_sqrt, feature_vector)
        return through_tensors(
            lambda image: hog(image, *sizes, block_norm, *options, channel_axis=channel_axis), image=image
        )
    x, wide = _pixels(image, bool(transform_sqrt), channel_axis)
    cell_rows, cell_columns = (_whole("pixels_per_cell", value) for value in pixels_per_cell)
    block_rows, block_columns = map(operator.index, cells_per_block)
    orientations = operator.index(orientations)
    height, width = x.shape[-2:]
    rows = height // cell_rows - block_rows + 1
    columns = width // cell_columns - block_columns + 1
    if rows <= 0 or columns <= 0:
        raise ValueError(
            "The input image is too small given the values of pixels_per_cell and cells_per_block. It should have at"
            f" least: {block_rows * cell_rows} rows and {block_columns * cell_columns} cols."
        )
    cell, block = (cell_rows, cell_columns), (block_rows, block_columns)
    dtype, arithmetic = np.float64 if wide else np.float32, _arithmetic(x)
    if not (isinstance(block_norm, str) and block_norm in NORMS):
        raise ValueError(f"block_norm must be one of {', '.join(NORMS)}, got {block_norm!r}")
    if 0 in (orientations, *block):
        blocks = like(x, np.zeros((rows, columns, *block, orientations), dtype))
    else:
        spec = _spec(x, orientations, cell, block, NORMS[block_norm], bool(transform_sqrt), arithmetic)
        blocks = _as(hog_blocks(x, spec, whole(spec, height, width)), wide)
    result = blocks.reshape(-1) if feature_vector else blocks
    if not visualize:
        return result
    picture = np.zeros((height, width), dtype)
    if orientations:
        spec = _spec(x, orientations, cell, (1, 1), "none", bool(transform_sqrt), arithmetic)
        cells = to_numpy(hog_blocks(x, spec, whole(spec, height, width)))
        cells = cells.reshape(*cells.shape[:2], orientations).astype(np.float64)
        draw(cells, cell, picture)
    return result, like(x, picture)


def _spec(x: Array, *parameters: Any) -> HogSpec:
    """Made once; torch.compile, which warns of a cache that it would trace into, has its own."""
    if is_tensor(x):
        import torch

        if torch.compiler.is_compiling():
            return _new_spec(*parameters)
    return _cached_spec(*parameters)


def _new_spec(
    orientations: int, cell: tuple[int, int], block: tuple[int, int], norm: str, sqrt: bool, arithmetic: str
) -> HogSpec:
    return SKIMAGE.replace(bins=orientations, cell=cell, block=block, norm=norm, sqrt=sqrt, arithmetic=arithmetic)


_cached_spec = functools.lru_cache(_new_spec)


def _arithmetic(x: Array) -> str:
    """The arithmetic of the spec: scikit-image's, but "exact" on backends that have no other, and for bytes.

    Gradients of bytes are not rounded, so both give the same result for them.
    """
    if is_tensor(x):
        import torch

        from .. import backend

        on_cpu = backend.choose_backend(x.device, "auto") in ("cpu", "reference")
        return "skimage" if on_cpu and x.dtype != torch.uint8 else "exact"
    return "exact" if x.dtype == np.uint8 else "skimage"


def _pixels(image: Any, sqrt: bool, channel_axis: Any) -> tuple[Array, bool]:
    """(pixels, wide): [C, H, W] or [H, W] of a dtype of the kernels; whether the result is float64."""
    if is_tensor(image):
        from ..checks import check_dense

        check_dense("image", image)
    x: Any = image if is_tensor(image) else np.atleast_2d(image)
    if channel_axis is not None:
        axes = channel_axis if isinstance(channel_axis, (tuple, list)) else (channel_axis,)
        if len(axes) > 1:
            raise ValueError("only a single channel axis is currently supported")
        x = x.movedim(axes[0], 0) if is_tensor(x) else np.moveaxis(x, axes[0], 0)
    if x.ndim != 2 + (channel_axis is not None):
        raise ValueError(
            "Only images with two spatial dimensions are supported. If using with color/multichannel images, specify"
            f" `channel_axis`; got shape {tuple(image.shape if is_tensor(image) else x.shape)}"
        )
    if channel_axis is not None and x.shape[0] == 0:
        raise ValueError(f"image must have a channel, got shape {tuple(x.shape)}")
    if is_tensor(x):
        import torch

        if x.is_complex():
            raise ValueError("complex valued input is not supported")
        if x.is_quantized:
            raise TypeError(f"image must not be quantized, got {x.dtype}; take its dequantize()")
        wide = not x.is_floating_point() or x.dtype == torch.float64
        return (x.double() if wide and (sqrt or x.dtype != torch.uint8) else x), wide
    if x.dtype.kind == "c":
        raise ValueError("complex valued input is not supported")
    # Whole numbers are exact in float32 also; their square roots have to be scikit-image's.
    wide = x.dtype.char not in "ef"
    return (x.astype(np.float64, copy=False) if wide and (sqrt or x.dtype != np.uint8) else x), wide


def _as(x: Array, wide: bool) -> Array:
    """Results as float64, or float32."""
    if is_tensor(x):
        return x.double() if wide else x
    return x.astype(np.float64 if wide else np.float32, copy=False)


def _whole(name: str, value: Any) -> int:
    if value % 1 != 0:
        raise ValueError(f"{name} must be whole numbers of pixels, got {value!r}")
    return int(value)


def draw(
    cells: np.ndarray,  # [rows, columns, bins]
    cell: tuple[int, int],
    picture: np.ndarray,  # [H, W], drawn into
) -> None:
    """Add a line for each bin of each cell, along the edges that it stands for, as bright as the bin is full.

    The ends of the lines are cut to whole pixels as scikit-image does, at each place in the picture anew.
    """
    radius = min(cell) // 2 - 1
    if radius < 0:
        raise IndexError(f"cells of one pixel cannot be drawn, got pixels_per_cell {cell}")
    rows, columns, bins = cells.shape
    y = np.arange(rows) * cell[0] + cell[0] // 2
    x = np.arange(columns) * cell[1] + cell[1] // 2
    for k in range(bins):
        angle = np.pi * (k + 0.5) / bins
        down, across = radius * np.cos(angle), radius * np.sin(angle)
        y0, y1 = (y - down).astype(int), (y + down).astype(int)
        x0, x1 = (x + across).astype(int), (x - across).astype(int)
        for height in np.unique(y1 - y0):
            for width in np.unique(x1 - x0):
                line_y, line_x = _line(int(height), int(width))
                r, c = np.flatnonzero(y1 - y0 == height), np.flatnonzero(x1 - x0 == width)
                place = y0[r, None, None] + line_y, x0[None, c, None] + line_x
                picture[place] += cells[r[:, None], c, k, None]


def _line(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of Bresenham's line from (0, 0) to (height, width)."""
    long, short = max(abs(height), abs(width)), min(abs(height), abs(width))
    i = np.arange(long + 1)
    j = (2 * short * i + long) // max(2 * long, 1)
    y, x = (i, j) if abs(height) > abs(width) else (j, i)
    return int(math.copysign(1, height)) * y, int(math.copysign(1, width)) * x
