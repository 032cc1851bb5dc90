"""Data that are not what they seem: pipes, loops of links, bombs, damaged headers. None may hang or end a run."""

import io
import logging
import os
import random
import socket
import struct
import tarfile
import zlib

import media
import numpy as np
import pytest
from PIL import Image
from test_data import PLAIN, batches, clips, images

from maskfeat.config import Finetune
from maskfeat.data.augment import eval_crops
from maskfeat.data.decode import Unreadable
from maskfeat.data.loader import make_loader
from maskfeat.data.shards import Shards
from maskfeat.data.source import Files, expand, open_source


def paths(data, split="train"):
    source = open_source(str(data), split, False, train_data=str(data))
    return [source.name(i) for i in range(len(source))], source


def test_each_real_folder_is_read_once(tmp_path, caplog):
    """Links lead up, to one another and to a folder of the same tree; their names would come before the real ones."""
    root = media.image_folder(tmp_path / "data", each=4) / "train"
    media.write_image(tmp_path / "elsewhere" / "0.png", 0)
    for link, target in (
        ("aa", root),
        ("cat/up", root),
        ("cat/dogs", root / "dog"),
        ("bird", tmp_path / "elsewhere"),
        ("dog/up", root / "cat" / "up"),
        ("dog/loop", root / "dog" / "loop"),
    ):
        (root / link).symlink_to(target)
    names, source = paths(tmp_path / "data")
    assert len(names) == len(set(map(os.path.realpath, names))) == 9
    assert names == sorted(names) and not any("up/" in name or "aa/" in name for name in names)
    assert source.labels.tolist() == [0] + [1] * 4 + [2] * 4  # bird, cat, dog
    assert "left out 4 links to folders" in caplog.text


def special_files(folder):
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.jpg"))
    (folder / "null.jpg").symlink_to("/dev/null")
    (folder / "zero.jpg").symlink_to("/dev/zero")


def test_pipes_sockets_and_devices_of_a_folder_are_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    media.image_folder(tmp_path, each=2)
    special_files((tmp_path / "train" / "cat").relative_to(tmp_path))
    names, _ = paths(tmp_path)
    assert len(names) == 4
    assert "skipped 4 pipes, sockets or devices" in caplog.text


def test_pipes_and_devices_of_a_list_are_skipped_without_being_opened(tmp_path, caplog):
    os.mkfifo(tmp_path / "pipe.png")
    media.write_image(tmp_path / "0.png", 0)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "val.txt").write_text("pipe.png 1\n/dev/zero 1\nfolder.png 1\n0.png 1\n")
    loader = make_loader(images(tmp_path), "val", seed=0)
    assert [batch["labels"].tolist() for batch in loader] == [[1]] and loader.skipped == 3
    assert "pipe.png (OSError: a pipe, socket or device, no file)" in caplog.text


def test_shards_that_are_pipes_are_left_out(tmp_path, caplog):
    media.write_shard(tmp_path / "0.tar", {"0.jpg": media.jpeg(0)})
    os.mkfifo(tmp_path / "1.tar")
    assert len(paths(tmp_path / "*.tar")[0]) == 1
    assert "skipped 1 shards that are no regular files, such as" in caplog.text
    (tmp_path / "0.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"there are no files KEY\.jpg"):
        paths(tmp_path / "1.tar")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_in_shards_are_followed_or_counted(tmp_path, caplog, form):
    """As tar writes a file that has two names, also long ones."""
    long = "d" * 90 + "/" + "e" * 60
    (tmp_path / "in" / ("d" * 90)).mkdir(parents=True)
    (tmp_path / "in" / "a.jpg").write_bytes(media.jpeg(1))
    (tmp_path / "in" / "a.cls").write_text("7")
    for name in ("b", long if form != tarfile.USTAR_FORMAT else "d" * 90 + "/e"):
        os.link(tmp_path / "in" / "a.jpg", tmp_path / "in" / f"{name}.jpg")
    (tmp_path / "in" / "b.cls").symlink_to("a.cls")
    (tmp_path / "in" / ("d" * 90) / "c.jpg").symlink_to("../0.jpg")  # a link to a link, which comes before it
    (tmp_path / "in" / "0.jpg").symlink_to("./b.jpg")
    (tmp_path / "in" / "lost.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "in" / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "in" / "pipe.jpg")
    with tarfile.open(tmp_path / "0.tar", "w", format=form) as tar:
        tar.add(tmp_path / "in", ".")
    shard = Shards([tmp_path / "0.tar"], lambda file, choose: file.read(), (".jpg",))
    assert "skipped 3 members of" in caplog.text
    read = {shard.name(i).rpartition(":")[2]: shard.read(i, None) for i in range(len(shard))}
    assert len(read) == 5 and all(data == media.jpeg(1) for data, _ in read.values())
    assert {key: label for key, (_, label) in read.items() if label is not None} == {"./a": 7, "./b": 7}


def header(**changes) -> bytes:
    member = tarfile.TarInfo("0.jpg")
    for name, value in changes.items():
        setattr(member, name, value)
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("pax", [b"-512", b"9" * 5000, b"x", b"1e3", b"99999999999999999999"])
def test_sizes_that_no_member_has(tmp_path, caplog, pax):
    """One of -512 bytes led back to its own header, for ever."""
    record = b" size=" + pax + b"\n"
    records = str(len(record) + 4).encode() + record
    extended = header(type=b"x", size=len(records)) + records.ljust(-(-len(records) // 512) * 512, b"\0")
    good = header(size=4) + b"data".ljust(512, b"\0")
    for bad in (header(size=-512), extended + header(size=512), header(size=2**60, type=b"L"), header(size=2**62)):
        (tmp_path / "0.tar").write_bytes(good + bad + bytes(1024))
        caplog.clear()
        assert len(Shards([tmp_path / "0.tar"], None, (".jpg",))) == 1
        assert "0.tar is damaged after 1 samples: it ends within a member of" in caplog.text


def fuzzed_shards(path):
    """Flipped bytes, every second time with a checksum that is right again; a third of them in numbers and kinds."""
    rng = random.Random(0)
    samples = {f"{'n' * (150 * (i % 2))}{i}.{suffix}": b"%d" % i for i in range(4) for suffix in ("jpg", "cls")}
    forms = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(path, "w", format=form) as tar:
            for name, data in samples.items():
                member = tarfile.TarInfo(name[-99:] if form == tarfile.USTAR_FORMAT else name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.LNKTYPE, "0.jpg"
            tar.addfile(link)
        forms.append(path.read_bytes())
    for number in range(500):
        data = bytearray(forms[number % 3])
        for _ in range(rng.randint(1, 4)):
            block = rng.randrange(len(data) // 512) * 512
            offset = rng.choice((124, 156, 345, 157, 0, 100)) + rng.randrange(12) if number % 4 else rng.randrange(512)
            data[block + offset] = rng.choice((0x80, 0xFF, 0x2D, 0x78, 0x4C, 0x4B, 0x31, 0x32, 0, rng.randrange(256)))
            if number % 2:
                data[block + 148 : block + 156] = b" " * 8
                data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])
        path.write_bytes(data[: rng.randint(0, len(data))] if number % 10 == 9 else data)
        yield number


def test_damaged_headers_neither_hang_nor_crash(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    path, whole = tmp_path / "0.tar", 0
    for _ in fuzzed_shards(path):
        try:
            shard = Shards([path], lambda file, choose: file.read(), (".jpg",))
        except (ValueError, OSError):
            continue
        for i in range(len(shard)):
            try:
                data, label = shard.read(i, None)
                whole += data == b"%d" % label if label is not None else 0
            except Unreadable:
                pass
    assert whole > 300  # of 2000; most samples come before the damage


def png(width: int, height: int, depth: int = 1) -> bytes:
    """A black PNG, made without its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = bytes(1 + -(-width * depth // 8))
    compressor = zlib.compressobj(9)
    rows = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20000, 2), (2, 20000)])
def test_a_long_thin_picture_takes_no_more_memory_than_its_crops(tmp_path, monkeypatch, size):
    """At 256 pixels of height it would be 2.6 million pixels wide."""
    (tmp_path / "val" / "a").mkdir(parents=True)
    (tmp_path / "val" / "a" / "0.png").write_bytes(png(*size))
    made, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: made.append(size) or resize(self, size, *a, **k)
    )
    recipe = Finetune(data=str(tmp_path), **PLAIN | {"test_crops": 3, "batch_size": 3})
    [batch] = batches(recipe, "test")
    assert batch["images"].shape == (3, 3, 224, 224) and made == [(224, 224)] * 3


@pytest.mark.parametrize("crops", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_of_a_long_picture_are_those_of_the_whole_one_resized(monkeypatch, crops, interpolation):
    rng = np.random.default_rng(0)
    for size in ((70, 600), (900, 81), (2000, 33), (11, 200)):
        colours = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        frame = colours.resize(size, Image.Resampling.BICUBIC)
        found = eval_crops([frame], (64, 64), (73, 73), interpolation, crops)
        monkeypatch.setattr("maskfeat.data.augment.LONGEST", 1000)
        expected = eval_crops([frame], (64, 64), (73, 73), interpolation, crops)
        monkeypatch.undo()
        for [one], [other] in zip(found, expected, strict=True):
            assert np.abs(np.asarray(one, np.int16) - np.asarray(other)).max() <= 2


@pytest.mark.parametrize("where", ["folder", "shard"])
def test_pictures_beyond_the_limit_of_pillow_are_skipped(tmp_path, caplog, where):
    """20,000 x 20,000 black pixels are 50 kB; 10,000 x 10,000 are only a warning to Pillow, and 0.4 GB."""
    files = {"0.png": png(20000, 20000), "1.png": png(10000, 10000), "2.png": png(20, 20)}
    if where == "shard":
        media.write_shard(tmp_path / "val" / "0.tar", {**files, **{f"{i}.cls": b"0" for i in range(3)}})
    else:
        (tmp_path / "val" / "a").mkdir(parents=True)
        for name, data in files.items():
            (tmp_path / "val" / "a" / name).write_bytes(data)
    loader = make_loader(images(tmp_path), "val", seed=0)
    assert [len(batch["images"]) for batch in loader] == [1] and loader.skipped == 2
    assert "10000 x 10000 pixels are more than the" in caplog.text and "DecompressionBombError" in caplog.text


def test_clips_of_too_large_frames_are_skipped(tmp_path, caplog, monkeypatch):
    media.write_video(tmp_path / "val" / "a" / "0.mp4", frames=20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    loader = make_loader(clips(tmp_path), "val", seed=0)
    assert list(loader) == [] and loader.skipped == 1 and "64 x 48 pixels are more than the 3071" in caplog.text


def test_lists_that_are_none(tmp_path):
    """All paths take as much memory as the longest, so one line may not be of a megabyte."""
    for data, message in (
        (b"0.png 1\n" + b"x" * 5000, "all.txt has a line of 5000 characters, which is no path: 'xxx"),
        (media.jpeg(0), r"all.txt is no list: it has to be text in UTF-8 \(invalid start byte at 0\)"),
    ):
        (tmp_path / "all.txt").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            paths(tmp_path / "all.txt")
    for label, message in (("9" * 19, "too large for a number"), ("-1", "'-1'; write whole"), ("0.5", "'0.5'; write")):
        (tmp_path / "all.txt").write_text(f"0.png {label}")
        with pytest.raises(ValueError, match=message):
            paths(tmp_path / "all.txt")
    with pytest.raises(ValueError, match="names more shards than 10000000"):
        expand(str(tmp_path / "x-{0..99999999999}.tar"))


@pytest.mark.parametrize("label", [b"9" * 5000, b"9" * 19, b"-1", b"1 2", b"\xb2"])
def test_labels_that_are_none(tmp_path, label):
    media.write_shard(tmp_path / "0.tar", {"0.jpg": media.jpeg(0), "0.cls": label})
    with pytest.raises(Unreadable, match=r"its label is .*, not a number"):
        Shards([tmp_path / "0.tar"], lambda file, choose: [], (".jpg",)).read(0, None)


def test_a_path_with_a_null_byte_is_skipped():
    with pytest.raises(Unreadable, match="null byte"):
        Files(["a\0b.png"], None, None).read(0, None)
