"""Pictures of three colours of eight bits from image files: the right way up, of any depth whose range is known."""

import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .augment import Frames
from .decode import Choose, check_size

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

BITS, PHOTOMETRIC, SAMPLES, EXTRA, FORMAT, SUBFILE, ORIENTATION = 258, 262, 277, 338, 339, 254, 274
MINIMUM, MAXIMUM = (340, 280), (341, 281)
"""Tags of TIFF: of the range, SMinSampleValue and SMaxSampleValue before MinSampleValue and MaxSampleValue."""

READ = "read are 1 or 3 bands of 8 or 16 bits, with opacity or without, or 1 band of 32 bits"


def read_image(file: "str | BytesIO", choose: Choose | None, *, autorotate: bool = True) -> list[Frames]:
    """One clip of one frame, the first of an animation.

    autorotate: turn and mirror it as its EXIF orientation says.

    ValueError for more pixels than Pillow takes for harmless (``MAX_IMAGE_PIXELS``), for bands or pages that would be
    lost, and for numbers of which the file does not say which is black and which white.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_size says it with the name
        try:
            image = Image.open(file, formats=_formats())
        except UnidentifiedImageError as error:
            raise _of_tiff(file) or error from None
    with image:
        check_size(*image.size)
        if isinstance(image, TiffImageFile):
            _check_bands(image)
            before = _orientation(image)
        picture = _colours(image)
        turn = TURNS.get(_orientation(image)) if autorotate else None
        if isinstance(image, TiffImageFile) and not autorotate and _orientation(image) == 1:
            turn = BACK.get(before)  # Pillow has turned it
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


def _colours(image: Image.Image) -> Image.Image:
    """The picture in RGB. Sixteen bits give their upper eight; where the file states a range, it becomes 0 to 255."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled(image)
    halved = (
        image.format in ("PNG", "TIFF")
        and isinstance(image, ImageFile)
        and any(";16" in str(tile[3]) for tile in image.tile)
    )
    if "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    picture = image.convert("RGB")
    if halved:  # by Pillow
        _check_dark(256 * int(np.asarray(picture).max()) + 255)
    return picture


def _scaled(image: Image.Image) -> Image.Image:
    """A picture of one band of integers or floats."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if not np.isfinite(values).all():
        raise ValueError("it has values that are infinite or no numbers; write 0 in their place")
    low, high = _range(image, tags, values)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero
        values = low + high - values.astype(np.float64)
    if (low, high) == (0, 65535):
        grey = values.astype(np.uint16) >> 8
    else:
        grey = ((values.astype(np.float64) - low) * (255 / (high - low))).round().clip(0, 255)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _range(image: Image.Image, tags: Mapping[int, Any], values: np.ndarray) -> tuple[float, float]:
    """What is black and what is white; ValueError if the file does not say it."""
    said = [next((tags[tag] for tag in names if tag in tags), None) for names in (MINIMUM, MAXIMUM)]
    low, high = (np.ravel(value)[0].item() if value is not None else None for value in said)
    if high is not None:
        if not (low or 0) < high < float("inf"):
            raise ValueError(f"its tags give a range of {low or 0} to {high}; the first has to be below the second")
        return low or 0, high
    bits = tags.get(BITS, (16,))[0]
    if image.mode.startswith("I;16") and bits < 16:
        return 0, 2**bits - 1
    smallest, largest = values.min().item(), values.max().item()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF"):
        _check_dark(largest)
        return 0, 65535
    if image.mode == "F" and smallest >= 0 and largest <= 1:
        return 0, 1
    kind = "floats" if image.mode == "F" else f"integers of {bits} bits"
    raise ValueError(
        f"it holds {kind} from {smallest:g} to {largest:g}, and no tag says what is white: write SMinSampleValue and "
        "SMaxSampleValue, floats from 0 to 1, or 8 bits"
    )


def _check_dark(largest: int) -> None:
    """ValueError for 16 bits that are as a rule 12 or fewer, of which a few levels would be left."""
    if 0 < largest < 4096:
        raise ValueError(
            f"it has 16 bits, but no value above {largest}, as of 12 bits or fewer, and no tag says what is white: "
            f"write SMaxSampleValue={max(2 ** largest.bit_length() - 1, 255)}, the full range to 65535, or 8 bits"
        )


def _check_bands(image: TiffImageFile) -> None:
    """ValueError for a TIFF of which bands or pages would be lost."""
    bands, used, extra = image.tag_v2.get(SAMPLES, 1), len(image.getbands()), image.tag_v2.get(EXTRA)
    if bands != used or (image.mode in ("LA", "RGBA") and not extra):
        raise ValueError(f"a TIFF of {bands} bands, of which {min(used, 3)} would be read; {READ}")
    for page in range(1, image.n_frames):
        image.seek(page)
        if not image.tag_v2.get(SUBFILE, 0) & 5:  # neither a smaller copy nor a mask
            raise ValueError(f"a TIFF of {image.n_frames} pages, of which one would be read; {READ}")
    if image.tell():
        image.seek(0)


def _of_tiff(file: "str | BytesIO") -> ValueError | None:
    """What a TIFF is that Pillow does not read; None of another file."""
    with open(file, "rb") if isinstance(file, str) else BytesIO(file.getvalue()) as stream:
        header = stream.read(8)
        if header[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return None
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(header + (stream.read(8) if b"+" in header[:4] else b""))
            stream.seek(tags.next)
            tags.load(stream)
            kind = {2: "signed integers", 3: "floats"}.get(tags.get(FORMAT, (1,))[0], "integers")
            return ValueError(f"a TIFF of {tags.get(SAMPLES, 1)} bands of {kind} of {tags[BITS][0]} bits; {READ}")
        except Exception:  # damaged
            return None
