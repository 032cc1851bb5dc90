"""One step of pre-training: loss and gradients against a plain oracle, counts, depths, encoders of the user's."""

import copy
import warnings

import pytest
import slow_maskfeat
import torch
from test_mvit import PRETRAIN, TINY
from test_target import crop, normalised
from test_vit import SMALL, random_weights
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from maskfeat import (
    HogTarget,
    MaskFeat,
    Masks,
    MixTarget,
    MViT,
    PixelTarget,
    TokenTarget,
    VisionTransformer,
    make_masks,
    mvit,
    vit,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_model(target=None, **options):
    return random_weights(MaskFeat(VisionTransformer(**SMALL), target or HogTarget(8), **options))


def small_batch(batch=3, compat=None, size=32):
    images = crop(batch, 3, size, size)
    return normalised(images), images, make_masks("block", batch, (4, 4), generator=generator(), compat=compat)


def assert_gradients_agree(model, p):
    for name, parameter in model.named_parameters():
        expected = p[name.removeprefix("encoder.")].grad
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "encoder, parameters, keys", [(lambda: vit("base"), 85_882_476, 153), (lambda: mvit("small"), 36_253_356, 398)]
)
def test_parameters_are_those_of_slowfast(encoder, parameters, keys):
    """All keys of its checkpoints, but for the two HOG kernels."""
    with torch.device("meta"):
        model = MaskFeat(encoder(), HogTarget(16))
    names = {name.removeprefix("encoder.") for name in model.state_dict()}
    assert len(names) == keys
    assert names >= {"mask_token", "pred_head.transforms.0.0.weight", "pred_head.projections.0.bias", "cls_token"}
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("compat", [None, "slowfast"])
def test_image_step_agrees_with_the_oracle(compat):
    model = random_weights(MaskFeat(VisionTransformer(img_size=64, embed_dim=24, depth=3, num_heads=3), HogTarget(16)))
    pixels, images, masks = small_batch(size=64, compat=compat)
    loss = model(pixels, images, masks)
    loss.backward()

    p = slow_maskfeat.weights_of(model)
    [features] = slow_maskfeat.vit_features(p, pixels.double(), masks.mask, heads=3, depths=(2,))
    labels = slow_maskfeat.hog_labels(images, 16)[masks.mask]
    expected = ((slow_maskfeat.predictions(features, masks.mask, p) - labels) ** 2).mean()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert_gradients_agree(model, p)


def test_video_step_agrees_with_the_oracle():
    model = random_weights(MaskFeat(MViT(**TINY), HogTarget(16, temporal_stride=2)))
    video = crop(2, 3, 4, 64, 32)
    masks = make_masks("random", 2, (2, 2, 1), 0.5, generator=generator())
    loss = model(normalised(video), video, masks)
    loss.backward()

    p = slow_maskfeat.weights_of(model)
    stem = masks.mask.repeat_interleave(8, 2).repeat_interleave(8, 3)
    fine = masks.mask.repeat_interleave(2, 2).repeat_interleave(2, 3)
    [(features, grid)] = slow_maskfeat.mvit_features(p, normalised(video).double(), stem, **PRETRAIN, depths=(4,))
    assert grid == fine.shape[1:]
    frames = video[:, :, ::2].transpose(1, 2).flatten(0, 1)
    labels = slow_maskfeat.hog_labels(frames, 16).unflatten(0, (2, 2))[fine]
    expected = ((slow_maskfeat.predictions(features, fine, p) - labels) ** 2).mean()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert_gradients_agree(model, p)


def test_losses_of_several_depths_are_added_with_weights():
    pixels, images, masks = small_batch()
    targets = [HogTarget(8), PixelTarget(8)]
    both = small_model(targets, depths=(0, 2), weights=(1.0, 0.5))
    p = slow_maskfeat.weights_of(both)
    features = slow_maskfeat.vit_features(p, pixels.double(), masks.mask, heads=3, depths=(0, 2))
    losses = []
    for i, (feature, target) in enumerate(zip(features, targets, strict=True)):
        labels = target(pixels, images, masks).flatten(0, 1)
        losses.append(((slow_maskfeat.predictions(feature, masks.mask, p, i) - labels) ** 2).mean())
    torch.testing.assert_close(both(pixels, images, masks).double(), losses[0] + 0.5 * losses[1], rtol=1e-5, atol=1e-5)


def test_video_depths_have_their_own_grids_and_patches():
    targets = [HogTarget(4, 2), HogTarget(8, 2), HogTarget(16, 2)]
    model = MaskFeat(MViT(**TINY), targets, depths=(0, 1, 4))
    video = crop(1, 3, 4, 32, 32)
    masks = make_masks("cube", 1, (2, 2, 2), 0.5)
    predictions = model.predict(normalised(video), masks)
    assert [prediction.shape for prediction, _ in predictions] == [(1, 64, 27), (1, 16, 27), (1, 4, 108)]
    model(normalised(video), video, masks).backward()


def test_blocks_beyond_the_deepest_prediction_are_removed():
    model = small_model(depths=(1,))
    assert len(model.encoder.blocks) == 2
    model(*small_batch()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for depths in ((3,), (-1,), ()):
        with pytest.raises(ValueError, match="0 to 2"):
            small_model(depths=depths)
    with pytest.raises(ValueError, match="2 depths"):
        small_model([HogTarget(8)], depths=(0, 1))


def test_masked_pixels_do_not_reach_the_prediction():
    model = small_model().eval()
    pixels, _, masks = small_batch()
    hidden = masks.mask.repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    [(first, _)] = model.predict(pixels, masks)
    [(second, _)] = model.predict(torch.where(hidden, 9.0, pixels), masks)
    [(third, _)] = model.predict(torch.where(hidden, pixels, 9.0), masks)
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_loss_over_the_masked_tokens_of_all_ranks():
    """Halves of a batch as two ranks, gradients averaged, are the whole batch; by default each half weighs the same."""
    model = small_model()
    pixels, images, _ = small_batch(batch=4)
    picture = torch.zeros(4, 4, 4, dtype=torch.bool)
    picture[:2, :2] = True
    picture[2:, 0, :3] = True
    whole = model(pixels, images, Masks.from_bool(picture))
    halves = [(pixels[i : i + 2], images[i : i + 2], Masks.from_bool(picture[i : i + 2])) for i in (0, 2)]
    share = picture.sum() / 2
    torch.testing.assert_close(sum(model(*half, count=share) for half in halves) / 2, whole)
    assert not torch.isclose(sum(model(*half) for half in halves) / 2, whole, rtol=1e-3)

    exact = make_masks("block", 4, (4, 4), generator=generator())
    torch.testing.assert_close(model(pixels, images, exact, count=exact.ids.numel()), model(pixels, images, exact))


def test_count_is_in_cells_of_the_mask():
    model = MaskFeat(MViT(**TINY), HogTarget(16, 2))
    video = crop(1, 3, 4, 32, 32)
    masks = make_masks("random", 1, (2, 1, 1), 0.5)
    arguments = normalised(video), video, masks
    torch.testing.assert_close(model(*arguments, count=1), model(*arguments))


def test_an_empty_mask_has_loss_zero_and_a_warning():
    model = small_model()
    pixels, images, _ = small_batch()
    empty = torch.zeros(3, 4, 4, dtype=torch.bool)
    with pytest.warns(UserWarning, match="no token is masked"):
        loss = model(pixels, images, Masks.from_bool(empty))
    loss.backward()
    assert loss == 0 and all((parameter.grad == 0).all() for parameter in model.parameters())
    with pytest.warns(UserWarning, match="no token is masked"):
        padded = Masks.from_bool(empty, count=5)
    assert model(pixels, images, padded) == 0


@pytest.mark.parametrize("target", [PixelTarget(8), MixTarget([HogTarget(8), PixelTarget(8)], [0.75, 0.25])])
def test_other_targets_train(target):
    torch.manual_seed(0)
    model = MaskFeat(VisionTransformer(**SMALL), target)
    batch = small_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_discrete_tokens_train():
    class Tokenizer(nn.Module):
        def forward(self, pixels):
            return (pixels.mean(1).unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2)) > 0).flatten(1).long()

    model = small_model(TokenTarget(Tokenizer(), 2))
    loss = model(*small_batch())
    loss.backward()
    assert loss > 0 and model.mask_token.grad.abs().max() > 0


class TimmLike(nn.Module):
    """The attributes that a timm ViT offers, with two extra tokens and images of any size as [B, H, W, D] tokens."""

    class PatchEmbed(nn.Conv2d):
        patch_size = (8, 8)

        def forward(self, pixels):
            return super().forward(pixels).permute(0, 2, 3, 1)

    def __init__(self):
        super().__init__()
        self.embed_dim, self.num_prefix_tokens, self.dynamic_img_size = 24, 2, True
        self.patch_embed = self.PatchEmbed(3, 24, 8, stride=8)
        self.prefix = nn.Parameter(torch.randn(1, 2, 24))
        self.norm_pre = nn.LayerNorm(24)
        self.blocks = nn.Sequential(*[nn.TransformerEncoderLayer(24, 2, 48, 0.0, batch_first=True) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def _pos_embed(self, x):
        assert x.ndim == 4
        return torch.cat([self.prefix.expand(len(x), -1, -1), x.flatten(1, 2)], 1)


def test_a_timm_like_vit_is_wrapped():
    torch.manual_seed(0)
    model = MaskFeat(TimmLike(), HogTarget(8), depths=(1,))
    pixels, images, masks = small_batch()
    loss = model(pixels, images, masks)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    vit = model.encoder.vit
    tokens = vit.patch_embed(pixels).flatten(1, 2)
    tokens = torch.where(masks.mask.flatten(1).unsqueeze(-1), model.mask_token, tokens)
    features = vit.blocks(vit.norm_pre(vit._pos_embed(tokens.unflatten(1, (4, 4)))))[:, 2:][masks.mask.flatten(1)]
    predictions = model.pred_head.projections[0](model.pred_head.transforms[0](features))
    labels = slow_maskfeat.hog_labels(images, 8)[masks.mask].float()
    torch.testing.assert_close(loss, (predictions - labels).square().mean())
    with pytest.raises(TypeError, match="Linear is no timm-like ViT: it has no patch_embed"):
        MaskFeat(nn.Linear(2, 2), HogTarget(8))


class Turned(nn.TransformerEncoderLayer):
    """A block that wants rotary positions, as those of EVA and DINOv3."""

    def forward(self, x, rope):
        return super().forward(x * rope)


@pytest.mark.parametrize("mixed", [False, True])
def test_rotary_positions_reach_every_block(mixed):
    vit = TimmLike()
    places, learned = torch.randn(3, 18, 24), vit._pos_embed
    vit.blocks = nn.Sequential(*[Turned(24, 2, 48, 0.0, batch_first=True) for _ in range(3)])
    vit.rope_mixed, vit._pos_embed = mixed, lambda x: (learned(x), places if mixed else places[0])
    model = MaskFeat(vit, HogTarget(8))
    pixels, _, _ = small_batch()
    [(features, _)] = model.encoder.encode(*model.encoder.embed(pixels), (2,))
    x = vit.norm_pre(learned(vit.patch_embed(pixels)))
    for i, block in enumerate(vit.blocks):
        x = block(x, places[i if mixed else 0])
    torch.testing.assert_close(features, x)


def test_a_patch_embedding_of_another_stride_is_refused():
    vit = TimmLike()
    vit.patch_embed.patch_size = (1, 1)  # as timm's hybrids have it, whose convolutions shrink the image
    with pytest.raises(ValueError, match=r"TimmLike makes 16 tokens .* not the 1024 of its patch_size \(1, 1\)"):
        MaskFeat(vit, HogTarget(8))(*small_batch())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"])
def test_vits_of_timm_itself(name):
    import timm  # seconds, which the other tests need not wait for

    patch = 14 if "patch14" in name else 16
    size, vit = 4 * patch, timm.create_model(name, img_size=4 * patch)
    model = MaskFeat(vit, HogTarget(patch))
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    model(normalised(images), images, make_masks("block", 2, (4, 4))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_nothing_waits_for_the_device():
    """With fake tensors every look at a value raises."""
    models = (
        small_model(MixTarget([HogTarget(8), PixelTarget(8)], [1.0, 1.0])),
        MaskFeat(MViT(**TINY), HogTarget(16, 2)),
    )
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        image_model, video_model = copy.deepcopy(models)
    with mode:
        images, video = (torch.zeros(shape, dtype=torch.uint8) for shape in ((2, 3, 32, 32), (2, 3, 4, 32, 32)))
        image_model(images.float(), images, make_masks("block", 2, (4, 4))).backward()
        video_model(video.float(), video, make_masks("cube", 2, (2, 2, 2))).backward()


@pytest.mark.parametrize("kind", ["image", pytest.param("video", marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(kind):
    if kind == "image":
        model, (pixels, images, masks) = small_model(depths=(0,)), small_batch()
    else:
        encoder = MViT(num_frames=2, img_size=32, embed_dim=8, depth=2, stages=(1,), last_stride=2)
        model, images = random_weights(MaskFeat(encoder, HogTarget(8, 2))), crop(2, 3, 2, 32, 32)
        pixels, masks = normalised(images), make_masks("random", 2, (1, 2, 2), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(compiled(pixels, images, masks), model(pixels, images, masks))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_bfloat16_autocast(kind):
    if kind == "image":
        model, batch = small_model(), small_batch()
    else:
        video = crop(2, 3, 4, 32, 32)
        model = random_weights(MaskFeat(MViT(**TINY), HogTarget(16, 2)))
        batch = normalised(video), video, make_masks("random", 2, (2, 2, 2), 0.5)
    exact = model(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*batch)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.03, atol=0)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_head_and_mask_token_initialisation():
    torch.manual_seed(0)
    model = MaskFeat(vit("small", depth=1), HogTarget(16))
    assert 0.018 < model.pred_head.projections[0].weight.std() < 0.022
    assert (model.pred_head.projections[0].bias == 0).all() and (model.pred_head.transforms[0][0].bias == 0).all()
    assert model.mask_token.shape == (1, 1, 384) and 0.017 < model.mask_token.std() < 0.023
    assert (model.encoder.blocks[0].norm1.bias == 0.02).all() and (model.encoder.blocks[0].attn.qkv.bias == 0.02).all()
