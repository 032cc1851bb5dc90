"""Batches from real files: what is read, that nothing but the seed decides, and that damaged files cost no run."""

import dataclasses
import logging
import pickle

import media
import numpy as np
import pytest
import torch
from PIL import Image

from maskfeat.config import Finetune, Pretrain
from maskfeat.data import source
from maskfeat.data.loader import HELD_OUT, TRAINING, make_loader, part_masks
from maskfeat.run.step import normalise

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
    loader = make_loader(images(tmp_path, image_size=20, patch_size=4), "val", seed=0)
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
    assert_same(whole[2:], list(late.at(1, 2)))
    assert_same(batches(recipe)[3:], list(late.at(1).at(0, 3)))


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
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.me").touch()
    with pytest.raises(FileNotFoundError, match=r"there are no files \.mp4"):
        batches(clips(tmp_path / "notes"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists no files"):
        batches(images(tmp_path / "empty.txt"))


def test_images_that_are_kept_decoded_are_the_same_and_decoded_once(tmp_path, monkeypatch):
    media.image_folder(tmp_path, each=5)
    recipe = images(tmp_path, workers=0)
    expected = batches(recipe) + batches(recipe, seed=1)
    decoded, read = [], source.Files.read
    monkeypatch.setattr(
        source.Files, "read", lambda self, index, choose: decoded.append(index) or read(self, index, choose)
    )
    kept = dataclasses.replace(recipe, cache_mb=1)
    assert_same(batches(kept) + batches(kept, seed=1), expected)
    assert len(decoded) == len(set(decoded))


def test_what_no_longer_fits_is_decoded_again():
    class Counted:
        reads = 0

        def read(self, index, choose):
            self.reads += 1
            return [[Image.new("RGB", (256, 512))]], index

    kept = source.DecodedOnce(Counted(), megabytes=1)  # two of these
    assert [kept.read(i, None)[1] for i in (0, 1, 2, 0, 1, 2)] == [0, 1, 2, 0, 1, 2]
    assert kept.source.reads == 4
