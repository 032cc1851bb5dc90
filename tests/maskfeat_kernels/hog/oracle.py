"""The definition of HOG, pixel by pixel, in exact rational arithmetic as far as the definition allows.

It shares no code with the package: gradients are Fractions, ties are decided on them, and only what is irrational by
nature (square root, arc tangent off the ties) is computed in float64. Slow: meant for images of some hundred pixels.
"""

import math
from fractions import Fraction

import numpy as np

SOBEL = ((-1, 1), (0, 2), (1, 1))


def hog(
    image,  # [H, W], integers or finite floats
    bins: int = 9,
    cell: tuple[int, int] = (8, 8),
    gaussian_window: int = 0,
) -> np.ndarray:  # [bins, H // cell_h, W // cell_w], float64
    """Histogram of oriented gradients of one channel."""
    pixels = [[Fraction(v) for v in row] for row in np.asarray(image).tolist()]
    rows, columns = len(pixels) // cell[0], len(pixels[0]) // cell[1]
    histogram = np.zeros((bins, rows, columns))
    for y in range(rows * cell[0]):
        for x in range(columns * cell[1]):
            gx, gy = gradient(pixels, y, x)
            vote = math.sqrt(gx * gx + gy * gy) * weight(y, x, gaussian_window)
            histogram[orientation_bin(gx, gy, bins), y // cell[0], x // cell[1]] += vote
    for row in range(rows):
        for column in range(columns):
            histogram[:, row, column] /= max(math.sqrt(sum(v * v for v in histogram[:, row, column])), 1e-12)
    return histogram


def gradient(pixels, y: int, x: int) -> tuple[Fraction, Fraction]:
    """Sobel: left minus right and above minus below, each smoothed by (1, 2, 1) along the other axis."""

    def at(y, x):
        return pixels[reflected(y, len(pixels))][reflected(x, len(pixels[0]))]

    gx = sum(w * (at(y + i, x - 1) - at(y + i, x + 1)) for i, w in SOBEL)
    gy = sum(w * (at(y - 1, x + i) - at(y + 1, x + i)) for i, w in SOBEL)
    return gx, gy


def reflected(i: int, size: int) -> int:
    """Index -1 is 1 and index ``size`` is ``size - 2``; the only sample of a line reflects into itself."""
    if size == 1:
        return 0
    if i < 0:
        return -i
    return 2 * (size - 1) - i if i >= size else i


def orientation_bin(gx, gy, bins: int) -> int:
    """floor(bins * angle / 180 degrees) of the angle atan2(gx, gy) mod 180 degrees, lower edges inclusive.

    A rational gradient can lie exactly on an edge only at 0, 45, 90 and 135 degrees: the tangent of every other
    rational part of a circle is irrational.
    """
    if gx == 0:
        return 0
    if gy == 0:
        return bins // 2
    if gx == gy:
        return bins // 4
    if gx == -gy:
        return 3 * bins // 4
    angle = math.atan2(gx, gy) if gx > 0 else math.atan2(-gx, -gy)
    return math.floor(angle / math.pi * bins)


def weight(y: int, x: int, window: int) -> float:
    """The Gaussian window tiled over the image; its standard deviation is half its side, rounded down."""
    if window == 0:
        return 1.0

    def bell(i):
        return math.exp(-0.5 * ((i - (window - 1) / 2) / max(window // 2, 1)) ** 2)

    total = sum(bell(i) for i in range(window))
    return bell(y % window) * bell(x % window) / total**2
