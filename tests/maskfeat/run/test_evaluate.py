"""The accuracies and the features, each against a plain computation."""

import json

import media
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from test_finetune import MEAN, STD, recipe
from torch import nn

from maskfeat import MViT, VisionTransformer
from maskfeat.config import Pretrain
from maskfeat.data.loader import make_loader
from maskfeat.run.distributed import World, join
from maskfeat.run.evaluate import classifier_accuracy, export_features, feature_maps, features, knn, knn_accuracy
from maskfeat.run.step import normalise

ALONE = World(0, 1, torch.device("cpu"), None)


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
    result = classifier_accuracy(model, make_loader(r, "val", seed=0), r, ALONE)
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
    whole = classifier_accuracy(Brightness(), make_loader(r, "val", seed=0), r, ALONE)
    shares = [
        classifier_accuracy(Brightness(), make_loader(r, "val", seed=0, rank=i, world=2), r, ALONE) for i in range(2)
    ]
    assert [share["samples"] for share in shares] == [5, 4]
    for name in ("val_loss", "top1", "top5"):
        total = sum(share[name] * share["samples"] for share in shares)
        assert total / 9 == pytest.approx(whole[name], rel=1e-5)
    monkeypatch.setattr(dist, "all_reduce", lambda sums: sums.mul_(2))  # as if the other rank held the same
    first = make_loader(r, "val", seed=0, rank=0, world=2)
    both = classifier_accuracy(Brightness(), first, r, World(0, 2, torch.device("cpu"), None))
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
    result = classifier_accuracy(model, loader, r, ALONE)
    assert result["samples"] == 2 and result["val_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_evaluate_needs_labelled_samples(tmp_path):
    for path in folder_of_greys(tmp_path, "val", [0, 60]).glob("val/*/*"):
        path.write_text("damaged")
    r = recipe(data=str(tmp_path))
    with pytest.raises(ValueError, match="no labelled sample"):
        classifier_accuracy(Brightness(), make_loader(r, "val", seed=0), r, ALONE)


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
        accuracy = knn(Circle(), loaders, k, ALONE)
        assert accuracy == right / 9
    assert 0 < accuracy < 1

    media.write_image(tmp_path / "flat" / "val" / "0.png", 0)
    flat = make_loader(Pretrain(data=str(tmp_path / "flat"), image_size=16, mask_ratio=1), "val", seed=0)
    with pytest.raises(ValueError, match="kNN accuracy needs labels"):
        knn(Circle(), (loaders[0], flat), 1, ALONE)


def test_features_of_the_samples_that_have_labels(tmp_path, caplog):
    samples = {f"{i}.jpg": media.jpeg(i) for i in range(5)} | {"1.cls": b"4", "3.cls": b"2"}
    media.write_shard(tmp_path / "val" / "0.tar", samples)
    r = Pretrain(data=str(tmp_path), image_size=16, batch_size=1, mask_ratio=1)
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
    loader = make_loader(recipe(data=str(tmp_path)), "val", seed=0)
    found, labels = features(Brightness(), loader, "cpu")
    assert len(found) == len(labels) == 0
    with pytest.raises(ValueError, match=r"no sample of .* that can be read has one"):
        knn(Brightness(), (loader, loader), 1, ALONE)


@pytest.mark.parametrize("samples, knn_samples, expected", [(24_001, 0, 24_001), (24_000, 20, 20), (8, 16, 8)])
def test_neighbours_are_looked_for_among_as_many_as_wanted(monkeypatch, samples, knn_samples, expected):
    r = Pretrain(image_size=16, batch_size=8, mask_ratio=1, samples=samples, knn_samples=knn_samples, workers=0)
    monkeypatch.setattr("maskfeat.run.evaluate.knn", lambda encoder, loaders, k, world: len(loaders[0].batches.order))
    with join("cpu") as world:
        assert knn_accuracy(nn.Identity(), r, world) == expected
