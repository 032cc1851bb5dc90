"""Images and clips that are no squares, from the command line to a picture; squares are as they always were."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign_models import check
from PIL import Image
from safetensors.torch import load_file, save_file
from test_checkpoint import save_encoder
from test_cli import command
from test_convert import VIT_CFG, slowfast_file
from test_train import losses, small, train_small
from test_vit import random_weights

from maskfeat import HogTarget, make_masks
from maskfeat.build import build
from maskfeat.config import Pretrain, describe, from_dict, get_recipe, override, to_dict
from maskfeat.data.augment import eval_crops, random_resized_crop
from maskfeat.data.loader import make_loader
from maskfeat.data.synthetic import Scenes
from maskfeat.encoders.vit import resize_patches, resize_positions
from maskfeat.mask import KINDS
from maskfeat.weights.convert import convert, read
from maskfeat.weights.files import read_weights, save_weights
from maskfeat.weights.initialise import initialise
from maskfeat.weights.layout import LAYOUTS
from maskfeat_kernels import MASKFEAT, fused_hog

PLAIN = ["warmup_epochs=0", "flip=no", "workers=0", "eval_every=0", "save_every=1"]


def patterns(folder, clips=False):
    """Pictures of 50 to 71 x 60 pixels in two classes, the same on every machine; or clips of six of them."""
    y, x = np.mgrid[:71, :60]
    for split, count in (("train", 8), ("val", 4)):
        for i in range(count):
            place = folder / split / f"class {i % 2}"
            for j in range(6 if clips else 1):
                file = place / f"clip {i}" / f"{j}.png" if clips else place / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                bands = [x * (3 + i + j) + 2 * c * y + x * y // (5 + i) for c in (1, 2, 3)]
                Image.fromarray((np.stack(bands, -1) % 256).astype(np.uint8)[: 50 + 3 * i]).save(file)
    return folder


def digest(tensors):
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


@pytest.mark.parametrize(
    "name, settings, pixels, masks, loss",
    [
        ("vit_tiny", [], "46a394be64205630", "7d2035f0d729a29d", [0.1403479278087616, 0.12474115937948227]),
        pytest.param(
            "mvit_tiny", ["depths=4", "frame_step=1"], "22d91c747aa0fb95", "56bfc02007fd8f19",
            [0.2447384148836136, 0.31844455003738403], marks=pytest.mark.slow,
        ),
        pytest.param(
            "vit_tiny_ft", ["classes=2", "mixup=0.8", "test_crops=3"], "e1af825cdb5326e1", digest([]),
            [0.693175196647644, 0.6946107149124146], marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_squares_are_as_before_there_were_other_shapes(tmp_path, name, settings, pixels, masks, loss):
    """Crops, masks and losses, of a run that goes on too, are those that were recorded then."""
    data = patterns(tmp_path / "data", clips=name == "mvit_tiny")
    settings = [*PLAIN, f"data={data}", "batch_size=4", "samples=0", "steps=2", *settings]
    recipe = small(tmp_path / "run", *settings, name=name)
    found = [batch for split in ("train", "val", "test") for batch in make_loader(recipe, split, seed=0)]
    assert digest(batch["images"] for batch in found) == pixels
    assert digest(batch["masks"].ids for batch in found if "masks" in batch) == masks
    train_small(tmp_path / "run", *settings, name=name)
    made = losses(tmp_path / "run")
    assert made == pytest.approx(loss, rel=1e-6)
    whole, _ = read_weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000002")
    train_small(tmp_path / "run", *settings, name=name)
    assert losses(tmp_path / "run") == made
    again, _ = read_weights(tmp_path / "run")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    "text, size, printed", [("224", (224, 224), "224"), ("224x112", (224, 112), "224x112"), ("96x96", (96, 96), "96")]
)
def test_a_size_is_read_printed_and_kept(text, size, printed):
    recipe = override(get_recipe("vit_b_in1k_ft"), [f"image_size={text}", f"test_size={text}"])
    assert recipe.image_size == recipe.test_size == size
    assert f"  image_size={printed} " in describe(recipe) and f"  test_size={printed} " in describe(recipe)
    values = json.loads(json.dumps(to_dict(recipe)))
    assert values["image_size"] == (size[0] if size[0] == size[1] else [*size]), "squares as earlier versions read them"
    assert from_dict(values) == recipe == override(get_recipe("vit_b_in1k_ft"), {"image_size": size, "test_size": size})
    assert Pretrain(image_size=96) == Pretrain(image_size=[96, np.int64(96)])


@pytest.mark.parametrize(
    "recipe, change, message",
    [
        ("vit_tiny", "image_size=224x100", "of mask_stride=16, got image_size=224x100; .* 224x96 or 224x112$"),
        ("vit_tiny_ft", "image_size=224x100", "of patch_size=16, got image_size=224x100; .* 224x96 or 224x112$"),
        ("vit_tiny_ft", "image_size=0x16", "got image_size=0x16; the nearest are 16$"),
        ("mvit_tiny", "image_size=224x112", "mask_stride=32, got .* 224x96 or 224x128, or set mask_stride=16$"),
        ("mvit_tiny_ft", "image_size=62x61", "multiples of 4 pixels, got image_size=62x61; the nearest are 60 or 64$"),
        ("vit_tiny", "image_size=224X112", "HEIGHTxWIDTH, as image_size=224x112, got '224X112'$"),
        ("vit_tiny", "image_size=224,112", "as image_size=224x112, got '224,112'$"),
        ("vit_tiny", "image_size=224x", "as image_size=224, got '224x'$"),
        ("vit_tiny", "image_size=-224", "as image_size=224, got '-224'$"),
        ("vit_tiny", "image_size=95.7", "as image_size=96, got '95.7'$"),
        ("vit_tiny", "image_size=large", "as image_size=224x112, got 'large'$"),
        ("vit_tiny_ft", "test_size=100x90", "test_size=100x90 is below image_size=96; set test_size=0"),
        ("vit_tiny_ft", "test_size=0x100", "test_size=0x100 is below image_size=96"),
    ],
)  # fmt: skip
def test_wrong_sizes_are_refused_with_the_nearest_right_ones(recipe, change, message):
    with pytest.raises(ValueError, match=message):
        override(get_recipe(recipe), [change])


@pytest.mark.parametrize("size", [22.5, (224,), (1, 2, 3), (224, "112"), None])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(TypeError, match=r"image_size must be a whole number or \(height, width\), got"):
        Pretrain(image_size=size)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_a_rectangle_reach_every_cell(kind):
    grid, time = (14, 7), 3
    grid = grid if kind in ("block", "random") else (time, *grid)
    hidden = make_masks(kind, 80, grid, 0.4, generator=torch.Generator().manual_seed(0)).mask
    counts = hidden.flatten(1).sum(1)
    assert (counts == counts[0]).all() and counts[0] / hidden[0].numel() == pytest.approx(0.4, abs=0.07)
    assert hidden.any(0).all() and not hidden.all(0).any()


def test_crops_keep_the_proportions_of_things():
    """A picture of the shape of the crop is cut to that shape, as far as the ratio allows; so is one of another."""
    rng = np.random.default_rng(0)
    for width, height in ((112, 224), (448, 224)):
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        picture = Image.fromarray((np.stack([x, y, 0 * x], -1) * 255).astype(np.uint8))
        for _ in range(20):
            [crop] = random_resized_crop([picture], (112, 56), (0.3, 0.5), (0.8, 1.25), "bilinear", rng)
            assert crop.size == (56, 112)
            spans = np.asarray(crop)[-2, -2].astype(float) - np.asarray(crop)[1, 1]
            assert 0.75 < (spans[0] * width / 53) / (spans[1] * height / 109) < 1.35, "as wide as it is high"


@pytest.mark.parametrize("width, height, across", [(90, 60, True), (50, 60, True), (60, 160, False), (900, 60, True)])
def test_a_test_crop_covers_its_shape(width, height, across):
    """The picture fills 2 x 1 parts whatever its own shape, and three crops lie along what is left over."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    picture = Image.fromarray(np.stack([x, y, y], -1).astype(np.uint8))
    crops = eval_crops([picture], (40, 20), (40, 20), "bilinear", 3)
    first, middle, last = (np.asarray(frame).astype(float) for [frame] in crops)
    axis = 0 if across else 1
    assert middle.shape == (40, 20, 3)
    assert first[..., axis].mean() < middle[..., axis].mean() < last[..., axis].mean()
    assert first[..., axis].min() < 10 and last[..., axis].max() > 245
    assert middle[..., 1 - axis].min() < 10 and middle[..., 1 - axis].max() > 245, "the other side is there whole"
    [[single]] = eval_crops([picture], (40, 20), (40, 20), "bilinear")
    assert np.array_equal(np.asarray(single), middle)


def test_scenes_are_rendered_in_the_shape_of_the_crop():
    tall, square = Scenes("train", (64, 32), False), Scenes("train", (32, 32), False)
    picture = tall.read(3, None)[0][0][0]
    assert picture.size == (32, 64)
    assert np.abs(tall.grid[0]).max() == 2 and np.abs(tall.grid[1]).max() == 1
    middle, whole = np.asarray(picture)[16:48].astype(float), np.asarray(square.read(3, None)[0][0][0]).astype(float)
    assert np.abs(middle - whole).mean() < 0.5 * np.abs(middle.swapaxes(0, 1) - whole).mean(), "the same scene"


def test_tokens_of_a_rectangle_are_its_histograms():
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = make_masks("block", 2, (2, 4), 0.5, generator=torch.Generator().manual_seed(0))
    cells = fused_hog(images, MASKFEAT).unflatten(4, (4, 2)).unflatten(3, (2, 2))  # [B, C, bins, 2, 2, 4, 2]
    tokens = cells.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)  # [B, 8, 108]
    found = HogTarget(16)(images.float(), images, masks)
    torch.testing.assert_close(found, tokens.gather(1, masks.ids.unsqueeze(-1).expand(-1, -1, 108)))
    with pytest.raises(ValueError, match=r"a grid \(4, 2\), but the predicted features have the grid \(2, 4\)"):
        HogTarget(16)(images.mT.float(), images.mT.contiguous(), masks)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model pre-trained on 32 x 16 pixels, in patches of 8."""
    folder = tmp_path_factory.mktemp("shapes") / "pt"
    train_small(folder, "image_size=32x16", "depths=", "steps=1", "samples=8", "eval_every=0")
    return folder


def test_every_command_takes_rectangles_and_other_shapes_of_weights(run, tmp_path, capsys):
    settings = ["samples=16", "workers=0", "knn=1"]
    status, out, err = command(capsys, "eval", run, *settings)
    assert status == 0 and json.loads(out)["val_loss"] > 0 and err == ""
    note = f"maskfeat: {run}: positions resized from 4 x 2 to 2 x 4 patches\n"
    status, out, err = command(capsys, "knn", run, "image_size=16x32", *settings)
    assert status == 0 and "knn_accuracy" in out and err == note
    status, out, err = command(capsys, "show", run, "image_size=16x32", *settings, "--output", tmp_path / "p.png")
    assert status == 0 and err == note
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 3 * picture.height / 2
    status, out, err = command(capsys, "export", run, "patch_size=4", "mask_stride=4", *settings, "--output", tmp_path)
    assert status == 0 and "patches resized from 8 to 4 pixels; positions resized from 4 x 2 to 8 x 4 patches" in err
    assert load_file(tmp_path / "batch_000000.safetensors")["features"].shape[2:] == (8, 4)
    status, out, err = command(capsys, "probe", run, "image_size=16", *settings, "--epochs", 1, "--depths", 1)
    assert status == 0 and "positions resized from 4 x 2 to 2 x 2 patches" in err
    status, _, err = command(capsys, "eval", run, "patch_size=4", "mask_stride=4", "hog_cell=2", *settings)
    assert status == 1 and "of another shape: pred_head.projections.0.weight" in err and err.count("\n") == 1


@pytest.mark.slow
def test_training_begins_from_weights_of_another_shape(run, tmp_path, capsys):
    train_small(
        tmp_path / "ft", f"init={run}", "image_size=16x32", "steps=1", "samples=8", "eval_every=0", name="vit_tiny_ft"
    )
    assert f"init    {run}; positions resized from 4 x 2 to 2 x 4 patches" in capsys.readouterr().err
    changes = ["patch_size=4", "mask_stride=4", "hog_cell=2", "depths=", "steps=1", "samples=8", "eval_every=0"]
    train_small(tmp_path / "pt", f"init={run}", "image_size=16", *changes)
    err = capsys.readouterr().err
    assert "patches resized from 8 to 4 pixels; positions resized from 4 x 2 to 4 x 4 patches; new: pred_head" in err


def test_as_many_positions_in_other_rows_are_resized_too(tmp_path):
    pretrained = save_encoder(tmp_path / "w", "vit_tiny", "size=micro", "image_size=32x64")
    turned = build(override(get_recipe("vit_tiny_ft"), ["size=micro", "image_size=64x32"]))
    assert "positions resized from 2 x 4 to 4 x 2 patches" in initialise(turned, tmp_path / "w")
    expected = resize_positions(pretrained.encoder.pos_embed, (2, 4), (4, 2))
    assert torch.equal(turned.pos_embed, expected) and not torch.equal(expected, pretrained.encoder.pos_embed)
    same = build(override(get_recipe("vit_tiny_ft"), ["size=micro", "image_size=32x64"]))
    assert initialise(same, tmp_path / "w") == "" and torch.equal(same.pos_embed, pretrained.encoder.pos_embed)


@pytest.mark.slow
def test_relative_positions_are_resized_on_each_axis(tmp_path):
    save_encoder(tmp_path / "w", "mvit_tiny", "image_size=64x32")
    model = build(override(get_recipe("mvit_tiny_ft"), ["image_size=56x112"]))
    assert initialise(model, tmp_path / "w").endswith("tables of relative positions resized")
    assert [len(getattr(model.blocks[0].attn, f"rel_pos_{axis}")) for axis in "thw"] == [3, 27, 55]
    assert model(torch.randn(1, 3, 4, 56, 112)).shape == (1, 10)


@pytest.mark.parametrize("old, new", [((8, 8), (16, 16)), ((16, 16), (14, 14)), ((4, 8), (8, 8))])
def test_patches_of_another_size_give_the_same_tokens(old, new):
    """Of resized patches exactly where these are larger; else as near as any linear map comes."""
    patches, weight = torch.randn(50, 3, *old), torch.randn(6, 3, *old)
    resized = F.interpolate(patches, size=new, mode="bicubic", antialias=True)
    tokens = patches.flatten(1) @ weight.flatten(1).T
    found = resized.flatten(1) @ resize_patches(weight, new).flatten(1).T
    if new > old:
        torch.testing.assert_close(found, tokens, rtol=1e-3, atol=1e-3)
    else:
        plain = F.interpolate(weight, size=new, mode="bicubic", antialias=True).flatten(1)
        assert (found - tokens).square().mean() < 0.8 * (resized.flatten(1) @ plain.T - tokens).square().mean()


def test_patches_are_resized_as_timm_does():
    timm = pytest.importorskip("timm.layers", exc_type=ImportError)
    weight = torch.randn(6, 3, 16, 16)
    expected = timm.resample_patch_embed(weight, [12, 8])
    torch.testing.assert_close(resize_patches(weight, (12, 8)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("project", ["timm", "huggingface"])
@pytest.mark.slow
def test_rectangles_of_other_projects(tmp_path, project):
    recipe = override(get_recipe("vit_tiny"), ["size=micro", "image_size=32x96"])
    model = random_weights(build(recipe), std=0.05).eval()
    changed = tmp_path / "theirs.safetensors"
    convert(save(tmp_path, model, recipe), changed, project)
    if project == "huggingface":
        config = json.loads((changed / "config.json").read_text())
        assert config["image_size"] == [32, 96]
        check(model, load_file(changed / "model.safetensors"), LAYOUTS[project][Pretrain])
    else:
        save_file(load_file(changed), changed)  # as others write it
        with pytest.raises(ValueError, match=r"12 patches, which are no square, .* such as image_size=64x48 or 48x64$"):
            read(changed)
    back, found, _ = read(changed, settings=["image_size=32x96"] if project == "timm" else [])
    assert found.image_size == (32, 96) and torch.equal(back.encoder.pos_embed, model.encoder.pos_embed)
    if project == "huggingface":
        assert "positions resized from 2 x 6 to 6 x 2 patches" in read(changed, settings=["image_size=96x32"])[2]


@pytest.mark.slow
@pytest.mark.parametrize("project", ["timm", "huggingface"])
def test_a_rectangle_of_as_many_patches_as_a_square_is_read_back_as_it_was(tmp_path, project):
    recipe = override(get_recipe("vit_tiny"), ["size=micro", "image_size=32x128"])
    ours, theirs = save(tmp_path, build(recipe), recipe), tmp_path / "theirs.safetensors"
    convert(ours, theirs, project)
    back, found, _ = read(theirs)
    assert found.image_size == (32, 128) and torch.equal(back.encoder.pos_embed, load_file(ours)["encoder.pos_embed"])
    assert "positions resized from 2 x 8 to 4 x 4 patches" in read(theirs, settings=["image_size=64"])[2]
    if project == "huggingface":  # as others write it
        save_file(load_file(theirs / "model.safetensors"), theirs / "model.safetensors")
        assert read(theirs)[1].image_size == (32, 128)


def save(folder, model, recipe):
    save_weights(folder / "ours.safetensors", model.state_dict(), recipe, 1)
    return folder / "ours.safetensors"


@pytest.mark.slow
def test_a_conversion_resizes(tmp_path, capsys):
    recipe = override(get_recipe("vit_tiny"), ["size=micro", "image_size=32"])
    ours, timm = save(tmp_path, build(recipe), recipe), tmp_path / "timm.safetensors"
    status, out, _ = command(capsys, "convert", ours, timm, "--to", "timm", "image_size=64x32", "patch_size=8")
    assert status == 0 and "patches resized from 16 to 8 pixels; positions resized from 2 x 2 to 8 x 4 patches" in out
    tensors = load_file(timm)
    assert tensors["pos_embed"].shape == (1, 33, 128) and tensors["patch_embed.proj.weight"].shape[2:] == (8, 8)


@pytest.mark.slow
def test_slowfast_has_squares_only(tmp_path):
    model = build(override(get_recipe("vit_tiny"), ["image_size=32"]))
    slowfast_file(tmp_path / "file.pyth", model, VIT_CFG.replace("TRAIN_CROP_SIZE: 32", "TRAIN_CROP_SIZE: [32, 32]"))
    with pytest.raises(ValueError, match=r"the cfg of file is none that SlowFast writes .*'list'"):
        read(tmp_path / "file.pyth")
