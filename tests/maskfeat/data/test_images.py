"""Pictures the right way up, of any depth whose range is known; what is not is refused by name."""

import io
import struct
import zlib

import media
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from maskfeat.data.images import read_image
from maskfeat.data.tiff import BITS, EXTRA, MAXIMUM, MINIMUM, ORIENTATION, PHOTOMETRIC, SAMPLES

RAMP = np.tile(np.linspace(0, 1, 64), (8, 1))
SHOWN = (RAMP * 255).round()


def read(file, **options):
    if isinstance(file, (bytes, bytearray)):
        file = io.BytesIO(file)
    [[picture]] = read_image(file, None, **options)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def saved(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def tiff(values, tags=()):
    """One picture of one band; ``tags`` are added to those of Pillow."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in dict(tags).items():
        directory[tag] = value
        directory.tagtype[tag] = 12 if isinstance(value, float) else 3
    return saved(Image.fromarray(values), "TIFF", tiffinfo=directory)


def raw_tiff(values, *, bits, samples=1, form=1, photometric=1, extra=()):
    """A TIFF of any numbers, little endian, without compression."""
    data, (height, width) = values.tobytes(), values.shape[:2]
    tags = {
        256: width, 257: height, BITS: bits, 259: 1, PHOTOMETRIC: photometric, 273: 8, SAMPLES: samples, 278: height,
        279: len(data), 339: form,
    }  # fmt: skip
    if extra:
        tags[EXTRA] = extra[0]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def png16(values):
    """A PNG of 16 bits of one or three colours, or three and opacity, which Pillow does not write."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {(): 0, (3,): 2, (4,): 6}[values.shape[2:]], 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


KNOWN = {
    "float from 0 to 1": tiff(RAMP.astype(np.float32)),
    "float with a range": tiff((RAMP * 65535).astype(np.float32), {MAXIMUM[0]: 65535.0}),
    "float with both ends": tiff((RAMP * 3000 - 1000).astype(np.float32), {MINIMUM[0]: -1000.0, MAXIMUM[0]: 2000.0}),
    "int32 with a range": tiff((RAMP * 50000).astype(np.int32), {MAXIMUM[0]: 50000}),
    "12 bits in 16": tiff((RAMP * 4095).astype(np.uint16), {MAXIMUM[1]: 4095}),
    "16 bits": tiff((RAMP * 65535).astype(np.uint16)),
    "PNG of 16 bits": png16(RAMP * 65535),
    "PNG of 16 bits in colour": png16(np.stack([RAMP * 65535] * 3, -1)),
    "PGM of 12 bits": b"P5 64 8 4095\n" + (RAMP * 4095).astype(">u2").tobytes(),
    "white is zero": raw_tiff((65535 - RAMP * 65535).astype("<u2"), bits=16, photometric=0),
    "doubles": raw_tiff(RAMP, bits=64, form=3),
    "8 bits": tiff(SHOWN.astype(np.uint8)),
}


@pytest.mark.parametrize("what", KNOWN)
def test_what_has_a_known_range_becomes_0_to_255(what):
    got = read(KNOWN[what])
    assert got.shape == (8, 64, 3) and abs(got - SHOWN[..., None]).max() <= 1


def test_16_bits_give_their_upper_eight():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for file in (tiff(values), png16(values)):
        assert np.array_equal(read(file)[..., 0], values >> 8)


STACK = [Image.fromarray((RAMP * 255).astype(np.uint8))] * 13
REFUSED = {
    "12 bits in 16 that do not say so": (tiff((RAMP * 4095).astype(np.uint16)), "no value above 4095.*Sample.*=4095"),
    "10 bits in a PNG": (png16(RAMP * 1023), "16 bits, but no value above 1023.*SMaxSampleValue=1023"),
    "12 bits in a PNG in colour": (png16(np.stack([RAMP * 4095] * 3, -1)), "no value above 4095"),
    "float to 65535": (tiff((RAMP * 65535).astype(np.float32)), "floats from 0 to 65535, and no tag says what is wh"),
    "float below 0": (tiff((RAMP - 0.5).astype(np.float32)), r"floats from -0\.5 to 0\.5.*, floats from 0 to 1, or"),
    "float that is none": (tiff(np.full((8, 8), np.nan, np.float32)), "infinite or no numbers"),
    "int32": (tiff((RAMP * 50000).astype(np.int32)), "integers of 32 bits from 0 to 50000.*SMinSampleValue"),
    "int16": (raw_tiff((RAMP * 900).astype("<i2"), bits=16, form=2), "integers of 16 bits from 0 to 900"),
    "a range upside down": (tiff(RAMP.astype(np.float32), {MINIMUM[0]: 1.0, MAXIMUM[0]: 0.5}), "range of 1.0 to 0.5"),
    "4 bands": (raw_tiff(np.zeros((8, 8, 4), np.uint8), bits=8, samples=4, photometric=2), "4 bands, .* channels=4"),
    "2 bands": (raw_tiff(np.zeros((8, 8, 2), np.uint8), bits=8, samples=2), "a TIFF of 2 bands, and channels=3; set"),
    "13 bands": (raw_tiff(np.zeros((8, 8, 13), "<u2"), bits=16, samples=13), "13 bands, and channels=3"),
    "13 pages": (saved(STACK[0], "TIFF", save_all=True, append_images=STACK[1:]), "13 bands in 13 pages.* channels=13"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_lost_or_guessed_is_refused_by_name(what, tmp_path):
    data, message = REFUSED[what]
    (tmp_path / "0.tif").write_bytes(data)
    for file in (data, str(tmp_path / "0.tif")):
        with pytest.raises(ValueError, match=message):
            read(file)


def test_opacity_smaller_copies_and_masks_of_a_tiff_are_no_bands(tmp_path):
    picture = media.picture(0)
    expected = np.asarray(picture)
    assert np.array_equal(read(saved(picture.convert("RGBA"), "TIFF")), expected)
    small = [picture.resize((8, 8))]
    small[0].encoderinfo = {"tiffinfo": {254: 1}}
    assert np.array_equal(read(saved(picture, "TIFF", save_all=True, append_images=small)), expected)
    black = np.zeros((8, 8), np.uint16)
    assert not read(tiff(black)).any() and not read(png16(black)).any()


def test_the_first_picture_of_an_animation_is_read():
    first, second = media.picture(0), media.picture(1)
    for form in ("GIF", "WEBP", "PNG"):
        data = saved(first, form, save_all=True, append_images=[second])
        assert abs(read(data).astype(int) - np.asarray(first)).mean() < 12


TURNED = {  # what becomes of [[1, 2], [3, 4]]
    1: [[1, 2], [3, 4]], 2: [[2, 1], [4, 3]], 3: [[4, 3], [2, 1]], 4: [[3, 4], [1, 2]],
    5: [[1, 3], [2, 4]], 6: [[3, 1], [4, 2]], 7: [[4, 2], [3, 1]], 8: [[2, 4], [1, 3]],
}  # fmt: skip


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_pictures_are_turned_as_exif_says(form, orientation):
    levels = np.array([[1, 2], [3, 4]], np.uint8).repeat(16, 0).repeat(32, 1) * 60
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(Image.fromarray(levels).convert("RGB"), form, exif=exif)

    def quarters(**options):
        picture = read(data, **options)[..., 0]
        height, width = picture.shape
        return (picture[height // 4 :: height // 2, width // 4 :: width // 2] / 60).round().tolist()

    assert quarters() == TURNED[orientation]
    assert quarters(autorotate=False) == TURNED[1]


def test_a_damaged_exif_block_leaves_the_picture_whole():
    data = saved(media.picture(0), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(read(data), np.asarray(media.picture(0)))
