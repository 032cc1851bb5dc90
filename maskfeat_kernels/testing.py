"""Test images, tables of cases and the rule that decides whether a HOG is right; shared by tests and benchmarks.

Rounding moves a histogram in two ways. It moves all of it a little. And it moves a pixel's whole magnitude to another
bin where the gradient lies very close to an edge of bins: then rounding decides the bin (an *edge pixel*).
:func:`check_hog` allows the first up to ``ATOL``. It allows the second cell by cell, as far as the edge pixels of that
cell explain it. Byte images have none.
"""

import torch
from torch import Tensor

from .hog.plan import Region, cell_axes, edge_cotangents, whole
from .hog.reference import cell_sums, gradient, hog, orientation_bin
from .hog.spec import MASKFEAT, HogSpec

ATOL = {torch.float32: 2e-6, torch.float64: 8e-15}
"""Largest error of a result without edge pixels: some 34 and 72 roundings."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (torch.uint8, *FLOATS)
BINS = (1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 36, 70)
CELLS = (1, (1, 8), 3, 7, 8, (6, 5), 16, 33)
SHAPES = (
    (16, 24),
    (3, 32, 32),
    (2, 3, 17, 40),
    (2, 2, 3, 31, 9),
    (1, 2, 1, 2, 25, 33),
    (1, 64),
    (64, 1),
    (2, 2),
    (3, 8, 61),
    (3, 50, 8),
)
IMAGENET_MEAN, IMAGENET_STD = 0.45, 0.225


def byte_images(*shape: int, seed: int = 0) -> Tensor:  # [*shape], uint8
    """Images with what photographs have: slopes, sharp edges, flat areas, clipped whites and blacks, and noise."""
    random = torch.Generator().manual_seed(seed)
    *lead, height, width = shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(*lead, 1, 1, generator=random) * (high - low) + low

    slope = uniform(-4, 4) * y + uniform(-4, 4) * x + uniform(60, 200)
    edge = uniform(-90, 90) * (uniform(-1, 1) * (y - height / 2) + uniform(-1, 1) * (x - width / 2) > 0)
    noise = torch.randn(*shape, generator=random) * uniform(0, 40) * (x + y > uniform(0, height + width))
    flat = (y - uniform(0, height)) ** 2 + (x - uniform(0, width)) ** 2 < (height * width) / 16
    return torch.where(flat, uniform(0, 255), slope + edge + noise).round().clamp(0, 255).to(torch.uint8)


def images(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:  # [*shape], dtype
    """The same images in any dtype: bytes as they are, floats normalised as for training."""
    x = byte_images(*shape, seed=seed)
    return x if dtype == torch.uint8 else ((x / 255 - IMAGENET_MEAN) / IMAGENET_STD).to(dtype)


def check_hog(
    result: Tensor,  # [..., bins, rows, columns]
    x: Tensor,  # [..., H, W]
    spec: HogSpec = MASKFEAT,
    *,
    pixel_error: float = 0.0,
) -> float:
    """Raise AssertionError unless ``result`` is the HOG of ``x``; return the largest error outside edge cells.

    A cell without edge pixels must be within ATOL of the float64 reference. A cell with some must be the
    normalisation of a histogram within :func:`histogram_bounds`. ``pixel_error`` is the rounding error that the pixels
    of ``x`` carry already, for a result that was computed from exact ones or the reverse.
    """
    want_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    truth = hog(x.double(), spec)
    if result.dtype != want_dtype or result.shape != truth.shape:
        raise AssertionError(f"got {result.dtype} {list(result.shape)}, want {want_dtype} {list(truth.shape)}")
    if truth.numel() == 0:
        return 0.0
    atol = ATOL[want_dtype]
    result = result.to(truth)
    error = (result - truth).abs().amax(-3)
    has_edge_pixel = cell_sums(edge_pixels(x, spec, pixel_error).double(), cell_axes(spec), _image(x)) > 0
    explained = is_between(result, *histogram_bounds(x, spec, pixel_error), atol)
    right = torch.where(has_edge_pixel, explained, error <= atol)
    if not right.all():
        cell = tuple((~right).nonzero()[0].tolist())
        off = (result - truth).movedim(-3, -1)[cell]
        k = int(off.nan_to_num(torch.inf).abs().argmax())
        raise AssertionError(
            f"{int((~right).sum())} of {right.numel()} cells are wrong; the first, [..., y, x] = {list(cell)}, "
            f"{'with' if has_edge_pixel[cell] else 'without'} edge pixels, is off by {float(off[k]):.3g} in bin {k}"
        )
    return float(error[~has_edge_pixel].max()) if not has_edge_pixel.all() else 0.0


def edge_pixels(
    x: Tensor,  # [..., H, W]
    spec: HogSpec = MASKFEAT,
    pixel_error: float = 0.0,
) -> Tensor:  # [..., H, W], bool
    """Pixels whose bin rounding may decide."""
    return possible_bins(x, spec, pixel_error).sum(-3) > 1


def histogram_bounds(
    x: Tensor,  # [..., H, W]
    spec: HogSpec = MASKFEAT,
    pixel_error: float = 0.0,
) -> tuple[Tensor, Tensor]:  # lower, upper: [..., bins, rows, columns] each
    """Bounds on the histograms, before normalisation, that rounding may lead to.

    An edge pixel adds nothing to the lower bounds and its magnitude to the upper bound of every bin it may be in.
    """
    gx, gy = gradient(x.double(), "sobel", _image(x))
    gx_error, gy_error = gradient_error(x, pixel_error)
    magnitude, error = torch.hypot(gx, gy), torch.hypot(gx_error, gy_error)
    possible = possible_bins(x, spec, pixel_error)
    certain = possible & (possible.sum(-3, keepdim=True) == 1)
    lower = certain * (magnitude - error).clamp_min(0).unsqueeze(-3)
    upper = possible * (magnitude + error).unsqueeze(-3)
    axes, image = cell_axes(spec), _image(x)
    return cell_sums(lower, axes, image), cell_sums(upper, axes, image)


def is_between(
    result: Tensor,  # [..., bins, rows, columns]
    lower: Tensor,  # [..., bins, rows, columns]
    upper: Tensor,  # [..., bins, rows, columns]
    atol: float,
) -> Tensor:  # [..., rows, columns], bool
    """Whether each cell of ``result``, give or take ``atol``, is h / max(||h||, 1e-12) of an h in [lower, upper].

    There is one if some length n has lower <= n * result <= upper, and the norm is that of such an h.
    """
    shortest = (lower / (result + atol)).amax(-3)
    longest = torch.where(result > atol, upper / (result - atol), torch.inf).amin(-3)
    norm = torch.linalg.vector_norm(result, dim=-3)
    norm_atol = atol * result.shape[-3] ** 0.5
    short = (torch.linalg.vector_norm(lower, dim=-3) / 1e-12).clamp_max(1) - norm_atol
    long = (torch.linalg.vector_norm(upper, dim=-3) / 1e-12).clamp_max(1) + norm_atol
    right: Tensor = (result >= -atol).all(-3) & (shortest <= longest) & (short <= norm) & (norm <= long)
    return right


def possible_bins(
    x: Tensor,  # [..., H, W]
    spec: HogSpec,
    pixel_error: float,
) -> Tensor:  # [..., bins, H, W], bool
    """The bin of each pixel and those that it shares an edge with which is nearer than rounding errors reach.

    Edge k, between bins k - 1 and k, is the line gx * cot(k pi / bins) = gy, and edge 0 the line gx = 0. The float32
    cotangent and product are off by 2 roundings, except where the cotangent is 0, 1 or -1.
    """
    gx, gy = gradient(x.double(), "sobel", _image(x))
    gx_error, gy_error = gradient_error(x, pixel_error)
    nearer = [gx.abs() < gx_error]
    for cotangent in edge_cotangents(spec.bins):
        product_error = 0.0 if cotangent in (-1, 0, 1) else 3 * rounding_error(x) * abs(cotangent)
        reach = abs(cotangent) * gx_error + gy_error + product_error * gx.abs()
        nearer.append((gx * cotangent - gy).abs() < reach)
    near = torch.stack(nearer, dim=-3)
    bins = torch.arange(spec.bins, device=x.device)[:, None, None]
    own: Tensor = orientation_bin(gx, gy, spec.bins).unsqueeze(-3) == bins
    return own | near | near.roll(-1, dims=-3)


def gradient_error(
    x: Tensor,  # [..., H, W]
    pixel_error: float,
) -> tuple[Tensor, Tensor]:  # of gx, of gy: [..., H, W] each
    """Largest rounding errors of the gradient: 3 roundings of |d1| + 2 |d2| + |d3|, in any order of the sum.

    Differences come first, so that the errors scale with them and not with the pixels; on integers there are none.
    """
    exact = x.to(torch.float64)
    if bool((exact == exact.round()).all()) and bool((exact.abs() < 2**20).all()):
        gx_error = gy_error = torch.zeros_like(exact)
    else:
        gx_error, gy_error = (3 * rounding_error(x) * g for g in sobel_of_absolute_differences(exact))
    return gx_error + 8 * pixel_error, gy_error + 8 * pixel_error


def sobel_of_absolute_differences(
    x: Tensor,  # [..., H, W]
) -> tuple[Tensor, Tensor]:  # [..., H, W] each
    """The Sobel gradient, but each difference enters with its absolute value."""

    def smooth(d: Tensor, dim: int) -> Tensor:
        return reflected(d, -1, dim) + 2 * d + reflected(d, +1, dim)

    across, along = (reflected(x, -1, dim) - reflected(x, +1, dim) for dim in (-1, -2))
    return smooth(across.abs(), -2), smooth(along.abs(), -1)


def reflected(
    x: Tensor,  # [..., H, W]
    shift: int,
    dim: int,
) -> Tensor:  # [..., H, W]
    """x at index i + shift along ``dim``; index -1 is 1, index size is size - 2."""
    size = x.shape[dim]
    index = [abs(i + shift) for i in range(size)]
    return x.index_select(dim, torch.tensor([max(size - 1 - abs(size - 1 - i), 0) for i in index], device=x.device))


def _image(x: Tensor) -> Region:
    return whole(MASKFEAT, *x.shape[-2:])


def rounding_error(x: Tensor) -> float:
    """Largest relative error of one operation: of float32, or of float64 and its float64 reference together."""
    return 2.0**-52 if x.dtype == torch.float64 else 2.0**-24
