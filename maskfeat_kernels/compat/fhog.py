"""The HOG of Felzenszwalb et al. (UoCTTI, fHOG) as dlib and VLFeat compute it, on the kernels of this package."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend import choose_backend
from ..checks import check_tensor
from ..hog.api import DTYPES, fused_hog
from ..hog.spec import HogSpec
from ..interchange import through_tensors
from ..scalars import at_least

VARIANTS = ("dlib", "vlfeat")

RAW = HogSpec(bins=36, signed=True, gradient="central", channels="strongest", cells="bilinear", norm="none")
"""Votes in steps of 10 degrees, from the y axis, which points down, to the x axis.

A gradient on an edge then falls as Felzenszwalb's does.
"""


def fhog(
    x: Any,  # [..., C, H, W]
    cell: int = 8,
    variant: str = "dlib",
    *,
    backend: str = "auto",
) -> Any:  # [..., 31, rows, columns]
    r"""Histograms of oriented gradients of Felzenszwalb et al., as of dlib or VLFeat: 31 planes of cells.

    A pixel votes with the length of its central difference, in the channel where that is longest, for the nearest of 18
    directions, 20 degrees apart. The vote is shared between the four nearest cells. Pixels at the border of the image
    do not vote. This gives :math:`h_o`, and :math:`u_o = h_o + h_{o+9}` without the sign. Each of the four blocks b of
    2 x 2 cells around a cell has the norm :math:`N_b = \sqrt{\sum u^2 + 10^{-4}}`. The features of a cell are, in turn,

    * 18 signed, :math:`\frac12 \sum_b \min(h_o / N_b, 0.2)`, where plane o is the direction 20 o degrees from the x
      axis to the y axis, which points down;
    * 9 unsigned, the same of :math:`u_o`;
    * 4 of texture, one a block: :math:`0.2357 \sum_o \min(h_o / N_b, 0.2)` over the 18, with the blocks below right,
      above right, below left, above left of the cell ("dlib"); or :math:`18^{-1/2} \sum_o \min(u_o / N_b, 0.2)` over
      the 9, with the blocks above left, above right, below left, below right ("vlfeat").

    Args:
        x: images of uint8 or floats, as for :func:`maskfeat_kernels.fused_hog`. The epsilon is for pixels of 0 .. 255.
        cell: side of a cell in pixels.
        variant: "dlib" is ``extract_fhog_features`` without padding, and Felzenszwalb's own code where the image is
            whole cells; cells at the border have no features. "vlfeat" is ``vl_hog`` with its variant UoCTTI; cells at
            the border have features too, and blocks beyond the border repeat the border cells.
        backend: "auto", or one of ``available_backends(x.device)``.

    Returns:
        The leading axes, then ``[31, H / cell - 2, W / cell - 2]`` ("dlib") or ``[31, H / cell, W / cell]``, where the
        quotient is rounded to the nearest, halves up. It is float64 for float64 images, else float32. It is
        differentiable once, as :func:`maskfeat_kernels.fused_hog` with hard votes.

    Raises:
        TypeError, ValueError: as :func:`maskfeat_kernels.fused_hog`; another variant; an image of fewer than 3 x 3
            cells ("dlib"), or of fewer than 4 x 4 pixels or no cell ("vlfeat"). Backend "cuda" refuses cells of
            more than 44 pixels, and with "vlfeat" from 30 pixels on, if one axis alone has fewer than 3 cells.

    Source: Felzenszwalb, Girshick, McAllester and Ramanan, Object Detection with Discriminatively Trained Part Based
    Models, PAMI 2010. Of equal channels ours takes the first, and dlib's vector code the last. Felzenszwalb and dlib
    round the directions to four decimals. Ours are exact, so that gradients (168, 97) and (239, 138) of bytes, and
    those with other signs, vote for the next direction.
    """
    if not isinstance(x, Tensor):
        return through_tensors(lambda x: fhog(x, cell, variant, backend=backend), x=x)
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    cell = at_least("cell", cell, 1)
    check_tensor("x", x, DTYPES)
    x = x.unsqueeze(0) if x.ndim == 2 else x
    cells = [(side + cell // 2) // cell for side in x.shape[-2:]]
    least, pixels = (3, 2) if variant == "dlib" else (1, 4)
    if x.ndim < 2 or min(cells) < least or min(x.shape[-2:]) < pixels:
        raise ValueError(
            f"x must have at least {least} x {least} cells of {cell} pixels, and {pixels} x {pixels} pixels, for"
            f" variant {variant!r}, got shape {tuple(x.shape)}"
        )
    return _features(_histograms(x, cell, cells, variant, choose_backend(x.device, backend)), variant)


def _histograms(
    x: Tensor,  # [..., C, H, W]
    cell: int,
    cells: list[int],  # down and across
    variant: str,
    backend: str,
) -> Tensor:  # [..., 18, *cells]
    """Votes for 18 directions, without those of pixels at the border."""
    sides = list(x.shape[-2:])
    # dlib looks at whole cells. VLFeat has votes from behind its last cell, which are those of a grid of one more.
    grid = cells if variant == "dlib" else [-(-side // cell) for side in sides]
    x = x[..., : grid[0] * cell, : grid[1] * cell]
    outside: list[list[int]] = []  # rows, then columns, that do not vote
    for axis, side, wanted in zip((-2, -1), x.shape[-2:], (n * cell for n in grid), strict=True):
        outside.append([0, *range(side - 1, wanted)])
        if wanted > side:  # repeats the last two in turn, so that derivatives along the axis are 0 there
            in_turn = [side - 1 - (i - side + 1) % 2 for i in range(side, wanted)]
            x = x.index_select(axis, torch.tensor([*range(side), *in_turn], device=x.device))
    # A launch of CUDA has room for 300 numbers: 36 edges of bins, and 2 * cell weights a cell of a block on either axis
    most = max(grid) if backend in ("cpu", "reference") else max(1, min(6, 66 // cell - 2))
    raw = _bilinear(x, cell, grid, backend, most)
    first = torch.tensor([(8 - 2 * o) % 36 for o in range(18)], device=x.device)
    planes = list((raw.index_select(-3, first) + raw.index_select(-3, (first + 1) % 36)).unbind(-3))
    right, left = _along_border(x, outside[0], cell, grid)
    down, up = (votes.mT for votes in _along_border(x.mT, outside[1], cell, grid[::-1]))
    for o, border in ((0, right), (9, left), (4, down), (13, up)):
        inner = planes[o].double() - border
        planes[o] = torch.where(inner > 1e-6 * border, inner, 0.0).to(raw.dtype)  # no residue of rounding
    return torch.stack([plane[..., : cells[0], : cells[1]] for plane in planes], dim=-3)


def _bilinear(
    x: Tensor,  # [..., C, H, W], whole cells
    cell: int,
    grid: list[int],
    backend: str,
    most: int,
) -> Tensor:  # [..., 36, *grid]
    """RAW votes, each shared between all the neighbours of its pixel.

    A block as large as the image has them all. Where kernels hold a block in the memory of a multiprocessor, blocks
    that overlap by two cells have up to ``most`` further cells along each axis. Their outermost cells lack votes and
    are left out.
    """
    new = [max(n for n in range(1, max(1, min(most, side - 2)) + 1) if (side - 2) % n == 0) for side in grid]
    block = tuple(min(n + 2, side) for n, side in zip(new, grid, strict=True))
    stride = tuple(n * cell for n in new)
    raw = fused_hog(x, RAW, cell=cell, block=block, block_stride=stride, backend=backend)
    if block == (1, 1):  # which has no axes of its own
        return raw
    blocks, inside = [], []
    for side, n, cells_of_block in zip(grid, new, block, strict=True):
        place = torch.arange(side, device=x.device)
        blocks.append(((place - 1) // n).clamp(0, (side - cells_of_block) // n))
        inside.append(place - blocks[-1] * n)
    cut = raw[..., inside[0][:, None], inside[1], :, blocks[0][:, None], blocks[1]]  # [*grid, ..., 36]
    return cut.movedim((0, 1), (-2, -1))


def _along_border(
    x: Tensor,  # [..., C, H, W]
    rows: list[int],  # K of them
    cell: int,
    grid: list[int],
) -> tuple[Tensor, Tensor]:  # two of [..., *grid], float64
    """Votes of rows without a vertical derivative: to the right and to the left."""
    strips = x.index_select(-2, torch.tensor(rows, device=x.device)).double()
    slopes = strips[..., 2:] - strips[..., :-2]  # [..., C, K, W - 2]
    longest, *others = slopes.unbind(-3)
    for slope in others:
        longest = torch.where(slope**2 > longest**2, slope, longest)
    down = _shares(rows, cell, grid[0], x.device)
    across = _shares(range(1, x.shape[-1] - 1), cell, grid[1], x.device)
    right, left = (down.T @ votes @ across for votes in (longest.clamp(min=0), (-longest).clamp(min=0)))
    return right, left


def _shares(places: Sequence[int], cell: int, cells: int, device: torch.device) -> Tensor:  # [places, cells], float64
    """What a pixel gives to each cell along one axis."""
    centre = (torch.tensor(list(places), dtype=torch.float64, device=device) + 0.5) / cell - 0.5
    return (1 - (centre[:, None] - torch.arange(cells, device=device)).abs()).clamp(min=0)


def _features(
    h: Tensor,  # [..., 18, rows, columns]
    variant: str,
) -> Tensor:  # [..., 31, rows - 2, columns - 2] for dlib, else [..., 31, rows, columns]
    """Each cell divided by the norms of the four blocks around it, limited and added."""
    dlib = variant == "dlib"
    unsigned = h[..., :9, :, :] + h[..., 9:, :, :]
    energy = unsigned.square().sum(-3, keepdim=True)
    if dlib:
        h, unsigned = h[..., 1:-1, 1:-1], unsigned[..., 1:-1, 1:-1]
    else:
        energy = torch.cat([energy[..., :1, :], energy, energy[..., -1:, :]], dim=-2)
        energy = torch.cat([energy[..., :1], energy, energy[..., -1:]], dim=-1)
    pairs = energy[..., 1:, :] + energy[..., :-1, :]
    scale = (pairs[..., 1:] + pairs[..., :-1] + 1e-4).rsqrt()
    above_left, above_right = scale[..., :-1, :-1], scale[..., :-1, 1:]
    below_left, below_right = scale[..., 1:, :-1], scale[..., 1:, 1:]
    order = (
        (below_right, above_right, below_left, above_left)
        if dlib
        else (above_left, above_right, below_left, below_right)
    )
    signed, folded = (torch.stack([torch.clamp(v * n, max=0.2) for n in order], dim=-4) for v in (h, unsigned))
    texture = 0.2357 * signed.sum(-3) if dlib else 18**-0.5 * folded.sum(-3)
    return torch.cat([0.5 * signed.sum(-4), 0.5 * folded.sum(-4), texture], dim=-3)
