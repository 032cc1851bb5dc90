"""Training on the device of this machine: a GPU if there is one, and then with the losses of the CPU; else the CPU."""

import json
import math

import pytest
import torch
from test_train import losses, read_log, train_small

from maskfeat.cli import main

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILED = [False, True] if DEVICE == "cuda" else [False]  # inductor for a CPU is tested elsewhere, and takes long


@pytest.fixture(autouse=True)
def _float32_is_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def run(out, *changes, name="vit_tiny", device=DEVICE):
    train_small(out, f"device={device}", "eval_every=0", *changes, name=name)
    return losses(out)


@pytest.mark.parametrize("compile", COMPILED)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_losses_are_those_of_the_cpu(tmp_path, precision, compile):
    """Masks, crops and targets of both are the same: what differs is the order of sums, or bfloat16, over 4 steps."""
    found = run(tmp_path / "here", f"precision={precision}", "workers=1", f"compile={compile}")
    expected = run(tmp_path / "cpu", "precision=fp32", device="cpu")
    assert found == pytest.approx(expected, rel=1e-3 if precision == "fp32" else 2e-2)
    shares = [line["hog_share"] for line in read_log(tmp_path / "here") if "loss" in line]
    assert all(share is None if compile else 0 < share < 1 for share in shares)


@pytest.mark.parametrize("target", ["pixel", "hog+pixel"])
def test_other_targets(tmp_path, target):
    assert all(math.isfinite(loss) and loss > 0 for loss in run(tmp_path, f"target={target}", "mask_compat=slowfast"))


@pytest.mark.slow
def test_video(tmp_path):
    clips = ["precision=fp32", "steps=2", "depths=4", "batch_size=4"]
    found = run(tmp_path / "here", *clips, name="mvit_tiny")
    expected = run(tmp_path / "cpu", *clips, name="mvit_tiny", device="cpu")
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_run_that_was_cut_short_goes_on(tmp_path):
    """Half a run, and the same command for all of it: dropped paths, optimizer and masks go on where they were."""
    settings = ["drop_path=0.2", "recompute=true", "save_every=1"]
    whole = run(tmp_path / "whole", *settings)
    for folder in sorted((tmp_path / "whole" / "checkpoints").glob("step_*"))[-1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    (tmp_path / "whole" / "log.jsonl").unlink()
    assert run(tmp_path / "whole", *settings) == pytest.approx(whole[-1:], rel=1e-5)


@pytest.mark.slow
def test_all_that_follows_pretraining(tmp_path, capsys):
    """Evaluation, neighbours, a picture, a classifier from these weights, and its features: as they are typed."""
    small = ["size=micro", "image_size=32", "patch_size=8", "batch_size=8", "samples=32", "steps=2", "workers=1"]
    small.append(f"device={DEVICE}")
    pretrained, tuned = str(tmp_path / "pt"), str(tmp_path / "ft")
    commands = [
        ["pretrain", "vit_tiny", *small, "mask_stride=8", "knn=5", f"out={pretrained}"],
        ["eval", pretrained],
        ["knn", pretrained],
        ["show", pretrained, "--output", str(tmp_path / "panel.png")],
        ["finetune", "vit_tiny_ft", *small, "ema=0.9", f"init={pretrained}", f"out={tuned}"],
        ["eval", tuned],
        ["export", tuned, "--output", str(tmp_path / "features")],
    ]
    for command in commands:
        assert main(command) == 0, (command, capsys.readouterr().err)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert {"val_loss", "knn_accuracy", "top1"} <= {name for line in lines for name in line}
    assert (tmp_path / "panel.png").stat().st_size > 0
    assert any((tmp_path / "features").iterdir())
