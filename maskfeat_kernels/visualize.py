"""Pictures of histograms of oriented gradients: one glyph a cell, one stroke a bin."""

import math
from typing import Any, overload

import torch
from torch import Tensor

from .checks import check_dense
from .hog.spec import MASKFEAT, HogSpec
from .interchange import Array, through_tensors
from .layouts import LAYOUTS
from .scalars import integer

POWER = 8
"""The power of the norm that joins crossing strokes. A sum, power 1, would make cells without a direction bright."""


@overload
def hog_image(hog: Tensor, spec: HogSpec = ..., *, glyph: int = ..., channel: int | None = ...) -> Tensor: ...
@overload
def hog_image(hog: Array, spec: HogSpec = ..., *, glyph: int = ..., channel: int | None = ...) -> Any: ...
def hog_image(
    hog: Any,  # [..., C, bins, rows, columns], or as the layout of spec says
    spec: HogSpec = MASKFEAT,
    *,
    glyph: int = 16,
    channel: int | None = None,
) -> Any:  # [..., rows * glyph, columns * glyph]
    r"""Draw every cell as a star of strokes, one along the edges of each bin, as bright as the bin is full.

    A pixel of a glyph is :math:`(\sum_k (h_k s_k)^8)^{1/8}`, where :math:`h_k` is the histogram and :math:`s_k` the
    stroke of bin k. This smooth maximum keeps the brightness of a stroke where others cross it. Strokes run along
    the edge, across the gradient, so that the picture looks like the image: a vertical edge is a vertical stroke. A bin
    is drawn at its centre, at most 90 / bins degrees from the edges in it. A cell in several blocks is drawn as the
    mean of what it is in each. With ``norm`` "none" a histogram has no upper end: it is drawn over the largest finite
    bin of its image, whose stroke is then white.

    Args:
        hog: what :func:`maskfeat_kernels.fused_hog` returns, of any floating dtype and on any device, also an array.
            Without a channel axis, ``[bins, rows, columns]``, it is drawn as one channel.
        spec: what ``hog`` was computed with: its layout, blocks, and from where and how far orientations run.
        glyph: side of a glyph in pixels, at least 3.
        channel: the channel to draw, negative to count from the last; None draws the mean over the channels.

    Returns:
        Images ``[..., rows * glyph, columns * glyph]`` float32 in [0, 1], on the device of ``hog``; a cell with a NaN
        is NaN.

    Raises:
        TypeError: ``hog`` is not a floating tensor, or ``glyph`` or ``channel`` not an int.
        ValueError: axes that are not those of ``spec``, no bins or no channels, a glyph too small, a channel that
            ``hog`` has not, blocks whose stride is not a whole number of cells.
    """
    if not isinstance(hog, Tensor):
        return through_tensors(lambda hog: hog_image(hog, spec, glyph=glyph, channel=channel), hog=hog)
    check_dense("hog", hog)
    if not hog.is_floating_point():
        raise TypeError(f"hog must be of a floating dtype, got {hog.dtype}")
    hog = _planes(hog, spec)
    glyph = integer("glyph", glyph)
    if glyph < 3:
        raise ValueError(f"glyph must be at least 3 pixels, got {glyph}")

    # Widened before the mean: float16 and bfloat16 are storage here, not arithmetic.
    hog = hog.detach().float()
    histogram = hog.mean(-4) if channel is None else hog.select(-4, _channel(channel, hog.shape[-4]))
    if spec.norm == "none":
        histogram = histogram / _largest(histogram)
    stamps = glyph_stamps(spec.replace(bins=histogram.shape[-3]), glyph, device=hog.device)
    image = torch.einsum("...krc,kyx->...rycx", histogram.clamp(0, 1) ** POWER, stamps**POWER) ** (1 / POWER)
    return image.flatten(-2).flatten(-3, -2).clamp(0, 1)


def _largest(
    histogram: Tensor,  # [..., bins, rows, columns]
) -> Tensor:  # [..., 1, 1, 1]
    """The largest finite number of each image, 1 where that is 0."""
    if histogram.numel() == 0:
        return histogram.new_ones(())
    largest = histogram.nan_to_num(0, 0, 0).amax((-3, -2, -1), keepdim=True)
    return largest.where(largest > 0, 1)


def _planes(hog: Tensor, spec: HogSpec) -> Tensor:  # [..., C, bins, rows, columns]
    """The cells of a result in any layout; one channel where there is no axis for it."""
    cells_alone = spec.layout == "planes" and spec.block == (1, 1)
    names = ("bins", "rows", "columns") if cells_alone else LAYOUTS[spec.layout]
    each = spec.channels == "each"
    shape = tuple(hog.shape)
    if hog.ndim == len(names) or not each:
        hog = hog.unsqueeze(max(hog.ndim - len(names), 0))
    if hog.ndim <= len(names) or 0 in (hog.shape[-len(names) - 1], hog.shape[names.index("bins") - len(names)]):
        axes = ", ".join(("...", *("C",) * each, *names))
        raise ValueError(f"hog must have the axes [{axes}], none of C or bins empty; got shape {shape}")
    if cells_alone:
        return hog
    return _cells(hog.movedim([names.index(name) - 5 for name in LAYOUTS["rows"]], (-5, -4, -3, -2, -1)), spec)


def _cells(
    blocks: Tensor,  # [..., rows, columns, block_rows, block_columns, bins]
    spec: HogSpec,
) -> Tensor:  # [..., bins, cell rows, cell columns]
    """The mean of each cell over the blocks that hold it."""
    steps = [stride // side for stride, side in zip(spec.stride, spec.cell, strict=True)]
    if any(stride % side for stride, side in zip(spec.stride, spec.cell, strict=True)):
        raise ValueError(f"block_stride {spec.stride} must be whole cells of {spec.cell} for a picture")
    *lead, rows, columns, down, across, bins = blocks.shape
    total = blocks.new_zeros((*lead, (rows - 1) * steps[0] + down, (columns - 1) * steps[1] + across, bins + 1))
    for i in range(down):
        for j in range(across):
            held = total[
                ..., i : i + (rows - 1) * steps[0] + 1 : steps[0], j : j + (columns - 1) * steps[1] + 1 : steps[1], :
            ]
            held[..., :-1] += blocks[..., i, j, :]
            held[..., -1] += 1
    return (total[..., :-1] / total[..., -1:].clamp_min(1)).movedim(-1, -3)


def glyph_stamps(
    spec: HogSpec,
    glyph: int,
    device: "torch.device | str" = "cpu",
) -> Tensor:  # [bins, glyph, glyph] float32 in [0, 1]
    r"""The strokes: anti-aliased lines through the centre of a glyph, along the edges that each bin stands for.

    With x to the right and y down, the gradient of angle :math:`\phi = \operatorname{atan2}(g_x, g_y)` is
    :math:`(\sin\phi, \cos\phi)`; the edge across it is :math:`(\cos\phi, -\sin\phi)`. Bin k stands for its centre
    :math:`\phi = (k + 1/2)\,\pi / \mathrm{bins}`: its strokes turn counter-clockwise as k grows, from nearly
    horizontal at k = 0. Angles from the horizontal are :math:`\pi / 2 - \phi`: strokes turn clockwise, from nearly
    vertical. Signed bins turn twice as far, and two share a stroke.
    """
    circle = 2 * math.pi if spec.signed else math.pi
    phi = (torch.arange(spec.bins, dtype=torch.float64) + 0.5) * (circle / spec.bins)
    if spec.angle_from == "horizontal":
        phi = math.pi / 2 - phi
    edge_x, edge_y = phi.cos()[:, None, None], -phi.sin()[:, None, None]

    # Distance of each pixel's centre from the segment: across it, and along it beyond its end.
    offset = torch.arange(glyph, dtype=torch.float64) + 0.5 - glyph / 2
    x, y = offset[None, :], offset[:, None]
    width = max(1.0, glyph / 8)
    half_length = (glyph - width - 1) / 2  # the round end just fits into the glyph
    across = x * edge_y - y * edge_x
    beyond = ((x * edge_x + y * edge_y).abs() - half_length).clamp_min(0)

    # A pixel is as bright as the share of it that the stroke covers, one pixel of ramp at the outline.
    coverage = width / 2 + 0.5 - torch.hypot(across, beyond)
    return coverage.clamp(0, 1).float().to(device)  # some devices have no float64


def _channel(channel: Any, channels: int) -> int:
    number = integer("channel", channel)
    if not -channels <= number < channels:
        raise ValueError(f"channel must be in [{-channels}, {channels}), got {number}")
    return number
