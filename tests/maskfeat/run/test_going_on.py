"""A run goes on with more epochs, another rate or other data, if that is asked for by name; its best weights stay."""

import math
import re
import shutil

import media
import pytest
import torch
from test_train import read_log, small, train_small

from maskfeat.cli import main
from maskfeat.run.checkpoint import find_checkpoint
from maskfeat.run.distributed import join
from maskfeat.run.train import Trainer
from maskfeat.weights.checkpoints import read_model
from maskfeat.weights.files import read_weights, save_if_best

EPOCHS = ["steps=0", "samples=32", "warmup_epochs=0.5", "save_every=1", "keep=9"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two epochs of four steps."""
    folder = tmp_path_factory.mktemp("going_on") / "run"
    train_small(folder, *EPOCHS, "epochs=2", "lr=1e-3")
    return folder


def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def test_more_epochs_are_refused_and_then_extended(run, tmp_path, capsys):
    out = copy(run, tmp_path)
    with pytest.raises(ValueError, match=r"epochs=2 there and 3 here; choose another out, .*, or add extend=true$"):
        train_small(out, *EPOCHS, "epochs=3", "lr=1e-3")
    capsys.readouterr()
    train_small(out, *EPOCHS, "epochs=3", "lr=1e-3", "extend=true")
    assert "changed epochs 2 -> 3" in capsys.readouterr().err
    log = read_log(out)
    assert [line["step"] for line in log if "loss" in line] == list(range(1, 13))
    (told,) = [line for line in log if "total_steps" in line]
    longer = rates(small(tmp_path / "other", *EPOCHS, "epochs=3", "lr=1e-3"), (8, 11))
    assert told == {"step": 8, "total_steps": 12, "lr": pytest.approx(longer[0])}
    assert log[-2]["lr"] == pytest.approx(longer[1]), "the schedule is that of the longer run"


def rates(recipe, steps):
    with join("cpu") as world:
        trainer = Trainer(recipe, world)
        return [trainer.learning_rate(step) for step in steps]


def test_a_run_does_not_become_shorter_than_it_is(run, tmp_path):
    with pytest.raises(
        ValueError, match=r"has made 8 steps, and this recipe ends after 4; extend it to steps=8 or epochs=2"
    ):
        train_small(copy(run, tmp_path), *EPOCHS, "epochs=1", "lr=1e-3", "extend=true")


def test_another_rate_by_name(run, tmp_path):
    out, longer = copy(run, tmp_path), [*EPOCHS, "epochs=3", "extend=true"]
    with pytest.raises(ValueError, match=r"lr=0\.001 there and 0\.002 here; .*, or add change=lr$"):
        train_small(out, *longer, "lr=2e-3")
    train_small(out, *longer, "lr=2e-3", "change=lr")
    logged = [line["lr"] for line in read_log(out) if "loss" in line]
    assert logged[8:] == pytest.approx(rates(small(tmp_path / "other", *longer, "lr=2e-3"), range(8, 12)))


@pytest.mark.slow
def test_other_data_by_name(tmp_path):
    folders = [tmp_path / name for name in ("first", "second")]
    for number, folder in zip((16, 24), folders, strict=True):
        for split in ("train", "val"):
            for i in range(number):
                media.write_image(folder / split / str(i % 2) / f"{i}.png", i)
    options = ["samples=0", "steps=4", "keep=9", "save_every=1"]
    train_small(tmp_path / "run", *options, f"data={folders[0]}")
    longer = [*options[:1], "steps=6", *options[2:], f"data={folders[1]}", "extend=true"]
    with pytest.raises(
        ValueError, match=r"16 samples, and .* now has 24; choose another out, the same data, or change=data"
    ):
        train_small(tmp_path / "run", *longer)
    best = tmp_path / "run" / "best.safetensors"
    save_if_best(best, {}, small(tmp_path, "keep_best=val_loss"), 2, {"val_loss": 0.0})
    train_small(tmp_path / "run", *longer, "change=data", "keep_best=val_loss")
    assert read_log(tmp_path / "run")[-1]["step"] == 6
    assert read_weights(best)[0], "the best on other data is not the best on these"


def test_what_is_not_named_stays_refused(run, tmp_path):
    with pytest.raises(
        ValueError, match=r"mask_ratio=0\.4 there and 0\.6 here; choose another out, or the same settings$"
    ):
        train_small(run, *EPOCHS, "epochs=2", "lr=1e-3", "mask_ratio=0.6", "extend=true", "change=lr,data")
    with pytest.raises(ValueError, match="change must be one of 'lr', 'data', 'timm', got 'dta'; did you mean 'data'"):
        small(tmp_path, "change=dta")


def test_the_best_weights_stay(tmp_path):
    """Of a measure that rises and falls, those of its best; a later call knows it."""
    out = tmp_path / "run"
    train_small(out, *EPOCHS, "epochs=4", "lr=3e-2", "clip_grad=0", "keep_best=val_loss")
    found = {line["step"]: line["val_loss"] for line in read_log(out) if "val_loss" in line}
    best = min(found, key=found.get)
    weights, _ = read_weights(out / "best.safetensors")
    there, _ = read_model(out / "checkpoints" / f"step_{best:08d}")
    assert weights.keys() == there.keys() and all(torch.equal(weights[name], there[name]) for name in weights)
    before = (out / "best.safetensors").read_bytes()
    train_small(out, *EPOCHS, "epochs=5", "lr=3e-2", "clip_grad=0", "keep_best=val_loss", "extend=true")
    last = read_log(out)[-1]["val_loss"]
    assert ((out / "best.safetensors").read_bytes() == before) is (last >= found[best])


def test_a_measure_that_a_run_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_best must be one of 'val_loss' here, got 'top1'"):
        train_small(tmp_path, "keep_best=top1")
    with pytest.raises(ValueError, match="keep_best=top1 needs evaluations; set eval_every=1 or more, got 0"):
        small(tmp_path, "keep_best=top1", "eval_every=0")
    with pytest.raises(ValueError, match="keep_best must be one of 'val_loss', 'top1' here, got 'knn_accuracy'"):
        small(tmp_path, "keep_best=knn_accuracy", name="vit_tiny_ft")
    changes = ["keep_best=knn_accuracy", "knn=3", "data=skimage"]
    with join("cpu") as world, pytest.raises(ValueError, match="keep_best=knn_accuracy needs labels, and 'skimage'"):
        Trainer(small(tmp_path, *changes), world)


def test_the_best_is_a_number_and_of_this_run(tmp_path):
    """A loss that is none gives way to any; weights of a later step are those of a run that was there before."""
    path, recipe = tmp_path / "best.safetensors", small(tmp_path, "keep_best=val_loss")
    for step, (loss, kept) in enumerate([(math.nan, 0), (0.5, 1), (0.7, 1), (math.nan, 1), (0.4, 4)]):
        save_if_best(path, {"step": torch.tensor(float(step))}, recipe, step, {"val_loss": loss})
        assert read_weights(path)[0]["step"] == kept
    save_if_best(path, {"step": torch.tensor(99.0)}, recipe, 99, {"val_loss": 0.0})
    train_small(tmp_path, "steps=1", "keep_best=val_loss", "samples=8")
    assert "step" not in read_weights(path)[0]


@pytest.mark.parametrize("command", ["eval", "knn", "show", "export", "convert"])
def test_commands_read_a_checkpoint(run, tmp_path, capsys, command):
    step = find_checkpoint(run)
    output = tmp_path / ("out.safetensors" if command == "convert" else "out")
    words = {"convert": [output], "show": ["--output", f"{output}.png"], "export": ["--output", output]}.get(
        command, []
    )
    said = []
    for source in (step, run):
        settings = [] if command == "convert" else ["samples=8", "batch_size=8"]
        assert main([command, str(source), *map(str, words), *settings]) == 0
        said.append(capsys.readouterr().out.replace(str(step), str(run)))
        if command == "export":
            shutil.rmtree(output)  # no folder is written over
    assert said[0] == said[1]


def test_a_damaged_checkpoint_is_no_source_of_weights(run, tmp_path, capsys):
    step = find_checkpoint(copy(run, tmp_path))
    file = next(step.glob("*.distcp"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert main(["eval", str(step)]) == 1
    assert re.search("maskfeat: the checkpoint .* is damaged", capsys.readouterr().err)
