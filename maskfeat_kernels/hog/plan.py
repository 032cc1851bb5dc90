"""The plan of a HOG: a HogSpec as the numbers that the backends work from. Knows neither torch nor numpy.

A pixel (y, x) counts ``weight_y[y] * weight_x[x]`` times its vote in a cell. Box and bilinear cells, a Gaussian, the
mean, and cells that blocks share are all expressed by these two tables of weights. The kernels know such tables and
nothing of the words.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from .spec import CHOICES, HogSpec

OPENCV_ARC_TANGENT = (0.9997878412794807, -0.3258083974640975, 0.1555786518463281, -0.04432655554792128)
"""The coefficients of a, a^3, a^5 and a^7 in the arc tangent of cv::cartToPolar, for 0 <= a <= 1."""


@dataclasses.dataclass(frozen=True)
class CellAxis:
    """The cells along an axis, as tables.

    Cell ``a`` weights the pixels from ``a // period * step + starts[a % period]`` on with ``weights[a % period]``. Cell
    ``k`` of block ``b`` is cell ``a = b * block_step + k``.
    """

    pixels: int  # of a block
    stride: int  # pixels from a block to the next
    per_block: int  # cells of a block
    block_step: int  # cells from a block to the next
    step: int  # pixels from a cell to the one ``period`` cells later
    starts: tuple[int, ...]  # [period]
    weights: tuple[tuple[float, ...], ...]  # [period, length]

    @property
    def period(self) -> int:
        """Cells after which the weights repeat."""
        return len(self.starts)

    @property
    def length(self) -> int:
        """Pixels of a cell."""
        return len(self.weights[0])

    def blocks(self, size: int) -> int:
        """Blocks that fit into ``size`` pixels, at least a block."""
        return (size - self.pixels) // self.stride + 1

    def cells(self, size: int) -> int:
        """Cells of these blocks."""
        return (self.blocks(size) - 1) * self.block_step + self.per_block

    def start(self, cell: int) -> int:
        """The first pixel of a cell."""
        return cell // self.period * self.step + self.starts[cell % self.period]


def cell_axes(spec: HogSpec) -> tuple[CellAxis, CellAxis]:
    """The cells down and across."""
    return _cell_axis(spec, 0), _cell_axis(spec, 1)


def _cell_axis(spec: HogSpec, axis: int) -> CellAxis:
    side, per_block, stride, pixels = spec.cell[axis], spec.block[axis], spec.stride[axis], spec.block_size[axis]
    scale = 1 / side if spec.reduction == "mean" else 1.0
    if spec.shares_cells:
        window = [scale * e for e in gaussian_kernel(spec.gaussian_window)] or [scale]
        period = math.lcm(side, len(window)) // side
        starts = tuple(k * side for k in range(period))
        weights = tuple(tuple(window[(start + i) % len(window)] for i in range(side)) for start in starts)
        return CellAxis(pixels, stride, per_block, stride // side, period * side, starts, weights)
    centre = pixels / 2 if spec.arithmetic == "opencv" else (pixels - 1) / 2

    def weight(cell: int, i: int) -> float:
        deviations = abs(i - centre) / spec.block_sigma if spec.block_sigma else 0.0
        gaussian = math.exp(-0.5 * min(deviations, 1e9) ** 2)  # 0 there, and a power that does not overflow
        return scale * gaussian * _share(spec.cells, side, cell, i)

    used = [[i for i in range(pixels) if _share(spec.cells, side, k, i) > 0] for k in range(per_block)]
    length = max(map(len, used))
    starts = tuple(min(pixels_of[0], pixels - length) for pixels_of in used)
    weights = tuple(tuple(weight(k, start + i) for i in range(length)) for k, start in enumerate(starts))
    return CellAxis(pixels, stride, per_block, per_block, stride, starts, weights)


def _share(cells: str, side: int, cell: int, i: int) -> float:
    """The share of pixel ``i`` of a block in a cell."""
    if cells == "box":
        return float(i // side == cell)
    return max(0.0, 1 - abs((i + 0.5) / side - 0.5 - cell))


def gaussian_kernel(side: int) -> list[float]:
    """The 1-D Gaussian e with standard deviation ``side // 2``; the 2-D window is outer(e, e) / sum(outer(e, e))."""
    deviation = max(side // 2, 1)
    e = [math.exp(-0.5 * ((i - (side - 1) / 2) / deviation) ** 2) for i in range(side)]
    return [v / sum(e) for v in e]


def edge_cotangents(bins: int, signed: bool = False) -> list[float]:
    """The cotangents of the inner bin edges k = 1 .. bins - 1, exact at multiples of 45 degrees.

    Edge k lies at ``k * pi / bins``, or for signed orientations at twice that. The cotangents are exactly antisymmetric
    about 90 degrees, so that mirrored images land in mirrored bins. The edge at 180 degrees has the cotangent inf.
    """
    if signed:
        return [math.inf if 2 * k == bins else _cotangent(2 * k % bins, bins) for k in range(1, bins)]
    return [_cotangent(k, bins) for k in range(1, bins)]


def _cotangent(k: int, bins: int) -> float:
    """cot(k * pi / bins), 0 < k < bins, exact where it is 0, 1 or -1."""
    if 2 * k > bins:
        return -_cotangent(bins - k, bins)
    if 2 * k == bins:
        return 0.0
    if 4 * k == bins:
        return 1.0
    return 1.0 / math.tan(k * math.pi / bins)


class Region(NamedTuple):
    """A rectangle in the plane that the mirrored images of an image tile without end.

    It may begin before the image, and end after it. ``tie_column``: from this column on, the last of equally strong
    channels is taken, before it the first.
    """

    top: int
    left: int
    height: int
    width: int
    tie_column: int


NEVER = 1 << 40
"""A ``tie_column`` beyond all columns."""


def whole(spec: HogSpec, height: int, width: int) -> Region:
    """The region that is the image itself."""
    return Region(0, 0, height, width, width // 4 * 4 if spec.arithmetic == "opencv" else width)


def block_shape(spec: HogSpec, region: Region) -> tuple[int, ...]:
    """The axes of the result after the leading ones and the channel."""
    (block_h, block_w), (down, across) = spec.block_size, spec.stride
    rows, columns = (region.height - block_h) // down + 1, (region.width - block_w) // across + 1
    block = () if spec.layout == "planes" and spec.block == (1, 1) else spec.block
    if spec.layout == "planes":
        return *block, spec.bins, rows, columns
    return (rows, columns, *block, spec.bins) if spec.layout == "rows" else (columns, rows, *block[::-1], spec.bins)


class BlockStrides(NamedTuple):
    """Strides of the result, in elements."""

    plane: int
    row: int  # of blocks
    column: int
    cell_row: int  # of a block
    cell_column: int
    bin: int


def block_strides(spec: HogSpec, rows: int, columns: int) -> BlockStrides:
    """The strides of a contiguous result with ``rows`` by ``columns`` blocks a plane, in the layout of ``spec``."""
    bins, (down, across) = spec.bins, spec.block
    area, entries = rows * columns, down * across * bins
    if spec.layout == "planes":
        return BlockStrides(area * entries, columns, 1, across * bins * area, bins * area, area)
    if spec.layout == "rows":
        return BlockStrides(area * entries, columns * entries, entries, across * bins, bins, 1)
    return BlockStrides(area * entries, entries, rows * entries, bins, down * bins, 1)


def epsilons(spec: HogSpec) -> tuple[float, float]:
    """The epsilon of the first and of the second normalisation."""
    if spec.arithmetic == "opencv":
        return 0.1 * spec.bins * math.prod(spec.block), 1e-3
    return spec.eps, spec.eps


_PACKED = ("bins", "sqrt", "gradient", "channels", "signed", "angle_from", "votes", "norm", "arithmetic", "layout")


@functools.lru_cache
def pack(spec: HogSpec) -> tuple[list[int], list[float]]:
    """(numbers, reals): a spec as the compiled ops take it, in the order that csrc/hog/plan.h reads."""
    y, x = cell_axes(spec)
    numbers = [_code(name, getattr(spec, name)) for name in _PACKED]
    reals = [*epsilons(spec), spec.clip]
    for axis in (y, x):
        numbers += [axis.pixels, axis.stride, axis.per_block, axis.block_step, axis.step]
        numbers += [axis.period, axis.length, *axis.starts]
        reals += [weight for weights in axis.weights for weight in weights]
    return numbers, reals


def _code(name: str, value: str | int) -> int:
    return CHOICES[name].index(str(value)) if name in CHOICES else int(value)


def unpack(numbers: Sequence[int], reals: Sequence[float]) -> tuple[HogSpec, tuple[CellAxis, CellAxis]]:
    """What :func:`pack` was given, with the tables of its cells.

    The spec has their sizes, but not the words that made their weights: Gaussians, bilinear shares and means.
    """
    words: dict[str, Any] = {
        name: CHOICES[name][code] if name in CHOICES else code for name, code in zip(_PACKED, numbers, strict=False)
    }
    words |= {name: bool(words[name]) for name in ("sqrt", "signed")}
    axes, n, r = [], len(_PACKED), 3
    for _ in range(2):
        pixels, stride, per_block, block_step, step, period, length = numbers[n : n + 7]
        starts = tuple(numbers[n + 7 : n + 7 + period])
        weights = tuple(tuple(reals[r + k * length : r + (k + 1) * length]) for k in range(period))
        axes.append(CellAxis(pixels, stride, per_block, block_step, step, starts, weights))
        n, r = n + 7 + period, r + period * length
    y, x = axes
    cell, block = (y.pixels // y.per_block, x.pixels // x.per_block), (y.per_block, x.per_block)
    spec = HogSpec(cell=cell, block=block, block_stride=(y.stride, x.stride), eps=reals[0], clip=reals[2], **words)
    return spec, (y, x)
