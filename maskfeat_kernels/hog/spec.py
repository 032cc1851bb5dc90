"""What to compute: the parameters of a histogram of oriented gradients, and presets for the libraries that have one."""

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any, overload

from ..scalars import at_least, is_bool, not_negative, pair

CHOICES = {
    "gradient": ("sobel", "central"),
    "channels": ("each", "strongest"),
    "angle_from": ("vertical", "horizontal"),
    "votes": ("hard", "linear"),
    "cells": ("box", "bilinear"),
    "reduction": ("sum", "mean"),
    "norm": ("unit", "none", "l1", "l1-sqrt", "l2", "l2-hys"),
    "arithmetic": ("exact", "opencv", "skimage"),
    "layout": ("planes", "rows", "columns"),
}
"""The words that some parameters take; the first is that of MASKFEAT."""

if TYPE_CHECKING:

    class Pair:
        """The type of a field that is given as an int or two of them, and is two where it is read."""

        @overload
        def __get__(self, spec: None, owner: type) -> int: ...
        @overload
        def __get__(self, spec: object, owner: type) -> tuple[int, int]: ...
        def __get__(self, spec: object, owner: type) -> int | tuple[int, int]: ...
        def __set__(self, spec: object, value: int | tuple[int, int]) -> None: ...

else:
    Pair = int | tuple[int, int]


@dataclasses.dataclass(frozen=True)
class HogSpec:
    r"""Parameters of a HOG, stage by stage, checked once when the object is made.

    *Gradient.* The image is mirrored at its border (without repeating the last pixel), which makes the derivative
    across the border zero.

    sqrt: take the square root of every pixel first.
    gradient: "sobel", or "central": the pixel after minus the pixel before.
    channels: "each" gives histograms of every channel; "strongest" gives one, of the channel that has the longest
        gradient at each pixel (the first of equals), and the result has no channel axis.

    *Votes.* A pixel votes with the length of its gradient.

    bins: number of orientation bins, at least 1.
    signed: orientations run over 360 degrees instead of 180.
    angle_from: the direction of the gradient that has orientation 0: "vertical" is atan2(gx, gy), "horizontal"
        atan2(gy, gx).
    votes: "hard" votes for the bin that holds the orientation (bin 0 begins at orientation 0); "linear" shares
        the vote between the two bins with the nearest centres (that of bin 0 is half a bin wide away from 0).
    gaussian_window: side in pixels of a Gaussian (standard deviation ``side // 2``) that is tiled over the image
        and weights the votes; 0 for none. Image height and width must be multiples of it.

    *Cells.*

    cell: cell size in pixels, ``int`` for a square or ``(height, width)``; kept as a tuple.
    cells: "box" gives the vote of a pixel to the cell that holds it; "bilinear" shares it between the four cells of the
        block with the nearest centres, and drops what would go to cells outside the block.
    reduction: a cell is the "sum" of its votes, or their "mean" over the pixels of a cell.

    *Blocks*, each normalised as one vector v.

    block: cells of a block, ``int`` or ``(down, across)``.
    block_stride: pixels from a block to the next, ``int`` or ``(down, across)``; None for one cell.
    block_sigma: standard deviation in pixels of a Gaussian over each block that weights the votes; 0 for none.
    norm: "unit": v / max(|v|, eps); "none"; "l1": v / (sum v + eps); "l1-sqrt": the square root of that; "l2":
        v / sqrt(v.v + eps^2); "l2-hys": "l2", then limited to ``clip``, then "l2" again. All of a block is NaN if its
        norm, or with "none" one of its entries, is not finite.
    eps, clip: as above.
    arithmetic: "exact" is the formulas here.
        "opencv" departs from them as OpenCV does. Orientations come from a polynomial, off by up to 1.7e-4 radians. The
        Gaussian of a block is centred half a pixel late. The epsilon is added to the norm: a tenth of the number of
        entries of v, and then 1e-3. Of equal channels, the last ``W % 4`` columns take the last. That epsilon is for
        pixels of 0 .. 255. For the same image in [0, 1], features differ by up to 0.85, and ``fused_hog`` warns on the
        CPU; a GPU would have to be waited for.
        "skimage" rounds where scikit-image rounds. Channels are compared by ``hypot``. Bins are decided by ``atan2`` in
        degrees, a float64, so that rounding moves the same gradients across an edge. A gradient less than 1e-14 degrees
        below 0 falls into no bin. The last bit of ``atan2`` is the C library's on "cpu" and torch's on "reference", the
        only backends that have it.

    *Result.*

    layout: the order of the axes after the leading ones and the channel: "planes" is [bins, rows, columns] of blocks of
        one cell, else [block_h, block_w, bins, rows, columns]; "rows" is [rows, columns, block_h, block_w, bins], the
        order of scikit-image; "columns" is [columns, rows, block_w, block_h, bins], the order of OpenCV.

    Besides the parameters, a spec has ``block_size``, the (height, width) of a block in pixels, and ``is_maskfeat``:
    nothing but bins, cell and gaussian_window differs from MASKFEAT, a case with kernels of its own.

    Raises TypeError or ValueError naming the value that makes no sense.
    """

    bins: int = 9
    cell: Pair = 8  # type: ignore[assignment]  # as it may be given
    gaussian_window: int = 0
    sqrt: bool = False
    gradient: str = "sobel"
    channels: str = "each"
    signed: bool = False
    angle_from: str = "vertical"
    votes: str = "hard"
    cells: str = "box"
    reduction: str = "sum"
    block: Pair = 1  # type: ignore[assignment]
    block_stride: int | tuple[int, int] | None = None
    block_sigma: float = 0.0
    norm: str = "unit"
    eps: float = 1e-12
    clip: float = 0.2
    arithmetic: str = "exact"
    layout: str = "planes"

    if TYPE_CHECKING:  # no fields, as nobody gives them

        @property
        def block_size(self) -> tuple[int, int]: ...
        @property
        def is_maskfeat(self) -> bool: ...

    def __post_init__(self) -> None:
        def keep(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name, words in CHOICES.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {getattr(self, name)!r}")
        for name in ("sqrt", "signed"):
            if not is_bool(getattr(self, name)):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
            keep(name, bool(getattr(self, name)))
        for name in ("block_sigma", "eps", "clip"):
            keep(name, not_negative(name, getattr(self, name)))
        keep("bins", at_least("bins", self.bins, 1))
        keep("gaussian_window", at_least("gaussian_window", self.gaussian_window, 0))
        keep("cell", pair("cell", self.cell, "(height, width)"))
        keep("block", pair("block", self.block, "(down, across)"))
        if self.block_stride is not None:
            stride = pair("block_stride", self.block_stride, "(down, across)")
            keep("block_stride", None if stride == self.cell else stride)
        keep("block_size", (self.block[0] * self.cell[0], self.block[1] * self.cell[1]))
        fixed = (f for f in dataclasses.fields(self) if f.name not in ("bins", "cell", "gaussian_window", "block"))
        keep("is_maskfeat", self.block == (1, 1) and all(getattr(self, f.name) == f.default for f in fixed))
        if self.norm != "none" and self.arithmetic != "opencv" and self.eps < 1e-18:
            raise ValueError(
                f"eps must be at least 1e-18, so that a flat block is divided by more than 0, got {self.eps}"
            )
        if self.arithmetic == "opencv" and (self.votes, self.norm) != ("linear", "l2-hys"):
            raise ValueError(
                f"arithmetic 'opencv' goes with votes 'linear' and norm 'l2-hys', got {self.votes!r} and {self.norm!r}"
            )
        if self.arithmetic == "skimage" and (self.votes, self.signed) != ("hard", False):
            raise ValueError(
                f"arithmetic 'skimage' goes with unsigned 'hard' votes, got votes {self.votes!r}, signed {self.signed}"
            )
        if self.gaussian_window and not self.shares_cells:
            got = f"{self.cells!r}, {self.block_sigma} and {self.block_stride}"
            raise ValueError(
                f"gaussian_window {self.gaussian_window} goes with cells that blocks share: 'box' cells, no block_sigma"
                f", and a block_stride of whole cells; got {got}"
            )

    def replace(self, **changes: Any) -> "HogSpec":
        """This spec with some parameters changed; TypeError names an unknown one and the nearest that exists."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise TypeError(f"unknown HOG option {name!r}; {hint}")
        return dataclasses.replace(self, **changes)

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels from a block to the next, (down, across)."""
        stride = self.block_stride
        return stride if isinstance(stride, tuple) else self.cell

    @property
    def shares_cells(self) -> bool:
        """A pixel weighs the same in a cell whatever the block, so that blocks which overlap share cells."""
        whole = all(stride % side == 0 for stride, side in zip(self.stride, self.cell, strict=True))
        return self.cells == "box" and self.block_sigma == 0 and whole


MASKFEAT = HogSpec(bins=9, cell=8)
"""The target of MaskFeat (CVPR 2022): SlowFast's ``HOGLayerC(nbins=9, pool=8)``."""

SKIMAGE = HogSpec(
    gradient="central",
    channels="strongest",
    angle_from="horizontal",
    reduction="mean",
    block=3,
    norm="l2-hys",
    eps=1e-5,
    layout="rows",
)
"""The defaults of ``skimage.feature.hog``, before ``feature_vector=True`` flattens the result."""

OPENCV = HogSpec(
    sqrt=True,
    gradient="central",
    channels="strongest",
    angle_from="horizontal",
    votes="linear",
    cells="bilinear",
    block=2,
    block_sigma=4.0,
    norm="l2-hys",
    arithmetic="opencv",
    layout="columns",
)
"""The defaults of ``cv2.HOGDescriptor()``: blocks of the whole image. Windows are cut out of these."""

DALAL_TRIGGS = OPENCV.replace(block_sigma=8.0, eps=1e-2, arithmetic="exact", layout="rows")
"""The detector of Dalal and Triggs (CVPR 2005): what the paper says, which no library computes."""
