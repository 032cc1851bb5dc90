"""Augmentation and averaged weights, each against a plain computation."""

import copy

import media
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import nn

from maskfeat.config import Finetune
from maskfeat.data.augment import CHANGES, erase, mix, rand_augment, random_window, smooth_labels
from maskfeat.run.finetune import EMA, host_rng, train_step_inputs
from maskfeat.run.step import normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (124, 116, 104)


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


def inputs(data, recipe, generator):
    return train_step_inputs(normalise(data["images"], MEAN, STD), data.get("labels"), recipe, generator)


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 4, 16, 16)])
def test_train_step_inputs(shape):
    data = batch(shape=shape)
    pixels, labels = inputs(data, recipe(), generator(1))
    assert pixels.shape == data["images"].shape and pixels.dtype == torch.float32
    torch.testing.assert_close(labels.sum(1), torch.ones(6))
    again = inputs(data, recipe(), generator(1))
    assert torch.equal(pixels, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(pixels, inputs(data, recipe(), generator(2))[0])
    one = generator(1)
    assert not torch.equal(inputs(data, recipe(), one)[0], inputs(data, recipe(), one)[0])

    plain = recipe(erasing=0.0, mixup=0.0, cutmix=0.0, label_smoothing=0.0)
    pixels, labels = inputs(data, plain, generator())
    assert torch.equal(pixels, normalise(data["images"], MEAN, STD))
    assert torch.equal(labels, F.one_hot(data["labels"], 5).float())
    never = inputs(data, recipe(erasing=0.0, mix_prob=0.0, label_smoothing=0.0), generator())
    assert torch.equal(never[0], pixels) and torch.equal(never[1], labels)
    with pytest.raises(ValueError, match="needs labels"):
        inputs({"images": data["images"]}, recipe(), generator())


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
