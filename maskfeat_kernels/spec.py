"""What to compute: the parameters of a histogram of oriented gradients."""

import dataclasses
import difflib
import math
import operator


@dataclasses.dataclass(frozen=True)
class HogSpec:
    """Parameters of a HOG, checked once when the object is made.

    bins: number of unsigned orientation bins over 180 degrees, at least 1.
    cell: cell size in pixels, ``int`` for a square or ``(height, width)``; kept as a tuple.
    gaussian_window: side in pixels of a Gaussian (standard deviation ``side // 2``) that is tiled over the image
        and weights the magnitudes; 0 for none. Image height and width must be multiples of it.

    Raises TypeError or ValueError naming the value that makes no sense.
    """

    bins: int = 9
    cell: int | tuple[int, int] = 8
    gaussian_window: int = 0

    def __post_init__(self):
        cell = self.cell if isinstance(self.cell, (tuple, list)) else (self.cell, self.cell)
        if len(cell) != 2:
            raise ValueError(f"cell must be an int or (height, width), got {self.cell!r}")
        object.__setattr__(self, "bins", at_least("bins", self.bins, 1))
        object.__setattr__(self, "cell", tuple(at_least("cell", side, 1) for side in cell))
        object.__setattr__(self, "gaussian_window", at_least("gaussian_window", self.gaussian_window, 0))

    def replace(self, **changes) -> "HogSpec":
        """This spec with some parameters changed; TypeError names an unknown one and the nearest that exists."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise TypeError(f"unknown HOG option {name!r}; {hint}")
        return dataclasses.replace(self, **changes)


def edge_cotangents(bins: int) -> list[float]:
    """cot(k * pi / bins) for the inner bin edges k = 1 .. bins - 1, exact at 45, 90 and 135 degrees.

    Exactly antisymmetric about 90 degrees, so that mirrored images land in mirrored bins.
    """
    return [_cotangent(k, bins) for k in range(1, bins)]


def gaussian_kernel(side: int) -> list[float]:
    """The 1-D Gaussian e with standard deviation ``side // 2``; the 2-D window is outer(e, e) / sum(outer(e, e))."""
    deviation = max(side // 2, 1)
    e = [math.exp(-0.5 * ((i - (side - 1) / 2) / deviation) ** 2) for i in range(side)]
    return [v / sum(e) for v in e]


def _cotangent(k: int, bins: int) -> float:
    if 2 * k > bins:
        return -_cotangent(bins - k, bins)
    if 2 * k == bins:
        return 0.0
    if 4 * k == bins:
        return 1.0
    return 1.0 / math.tan(k * math.pi / bins)


def at_least(name: str, value, least: int) -> int:
    """``value`` as an int, if it is one and not below ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return number


MASKFEAT = HogSpec(bins=9, cell=8)
"""The target of MaskFeat (CVPR 2022): SlowFast's ``HOGLayerC(nbins=9, pool=8)``."""
