"""HOG in plain torch: the one meaning of every dialect, stage by stage. Gradients are by autograd.

In float64 it is the oracle of every other backend.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .plan import OPENCV_ARC_TANGENT, CellAxis, Region, cell_axes, edge_cotangents, epsilons, whole
from .spec import HogSpec


def hog(
    x: Tensor,  # [..., C, H, W]
    spec: HogSpec,
    region: Region | None = None,  # the image, if None
    axes: tuple[CellAxis, CellAxis] | None = None,  # those of the spec, if None
    mask: Tensor | None = None,  # [..., region.height, region.width] bool: the pixels that vote, if not all
) -> Tensor:  # [..., (C unless channels are "strongest"), *block_shape(spec, region)]
    """Histograms of oriented gradients; see :func:`maskfeat_kernels.fused_hog`."""
    region = whole(spec, *x.shape[-2:]) if region is None else region
    axes = cell_axes(spec) if axes is None else axes
    x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    gx, gy = gradient(rounded_sqrt(x) if spec.sqrt else x, spec.gradient, region)
    if spec.channels == "strongest":
        gx, gy = strongest_channel(gx, gy, region.tie_column, spec.arithmetic == "skimage")
    votes = dense_votes(gx, gy, spec)
    if mask is not None:
        mask = mask.unsqueeze(-3) if spec.channels == "each" and x.ndim > 2 else mask
        votes = torch.where(mask.unsqueeze(-3), votes, 0)
    cells = cell_sums(votes, axes, region)
    return lay_out(normalise(blocks_of(cells, axes, region), spec), spec)


def hog_at(
    x: Tensor,  # [..., C, H, W] or [H, W]
    points: Tensor,  # [N, 2] or [..., N, 2]: (y, x), int64
    spec: HogSpec,
    region: Region,  # the window at point (0, 0)
    axes: tuple[CellAxis, CellAxis] | None = None,  # those of the spec, if None
) -> Tensor:  # [..., N, (C unless channels are "strongest"), *block_shape(spec, region)]
    """Histograms of windows at points; see :func:`maskfeat_kernels.fused_hog_at`."""
    windows = windows_at(x, points, region)
    # A tensor compares with the columns as a number does.
    tie_column: Any = (region.tie_column - points[..., 1])[..., None, None, None]
    blocks = hog(windows, spec, Region(1, 1, region.height, region.width, tie_column), axes)
    return blocks.squeeze(1) if x.ndim == 2 and spec.channels == "each" else blocks


def windows_at(
    x: Tensor,  # [..., C, H, W] or [H, W]
    points: Tensor,  # [N, 2] or [..., N, 2]: (y, x), int64
    region: Region,
) -> Tensor:  # [..., N, C, region.height + 2, region.width + 2]
    """Windows that are cut out, with the pixels around them."""
    x = x if x.ndim > 2 else x.unsqueeze(0)
    lead, (channels, height, width) = x.shape[:-3], x.shape[-3:]
    images = x.reshape(math.prod(lead), channels, height, width).movedim(1, -1)
    points = points.expand(*lead, *points.shape[-2:]).reshape(images.shape[0], *points.shape[-2:])
    down = torch.arange(-1, region.height + 1, device=x.device) + region.top
    across = torch.arange(-1, region.width + 1, device=x.device) + region.left
    rows = mirrored(points[..., 0, None] + down, height)[..., :, None]
    columns = mirrored(points[..., 1, None] + across, width)[..., None, :]
    image = torch.arange(images.shape[0], device=x.device)[:, None, None, None]
    windows = images[image, rows, columns].movedim(-1, -3)
    return windows.reshape(*lead, *windows.shape[1:])


def hog_tokens(
    x: Tensor,  # [B, T, C, H, W]
    token_ids: Tensor,  # [B, K], int64
    patch_size: int,
    spec: HogSpec,
) -> Tensor:  # [B, K, C * bins * (patch_size // cell_h) * (patch_size // cell_w)]
    """Histograms of chosen patches, NaN for an id out of range; see :func:`maskfeat_kernels.fused_hog_tokens`."""
    down, across = patch_size // spec.cell[0], patch_size // spec.cell[1]
    histograms = hog(x, spec)  # [B, T, C, bins, rows, columns]
    grid_h, grid_w = histograms.shape[-2] // down, histograms.shape[-1] // across
    patches = histograms.unflatten(-1, (grid_w, across)).unflatten(-3, (grid_h, down))
    tokens = patches.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4).flatten(1, 3)  # [B, T * grid_h * grid_w, features]
    nowhere = tokens.new_full((tokens.shape[0], 1, tokens.shape[2]), torch.nan)
    inside = (token_ids >= 0) & (token_ids < tokens.shape[1])
    token_ids = torch.where(inside, token_ids, tokens.shape[1])
    return torch.cat([tokens, nowhere], dim=1).take_along_dim(token_ids.unsqueeze(-1), dim=1)


def gradient(
    x: Tensor,  # [..., H, W]
    kind: str,
    region: Region,
) -> tuple[Tensor, Tensor]:  # gx, gy: [..., region.height, region.width] each
    """The pixel after minus the pixel before, for Sobel smoothed by (1, 2, 1) across; differences first."""

    def rows(shift: int) -> Tensor:
        return mirror(region.top + shift, region.height, x.shape[-2], x.device)

    def columns(shift: int) -> Tensor:
        return mirror(region.left + shift, region.width, x.shape[-1], x.device)

    def across(y: int) -> Tensor:
        return x[..., rows(y), :][..., columns(+1)] - x[..., rows(y), :][..., columns(-1)]

    def along(dx: int) -> Tensor:
        return (x[..., rows(+1), :] - x[..., rows(-1), :])[..., columns(dx)]

    if kind == "central":
        return across(0), along(0)
    return across(-1) + across(+1) + 2 * across(0), along(-1) + along(+1) + 2 * along(0)


def mirror(begin: int, count: int, size: int, device: torch.device) -> Tensor:  # [count], int64
    """Indices begin .. begin + count - 1, mirrored into 0 .. size - 1."""
    return mirrored(torch.arange(begin, begin + count, device=device), size)


def mirrored(index: Tensor, size: int) -> Tensor:  # of any shape, int64
    """Indices of any integers, mirrored into 0 .. size - 1 as often as it takes."""
    index = index % index.new_full((), max(2 * (size - 1), 1))  # a tensor, as ONNX needs of an unknown size
    return torch.where(index < size, index, 2 * (size - 1) - index)


def strongest_channel(
    gx: Tensor,  # [..., C, H, W], or [H, W] of one channel
    gy: Tensor,
    tie_column: int,
    rounded: bool,
) -> tuple[Tensor, Tensor]:  # [..., H, W] each
    """The gradient of the channel that has the longest: of equals the first, from ``tie_column`` on the last.

    ``rounded``: lengths are equal that are once rounded.
    """
    if gx.ndim == 2:
        return gx, gy
    length = (torch.hypot(gy, gx) if rounded else gx * gx + gy * gy).detach()  # or its square
    first = length.argmax(-3, keepdim=True)
    last = length.shape[-3] - 1 - length.flip(-3).argmax(-3, keepdim=True)
    column = torch.arange(length.shape[-1], device=length.device)
    channel = torch.where(column < tie_column, first, last)
    return gx.take_along_dim(channel, -3).squeeze(-3), gy.take_along_dim(channel, -3).squeeze(-3)


def dense_votes(
    gx: Tensor,  # [..., H, W]
    gy: Tensor,
    spec: HogSpec,
) -> Tensor:  # [..., bins, H, W]
    """The vote of each pixel for each bin: its magnitude, whole or shared by two bins."""
    flat = (gx == 0) & (gy == 0)
    magnitude = torch.where(flat, 0, (gx * gx + gy * gy).where(~flat, 1).sqrt())
    sine, cosine = (gx, gy) if spec.angle_from == "vertical" else (gy, gx)  # of the orientation, times magnitude
    votes = magnitude.new_zeros((*magnitude.shape[:-2], spec.bins, *magnitude.shape[-2:]))
    if spec.votes == "hard":
        if spec.arithmetic == "skimage":
            orientation = skimage_bin(sine, cosine, spec.bins)
            magnitude = magnitude * (orientation < spec.bins)
            orientation = orientation.clamp_max(spec.bins - 1)
        else:
            orientation = orientation_bin(sine, cosine, spec.bins, spec.signed)
        return votes.scatter(-3, orientation.unsqueeze(-3), magnitude.unsqueeze(-3))
    arc = opencv_angle if spec.arithmetic == "opencv" else angle
    place = arc(sine, cosine.where(~flat, 1)) * (spec.bins / (2 * math.pi if spec.signed else math.pi)) - 0.5
    below = place.detach().floor()
    above_share = place - below
    for bin_, share in ((below, 1 - above_share), (below + 1, above_share)):
        votes = votes.scatter_add(-3, bin_.long().unsqueeze(-3) % spec.bins, (magnitude * share).unsqueeze(-3))
    return votes


def orientation_bin(
    sine: Tensor,  # [...]
    cosine: Tensor,  # [...]
    bins: int,
    signed: bool = False,
) -> Tensor:  # [...], int64
    """floor(atan2(sine, cosine) / pi * bins) mod bins, without an arc tangent; over 2 pi if signed.

    A gradient in the lower half plane is negated. Then the bin is the number of edges k with
    ``sine * cot(k pi / bins) >= cosine``: one product and one compare each, which decide every byte image exactly. If
    signed, a gradient of the lower half plane has reached all edges up to 180 degrees, and another none beyond.
    """
    lower = (sine < 0) | ((sine == 0) & (cosine < 0))
    sine, cosine = torch.where(lower, -sine, sine), torch.where(lower, -cosine, cosine)
    reached = torch.zeros_like(sine, dtype=torch.int64)
    for k, cotangent in enumerate(edge_cotangents(bins, signed), start=1):
        beyond = (sine > 0) & (sine * cotangent >= cosine)
        if signed:
            beyond = lower if 2 * k == bins else lower | beyond if 2 * k < bins else lower & beyond
        reached = reached + beyond
    return reached


def skimage_bin(
    sine: Tensor,  # [...]
    cosine: Tensor,  # [...]
    bins: int,
) -> Tensor:  # [...], int64
    """The bin by a rounded angle, as scikit-image decides it; ``bins`` for one that rounding takes to 180 degrees."""
    y, x = (t.detach().to(float64_device(t.device)).double() for t in (sine, cosine))
    degrees = torch.rad2deg(torch.atan2(y, x)).nan_to_num(0) % 180
    ends = degrees.new_tensor([180 / bins * (k + 1) for k in range(bins)])
    return torch.searchsorted(ends, degrees, right=True).to(sine.device)


def float64_device(device: torch.device) -> torch.device:
    """Where float64 is computed for ``device``: on the CPU for a GPU of Apple, which has none."""
    return torch.device("cpu") if device.type == "mps" else device


def angle(
    sine: Tensor,  # [...]
    cosine: Tensor,  # [...]
) -> Tensor:  # [...], radians in [0, 2 pi)
    """The angle of a vector."""
    radians = torch.atan2(sine, cosine)
    return torch.where(radians < 0, radians + 2 * math.pi, radians)


def opencv_angle(
    sine: Tensor,  # [...]
    cosine: Tensor,  # [...]
) -> Tensor:  # [...], radians in [0, 2 pi)
    """The angle of a vector as cv::cartToPolar approximates it."""
    s, c = torch.where(sine < 0, -sine, sine), torch.where(cosine < 0, -cosine, cosine)  # abs() has no slope at 0
    smaller, larger = torch.where(s > c, c, s), torch.where(s > c, s, c)
    a = smaller / (larger + 2.0**-52)
    p1, p3, p5, p7 = (p * (180 / math.pi) for p in OPENCV_ARC_TANGENT)
    square = a * a
    degrees = (((p7 * square + p5) * square + p3) * square + p1) * a
    degrees = torch.where(s > c, 90 - degrees, degrees)
    degrees = torch.where(cosine < 0, 180 - degrees, degrees)
    degrees = torch.where(sine < 0, 360 - degrees, degrees)
    return degrees * (math.pi / 180)


def cell_sums(
    votes: Tensor,  # [..., region.height, region.width]
    axes: tuple[CellAxis, CellAxis],
    region: Region,
) -> Tensor:  # [..., cell rows, cell columns]
    """The weighted sums of the pixels of each cell: across, then down."""
    y, x = axes
    return _cell_sums_along(_cell_sums_along(votes, x, region.width).mT, y, region.height).mT


def _cell_sums_along(
    votes: Tensor,  # [..., size]
    axis: CellAxis,
    size: int,
) -> Tensor:  # [..., cells]
    """The same along the last axis."""
    cell = torch.arange(axis.cells(size), device=votes.device)
    start = cell // axis.period * axis.step + constants(axis.starts, cell)[cell % axis.period]
    pixels = start[:, None] + torch.arange(axis.length, device=votes.device)
    weights = constants([weight for weights in axis.weights for weight in weights], votes)
    weights = weights.unflatten(0, (axis.period, axis.length))
    sums: Tensor = (votes[..., pixels] * weights[cell % axis.period]).sum(-1)
    return sums


def constants(
    values: Sequence[float],
    like: Tensor,
) -> Tensor:  # [len(values)]
    """Numbers as a tensor on the device of another: by ops alone, as what an op means may hold no other tensors."""
    if len(set(values)) == 1:
        return like.new_full((len(values),), values[0])
    return torch.stack([like.new_full((), value) for value in values])


def blocks_of(
    cells: Tensor,  # [..., bins, cell rows, cell columns]
    axes: tuple[CellAxis, CellAxis],
    region: Region,
) -> Tensor:  # [..., R, C, block_h, block_w, bins]
    """The cells of each block."""
    (y, x), device = axes, cells.device
    rows, columns = (
        torch.arange(axis.blocks(size), device=device)[:, None] * axis.block_step
        + torch.arange(axis.per_block, device=device)
        for axis, size in ((y, region.height), (x, region.width))
    )
    return cells[..., rows[:, None, :, None], columns[None, :, None, :]].movedim(-5, -1)


def normalise(
    blocks: Tensor,  # [..., block_h, block_w, bins]
    spec: HogSpec,
) -> Tensor:  # [..., block_h, block_w, bins]
    """Each block divided by its norm, as ``spec.norm`` says; NaN where that, or with "none" an entry, is not finite."""
    v = blocks.flatten(-3)
    first, second = epsilons(spec)
    if spec.norm == "none":
        v = v / (1 + (v * 0).sum(-1, keepdim=True))
    elif spec.norm == "unit":
        v = v / finite_or_nan(_length(v)).clamp_min(first)
    elif spec.norm in ("l1", "l1-sqrt"):
        v = v / finite_or_nan(v.sum(-1, keepdim=True) + first)
        v = v if spec.norm == "l1" else _sqrt(v)
    elif spec.arithmetic == "opencv":
        v = v / finite_or_nan(_length(v) + first)
        v = v.clamp_max(spec.clip)
        v = v / (_length(v) + second)
    else:
        v = v / finite_or_nan(((v * v).sum(-1, keepdim=True) + first**2).sqrt())
        if spec.norm == "l2-hys":
            v = v.clamp_max(spec.clip)
            v = v / ((v * v).sum(-1, keepdim=True) + second**2).sqrt()
    return v.reshape(blocks.shape)


def finite_or_nan(x: Tensor) -> Tensor:
    """``x``, but NaN where it is infinite."""
    return x + (x - x)


def _sqrt(x: Tensor) -> Tensor:
    """The square root, whose gradient at 0 is 0."""
    return torch.where(x == 0, 0, x.where(x != 0, 1).sqrt())


def rounded_sqrt(x: Tensor) -> Tensor:
    """The square root, rounded to the nearest number: its last bit may decide between channels of equal strength.

    On a CPU torch's own is the next number for one in five float32, and for one in seventy float64. It is corrected by
    the remainder x - root^2, which is exact, as the halves of the root have products without rounding.
    """
    scale = torch.where(x.detach() < 2.0**-60, 2.0**40, 1.0).to(x.dtype)  # or these products were too small
    x = x * scale.square()
    root = _sqrt(x)
    r = root.detach()
    high = (2.0 ** (27 if x.dtype == torch.float64 else 12) + 1) * r
    high = high - (high - r)  # the upper half of the digits of r
    low = r - high
    missing = ((x.detach() - high * high) - 2 * high * low) - low * low
    step = missing / (2 * r)
    half_ulp = 2.0 ** (-53 if x.dtype == torch.float64 else -24)
    step = step - step.abs() * (half_ulp * (1 + 2.0**-20))  # the number before, as the curve is below its tangent
    return (root + torch.where(step.isfinite(), step, 0)) / scale


def _length(v: Tensor) -> Tensor:  # [..., 1]
    """The norm along the last axis, whose gradient at 0 is 0."""
    length: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return length


def lay_out(
    blocks: Tensor,  # [..., R, C, block_h, block_w, bins]
    spec: HogSpec,
) -> Tensor:
    """The axes in the order of ``spec.layout``."""
    lead = tuple(range(blocks.ndim - 5))
    rows, columns, down, across, bins = range(blocks.ndim - 5, blocks.ndim)
    if spec.layout == "planes":
        one = spec.block == (1, 1)
        blocks = blocks.permute(*lead, down, across, bins, rows, columns)
        return (blocks.flatten(-5, -3) if one else blocks).contiguous()
    order = (rows, columns, down, across, bins) if spec.layout == "rows" else (columns, rows, across, down, bins)
    return blocks.permute(*lead, *order).contiguous()
