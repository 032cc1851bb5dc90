"""Numbers of any depth as eight bits: what is black and what is white, and what to do where a file does not say it."""

from typing import Any

import numpy as np

UNSIGNED, SIGNED, FLOATS = "integers", "signed integers", "floats"

Range = tuple[Any, Any]
"""Black and white: two numbers, or one ``[C]`` of each."""


def eight_bits(
    values: np.ndarray,  # [H, W] or [H, W, C]
    kind: str,  # UNSIGNED, SIGNED or FLOATS
    bits: int,
    *,
    said: Range | None = None,
    stated: tuple[float, ...] = (),
    full: int = 4096,
    opacity: tuple[int, ...] = (),
    inverted: bool = False,
) -> np.ndarray:  # uint8
    """The values from black to white as 0 to 255. Sixteen bits whose range nobody says give their upper eight.

    said: the range that the file says.
    stated: the range of the recipe, once or for each channel. It overrides ``said``.
    full: the value that some number of 16 bits must reach. Else the file probably has fewer bits, such as 12,
            and is refused.
    opacity: bands of opacity, which are left out of this check, as they reach full at any depth.
    inverted: the smallest number is white.

    ValueError for a range that is not known or upside down, and for values that are not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("it has values that are infinite or no numbers; write 0 in their place")
    if stated:
        ends = np.array(stated)
        low, high = (ends[0], ends[1]) if len(ends) == 2 else (ends[::2], ends[1::2])
    else:
        low, high = range_of(np.delete(values, opacity, -1) if opacity else values, kind, bits, said, full)
    if inverted:
        values = low + high - values.astype(np.float64)
    if np.equal(low, 0).all() and np.equal(high, 65535).all():
        return (values.clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
    return ((values.astype(np.float64) - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)


def range_of(values: np.ndarray, kind: str, bits: int, said: Range | None, full: int) -> Range:
    """What is black and what is white; ValueError if the file does not say it."""
    if said is not None:
        low, high = said
        if not (np.less(low, high) & np.isfinite(high)).all():
            raise ValueError(f"its tags give a range of {low} to {high}; the first has to be below the second")
        return said
    if kind == UNSIGNED and bits < 16:
        return 0, 2**bits - 1
    smallest, largest = values.min().item(), values.max().item()
    if kind == UNSIGNED and bits == 16:
        check_dark(largest, full)
        return 0, 65535
    if kind == FLOATS and smallest >= 0 and largest <= 1:
        return 0, 1
    what = FLOATS if kind == FLOATS else f"integers of {bits} bits"
    raise ValueError(
        f"it holds {what} from {smallest:g} to {largest:g}, and no tag says what is white: set data_range, such as "
        f"data_range={smallest:g},{largest:g}, or write SMinSampleValue and SMaxSampleValue, floats from 0 to 1, or "
        "8 bits"
    )


def check_dark(largest: int, full: int = 4096) -> None:
    """ValueError for 16-bit values that look like 12 bits or fewer. Their upper eight bits would keep few levels."""
    if 0 < largest < full:
        white = max(2 ** largest.bit_length() - 1, 255)
        raise ValueError(
            f"it has 16 bits, but no value above {largest}, as of {white.bit_length()} bits or fewer, and no tag says "
            f"what is white: set data_range=0,{white}, or write SMaxSampleValue={white}, the full range to 65535, or "
            "8 bits"
        )
