"""The command, as it is typed."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_train import SMALL
from torch.utils.data import DataLoader

from maskfeat.cli import main
from maskfeat.config import RECIPES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pre-trained model and a classifier on it."""
    folder = tmp_path_factory.mktemp("cli")
    settings = [text for text in SMALL if text != "steps=4"] + ["patch_size=8", "steps=1"]
    assert main(["pretrain", "vit_tiny", *settings, "mask_stride=8", "knn=0", f"out={folder / 'pt'}"]) == 0
    assert main(["finetune", "vit_tiny_ft", *settings, f"init={folder / 'pt'}", f"out={folder / 'ft'}"]) == 0
    return folder


def command(capsys, *arguments):
    """Exit status, output and errors."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "maskfeat", "recipes"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(RECIPES)


def test_recipes(capsys):
    status, out, _ = command(capsys, "recipes", "mvit_s_k400")
    assert status == 0 and out.startswith("maskfeat pretrain mvit_s_k400\n") and "mask=cube" in out


def test_evaluations(run, capsys):
    status, out, _ = command(capsys, "eval", run / "pt", "samples=16")
    assert status == 0 and json.loads(out)["val_loss"] > 0
    status, out, _ = command(capsys, "eval", run / "ft" / "weights.safetensors", "samples=16", "workers=0")
    assert status == 0 and json.loads(out)["samples"] == 4
    for folder in ("pt", "ft"):
        status, out, _ = command(capsys, "knn", run / folder, "knn=3", "knn_samples=8")
        assert status == 0 and 0 <= json.loads(out)["knn_accuracy"] <= 1


def test_show(run, tmp_path, capsys):
    status, out, _ = command(capsys, "show", run / "pt", "--output", tmp_path / "panel.png", "--number", 3)
    assert status == 0 and out.strip() == str(tmp_path / "panel.png")
    with Image.open(tmp_path / "panel.png") as picture:
        assert picture.width > 4 * 32 and picture.height > 3 * 32


def test_export(run, tmp_path, capsys):
    """What detectors read: the outputs of the last block on its grid, of the encoder and of the classifier's trunk."""
    for folder in ("pt", "ft"):
        status, out, _ = command(capsys, "export", run / folder, "samples=8", "--output", tmp_path / folder)
        assert status == 0 and out.strip() == str(tmp_path / folder)
        saved = load_file(tmp_path / folder / "batch_000000.safetensors")
        assert saved["features"].shape == (2, 192, 4, 4) and saved["labels"].tolist() == [0, 1]
        assert saved["indices"].tolist() == [0, 1]
    status, _, err = command(capsys, "export", run / "pt", "samples=8", "--output", tmp_path / "pt")
    assert status == 1 and f"{tmp_path / 'pt'} holds features already; choose another --output" in err


def test_convert(run, tmp_path, capsys):
    status, out, _ = command(capsys, "convert", run / "pt", tmp_path / "timm.safetensors", "--to", "timm")
    assert status == 0 and "read back" in out and (tmp_path / "timm.safetensors").exists()
    status, out, _ = command(capsys, "convert", tmp_path / "timm.safetensors", tmp_path / "ours.safetensors")
    assert status == 0 and "ViT tiny of timm, " in out and out.count("read back") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["pretrain", "vit_tinny"], "there is no recipe 'vit_tinny'; did you mean 'vit_tiny'?"),
        (["pretrain", "vit_tiny", "epoch=3"], "vit_tiny has no key 'epoch'; did you mean 'epochs'?"),
        (["pretrain", "vit_tiny_ft"], "vit_tiny_ft is a recipe of `maskfeat finetune`"),
        (["eval", "/nowhere"], "there are no weights /nowhere"),
        (["show", "FT"], "show needs a pre-trained model"),
        (["convert", "/nowhere", "out.safetensors"], "there is no file /nowhere"),
    ],
)
def test_mistakes_are_one_line(run, capsys, arguments, message):
    status, out, err = command(capsys, *[run / "ft" if argument == "FT" else argument for argument in arguments])
    assert status == 1 and out == "" and err.startswith("maskfeat: ") and message in err and err.count("\n") == 1
    with pytest.raises((ValueError, OSError)):
        main(["--traceback", *[str(run / "ft") if argument == "FT" else argument for argument in arguments]])


@pytest.mark.parametrize(
    "error, message",
    [
        (MemoryError("Unable to allocate 19.0 TiB for an array"), "out of memory (Unable to allocate 19.0 TiB)"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes. Error"),
            "out of memory (tried to allocate 64 bytes); use a smaller batch_size",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. See\ndocumentation for advice"),
            "out of memory (CUDA out of memory. Tried to allocate 2 GiB. See); use a smaller batch_size",
        ),
        (
            torch.distributed.DistNetworkError("The server socket has failed to listen. port: 29500\nException raised"),
            "the ranks did not meet at node0:29500 (The server socket has failed to listen. port: 29500); start them",
        ),
    ],
)
def test_what_the_machine_lacks_is_one_line(monkeypatch, capsys, error, message):
    def fail(_):
        raise error

    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr("maskfeat.run.train.train", fail)
    status, _, err = command(capsys, "pretrain", "vit_tiny")
    assert status == 1 and err.startswith(f"maskfeat: {message}") and err.count("\n") == 1


def test_a_picture_that_cannot_be_made_is_refused_before_the_work(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("maskfeat.run.evaluate.evaluate_model", lambda *_, **__: pytest.fail("it worked first"))
    for arguments, message in (
        (["eval", run / "ft", "--confusion", tmp_path], f"{tmp_path} is a folder; name a file"),
        (["eval", run / "ft", "--confusion", tmp_path / "file" / "x.png"], "is no folder that can be written to"),
        (["eval", run / "pt", "--confusion", "x.png"], "--confusion needs a classifier"),
        (["show", run / "pt", "--output", tmp_path], f"{tmp_path} is a folder; name a file"),
    ):
        status, out, err = command(capsys, *arguments)
        assert status == 1 and out == "" and message in err and err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = command(capsys, "eval", run / "ft", "--confusion", tmp_path / "x.png")
    assert status == 1 and out == "" and "need matplotlib: pip install matplotlib" in err and err.count("\n") == 1


def test_modes_follow_the_umask(run, tmp_path):
    (tmp_path / "file").touch()
    modes = {False: (tmp_path / "file").stat().st_mode, True: (run / "pt").stat().st_mode}
    found = [path for path in run.rglob("*") if path.stat().st_mode != modes[path.is_dir()]]
    assert found == [] and len(list(run.rglob("*.distcp"))) > 1


def test_options_and_settings_come_in_any_order(run, tmp_path, capsys):
    output, weights, setting = ["--output", "PNG"], run / "pt", "samples=8"
    orders = ([*output, weights, setting], [weights, setting, *output], [weights, *output, setting])
    for i, order in enumerate(orders):
        picture = tmp_path / f"{i}.png"
        status, out, _ = command(capsys, "show", *[picture if word == "PNG" else word for word in order])
        assert status == 0 and picture.exists() and out.strip() == str(picture)
    for words in (
        ["show", run / "pt", "--outptu", "x"],
        ["recipes", "vit_tiny", "lr=1"],
        ["show", run / "pt", "--x=1"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        assert stopped.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err


def test_a_command_that_does_not_exist(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train"])
    assert stopped.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_advice_of_torch_on_workers_is_not_printed(capsys):
    with warnings.catch_warnings():
        main(["recipes"])
        DataLoader([0], num_workers=64)


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("maskfeat.run.train.train", interrupt)
    status, _, err = command(capsys, "pretrain", "vit_tiny")
    assert status == 130 and "same command again" in err
