"""Augmentation, averaged weights, and the accuracies, each against a plain computation."""

import copy
import json

import media
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from maskfeat import MViT, VisionTransformer
from maskfeat.augment import CHANGES, erase, mix, rand_augment, random_window, smooth_labels
from maskfeat.config import Finetune, Pretrain
from maskfeat.data import make_loader, normalise
from maskfeat.distributed import World, join
from maskfeat.evaluate import knn_accuracy
from maskfeat.finetune import (
    EMA,
    evaluate,
    export_features,
    feature_maps,
    features,
    host_rng,
    knn,
    train_step_inputs,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (124, 116, 104)
ALONE = World(0, 1, torch.device("cpu"), None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(samples=6, classes=5, shape=(3, 16, 16)):
    images = torch.randint(0, 256, (samples, *shape), dtype=torch.uint8, generator=generator())
    return {"images": images, "labels": torch.arange(samples) % classes}


def recipe(**changes):
    return Finetune(**{"image_size": 16, "batch_size": 8, "classes": 5, "precision": "fp32", "test_size": 20} | changes)


def changed(name, level, sign=1):
    picture = media.picture(0, 40, 30)
    return picture, CHANGES[name](level, sign, Image.Resampling.NEAREST, FILL)(picture)


def test_colour_changes_are_those_of_pillow():
    for name, reference in {
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "invert": ImageOps.invert,
        "posterize": lambda p: ImageOps.posterize(p, 2),
        "solarize": lambda p: ImageOps.solarize(p, 128),
        "solarize_add": lambda p: p.point([value + 55 if value < 128 else value for value in range(256)] * 3),
        "color": lambda p: ImageEnhance.Color(p).enhance(1.45),
        "contrast": lambda p: ImageEnhance.Contrast(p).enhance(1.45),
        "brightness": lambda p: ImageEnhance.Brightness(p).enhance(1.45),
        "sharpness": lambda p: ImageEnhance.Sharpness(p).enhance(1.45),
    }.items():
        picture, result = changed(name, 0.5)
        assert np.array_equal(result, reference(picture)), name
        assert not np.array_equal(result, picture), name


def test_geometric_changes_move_by_a_share_of_the_picture():
    for sign in (1, -1):
        picture, result = changed("translate_x", 0.5, sign)  # 0.225 of 40 pixels
        before, after = np.asarray(picture), np.asarray(result)
        inside, filled = (slice(0, 31), slice(31, 40)) if sign == 1 else (slice(9, 40), slice(0, 9))
        assert np.array_equal(after[:, inside], before[:, 9:] if sign == 1 else before[:, :31])
        assert (after[:, filled] == FILL).all()
    picture, result = changed("translate_y", 2 / 3)  # 0.3 of 30 pixels
    assert (np.asarray(result)[21:] == FILL).all() and (np.asarray(result)[20] == np.asarray(picture)[29]).all()
    picture, result = changed("rotate", 1.0)
    assert np.array_equal(result, picture.rotate(30, fillcolor=FILL))
    for name in ("shear_x", "shear_y"):
        picture, result = changed(name, 1.0)
        assert (np.asarray(result) == FILL).all(-1).mean() == pytest.approx(0.12, abs=0.04) or name == "shear_y"
        assert not np.array_equal(result, picture)


def test_rand_augment_changes_half_of_the_time_and_all_frames_alike():
    pictures = [media.picture(0), media.picture(0)]
    rng = np.random.default_rng(0)
    untouched = 0
    assert all(changed(name, 1.0)[1].size == (40, 30) for name in CHANGES), "the largest magnitude is in range"
    for _ in range(400):
        first, second = rand_augment(pictures, "m9-mstd0.5-inc1", "bicubic", FILL, rng)
        assert np.array_equal(first, second) and first.size == pictures[0].size
        untouched += first is pictures[0]
    assert untouched == pytest.approx(100, abs=35)
    assert not any(rand_augment(pictures, "m9-n40-inc1", "bilinear", FILL, rng)[0] is pictures[0] for _ in range(20))
    for policy in ("m9", "x3-inc1", "rand"):
        with pytest.raises(ValueError, match="rand_augment must"):
            rand_augment(pictures, policy, "bicubic", FILL, rng)


def test_random_windows_fit_even_where_no_draw_does():
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, width, height = random_window(30, 20, (0.08, 1.0), (0.75, 4 / 3), rng)
        assert 0 <= left <= 30 - width and 0 <= top <= 20 - height and width > 0 and height > 0
    assert random_window(100, 10, (0.9, 1.0), (0.75, 4 / 3), rng) == (43, 0, 13, 10)
    assert random_window(10, 100, (0.9, 1.0), (0.75, 4 / 3), rng) == (0, 43, 10, 13)


@pytest.mark.parametrize("shape", [(3, 20, 30), (3, 4, 20, 30)])
def test_erasing_fills_one_window_of_a_quarter_of_the_samples(shape):
    pixels = torch.full((400, *shape), 7.0)
    erased = erase(pixels, 0.25, np.random.default_rng(0), generator()) != 7.0
    assert 70 < erased.flatten(1).any(1).sum() < 130
    noise = pixels[erased]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    for sample in erased[erased.flatten(1).any(1)]:
        window = sample.flatten(0, -3)
        assert (window == window[0]).all(), "the window is the same in all channels and frames"
        rows, columns = window[0].any(1), window[0].any(0)
        assert torch.equal(window[0], rows[:, None] & columns[None, :])
        assert 0.01 < window[0].float().mean() < 0.36


def test_mixup_and_cutmix_mix_pixels_and_labels_by_the_same_share():
    pixels = torch.stack([torch.zeros(3, 20, 20), torch.ones(3, 20, 20)])
    labels = torch.eye(2)
    rng = np.random.default_rng(0)
    shares = {"mixup": [], "cutmix": []}
    for _ in range(300):
        mixed, soft = mix(pixels.clone(), labels, 0.8, 1.0, 0.5, rng)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), soft[:, 1])
        torch.testing.assert_close(soft.sum(1), torch.ones(2))
        kind = "cutmix" if set(mixed.unique().tolist()) <= {0.0, 1.0} else "mixup"
        shares[kind].append(soft[0, 1].item())
    assert len(shares["mixup"]) == pytest.approx(150, abs=35)
    assert np.mean(shares["mixup"]) == pytest.approx(0.5, abs=0.08)
    assert min(shares["cutmix"]) < 0.02 and max(shares["cutmix"]) > 0.7
    assert mix(pixels, labels, 0.0, 0.0, 0.5, rng) == (pixels, labels)


def test_smooth_labels():
    soft = smooth_labels(torch.tensor([2, 0]), 4, 0.1)
    torch.testing.assert_close(soft, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]))


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 4, 16, 16)])
def test_train_step_inputs(shape):
    data = batch(shape=shape)
    pixels, labels = train_step_inputs(data, recipe(), generator(1))
    assert pixels.shape == data["images"].shape and pixels.dtype == torch.float32
    torch.testing.assert_close(labels.sum(1), torch.ones(6))
    again = train_step_inputs(data, recipe(), generator(1))
    assert torch.equal(pixels, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(pixels, train_step_inputs(data, recipe(), generator(2))[0])
    one = generator(1)
    assert not torch.equal(train_step_inputs(data, recipe(), one)[0], train_step_inputs(data, recipe(), one)[0])

    plain = recipe(erasing=0.0, mixup=0.0, cutmix=0.0, label_smoothing=0.0)
    pixels, labels = train_step_inputs(data, plain, generator())
    assert torch.equal(pixels, normalise(data["images"], MEAN, STD))
    assert torch.equal(labels, F.one_hot(data["labels"], 5).float())
    never = train_step_inputs(data, recipe(erasing=0.0, mix_prob=0.0, label_smoothing=0.0), generator())
    assert torch.equal(never[0], pixels) and torch.equal(never[1], labels)
    with pytest.raises(ValueError, match="needs labels"):
        train_step_inputs({"images": data["images"]}, recipe(), generator())


def test_host_rng_follows_the_generator():
    first, second = generator(3), generator(3)
    assert host_rng(first).random() == host_rng(second).random() != host_rng(first).random()
    state = second.get_state()
    numbers = host_rng(second).random(5)
    second.set_state(state)
    assert np.array_equal(host_rng(second).random(5), numbers), "what is resumed goes on alike"


def test_ema_is_the_average():
    model = nn.Linear(3, 2)
    start = model.weight.detach().clone()
    ema = EMA(model, 0.9)
    expected = start.clone()
    for step in range(3):
        with torch.no_grad():
            model.weight += step + 1
        ema.update(model)
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    torch.testing.assert_close(ema.state_dict()["weight"], expected)
    other = EMA(nn.Linear(3, 2), 0.9)
    other.load_state_dict(copy.deepcopy(ema.state_dict()))
    assert all(torch.equal(other.average[name], ema.average[name]) for name in ema.average)
    with pytest.raises(ValueError, match=r"of another model: bias, weight"):
        other.load_state_dict({})


class Brightness(nn.Module):
    """Class scores from the mean of the pixels: the higher, the higher the class."""

    def __init__(self, classes=5):
        super().__init__()
        self.centres = nn.Parameter(torch.linspace(-2, 2, classes))

    def forward(self, pixels):
        return -10 * (pixels.flatten(1).mean(1, keepdim=True) - self.centres).square()


def folder_of_greys(root, split, greys, size=(20, 20)):
    for label, grey in enumerate(greys):
        for i in range(3):
            path = root / split / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (min(grey + 2 * i, 255),) * 3).save(path)
    return root


def test_evaluate_against_a_plain_loop(tmp_path):
    r = recipe(data=str(folder_of_greys(tmp_path, "val", [0, 60, 130, 140, 250])), batch_size=4)
    model = Brightness().train()
    result = evaluate(model, make_loader(r, "val", seed=0), r, ALONE)
    assert model.training, "the model is left as it was"
    loss, first, count = 0.0, 0, 0
    for data in make_loader(r, "val", seed=0):
        scores = model(normalise(data["images"], MEAN, STD))
        loss += F.cross_entropy(scores, data["labels"], reduction="sum").item()
        first += int((scores.argmax(1) == data["labels"]).sum())
        count += len(scores)
    assert count == result["samples"] == 15 and result["top5"] == 1.0
    assert result["top1"] == first / count and 0 < result["top1"] < 1
    assert result["val_loss"] == pytest.approx(loss / count, rel=1e-4)


def test_evaluate_of_two_ranks_counts_every_sample_once(tmp_path, monkeypatch):
    """The shares of two ranks, one of which has a batch less, add up, and are added."""
    r = recipe(data=str(folder_of_greys(tmp_path, "val", [0, 60, 130])), batch_size=4)
    whole = evaluate(Brightness(), make_loader(r, "val", seed=0), r, ALONE)
    shares = [evaluate(Brightness(), make_loader(r, "val", seed=0, rank=i, world=2), r, ALONE) for i in range(2)]
    assert [share["samples"] for share in shares] == [5, 4]
    for name in ("val_loss", "top1", "top5"):
        total = sum(share[name] * share["samples"] for share in shares)
        assert total / 9 == pytest.approx(whole[name], rel=1e-5)
    monkeypatch.setattr(dist, "all_reduce", lambda sums: sums.mul_(2))  # as if the other rank held the same
    first = make_loader(r, "val", seed=0, rank=0, world=2)
    both = evaluate(Brightness(), first, r, World(0, 2, torch.device("cpu"), None))
    assert both == {**shares[0], "samples": 10, "val_loss": pytest.approx(shares[0]["val_loss"])}


def test_evaluate_averages_the_probabilities_of_the_views(tmp_path):
    """Ten clips of a video that gets brighter."""
    media.write_video(tmp_path / "val" / "0" / "0.mp4", frames=70)
    media.write_video(tmp_path / "val" / "1" / "0.mp4", frames=70)
    video = dict(encoder="mvit", size="tiny", frames=4, frame_step=4, mean=(0.45,) * 3, std=(0.225,) * 3)
    r = recipe(data=str(tmp_path), test_clips=10, batch_size=10, **video)
    loader = make_loader(r, "test", seed=0)
    [first, second] = list(loader)
    assert first["images"].shape == (10, 3, 4, 16, 16) and first["labels"].tolist() == [0]
    model = Brightness()
    losses = [
        -model(normalise(data["images"], r.mean, r.std)).softmax(1).mean(0)[data["labels"][0]].log().item()
        for data in (first, second)
    ]
    result = evaluate(model, loader, r, ALONE)
    assert result["samples"] == 2 and result["val_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_evaluate_needs_labelled_samples(tmp_path):
    for path in folder_of_greys(tmp_path, "val", [0, 60]).glob("val/*/*"):
        path.write_text("damaged")
    r = recipe(data=str(tmp_path))
    with pytest.raises(ValueError, match="no labelled sample"):
        evaluate(Brightness(), make_loader(r, "val", seed=0), r, ALONE)


def test_knn_against_a_plain_vote(tmp_path):
    """Features on the unit circle; a nearest neighbour by hand."""
    folder_of_greys(tmp_path, "train", [10, 110, 210])
    folder_of_greys(tmp_path, "val", [20, 150, 160])
    r = recipe(data=str(tmp_path), batch_size=9, flip=False, rand_augment="")

    class Circle(nn.Module):
        def forward(self, pixels):
            angle = pixels.flatten(1).mean(1)
            return 3 * torch.stack([angle.cos(), angle.sin()], 1)

    loaders = make_loader(r, "train", seed=0), make_loader(r, "val", seed=0)
    (bank, bank_labels), (queries, labels) = (features(Circle(), loader, "cpu") for loader in loaders)
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(9))
    for k in (1, 5, 100):
        right = 0
        for query, label in zip(queries, labels, strict=True):
            cosines = bank @ query
            nearest = cosines.argsort(descending=True)[:k]
            votes = [(cosines[nearest] / 0.07).exp()[bank_labels[nearest] == c].sum() for c in range(3)]
            right += int(np.argmax(votes)) == label
        accuracy = knn(Circle(), loaders, k, "cpu")
        assert accuracy == right / 9
    assert 0 < accuracy < 1

    media.write_image(tmp_path / "flat" / "val" / "0.png", 0)
    flat = make_loader(Pretrain(data=str(tmp_path / "flat"), image_size=16), "val", seed=0)
    with pytest.raises(ValueError, match="kNN accuracy needs labels"):
        knn(Circle(), (loaders[0], flat), 1, "cpu")


def test_features_of_the_samples_that_have_labels(tmp_path, caplog):
    samples = {f"{i}.jpg": media.jpeg(i) for i in range(5)} | {"1.cls": b"4", "3.cls": b"2"}
    media.write_shard(tmp_path / "val" / "0.tar", samples)
    r = Pretrain(data=str(tmp_path), image_size=16, batch_size=1)
    found, labels = features(Brightness(), make_loader(r, "val", seed=0), "cpu")
    assert labels.tolist() == [4, 2] and f"leaves out 3 samples of {tmp_path} that have no label" in caplog.text
    pixels = [normalise(data["images"], r.mean, r.std) for data in make_loader(r, "val", seed=0)]
    torch.testing.assert_close(found, F.normalize(torch.cat([Brightness()(pixels[i]) for i in (1, 3)]), dim=-1))


@pytest.mark.parametrize("video", [False, True])
def test_feature_maps_and_their_export(tmp_path, video):
    """The mean over the grid is what the trunk gives."""
    shape = dict(embed_dim=8, num_heads=1, depth=4)
    encoder = (
        MViT(num_frames=4, img_size=32, stages=(1, 2, 3), **shape)
        if video
        else VisionTransformer(img_size=32, patch_size=16, **shape)
    )
    for split in ("train", "val"):
        folder_of_greys(tmp_path, split, [0, 200], size=(40, 40))
    changes = dict(encoder="mvit", size="tiny", frames=4, data="synthetic") if video else dict(data=str(tmp_path))
    r = recipe(**{"image_size": 32, "batch_size": 4, "test_size": 36, "samples": 24, "classes": 10} | changes)
    loader = make_loader(r, "val", seed=0)
    export_features(encoder, loader, tmp_path / "features", "cpu")
    files = sorted((tmp_path / "features").iterdir())
    assert [file.name for file in files] == ["batch_000000.safetensors", "batch_000001.safetensors"]
    for file, data in zip(files, loader, strict=True):
        saved = load_file(file)
        pixels = normalise(data["images"], r.mean, r.std)
        maps = feature_maps(encoder, pixels)
        assert maps.shape[2:] == ((2, 2, 2) if video else (2, 2)) and maps.requires_grad
        torch.testing.assert_close(maps.flatten(2).mean(2), encoder(pixels))
        torch.testing.assert_close(saved["features"].float(), maps.detach(), rtol=1e-3, atol=1e-3)
        assert torch.equal(saved["labels"], data["labels"])


def test_exported_rows_name_their_samples(tmp_path):
    """Whatever was skipped, and however many views a sample has."""
    paths = sorted(folder_of_greys(tmp_path, "val", [0, 200], size=(40, 40)).glob("val/*/*.png"))
    paths[1].write_bytes(b"damaged")
    encoder = VisionTransformer(img_size=32, patch_size=16, embed_dim=8, num_heads=1, depth=1)
    r = recipe(data=str(tmp_path), image_size=32, batch_size=6, test_size=36, test_crops=3)
    export_features(encoder, make_loader(r, "test", seed=0), tmp_path / "features", "cpu")
    names, indices, labels = [], [], []
    for file in sorted((tmp_path / "features").iterdir()):
        with safe_open(file, framework="pt") as saved:
            names += json.loads(saved.metadata()["names"])
            indices += saved.get_tensor("indices").tolist()
            labels += saved.get_tensor("labels").tolist()
            assert len(saved.get_tensor("features")) == len(saved.get_tensor("indices"))
    assert indices == [i for i in (0, 2, 3, 4, 5) for _ in range(3)]
    assert names == [str(paths[i]) for i in indices] and labels == [i // 3 for i in indices]


def test_features_of_files_that_cannot_be_read(tmp_path):
    for path in folder_of_greys(tmp_path, "val", [0, 200]).glob("val/*/*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"no sample of .* that can be read has one"):
        features(Brightness(), make_loader(recipe(data=str(tmp_path)), "val", seed=0), "cpu")


@pytest.mark.parametrize("samples, knn_samples, expected", [(24_001, 0, 24_001), (24_000, 20, 20), (8, 16, 8)])
def test_neighbours_are_looked_for_among_as_many_as_wanted(monkeypatch, samples, knn_samples, expected):
    r = Pretrain(image_size=16, batch_size=8, mask_stride=16, samples=samples, knn_samples=knn_samples, workers=0)
    monkeypatch.setattr("maskfeat.evaluate.knn", lambda encoder, loaders, k, device: len(loaders[0].batches.order))
    with join("cpu") as world:
        assert knn_accuracy(nn.Identity(), r, world) == expected
