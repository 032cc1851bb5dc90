"""The implementations we are compared with, and the photographs that all of them are given.

Unless a docstring says otherwise, they take 8x8-pixel cells and 9 unsigned orientation bins. Each docstring says what
else is computed differently; :data:`CANNOT` says what cannot be done at all. Each is called in the way that is fastest
for it: :data:`CANNOT` names that too where there is a choice.
"""

import functools
import importlib
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskfeat_kernels import MASKFEAT, OPENCV, SKIMAGE, HogSpec, fused_hog

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
"""Colour photographs that scikit-image ships in its package, so that nothing is downloaded."""

CANNOT = {
    "reference layer": "float32 images of three channels only. Taken "
    "eagerly, under torch.compile in its default mode, and under fp16 autocast, as MaskFeat trains it; on a CPU its "
    "convolutions are then cast by hand, because CPU autocast would fail in its scatter.",
    "soft conv HOG": "float32 images only. Convolutions, votes shared between the two nearest bins: how HOG is usually "
    "written for a GPU (kornia has its parts, and no HOG).",
    "OpenCV": "uint8 images only, no batch, no GPU in the wheels, no separate channels (of three it keeps the "
    "strongest at each pixel: a third of our histograms). The descriptor is made once, its window is the image.",
    "OpenCV OpenCL": "as OpenCV; gray images only, cells of 8x8 in blocks of 2x2 only, no padding.",
    "torch.lerp": "NaN and infinity in a token that is masked spread into the result.",
    "scikit-image": "no batch, no GPU, one thread, no separate channels (a third of our histograms).",
    "fasthog": "float64 gray images only, no batch, no GPU, one thread; the blocks are summed, not concatenated.",
    "hogpp": "no batch, no GPU, one thread, no separate channels. Its integral histogram is made for many windows of "
    "one image, which this job does not need; float32 input is its fastest.",
}

NUMPY_OPS = "maskfeat_kernels._numpy_ops"
"""What our drop-in modules need for arrays."""

SKIMAGE_OPTIONS = {
    "orientations": 9,
    "pixels_per_cell": (8, 8),
    "cells_per_block": (1, 1),
    "block_norm": "L2",
    "channel_axis": -1,
    "feature_vector": False,
}


OPENCV_TOLERANCE = 1e-5
"""A place of up to nine bins in float32 is off by some roundings of 2^-24, which moves that share of a vote: into a bin
from one neighbour and out of it to the other. The norm after clipping is at most half of that before. More bins have
more in proportion."""

OPENCL_TOLERANCE = 2e-3
"""On average, of OpenCV's own result on a CPU: its arc tangent is another one, off by 5e-4 of a bin or less."""

SKIMAGE_TOLERANCE = 1e-5
"""64 additions in float32 and the norm: 70 roundings of 2^-24 are 4e-6 of a bin, and as much again of the norm. Larger
cells have more in proportion."""

HOGPP_GATE = {"tolerance": 0.1, "on_average": True}
"""On average, of hogpp: float32 sums over an image of 1e6 pixels or less with a mean gradient of 30 reach 3e7, where a
step is 2; a cell is a difference of four, off by some units where a bin has a hundred. Cells without a gradient become
noise altogether. Histograms with permuted bins or cells are off by 0.18 and more."""

AUTOCAST_TOLERANCE = 0.04
"""On average: the angle in float16, up to 9 bins in steps of 2^-8, is off by three roundings, up to 0.013 of a bin, so
that up to 3 % of the votes pass an edge. Out of one bin and into another, of nine bins whose sum is at most three times
the norm: 0.02 a bin, and as much by the norm. Histograms with permuted bins are off by 0.18."""

SOFT_TOLERANCE = 5e-6
"""The place in float32, up to 9 bins, is off by three roundings of 2^-24, 1.6e-6 of a bin, which moves that share of
the votes, whose sum is at most three times the norm."""


@functools.cache
def optional(name: str):
    """A module that a rival needs, or the reason (str) why it cannot be had."""
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a shared library that is not found
        return f"{type(error).__name__}: {error}"
    if name == "cv2" and not hasattr(module, "HOGDescriptor"):
        return f"OpenCV {module.__version__} has no HOGDescriptor; OpenCV 4 has"
    return module


def is_there(name: str) -> bool:
    return not isinstance(optional(name), str)


def absent(device: str = "cpu") -> dict[str, str]:
    """Rivals that cannot take part here, and why."""
    reasons = {"OpenCV CUDA": "cuda.HOG is never called: it is in none of the wheels, only in builds from source"}
    if device == "cuda":
        reasons |= dict.fromkeys(("OpenCV", "scikit-image", "hogpp", "fasthog"), "runs on CPUs only")
        return reasons | {"OpenCV OpenCL": "measured beside OpenCV, on CPUs only"}
    modules = {
        "OpenCV": "cv2",
        "fasthog": "fasthog",
        "hogpp": "hogpp",
        "compat.skimage and compat.opencv": NUMPY_OPS,
    }
    reasons |= {rival: optional(name) for rival, name in modules.items() if not is_there(name)}
    if is_there("cv2") and not optional("cv2").ocl.haveOpenCL():
        reasons["OpenCV OpenCL"] = "OpenCV finds no OpenCL device"
    return reasons


def photograph(name: str) -> np.ndarray:  # [H, W, 3] uint8
    """A photograph, cut at the right and at the bottom to whole cells."""
    from skimage import data  # here, because it would slow the cold start of every other rival

    image = getattr(data, name)()
    height, width = image.shape[0] // 8 * 8, image.shape[1] // 8 * 8
    return np.ascontiguousarray(image[:height, :width])


def photograph_batch(batch: int, side: int = 224) -> np.ndarray:  # [batch, side, side, 3] uint8
    """Crops of the photographs in turn, each at another place; what is smaller than a crop is mirrored at its edges."""
    rng = np.random.default_rng(0)
    crops = []
    for i in range(batch):
        image = photograph(PHOTOGRAPHS[i % len(PHOTOGRAPHS)])
        beyond = [(0, max(side - size, 0)) for size in image.shape[:2]]
        image = np.pad(image, [*beyond, (0, 0)], mode="symmetric")
        y, x = (rng.integers(0, size - side + 1) for size in image.shape[:2])
        crops.append(image[y : y + side, x : x + side])
    return np.stack(crops)


def gray_batch(batch: int, side: int = 224) -> np.ndarray:  # [batch, side, side] uint8
    """The green channels of the same crops."""
    return np.ascontiguousarray(photograph_batch(batch, side)[..., 1])


def planar(images: np.ndarray) -> Tensor:  # [B, H, W, 3] or [B, H, W] -> [B, C, H, W]
    x = torch.from_numpy(images)
    return x.unsqueeze(1) if x.ndim == 3 else x.movedim(-1, 1).contiguous()


def exact(
    planes: Tensor,  # [B, C, H, W]
    spec: HogSpec = MASKFEAT,
    dtype: torch.dtype = torch.float64,
    **changes,
) -> Tensor:  # [B, ...], dtype
    """What results are checked against: the reference backend, image after image, tall images in strips.

    The votes of all pixels at once would not fit in memory. Strips have cells of 8 rows.
    """
    spec = spec.replace(**changes)
    run = functools.partial(fused_hog, spec=spec, backend="reference")
    height, strip, axis = planes.shape[-2], 256, -2 if spec.layout == "planes" else 0
    if height <= 2 * strip:
        return torch.stack([run(image.to(dtype)) for image in planes])
    results = []
    for image in planes:
        parts = []
        for y in range(0, height, strip):
            above = min(y, 8)
            part = run(image[:, y - above : y + strip + 8].to(dtype))
            parts.append(part.narrow(axis, above // 8, min(strip, height - y) // 8))
        results.append(torch.cat(parts, axis))
    return torch.stack(results)


def exact_skimage_hog(images: np.ndarray, cell=8, bins=9, block=1, norm="l2") -> Tensor:  # as skimage_hog, float64
    return exact(planar(images), SKIMAGE, cell=cell, bins=bins, block=block, norm=norm).flatten(3)


def exact_opencv_hog(images: np.ndarray, cell=8, bins=9, block=1) -> Tensor:  # as opencv_hog, float64
    """With the polynomial of OpenCV for the arc tangent, which is part of its definition."""
    sizes = {"cell": cell, "bins": bins, "block": block, "block_sigma": block * cell / 4}
    return exact(planar(images), OPENCV, sqrt=False, layout="rows", **sizes).flatten(3)


def hog_layer(
    x: Tensor,  # [B, C, H, W] float32
    bins: int = 9,
    cell: int = 8,
    conv_dtype: torch.dtype | None = None,
    weights: tuple[Tensor, Tensor] | None = None,  # of sobel_weights()
) -> Tensor:  # [B, C, bins, H // cell, W // cell] float32
    """The operations of the MaskFeat reference layer in eager torch, one after the other.

    The definition is that of ``fused_hog``. Differences: the Sobel sums are convolutions, whose rounding leaves noise
    where the gradient is exactly zero (harmless on whole numbers, not on normalised images), and orientations go
    through an arc tangent. Every step is a pass over memory, and the votes are as large as ``bins`` images. With
    ``conv_dtype`` it does what autocast to that dtype makes of it: convolutions and arc tangent in it, the norms in
    the dtype of ``x``.
    """
    batch, channels, height, width = x.shape
    gx, gy = sobel(F.pad(x, (1, 1, 1, 1), mode="reflect").to(conv_dtype or x.dtype), weights)
    magnitude = torch.stack([gx, gy], dim=-1).to(x.dtype).norm(dim=-1)
    phase = torch.atan2(gx, gy) / math.pi * bins
    votes = torch.zeros(batch, channels, bins, height, width, dtype=x.dtype, device=x.device)
    votes.scatter_add_(2, (phase.floor().long() % bins).unsqueeze(2), magnitude.unsqueeze(2))
    histogram = votes.unfold(3, cell, cell).unfold(4, cell, cell).sum(dim=(-1, -2))
    return F.normalize(histogram, p=2, dim=2)


def hog_layer_compiled(device: str) -> Callable[[Tensor], Tensor]:
    """:func:`hog_layer` under torch.compile, which would make the weights anew in each call were they not given."""
    weights = sobel_weights(3, torch.float32, torch.device(device))
    return torch.compile(functools.partial(hog_layer, weights=weights))


def hog_layer_autocast(x: Tensor, bins: int = 9, cell: int = 8) -> Tensor:
    """:func:`hog_layer` as mixed-precision training runs it."""
    if x.is_cuda:
        with torch.autocast("cuda", torch.float16, cache_enabled=False):  # a cache would outlive a CUDA graph
            return hog_layer(x, bins, cell)
    return hog_layer(x, bins, cell, conv_dtype=torch.float16)


def sobel(
    padded: Tensor,  # [B, C, H + 2, W + 2]
    weights: tuple[Tensor, Tensor] | None = None,
) -> list[Tensor]:  # [B, C, H, W] each
    """Left minus right and above minus below."""
    weights = weights or sobel_weights(padded.shape[1], padded.dtype, padded.device)
    return [F.conv2d(padded, weight, groups=padded.shape[1]) for weight in weights]


@functools.cache
def sobel_weights(channels: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Depthwise kernels [channels, 1, 3, 3] of left minus right and above minus below; kept, as a layer keeps them."""
    sobel = torch.tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=dtype, device=device)
    return tuple(w.expand(channels, 1, 3, 3).contiguous() for w in (sobel, sobel.T))


def soft_conv_hog(
    x: Tensor,  # [B, C, H, W] floating
    bins: int = 9,
    cell: int = 8,
) -> Tensor:  # [B, C, bins, H // cell, W // cell]
    """Sobel convolutions, triangular votes as elementwise maps, and an average over each cell.

    Differences: the border is repeated instead of reflected; a pixel votes for the two bins whose centres are nearest;
    bins are centred on multiples of 180 / bins degrees.
    """
    gx, gy = sobel(F.pad(x, (1, 1, 1, 1), mode="replicate"))
    magnitude = torch.hypot(gx, gy)
    phase = torch.atan2(gy, gx) / math.pi * bins
    histogram = []
    for k in range(bins):
        distance = torch.remainder(phase - k + bins / 2, bins) - bins / 2
        histogram.append(F.avg_pool2d(magnitude * (1 - distance.abs()).clamp_min(0), cell))
    return F.normalize(torch.stack(histogram, dim=2), p=2, dim=2)


def opencv_hog(
    images: np.ndarray,  # [B, H, W, 3] or [B, H, W], uint8
    cell: int = 8,
    bins: int = 9,
    block: int = 1,
) -> np.ndarray:  # [B, H // cell - block + 1, W // cell - block + 1, block * block * bins] float32
    """``cv2.HOGDescriptor`` with a block at each cell, image after image: it takes no batch.

    Differences: central differences in place of Sobel; of the three channels only the strongest at each pixel, so a
    third of the histograms; an approximate arc tangent; votes shared between neighbouring bins and cells of a block and
    weighted by a Gaussian over the block; clipped L2 normalisation with a large epsilon.
    """
    height, width = images.shape[1:3]
    compute = opencv_descriptor(height, width, block * cell, cell, bins).compute
    down, across = height // cell - block + 1, width // cell - block + 1

    def hog(image):  # its blocks, and the cells of each, run down the columns first
        features = compute(image).reshape(across, down, block, block, bins)
        return features.transpose(1, 0, 3, 2, 4).reshape(down, across, -1)

    return hog(images[0])[None] if len(images) == 1 else np.stack([hog(image) for image in images])


@functools.cache
def opencv_descriptor(height: int, width: int, block: int, cell: int = 8, bins: int = 9):
    """Its sizes are (width, height) in pixels: window, block, block stride, cell; then the number of bins."""
    return optional("cv2").HOGDescriptor((width, height), (block, block), (cell, cell), (cell, cell), bins)


def skimage_hog(
    images: np.ndarray,  # [B, H, W, 3] or [B, H, W], uint8 or floating
    cell: "int | tuple[int, int]" = 8,
    bins: int = 9,
    block: int = 1,
    norm: str = "l2",
) -> np.ndarray:  # [B, rows, columns, block * block * bins], float64, float32 for float32 images
    """``skimage.feature.hog`` with a block at each cell, image after image: it takes no batch.

    Differences: central differences in place of Sobel, zero at the border; of the three channels only the strongest at
    each pixel, so a third of the histograms; the angle measured from the other axis; the mean instead of the sum over
    a cell, against an epsilon of 1e-5 in the L2 norm.
    """
    from skimage.feature import hog

    options = {**SKIMAGE_OPTIONS, "orientations": bins, "cells_per_block": (block, block), "block_norm": norm.title()}
    options["pixels_per_cell"] = cell if isinstance(cell, tuple) else (cell, cell)
    options["channel_axis"] = -1 if images.ndim == 4 else None
    results = (hog(image, **options) for image in images)
    return np.stack([result.reshape(*result.shape[:2], -1) for result in results])


def fasthog_hog(
    images: np.ndarray,  # [B, H, W] float64
) -> np.ndarray:  # [B, H // 8, W // 8, 9] float64
    """``fasthog.hog`` with blocks of one cell, image after image.

    Differences: central differences, one-sided at the border; votes shared between neighbouring bins.
    """
    hog = optional("fasthog").hog
    return np.stack([hog(image, (8, 8), (1, 1), 9, False, "L2") for image in images])


def hogpp_hog(
    images: np.ndarray,  # [B, H, W] or [B, H, W, 3], any dtype
) -> np.ndarray:  # [B, H // 8, W // 8, 9] float32 for float32 images, else float64
    """``hogpp.IntegralHOGDescriptor`` with blocks of one cell, image after image.

    Differences: central differences; of the three channels only the strongest; votes shared between neighbouring bins;
    the sum over a cell is a difference of four sums over the image.
    """
    sizes, results = dict.fromkeys(("cell_size", "block_size", "block_stride"), (8, 8)), []
    descriptor = optional("hogpp").IntegralHOGDescriptor(**sizes, block_norm="l2")
    for image in images:
        descriptor.compute(image)
        results.append(descriptor.features_[:, :, 0, 0])
    return np.stack(results)
