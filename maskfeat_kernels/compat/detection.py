"""What OpenCV's detector does beside HOG: resizing without rounding differences, and the grouping of rectangles."""

import math

import numpy as np

from .arrays import like


def resize_linear_exact(
    x,  # [..., H, W] uint8, an array or a tensor
    height: int,
    width: int,
):  # [..., height, width] uint8
    """``cv2.resize`` with INTER_LINEAR_EXACT, bit by bit: linear between pixel centres, in fixed point.

    The weights have 8 bits; rows are interpolated along x first and kept with these 8 bits; then along y, with one
    rounding.
    """
    (x0, weight_x), (y0, weight_y) = _taps(x.shape[-1], width), _taps(x.shape[-2], height)
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
    similarity. Classes inside larger ones are dropped.
    """
    if threshold <= 0 or len(rectangles) == 0:
        return rectangles, weights
    classes = [np.flatnonzero(members) for members in _classes(_similar(rectangles, eps))]
    classes = [members for members in classes if len(members) > threshold]
    means = [np.rint(rectangles[members].sum(0) * (1.0 / len(members))).astype(int) for members in classes]

    def is_inside_another(i):
        return any(
            j != i
            and (len(classes[j]) > max(3, len(classes[i])) or len(classes[i]) < 3)
            and _lies_in(means[i], means[j], np.rint(means[j][2:] * eps))
            for j in range(len(classes))
        )

    kept = [i for i in range(len(classes)) if not is_inside_another(i)]
    best = [weights[classes[i]].max() for i in kept]
    return np.array([means[i] for i in kept], int).reshape(-1, 4), np.array(best, float)


def _similar(rectangles: np.ndarray, eps: float) -> np.ndarray:  # [N, N] bool
    begin, size = rectangles[:, :2], rectangles[:, 2:]
    delta = eps * np.minimum(size[:, None], size).sum(-1) * 0.5
    corners = np.hstack([begin, begin + size])
    return (np.abs(corners[:, None] - corners) <= delta[..., None]).all(-1)


def _classes(similar: np.ndarray) -> list[np.ndarray]:  # masks [N]
    """The connected parts of a graph, by their first members."""
    classes, seen = [], np.zeros(len(similar), bool)
    for i in range(len(similar)):
        if not seen[i]:
            members, before = similar[i], 0
            while members.sum() > before:
                before = members.sum()
                members = similar[members].any(0)
            classes.append(members)
            seen |= members
    return classes


def _lies_in(inner: np.ndarray, outer: np.ndarray, margin: np.ndarray) -> bool:
    begin, end = inner[:2], inner[:2] + inner[2:]
    return bool((begin >= outer[:2] - margin).all() and (end <= outer[:2] + outer[2:] + margin).all())


def group_rectangles_meanshift(
    rectangles: np.ndarray,  # [N, 4]: x, y, width, height
    weights: np.ndarray,  # [N]
    scales: np.ndarray,  # [N]
    threshold: float,
    window: tuple[int, int],  # (width, height)
) -> tuple[np.ndarray, np.ndarray]:
    """The modes of the centres and scales of rectangles whose density is above ``threshold``.

    Kernels are Gaussians with deviations of 8 and 16 pixels, times the scale, and of log 1.3 in the logarithm of the
    scale.
    """
    points = np.column_stack([np.rint(rectangles[:, :2] + rectangles[:, 2:] * 0.5), np.log(scales)])

    def spread(points):
        s = np.exp(points[..., 2:])
        return np.concatenate([8 * s, 16 * s, np.full_like(s, math.log(1.3))], -1)

    deviation = spread(points)

    def density(at):
        distance = (((points - at) / deviation) ** 2).sum(1)
        return weights * np.exp(-distance / 2) / np.sqrt(deviation.sum(1))

    def step(at):
        share = density(at)[:, None] / deviation
        return (share * points).sum(0) / share.sum(0)

    def climb(at):
        at = step(at)
        for _ in range(100):
            before, at = at, step(at)
            if distance(at, before) <= 1e-5:
                break
        return at

    def distance(a, b):
        return (((b - a) / spread(b)) ** 2).sum()

    modes = []
    for mode in map(climb, points):
        if not any(distance(mode, other) < 1 for other in modes):
            modes.append(mode)
    strength = np.array([density(mode).sum() for mode in modes], float)
    result = []
    for x, y, log_scale in modes:
        width, height = (int(side * math.exp(log_scale)) for side in window)
        result.append((int(x - width // 2), int(y - height // 2), width, height))
    strong = strength > threshold
    return np.array(result, int).reshape(-1, 4)[strong], strength[strong]
