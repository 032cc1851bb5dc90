"""fused_hog_at: histograms of oriented gradients of windows at points, as detectors and matchers of keypoints use."""

from typing import Any, overload

import torch
from torch import Tensor

from ..backend import choose_backend
from ..checks import check_companion
from ..interchange import Array, through_tensors
from ..library import needs_autograd
from ..scalars import pair
from . import api, ops, reference
from .plan import NEVER, Region, block_shape, whole
from .spec import MASKFEAT, HogSpec

REFERENCE_AT_ONCE = 1 << 24
"""Votes that the reference holds at once, as numbers."""


@overload
def fused_hog_at(
    x: Tensor, points: Tensor, size: int | tuple[int, int], spec: HogSpec = ..., *, backend: str = ..., **changes: Any
) -> Tensor: ...
@overload
def fused_hog_at(
    x: Array, points: Array, size: int | tuple[int, int], spec: HogSpec = ..., *, backend: str = ..., **changes: Any
) -> Any: ...
def fused_hog_at(
    x: Any,  # [..., C, H, W]
    points: Any,  # [N, 2] or [..., N, 2]: (y, x), int64 or int32
    size: int | tuple[int, int],
    spec: HogSpec = MASKFEAT,
    *,
    backend: str = "auto",
    **changes: Any,
) -> Any:  # [..., N, (C unless channels are "strongest"), and the axes of fused_hog for an image of ``size``]
    r"""Histograms of oriented gradients of windows of an image, one at each point.

    Window n holds the pixels :math:`(y_n + i, x_n + j)` for :math:`0 \le i < h` and :math:`0 \le j < w`. Its blocks are
    those of :func:`fused_hog`, but the gradient at its border reads the pixels beside it, where that of a window which
    was cut out would read mirrored ones.

    Args:
        x: images, as for :func:`fused_hog`.
        points: ``[N, 2]`` for all images, or ``[..., N, 2]`` with the leading axes of ``x`` for each its own: the top
            left pixel (y, x) of each window, on the device of ``x``. A window may leave the image, which is mirrored
            there. If ``x`` is an array of another library, so are the points, and the result.
        size: (height, width) of all windows in pixels, or an int for a square; at least a block.
        spec: a :class:`HogSpec` without gaussian_window; ``changes`` are changes to it.
        backend: "auto", or one of ``available_backends(x.device)``. "cpu" has a kernel that computes the votes of a
            pixel once. The other backends, and all with a gradient, cut the windows out and compute them as a batch,
            which takes the memory of the windows. Of channels "strongest" with arithmetic "opencv", they leave images
            whose width is no multiple of 4 to the reference.

    Returns:
        The leading axes of ``x``, N, then C unless channels are "strongest", then what :func:`fused_hog` returns for an
        image of ``size``. "cpu" has the bits of its :func:`fused_hog`, but for the MASKFEAT family, which has kernels
        of its own there. The result is float64 for float64 images, else float32, and differentiable once.

    Raises:
        TypeError: ``x`` or ``points`` is not a tensor or array, or not of a dtype above; an unknown option.
        ValueError: a shape or device that does not fit; a size smaller than a block; a gaussian_window, which is tiled
            over an image; else as :func:`fused_hog`.
        IndexError: on the backend "cpu", a point that is 2^31 pixels or more away.

    Source: Dalal and Triggs, Histograms of Oriented Gradients for Human Detection, CVPR 2005. The points are those of
    OpenCV's ``HOGDescriptor.compute(locations=...)``, in the order (y, x).
    """
    if not isinstance(x, Tensor):
        return through_tensors(
            lambda x, points: fused_hog_at(x, points, size, spec, backend=backend, **changes), x=x, points=points
        )
    spec = api.with_changes(spec, changes)
    api.check_images(x, spec)
    height, width = pair("size", size, "(height, width)")
    block_h, block_w = spec.block_size
    if height < block_h or width < block_w:
        raise ValueError(f"size must be at least a block of {block_h} x {block_w} pixels, got {size!r}")
    if max(height, width) >= 2**31:
        raise ValueError(f"size must be below 2^31 pixels, got {size!r}")
    if spec.gaussian_window:
        raise ValueError(f"gaussian_window is tiled over an image and has no place at points: {spec.gaussian_window}")
    if isinstance(points, Tensor) and points.dtype == torch.int32:
        points = points.long()
    check_companion("points", points, torch.int64, "x", x)
    if points.ndim < 2 or points.shape[-1] != 2 or (points.ndim > 2 and points.shape[:-2] != x.shape[:-3]):
        raise ValueError(
            f"points must be [N, 2] or [..., N, 2] with the leading axes of x, {tuple(x.shape[:-3])}; got shape"
            f" {tuple(points.shape)}"
        )
    backend = choose_backend(x.device, backend)
    if spec.arithmetic == "opencv":
        api.warn_of_unit_range(x.float() if x.dtype == torch.bool else x)
    tie_column = whole(spec, *x.shape[-2:]).tie_column
    region = Region(0, 0, height, width, tie_column if tie_column < x.shape[-1] else NEVER)
    if x.dtype in api.WHOLE:
        return hog_at(api.as_pixels(x, spec), points, spec, region, backend).float()
    return hog_at(x, points, spec, region, backend)


def hog_at(
    x: Tensor,  # [..., C, H, W] or [H, W]
    points: Tensor,  # [N, 2] or [..., N, 2], int64
    spec: HogSpec,
    region: Region,  # the window at point (0, 0); its tie_column counts from there
    backend: str,
) -> Tensor:  # [..., N, (C unless channels are "strongest"), *block_shape(spec, region)]
    """The door of HOG at points. Checks nothing."""
    if backend == "cpu" and not needs_autograd(x):
        return ops.hog_at(x, points, spec, region)
    channels = x.shape[-3] if x.ndim > 2 else 1
    if backend != "reference" and (channels == 1 or spec.channels == "each" or region.tie_column >= NEVER):
        windows = reference.windows_at(x, points, region)
        blocks = api.hog(windows, spec, Region(1, 1, region.height, region.width, NEVER), backend)
        return (
            blocks.squeeze(-1 - len(block_shape(spec, region))) if x.ndim == 2 and spec.channels == "each" else blocks
        )
    # The windows of a batch have one tie_column, except in the reference.
    votes = max(1, x.shape[:-2].numel() * spec.bins * region.height * region.width)
    parts = points.split(max(1, REFERENCE_AT_ONCE // votes), dim=-2)
    return torch.cat([reference.hog_at(x, part, spec, region) for part in parts], dim=max(0, x.ndim - 3))
