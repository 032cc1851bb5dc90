"""fused_hog_scales: histograms of oriented gradients at several cell sizes, of gradients that are computed once."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, overload

import torch
from torch import Tensor

from ..backend import choose_backend
from ..interchange import Array, through_tensors
from ..library import needs_autograd
from ..scalars import pair
from . import api, ops
from .spec import MASKFEAT, HogSpec

Cells = Sequence[int | tuple[int, int]]


@overload
def fused_hog_scales(
    x: Tensor, cells: Cells = ..., spec: HogSpec = ..., *, backend: str = ..., **changes: Any
) -> tuple[Tensor, ...]: ...
@overload
def fused_hog_scales(
    x: Array, cells: Cells = ..., spec: HogSpec = ..., *, backend: str = ..., **changes: Any
) -> tuple[Any, ...]: ...
def fused_hog_scales(
    x: Any,  # [..., C, H, W]
    cells: Cells = (4, 8, 16),
    spec: HogSpec = MASKFEAT,
    *,
    backend: str = "auto",
    **changes: Any,
) -> tuple[Any, ...]:  # of each cell [..., C, bins, H // cell_h, W // cell_w]
    r"""Histograms of oriented gradients at several cell sizes, as LocalMIM and FastMIM predict them.

    The histogram of a coarser cell is the sum of those of the finer cells in it, before they are normalised:
    :math:`h = \sum_i h_i`, and the result :math:`h / \max(\lVert h \rVert_2, 10^{-12})`.

    Args:
        x: images, as for :func:`fused_hog`.
        cells: cell sizes in pixels, from fine to coarse, each an int for a square or (height, width). Each is a
            multiple of the one before, in both directions.
        spec: a :class:`HogSpec` that differs from MASKFEAT in bins, cell and gaussian_window alone; ``changes`` are
            changes to it. Its cell is replaced by each of ``cells``.
        backend: "auto", or one of ``available_backends(x.device)``. "cpu" and "cuda" compute gradients and bins
            once. The other backends compute each cell size by itself.

    Returns:
        A tuple with what :func:`fused_hog` returns for each cell size. The finest has the same bits. The others are as
        exact, but their last bits may differ, as their sums run in another order. A coarser cell drops rows and
        columns that a finer one may keep. Every result is differentiable once.

    Raises:
        TypeError: ``x`` is not a tensor or array, or not of a dtype of :func:`fused_hog`; ``cells`` is no sequence of
            sizes; ``cell`` as a change, or an unknown option.
        ValueError: no cell size; one that is no multiple of the one before; another dialect; an image smaller than the
            coarsest cell; else as :func:`fused_hog`.

    Source: Wang et al., Masked Image Modeling with Local Multi-Scale Reconstruction, CVPR 2023; Guo et al., FastMIM:
    Expediting Masked Image Modeling Pre-training for Vision, 2022. The histograms are as in :func:`fused_hog`.
    """
    if not isinstance(x, Tensor):
        arrays: tuple[Any, ...] = through_tensors(
            lambda x: fused_hog_scales(x, cells, spec, backend=backend, **changes), x=x
        )
        return arrays
    if "cell" in changes:
        raise TypeError(f"fused_hog_scales takes its cells from cells, and no cell, got cell={changes['cell']!r}")
    spec = api.with_changes(spec, changes)
    api.check_family(spec, "fused_hog_scales")
    sizes = sizes_of(cells)
    api.check_images(x, spec, sizes[-1])
    backend = choose_backend(x.device, backend)
    pixels = api.as_pixels(x, spec) if x.dtype in api.WHOLE else x
    results = hog_scales(pixels, sizes, spec, backend)
    return tuple(result.float() for result in results) if x.dtype in api.WHOLE else results


def sizes_of(cells: Any) -> list[tuple[int, int]]:
    """Each of ``cells`` as (height, width), if it is a multiple of the one before."""
    cells = cells.tolist() if hasattr(cells, "tolist") else cells
    if not isinstance(cells, Sequence) or isinstance(cells, (str, bytes)):
        raise TypeError(f"cells must be a sequence of cell sizes, got {cells!r}")
    if not cells:
        raise ValueError(f"cells must have at least one cell size, got {cells!r}")
    sizes = [pair("a cell of cells", cell, "(height, width)") for cell in cells]
    for fine, coarse in pairwise(sizes):
        if coarse[0] % fine[0] or coarse[1] % fine[1]:
            raise ValueError(f"each of cells must be a multiple of the one before, got {coarse} after {fine}")
    return sizes


def hog_scales(
    x: Tensor,  # [..., C, H, W]
    sizes: Sequence[tuple[int, int]],  # of cells, from fine to coarse
    spec: HogSpec,  # of MASKFEAT's family, in which each of them stands for the cell
    backend: str,
) -> tuple[Tensor, ...]:  # of each what fused_hog returns
    """The door of HOG at several cell sizes. Checks nothing."""
    if backend not in ("cpu", "cuda"):
        return tuple(api.hog(x, spec.replace(cell=size), None, backend) for size in sizes)
    if needs_autograd(x):
        ops.refuse_tracing()
        results: tuple[Tensor, ...] = _HogScales.apply(x, sizes, spec, backend)
        return results
    return tuple(ops.hog_scales(x, sizes, spec))


class _HogScales(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, sizes: Sequence[tuple[int, int]], spec: HogSpec, backend: str) -> tuple[Tensor, ...]:
        return tuple(ops.hog_scales(x, sizes, spec))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.sizes, ctx.spec, ctx.backend = inputs
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)  # zeros for an unused result would take time, and be NaN where it is

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        total = None
        for grad, size in zip(grads, ctx.sizes, strict=True):
            if grad is not None:
                grad_x = api.hog_backward(grad, x, ctx.spec.replace(cell=size), None, ctx.backend)
                total = grad_x if total is None else total + grad_x
        return total, None, None, None
