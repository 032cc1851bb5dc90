"""Pictures of eight bits from image files: the right way up, of any depth whose range is known."""

import warnings
from contextlib import suppress
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .augment import Frames
from .bands import Bands, Picture, of_picture
from .decode import Choose, check_size
from .depth import FLOATS, SIGNED, UNSIGNED, check_dark, eight_bits
from .tiff import BITS, ORIENTATION, PHOTOMETRIC, is_tiff, pillow_reads, read_tiff, said_range

IMAGES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"),
    *(".gif", ".avif", ".heic", ".heif"),
)

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
"""What a file may hold, however it is named; the frequent are tried first.

Pillow knows others, and for PostScript starts a program on the file.
"""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,  # Pillow turns counterclockwise
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes the stored picture the one to show, of the EXIF orientation."""

BACK = {**TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def read_image(
    file: "str | BytesIO",
    choose: Choose | None,
    *,
    autorotate: bool = True,
    channels: int = 3,
    data_range: tuple[float, ...] = (),
) -> list[Frames]:
    """One clip of one frame, the first of an animation.

    autorotate: turn and mirror it as its EXIF orientation says.
    channels: 1 for the brightness, 3 for the colours, 2 or 4 for opacity besides, any number of bands of a TIFF.
    data_range: black and white of what has more than 8 bits, once or for each channel; by default what the file says.

    ValueError for more pixels than Pillow takes for harmless (``MAX_IMAGE_PIXELS``), for another number of bands in all
    pages, and for numbers of which nobody says which is black and which white.
    """
    if channels not in (1, 3) and is_tiff(file):
        return _by_tifffile(file, channels, data_range, autorotate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_size says it with the name
        try:
            image = Image.open(file, formats=_formats())
        except UnidentifiedImageError:
            if not is_tiff(file):
                raise
            return _by_tifffile(file, channels, data_range, autorotate)
    with image:
        check_size(*image.size)
        if isinstance(image, TiffImageFile):
            ranged = data_range or (image.mode in ("RGB", "RGBA", "LA") and said_range(image.tag_v2))
            plain = not ranged or set(image.tag_v2.get(BITS, (8,))) == {8}
            if not plain or not pillow_reads(image):
                return _by_tifffile(file, channels, data_range, autorotate)
            before = _orientation(image)
        picture = _eight_bits(image, channels, data_range)
        turn = TURNS.get(_orientation(image)) if autorotate else None
        if isinstance(image, TiffImageFile) and not autorotate and _orientation(image) == 1:
            turn = BACK.get(before)  # Pillow has turned it
    return [[picture if turn is None else picture.transpose(turn)]]


def _by_tifffile(file: "str | BytesIO", channels: int, data_range: tuple[float, ...], autorotate: bool) -> list[Frames]:
    picture, orientation = read_tiff(file, channels, data_range)
    turn = TURNS.get(orientation) if autorotate else None
    return [[picture if turn is None else picture.transpose(turn)]]


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that Pillow reads here."""
    with suppress(ImportError):
        import pillow_heif  # type: ignore[import-not-found]

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """1 to 8 as in EXIF; 1, upright, where the file says nothing that can be read."""
    if image.format != "TIFF" and not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        return 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return image.getexif().get(ORIENTATION, 1)
        except Exception:  # a damaged block may fail in any way, and the picture is whole
            return 1


def _eight_bits(image: Image.Image, channels: int, data_range: tuple[float, ...]) -> Picture:
    """The picture in eight bits. Sixteen give their upper eight; where a range is known, it becomes 0 to 255."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return of_picture(_scaled(image, channels, data_range), channels)
    halved = (
        image.format in ("PNG", "TIFF")
        and isinstance(image, ImageFile)
        and any(";16" in str(tile[3]) for tile in image.tile)
    )
    if halved and data_range:
        raise ValueError("it has 16 bits in colour, of which the upper eight are read; for a data_range write TIFF")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    picture = of_picture(image, channels)
    if halved:  # by Pillow
        colours = picture.planes[:-1] if isinstance(picture, Bands) and channels != 1 else [picture]
        check_dark(256 * max(int(np.asarray(plane).max()) for plane in colours) + 255)
    return picture


def _scaled(image: Image.Image, channels: int, data_range: tuple[float, ...]) -> Image.Image:
    """A picture of one band of integers or floats, in eight bits."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    kind = FLOATS if image.mode == "F" else SIGNED if image.mode == "I" and image.format == "TIFF" else UNSIGNED
    bits = tags.get(BITS, (16,))[0]
    said, inverted = said_range(tags), tags.get(PHOTOMETRIC) == 0
    if len(data_range) > 2:  # the last of two or four channels is opacity, of which it has none
        colours = 1 if channels == 2 else 3
        values, data_range = np.stack([values] * colours, -1), data_range[: 2 * colours]
        values = values[..., 0] if colours == 1 else values
    return Image.fromarray(eight_bits(values, kind, bits, said=said, stated=data_range, inverted=inverted))
