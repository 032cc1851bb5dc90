"""TIFF. Pillow reads one page of one or three bands. tifffile reads any number of pages and bands."""

import math
import re
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from .bands import Picture, of_array, of_picture
from .decode import check_size
from .depth import FLOATS, SIGNED, UNSIGNED, Range, eight_bits

BITS, PHOTOMETRIC, SAMPLES, EXTRA, SUBFILE, ORIENTATION = 258, 262, 277, 338, 254, 274
PLANAR, SAMPLE_FORMAT = 284, 339
MINIMUM, MAXIMUM = (340, 280), (341, 281)
"""Tags of the range. SMinSampleValue and SMaxSampleValue take precedence over MinSampleValue and MaxSampleValue."""

REDUCED, MASK = 1, 4
"""Bits of SUBFILE: a smaller copy, a mask."""

PREMULTIPLIED, OPACITY = 1, 2
"""Values of EXTRA that mark opacity: associated and unassociated alpha."""

COLOURS = {0: "white is zero", 1: "black is zero", 2: "RGB", 5: "inks"}
"""Photometric interpretations whose bands are read as they are."""

KINDS = {"b": UNSIGNED, "u": UNSIGNED, "i": SIGNED, "f": FLOATS}

FULL = 2**15
"""In a file of several 16-bit bands, some value must reach this. Reflectances up to 10,000 would keep 40 levels."""


def pillow_reads(image: TiffImageFile) -> bool:
    """Whether Pillow would lose none of the bands and pages, and takes no number for another.

    Opacity, smaller copies and masks are no bands. Pillow takes signed 8 bits for unsigned ones, unsigned 32 for signed
    ones, and planes of 16 bits for planes of 8.
    """
    bits, form = image.tag_v2.get(BITS, (1,))[0], image.tag_v2.get(SAMPLE_FORMAT, (1,))[0]
    if (bits, form) in ((8, 2), (32, 1)) or (bits > 8 and image.tag_v2.get(PLANAR) == 2):
        return False
    bands, used, extra = image.tag_v2.get(SAMPLES, 1), len(image.getbands()), image.tag_v2.get(EXTRA)
    if bands != used or (image.mode in ("LA", "RGBA") and not extra):
        return False
    whole = True
    for page in range(1, image.n_frames):
        image.seek(page)
        whole &= bool(image.tag_v2.get(SUBFILE, 0) & (REDUCED | MASK))
    if image.tell():
        image.seek(0)
    return whole


def is_tiff(file: "str | BytesIO") -> bool:
    with open(file, "rb") if isinstance(file, str) else BytesIO(file.getvalue()) as stream:
        return stream.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def said_range(tags: Any) -> Range | None:
    """The range that a page states. ``tags`` maps numbers of tags to values."""
    low, high = (next((tags[tag] for tag in names if tag in tags), None) for names in (MINIMUM, MAXIMUM))
    if high is None:
        return None
    low, high = (np.ravel(value) for value in (0 if low is None else low, high))
    return (low, high) if max(low.size, high.size) > 1 else (low[0].item(), high[0].item())


def read_tiff(file: "str | BytesIO", channels: int, data_range: tuple[float, ...]) -> tuple[Picture, int]:
    """All bands of all pages, in their order, and the orientation of the first, 1 to 8 as in EXIF.

    If three channels are asked for, one band is repeated. If one is asked for, RGB becomes brightness. Unassociated
    opacity of a single page is left out in both. Smaller copies and masks are no bands.

    ValueError for any other number of bands than ``channels``, for pages of different sizes or numbers, for colours in
    a palette or other than RGB, and for a range that is not known.
    """
    try:
        import tifffile
    except ImportError as error:
        raise ValueError(f"TIFF of several bands or pages needs tifffile: pip install tifffile ({error})") from error
    if not isinstance(file, str):
        file.seek(0)
    with tifffile.TiffFile(file) as tif:
        pages: list[Any] = list(tif.pages)
        pages = [page for page in pages if not int(page.subfiletype) & (REDUCED | MASK)]
        if not pages:
            raise ValueError("a TIFF without a picture")
        first = pages[0]
        check_size(first.imagewidth, first.imagelength)
        kinds = {
            (page.imagelength, page.imagewidth, page.dtype, page.bitspersample, page.photometric == 0) for page in pages
        }
        if len(kinds) > 1:
            raise ValueError(
                f"a TIFF whose {len(pages)} pages differ in size or depth, or in which white is zero in some; write "
                "each as a file"
            )
        if first.dtype is None or first.dtype.kind not in KINDS:
            raise ValueError(f"a TIFF of {first.bitspersample} bits of sample format {first.sampleformat}")
        if others := [page.photometric for page in pages if page.photometric not in COLOURS]:
            name = getattr(others[0], "name", others[0])
            raise ValueError(f"a TIFF of photometric interpretation {name}; write RGB or a band for each channel")
        count = sum(page.samplesperpixel for page in pages)
        if len(pages) == 1 and channels in (1, 3) and tuple(map(int, first.extrasamples)) == (OPACITY,):
            count -= 1  # Pillow drops it too
        promised = _promised(first)
        if promised > len(pages):
            raise ValueError(f"a TIFF of {promised} pictures, of which {len(pages)} are pages; write a page for each")
        if count != channels and {count, channels} != {1, 3}:
            inside = f" in {len(pages)} pages" if len(pages) > 1 else ""
            raise ValueError(f"a TIFF of {count} bands{inside}, and channels={channels}; set channels={count}")
        if (count, channels) == (3, 1) and first.photometric != 2:
            raise ValueError("a TIFF of 3 bands that are no colours, and channels=1; set channels=3")
        values = np.concatenate([_bands(page) for page in pages], -1)
        ranges = [said_range({tag.code: tag.value for tag in page.tags}) for page in pages]
        said = _joined(ranges, [page.samplesperpixel for page in pages])
        opacity = tuple(band for band in _opacity(pages) if band < count)
    values, said = values[..., :count], said and (said[0][:count], said[1][:count])
    if count < channels:
        values = values.repeat(channels, -1)
    bits, kind, inverted = first.bitspersample, KINDS[values.dtype.kind], first.photometric == 0
    if (kind, bits) != (UNSIGNED, 8) or inverted:
        options: dict[str, Any] = dict(opacity=opacity, inverted=inverted)
        options |= dict(said=said, stated=data_range) if bits > 8 or kind == SIGNED else {}
        values = eight_bits(values, kind, bits, full=FULL if count > 1 else 4096, **options)
    tag = first.tags.get(ORIENTATION)
    orientation = 1 if tag is None else int(tag.value)
    if channels < count:
        return of_picture(Image.fromarray(values), 1), orientation
    return of_array(values), orientation


def _bands(page: Any) -> np.ndarray:  # [H, W, C]
    values, count = page.asarray(maxworkers=1), page.samplesperpixel  # the loader runs one process for each core
    if page.planarconfig == 2 and count > 1:
        values = np.moveaxis(values, 0, -1)
    return values.reshape(page.imagelength, page.imagewidth, count)


def _opacity(pages: list[Any]) -> tuple[int, ...]:
    """Which of the bands of all pages say how opaque a pixel is."""
    found: list[bool] = []
    for page in pages:
        extra = [int(kind) in (PREMULTIPLIED, OPACITY) for kind in page.extrasamples]
        found += [False] * (page.samplesperpixel - len(extra)) + extra
    return tuple(np.flatnonzero(found).tolist())


def _promised(page: Any) -> int:
    """The number of pictures in the description of ImageJ or tifffile. Their large files have one page for all."""
    if match := re.search(r"^images=(\d+)", page.imagej_description or "", re.MULTILINE):
        return int(match[1])
    if match := re.search(r"""shape[":= ]+[\[(]([\d, ]+)""", page.shaped_description or ""):
        values = math.prod(int(side) for side in re.findall(r"\d+", match[1]))
        return values // (page.imagelength * page.imagewidth * page.samplesperpixel)
    return 1


def _joined(ranges: list[Range | None], samples: list[int]) -> Range | None:
    """The ranges of the bands of all pages; None unless all pages say one."""
    known = [found for found in ranges if found is not None]
    if len(known) < len(ranges):
        return None
    low, high = (
        np.concatenate([np.broadcast_to(found[end], count) for found, count in zip(known, samples, strict=True)])
        for end in (0, 1)
    )
    return low, high
