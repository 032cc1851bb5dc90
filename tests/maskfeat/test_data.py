"""Batches from real files: what is read, that nothing but the seed decides, and that damaged files cost no run."""

import dataclasses
import io
import logging
import pickle
import tarfile

import media
import numpy as np
import pytest
import torch
from PIL import Image

from maskfeat.config import Finetune, Pretrain
from maskfeat.data import HELD_OUT, TRAINING, make_loader, normalise, part_masks
from maskfeat.source import PHOTOGRAPHS, expand, frame_numbers, members
from maskfeat.synthetic import Scenes

PLAIN = dict(rand_augment="", erasing=0.0, mixup=0.0, cutmix=0.0, classes=10)


def images(data, **changes):
    options = {**PLAIN, "image_size": 16, "batch_size": 4, "crop_scale": (0.3, 1.0), "test_size": 20} | changes
    return Finetune(data=str(data), **options)


def clips(data, **changes):
    options = dict(encoder="mvit", size="tiny", frames=4, frame_step=4, batch_size=2, interpolation="bilinear")
    return images(data, **options | changes)


def batches(recipe, split="train", seed=0, **options):
    return list(make_loader(recipe, split, seed=seed, **options))


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_folder_of_images(tmp_path):
    media.image_folder(tmp_path, each=5)
    media.image_folder(tmp_path, each=3, split="val")
    loader = make_loader(images(tmp_path), "train", seed=0)
    assert len(loader) == 2  # of ten images the last two are dropped
    for batch in loader:
        assert batch["images"].shape == (4, 3, 16, 16) and batch["images"].dtype == torch.uint8
        assert batch["labels"].dtype == torch.int64 and set(batch["labels"].tolist()) <= {0, 1}
    held_out = batches(images(tmp_path), "val")
    assert [batch["labels"].tolist() for batch in held_out] == [[0, 0, 0, 1], [1, 1]]
    assert loader.skipped == 0


def test_samples_to_train_on_without_augmentation_are_all_of_them(tmp_path):
    """As the same files are read when they are held out: in order, the last batch smaller."""
    media.image_folder(tmp_path / "data", each=5)
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / "val").symlink_to(tmp_path / "data" / "train")
    recipe = images(tmp_path / "data", repeats=2)
    found = batches(recipe, augment=False)
    assert torch.cat([batch["indices"] for batch in found]).tolist() == list(range(10))
    assert_same(found, batches(images(tmp_path / "held_out"), "val"))
    assert [len(batch["labels"]) for batch in batches(images(tmp_path / "data", samples=5), augment=False)] == [4, 1]


def test_folders_without_images_are_no_classes(tmp_path):
    """Nor is what is hidden; the numbers of the classes stay as they are."""
    media.image_folder(tmp_path, each=4)
    media.image_folder(tmp_path, each=1, split="val")
    media.write_image(tmp_path / "train" / ".ipynb_checkpoints" / "0-checkpoint.jpg", 0)
    media.write_image(tmp_path / "val" / "dog" / ".trash" / "0.jpg", 0)
    for notes in ("train/.git", "train/cat_notes", "val/notes"):
        (tmp_path / notes).mkdir()
        (tmp_path / notes / "read.txt").write_text("no image")
    assert sorted(torch.cat([batch["labels"] for batch in batches(images(tmp_path))]).tolist()) == [0] * 4 + [1] * 4
    assert [batch["labels"].tolist() for batch in batches(images(tmp_path), "val")] == [[0, 1]]


def test_centre_crop_is_the_middle_of_the_resized_picture(tmp_path):
    path = media.write_image(tmp_path / "val" / "a" / "0.png", 3, width=60, height=40)
    [batch] = batches(images(tmp_path, interpolation="bicubic"), "val")
    resized = Image.open(path).resize((30, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(batch["images"][0].permute(1, 2, 0).numpy(), np.asarray(resized.crop((7, 2, 23, 18))))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_all_kinds_of_png_become_rgb(tmp_path, mode):
    """A ramp from black to white."""
    ramp = np.tile(np.linspace(0, 255, 20).astype(np.uint8), (20, 1))
    picture = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    (tmp_path / "val" / "a").mkdir(parents=True)
    picture.save(tmp_path / "val" / "a" / "0.png", **({"transparency": bytes(range(256))} if mode == "P" else {}))
    loader = make_loader(images(tmp_path, image_size=20), "val", seed=0)
    [batch] = list(loader)
    assert loader.skipped == 0 and batch["images"].shape == (1, 3, 20, 20)
    columns = batch["images"].float().mean((0, 1, 2))
    assert columns[0] < 10 and columns[-1] > 245 and (mode == "1" or abs(columns[10] - ramp[0, 10]) < 3)


def test_random_crops_keep_to_the_recipe(tmp_path):
    """A crop of a picture whose colours are its coordinates tells where it comes from."""
    x, y = np.meshgrid(np.arange(200), np.arange(100))
    (tmp_path / "train").mkdir()
    Image.fromarray(np.stack([x, 2 * y, 0 * x], -1).astype(np.uint8)).save(tmp_path / "train" / "0.png")
    recipe = Pretrain(data=str(tmp_path), batch_size=1, image_size=32, mask_stride=16, crop_scale=(0.2, 0.5))
    shares, aspects, mirrored = [], [], 0
    for epoch in range(200):
        [batch] = batches(recipe, epoch=epoch)
        assert "labels" not in batch
        columns, rows = batch["images"][0, 0].double().mean(0), batch["images"][0, 1].double().mean(1) / 2
        mirrored += bool(columns[0] > columns[-1])
        width, height = (abs(line[-3] - line[2]).item() * 32 / 27 for line in (columns, rows))
        shares.append(width * height / 20000)
        aspects.append(width / height)
    assert 0.17 < min(shares) < 0.25 and 0.45 < max(shares) < 0.55
    assert 0.7 < min(aspects) < 0.85 and 1.2 < max(aspects) < 1.45
    assert 70 < mirrored < 130


def test_order_and_crops_depend_on_seed_and_epoch_alone(tmp_path):
    recipe = images(media.image_folder(tmp_path, each=8))
    first = batches(recipe, seed=3, epoch=2)
    assert_same(first, batches(recipe, seed=3, epoch=2))
    for other in (batches(recipe, seed=4, epoch=2), batches(recipe, seed=3, epoch=1)):
        assert not torch.equal(first[0]["images"], other[0]["images"])
    assert sum(batch["labels"].sum() for batch in first) == 8  # every picture once


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(tmp_path, workers):
    recipe = images(media.image_folder(tmp_path, each=8))
    (tmp_path / "train" / "cat" / "0.jpg").write_text("damaged")
    state = torch.get_rng_state()
    assert_same(batches(recipe), batches(recipe, workers=workers))
    pickle.dumps(make_loader(recipe, "train", seed=0).batches)  # as workers get it where processes are not forked
    assert torch.equal(torch.get_rng_state(), state), "loading must not draw from the training's random numbers"


def test_goes_on_from_any_batch(tmp_path):
    recipe = images(media.image_folder(tmp_path, each=8))
    whole = batches(recipe, epoch=1)
    for start in range(1, 4):
        assert_same(whole[start:], batches(recipe, epoch=1, start=start))
    late = make_loader(recipe, "train", seed=0, start=3)
    assert len(late) == 4 and len(list(late)) == 1


def test_two_ranks_load_what_one_process_loads(tmp_path):
    recipe = images(media.image_folder(tmp_path, each=8))
    ranks = [batches(recipe, rank=rank, world=2) for rank in range(2)]
    joined = [{name: torch.cat([a[name], b[name]]) for name in a} for a, b in zip(*ranks, strict=True)]
    assert_same(batches(recipe), joined)
    parts = batches(images(tmp_path, accumulate=2))
    assert_same(batches(recipe), [
        {name: torch.cat([a[name], b[name]]) for name in a} for a, b in zip(parts[::2], parts[1::2], strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("compat", ["", "slowfast"])
def test_masks_come_with_the_batch_and_are_those_of_its_part(compat):
    """Of the second epoch of three steps in two parts, loaded by one rank or by two that take a part each."""
    recipe = Pretrain(
        image_size=64, patch_size=8, mask_stride=8, batch_size=8, accumulate=2, samples=24, mask_compat=compat
    )
    expected = [[part_masks(recipe, 4, TRAINING, 3 + step, part).mask for part in range(2)] for step in range(3)]
    alone = batches(recipe, epoch=1, workers=1)
    assert len(alone) == 6
    for i, batch in enumerate(alone):
        assert torch.equal(batch["masks"].mask, expected[i // 2][i % 2])
        if not compat:
            assert batch["masks"].ids.shape == (4, 26) and batch["masks"].weight is None
    together = dataclasses.replace(recipe, accumulate=1)
    for rank in range(2):
        shares = batches(together, epoch=1, rank=rank, world=2)
        assert all(torch.equal(b["masks"].mask, parts[rank]) for b, parts in zip(shares, expected, strict=True))
    held_out = batches(recipe, "val")[1]
    assert torch.equal(held_out["masks"].mask, part_masks(recipe, len(held_out["images"]), HELD_OUT, 1, 0).mask)
    assert "masks" not in batches(recipe, augment=False)[0]


def test_damaged_images_are_reported_and_replaced(tmp_path, caplog):
    media.image_folder(tmp_path, each=10)
    media.image_folder(tmp_path, each=4, split="val")
    bad = [
        media.truncate(tmp_path / "train" / "cat" / "0.jpg"),
        media.text_named_jpg(tmp_path / "train" / "dog" / "2.jpg"),
        media.truncate(tmp_path / "train" / "dog" / "3.png", 0.7),
    ]
    loader = make_loader(images(tmp_path), "train", seed=0)
    with caplog.at_level(logging.WARNING):
        found = list(loader)
    assert len(found) == 5 and all(len(batch["images"]) == len(batch["labels"]) == 4 for batch in found)
    assert loader.skipped == len(caplog.records) >= 3
    assert all(any(str(path) in record.getMessage() for record in caplog.records) for path in bad)

    media.text_named_jpg(tmp_path / "val" / "cat" / "0.jpg")
    held_out = make_loader(images(tmp_path), "val", seed=0)
    assert [batch["labels"].tolist() for batch in held_out] == [[0, 0, 0], [1, 1, 1, 1]] and held_out.skipped == 1


def test_a_batch_with_nothing_readable_is_left_out(tmp_path):
    media.image_folder(tmp_path, each=4, split="val")
    for path in (tmp_path / "val" / "cat").iterdir():
        media.text_named_jpg(path)
    held_out = make_loader(images(tmp_path), "val", seed=0)
    assert [batch["labels"].tolist() for batch in held_out] == [[1, 1, 1, 1]] and held_out.skipped == 4


def test_a_folder_of_nothing_but_damage_is_an_error(tmp_path):
    for i in range(4):
        media.text_named_jpg(media.write_image(tmp_path / "train" / "cat" / f"{i}.jpg", i))
    with pytest.raises(OSError, match=r"100 samples in a row could not be read, the last is .*\.jpg"):
        batches(images(tmp_path))


def test_labels_of_held_out_folders_are_those_of_training(tmp_path):
    media.image_folder(tmp_path / "a", classes=("ant", "bee", "cow"), each=2)
    media.image_folder(tmp_path / "a", classes=("cow",), each=2, split="val")
    media.image_folder(tmp_path / "b", classes=("bee",), each=2, split="")
    assert [batch["labels"].tolist() for batch in batches(images(tmp_path / "a"), "val")] == [[2, 2]]
    apart = images(tmp_path / "a", val_data=str(tmp_path / "b"))
    assert [batch["labels"].tolist() for batch in batches(apart, "val")] == [[1, 1]]
    media.image_folder(tmp_path / "c", classes=("yak",), each=2, split="")
    with pytest.raises(ValueError, match="'yak' that the training data have not"):
        batches(images(tmp_path / "a", val_data=str(tmp_path / "c")), "val")


def test_samples_are_spread_over_the_classes(tmp_path):
    media.image_folder(tmp_path, each=8)
    loaded = batches(images(tmp_path, samples=4))
    assert len(loaded) == 1 and sorted(loaded[0]["labels"].tolist()) == [0, 0, 1, 1]


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
    loader = make_loader(Pretrain(data=str(tmp_path / "all.txt"), batch_size=2, image_size=16), "train", seed=0)
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
    found = batches(Pretrain(data=str(tmp_path), batch_size=4, image_size=16), "val")
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
    assert list(members(tmp_path / "0.tar")) == expected and len(expected) == 4
    whole = (tmp_path / "0.tar").read_bytes()
    for share in (100, 514, 3000):
        (tmp_path / "1.tar").write_bytes(whole[:share])
        with pytest.raises(tarfile.ReadError, match=r"ends within a member|no tar header"):
            list(members(tmp_path / "1.tar"))


def test_damaged_shards(tmp_path, caplog):
    good = {f"{i}.jpg": media.jpeg(i) for i in range(8)}
    media.write_shard(tmp_path / "0.tar", good | {"5.jpg": b"no jpeg"})
    media.truncate(media.write_shard(tmp_path / "1.tar", good), 0.33)
    loader = make_loader(Pretrain(data=str(tmp_path / "{0..1}.tar"), batch_size=2, image_size=16), "train", seed=0)
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
    recipe = Pretrain(
        encoder="mvit", size="tiny", frames=4, mask="cube", data=str(tmp_path), image_size=16, batch_size=1
    )
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


def test_a_clip_keeps_crop_and_flip_and_repeats_differ(tmp_path):
    media.write_video(tmp_path / "train" / "a" / "0.mp4", frames=20)
    [batch] = batches(clips(tmp_path, repeats=2, rand_augment="m7-mstd0.5-inc1"))
    assert batch["images"].shape == (2, 3, 4, 16, 16) and batch["labels"].tolist() == [0, 0]
    assert not torch.equal(*batch["images"])
    with pytest.raises(ValueError, match="repeats=2"):
        batches(clips(tmp_path, repeats=2, batch_size=3))


def test_three_crops_lie_along_the_longer_side(tmp_path):
    gradient = np.tile(np.linspace(0, 255, 80).astype(np.uint8)[None, :, None], (40, 1, 3))
    (tmp_path / "val" / "a").mkdir(parents=True)
    Image.fromarray(gradient).save(tmp_path / "val" / "a" / "0.png")
    [batch] = batches(images(tmp_path, test_crops=3), "test")
    assert batch["images"].shape == (3, 3, 16, 16) and batch["labels"].tolist() == [0]
    means = batch["images"].float().mean((1, 2, 3))
    assert means[0] < 60 and 120 < means[1] < 135 and means[2] > 195


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
    frames = {split: [Scenes(split, 32, False).read(i, None)[0][0][0] for i in range(40)] for split in ("train", "val")}
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


def test_normalise():
    x = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    offset, scale = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1, 1) for values in (mean, std))
    expected = (x.double() / 255 - offset) / scale
    for pixels, wanted in ((x, expected), (x[:, :, 0], expected[:, :, 0])):
        values = normalise(pixels, mean, std)
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.double(), wanted, rtol=1e-6, atol=1e-6)


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no train data in .*nowhere.*train\.csv"):
        batches(images(tmp_path / "nowhere"))
    media.image_folder(tmp_path, each=2)
    with pytest.raises(FileNotFoundError, match=r"no val data in .*validation.*val_data.*eval_every=0"):
        batches(images(tmp_path), "val")
    with pytest.raises(ValueError, match=r"4 samples to train on, fewer than one batch of 8 .* smaller batch_size"):
        batches(images(tmp_path, batch_size=8))
    with pytest.raises(ValueError, match="has labels up to 1, but classes=1; set classes=2"):
        make_loader(images(tmp_path, classes=1), "train", seed=0)
    with pytest.raises(ValueError, match="a classifier needs labels, and 'skimage' has none"):
        make_loader(images("skimage"), "train", seed=0)
    with pytest.raises(ValueError, match="split must be"):
        make_loader(images(tmp_path), "dev", seed=0)
    with pytest.raises(FileNotFoundError, match=r"there are no files \.mp4"):
        batches(clips(tmp_path))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists no files"):
        batches(images(tmp_path / "empty.txt"))
