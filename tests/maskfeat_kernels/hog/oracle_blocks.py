"""The definition of every HOG dialect, pixel by pixel and block by block, in float64 loops.

Written from the published descriptions of the dialects, and sharing no code with the package. Angles come from atan2,
which is exact enough away from the edges of hard bins; on the edges themselves, which gradients of integers meet only
at multiples of 45 degrees, the angle is rounded to them. Slow: meant for images of some hundred pixels.
"""

import itertools
import math

import numpy as np


def hog(
    image,  # [C, H, W], integers or finite floats
    *,
    bins=9,
    cell=(8, 8),
    gaussian_window=0,
    sqrt=False,
    gradient="sobel",
    channels="each",
    signed=False,
    angle_from="vertical",
    votes="hard",
    cells="box",
    reduction="sum",
    block=(1, 1),
    block_stride=None,
    block_sigma=0.0,
    norm="unit",
    eps=1e-12,
    clip=0.2,
    arithmetic="exact",
    layout="planes",
) -> np.ndarray:  # the leading axis C unless channels are "strongest", then the axes of the layout
    """Histograms of oriented gradients of blocks."""
    image = np.asarray(image, dtype=np.float64)
    image = np.sqrt(image) if sqrt else image
    planes = [image] if channels == "strongest" else [image[c : c + 1] for c in range(len(image))]
    stride = cell if block_stride is None else block_stride
    size = (block[0] * cell[0], block[1] * cell[1])
    rows, columns = ((image.shape[1 + i] - size[i]) // stride[i] + 1 for i in (0, 1))
    result = np.zeros((len(planes), rows, columns, *block, bins))
    for plane, row, column in itertools.product(range(len(planes)), range(rows), range(columns)):
        histograms = np.zeros((*block, bins))
        for y, x in itertools.product(range(size[0]), range(size[1])):
            at_y, at_x = row * stride[0] + y, column * stride[1] + x
            gx, gy = taken_gradient(planes[plane], at_y, at_x, gradient, arithmetic)
            weight = block_gaussian(y, size[0], block_sigma, arithmetic) * block_gaussian(
                x, size[1], block_sigma, arithmetic
            )
            weight *= tiled_gaussian(at_y, at_x, gaussian_window)
            weight /= cell[0] * cell[1] if reduction == "mean" else 1
            for orientation, vote in shares(gx, gy, bins, signed, angle_from, votes, arithmetic):
                for i, j in itertools.product(range(block[0]), range(block[1])):
                    inside = cell_share(y, cell[0], i, cells) * cell_share(x, cell[1], j, cells)
                    histograms[i, j, orientation] += weight * inside * vote
        result[plane, row, column] = normalised(histograms, norm, eps, clip, arithmetic)
    result = laid_out(result, layout, block)
    return result[0] if channels == "strongest" else result


def taken_gradient(plane, y, x, kind, arithmetic):
    """(gx, gy) of the channel where it is longest: of equals the first, in OpenCV's last columns the last."""
    best = None
    for channel in plane:
        g = gradient_of(channel, y, x, kind)
        last = arithmetic == "opencv" and x >= channel.shape[1] // 4 * 4
        if best is None or length(g) > length(best) or (last and length(g) == length(best)):
            best = g
    return best


def length(g):
    return g[0] ** 2 + g[1] ** 2


def gradient_of(channel, y, x, kind):
    """After minus before; mirrored at the border, so that the end pixel is not repeated."""

    def at(dy, dx):
        return channel[mirrored(y + dy, channel.shape[0]), mirrored(x + dx, channel.shape[1])]

    smooth = {-1: 1, 0: 2, 1: 1} if kind == "sobel" else {0: 1}
    gx = sum(w * (at(i, 1) - at(i, -1)) for i, w in smooth.items())
    gy = sum(w * (at(1, i) - at(-1, i)) for i, w in smooth.items())
    return gx, gy


def mirrored(i, n):
    if n == 1:
        return 0
    return -i if i < 0 else (2 * (n - 1) - i if i >= n else i)


def shares(gx, gy, bins, signed, angle_from, votes, arithmetic):
    """The (bin, vote) pairs of a pixel."""
    magnitude = math.hypot(gx, gy)
    if magnitude == 0:
        return []
    sine, cosine = (gx, gy) if angle_from == "vertical" else (gy, gx)
    degrees = opencv_degrees(sine, cosine) if arithmetic == "opencv" else math.degrees(math.atan2(sine, cosine)) % 360
    circle = 360 if signed else 180
    if votes == "hard":
        if sine == 0 or cosine == 0 or abs(sine) == abs(cosine):
            degrees = round(degrees / 45) * 45  # exact, as the edge of a bin may be here
        return [(int(degrees % circle * bins // circle), magnitude)]
    place = degrees * bins / circle - 0.5  # among the centres of the bins
    below = math.floor(place)
    return [(below % bins, magnitude * (below + 1 - place)), ((below + 1) % bins, magnitude * (place - below))]


def opencv_degrees(sine, cosine):
    s, c = abs(sine), abs(cosine)
    a = min(s, c) / (max(s, c) + 2.220446049250313e-16)
    p = (0.9997878412794807, -0.3258083974640975, 0.1555786518463281, -0.04432655554792128)
    angle = math.degrees(a * (p[0] + a * a * (p[1] + a * a * (p[2] + a * a * p[3]))))
    angle = 90 - angle if s > c else angle
    angle = 180 - angle if cosine < 0 else angle
    return 360 - angle if sine < 0 else angle


def cell_share(i, side, cell, kind):
    """The share of pixel ``i`` of a block in a cell along an axis."""
    if kind == "box":
        return float(cell * side <= i < (cell + 1) * side)
    return max(0.0, 1 - abs((i + 0.5) / side - 0.5 - cell))


def block_gaussian(i, size, sigma, arithmetic):
    centre = size / 2 if arithmetic == "opencv" else (size - 1) / 2
    return math.exp(-((i - centre) ** 2) / (2 * sigma * sigma)) if sigma else 1.0


def tiled_gaussian(y, x, side):
    if side == 0:
        return 1.0
    bell = [math.exp(-0.5 * ((i - (side - 1) / 2) / max(side // 2, 1)) ** 2) for i in range(side)]
    return bell[y % side] * bell[x % side] / sum(bell) ** 2


def normalised(h, norm, eps, clip, arithmetic):
    if norm == "none":
        return h
    if norm == "unit":
        return h / max(np.sqrt((h * h).sum()), eps)
    if norm in ("l1", "l1-sqrt"):
        h = h / (h.sum() + eps)
        return np.sqrt(h) if norm == "l1-sqrt" else h
    if arithmetic == "opencv":
        h = np.minimum(h / (np.sqrt((h * h).sum()) + 0.1 * h.size), clip)
        return h / (np.sqrt((h * h).sum()) + 1e-3)
    h = h / np.sqrt((h * h).sum() + eps * eps)
    if norm == "l2-hys":
        h = np.minimum(h, clip)
        h = h / np.sqrt((h * h).sum() + eps * eps)
    return h


def laid_out(
    result,  # [C, rows, columns, block_h, block_w, bins]
    layout,
    block,
):
    if layout == "rows":
        return result
    if layout == "columns":
        return result.transpose(0, 2, 1, 4, 3, 5)
    result = result.transpose(0, 3, 4, 5, 1, 2)
    return result[:, 0, 0] if tuple(block) == (1, 1) else result
