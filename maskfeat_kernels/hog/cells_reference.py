"""HOG in plain torch: the meaning of the op, stage by stage. In float64 it is the oracle of every other backend."""

import torch
from torch import Tensor

from .spec import HogSpec, edge_cotangents, gaussian_kernel


def hog(
    x: Tensor,  # [..., H, W]
    spec: HogSpec,
) -> Tensor:  # [..., bins, H // cell_h, W // cell_w]
    """Histogram of oriented gradients; see :func:`maskfeat_kernels.fused_hog`."""
    x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    gx, gy = sobel(x)
    magnitude = (gx * gx + gy * gy).sqrt()
    if spec.gaussian_window:
        magnitude = magnitude * tiled_window(spec.gaussian_window, magnitude)
    votes = one_hot_votes(orientation_bin(gx, gy, spec.bins), magnitude, spec.bins)
    return normalise(cell_sums(votes, spec.cell))


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


def sobel(
    x: Tensor,  # [..., H, W]
) -> tuple[Tensor, Tensor]:  # gx, gy: [..., H, W] each
    """Sobel gradient (left minus right, above minus below), subtracting before weighting so that flat areas are 0."""
    up, mid, down = x[..., _reflected(x.shape[-2], -1, x), :], x, x[..., _reflected(x.shape[-2], +1, x), :]
    left, right = _reflected(x.shape[-1], -1, x), _reflected(x.shape[-1], +1, x)

    def across(row):
        return row[..., left] - row[..., right]

    along = up - down
    gx = across(up) + across(down) + 2 * across(mid)
    gy = along[..., left] + along[..., right] + 2 * along
    return gx, gy


def orientation_bin(
    gx: Tensor,  # [...]
    gy: Tensor,  # [...]
    bins: int,
) -> Tensor:  # [...], int64
    """floor(atan2(gx, gy) / pi * bins) mod bins, without an arc tangent.

    The gradient is turned into the half plane gx > 0 (or gx = 0, gy >= 0). There the bin is the number of edges k with
    gx * cot(k pi / bins) >= gy: one product and one compare each, which decide every byte image exactly.
    """
    turn = (gx < 0) | ((gx == 0) & (gy < 0))
    gx, gy = torch.where(turn, -gx, gx), torch.where(turn, -gy, gy)
    reached = torch.zeros_like(gx, dtype=torch.int64)
    for cotangent in edge_cotangents(bins):
        reached += (gx > 0) & (gx * cotangent >= gy)
    return reached


def one_hot_votes(
    orientation: Tensor,  # [..., H, W], int64
    magnitude: Tensor,  # [..., H, W]
    bins: int,
) -> Tensor:  # [..., bins, H, W]
    """The magnitude in the plane of its bin, zero in the others."""
    votes = magnitude.new_zeros((*magnitude.shape[:-2], bins, *magnitude.shape[-2:]))
    return votes.scatter(-3, orientation.unsqueeze(-3), magnitude.unsqueeze(-3))


def cell_sums(
    votes: Tensor,  # [..., bins, H, W]
    cell: tuple[int, int],
) -> Tensor:  # [..., bins, H // cell_h, W // cell_w]
    """Sums over whole cells from the top left; the rest is dropped."""
    rows, columns = votes.shape[-2] // cell[0], votes.shape[-1] // cell[1]
    votes = votes[..., : rows * cell[0], : columns * cell[1]]
    return votes.unflatten(-1, (columns, cell[1])).sum(-1).unflatten(-2, (rows, cell[0])).sum(-2)


def normalise(
    histogram: Tensor,  # [..., bins, rows, columns]
) -> Tensor:  # [..., bins, rows, columns]
    """h / max(||h||, 1e-12) over the bins of each cell, NaN where that is not finite."""
    return histogram / finite_or_nan((histogram * histogram).sum(-3, keepdim=True).sqrt().clamp_min(1e-12))


def finite_or_nan(x: Tensor) -> Tensor:
    """``x``, but NaN where it is infinite."""
    return x + (x - x)


def tiled_window(
    side: int,
    magnitude: Tensor,  # [..., H, W]
) -> Tensor:  # [H, W]
    """The Gaussian window, repeated over the image."""
    e = torch.tensor(gaussian_kernel(side), dtype=magnitude.dtype, device=magnitude.device)
    height, width = magnitude.shape[-2:]
    return torch.outer(e, e).repeat(height // side, width // side)


def _reflected(size: int, shift: int, x: Tensor) -> Tensor:
    """Indices 0 .. size - 1 moved by ``shift``, reflected at both ends without repeating the end sample."""
    index = (torch.arange(size, device=x.device) + shift).abs()
    return (size - 1 - (size - 1 - index).abs()).clamp_min(0)
