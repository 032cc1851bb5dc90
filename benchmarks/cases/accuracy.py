"""Accuracy as a benchmark: how much of a HOG rounding moves, against exact arithmetic, for every rival and precision.

Scale, mean and deviation cancel in a HOG, so that the truth about a photograph is that of its bytes, on which all
gradients are integers. Each rival is judged by its own definition in float64 on the bytes. hogpp and fasthog, whose
definitions are written nowhere else, are judged by their own results: what float64 does not mend is not seen.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import rivals as r
from benchmarks.cases.hog import LAYER, our_backends, photographs, short, truth_of
from benchmarks.timing import Case, Settings, failing_alone
from maskfeat.config import IMAGENET
from maskfeat_kernels import fused_hog

OFF = 1e-3
"""A cell is off if one of its bins differs by more: a thousandth of the length of the normalised histogram."""

BYTES, FLOATS = "bytes", "floats /255, mean, deviation"


@dataclasses.dataclass
class Contender:
    """An implementation, what it takes, and the truth.

    hog: gives the histograms of cells of 8x8 pixels, of tensors with the bins on axis 2, of arrays on the last; with
        ``cell=1`` those of single pixels, whose only bin that is not zero is that of the pixel.
    exact_pixels: None where a pixel has more than one bin.
    """

    name: str
    given: str
    hog: Callable[..., Any]
    x: Any
    exact_cells: Any
    exact_pixels: Any = None


def accuracy(settings: Settings) -> list[Case]:
    batch = 1 if settings.quick else 8
    return [Case(f"Accuracy on {batch} photographs of 224x224", partial(contenders, settings, batch), measure=judge)]


def contenders(settings: Settings, batch: int) -> list[Contender]:
    planes = photographs(batch, settings.device)
    truth = [truth_of(batch, settings.device, cell=side) for side in (8, 1)]
    result = []

    def add(name: str, hog: Callable, *truth, bytes_as=(torch.float32,), floats_as=(torch.float32,)) -> None:
        for given, dtypes in ((BYTES, bytes_as), (FLOATS, floats_as)):
            for dtype in dtypes:
                x = planes.to(dtype) if given == BYTES else normalised(planes, dtype)
                result.append(Contender(name.format(short(dtype)), given, hog, x, *truth))

    halves = (torch.float32, torch.float16, torch.bfloat16)
    for name, backend in our_backends(settings).items():
        dtypes = {"bytes_as": (torch.uint8, *halves), "floats_as": (*halves, torch.float64)}
        add(f"{name} {{}}", partial(fused_hog, backend=backend), *truth, **dtypes)
    add(LAYER, r.hog_layer, *truth)
    add("reference layer fp16 autocast", r.hog_layer_autocast, *truth)
    if not settings.quick:
        add("reference layer compiled", r.hog_layer_compiled(settings.device), *truth)
    add("soft conv HOG float32", r.soft_conv_hog, r.soft_conv_hog(planes.double()))
    return result + (libraries(r.photograph_batch(batch)) if settings.device == "cpu" else [])


def libraries(images: np.ndarray) -> list[Contender]:
    """On gray, so that the choice of a channel, which is no rounding, does not enter."""
    gray, floats = np.ascontiguousarray(images[..., 1]), normalised(r.planar(images)).numpy()[:, 1].copy()
    truth = [r.exact_skimage_hog(gray, cell=side) for side in (8, 1)]
    result = [
        Contender("scikit-image uint8", BYTES, r.skimage_hog, gray, *truth),
        Contender("scikit-image float32", FLOATS, r.skimage_hog, floats, *truth),
    ]
    if r.is_there("cv2"):
        result.append(Contender("OpenCV uint8", BYTES, r.opencv_hog, gray, r.exact_opencv_hog(gray)))
    if r.is_there("hogpp"):  # which computes bytes in float64
        for given, x in ((BYTES, gray.astype(np.float32)), (FLOATS, floats)):
            result.append(Contender("hogpp float32", given, r.hogpp_hog, x, r.hogpp_hog(gray)))
    if r.is_there("fasthog"):
        exact = r.fasthog_hog(gray.astype(np.float64))
        result.append(Contender("fasthog float64", FLOATS, r.fasthog_hog, floats.astype(np.float64), exact))
    return result


def normalised(planes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:  # [B, 3, H, W] uint8 -> dtype
    """As for training: scaled to [0, 1], minus the mean, over the deviation; in float32 at least."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    mean, std = (torch.tensor(IMAGENET[k], dtype=wide, device=planes.device).view(3, 1, 1) for k in ("mean", "std"))
    return ((planes.to(wide) / 255 - mean) / std).to(dtype)


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
    axis = 2 if isinstance(c.x, Tensor) else -1
    cells, exact_cells = (torch.as_tensor(cells).double() for cells in (c.hog(c.x), c.exact_cells))
    error = (cells - exact_cells).abs().amax(axis)
    facts = {"cells": error.numel(), "cells_off": (error > OFF).double().mean().item()}
    facts["largest_error"] = error.max().item()
    if c.exact_pixels is not None:
        bins, exact_bins = (bin_of(torch.as_tensor(pixels), axis) for pixels in (c.hog(c.x, cell=1), c.exact_pixels))
        wrong = (bins != exact_bins)[exact_bins >= 0]
        facts |= {"pixels": wrong.numel(), "pixels_wrong": wrong.double().mean().item()}
    return facts


def bin_of(histograms: Tensor, axis: int) -> Tensor:
    """The bin of each cell of one pixel, -1 where there is no gradient."""
    return torch.where((histograms > 0).any(axis), histograms.argmax(axis), -1)
