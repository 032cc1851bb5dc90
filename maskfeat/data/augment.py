"""Crops, RandAugment, erasing, mixup and CutMix.

Crops and RandAugment work on uint8 pictures, one clip at a time. All frames of a clip get the same parameters. A still
image is a clip of one frame. Erasing and mixing work on normalised batches.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from ..keys import parse_policy
from .bands import Bands, Picture

Frames = list[Picture]

LONGEST = 8
"""How many times as long as wide a picture may be to be resized as a whole for evaluation, as torchvision does."""


def random_resized_crop(
    frames: Frames,
    size: tuple[int, int],  # (height, width) of the result
    scale: tuple[float, ...],  # least and most
    ratio: tuple[float, ...],
    interpolation: str,  # "bilinear", "bicubic", ...
    rng: np.random.Generator,
) -> Frames:
    """A random window of a share ``scale`` of the picture's area, resized.

    ``ratio`` bounds its width / height over that of the result: how much wider or narrower things may become.

    Source: Szegedy et al., Going Deeper with Convolutions, CVPR 2015.
    """
    shape = size[1] / size[0]
    least, most = ratio
    left, top, width, height = random_window(*frames[0].size, scale, (least * shape, most * shape), rng)
    box, resample = (left, top, left + width, top + height), Image.Resampling[interpolation.upper()]
    return [frame.resize(size[::-1], resample, box=box) for frame in frames]


def random_window(
    width: int,
    height: int,
    scale: tuple[float, ...],  # least and most
    ratio: tuple[float, ...],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:  # left, top, width, height
    """Area uniform, aspect log-uniform; if ten draws do not fit, the largest central window of an allowed aspect."""
    for _ in range(10):
        area = width * height * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def eval_crops(
    frames: Frames,
    size: tuple[int, int],  # (height, width)
    resize: tuple[int, int],  # (height, width)
    interpolation: str,
    crops: int = 1,
) -> list[Frames]:
    """The central crop of pictures that are resized to cover ``resize``, or three along the side that is left over.

    Pictures keep their proportions. ``resize`` is no smaller than the crop. If more than ``LONGEST`` times as much of a
    picture would be left over, only the crops are resized, so that memory is bounded whatever its shape. A value may
    then differ by 2, in noise by more, as Pillow chooses by the size of the result which axis it resizes first.
    """
    width, height = frames[0].size
    across, down = width * resize[0], height * resize[1]
    wide = across >= down  # than what is to be covered
    resized = (across // height, resize[0]) if wide else (resize[1], down // width)
    resample = Image.Resampling[interpolation.upper()]
    spare_x, spare_y = resized[0] - size[1], resized[1] - size[0]
    corners = [(round(spare_x / 2), round(spare_y / 2))]
    if crops == 3 and wide:
        corners = [(0, corners[0][1]), *corners, (spare_x, corners[0][1])]
    elif crops == 3:
        corners = [(corners[0][0], 0), *corners, (corners[0][0], spare_y)]
    boxes = [(x, y, x + size[1], y + size[0]) for x, y in corners]
    if max(across, down) <= LONGEST * min(across, down):
        frames = [frame.resize(resized, resample) for frame in frames]
        return [[frame.crop(box) for frame in frames] for box in boxes]
    x, y = width / resized[0], height / resized[1]  # back to the picture's own pixels
    windows = [(left * x, top * y, right * x, bottom * y) for left, top, right, bottom in boxes]
    return [[frame.resize(size[::-1], resample, box=window) for frame in frames] for window in windows]


def flip(frames: Frames, probability: float, rng: np.random.Generator) -> Frames:
    """Mirror left and right with that probability."""
    if rng.random() >= probability:
        return frames
    return [frame.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for frame in frames]


def rand_augment(
    frames: Frames,
    policy: str,  # such as "m9-mstd0.5-inc1"
    interpolation: str,
    fill: tuple[int, ...],  # colour, of each channel, of what is moved into the picture
    rng: np.random.Generator,
) -> Frames:
    """Random changes of geometry and colour: ``n`` (2) of the fifteen, each made or left out with probability 1/2.

    Of other than three channels each is changed by itself, and "color", which is of three, is not among the changes.

    policy: parts joined by "-". ``m`` is the mean magnitude, of 10, and ``mstd`` its standard deviation. ``n`` is the
        number of changes. ``inc1`` says that every change grows with the magnitude; there is no other form here.

    Source: Cubuk et al., RandAugment, NeurIPS 2020, in the form that timm gave it.
    """
    options = parse_policy(policy)
    bands = isinstance(frames[0], Bands)
    names = rng.choice([name for name in CHANGES if name != "color" or not bands], int(options["n"]))
    for name in names:
        if rng.random() < 0.5:
            level = min(max(rng.normal(options["m"], options["mstd"]), 0), 10) / 10
            sign = -1 if rng.random() < 0.5 else 1
            make = partial(CHANGES[name], level, sign, Image.Resampling[interpolation.upper()])
            frames = [_changed(frame, make, fill) for frame in frames]
    return frames


def _changed(frame: Picture, make: "Callable[[Any], Change]", fill: tuple[int, ...]) -> Picture:
    if isinstance(frame, Bands):
        return Bands([make(value)(plane) for plane, value in zip(frame.planes, fill, strict=True)])
    return make(fill)(frame)


Change = Callable[[Image.Image], Image.Image]
Colour = tuple[int, ...] | int


def _affine(matrix: Callable[[float], tuple[float, ...]]) -> Callable[..., Change]:
    def make(level: float, sign: int, resample: Image.Resampling, fill: Colour) -> Change:
        rows = matrix(sign * level)

        def change(frame: Image.Image) -> Image.Image:
            a, b, c, d, e, f = rows
            moved = (a, b, c * frame.width, d, e, f * frame.height)
            return frame.transform(frame.size, Image.Transform.AFFINE, moved, resample, fillcolor=fill)

        return change

    return make


def _rotate(level: float, sign: int, resample: Image.Resampling, fill: Colour) -> Change:
    return lambda frame: frame.rotate(sign * level * 30, resample, fillcolor=fill)


def _enhance(enhancer: type) -> Callable[..., Change]:
    return lambda level, sign, resample, fill: lambda frame: enhancer(frame).enhance(1 + sign * level * 0.9)


def _solarize_add(level: float, sign: int, resample: Image.Resampling, fill: Colour) -> Change:
    table = [min(255, value + int(level * 110)) if value < 128 else value for value in range(256)]
    return lambda frame: frame.point(table * len(frame.getbands()))


CHANGES: dict[str, Callable[..., Change]] = {
    "autocontrast": lambda *_: ImageOps.autocontrast,
    "equalize": lambda *_: ImageOps.equalize,
    "invert": lambda *_: ImageOps.invert,
    "rotate": _rotate,
    "posterize": lambda level, *_: lambda frame: ImageOps.posterize(frame, max(4 - int(level * 4), 1)),
    "solarize": lambda level, *_: lambda frame: ImageOps.solarize(frame, 256 - int(level * 256)),
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda level: (1, 0.3 * level, 0, 0, 1, 0)),
    "shear_y": _affine(lambda level: (1, 0, 0, 0.3 * level, 1, 0)),
    "translate_x": _affine(lambda level: (1, 0, 0.45 * level, 0, 1, 0)),
    "translate_y": _affine(lambda level: (1, 0, 0, 0, 1, 0.45 * level)),
}


def erase(
    pixels: Tensor,  # [B, C, H, W] or [B, C, T, H, W], normalised; changed in place
    probability: float,
    rng: np.random.Generator,
    generator: torch.Generator,  # on the device of the pixels
    scale: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Fill a random window of a sample, the same in all its frames, with normal noise, with that probability.

    Source: Zhong et al., Random Erasing Data Augmentation, AAAI 2020.
    """
    height, width = pixels.shape[-2:]
    for sample in pixels:
        if rng.random() < probability:
            left, top, w, h = random_window(width, height, scale, ratio, rng)
            sample[..., top : top + h, left : left + w].normal_(generator=generator)
    return pixels


def mix(
    pixels: Tensor,  # [B, C, H, W] or [B, C, T, H, W]; changed in place
    labels: Tensor,  # [B, classes] probabilities
    mixup: float,
    cutmix: float,
    switch: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    r"""Mix every sample with its mirror in the batch: :math:`\lambda x_i + (1 - \lambda) x_{B-1-i}`, labels alike.

    mixup, cutmix: parameter of the Beta distribution of :math:`\lambda`, 0 to leave this kind out. CutMix pastes a
        window of the share :math:`1 - \lambda` instead of adding.
    switch: probability of CutMix where both are on.

    Source: Zhang et al., mixup, ICLR 2018; Yun et al., CutMix, ICCV 2019.
    """
    if not mixup and not cutmix:
        return pixels, labels
    paste = cutmix > 0 and (mixup == 0 or rng.random() < switch)
    keep = float(rng.beta(cutmix, cutmix) if paste else rng.beta(mixup, mixup))
    other = pixels.flip(0)
    if paste:
        height, width = pixels.shape[-2:]
        side = math.sqrt(1 - keep)
        half_h, half_w = int(height * side) // 2, int(width * side) // 2
        y, x = int(rng.integers(height)), int(rng.integers(width))
        top, bottom = max(y - half_h, 0), min(y + half_h, height)
        left, right = max(x - half_w, 0), min(x + half_w, width)
        pixels[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        keep = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        pixels.mul_(keep).add_(other, alpha=1 - keep)
    return pixels, keep * labels + (1 - keep) * labels.flip(0)


def smooth_labels(
    labels: Tensor,  # [B] int64
    classes: int,
    smoothing: float,
) -> Tensor:  # [B, classes]
    """1 - smoothing on the label, and smoothing spread over all classes."""
    soft = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    return soft.scatter_(1, labels.unsqueeze(1), 1 - smoothing + smoothing / classes)
