"""Weights of other projects, from files made here in their formats, and in their libraries where these are."""

import json
import re

import pytest
import slow_maskfeat
import torch
from foreign_models import check
from safetensors.torch import load_file, save_file
from test_train import read_log, train_small
from test_vit import random_weights

from maskfeat import MaskFeat
from maskfeat.build import build
from maskfeat.config import Finetune, Pretrain, get_recipe, override
from maskfeat.weights.convert import convert, load_slowfast, read
from maskfeat.weights.files import read_weights, save_weights
from maskfeat.weights.layout import LAYOUTS, MVIT_LAYOUTS, rename, rename_mvit

VIT_CFG = """
MODEL: {MODEL_NAME: MaskMViT, NUM_CLASSES: 400}
DATA: {TRAIN_CROP_SIZE: 32, NUM_FRAMES: 1}
MASK: {ENABLE: true, PRETRAIN_DEPTH: [11], HEAD_TYPE: separate, PRED_HOG: true}
MVIT: {PATCH_2D: true, PATCH_KERNEL: [16, 16], EMBED_DIM: 192, NUM_HEADS: 3, DEPTH: 12, DROPPATH_RATE: 0.0}
"""
MVIT_CFG = """
MODEL: {MODEL_NAME: MaskMViT, NUM_CLASSES: 400}
DATA: {TRAIN_CROP_SIZE: 32, NUM_FRAMES: 4}
MASK: {ENABLE: true, PRETRAIN_DEPTH: [9], HEAD_TYPE: separate, PRED_HOG: true}
MVIT:
  {PATCH_KERNEL: [3, 7, 7], EMBED_DIM: 96, NUM_HEADS: 1, DEPTH: 10, DIM_MUL: [[1, 2.0], [3, 2.0], [8, 2.0]],
  USE_ABS_POS: false, DIM_MUL_IN_ATT: false}
"""


def pretrained(*changes, name="vit_tiny"):
    """A model of 32 x 32 pixels with random weights, of a size that keeps features of the order of 1."""
    settings = dict(text.split("=") for text in ["image_size=32", "patch_size=16", *changes])  # the last counts
    recipe = override(get_recipe(name), [f"{key}={value}" for key, value in settings.items()])
    return random_weights(build(recipe), std=0.05).eval(), recipe


def vit_for_masks():
    return pretrained("mask_stride=16")


def slowfast_file(path, model, cfg):
    """As SlowFast saves: parameters without our prefix, and the kernels of its HOG layer."""
    state = {name.removeprefix("encoder."): tensor for name, tensor in model.state_dict().items()}
    state |= {"hogs.0.weight_x": torch.zeros(3, 1, 3, 3), "hogs.0.weight_y": torch.zeros(3, 1, 3, 3)}
    torch.save({"epoch": 299, "model_state": state, "optimizer_state": {}, "cfg": cfg}, path)
    return state


def other_file(path, model, project):
    kind = type(vit_for_masks()[1])
    tensors = rename(model.state_dict(), LAYOUTS["maskfeat"][kind], LAYOUTS[project][kind])
    if project == "mmpretrain":
        torch.save({"meta": {}, "state_dict": tensors}, path)
    else:
        save_file({name: t for name, t in tensors.items() if "head" not in name and "classifier" not in name}, path)
    return tensors


def assert_equal_weights(model, other, but=()):
    for (name, tensor), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert name.startswith(but) or torch.equal(tensor, expected), name


def test_slowfast_vit(tmp_path):
    model, _ = vit_for_masks()
    state = slowfast_file(tmp_path / "file.pyth", model, VIT_CFG)
    loaded = load_slowfast(tmp_path / "file.pyth")
    assert isinstance(loaded, MaskFeat)
    assert_equal_weights(loaded, model)
    pixels = torch.randn(2, 3, 32, 32)
    [(features, _)] = loaded.encoder.encode(*loaded.encoder.embed(pixels), depths=(11,))
    weights = {name: tensor.double() for name, tensor in state.items()}
    [expected] = slow_maskfeat.vit_features(weights, pixels.double(), torch.zeros(2, 2, 2), heads=3, depths=(11,))
    torch.testing.assert_close(features.double(), expected, rtol=1e-5, atol=1e-5)


def test_slowfast_mvit(tmp_path):
    model, _ = pretrained("mask_stride=32", name="mvit_tiny")
    state = slowfast_file(tmp_path / "file.pyth", model, MVIT_CFG)
    loaded = load_slowfast(tmp_path / "file.pyth")
    assert_equal_weights(loaded, model)
    video = torch.randn(1, 3, 4, 32, 32)
    [(features, grid)] = loaded.encoder.encode(*loaded.encoder.embed(video), depths=(9,))
    weights = {name: tensor.double() for name, tensor in state.items()}
    shape = dict(
        heads=[1, 2, 2, 4, 4, 4, 4, 4, 8, 8],
        q_strides=[1, 2, 1, 2, 1, 1, 1, 1, 1, 1],
        kv_strides=[8, 4, 4, 2, 2, 2, 2, 2, 2, 2],
    )
    [(expected, expected_grid)] = slow_maskfeat.mvit_features(
        weights, video.double(), torch.zeros(1, 2, 8, 8), depths=(9,), **shape
    )
    assert grid == expected_grid
    torch.testing.assert_close(features.double(), expected, rtol=1e-4, atol=1e-4)
    assert check(loaded, state, MVIT_LAYOUTS["slowfast"][Pretrain]) < 1e-4
    report = convert(tmp_path / "file.pyth", tmp_path / "ours.safetensors")
    assert f"MViT tiny of SlowFast, {len(model.state_dict())} tensors" in report


@pytest.mark.parametrize("name", ["vit_tiny_ft", pytest.param("mvit_tiny_ft", marks=pytest.mark.slow)])
def test_slowfast_classifiers(tmp_path, name):
    model, _ = pretrained("classes=7", name=name)
    image = name.startswith("vit")
    state = {
        name.replace("fc_norm", "norm").replace("head.", "head.projection.") if image else name: tensor
        for name, tensor in model.state_dict().items()
    }
    cfg = (VIT_CFG if image else MVIT_CFG).replace("MaskMViT, NUM_CLASSES: 400", "MViT, NUM_CLASSES: 7")
    torch.save({"model_state": state, "cfg": cfg}, tmp_path / "file.pyth")
    loaded = load_slowfast(tmp_path / "file.pyth")
    check(loaded, state, (LAYOUTS if image else MVIT_LAYOUTS)["slowfast"][Finetune])
    x = torch.randn(2, 3, *(() if image else (4,)), 32, 32)
    assert loaded(x).shape == (2, 7) and torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("project", ["mmpretrain", "timm", "huggingface"])
def test_vits_of_other_projects(tmp_path, project):
    model, _ = vit_for_masks()
    path = tmp_path / ("file.pth" if project == "mmpretrain" else "file.safetensors")
    tensors = other_file(path, model, project)
    report = convert(path, tmp_path / "ours.safetensors")
    assert f"ViT tiny of {project}, " in report
    assert report.endswith(f"read back, all {len(model.state_dict())} tensors are equal")
    weights, recipe = read_weights(tmp_path / "ours.safetensors")
    loaded = build(recipe)
    loaded.load_state_dict(weights)
    new = () if project == "mmpretrain" else ("mask_token", "pred_head.projections")
    assert_equal_weights(loaded, model, but=new)
    check(read(path)[0], tensors, LAYOUTS[project][Pretrain])
    assert ("new: mask_token, pred_head.projections.0.weight" in report) == bool(new)


@pytest.mark.parametrize("project", ["timm", "huggingface"])
def test_there_and_back(tmp_path, project):
    model, recipe = vit_for_masks()
    save_weights(tmp_path / "ours.safetensors", model.state_dict(), recipe, 1)
    report = convert(tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors", to=project)
    file = "theirs.safetensors" if project == "timm" else "theirs.safetensors/model.safetensors"
    tensors = load_file(tmp_path / file)
    check(model, tensors, LAYOUTS[project][Pretrain])
    assert f"read back, all {len(tensors)} tensors are equal" in report
    back, read_recipe, _ = read(tmp_path / "theirs.safetensors")
    assert read_recipe.image_size == (32, 32) and read_recipe.size == "tiny"
    assert_equal_weights(back, model, but=("mask_token", "pred_head.projections"))
    if project == "huggingface":
        config = json.loads((tmp_path / "theirs.safetensors" / "config.json").read_text())
        assert (config["hidden_size"], config["num_attention_heads"], config["image_size"]) == (192, 3, 32)
        qkv = [f"encoder.layer.3.attention.attention.{part}.weight" for part in ("query", "key", "value")]
        assert torch.equal(torch.cat([tensors[name] for name in qkv]), model.encoder.blocks[3].attn.qkv.weight)


def mmaction_name(name):
    """What mmpretrain's project maskfeat_video calls a parameter of ours: its MViT is mmaction2's, its head a neck."""
    table = [
        (r"pred_head\.transforms\.0\.0\.", "backbone.norm2."),
        (r"pred_head\.projections\.0\.", "neck.fc."),
        (r"encoder\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
        (r"encoder\.(blocks\.\d+\..*|cls_token)", r"backbone.\1"),
        (r"mask_token", "backbone.mask_token"),
    ]
    [new] = [re.sub(pattern, new, name) for pattern, new in table if re.match(pattern, name)]
    return new


def mmaction_file(path, model):
    tensors = {mmaction_name(name): tensor for name, tensor in model.state_dict().items()}
    kernels = {f"target_generator.weight_{axis}": torch.zeros(3, 1, 3, 3) for axis in "xy"}
    torch.save({"meta": {"epoch": 300}, "state_dict": tensors | kernels}, path)
    return tensors


def test_mmpretrain_mvit(tmp_path):
    model, _ = pretrained("mask_stride=32", "frames=6", "image_size=64", name="mvit_tiny")
    tensors = mmaction_file(tmp_path / "file.pth", model)
    assert len(tensors) == len(model.state_dict())
    assert "backbone.blocks.3.attn.norm_k.weight" in tensors and "backbone.blocks.2.proj.bias" in tensors
    report = convert(tmp_path / "file.pth", tmp_path / "ours.safetensors")
    assert f"MViT tiny of mmpretrain, {len(tensors)} tensors" in report and "new:" not in report
    weights, recipe = read_weights(tmp_path / "ours.safetensors")
    assert (recipe.encoder, recipe.size, recipe.frames, recipe.image_size, recipe.mask) == (
        "mvit",
        "tiny",
        6,
        (64, 64),
        "cube",
    )
    loaded = build(recipe).eval()
    loaded.load_state_dict(weights)
    assert_equal_weights(loaded, model)
    check(loaded, tensors, MVIT_LAYOUTS["mmpretrain"][Pretrain])


@pytest.mark.parametrize("name", ["vit_tiny", pytest.param("mvit_tiny", marks=pytest.mark.slow)])
def test_a_batch_norm_after_the_head_becomes_part_of_it(tmp_path, name):
    """mmpretrain's neck has one unless its configuration says otherwise."""
    if name == "vit_tiny":
        model, _ = vit_for_masks()
        tensors = other_file(tmp_path / "file.pth", model, "mmpretrain")
    else:
        model, _ = pretrained("mask_stride=32", name=name)
        tensors = mmaction_file(tmp_path / "file.pth", model)
    norm = random_weights(torch.nn.BatchNorm1d(108), std=0.5).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    tensors |= {f"neck.norm.{part}": tensor for part, tensor in norm.state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "file.pth")
    loaded, _, _ = read(tmp_path / "file.pth")
    hidden = torch.randn(2, 5, model.encoder.widths[-1])
    expected = norm(model.pred_head(hidden, 0).flatten(0, 1)).unflatten(0, (2, 5))
    torch.testing.assert_close(loaded.pred_head(hidden, 0), expected, rtol=1e-5, atol=1e-5)


SLOW_PARTS = [pytest.param(part, marks=pytest.mark.slow) for part in ("pool_k", "norm_v", "rel_pos_t", "rel_pos_h")]


@pytest.mark.parametrize("part", ["qkv", *SLOW_PARTS])
def test_a_conversion_of_an_mvit_that_is_wrong_is_found(part):
    """Each part of the attention of one block reaches the comparison."""
    model, recipe = pretrained("mask_stride=32", name="mvit_tiny")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(float("norm" in name and name.endswith("weight")))  # or keys hardly matter
    layouts = MVIT_LAYOUTS["maskfeat"][type(recipe)], MVIT_LAYOUTS["mmpretrain"][type(recipe)]
    tensors = rename_mvit(model.state_dict(), *layouts)
    assert check(model, tensors, layouts[1]) < 1e-4
    for name in tensors:
        if f"blocks.3.attn.{part}" in name:
            tensors[name] = tensors[name].roll(tensors[name].shape[0] // 3, 0)
    with pytest.raises(ValueError, match="the outputs do not agree"):
        check(model, tensors, layouts[1])


@pytest.mark.slow
def test_what_a_file_holds_besides_is_not_lost_in_silence(tmp_path):
    """Layer scale, as DINOv2 has it, and a norm of mmaction2's classifiers: other models than ours."""
    model, _ = vit_for_masks()
    tensors = other_file(tmp_path / "x", model, "timm")
    scales = {"blocks.0.ls1.gamma": torch.ones(192), "blocks.0.ls2.gamma": torch.ones(192)}
    torch.save({"model": tensors | scales}, tmp_path / "dino.pth")
    torch.save({name: t for name, t in tensors.items() if name != "pos_embed"}, tmp_path / "beit.pth")
    video, _ = pretrained("mask_stride=32", name="mvit_tiny")
    tensors = mmaction_file(tmp_path / "video.pth", video)
    torch.save(tensors | {"backbone.pos_embed": torch.zeros(1, 9, 96)}, tmp_path / "absolute.pth")
    table = tensors["backbone.blocks.4.attn.rel_pos_w"]
    torch.save(tensors | {"backbone.blocks.4.attn.rel_pos_w": table[1:]}, tmp_path / "short.pth")
    head = {"cls_head.fc_cls.weight": torch.zeros(400, 768)}
    torch.save({name: t for name, t in tensors.items() if "neck" not in name} | head, tmp_path / "classifier.pth")
    messages = {
        "dino.pth": "not in the model: blocks.0.ls1.gamma, blocks.0.ls2.gamma",
        "beit.pth": "no ViT as timm has them: there is no pos_embed",
        "absolute.pth": "not in the model: backbone.pos_embed",
        "short.pth": r"of another shape: encoder.blocks.4.attn.rel_pos_w \(2, 96\) instead of \(3, 96\)",
        "classifier.pth": "classify do so by the class token",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


def last_features(model, pixels):
    [(x, _)] = model.encoder.encode(*model.encoder.embed(pixels), (len(model.encoder.blocks) - 1,))
    return model.pred_head.transforms[0](x)


@pytest.mark.slow
@torch.no_grad()
def test_timm_itself(tmp_path):
    """Pre-trained and fine-tuned weights in timm's VisionTransformer, and back as it saves them."""
    import timm  # seconds, which the other tests need not wait for

    pixels = torch.randn(2, 3, 32, 32)
    model, recipe = vit_for_masks()
    save_weights(tmp_path / "ours.safetensors", model.state_dict(), recipe, 1)
    convert(tmp_path / "ours.safetensors", tmp_path / "timm.safetensors", to="timm")
    options = dict(img_size=32, num_classes=0, checkpoint_path=tmp_path / "timm.safetensors")
    theirs = timm.create_model("vit_tiny_patch16_224", **options).eval()
    torch.testing.assert_close(theirs.forward_features(pixels), last_features(model, pixels), rtol=1e-5, atol=1e-5)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    assert_equal_weights(read(tmp_path / "timm.pth")[0], model, but=("mask_token", "pred_head.projections"))

    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7, global_pool="avg").eval()
    model, recipe = pretrained("classes=7", name="vit_tiny_ft")
    save_weights(tmp_path / "ours.safetensors", model.state_dict(), recipe, 1)
    convert(tmp_path / "ours.safetensors", tmp_path / "timm.safetensors", to="timm")
    theirs.load_state_dict(load_file(tmp_path / "timm.safetensors"))
    torch.testing.assert_close(theirs(pixels), model(pixels), rtol=1e-5, atol=1e-5)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    assert_equal_weights(read(tmp_path / "timm.pth")[0], model)


@pytest.mark.slow  # as its import is
@torch.no_grad()
def test_transformers_itself(tmp_path):
    """In ViTModel, and back as it saves them."""
    transformers = pytest.importorskip("transformers", exc_type=ImportError)  # not for Python 3.10
    model, recipe = vit_for_masks()
    save_weights(tmp_path / "ours.safetensors", model.state_dict(), recipe, 1)
    convert(tmp_path / "ours.safetensors", tmp_path / "hf", to="huggingface")
    theirs, info = transformers.AutoModel.from_pretrained(
        tmp_path / "hf", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(info.values())
    pixels = torch.randn(2, 3, 32, 32)
    features = theirs.eval()(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(features, last_features(model, pixels), rtol=1e-5, atol=1e-5)
    theirs.save_pretrained(tmp_path / "back")
    assert_equal_weights(read(tmp_path / "back")[0], model, but=("mask_token", "pred_head.projections"))
    transformers.ViTForImageClassification(theirs.config).save_pretrained(tmp_path / "classifier")
    assert "ViT tiny of huggingface, " in read(tmp_path / "classifier")[2]


def test_a_classifier_for_timm_and_back(tmp_path):
    model, recipe = pretrained("classes=7", name="vit_tiny_ft")
    save_weights(tmp_path / "ours.safetensors", model.state_dict(), recipe, 1)
    convert(tmp_path / "ours.safetensors", tmp_path / "timm.safetensors", to="timm")
    assert load_file(tmp_path / "timm.safetensors").keys() == model.state_dict().keys()
    back, _, _ = read(tmp_path / "timm.safetensors")
    assert_equal_weights(back, model)
    with pytest.raises(ValueError, match="classifies the class token"):
        convert(tmp_path / "ours.safetensors", tmp_path / "hf", to="huggingface")


def test_converted_weights_start_a_run(tmp_path):
    model, _ = vit_for_masks()
    other_file(tmp_path / "timm.safetensors", model, "timm")
    convert(tmp_path / "timm.safetensors", tmp_path / "ours.safetensors")
    changes = ["size=tiny", "patch_size=16", "steps=1", f"init={tmp_path / 'ours.safetensors'}"]
    train_small(tmp_path / "run", *changes, name="vit_tiny_ft")
    assert read_log(tmp_path / "run")[-1]["samples"]


def test_a_conversion_that_is_wrong_is_found(tmp_path):
    model, _ = vit_for_masks()
    tensors = other_file(tmp_path / "file.safetensors", model, "timm")
    tensors["blocks.5.attn.qkv.weight"] = tensors["blocks.5.attn.qkv.weight"].roll(192, 0)
    with pytest.raises(ValueError, match="the outputs do not agree"):
        check(model, tensors, LAYOUTS["timm"][type(vit_for_masks()[1])])


def test_a_file_that_was_written_wrongly_is_found(tmp_path, monkeypatch):
    model, recipe = vit_for_masks()
    save_weights(tmp_path / "ours.safetensors", model.state_dict(), recipe, 1)

    def save_another(path, weights, recipe, step):
        save_weights(path, {**weights, "mask_token": weights["mask_token"] + 1}, recipe, step)

    monkeypatch.setattr("maskfeat.weights.convert.save_weights", save_another)
    with pytest.raises(ValueError, match="does not hold what was written: mask_token differ"):
        convert(tmp_path / "ours.safetensors", tmp_path / "copy.safetensors")


class Unsafe:
    def __reduce__(self):
        return print, ("code in a file is run",)


def test_files_that_cannot_be_read(tmp_path, capsys):
    model, _ = vit_for_masks()
    torch.save({"model_state": Unsafe(), "cfg": VIT_CFG}, tmp_path / "unsafe.pyth")
    (tmp_path / "text.pth").write_text("# no weights\n")
    (tmp_path / "text.safetensors").write_text("# no weights\n")
    (tmp_path / "empty.pth").touch()
    torch.save([1], tmp_path / "list.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "resnet.pth").read_bytes()[:300])
    torch.save({"model_state": {}}, tmp_path / "nocfg.pyth")
    slowfast_file(tmp_path / "wide.pyth", model, VIT_CFG.replace("192", "200"))
    slowfast_file(tmp_path / "mae.pyth", model, VIT_CFG.replace("PRED_HOG: true", "PRED_HOG: false"))
    slowfast_file(tmp_path / "shallow.pyth", model, VIT_CFG.replace("[11]", "[3]"))
    model.encoder.blocks[3].norm1.bias.data[5] = float("nan")
    slowfast_file(tmp_path / "nan.pyth", model, VIT_CFG)
    messages = {
        "none.pyth": "there is no file",
        "unsafe.pyth": r"cannot be read as tensors alone: Unsupported global: GLOBAL print was not .* by default$",
        "text.pth": r"text.pth is no checkpoint of torch, and not named \.safetensors; it begins with b'# no wei'$",
        "empty.pth": "empty.pth is no checkpoint of torch",
        "cut.pth": "cannot be read as tensors alone: ",
        "text.safetensors": "text.safetensors is no safetensors file",
        "list.pth": "holds a list",
        "resnet.pth": "no known project; its names begin with conv1.weight",
        "nocfg.pyth": "needs model_state and cfg",
        "wide.pyth": "no encoder with embed_dim 200, depth 12, num_heads 3; the sizes are micro, tiny",
        "nan.pyth": "numbers that are not finite in 'blocks.3.norm1.bias'",
        "mae.pyth": "no MaskFeat model",
        "shallow.pyth": "not in the model: encoder.blocks.4.norm1.weight",
    }
    for name, message in messages.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            convert(tmp_path / name, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists() and "code in a file" not in capsys.readouterr().out
    for name in ("out.pth", "run"):
        with pytest.raises(ValueError, match=r"to a file such as .*/(out|run)\.safetensors, not to "):
            convert(tmp_path / "list.pth", tmp_path / name)
