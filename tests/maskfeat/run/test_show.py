"""The panel: sizes, what is hidden, and that every predicted histogram is drawn where its patch is."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from maskfeat import HogTarget, MaskFeat, MixTarget, MViT, PixelTarget, VisionTransformer, make_masks
from maskfeat.config import IMAGENET
from maskfeat.run.show import GAP, MARGIN, panel, pictures
from maskfeat_kernels import MASKFEAT, fused_hog, hog_image

VIT = dict(img_size=(32, 48), patch_size=16, embed_dim=24, depth=2, num_heads=2)
MVIT = dict(num_frames=4, img_size=32, embed_dim=8, num_heads=1, depth=4, stages=(1, 2, 3), last_stride=1)


class Oracle(nn.Module):
    """A head that predicts the target exactly, whatever the features."""

    def __init__(self, target, images, masks):
        super().__init__()
        self.values = target(images.float() / 255, images, masks)

    def forward(self, features, depth):
        return self.values


def random_images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def model_and_input(target=None, video=False, patch=16):
    grid = (2, 2, 2) if video else (32 // patch, 48 // patch)
    masks = make_masks("random", 2, grid, 0.5, generator=torch.Generator().manual_seed(1))
    images = random_images(2, 3, 4, 32, 32) if video else random_images(2, 3, 32, 48)
    target = target or HogTarget(patch, temporal_stride=2 if video else 1)
    model = MaskFeat(MViT(**MVIT) if video else VisionTransformer(**VIT | {"patch_size": patch}), target)
    return model, images, masks


def shown(model, images, masks):
    return pictures(model, images, masks, **IMAGENET)


@pytest.mark.parametrize("video", [False, True])
def test_a_right_prediction_looks_like_the_target(video):
    model, images, masks = model_and_input(video=video)
    model.pred_head = Oracle(model.targets[0], images, masks)
    _, predicted, target, _ = shown(model, images, masks)
    hidden = masks.mask.view(2, -1, *masks.mask.shape[-2:]).repeat_interleave(32, 2).repeat_interleave(32, 3)
    hidden = hidden.unsqueeze(2).expand_as(target)
    torch.testing.assert_close(predicted[hidden], target[hidden])
    assert (predicted[~hidden] < 0.5).all() and target[~hidden].max() > 0.5


def test_the_target_is_the_hog_of_the_image():
    model, images, masks = model_and_input()
    _, _, target, original = shown(model, images, masks)
    assert torch.equal(target[:, 0, 1], hog_image(fused_hog(images, MASKFEAT)))
    assert torch.equal(original[:, 0, :, ::2, ::2], images / 255)


@pytest.mark.parametrize("video", [False, True])
def test_hidden_patches_are_grey_and_the_others_as_they_were(video):
    model, images, masks = model_and_input(video=video)
    masked, _, _, original = shown(model, images, masks)
    hidden = masks.mask.view(2, -1, *masks.mask.shape[-2:]).repeat_interleave(32, 2).repeat_interleave(32, 3)
    hidden = hidden.unsqueeze(2).expand_as(masked)
    assert (masked[hidden] == 0.5).all() and torch.equal(masked[~hidden], original[~hidden])
    if video:
        assert torch.equal(original[:, 1, :, ::2, ::2], images[:, :, 2] / 255), "every second frame has a target"


def test_hog_is_found_in_a_mix_and_other_targets_are_refused():
    mix = MixTarget([PixelTarget(16), HogTarget(16)], [1.0, 1.0])
    model, images, masks = model_and_input(mix)
    model.pred_head = Oracle(HogTarget(16), images, masks)
    model.pred_head.values = torch.cat([torch.full((2, 3, 768), 9.0), model.pred_head.values], -1)
    _, predicted, target, _ = shown(model, images, masks)
    hidden = masks.mask.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None, None].expand_as(target)
    torch.testing.assert_close(predicted[hidden], target[hidden])
    model, images, masks = model_and_input(PixelTarget(16))
    with pytest.raises(ValueError, match="predicts PixelTarget"):
        shown(model, images, masks)


def test_patches_of_one_cell():
    model, images, masks = model_and_input(patch=8)
    model.pred_head = Oracle(model.targets[0], images, masks)
    _, predicted, target, _ = shown(model, images, masks)
    hidden = masks.mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None, None].expand_as(target)
    torch.testing.assert_close(predicted[hidden], target[hidden])


@pytest.mark.parametrize("video", [False, True])
def test_panel_is_a_png(tmp_path, video):
    size = (2 * (64 + GAP), 8 * (64 + GAP)) if video else (4 * (96 + GAP), 2 * (64 + GAP))
    model, images, masks = model_and_input(video=video)
    path = tmp_path / "new folder" / "panel.png"
    model.train()
    panel(model, images, masks, path)
    assert model.training
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.size == (size[0], size[1] + MARGIN)
        sheet = np.asarray(picture)
    assert (sheet[:MARGIN].min() < 100) and (sheet[MARGIN, :, :] == 255).all(), "a title, then white gaps"
    if not video:
        rows = sheet[MARGIN + GAP // 2 : MARGIN + GAP // 2 + 64 : 2]
        last = rows[:, 3 * (96 + GAP) + GAP // 2 : 4 * (96 + GAP) - GAP // 2 : 2]
        assert np.array_equal(last, images[0].permute(1, 2, 0).numpy())
