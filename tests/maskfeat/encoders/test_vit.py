"""The ViT: parameter names, arithmetic against a plain oracle, other image sizes, initialisation."""

import numpy as np
import pytest
import slow_maskfeat
import torch

from maskfeat import MViT, VisionTransformer, vit
from maskfeat.encoders.vit import DropPath, resize_positions

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3)


def random_weights(model, seed=0, std=0.2):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def test_names_are_those_of_timm():
    names = set(VisionTransformer(num_classes=10, **SMALL).state_dict())
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    layers = [f"blocks.{i}.{name}" for i in range(3) for name in block] + ["patch_embed.proj", "fc_norm", "head"]
    assert names == {"cls_token", "pos_embed"} | {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    "size, parameters", [("tiny", 5_717_416), ("small", 22_050_664), ("base", 86_567_656), ("large", 304_326_632)]
)
def test_sizes_have_the_published_number_of_parameters(size, parameters):
    with torch.device("meta"):
        model = vit(size, num_classes=1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_features_and_gradients_agree_with_the_oracle():
    model = random_weights(VisionTransformer(**SMALL))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    outputs = model.encode(*model.embed(pixels), depths=(2, 0))

    p = {name: tensor.detach().double().requires_grad_() for name, tensor in model.named_parameters()}
    unmasked = torch.zeros(2, 4, 4, dtype=torch.bool)
    p["mask_token"] = torch.zeros(1, 1, 24, dtype=torch.float64)
    expected = slow_maskfeat.vit_features(p, pixels.double(), unmasked, heads=3, depths=(2, 0))
    for (features, grid), wanted in zip(outputs, expected, strict=True):
        assert grid == (4, 4)
        torch.testing.assert_close(features.double(), wanted, rtol=1e-5, atol=1e-5)

    sum(features.square().mean() for features, _ in outputs).backward()
    sum(wanted.square().mean() for wanted in expected).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), p[name].grad, rtol=1e-5, atol=1e-5, msg=name)


def test_classifier_is_mean_of_patches_then_norm_then_linear():
    model = random_weights(VisionTransformer(num_classes=5, **SMALL))
    pixels = torch.randn(2, 3, 32, 32)
    p = dict(model.state_dict())
    [(features, _)] = model.encode(*model.embed(pixels), depths=(2,))
    normed = slow_maskfeat.layer_norm(features[:, 1:].mean(1), p, "fc_norm")
    torch.testing.assert_close(model(pixels), slow_maskfeat.linear(normed, p, "head"), rtol=1e-5, atol=1e-5)


def test_recomputing_activations_changes_nothing():
    model = random_weights(VisionTransformer(num_classes=5, **SMALL)).train()
    pixels = torch.randn(2, 3, 32, 32)
    model(pixels).square().sum().backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing()
    model(pixels).square().sum().backward()
    for parameter, grad in zip(model.parameters(), plain, strict=True):
        assert torch.equal(parameter.grad, grad)


@pytest.mark.parametrize("height, width", [(32, 64), (48, 24), (16, 16)])
def test_other_sizes_and_rectangles(height, width):
    model = VisionTransformer(**SMALL)
    tokens, grid = model.embed(torch.randn(2, 3, height, width))
    assert grid == (height // 8, width // 8)
    [(features, _)] = model.encode(tokens, grid, depths=(2,))
    assert features.shape == (2, 1 + grid[0] * grid[1], 24)


def test_resized_positions_keep_the_class_token_and_a_linear_ramp():
    ramp = torch.linspace(0, 1, 8).expand(8, 8).reshape(1, 64, 1)
    positions = torch.cat([torch.full((1, 1, 1), 7.0), ramp], 1)
    resized = resize_positions(positions, (8, 8), (8, 16))
    assert resized.shape == (1, 1 + 128, 1) and resized[0, 0, 0] == 7
    middle = resized[0, 1:, 0].view(8, 16)[:, 4:12]
    torch.testing.assert_close(middle.diff(dim=1), torch.full((8, 7), 1 / 14), rtol=0, atol=5e-3)
    assert resize_positions(positions, (8, 8), (8, 8)) is positions


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="33 x 32"):
        VisionTransformer(**SMALL)(torch.randn(1, 3, 33, 32))
    with pytest.raises(ValueError, match="224 x 224 pixels is not a whole number of 15-pixel"):
        VisionTransformer(patch_size=15)
    with pytest.raises(ValueError, match="'huge'"):
        vit("huge")


def test_initialisation():
    torch.manual_seed(0)
    model = vit("tiny", depth=2, num_classes=100)
    for name, parameter in model.named_parameters():
        if name in ("head.weight", "head.bias"):
            assert parameter.abs().max() < 2.1e-4
        elif "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias") and name != "patch_embed.proj.bias":
            assert (parameter == 0.02).all(), name
        elif name.endswith("weight") or name in ("cls_token", "pos_embed"):
            assert 0.015 < parameter.std() < 0.025, name
    assert (vit("tiny", depth=1, init_bias=0.0).blocks[0].mlp.fc1.bias == 0).all()


def test_drop_path_skips_samples_and_keeps_the_mean():
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    y = drop(x)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert (y.flatten(1).std(1) == 0).all()
    assert abs((y == 0).float().mean() - 0.25) < 0.03
    assert drop.eval()(x) is x
    rates = [block.drop_path.rate for block in VisionTransformer(drop_path_rate=0.2, **SMALL).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_the_last_block_may_compute_some_tokens_only():
    model = random_weights(VisionTransformer(**SMALL))
    tokens, grid = model.embed(torch.randn(2, 3, 32, 32))
    ids = torch.tensor([[1, 5, 16], [0, 7, 8]])
    (first, _), (last, _) = model.encode(tokens, grid, (0, 2))
    (first_again, _), (some, _) = model.encode(tokens, grid, (0, 2), ids)
    assert torch.equal(first_again, first) and some.shape == (2, 3, 24)
    torch.testing.assert_close(some, last[torch.arange(2)[:, None], ids], rtol=1e-5, atol=1e-5)


def batches(*sizes):
    return [torch.randn(size, *(3, 32, 32), generator=torch.Generator().manual_seed(size)) for size in sizes]


@pytest.mark.parametrize("training", [False, True])
def test_exported_with_a_dynamic_batch(training):
    model = random_weights(VisionTransformer(num_classes=5, **SMALL, drop_path_rate=0.5)).train(training)
    few, many = batches(2, 5)
    program = torch.export.export(model, (few,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    torch.manual_seed(0)
    want = model(many)
    torch.manual_seed(0)
    assert torch.equal(program(many), want)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_traced_for_any_batch():
    model, (few, many) = random_weights(VisionTransformer(num_classes=5, **SMALL)).eval(), batches(2, 5)
    torch.testing.assert_close(torch.jit.trace(model, few, check_trace=False)(many), model(many))


@pytest.mark.parametrize("size", [np.int64(64), (np.int32(64), 64), np.array([64, 64]), [64, 64]])
def test_size_may_be_of_numpy(size):
    assert VisionTransformer(**{**SMALL, "img_size": size}).grid == (8, 8)
    assert len(MViT(img_size=size, embed_dim=8, depth=1).blocks[0].attn.rel_pos_h) == 31


@pytest.mark.parametrize("size", [True, (64, True), 64.0, "64", None, (64, 64, 64), (64,)])
def test_size_that_is_none(size):
    for encoder in (VisionTransformer, MViT):
        with pytest.raises(TypeError, match=r"img_size must be an int or \(height, width\), got"):
            encoder(img_size=size)
