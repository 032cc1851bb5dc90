"""The data are those of the run: others of equal number are refused."""

import json
import shutil

import media
import pytest
from saved_checkpoint import legacy, loaded, refused, saved
from test_train import train_small

from maskfeat.data.fingerprint import fingerprint
from maskfeat.data.loader import _source
from maskfeat.data.source import DecodedOnce, open_source


def names_permuted(root):
    (root / "train" / "cat").rename(root / "train" / "zebra")


def other_file(root):
    (root / "train" / "cat" / "0.jpg").rename(root / "train" / "cat" / "0a.jpg")


def other_size(root):
    media.write_image(root / "train" / "cat" / "0.jpg", seed=9, width=80)


@pytest.mark.parametrize("change", [names_permuted, other_file, other_size])
def test_other_data_of_equal_number_are_refused(tmp_path, change):
    data = media.image_folder(tmp_path / "data", each=4)
    settings = ["samples=0", "steps=1", "eval_every=0", f"data={data}"]
    train_small(tmp_path / "out", *settings)
    change(data)
    _source.cache_clear()  # as in another process
    refused(lambda: train_small(tmp_path / "out", *settings), "other data than .* names, sizes or classes differ")


def test_fingerprints(tmp_path):
    """Of folders, lists and shards: the same wherever they are, others for other names, sizes, classes or orders."""

    def of(data):
        return fingerprint(open_source(str(data), "train", False, train_data=str(data)))

    folder = media.image_folder(tmp_path / "a", each=3)
    shutil.copytree(folder, tmp_path / "b" / "c")
    assert of(folder) == of(tmp_path / "b" / "c")
    kept = DecodedOnce(open_source(str(folder), "train", False, train_data=str(folder)), 1)
    assert fingerprint(kept) == of(folder)
    files = sorted((folder / "train").rglob("*.jpg"))
    lists = {}
    for name, lines in {
        "one": [f"{file.relative_to(folder)} {i % 2}" for i, file in enumerate(files)],
        "classes": [f"{file.relative_to(folder)} {(i + 1) % 2}" for i, file in enumerate(files)],
        "order": [f"{file.relative_to(folder)} {i % 2}" for i, file in enumerate(files)][::-1],
        "none": [f"{file.relative_to(folder)}" for file in files],
        "missing": [f"{file.relative_to(folder)}{'x' * (i == 1)} {i % 2}" for i, file in enumerate(files)],
    }.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
        lists[name] = of(folder / f"{name}.txt")
    (folder / "absolute.txt").write_text("\n".join(f"{file} {i % 2}" for i, file in enumerate(files)))
    assert of(folder / "absolute.txt") == lists["one"]
    samples = {"a.jpg": media.jpeg(1), "a.cls": b"0", "b.jpg": media.jpeg(2), "b.cls": b"1"}
    shards = [of(media.write_shard(tmp_path / f"{name}" / "s.tar", samples)) for name in ("x", "y")]
    assert shards[0] == shards[1]
    other = of(media.write_shard(tmp_path / "z" / "s.tar", {**samples, "a.cls": b"1", "b.cls": b"0"}))
    assert len({*lists.values(), of(folder), shards[0], other}) == len(lists) + 3


def test_what_cannot_be_read_is_named(tmp_path):
    """A file that is not there is one of the samples that are skipped. What cannot be told may be another next time."""
    folder = media.image_folder(tmp_path / "a", each=3)
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "list.txt").write_text("loop.jpg 0")
    with pytest.raises(OSError, match=r"/a/loop\.jpg"):
        fingerprint(open_source(str(folder / "list.txt"), "train", False, train_data=""))
    shard = media.write_shard(tmp_path / "s.tar", {"a.jpg": media.jpeg(1), "a.cls": b"0"})
    source = open_source(str(shard), "train", False, train_data=str(shard))
    shard.unlink()
    with pytest.raises(OSError, match=r"s\.tar"):
        fingerprint(source)


def test_old_checkpoints_without_a_fingerprint_go_by_the_number(tmp_path, world):
    path, checkpoints = saved(tmp_path / "out", world)
    (path / "run.json").write_text(json.dumps(legacy(path)))
    checkpoints.data = "other"
    assert loaded(checkpoints, path)[0] == 7
    checkpoints.samples = 4
    refused(lambda: loaded(checkpoints, path), "on 3 samples, and 'synthetic' now has 4")
