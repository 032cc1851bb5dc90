"""Pictures of one, two, four and thirteen channels: every band, its range, and what is refused by name."""

import io

import media
import numpy as np
import pytest
import test_images
import tifffile
from PIL import Image

from maskfeat.data.augment import CHANGES, eval_crops, flip, rand_augment, random_resized_crop
from maskfeat.data.bands import Bands, of_array, size_in_memory
from maskfeat.data.images import read_image
from maskfeat.data.videos import read_clips

CUBE = np.random.default_rng(0).integers(0, 256, (6, 8, 13), dtype=np.uint8)
PLANES = np.moveaxis(CUBE, -1, 0)


def read(file, channels, **options):
    file = io.BytesIO(file) if isinstance(file, bytes) else file
    [[picture]] = read_image(file, None, channels=channels, **options)
    values = np.asarray(picture)
    assert values.dtype == np.uint8 and values.shape[2] == channels
    return values


def tiff(values, **options):
    file = io.BytesIO()
    options = {"photometric": "minisblack"} | options
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def saved(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


LAYOUTS = {
    "a page of bands": tiff(CUBE, planarconfig="contig"),
    "a page of planes": tiff(PLANES, planarconfig="separate"),
    "pages": tiff(PLANES),
    "tiles, deflated": tiff(np.pad(PLANES, ((0, 0), (0, 26), (0, 24))), tile=(16, 16), compression="zlib"),
    "ImageJ": tiff(PLANES, imagej=True),
    "BigTIFF": tiff(PLANES, bigtiff=True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_bands_are_read_in_their_order(layout, tmp_path):
    (tmp_path / "0.tif").write_bytes(LAYOUTS[layout])
    for file in (LAYOUTS[layout], str(tmp_path / "0.tif")):
        assert np.array_equal(read(file, 13)[:6, :8], CUBE)


DEEP = {
    "12 bits in 16 with a range": (tiff(CUBE.astype("u2") * 16, planarconfig="contig"), (0, 4080)),
    "a range for each band": (tiff(CUBE * np.arange(1.0, 14), planarconfig="contig"),
                              [end for i in range(13) for end in (0, 255 * (i + 1))]),
    "floats from 0 to 1": (tiff((PLANES / 255).astype("f4")), ()),
    "all of 16 bits": (tiff(PLANES.astype("u2") * 257), ()),
    "signed": (tiff(PLANES.astype("i2") - 100), (-100, 155)),
    "float with a tag": (tiff(PLANES.astype("f4"), extratags=[(341, 12, 1, 255.0, False)]), ()),
    "white is zero": (tiff(255 - PLANES, photometric="miniswhite"), ()),
}  # fmt: skip


@pytest.mark.parametrize("what", DEEP)
def test_a_range_becomes_0_to_255(what):
    file, stated = DEEP[what]
    assert np.array_equal(read(file, 13, data_range=tuple(stated)), CUBE)


def test_a_stated_range_holds_for_one_band_and_for_colours_of_16_bits():
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for values in (ramp, np.stack([ramp] * 3, -1)):
        file = tiff(values, photometric="minisblack" if values.ndim == 2 else "rgb")
        for channels in (1, 3):
            got = read(file, channels, data_range=(0, 4095))[..., 0]
            assert len(np.unique(got)) == 256 and abs(got - ramp / 4095 * 255).max() <= 0.5
    png = saved(Image.fromarray(ramp), "PNG")
    assert len(np.unique(read(png, 1, data_range=(0, 4095)))) == 256
    three = read(png, 3, data_range=(0, 4095, 0, 8190, -4095, 4095))
    assert three[-1, -1].tolist() == [255, 128, 255] and three[0, 0].tolist() == [0, 0, 128]


def test_pictures_of_pillow_have_brightness_colours_and_opacity():
    colours, opacity = media.picture(0), Image.linear_gradient("L").resize((40, 30))
    clear = colours.copy()
    clear.putalpha(opacity)
    gray = np.asarray(colours.convert("L"))
    assert np.array_equal(read(saved(clear, "PNG"), 4), np.asarray(clear))
    assert np.array_equal(read(saved(clear, "PNG"), 3), np.asarray(colours))
    assert np.array_equal(read(saved(clear, "PNG"), 2), np.dstack([gray, opacity]))
    for form in ("PNG", "TIFF"):
        assert np.array_equal(read(saved(colours, form), 1)[..., 0], gray)
        assert np.array_equal(read(saved(colours.convert("L"), form), 1)[..., 0], gray)
    assert (read(saved(colours, "PNG"), 4)[..., 3] == 255).all()
    palette = colours.convert("P")
    assert np.array_equal(read(saved(palette, "PNG"), 1)[..., 0], np.asarray(palette.convert("RGB").convert("L")))
    assert np.array_equal(read(saved(clear, "TIFF"), 4), np.asarray(clear))


@pytest.mark.parametrize("orientation", [1, 2, 5, 6, 8])
def test_bands_are_turned_as_exif_says(orientation):
    file = tiff(CUBE, planarconfig="contig", extratags=[(274, 3, 1, orientation, False)])
    one = tiff(CUBE[..., 7], extratags=[(274, 3, 1, orientation, False)])
    assert np.array_equal(read(file, 13)[..., 7], read(one, 1)[..., 0])
    assert np.array_equal(read(file, 13, autorotate=False), CUBE)


DARK = np.dstack([np.arange(4096, dtype=np.uint16).reshape(64, 64)] * 3 + [np.full((64, 64), 65535, np.uint16)])
RGBA = {"photometric": "rgb", "planarconfig": "contig", "extrasamples": ["unassalpha"]}
GRAY_PNG = saved(Image.fromarray(DARK[..., 0]), "PNG")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_range_holds_beside_opacity(channels):
    """Of colours of 16 bits; opacity is left out for one and three channels, as that of 8 bits is."""
    wanted = np.rint(DARK[..., 0] / 4095 * 255)
    for tag, stated in ((), (0.0, 4095.0)), ((), (0.0, 4095.0) * channels), ((4095,) * 4, ()):
        tags = [(341, 3, 4, tag, False)] if tag else []
        got = read(tiff(DARK, extratags=tags, **RGBA), channels, data_range=stated)
        assert abs(got[..., : min(channels, 3)] - wanted[..., None]).max() <= 1
        assert channels < 4 or (got[..., 3] == 255).all()


@pytest.mark.parametrize("white", [4095, 10000, 65535])
def test_what_a_tag_says_of_colours_counts(white):
    values = (DARK[..., :3].astype(float) * white / 4095).astype(np.uint16)
    file = tiff(values, photometric="rgb", extratags=[(341, 3, 3, (white,) * 3, False)])
    assert len(np.unique(read(file, 3))) == 256 == len(np.unique(read(file, 1)))


PLANES16 = PLANES[:3].astype(np.uint16) * 257
MISTAKEN = {
    "planes of 16 bits": (tiff(PLANES16, photometric="rgb", planarconfig="separate"), ()),
    "planes of 16 bits, big end first": (tiff(PLANES16, photometric="rgb", planarconfig="separate", byteorder=">"), ()),
    "signed 8 bits": (tiff((PLANES[0].astype(np.int16) - 128).astype(np.int8)), (-128.0, 127.0)),
    "32 bits": (tiff(PLANES[0].astype(np.uint32) * 16843009, extratags=[(341, 4, 1, 2**32 - 1, False)]), ()),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKEN)
def test_numbers_that_pillow_takes_for_others_are_what_they_are(what):
    file, stated = MISTAKEN[what]
    got = read(file, 3, data_range=stated)
    assert np.array_equal(got[..., 0], CUBE[..., 0])
    assert "planes" not in what or np.array_equal(got, CUBE[..., :3])


@pytest.mark.parametrize("channels", [2, 4])
def test_a_range_of_each_channel_holds_for_gray(channels):
    got = read(GRAY_PNG, channels, data_range=(0.0, 4095.0) * channels)
    assert abs(got[..., 0] - DARK[..., 0] / 4095 * 255).max() <= 0.5 and (got[..., -1] == 255).all()


def two_pages(*kinds):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for kind in kinds:
            writer.write(CUBE[..., 0], photometric=kind)
    return file.getvalue()


PAGES = [np.zeros((6, 8), np.uint8), np.zeros((8, 6), np.uint8)]
REFUSED = {
    "4 bands for 3": (tiff(CUBE[..., :4], planarconfig="contig"), 3, "TIFF of 4 bands, and channels=3; set channels=4"),
    "13 pages for 12": (LAYOUTS["pages"], 12, "TIFF of 13 bands in 13 pages, and channels=12; set channels=13"),
    "13 pages for 1": (LAYOUTS["pages"], 1, "13 bands in 13 pages, and channels=1; set channels=13"),
    "a palette for 13": (saved(media.picture(0).convert("P"), "PNG"), 13, "3 channels in a palette, and channels=13"),
    "a palette of TIFF": (saved(media.picture(0).convert("P"), "TIFF"), 4, "interpretation PALETTE"),
    "gray for 13": (saved(Image.fromarray(CUBE[..., 0]), "PNG"), 13, "a picture of 1 channels, .* set channels=1"),
    "opacity of a JPEG": (saved(media.picture(0), "JPEG"), 4, "of 3 channels, and channels=4; set channels=3"),
    "12 bits in 16": (tiff(CUBE.astype("u2") * 16, planarconfig="contig"), 13, "above 4080.*data_range=0,4095"),
    "reflectances": (tiff(PLANES.astype("u2") * 39), 13, "no value above 9945.*set data_range=0,16383"),
    "floats": (tiff(PLANES.astype("f4") - 20), 13, "floats from -20 to 235.*data_range=-20,235"),
    "signed 8 bits": (tiff(PLANES[0].astype("i1")), 3, "integers of 8 bits from -126 to 127, .* data_range=-126,127"),
    "no numbers": (tiff(np.full((13, 6, 8), np.nan, "f4")), 13, "infinite or no numbers"),
    "complex": (tiff(PLANES.astype("c8")), 13, "sample format"),
    "bands that are no colours": (tiff(PLANES[:3]), 1, "3 bands .*channels=1; set channels=3"),
    "a page for all": (tiff(PLANES, metadata={"axes": "CYX"}).replace(b"[13,", b"[14,"), 13, "14 pictures, of"),
    "12 bits beside opacity": (tiff(DARK, **RGBA), 4, "above 4095.*data_range=0,4095"),
    "12 bits beside opacity that is made": (test_images.png16(DARK[..., :3]), 4, "above 4095.*data_range=0,4095"),
    "12 bits beside opacity of PNG": (test_images.png16(DARK), 4, "above 4095.*data_range=0,4095"),
    "12 bits beside opacity of gray": (test_images.png16(DARK), 2, "above 4095.*data_range=0,4095"),
    "white is zero in a page": (two_pages("minisblack", "miniswhite"), 2, "in which white is zero in some"),
    "white is one in a page": (two_pages("miniswhite", "minisblack"), 2, "in which white is zero in some"),
    "a PNG of 16 bits in colour": (None, 3, "for a data_range write TIFF"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_with_what_would(what):
    file, channels, message = REFUSED[what]
    options = {}
    if file is None:
        file, options = test_images.png16(np.stack([test_images.RAMP * 65535] * 3, -1)), {"data_range": (0.0, 9.0)}
    with pytest.raises(ValueError, match=message) as refused:
        read(file, channels, **options)
    assert "\n" not in str(refused.value)


def test_pages_of_different_sizes_are_no_bands():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in PAGES:
            writer.write(page)
    with pytest.raises(ValueError, match="2 pages differ in size or depth"):
        read(file.getvalue(), 2)


def test_clips_are_folders_of_bands_and_videos_have_three(tmp_path):
    for i in range(3):
        (tmp_path / f"frame_{i}.tif").write_bytes(tiff(np.roll(CUBE, i, 0), planarconfig="contig"))

    def choose(total, rate):
        return np.array([[0, total - 1]])

    [[first, last]] = read_clips(str(tmp_path), choose, channels=13)
    assert np.array_equal(np.asarray(first), CUBE) and np.array_equal(np.asarray(last), np.roll(CUBE, 2, 0))
    video = media.write_video(tmp_path / "a.mp4", frames=4)
    with pytest.raises(ValueError, match="a video of 3 channels, and channels=13; set channels=3"):
        read_clips(str(video), choose, channels=13)
    [[gray, _]], [[colour, _]] = (read_clips(str(video), choose, channels=channels) for channels in (1, 3))
    assert np.array_equal(np.asarray(gray)[..., 0], np.asarray(colour.convert("L")))


def test_crops_of_bands_are_those_of_colours():
    """Bit for bit: three bands are cropped as RGB is, and more bands as the first three."""
    colours = media.picture(1, width=60, height=40)
    bands = Bands([*colours.split(), colours.convert("L")])
    assert size_in_memory(bands) == 4 * 60 * 40
    for work in (
        lambda frame: random_resized_crop([frame], (16, 24), (0.3, 1), (0.5, 2), "bicubic", np.random.default_rng(0))[
            0
        ],
        lambda frame: eval_crops([frame], (16, 24), (30, 30), "bilinear", 3)[2][0],
        lambda frame: eval_crops([frame.crop((0, 0, 60, 4))], (8, 8), (8, 8), "bilinear")[0][0],
        lambda frame: flip([frame], 1.0, np.random.default_rng(0))[0],
    ):
        assert np.array_equal(np.asarray(work(bands))[..., :3], np.asarray(work(colours)))


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in ("color", "contrast")])
def test_changes_of_bands_are_those_of_colours(name, monkeypatch):
    """But for contrast, which is about the mean brightness: of a band that is its own mean."""
    monkeypatch.setattr("maskfeat.data.augment.CHANGES", {name: CHANGES[name]})
    colours = media.picture(2)
    frames = [[colours], [Bands([*colours.split(), colours.split()[0]])]]
    fills = [(10, 20, 30), (10, 20, 30, 10)]
    changed = False
    for seed in range(6):
        one, four = (
            np.asarray(rand_augment(frame, "m5-n1-inc1", "bilinear", fill, np.random.default_rng(seed))[0])
            for frame, fill in zip(frames, fills, strict=True)
        )
        assert np.array_equal(four[..., :3], one) and np.array_equal(four[..., 3], one[..., 0])
        changed |= not np.array_equal(one, np.asarray(colours))
    assert changed


def test_saturation_is_of_three_channels(monkeypatch):
    monkeypatch.setitem(CHANGES, "color", None)
    frames = [of_array(CUBE)]
    for seed in range(20):
        rand_augment(frames, "m9-n8-inc1", "bicubic", (128,) * 13, np.random.default_rng(seed))
