"""Targets: values, element order and loss of each kind, for images, video, rectangles and several patch sizes."""

import os

import numpy as np
import pytest
import slow_maskfeat
import torch
from PIL import Image
from torch import nn

from benchmarks.cases.memory import peak_bytes
from maskfeat import FeatureTarget, HogTarget, Masks, MixTarget, PixelTarget, TokenTarget, make_masks
from maskfeat.target import cell_size


def crop(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def normalised(images):
    return (images.float() / 255 - 0.45) / 0.225


def random_masks(batch, grid, ratio=0.5):
    return make_masks("random", batch, grid, ratio, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "patch, cell, dim", [(16, 8, 108), (14, 7, 108), (32, 8, 432), (8, 8, 27), (12, 6, 108), (4, 4, 27)]
)
def test_hog_of_patches_of_many_sizes(patch, cell, dim):
    images, masks = crop(2, 3, 3 * patch, 5 * patch), random_masks(2, (3, 5))
    target = HogTarget(patch)
    assert target.spec.cell == (cell, cell) and target.dim == dim and cell_size(patch) == cell
    values = target(normalised(images), images, masks)
    expected = slow_maskfeat.hog_labels(images, patch, cell)[masks.mask].view_as(values)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)


def test_hog_of_video_takes_the_centre_frame_of_each_token():
    video, masks = crop(2, 3, 8, 32, 48), random_masks(2, (4, 2, 3))
    values = HogTarget(16, temporal_stride=2)(normalised(video), video, masks)
    frames = video[:, :, ::2].transpose(1, 2)
    expected = slow_maskfeat.hog_labels(frames.flatten(0, 1), 16).unflatten(0, (2, 4))[masks.mask].view_as(values)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)


def test_hog_spec_can_be_chosen():
    images, masks = crop(2, 1, 32, 32), random_masks(2, (2, 2))
    target = HogTarget(16, spec=HogTarget().spec.replace(bins=12, cell=4), channels=1)
    assert target.dim == 12 * 16 and target(images.float(), images, masks).shape == (2, 2, 192)


def test_pixels_of_images():
    """Order channel, row, column; mean and unbiased variance of the patch removed."""
    pixels, masks = normalised(crop(2, 3, 32, 48)), random_masks(2, (2, 3))
    values = PixelTarget(16)(pixels, None, masks)
    assert values.shape == (2, 3, 768)
    for b in range(2):
        for k, place in enumerate(masks.ids[b].tolist()):
            row, column = divmod(place, 3)
            patch = pixels[b, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].flatten().double()
            expected = (patch - patch.mean()) / (patch.var(unbiased=True) + 1e-6).sqrt()
            torch.testing.assert_close(values[b, k].double(), expected, rtol=1e-5, atol=1e-5)
    plain = PixelTarget(16, normalise=False)(pixels, None, masks)
    first = divmod(masks.ids[0, 0].item(), 3)
    assert torch.equal(
        plain[0, 0].view(3, 16, 16), pixels[0].unfold(1, 16, 16).unfold(2, 16, 16)[:, first[0], first[1]]
    )


def test_pixels_of_video():
    """Order row, column, channel, of every second frame."""
    pixels, masks = normalised(crop(2, 3, 4, 32, 48)), random_masks(2, (2, 2, 3))
    values = PixelTarget(16, temporal_stride=2, normalise=False)(pixels, None, masks)
    for b in range(2):
        for k, place in enumerate(masks.ids[b].tolist()):
            time, row, column = place // 6, place // 3 % 2, place % 3
            patch = pixels[b, :, 2 * time, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            assert torch.equal(values[b, k], patch.permute(1, 2, 0).flatten())


def test_loss_is_the_mean_over_the_elements_of_a_token():
    prediction, target = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    loss = HogTarget().loss(prediction, target)
    torch.testing.assert_close(loss, ((prediction - target) ** 2).mean(-1))
    assert HogTarget().loss(prediction.bfloat16(), target).dtype == torch.float32


def test_mix_adds_weighted_losses():
    images, masks = crop(2, 3, 32, 32), random_masks(2, (2, 2))
    pixels = normalised(images)
    hog, pixel = HogTarget(16), PixelTarget(16)
    mix = MixTarget([hog, pixel], [0.75, 0.25])
    prediction = torch.randn(2, 2, mix.dim)
    assert mix.dim == 108 + 768
    loss = mix.loss(prediction, mix(pixels, images, masks))
    hog_loss = hog.loss(prediction[..., :108], hog(pixels, images, masks))
    pixel_loss = pixel.loss(prediction[..., 108:], pixel(pixels, images, masks))
    torch.testing.assert_close(loss, 0.75 * hog_loss + 0.25 * pixel_loss)
    with pytest.raises(ValueError, match="2 targets"):
        MixTarget([hog, pixel], [1.0])


class Teacher(nn.Module):
    """One linear map of each patch of 8 pixels, plus dropout, which a frozen network must not apply."""

    def __init__(self, dim):
        super().__init__()
        self.proj, self.drop = nn.Conv2d(3, dim, 8, stride=8), nn.Dropout(0.5)

    def forward(self, pixels):
        return self.drop(self.proj(pixels)).flatten(2).transpose(1, 2)


def test_features_of_a_frozen_teacher():
    teacher = Teacher(6)
    target = FeatureTarget(teacher, 6).train()
    pixels, masks = torch.randn(2, 3, 16, 24), random_masks(2, (2, 3))
    values = target(pixels, None, masks)
    expected = teacher.proj(pixels).flatten(2).transpose(1, 2)[masks.mask.flatten(1)].view(2, 3, 6)
    torch.testing.assert_close(values, expected / expected.norm(dim=-1, keepdim=True))
    assert not values.requires_grad
    torch.testing.assert_close(FeatureTarget(teacher, 6, normalise=False)(pixels, None, masks), expected)


def test_a_frozen_network_moves_along_but_is_neither_trained_nor_saved():
    target = FeatureTarget(Teacher(6), 6)
    assert not list(target.parameters()) and not target.state_dict()
    holder = nn.ModuleList([target]).double()
    assert holder[0](torch.randn(1, 3, 8, 8).double(), None, random_masks(1, (1, 1), 1.0)).shape == (1, 1, 6)


def test_a_frozen_network_on_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"each of the 4 tokens of the grid \(2, 2\).*got \(1, 6, 6\)"):
        FeatureTarget(Teacher(6), 6)(torch.randn(1, 3, 16, 24), None, random_masks(1, (2, 2)))


def test_tokens_of_a_frozen_tokenizer():
    class Tokenizer(nn.Module):
        def forward(self, pixels):
            return pixels[:, 0, ::8, ::8].flatten(1).long()

    images, masks = crop(2, 3, 16, 24), random_masks(2, (2, 3))
    target = TokenTarget(Tokenizer(), 256)
    values = target(images.float(), images, masks)
    assert torch.equal(values.flatten(), images[:, 0, ::8, ::8][masks.mask].long())
    prediction = torch.randn(2, 3, 256)
    expected = -prediction.log_softmax(-1).gather(2, values.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(target.loss(prediction, values), expected)


def test_masks_on_another_grid_are_refused():
    images = crop(1, 3, 32, 48)
    for target in (HogTarget(16), PixelTarget(16)):
        with pytest.raises(
            ValueError, match=r"make a grid \(2, 3\), but the predicted features have the grid \(3, 2\)"
        ):
            target(normalised(images), images, random_masks(1, (3, 2)))
    with pytest.raises(ValueError, match="patches of 16 pixels"):
        HogTarget(16)(None, crop(1, 3, 40, 48), random_masks(1, (2, 3)))
    with pytest.raises(ValueError, match=r"got shape \(3, 32, 32\)"):
        HogTarget(16)(None, crop(3, 32, 32), random_masks(1, (2, 2)))


def test_no_masked_token_gives_no_target():
    images, masks = (
        crop(2, 3, 32, 32),
        Masks(torch.zeros(2, 2, 2, dtype=torch.bool), torch.zeros(2, 0, dtype=torch.int64)),
    )
    assert HogTarget(16)(normalised(images), images, masks).shape == (2, 0, 108)
    assert PixelTarget(16)(normalised(images), images, masks).shape == (2, 0, 768)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system keeps no resettable peak")
@pytest.mark.parametrize("video", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_hog_targets_need_no_memory_but_their_own(video):
    """Above it: what a thread keeps in its first-level cache, and whole pages."""
    shape, grid = ((2, 3, 8, 224, 224), (4, 14, 14)) if video else ((8, 3, 224, 224), (14, 14))
    images = crop(*shape)
    masks = make_masks("random", len(images), grid)
    target, results = HogTarget(16, 2 if video else 1), []

    def run():
        results.append(target(images, images, masks))

    run()  # loads the code
    peak = min(peak_bytes(run, "cpu")[1] for _ in range(3))  # other threads may allocate as well
    size = results[0].nbytes
    assert peak <= size + 128 * 1024 < images.nbytes / 2


def test_hog_of_the_brightness_is_that_of_pillows_gray_picture():
    images, masks = crop(2, 3, 32, 48), random_masks(2, (2, 3))
    gray = np.stack([Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L") for image in images])
    target = HogTarget(16, gray=True)
    expected = HogTarget(16, channels=1)(normalised(images), torch.from_numpy(gray).unsqueeze(1), masks)
    assert target.dim == 36 and torch.equal(target(normalised(images), images, masks), expected)
