"""The implementations we are compared with, and the photographs that all of them are given.

All take 8x8-pixel cells and 9 unsigned orientation bins; each docstring says what else is computed differently.
"""

import functools
import math

import cv2
import numpy as np
import skimage.data
import skimage.feature
import torch
import torch.nn.functional as F
from torch import Tensor

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
"""Colour photographs that scikit-image ships in its package, so that nothing is downloaded."""


SKIMAGE_OPTIONS = {
    "orientations": 9,
    "pixels_per_cell": (8, 8),
    "cells_per_block": (1, 1),
    "block_norm": "L2",
    "channel_axis": -1,
    "feature_vector": False,
}


def photograph(name: str) -> np.ndarray:  # [H, W, 3] uint8
    """A photograph, cut at the right and at the bottom to whole cells."""
    image = getattr(skimage.data, name)()
    height, width = image.shape[0] // 8 * 8, image.shape[1] // 8 * 8
    return np.ascontiguousarray(image[:height, :width])


def photograph_batch(batch: int, side: int = 224) -> np.ndarray:  # [batch, side, side, 3] uint8
    """Crops of the photographs in turn, each at another place."""
    rng = np.random.default_rng(0)
    crops = []
    for i in range(batch):
        image = photograph(PHOTOGRAPHS[i % len(PHOTOGRAPHS)])
        y, x = (rng.integers(0, size - side + 1) for size in image.shape[:2])
        crops.append(image[y : y + side, x : x + side])
    return np.stack(crops)


def hog_layer(
    x: Tensor,  # [B, C, H, W] float32
    bins: int = 9,
    cell: int = 8,
) -> Tensor:  # [B, C, bins, H // cell, W // cell] float32
    """The operations of the MaskFeat reference layer in eager torch, one after the other.

    The definition is that of ``fused_hog``. Differences: the Sobel sums are convolutions, whose rounding leaves noise
    where the gradient is exactly zero (harmless on whole numbers, not on normalised images), and orientations go
    through an arc tangent. Every step is a pass over memory, and the votes are as large as ``bins`` images.
    """
    batch, channels, height, width = x.shape
    weight_x, weight_y = _sobel_weights(channels, x.dtype, x.device)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    gx = F.conv2d(padded, weight_x, groups=channels)
    gy = F.conv2d(padded, weight_y, groups=channels)
    magnitude = torch.stack([gx, gy], dim=-1).norm(dim=-1)
    phase = torch.atan2(gx, gy) / math.pi * bins
    votes = torch.zeros(batch, channels, bins, height, width, dtype=x.dtype, device=x.device)
    votes.scatter_add_(2, (phase.floor().long() % bins).unsqueeze(2), magnitude.unsqueeze(2))
    histogram = votes.unfold(3, cell, cell).unfold(4, cell, cell).sum(dim=(-1, -2))
    return F.normalize(histogram, p=2, dim=2)


@functools.cache
def _sobel_weights(channels: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Depthwise kernels [channels, 1, 3, 3] of left minus right and above minus below; kept, as a layer keeps them."""
    sobel = torch.tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=dtype, device=device)
    return tuple(w.expand(channels, 1, 3, 3).contiguous() for w in (sobel, sobel.T))


def opencv_hog(
    images: np.ndarray,  # [B, H, W, 3] uint8
) -> np.ndarray:  # [B, H // 8, W // 8, 9] float32
    """``cv2.HOGDescriptor`` with blocks of one cell, image after image: it takes no batch.

    Differences: central differences in place of Sobel; of the three channels only the strongest at each pixel, so a
    third of the histograms; an approximate arc tangent; votes shared between neighbouring bins and weighted by a
    Gaussian over the cell; clipped L2 normalisation with a large epsilon.
    """
    height, width = images.shape[1:3]
    compute = _opencv_descriptor(height, width).compute
    # Its cells run down the columns first.
    return np.stack([compute(image).reshape(width // 8, height // 8, 9).swapaxes(0, 1) for image in images])


@functools.cache
def _opencv_descriptor(height: int, width: int) -> cv2.HOGDescriptor:
    """Sizes are (width, height): window, block, block stride, cell; then the number of bins."""
    return cv2.HOGDescriptor((width, height), (8, 8), (8, 8), (8, 8), 9)


def skimage_hog(
    images: np.ndarray,  # [B, H, W, 3], uint8 or floating
) -> np.ndarray:  # [B, H // 8, W // 8, 9] float64, float32 for float32 images
    """``skimage.feature.hog`` with blocks of one cell, image after image: it takes no batch.

    Differences: central differences in place of Sobel, zero at the border; of the three channels only the strongest at
    each pixel, so a third of the histograms; the angle measured from the other axis; the mean instead of the sum over
    a cell, against an epsilon of 1e-5 in the L2 norm.
    """
    return np.stack([skimage.feature.hog(image, **SKIMAGE_OPTIONS)[:, :, 0, 0] for image in images])
