"""Pictures of histograms of oriented gradients: one glyph a cell, one stroke a bin."""

import math
import operator

import torch
from torch import Tensor

POWER = 8
"""Of the norm that joins crossing strokes. A sum (1) would turn every cell without a direction into a bright spot."""


def hog_image(
    hog: Tensor,  # [..., C, bins, rows, columns]
    *,
    glyph: int = 16,
    channel: int | None = None,
) -> Tensor:  # [..., rows * glyph, columns * glyph]
    r"""Draw every cell as a star of strokes, one along the edges of each bin, as bright as the bin is full.

    A pixel of a glyph is :math:`(\sum_k (h_k s_k)^8)^{1/8}`, where :math:`h_k` is the histogram and :math:`s_k` the
    stroke of bin k: a smooth maximum, so that a stroke keeps its brightness where others cross it. Strokes run along
    the edge, across the gradient, so that the picture looks like the image: a vertical edge is a vertical stroke. A
    bin is drawn at its centre, at most 90 / bins degrees from the edges in it.

    Args:
        hog: what :func:`maskfeat_kernels.fused_hog` returns, ``[..., C, bins, rows, columns]``, of any floating dtype
            and on any device. ``[bins, rows, columns]``, from an image without a channel axis, is drawn as one channel.
        glyph: side of a glyph in pixels, at least 3.
        channel: the channel to draw, negative to count from the last; None draws the mean over the channels.

    Returns:
        Images ``[..., rows * glyph, columns * glyph]`` float32 in [0, 1], on the device of ``hog``; a cell with a NaN
        is NaN.

    Raises:
        TypeError: ``hog`` is not a floating tensor, or ``glyph`` or ``channel`` not an int.
        ValueError: fewer than three axes, no bins or no channels, a glyph too small, a channel that ``hog`` has not.
    """
    if not isinstance(hog, Tensor):
        raise TypeError(f"hog must be a torch.Tensor [..., C, bins, rows, columns], got {type(hog).__name__}")
    if not hog.is_floating_point():
        raise TypeError(f"hog must be of a floating dtype, got {hog.dtype}")
    if hog.ndim < 3 or 0 in hog.shape[-4:-2]:
        raise ValueError(f"hog must have the axes [..., C, bins, rows, columns], got shape {tuple(hog.shape)}")
    if hog.ndim == 3:
        hog = hog.unsqueeze(0)
    glyph = _int("glyph", glyph)
    if glyph < 3:
        raise ValueError(f"glyph must be at least 3 pixels, got {glyph}")

    # Widened before the mean: float16 and bfloat16 are storage here, not arithmetic.
    hog = hog.detach().float()
    histogram = hog.mean(-4) if channel is None else hog.select(-4, _channel(channel, hog.shape[-4]))
    stamps = glyph_stamps(histogram.shape[-3], glyph, device=hog.device)
    image = torch.einsum("...krc,kyx->...rycx", histogram.clamp(0, 1) ** POWER, stamps**POWER) ** (1 / POWER)
    return image.flatten(-2).flatten(-3, -2).clamp(0, 1)


def glyph_stamps(
    bins: int,
    glyph: int,
    device: "torch.device | str" = "cpu",
) -> Tensor:  # [bins, glyph, glyph] float32 in [0, 1]
    r"""The strokes: anti-aliased lines through the centre of a glyph, along the edges that each bin stands for.

    With x to the right and y down, the gradient of angle :math:`\phi = \operatorname{atan2}(g_x, g_y)` is
    :math:`(\sin\phi, \cos\phi)`; the edge across it is :math:`(\cos\phi, -\sin\phi)`. Bin k stands for its centre
    :math:`\phi = (k + 1/2)\,\pi / \mathrm{bins}`: its strokes turn counter-clockwise as k grows, from nearly
    horizontal at k = 0.
    """
    phi = (torch.arange(bins, dtype=torch.float64, device=device) + 0.5) * (math.pi / bins)
    edge_x, edge_y = phi.cos()[:, None, None], -phi.sin()[:, None, None]

    # Distance of each pixel's centre from the segment: across it, and along it beyond its end.
    offset = torch.arange(glyph, dtype=torch.float64, device=device) + 0.5 - glyph / 2
    x, y = offset[None, :], offset[:, None]
    width = max(1.0, glyph / 8)
    half_length = (glyph - width - 1) / 2  # the round end just fits into the glyph
    across = x * edge_y - y * edge_x
    beyond = ((x * edge_x + y * edge_y).abs() - half_length).clamp_min(0)

    # A pixel is as bright as the share of it that the stroke covers, one pixel of ramp at the outline.
    coverage = width / 2 + 0.5 - torch.hypot(across, beyond)
    return coverage.clamp(0, 1).float()


def _channel(channel, channels: int) -> int:
    channel = _int("channel", channel)
    if not -channels <= channel < channels:
        raise ValueError(f"channel must be in [{-channels}, {channels}), got {channel}")
    return channel


def _int(name: str, value) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
