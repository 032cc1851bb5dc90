"""Training on other than three channels, and that three are as they always were."""

import json
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from test_train import SMALL
from torch.nn.functional import conv2d

from maskfeat.build import build
from maskfeat.cli import main
from maskfeat.config import get_recipe, override
from maskfeat.data.loader import make_loader
from maskfeat.run.stats import measure
from maskfeat.run.step import part_loss, seed_everything
from maskfeat.weights.convert import convert, read
from maskfeat.weights.files import read_weights, save_weights, spread_channels
from maskfeat_kernels import fused_hog

TINY = [*SMALL, "patch_size=8", "mask_stride=8", "knn=0"]
FT = [text for text in TINY if not text.startswith(("mask", "knn"))]


AUGMENTED = ("rand_augment=m9-mstd0.5-inc1", "erasing=0.25", "mixup=0.8", "cutmix=1.0")


def step(name, *changes):
    """The pixels of a batch, and its loss."""
    recipe = override(get_recipe(name), ["samples=32", "batch_size=4", "precision=fp32", *changes])
    batch = next(iter(make_loader(recipe, "train", seed=3)))
    torch.manual_seed(5)
    model = build(recipe)
    loss = part_loss(model, batch, recipe, seed_everything(1, 0, 0, 0), torch.device("cpu"))
    loss.backward()
    return batch, model, loss.item()


@pytest.mark.parametrize(
    "name, changes, pixels, loss",
    [
        ("vit_tiny", ["size=micro", "target=hog+pixel"], 1608052850, 1.201838731765747),
        ("vit_tiny_ft", ["size=micro", *AUGMENTED], 4056585836, 2.302483558654785),
        pytest.param("mvit_tiny", ["size=tiny"], 4237795061, 0.39000120759010315, marks=pytest.mark.slow),
    ],
)
def test_three_channels_are_as_they_were(name, changes, pixels, loss):
    """As recorded before there were others. The last bits of the loss are those of one processor."""
    batch, _, got = step(name, *changes)
    assert zlib.crc32(batch["images"].numpy().tobytes()) == pixels
    assert got == pytest.approx(loss, rel=1e-6)


VIDEO = pytest.param("mvit_tiny", 4, marks=pytest.mark.slow)


@pytest.mark.parametrize("name, channels", [("vit_tiny", 1), ("vit_tiny", 13), ("vit_tiny_ft", 13), VIDEO])
def test_a_step_of_other_channels(name, channels):
    changes = [f"channels={channels}", "size=micro" if name.startswith("vit") else "size=tiny"]
    batch, model, loss = step(name, *changes, *(["rand_augment=m9-inc1"] if "ft" in name else []))
    assert batch["images"].shape[1] == channels and 0 < loss < 10
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    if name == "vit_tiny":
        target = model.targets[0](None, batch["images"], batch["masks"])
        assert target.shape[2] == channels * 36
        hog = fused_hog(batch["images"][0])  # [C, 9, 12, 12]
        row, column = divmod(int(batch["masks"].ids[0, 0]), 6)
        cells = hog[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(target[0, 0], cells.flatten())


def bands(folder, each=6, channels=13):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(2):
            (folder / split / str(label)).mkdir(parents=True)
            for i in range(each):
                values = rng.integers(0, 3000, (32, 32, channels), dtype=np.uint16)
                tifffile.imwrite(folder / split / str(label) / f"{i}.tif", values, planarconfig="contig")
    return folder


@pytest.mark.slow
def test_every_command_takes_thirteen_bands(tmp_path, capsys):
    data = bands(tmp_path / "data")
    assert main(["stats", str(data), "channels=13", "data_range=0,4095", "image_size=32", "workers=0"]) == 0
    printed = capsys.readouterr().out.split()
    assert [line.split("=")[0] for line in printed] == ["channels", "data_range", "mean", "std"]
    settings = [*TINY, f"data={data}", *printed]
    assert main(["pretrain", "vit_tiny", *settings, f"out={tmp_path / 'pt'}"]) == 0
    assert "13 x 32 x 32 pixels" in capsys.readouterr().err
    tuned = [*FT, f"data={data}", *printed, "classes=2", f"init={tmp_path / 'pt'}", "rand_augment=m9-inc1"]
    assert main(["finetune", "vit_tiny_ft", *tuned, f"out={tmp_path / 'ft'}"]) == 0
    assert "13 x 32 x 32 pixels; rand_augment changes each channel by itself, without" in capsys.readouterr().err
    for command in ("eval", "knn", "probe", "export", "show"):
        more = {"probe": ["--epochs", "1"], "export": ["--output", str(tmp_path / "features")]}.get(command, [])
        more = ["--output", str(tmp_path / "panel.png"), "--number", "2"] if command == "show" else more
        assert main([command, str(tmp_path / "pt"), *more]) == 0, command
    assert "bands 1, 2 and 3 of 13" in capsys.readouterr().err
    with Image.open(tmp_path / "panel.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 20
    assert main(["eval", str(tmp_path / "ft")]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 12


def test_stats_are_exact(tmp_path, capsys):
    data = bands(tmp_path, each=3, channels=2)
    changes = [f"data={data}", "channels=2", "data_range=0,255,0,3000", "image_size=32", "workers=0"]
    recipe = override(get_recipe("vit_tiny"), changes)
    found = measure(recipe)
    batches = make_loader(override(recipe, {"batch_size": 2}), "train", seed=0, augment=False)
    pixels = torch.cat([batch["images"] for batch in batches]).double() / 255
    assert found["mean"] == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-13)
    assert found["std"] == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-12)
    flat = override(recipe, ["data_range=-2,-1,0,3000"])
    assert measure(flat)["std"][0] == 1
    assert main(["stats", str(data), *changes[1:], "data_range=-0.5,123456789,0,4095.25"]) == 0
    assert "data_range=-0.5,123456789,0,4095.25" in capsys.readouterr().out.split()
    with pytest.raises(ValueError, match=r"no sample of .* could be read"):
        measure(override(recipe, {"data_range": ()}))


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 13])
def test_an_embedding_is_spread_as_timm_does(channels):
    """Written as timm's adapt_input_conv is; of one channel and multiples of three, gray gives what it gave."""
    weight, gray = torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    got = spread_channels(weight, channels)
    theirs = weight.sum(1, True) if channels == 1 else weight.repeat(1, 5, 1, 1)[:, :channels] * (3 / channels)
    assert torch.equal(got, theirs)
    if channels in (1, 6):
        expected = conv2d(gray.expand(-1, 3, -1, -1), weight)
        torch.testing.assert_close(conv2d(gray.expand(-1, channels, -1, -1), got), expected)
    with pytest.raises(ValueError, match="weights of 13 channels fit 13 or 1, got channels=4"):
        spread_channels(torch.zeros(1, 13, 2, 2), 4)


@pytest.mark.slow
def test_weights_of_three_channels_start_any_number(tmp_path, capsys):
    assert main(["pretrain", "vit_tiny", *TINY, f"out={tmp_path / 'rgb'}"]) == 0
    rgb = f"init={tmp_path / 'rgb'}"
    assert main(["pretrain", "vit_tiny", *TINY, rgb, "channels=13", f"out={tmp_path / 'pt'}"]) == 0
    err = capsys.readouterr().err
    assert "channels from 3 to 13: they are repeated" in err and "new: pred_head.projections.0.weight, pred_" in err
    assert main(["finetune", "vit_tiny_ft", *FT, rgb, "channels=1", "classes=10", f"out={tmp_path / 'ft'}"]) == 0
    assert "channels from 3 to 1: their sum" in capsys.readouterr().err
    for command in (["knn", "knn=3"], ["probe", "--epochs=1"], ["export", f"--output={tmp_path / 'features'}"]):
        assert main([command[0], str(tmp_path / "rgb"), "channels=4", "workers=0", *command[1:]]) == 0
        assert "channels from 3 to 4: they are repeated" in capsys.readouterr().err
    for command in ("eval", "show"):
        assert main([command, str(tmp_path / "rgb"), "channels=4"]) == 1
        assert "predicts 3 channels, got channels=4; pre-train with init=" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "ft"), "channels=3"]) == 0


@pytest.mark.parametrize("project", ["timm", "huggingface"])
def test_other_projects_have_as_many_channels(project, tmp_path):
    recipe = override(get_recipe("vit_tiny"), ["size=micro", "channels=13", "image_size=32"])
    model = build(recipe)
    save_weights(tmp_path / "ours.safetensors", model.state_dict(), recipe, 0)
    there = tmp_path / ("hf" if project == "huggingface" else "timm.safetensors")
    convert(tmp_path / "ours.safetensors", there, to=project)
    if project == "huggingface":
        assert json.loads((there / "config.json").read_text())["num_channels"] == 13
    back, found, _ = read(there)
    assert found.channels == 13 and len(found.mean) == 13
    assert torch.equal(back.encoder.patch_embed.proj.weight, model.encoder.patch_embed.proj.weight)
    assert read_weights(tmp_path / "ours.safetensors")[1].channels == 13


@pytest.mark.parametrize(
    "changes, message",
    [
        (["channels=0"], "channels must be at least 1, got 0"),
        (["channels=two"], "channels must be a whole number, as channels=10, got 'two'"),
        (
            ["channels=13", "mean=0.5,0.5"],
            "mean needs 13 numbers, got '0.5,0.5': one for each channel, as `maskfeat st",
        ),
        (["data_range=5"], "data_range must be black and white, such as 0,4095, .* got '5.0'"),
        (["data_range=9,1"], "data_range must be black and white, .* got '9.0,1.0'"),
        (["channels=13", "hog_gray=true"], "takes the brightness of 3 colours, got channels=13; set hog_gray=false"),
    ],
)
def test_recipes_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        override(get_recipe("vit_tiny"), changes)


def test_channels_of_which_nothing_is_said_have_the_mean_of_the_colours(caplog):
    recipe = override(get_recipe("vit_tiny"), ["channels=13", "std=" + ",".join(["0.2"] * 13)])
    assert recipe.mean == (0.449,) * 13 and recipe.std == (0.2,) * 13
    assert "channels=13: mean=0.449 of each; `maskfeat stats DATA channels=13` measures them" in caplog.text
