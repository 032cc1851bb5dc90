"""Where samples come from: list files, shards, videos, rendered scenes and the photographs of scikit-image."""

import io
import tarfile

import media
import numpy as np
import pytest
import torch
from test_data import assert_same, batches, clips, images

from maskfeat.config import Pretrain
from maskfeat.data.decode import frame_numbers
from maskfeat.data.headers import FILE, members
from maskfeat.data.loader import make_loader
from maskfeat.data.source import PHOTOGRAPHS, expand
from maskfeat.data.synthetic import Scenes


def pictures(data, **changes):
    """To pre-train on, with or without labels."""
    return Pretrain(data=str(data), image_size=16, mask_ratio=1, **changes)


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", "])
def test_list_file(tmp_path, separator):
    lines = []
    for i in range(4):
        media.write_image(tmp_path / "pictures of cats" / f"{i}.png", i)
        lines.append(f"pictures of cats/{i}.png{separator}{i + 3}")
    (tmp_path / "val.txt").write_text("\n".join(lines) + "\n\n")
    for recipe in (images(tmp_path), images(tmp_path / "{split}.txt"), images("x", val_data=str(tmp_path / "val.txt"))):
        assert [batch["labels"].tolist() for batch in batches(recipe, "val")] == [[3, 4, 5, 6]]


def test_list_file_without_labels_and_with_missing_files(tmp_path, caplog):
    media.write_image(tmp_path / "0.png", 0)
    (tmp_path / "all.txt").write_text("0.png\nmissing.png\n")
    loader = make_loader(pictures(tmp_path / "all.txt", batch_size=2), "train", seed=0)
    [batch] = list(loader)
    assert "labels" not in batch and len(batch["images"]) == 2
    assert loader.skipped >= 1 and "FileNotFoundError" in caplog.text
    (tmp_path / "some.txt").write_text("0.png 3\nmissing.png\n")
    with pytest.raises(ValueError, match=r"missing.png in .*some.txt has no label"):
        batches(images(tmp_path / "some.txt"))


def test_shards(tmp_path, caplog):
    for shard in range(3):
        samples = {}
        for i in range(4):
            key = 4 * shard + i
            data = {"jpg": media.jpeg(key), "cls": str(key % 7).encode(), "json": b"{}"}
            samples |= {f"./{key:05}.{suffix}": value for suffix, value in data.items()}
        media.write_shard(tmp_path / f"train-{shard:02}.tar", samples)
    recipe = images(tmp_path / "train-{00..02}.tar")
    loaded = batches(recipe)
    assert sorted(torch.cat([batch["labels"] for batch in loaded]).tolist()) == sorted(key % 7 for key in range(12))
    for same in (tmp_path, tmp_path / "*.tar", tmp_path / "{split}-*.tar"):
        assert_same(loaded, batches(images(same)))
    assert_same(loaded, batches(recipe, workers=2))
    assert not caplog.records
    with pytest.raises(FileNotFoundError, match=r"2 of 5 shards .* are missing, the first is .*train-03\.tar"):
        batches(images(tmp_path / "train-{00..04}.tar"))
    with pytest.raises(FileNotFoundError, match=r"it names no split; val_data=\.\.\."):
        batches(recipe, "val")


def test_shards_of_video(tmp_path):
    video = media.write_video(tmp_path / "0.mp4", frames=40).read_bytes()
    samples = {"a/x.mp4": video, "a/x.cls": b" 7 \n", "b/x.mp4": video[:99], "b/x.cls": b"3"}
    media.write_shard(tmp_path / "val" / "0.tar", samples)
    loader = make_loader(clips(tmp_path), "val", seed=0)
    [batch] = list(loader)
    assert batch["labels"].tolist() == [7] and loader.skipped == 1
    assert media.shown(batch["images"][0, :, 0]) == frame_numbers(40, 30, frames=4, step=4)[0, 0]


def test_a_key_of_a_shard_has_one_image(tmp_path):
    """Its mask, whose suffix is longer, is another file of the sample."""
    samples = {"0.mask.png": media.jpeg(1), "0.jpg": media.jpeg(0), "0.0.jpg": media.jpeg(2), "0.cls": b"3"}
    media.write_shard(tmp_path / "val" / "0.tar", samples)
    [batch] = batches(images(tmp_path), "val")
    media.write_image(tmp_path / "plain" / "val" / "0" / "0.png", 0)
    (tmp_path / "plain" / "val" / "0" / "0.png").write_bytes(media.jpeg(0))
    assert torch.equal(batch["images"], batches(images(tmp_path / "plain"), "val")[0]["images"])
    media.write_shard(tmp_path / "two" / "val" / "0.tar", samples | {"0.PNG": media.jpeg(1)})
    with pytest.raises(ValueError, match=r"0.tar holds two files .*\.png.* of one key, the later is 0\.PNG"):
        batches(images(tmp_path / "two"), "val")
    media.write_shard(tmp_path / "dots" / "val" / "0.tar", {"0.1.jpg": media.jpeg(1)})
    with pytest.raises(FileNotFoundError, match=r"no files KEY\.jpg, .*, KEY without a dot, in .*0\.tar"):
        batches(images(tmp_path / "dots"), "val")


def test_labels_of_shards_are_looked_at_as_they_come(tmp_path):
    """A sample without one has -1, none is too large for a classifier, and a shard that is gone costs its samples."""
    for i in range(2):
        media.write_shard(
            tmp_path / "val" / f"{i}.tar", {"0.jpg": media.jpeg(0), "1.jpg": media.jpeg(1), "1.cls": b"7"}
        )
    found = batches(pictures(tmp_path, batch_size=4), "val")
    assert [batch["labels"].tolist() for batch in found] == [[-1, 7, -1, 7]]
    loader = make_loader(images(tmp_path), "val", seed=0)
    assert [batch["labels"].tolist() for batch in loader] == [[7, 7]] and loader.skipped == 2
    with pytest.raises(ValueError, match=r"sample 1 of .* has the label 7, but classes=5"):
        batches(images(tmp_path, classes=5), "val")
    (tmp_path / "val" / "0.tar").unlink()
    loader = make_loader(images(tmp_path), "val", seed=0)
    assert [batch["labels"].tolist() for batch in loader] == [[7]] and loader.skipped == 3
    media.write_shard(tmp_path / "none" / "val" / "0.tar", {"0.jpg": media.jpeg(0)})
    with pytest.raises(ValueError, match="a classifier needs labels"):
        make_loader(images(tmp_path / "none"), "val", seed=0)


def test_ranges_of_shards(tmp_path):
    names = [f"x-{i:02}.tar" for i in range(8, 12)]
    for name in names:
        media.write_shard(tmp_path / name, {})
    assert [path.name for path in expand(f"{tmp_path}/x-{{08..11}}.tar")] == names
    assert [path.name for path in expand(f"{tmp_path}/x-*.tar")] == names
    assert expand(f"{tmp_path}/y-{{08..11}}.tar") == expand(f"{tmp_path}/y-*.tar") == []


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path, form):
    sizes = {"a.jpg": 3, f"{'d' * 60}/{'e' * 60}.jpg": 512, "folder": None, "\u00fc.jpg": 0, "b.cls": 1500}
    with tarfile.open(tmp_path / "0.tar", "w", format=form) as tar:
        for name, size in sizes.items():
            member = tarfile.TarInfo(name)
            member.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            member.type, member.size = tarfile.DIRTYPE if size is None else tarfile.REGTYPE, size or 0
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    with tarfile.open(tmp_path / "0.tar") as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isfile()]
    found = [
        (m.path, m.offset, m.size) for m in members(io.BytesIO((tmp_path / "0.tar").read_bytes())) if m.kind == FILE
    ]
    assert found == expected and len(expected) == 4
    whole = (tmp_path / "0.tar").read_bytes()
    for share in (100, 514, 3000):
        (tmp_path / "1.tar").write_bytes(whole[:share])
        with pytest.raises(tarfile.ReadError, match=r"ends within a member|no tar header|checksum"):
            list(members(io.BytesIO((tmp_path / "1.tar").read_bytes())))


def test_damaged_shards(tmp_path, caplog):
    good = {f"{i}.jpg": media.jpeg(i) for i in range(8)}
    media.write_shard(tmp_path / "0.tar", good | {"5.jpg": b"no jpeg"})
    media.truncate(media.write_shard(tmp_path / "1.tar", good), 0.33)
    loader = make_loader(pictures(tmp_path / "{0..1}.tar", batch_size=2), "train", seed=0)
    assert len(list(loader)) == len(loader) >= 4
    assert loader.skipped >= 1 and "0.tar:5" in caplog.text and "1.tar is damaged after" in caplog.text


def test_video_clips_are_the_frames_that_were_asked_for(tmp_path):
    media.write_video(tmp_path / "val" / "a" / "0.mp4", frames=60)
    [batch] = batches(clips(tmp_path), "val")
    assert batch["images"].shape == (1, 3, 4, 16, 16) and batch["labels"].tolist() == [0]
    # 16 of 60 frames from the middle: 22 to 37
    assert [media.shown(batch["images"][0, :, t]) for t in range(4)] == [22, 27, 32, 37]
    recipe = clips(tmp_path, test_clips=3)
    [batch] = batches(recipe, "test")
    assert batch["images"].shape == (3, 3, 4, 16, 16) and batch["labels"].tolist() == [0]
    starts = [[media.shown(clip[:, t]) for t in range(4)] for clip in batch["images"]]
    assert starts == [[0, 5, 10, 15], [22, 27, 32, 37], [44, 49, 54, 59]]


@pytest.mark.parametrize("name, options", [("0.mkv", {}), ("0.avi", {"codec": "mpeg4"}), ("0.mp4", {"bf": "3"})])
def test_containers_and_rates(tmp_path, name, options):
    """At 15 frames per second a step of 4 is a step of 2."""
    media.write_video(tmp_path / "val" / name, frames=60, rate=15, **options)
    recipe = pictures(tmp_path, batch_size=1, encoder="mvit", size="tiny", frames=4, mask="cube")
    [batch] = batches(recipe, "val")
    expected = frame_numbers(60, 15, frames=4, step=4)[0].tolist()
    assert expected == [26, 28, 30, 33]
    shown = [media.shown(batch["images"][0, :, t]) for t in range(4)]
    assert max(abs(a - b) for a, b in zip(shown, expected, strict=True)) <= 1


def test_frame_numbers():
    assert frame_numbers(100, 30, frames=4, step=8).tolist() == [[34, 44, 54, 65]]
    assert frame_numbers(10, 30, frames=4, step=8).tolist() == [[0, 9, 9, 9]]
    assert frame_numbers(100, 30, frames=16, step=4, clips=10)[:, 0].tolist() == [4 * i for i in range(10)]
    assert frame_numbers(17, 30, frames=4, step=1, sampling="uniform").tolist() == [[2, 6, 10, 14]]
    rng = np.random.default_rng(0)
    starts = [frame_numbers(100, 30, frames=4, step=4, rng=rng)[0] for _ in range(200)]
    assert min(start[0] for start in starts) < 3 and max(start[-1] for start in starts) > 96
    uniform = np.stack([frame_numbers(17, 30, frames=4, step=1, sampling="uniform", rng=rng)[0] for _ in range(200)])
    assert uniform.min(0).tolist() == [0, 4, 8, 12] and uniform.max(0).tolist() == [3, 7, 11, 15]


def test_video_of_a_csv_and_damaged_ones(tmp_path, caplog):
    """As Kinetics comes: a csv of paths and labels for each split."""
    for i in range(4):
        media.write_video(tmp_path / "videos" / f"{i}.mp4", frames=40)
    media.truncate(tmp_path / "videos" / "1.mp4", 0.2)
    (tmp_path / "videos" / "2.mp4").write_bytes(b"")
    media.write_image(tmp_path / "videos" / "still.png", 0).rename(tmp_path / "videos" / "3.mp4")
    (tmp_path / "train.csv").write_text("".join(f"videos/{i}.mp4 {i}\n" for i in range(4)))
    loader = make_loader(clips(tmp_path), "train", seed=0)
    loaded = list(loader)
    assert len(loaded) == 2 and all(batch["images"].shape == (2, 3, 4, 16, 16) for batch in loaded)
    assert loader.skipped == len(caplog.records) >= 2
    assert "1.mp4 (" in caplog.text and "2.mp4 (" in caplog.text


@pytest.mark.parametrize("recipe", [images, clips])
def test_synthetic_scenes(recipe):
    made = recipe("synthetic", samples=40, batch_size=20, image_size=32, test_size=0)
    loaded = batches(made)
    assert_same(loaded, batches(made, workers=2))
    assert torch.cat([batch["labels"] for batch in loaded]).bincount().tolist() == [4] * 10
    held_out = torch.cat([batch["images"] for batch in batches(made, "val")])
    assert len(held_out) == 10 and held_out.shape[1:] == loaded[0]["images"].shape[1:]
    assert held_out.float().flatten(1).std(1).min() > 1
    if recipe is clips:
        assert all((clip[:, 0] != clip[:, -1]).any() for clip in held_out)


def test_scenes_differ_in_light_and_between_splits():
    scenes = {split: Scenes(split, (32, 32), False) for split in ("train", "val")}
    frames = {split: [source.read(i, None)[0][0][0] for i in range(40)] for split, source in scenes.items()}
    assert all(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in zip(*frames.values(), strict=True))
    brightness = [np.asarray(frame).mean() for frame in frames["train"]]
    contrast = [np.asarray(frame).std() for frame in frames["train"]]
    assert max(brightness) > 2 * min(brightness) and max(contrast) > 5 * min(contrast)


def test_photographs():
    recipe = Pretrain(data="skimage", image_size=32, batch_size=16, samples=32)
    loaded = batches(recipe)
    assert len(loaded) == 2 and loaded[0]["images"].shape == (16, 3, 32, 32) and "labels" not in loaded[0]
    assert len(batches(recipe, "val")[0]["images"]) == len(PHOTOGRAPHS["val"])
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["val"])
    with pytest.raises(ValueError, match="no clips"):
        batches(clips("skimage"))
