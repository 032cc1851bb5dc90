"""Pictures of any number of channels, of eight bits each; Pillow has those of one to four."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

OPAQUE = ("JPEG", "PPM")
"""Formats without opacity. In any other format, a picture without an opacity channel is opaque."""


class Bands:
    """A picture whose channels are not three, as one Pillow image per channel. It has the methods that crops need.

    What is done is done to each channel by itself, to opacity too. ``np.asarray`` gives uint8 ``[H, W, C]``.
    """

    def __init__(self, planes: Sequence[Image.Image]):  # of mode "L" and of one size
        self.planes = list(planes)
        self.size = self.width, self.height = self.planes[0].size

    def each(self, change: Callable[[Image.Image], Image.Image]) -> "Bands":
        return Bands([change(plane) for plane in self.planes])

    def resize(
        self,
        size: tuple[int, int],  # width, height
        resample: Image.Resampling,
        box: tuple[float, float, float, float] | None = None,
    ) -> "Bands":
        return self.each(lambda plane: plane.resize(size, resample, box))

    def crop(self, box: tuple[float, float, float, float]) -> "Bands":
        return self.each(lambda plane: plane.crop(box))

    def transpose(self, method: Image.Transpose) -> "Bands":
        return self.each(lambda plane: plane.transpose(method))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.stack([np.asarray(plane) for plane in self.planes], -1).astype(dtype or np.uint8, copy=False)


Picture = Image.Image | Bands
"""A frame: a Pillow image in RGB if it has three channels, else :class:`Bands`."""


def of_array(
    values: np.ndarray,  # [H, W, C] uint8
) -> Picture:
    if values.shape[2] == 3:
        return Image.fromarray(np.ascontiguousarray(values))
    return Bands([Image.fromarray(np.ascontiguousarray(values[..., i])) for i in range(values.shape[2])])


def of_picture(image: Image.Image, channels: int) -> Picture:
    """A picture of eight bits with 1 channel, the brightness, or 3, the colours; 2 and 4 have opacity besides.

    ValueError for another number of channels, and for opacity where the format has none.
    """
    if channels == 3:
        return image.convert("RGB")
    opacity = image.has_transparency_data
    own = (1 if image.mode in ("1", "L", "LA", "La") else 3) + opacity
    if channels not in (1, 2, 4) or (channels != 1 and not opacity and image.format in OPAQUE):
        palette = " in a palette" if image.mode == "P" else ""
        raise ValueError(f"a picture of {own} channels{palette}, and channels={channels}; set channels={own}")
    if channels == 1:
        return Bands([image.convert("RGB").convert("L")])
    *colours, opaque = image.convert("RGBA").split()
    return Bands([*(colours if channels == 4 else [Image.merge("RGB", colours).convert("L")]), opaque])


def size_in_memory(picture: Picture) -> int:
    """Bytes of the pixels; Pillow pads RGB to 4."""
    return picture.width * picture.height * (len(picture.planes) if isinstance(picture, Bands) else 4)
