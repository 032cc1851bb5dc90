"""ViTs of timm by name, on the command line."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from maskfeat.build import build
from maskfeat.cli import main
from maskfeat.config import from_dict, get_recipe, override
from maskfeat.run.checkpoint import find_checkpoint
from maskfeat.weights.initialise import initialise

NAME = "vit_tiny_patch16_dinov3_qkvb"
TINY = ["data=synthetic", "samples=16", "batch_size=8", "image_size=32", "knn=0", "workers=0", "steps=1"]


@pytest.fixture(scope="module")
def timm():
    import timm

    return timm


def lines(capsys, *arguments):
    """Exit status and what stands on stderr."""
    capsys.readouterr()
    return main([*arguments]), capsys.readouterr().err


def recipe_of(name, *settings, start="vit_tiny"):
    return override(get_recipe(start), [f"encoder=timm:{name}", "image_size=32", *settings])


@pytest.mark.slow
def test_a_run_writes_the_version_of_timm_and_goes_on_with_it_alone(timm, tmp_path, capsys, monkeypatch):
    run = ["pretrain", "vit_tiny", f"encoder=timm:{NAME}", *TINY, "channels=1", f"out={tmp_path / 'run'}"]
    assert main(run) == 0 and f"model   timm:{NAME}, " in capsys.readouterr().err
    written = json.loads((find_checkpoint(tmp_path / "run") / "run.json").read_text())
    assert written["timm"] == timm.__version__ and from_dict(written["recipe"]).encoder == f"timm:{NAME}"
    monkeypatch.setattr(timm, "__version__", "0.9.16")
    status, err = lines(capsys, *run)
    assert status == 1 and err.count("\n") == 1
    there = written["timm"]
    assert f"was trained with timm {there}, and here is timm 0.9.16; pip install timm=={there}, or " in err
    assert main([*run, "change=timm", "extend=true", "steps=2"]) == 0
    capsys.readouterr()
    status, err = lines(capsys, *run[:2], "encoder=timm:vit_tiny_patch16_224", *run[3:])
    assert status == 1 and f"encoder=timm:{NAME} there and timm:vit_tiny_patch16_224 here" in err

    tuned = ["finetune", "vit_tiny_ft", f"encoder=timm:{NAME}", *TINY, "channels=1", f"init={tmp_path / 'run'}"]
    assert main([*tuned, f"out={tmp_path / 'tuned'}"]) == 0
    assert "top1" in json.loads(capsys.readouterr().out)
    for command in ("eval", "knn"):  # with "samples", which are few here
        assert main([command, str(tmp_path / "tuned"), "knn=2"]) == 0


@pytest.mark.parametrize(
    "settings, message",
    [
        (["encoder=timm:vit_tiny_patch16_dinov3"], f"has no model 'vit_tiny_patch16_dinov3'; the nearest are {NAME}, "),
        (["encoder=timm:hf-hub:someone/something"], "has no model 'hf-hub:someone/something'"),
        (["encoder=timm:resnet18"], "timm's resnet18 cannot be the encoder here"),
        (["encoder=timm:vit_small_patch14_dinov2"], "not a multiple of the 14 pixels of a token; set mask_stride=14"),
        (["encoder=timm:"], "encoder must be one of 'vit', 'mvit', 'timm:NAME', got 'timm:'"),
        (["encoder=vitt"], "encoder must be one of 'vit', 'mvit', 'timm:NAME', got 'vitt'; did you mean 'vit'?"),
        ([f"encoder=timm:{NAME}", "size=small"], "a ViT of timm has its own size; leave out size=small"),
        ([f"encoder=timm:{NAME}", "frames=4"], f"timm:{NAME} reads images, not clips"),
    ],
)
def test_what_cannot_be_is_one_line(timm, tmp_path, capsys, settings, message):
    status, err = lines(capsys, "pretrain", "vit_tiny", *TINY, f"out={tmp_path}", *settings)
    assert status == 1 and message in err and err.count("\n") == 1 and err.startswith("maskfeat: ")


def test_without_timm_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    status, err = lines(capsys, "pretrain", "vit_tiny", *TINY, f"out={tmp_path}", f"encoder=timm:{NAME}")
    assert status == 1 and "needs timm: pip install timm" in err and err.count("\n") == 1


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", [NAME, "vit_tiny_patch16_224"])
def test_weights_of_timm_start_it_from_a_local_file(timm, tmp_path, name):
    theirs = timm.create_model(name, img_size=32, num_classes=10).eval()
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    pixels = torch.randn(2, 3, 32, 32)
    expected = theirs.forward_intermediates(pixels, norm=False, intermediates_only=True, output_fmt="NLC")[-1]
    for file in ("theirs.safetensors", "theirs.pth"):
        model = build(recipe_of(name)).eval()
        initialise(model, tmp_path / file)
        [(x, _)] = model.encoder.encode(*model.encoder.embed(pixels), (11,))
        torch.testing.assert_close(x[:, model.encoder.num_prefix_tokens :], expected)
    classifier = build(recipe_of(name, "classes=7", start="vit_tiny_ft")).eval()
    initialise(classifier, tmp_path / "theirs.pth")
    assert classifier(pixels).shape == (2, 7)
    other = build(recipe_of("deit_tiny_distilled_patch16_224"))
    with pytest.raises(ValueError, match="do not fit the model; missing: "):
        initialise(other, tmp_path / "theirs.pth")


def test_positions_of_timm_are_resized(timm, tmp_path):
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", img_size=64)  # has two tokens before the patches
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    model = build(recipe_of("deit_tiny_distilled_patch16_224", "channels=1"))
    initialise(model, tmp_path / "theirs.safetensors")
    expected = timm.layers.resample_abs_pos_embed(theirs.pos_embed, [2, 2], num_prefix_tokens=2)
    torch.testing.assert_close(model.encoder.vit.pos_embed, expected)
    patch = theirs.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(model.encoder.vit.patch_embed.proj.weight, patch)
