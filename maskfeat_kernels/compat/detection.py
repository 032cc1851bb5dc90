"""What OpenCV's detector does beside HOG: resizing without rounding differences, and the grouping of rectangles."""

import itertools
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from . import arrays
from .arrays import Array, is_tensor, like


def in_threads(function: Callable[[Any], Any], items: Iterable[Any], threads: int) -> list[Any]:
    """``function`` of each item, in order. The compiled functions that it calls release the GIL."""
    items = list(items)
    if min(threads, len(items)) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(function, items))


def resize_linear_exact(
    x: Array,  # [..., H, W] uint8
    height: int,
    width: int,
) -> Array:  # [..., height, width] uint8
    """``cv2.resize`` with INTER_LINEAR_EXACT, bit by bit: linear between pixel centres, in fixed point.

    The weights have 8 bits; rows are interpolated along x first and kept with these 8 bits; then along y, with one
    rounding.
    """
    (x0, weight_x), (y0, weight_y) = _taps(x.shape[-1], width), _taps(x.shape[-2], height)
    if arrays._numpy_ops is not None and not is_tensor(x) and x.ndim in (2, 3):
        pixels = np.ascontiguousarray(np.moveaxis(x, 0, -1) if x.ndim == 3 else x[..., None])
        taps = (np.asarray(part, np.int32) for part in (y0, weight_y, x0, weight_x))
        resized = arrays._numpy_ops.resize_linear_exact(pixels.transpose(2, 0, 1), *taps)
        return np.moveaxis(resized, -1, 0) if x.ndim == 3 else resized[..., 0]
    x1, y1 = np.minimum(x0 + 1, x.shape[-1] - 1), np.minimum(y0 + 1, x.shape[-2] - 1)
    weight_x, weight_y = like(x, weight_x), like(x, weight_y[:, None])
    x = x[..., like(x, x0)] * (256 - weight_x) + x[..., like(x, x1)] * weight_x
    x = x[..., like(x, y0), :] * (256 - weight_y) + x[..., like(x, y1), :] * weight_y
    x = (x + (1 << 15)) >> 16
    return x.astype(np.uint8) if isinstance(x, np.ndarray) else x.byte()


def _taps(source: int, size: int) -> tuple[np.ndarray, np.ndarray]:  # [size] int64, [size] int32
    """The pixel before each place in ``source`` pixels, and 256 times the weight of the next one."""
    scale = 1.0 / (size / source)
    place = scale * (np.arange(size) + 0.5) - 0.5
    before = np.floor(place)
    weight = np.where((before >= 0) & (before < source - 1), np.rint((place - before) * 256), 0)
    return before.clip(0, source - 1).astype(np.int64), weight.astype(np.int32)


def clip_rectangles(
    rectangles: np.ndarray,  # [N, 4]: x, y, width, height
    weights: np.ndarray,  # [N]
    width: int,
    height: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The rectangles' parts in an image, without those that have none."""
    begin = rectangles[:, :2].clip(0)
    end = np.minimum(rectangles[:, :2] + rectangles[:, 2:], (width, height))
    inside = (end > begin).all(1)
    return np.hstack([begin, end - begin])[inside], weights[inside]


def group_rectangles(
    rectangles: np.ndarray,  # [N, 4]: x, y, width, height
    weights: np.ndarray,  # [N]
    threshold: int,
    eps: float = 0.2,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each class of similar rectangles that has more than ``threshold``, with the largest weight.

    Rectangles are similar where no side is off by more than ``eps`` of their mean size; classes are connected by
    similarity. Classes inside larger ones are dropped. Memory grows with N, not with its square.
    """
    if threshold <= 0 or len(rectangles) == 0:
        return rectangles, weights
    labels = _classes(rectangles, eps)
    count = np.bincount(labels)
    best = np.full(len(count), -np.finfo(float).max)
    np.maximum.at(best, labels, weights)
    sums = np.column_stack([np.bincount(labels, side) for side in rectangles.T])
    large = count > threshold
    count, best = count[large], best[large]
    means = np.rint(sums[large] * (1.0 / count)[:, None]).astype(int)
    begin, end, margin = means[:, :2], means[:, :2] + means[:, 2:], np.rint(means[:, 2:] * eps).astype(int)

    def is_inside_another(i: int) -> bool:
        outer = (count > max(3, count[i])) | (count[i] < 3)
        outer &= (begin[i] >= begin - margin).all(1) & (end[i] <= end + margin).all(1)
        outer[i] = False
        return bool(outer.any())

    kept = [i for i in range(len(means)) if not is_inside_another(i)]
    return means[kept], best[kept]


def _classes(rectangles: np.ndarray, eps: float) -> np.ndarray:  # [N] int64
    """The class of each rectangle, in the order of their first members."""
    if arrays._numpy_ops is not None:
        found: np.ndarray = arrays._numpy_ops.similar_classes(rectangles, eps)
        return found
    begin, size = rectangles[:, :2], rectangles[:, 2:]
    corners, labels, classes = np.hstack([begin, begin + size]), np.full(len(rectangles), -1), 0
    for first in range(len(rectangles)):
        if labels[first] >= 0:
            continue
        labels[first], grown = classes, [first]
        while grown:
            member = grown.pop()
            delta = eps * np.minimum(size[member], size).sum(-1) * 0.5
            similar = (labels < 0) & (np.abs(corners[member] - corners) <= delta[:, None]).all(-1)
            labels[similar] = classes
            grown.extend(np.flatnonzero(similar).tolist())
        classes += 1
    return labels


def group_rectangles_meanshift(
    rectangles: np.ndarray,  # [N, 4]: x, y, width, height
    weights: np.ndarray,  # [N]
    scales: np.ndarray,  # [N]
    threshold: float,
    window: tuple[int, int],  # (width, height)
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """The modes of the centres and scales of rectangles whose density is above ``threshold``.

    Kernels are Gaussians with deviations of 8 and 16 pixels, times the scale, and of log 1.3 in the logarithm of the
    scale. Of weights of both signs the density may have no mode where a hit climbs to; such hits are dropped.

    Raises RuntimeError where the compiled module is not built.
    """
    ops = arrays.compiled("mean shift")
    centres = np.rint(rectangles[:, :2] + rectangles[:, 2:] * 0.5)
    logarithms = {scale: math.log(scale) for scale in np.unique(scales).tolist()}
    hits = np.column_stack([centres, [logarithms[scale] for scale in scales.tolist()]])
    hits, weights = hits.reshape(-1, 3), np.asarray(weights, float)
    ends = np.linspace(0, len(hits), 4 * threads + 1).astype(int).tolist()
    climbed = in_threads(lambda part: ops.climb_to_modes(hits, weights, *part), itertools.pairwise(ends), threads)
    modes, strength = ops.distinct_modes(hits, weights, np.vstack(climbed))
    strong = strength > threshold
    result = []
    for x, y, log_scale in modes[strong].tolist():
        width, height = (_cut(side * _exp(log_scale)) for side in window)
        # The halves of OpenCV's integers are cut towards 0.
        result.append((_cut(x - int(width / 2)), _cut(y - int(height / 2)), width, height))
    return np.array(result, np.int64).reshape(-1, 4), strength[strong]


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


def _cut(x: float) -> int:
    """The whole part as an int32 of C has it: the least where it has none, which no image holds."""
    return int(x) if abs(x) < 1 << 31 else -(1 << 31)
