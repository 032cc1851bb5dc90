"""The vote of a pixel in Triton, in any dialect: gradient, strongest channel, magnitude, bins."""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..plan import BlockStrides

_PI = tl.constexpr(math.pi)
_INTERPRETED = triton.knobs.runtime.interpret


class Dialect(NamedTuple):
    """A dialect's words about pixels and blocks: constants of the kernels."""

    bins: int
    sqrt: bool
    sobel: bool
    strongest: bool
    signed: bool
    horizontal: bool
    linear: bool
    norm: str
    opencv: bool
    eps: float
    eps_again: float
    clip: float
    edges: tuple[float, ...]  # cotangents of the edges 1 .. bins - 1
    bins_per_radian: float
    arc: tuple[float, ...]  # coefficients of the angle in an octant
    arc_slope: tuple[float, ...]  # and of its derivative
    y: "AxisConstants"
    x: "AxisConstants"


class AxisConstants(NamedTuple):
    """The cells along an axis, as CellAxis has them: constants of the kernels."""

    pixels: int
    stride: int
    per_block: int
    block_step: int
    step: int
    period: int
    length: int
    holders: int  # the most cells of a block that weight a pixel
    overlap: int  # the most blocks that hold a pixel


class Image(NamedTuple):
    """Pixels [..., C, H, W]; sizes and strides of the axes before those of a plane, from the last to the first."""

    pixels: Tensor
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    channels: int  # of which the strongest is taken
    channel_stride: int
    row_stride: int
    pixel_stride: int
    tie_column: int


class AxisArguments(NamedTuple):
    """An axis of an image, the region along it, and the tables of CellAxis: arguments of the kernels."""

    size: int  # of the image
    begin: int  # of the region
    first_fold: int  # of the mirrored images of the image, those that the region meets
    last_fold: int
    cells: int
    blocks: int
    starts: Tensor  # [period], int32
    weights: Tensor  # [period, length]
    holder: Tensor  # [pixels], int32: the first cell of a block that weights a pixel


def image_of(x: Tensor, axes: int, tie_column: int = 0) -> Image:
    """The image that ``x`` is, if a plane has its last ``axes`` axes, of which the first of three are the channels."""
    leading = range(max(0, x.ndim - axes))[::-1]
    channels = x.ndim >= axes == 3
    return Image(
        x,
        tuple(max(1, x.shape[axis]) for axis in leading),  # kernels divide by them, also for patches of no frames
        tuple(0 if x.shape[axis] == 1 else x.stride(axis) for axis in leading),
        x.shape[-3] if channels else 1,
        x.stride(-3) if channels else 0,
        x.stride(-2),
        x.stride(-1),
        tie_column,
    )


def tile(
    rows: int,
    columns: int,
    lanes: int,  # a power of two
) -> tuple[int, int]:  # powers of two, whose product is ``lanes``
    """Rows and columns that a program does of a table of this size; few different ones, for each is compiled.

    The interpreter compiles nothing and works on every lane: there no more than the table has.
    """
    if _INTERPRETED:
        across = min(triton.next_power_of_2(columns), lanes)
        return min(triton.next_power_of_2(rows), lanes // across), across
    across = lanes
    while across > 1 and columns <= across // 2:
        across = max(1, across // 4)
    return lanes // across, across


def hidden(numbers: tuple, *special: str) -> tuple:
    """A tuple of a kernel's arguments with 4 n + 2 for each integer n but those of the fields named ``special``.

    Triton compiles a kernel anew for an integer that is 1 or a multiple of 16, and inside of a tuple there is no
    telling it not to. 4 n + 2 is neither.
    """

    def hide(value):
        if isinstance(value, tuple):
            return tuple(map(hide, value))
        return 4 * value + 2 if isinstance(value, int) else value

    fields = zip(numbers._fields, numbers, strict=True)
    return numbers._make(value if name in special else hide(value) for name, value in fields)


@triton.jit
def shown_image(image):
    """The image that was :func:`hidden`, but for its pixel_stride."""
    sizes, strides = (), ()
    for axis in tl.static_range(len(image.sizes)):
        sizes, strides = sizes + (image.sizes[axis] >> 2,), strides + (image.strides[axis] >> 2,)
    return Image(
        image.pixels,
        sizes,
        strides,
        image.channels >> 2,
        image.channel_stride >> 2,
        image.row_stride >> 2,
        image.pixel_stride,
        image.tie_column >> 2,
    )


@triton.jit
def shown_strides(strides):
    """The strides that were :func:`hidden`."""
    return BlockStrides(
        strides.plane >> 2,
        strides.row >> 2,
        strides.column >> 2,
        strides.cell_row >> 2,
        strides.cell_column >> 2,
        strides.bin >> 2,
    )


@triton.jit
def shown_axis(axis):
    """The axis that was :func:`hidden`."""
    return AxisArguments(
        axis.size >> 2,
        axis.begin >> 2,
        axis.first_fold >> 2,
        axis.last_fold >> 2,
        axis.cells >> 2,
        axis.blocks >> 2,
        axis.starts,
        axis.weights,
        axis.holder,
    )


@triton.jit
def plane_offset(plane, image):
    """Where a plane begins."""
    offset = tl.zeros_like(plane).to(tl.int64)
    for axis in tl.static_range(len(image.sizes)):
        if axis + 1 < len(image.sizes):
            offset += (plane % image.sizes[axis]).to(tl.int64) * image.strides[axis]
            plane = plane // image.sizes[axis]
        else:
            offset += plane.to(tl.int64) * image.strides[axis]
    return offset


@triton.jit
def root(v):
    return tl.sqrt_rn(v) if v.dtype.is_fp32() else tl.sqrt(v)


@triton.jit
def constant(value: tl.constexpr, like):
    """``value`` in the dtype of a block, to compare it with: as a number it would be rounded to float32."""
    return tl.full(like.shape, value, like.dtype)


@triton.jit
def tree_sum(v, ROWS: tl.constexpr, N: tl.constexpr):
    """ROWS sums of N numbers each, N a power of two: the right half is added to the left until one number is left.

    ``tl.sum`` adds in an order that follows the layout of the block, and so the strides and the number of the images.
    Two numbers have but one order.
    """
    if N > 1:
        v = tree_sum(tl.sum(tl.reshape(v, (ROWS, 2, N // 2)), axis=1), ROWS, N // 2)
    return tl.reshape(v, (ROWS,))


@triton.jit
def mirror(i, n, FAR: tl.constexpr):
    """Any index, or if not FAR one of -1 .. n, mirrored into 0 .. n - 1."""
    i = tl.abs(i)
    if FAR:
        i = i % tl.maximum(2 * (n - 1), 1)
    return tl.where(i < n, i, tl.maximum(2 * (n - 1) - i, 0))


@triton.jit
def pixel(place, here, T: tl.constexpr):
    return tl.load(place, mask=here, other=0).to(T)


@triton.jit
def gradient(plane, image, y, x, row, column, here, D: tl.constexpr, FAR: tl.constexpr, T: tl.constexpr):
    """The pixel after minus the pixel before, for Sobel smoothed across: differences first."""
    up = plane + mirror(row - 1, y.size, FAR).to(tl.int64) * image.row_stride
    middle = plane + mirror(row, y.size, FAR).to(tl.int64) * image.row_stride
    down = plane + mirror(row + 1, y.size, FAR).to(tl.int64) * image.row_stride
    left = mirror(column - 1, x.size, FAR).to(tl.int64) * image.pixel_stride
    centre = mirror(column, x.size, FAR).to(tl.int64) * image.pixel_stride
    right = mirror(column + 1, x.size, FAR).to(tl.int64) * image.pixel_stride
    west, east = pixel(middle + left, here, T), pixel(middle + right, here, T)
    north, south = pixel(up + centre, here, T), pixel(down + centre, here, T)
    if D.sqrt:
        west, east, north, south = root(west), root(east), root(north), root(south)
    gx, gy = east - west, south - north
    if D.sobel:
        nw, ne = pixel(up + left, here, T), pixel(up + right, here, T)
        sw, se = pixel(down + left, here, T), pixel(down + right, here, T)
        if D.sqrt:
            nw, ne, sw, se = root(nw), root(ne), root(sw), root(se)
        gx = (ne - nw) + (se - sw) + 2 * gx
        gy = (sw - nw) + (se - ne) + 2 * gy
    return gx, gy


@triton.jit
def strongest(plane, image, y, x, row, column, here, D: tl.constexpr, FAR: tl.constexpr, T: tl.constexpr):
    """The gradient of the channel that has the longest, and the channel; a NaN counts as the longest of all."""
    gx, gy = gradient(plane, image, y, x, row, column, here, D, FAR, T)
    channel = tl.zeros_like(gx).to(tl.int32)
    if D.strongest:
        longest = gx * gx + gy * gy
        takes_last = column - x.begin >= image.tie_column
        for c in range(1, image.channels):
            plane += image.channel_stride
            other_gx, other_gy = gradient(plane, image, y, x, row, column, here, D, FAR, T)
            square = other_gx * other_gx + other_gy * other_gy
            take = (square > longest) | (takes_last & (square == longest)) | ((square != square) & (longest == longest))
            gx, gy = tl.where(take, other_gx, gx), tl.where(take, other_gy, gy)
            longest, channel = tl.where(take, square, longest), tl.where(take, c, channel)
    return gx, gy, channel


@triton.jit
def _hard_bin(sine, cosine, D: tl.constexpr):
    """The number of edges that the orientation has reached: one product and one comparison each, exact on bytes."""
    lower = tl.where(sine != 0, sine, cosine) < 0  # half plane
    sine, cosine = tl.where(lower, -sine, sine), tl.where(lower, -cosine, cosine)
    reached = tl.zeros_like(sine).to(tl.int32)
    for k in tl.static_range(len(D.edges)):
        beyond = lower
        if not D.signed:
            beyond = sine * D.edges[k] >= cosine
        elif 2 * (k + 1) < D.bins:
            beyond = lower | (sine * D.edges[k] >= cosine)
        elif 2 * (k + 1) > D.bins:
            beyond = lower & (sine * D.edges[k] >= cosine)
        reached += beyond.to(tl.int32)
    return reached


@triton.jit
def _linear_bin(sine, cosine, magnitude, D: tl.constexpr):
    """The bin with the nearest centre below the orientation, and the share of the next bin."""
    s, c = tl.abs(sine), tl.abs(cosine)
    small, large = tl.minimum(s, c), tl.maximum(s, c)
    # The tangent of the angle in an octant, or of half of it.
    t = small / (large + 2.0**-52) if D.opencv else small / tl.where(large > 0, large + magnitude, 1.0)
    angle = _series(t * t, D, False) * t
    angle = tl.where(s > c, _PI / 2 - angle, angle)
    angle = tl.where(cosine < 0, _PI - angle, angle)
    angle = tl.where(sine < 0, 2 * _PI - angle, angle)
    place = angle * D.bins_per_radian - 0.5
    below = tl.floor(tl.where(place == place, place, 0.0))  # a NaN goes into the share
    return (below.to(tl.int32) + D.bins) % D.bins, place - below


@triton.jit
def angle_rate(sine, cosine, D: tl.constexpr):
    """The change of the angle over that of the true one: 1, or for a polynomial p of the tangent a, p'(a) (1 + a^2)."""
    rate = tl.zeros_like(sine) + 1
    if D.opencv:
        s, c = tl.abs(sine), tl.abs(cosine)
        a = tl.minimum(s, c) / (tl.maximum(s, c) + 2.0**-52)
        rate = _series(a * a, D, True) * (1 + a * a)
    return rate


@triton.jit
def _series(z, D: tl.constexpr, SLOPE: tl.constexpr):
    """The sum of coefficients[n] * z^n, those of the angle in an octant or of its derivative."""
    coefficients: tl.constexpr = D.arc_slope if SLOPE else D.arc
    total = tl.zeros_like(z)
    for n in tl.static_range(len(coefficients)):
        total = total * z + coefficients[len(coefficients) - 1 - n]
    return total


@triton.jit
def vote(gx, gy, D: tl.constexpr):
    """(magnitude m, m * sine, m * cosine, bin, share): the share of the vote goes to the next bin."""
    magnitude = root(gx * gx + gy * gy)
    sine, cosine = (gy, gx) if D.horizontal else (gx, gy)
    if D.linear:
        bin, share = _linear_bin(sine, cosine, magnitude, D)
    else:
        bin, share = _hard_bin(sine, cosine, D), tl.zeros_like(sine)
    return magnitude, sine, cosine, bin, share
