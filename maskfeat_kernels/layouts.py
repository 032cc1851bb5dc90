"""Orders of the numbers in a HOG, so that classifiers trained on one library's features keep working on another's.

Pure rearrangements of NumPy arrays and torch tensors alike; numbers are equal only where the definitions are.
"""

import math
from typing import TYPE_CHECKING, Any, TypeVar

from .scalars import at_least, pair

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Numbers = TypeVar("Numbers", "np.ndarray[Any, Any]", "Tensor")
"""An array gives an array, a tensor a tensor."""

LAYOUTS = {
    "planes": ("block_rows", "block_columns", "bins", "rows", "columns"),
    "rows": ("rows", "columns", "block_rows", "block_columns", "bins"),
    "columns": ("columns", "rows", "block_columns", "block_rows", "bins"),
}
"""The axes of each :attr:`HogSpec.layout`: ours, scikit-image's (raveled by default) and that of a window of OpenCV."""


def convert_layout(
    x: Numbers,  # [..., rows * columns * block_rows * block_columns * bins], or with these five axes
    source: str,
    target: str,
    *,
    grid: int | tuple[int, int],
    block: int | tuple[int, int] = (1, 1),
    bins: int = 9,
) -> Numbers:  # [..., rows * columns * block_rows * block_columns * bins]
    """Bring features, or the weights of a classifier for them, from one layout into another.

    Args:
        x: an array or a tensor, flat as libraries return it, or with the axes of its layout. A window of OpenCV is one
            row of ``HOGDescriptor.compute(...).reshape(windows, -1)``.
        source, target: "planes", "rows" (scikit-image) or "columns" (OpenCV).
        grid: blocks (down, across).
        block: cells of a block (down, across).
        bins: orientation bins.

    Here and below, a pair is two ints in a tuple, a list or an array, or an int for both.

    Raises ValueError for an unknown layout, or numbers that do not fill it.
    """
    for name, layout in (("source", source), ("target", target)):
        if layout not in LAYOUTS:
            raise ValueError(f"{name} must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    numbers = *pair("grid", grid, "(down, across)"), *pair("block", block, "(down, across)"), at_least("bins", bins, 1)
    sizes = dict(zip(LAYOUTS["rows"], numbers, strict=True))
    axes = tuple(sizes[name] for name in LAYOUTS[source])
    lead: tuple[int, ...] = tuple(x.shape)
    if lead[-1:] == (math.prod(axes),):
        lead = lead[:-1]
    elif lead[-5:] == axes:
        lead = lead[:-5]
    else:
        raise ValueError(f"x must be [..., {math.prod(axes)}] or [..., {', '.join(map(str, axes))}], got shape {lead}")
    order: list[int] = [len(lead) + LAYOUTS[source].index(name) for name in LAYOUTS[target]]
    return _permute(x.reshape(*lead, *axes), (*range(len(lead)), *order)).reshape(*lead, math.prod(axes))


def planes_to_tokens(
    planes: Numbers,  # [..., C, bins, rows, columns]
    cells: int | tuple[int, int],
) -> Numbers:  # [..., patches, C * bins * cells_h * cells_w]
    """Cut what ``fused_hog`` returns into patches of ``cells`` (down, across), row by row: the targets of MaskFeat.

    Source: the order of SlowFast's labels, as :func:`maskfeat_kernels.fused_hog_tokens`.
    """
    down, across = pair("cells", cells, "(down, across)")
    *lead, channels, bins, rows, columns = planes.shape
    if rows % down or columns % across:
        raise ValueError(f"cells {cells} must divide the {rows} x {columns} cells of planes")
    x = planes.reshape(*lead, channels, bins, rows // down, down, columns // across, across)
    n: int = len(lead)
    x = _permute(x, (*range(n), n + 2, n + 4, n, n + 1, n + 3, n + 5))
    return x.reshape(*lead, (rows // down) * (columns // across), channels * bins * down * across)


def tokens_to_planes(
    tokens: Numbers,  # [..., patches, C * bins * cells_h * cells_w]
    cells: int | tuple[int, int],
    *,
    grid: int | tuple[int, int],
    bins: int = 9,
) -> Numbers:  # [..., C, bins, rows, columns]
    """The inverse of :func:`planes_to_tokens`; ``grid`` is patches (down, across)."""
    (down, across), grid = pair("cells", cells, "(down, across)"), pair("grid", grid, "(down, across)")
    bins = at_least("bins", bins, 1)
    *lead, patches, features = tokens.shape
    if patches != math.prod(grid) or features % (bins * down * across):
        raise ValueError(
            f"tokens must be [..., {math.prod(grid)}, a multiple of {bins * down * across}],"
            f" got shape {tuple(tokens.shape)}"
        )
    channels = features // (bins * down * across)
    x = tokens.reshape(*lead, *grid, channels, bins, down, across)
    n: int = len(lead)
    x = _permute(x, (*range(n), n + 2, n + 3, n, n + 4, n + 1, n + 5))
    return x.reshape(*lead, channels, bins, grid[0] * down, grid[1] * across)


def _permute(x: Numbers, axes: tuple[int, ...]) -> Numbers:
    permute: Any = getattr(x, "permute", None) or x.transpose  # of tensors the first, of arrays the second
    permuted: Numbers = permute(axes)
    return permuted
