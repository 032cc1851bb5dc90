"""Accuracy as a benchmark: how much of a HOG rounding moves, against exact arithmetic, for every rival and precision.

Scale, mean and deviation cancel in a HOG, so that the truth about a photograph is that of its bytes, on which all
gradients are integers. Each rival is judged by its own definition: in float64 on the bytes, or for OpenCV, which has no
float64, in the formulas of its source with an exact arc tangent. hogpp and fasthog, whose definitions are written
nowhere else, are judged by their own results in float64 on the bytes: what float64 does not mend is not seen.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import rivals as r
from benchmarks.cases.hog import our_backends, planar, short
from benchmarks.timing import Case, Settings, failing_alone
from maskfeat_kernels import fused_hog

OFF = 1e-3
"""A cell is off if one of its bins differs by more: a thousandth of the length of the normalised histogram."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

BYTES, FLOATS = "bytes", "floats /255, mean, deviation"


@dataclasses.dataclass
class Contender:
    """An implementation, what it takes, and the truth.

    hog: gives the histograms of cells of 8x8 pixels, [..., bins] with the bins on axis ``bins_axis``; with ``cell=1``
        those of single pixels, whose only bin that is not zero is that of the pixel.
    exact_pixels: None where a pixel has more than one bin.
    """

    name: str
    given: str
    hog: Callable[..., Any]
    x: Any
    bins_axis: int
    exact_cells: Any
    exact_pixels: Any = None


def accuracy(settings: Settings) -> list[Case]:
    batch = 1 if settings.quick else 8
    return [Case(f"Accuracy on {batch} photographs of 224x224", partial(contenders, settings, batch), measure=judge)]


def contenders(settings: Settings, batch: int) -> list[Contender]:
    images = r.photograph_batch(batch)
    planes = planar(images).to(settings.device)
    floats = normalised(planes)
    truth = [_truth(fused_hog, planes, backend="reference", cell=side) for side in (8, 1)]
    result = []
    for name, backend in our_backends(settings).items():
        run = partial(fused_hog, backend=backend)
        result.append(Contender(f"{name} uint8", BYTES, run, planes, 2, *truth))
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            result.append(Contender(f"{name} {short(dtype)}", BYTES, run, planes.to(dtype), 2, *truth))
            result.append(Contender(f"{name} {short(dtype)}", FLOATS, run, floats.to(dtype), 2, *truth))
        result.append(Contender(f"{name} float64", FLOATS, run, normalised(planes, torch.float64), 2, *truth))
    layers = {"reference layer float32": r.hog_layer, "reference layer fp16 autocast": r.hog_layer_autocast}
    if not settings.quick:
        layers["reference layer compiled"] = r.hog_layer_compiled(settings.device)
    inputs = ((BYTES, planes.float()), (FLOATS, floats))
    result += [Contender(name, given, layer, x, 2, *truth) for name, layer in layers.items() for given, x in inputs]
    soft = _truth(r.soft_conv_hog, planes)
    result += [Contender("soft conv HOG float32", given, r.soft_conv_hog, x, 2, soft) for given, x in inputs]
    return result + (libraries(images) if settings.device == "cpu" else [])


def libraries(images: np.ndarray) -> list[Contender]:
    """On gray, so that the choice of a channel, which is no rounding, does not enter."""
    gray = np.ascontiguousarray(images[..., 1])
    floats = np.ascontiguousarray(normalised(torch.from_numpy(images).movedim(-1, 1)).numpy()[:, 1])
    truth = [r.exact_skimage_hog(gray, cell=side) for side in (8, 1)]
    result = [
        Contender("scikit-image uint8", BYTES, r.skimage_hog, gray, -1, *truth),
        Contender("scikit-image float32", FLOATS, r.skimage_hog, floats, -1, *truth),
    ]
    if r.is_there("cv2"):
        result.append(Contender("OpenCV uint8", BYTES, r.opencv_hog, gray, -1, r.exact_opencv_hog(gray)))
    if r.is_there("hogpp"):  # judged by its own, which of bytes is float64
        for given, x in ((BYTES, gray.astype(np.float32)), (FLOATS, floats)):
            result.append(Contender("hogpp float32", given, r.hogpp_hog, x, -1, r.hogpp_hog(gray)))
    if r.is_there("fasthog"):  # by its own too
        exact = r.fasthog_hog(gray.astype(np.float64))
        result.append(Contender("fasthog float64", FLOATS, r.fasthog_hog, floats.astype(np.float64), -1, exact))
    return result


def normalised(planes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:  # [B, 3, H, W] uint8 -> dtype
    """As for training: scaled to [0, 1], minus the mean, over the deviation."""
    mean, std = (torch.tensor(v, dtype=dtype, device=planes.device).view(3, 1, 1) for v in (MEAN, STD))
    return (planes.to(dtype) / 255 - mean) / std


def judge(contenders: list[Contender], settings: Settings) -> list[dict]:
    """The shares of pixels in the wrong bin and of cells that are off, and the largest error of a cell.

    Pixels without a gradient belong to no bin and are not counted; what noise makes of them shows in the cells.
    """
    rows = []
    for c in contenders:
        rows.append({"name": c.name, "given": c.given})
        with failing_alone(rows[-1]):
            rows[-1] |= shares(c)
    return rows


def shares(c: Contender) -> dict:
    error = (_float64(c.hog(c.x)) - _float64(c.exact_cells)).abs().amax(c.bins_axis)
    facts = {"cells": error.numel(), "cells_off": (error > OFF).double().mean().item()}
    facts["largest_error"] = error.max().item()
    if c.exact_pixels is not None:
        bins, exact_bins = _bin(c.hog(c.x, cell=1), c.bins_axis), _bin(c.exact_pixels, c.bins_axis)
        wrong = (bins != exact_bins)[exact_bins >= 0]
        facts |= {"pixels": wrong.numel(), "pixels_wrong": wrong.double().mean().item()}
    return facts


def _truth(run, planes: Tensor, **options) -> Tensor:
    """In float64, image after image: the votes of many at once would fill the memory."""
    return torch.cat([run(image.unsqueeze(0).double(), **options) for image in planes])


def _float64(x) -> Tensor:
    return torch.as_tensor(x).double()


def _bin(histograms, axis: int) -> Tensor:
    """The bin of each cell of one pixel, -1 where there is no gradient."""
    histograms = torch.as_tensor(histograms)
    return torch.where((histograms > 0).any(axis), histograms.argmax(axis), -1)
