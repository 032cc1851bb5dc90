"""fused_hog: histograms of oriented gradients of a batch, in one pass."""

import torch

from . import hog_reference, ops
from .backend import choose_backend
from .spec import MASKFEAT, HogSpec

DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def fused_hog(
    x: torch.Tensor,  # [..., C, H, W]
    spec: HogSpec = MASKFEAT,
    *,
    backend: str = "auto",
    **changes,
) -> torch.Tensor:  # [..., C, bins, H // cell_h, W // cell_w]
    r"""Histogram of oriented gradients of every channel, L2-normalised per cell.

    With the 3x3 Sobel gradient (gx, gy) of a pixel (reflected at the image border), its orientation
    :math:`\phi = \operatorname{atan2}(g_x, g_y) \bmod \pi` and magnitude :math:`m = \sqrt{g_x^2 + g_y^2}`, the
    histogram of a cell is :math:`h_k = \sum m\,[\lfloor \phi\,\mathrm{bins}/\pi \rfloor = k]` over its pixels, and
    the result :math:`h / \max(\lVert h \rVert_2, 10^{-12})`.

    Args:
        x: images ``[..., C, H, W]`` with any leading axes (video: ``[B, T, C, H, W]``), of dtype uint8, float16,
            bfloat16, float32 or float64 and any strides; read in place, never copied. uint8 is exact: every pixel is
            in the bin of exact arithmetic, on every backend.
        spec: a :class:`HogSpec`; ``changes`` are changes to it, as in ``fused_hog(x, bins=12)``.
        backend: "auto", or one of ``available_backends(x.device)``.

    Returns:
        ``[..., C, bins, H // cell_h, W // cell_w]``, float64 for float64 images and float32 for all others; on the
        device of ``x``, contiguous, without a gradient. Rows and columns that do not fill a cell are dropped, a flat
        cell is exactly zero, and a NaN pixel stays in the cells that its 3x3 neighbourhood touches.

    Raises:
        TypeError: ``x`` is not a tensor or not of a dtype above; an unknown option.
        ValueError: fewer than two axes, an image smaller than a cell, a Gaussian window that does not tile the
            image; an unknown or unavailable backend.

    Source: Wei et al., Masked Feature Prediction for Self-Supervised Visual Pre-Training, CVPR 2022.
    """
    if not isinstance(spec, HogSpec):
        raise TypeError(f"spec must be a HogSpec, got {spec!r}")
    if changes:
        spec = spec.replace(**changes)
    _check(x, spec)
    if x.requires_grad:
        x = x.detach()
    backend = choose_backend(x.device, backend)
    if backend == "reference":
        return hog_reference.hog(x, spec)
    return ops.hog(x, spec.bins, *spec.cell, spec.gaussian_window)


def _check(x: torch.Tensor, spec: HogSpec) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x must be a torch.Tensor [..., C, H, W], got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"x must be uint8, float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x must have the axes [..., C, H, W], got shape {tuple(x.shape)}")
    height, width = x.shape[-2:]
    if height < spec.cell[0] or width < spec.cell[1]:
        raise ValueError(
            f"an image of {height} x {width} pixels is smaller than a cell of {spec.cell[0]} x {spec.cell[1]}"
        )
    window = spec.gaussian_window
    if window and (height % window or width % window):
        raise ValueError(f"gaussian_window {window} does not tile an image of {height} x {width} pixels")
