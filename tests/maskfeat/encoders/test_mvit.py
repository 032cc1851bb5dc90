"""MViTv2: parameter names and counts, arithmetic against a plain oracle, other clip sizes."""

import pytest
import slow_maskfeat
import torch
from test_vit import random_weights

from maskfeat import MViT, mvit
from maskfeat.encoders.mvit import axis_codes, conv_pool, distance_table, resize_relative_positions

TINY = dict(num_frames=4, img_size=32, embed_dim=8, num_heads=1, depth=5, stages=(1, 2, 4))
PRETRAIN = dict(heads=(1, 2, 4, 4, 8), q_strides=(1, 2, 2, 1, 1), kv_strides=(8, 4, 2, 2, 2))
FINETUNE = dict(heads=(1, 2, 4, 4, 8), q_strides=(1, 2, 2, 1, 2), kv_strides=(8, 4, 2, 2, 1))


def test_names_are_those_of_slowfast():
    with torch.device("meta"):
        names = set(mvit("small", last_stride=2, num_classes=400).state_dict())
    pools = [f"{kind}_{letter}" for kind in ("pool", "norm") for letter in "qkv"]
    layers = ["norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", *[f"attn.{pool}" for pool in pools]]
    expected = {f"blocks.{i}.{layer}.{kind}" for i in range(16) for layer in layers for kind in ("weight", "bias")}
    expected -= {f"blocks.{i}.attn.pool_{letter}.bias" for i in range(16) for letter in "qkv"}
    expected |= {f"blocks.{i}.attn.rel_pos_{axis}" for i in range(16) for axis in "thw"}
    layers = ["patch_embed.proj", "norm", "head.projection", *[f"blocks.{i}.proj" for i in (0, 2, 13)]]
    expected |= {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")} | {"cls_token"}
    assert names == expected


@pytest.mark.parametrize("size, parameters", [("small", 36_475_120), ("large", 217_578_064)])
def test_fine_tuning_models_have_the_published_number_of_parameters(size, parameters):
    with torch.device("meta"):
        model = mvit(size, last_stride=2, num_classes=400)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_relative_position_tables_have_the_lengths_of_the_released_files():
    with torch.device("meta"):
        pretrain, finetune = mvit("small"), mvit("small", last_stride=2)
    assert [len(block.attn.rel_pos_h) for block in pretrain.blocks] == [111, 55, 55, *[27] * 13]
    assert {len(block.attn.rel_pos_t) for block in pretrain.blocks} == {15}
    changed = [
        i
        for i, (a, b) in enumerate(zip(pretrain.blocks, finetune.blocks, strict=True))
        if len(a.attn.rel_pos_h) != len(b.attn.rel_pos_h)
    ]
    assert changed == [15] and len(finetune.blocks[15].attn.rel_pos_w) == 13


@pytest.mark.parametrize(
    "options, schedule, clip",
    [
        pytest.param({}, PRETRAIN, (4, 32, 32), marks=pytest.mark.slow),
        ({}, PRETRAIN, (6, 48, 64)),
        pytest.param(dict(last_stride=2), FINETUNE, (4, 32, 32), marks=pytest.mark.slow),
        pytest.param(dict(last_stride=2, img_size=(56, 28)), FINETUNE, (4, 56, 28), marks=pytest.mark.slow),
        (dict(last_stride=2, dim_mul_in_att=True), FINETUNE, (4, 64, 32)),
    ],
    ids=["pre-training", "another size", "fine-tuning", "what is left over", "widening in attention"],
)
def test_features_and_gradients_agree_with_the_oracle(options, schedule, clip):
    model = random_weights(MViT(**TINY | options))
    pixels = torch.randn(2, 3, *clip, generator=torch.Generator().manual_seed(1))
    tokens, grid = model.embed(pixels)
    outputs = model.encode(tokens, grid, depths=(1, 4))

    p = {name: tensor.detach().double().requires_grad_() for name, tensor in model.named_parameters()}
    p["mask_token"] = torch.zeros(1, 1, 8, dtype=torch.float64)
    unmasked = torch.zeros(2, *grid, dtype=torch.bool)
    in_attention = options.get("dim_mul_in_att", False)
    expected = slow_maskfeat.mvit_features(
        p, pixels.double(), unmasked, **schedule, depths=(1, 4), dim_mul_in_att=in_attention
    )
    for (features, feature_grid), (wanted, wanted_grid) in zip(outputs, expected, strict=True):
        assert feature_grid == wanted_grid
        torch.testing.assert_close(features.double(), wanted, rtol=1e-5, atol=1e-5)

    sum(features.square().mean() for features, _ in outputs).backward()
    sum(wanted.square().mean() for wanted, _ in expected).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), p[name].grad, rtol=1e-5, atol=1e-5, msg=name)


def test_position_codes_pick_one_term_for_each_axis():
    codes = axis_codes((2, 3, 4), torch.float32, torch.device("cpu"))
    terms = torch.cat([torch.tensor([100.0, 200]), torch.tensor([10.0, 20, 30]), torch.tensor([1.0, 2, 3, 4])])
    expected = [t + h + w for t in (100, 200) for h in (10, 20, 30) for w in (1, 2, 3, 4)]
    assert (codes @ terms).tolist() == expected


def test_distances_between_grids_of_different_size():
    rows = distance_table(torch.arange(15.0).unsqueeze(1), 8, 2).squeeze(-1)
    assert rows.tolist() == [[4 + i, i] for i in range(8)]
    rows = distance_table(torch.arange(7.0).unsqueeze(1), 4, 4).squeeze(-1)
    assert rows.tolist() == [[3 + i - j for j in range(4)] for i in range(4)]


def test_relative_tables_are_interpolated_linearly():
    table = torch.arange(27.0).unsqueeze(1).repeat(1, 3)
    resized = resize_relative_positions(table, 13)
    assert resized.shape == (13, 3)
    torch.testing.assert_close(resized[:, 0], (torch.arange(13) + 0.5) * 27 / 13 - 0.5)
    assert resize_relative_positions(table, 27) is table


def test_classifier_is_mean_of_tokens_then_norm_then_linear():
    model = random_weights(MViT(num_classes=5, last_stride=2, **TINY))
    pixels = torch.randn(2, 3, 4, 32, 32)
    p = dict(model.state_dict())
    [(features, _)] = model.encode(*model.embed(pixels), depths=(4,))
    normed = slow_maskfeat.layer_norm(features[:, 1:].mean(1), p, "norm")
    torch.testing.assert_close(model(pixels), slow_maskfeat.linear(normed, p, "head.projection"), rtol=1e-5, atol=1e-5)


def test_recomputing_activations_changes_nothing():
    model = random_weights(MViT(num_classes=5, **TINY)).train()
    pixels = torch.randn(1, 3, 4, 32, 32)
    model(pixels).square().sum().backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing()
    model(pixels).square().sum().backward()
    for parameter, grad in zip(model.parameters(), plain, strict=True):
        assert torch.equal(parameter.grad, grad)


def test_initialisation():
    torch.manual_seed(0)
    model = mvit("small", depth=3, stages=(1, 2, 3), num_classes=100)
    for name, parameter in model.named_parameters():
        if name.startswith("head.projection"):
            assert parameter.abs().max() < 2.1e-4
        elif "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias") and name != "patch_embed.proj.bias":
            assert (parameter == 0.02).all(), name
        elif name != "patch_embed.proj.bias":
            assert 0.014 < parameter.std() < 0.026, name


def test_clips_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="5 frames"):
        MViT(**TINY)(torch.randn(1, 3, 5, 32, 32))
    with pytest.raises(ValueError, match="multiples of 4"):
        MViT(last_stride=2, **TINY)(torch.randn(1, 3, 4, 50, 32))
    with pytest.raises(ValueError, match="'base'"):
        mvit("base")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_pooling_are_written_whole(dtype):
    """Asked to be deterministic, torch fills memory with NaN before it is written."""
    pool = torch.nn.Conv3d(8, 8, 3, padding=1, groups=8, bias=False)
    x = torch.randn(2, 2, 1 + 2 * 8 * 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            pooled, _ = conv_pool(x, (2, 8, 8), pool)
        pooled.float().square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert pool.weight.grad.isfinite().all()


def batches(*sizes):
    return [torch.randn(size, *(3, 4, 32, 32), generator=torch.Generator().manual_seed(size)) for size in sizes]


@pytest.mark.slow
def test_exported_with_a_dynamic_batch():
    model, (few, many) = random_weights(MViT(num_classes=5, **TINY)).eval(), batches(2, 5)
    program = torch.export.export(model, (few,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert torch.equal(program(many), model(many))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_traced_for_any_batch():
    model, (few, many) = random_weights(MViT(num_classes=5, **TINY)).eval(), batches(2, 5)
    torch.testing.assert_close(torch.jit.trace(model, few, check_trace=False)(many), model(many))
