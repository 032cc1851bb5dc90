"""What a run says: what it is when it begins, lines where there is no terminal, and logs of others."""

import io
import sys
import types

import media
import pytest
from test_train import read_log, small, train_small

from maskfeat.config import to_dict
from maskfeat.run.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_run_begins_with_what_it_is(tmp_path, capsys):
    train_small(tmp_path, "steps=2", "samples=24")
    first = capsys.readouterr().err.split("vit_tiny  step")[0]
    assert first.splitlines() == [
        "pretrain vit_tiny",
        "  data    synthetic: 24 samples to train on, 10 classes, 6 held out",
        "  input   3 x 32 x 32 pixels, 40% hidden by block masks",
        "  model   vit micro, 0.4 million parameters",
        "  device  cpu, fp32, processes: 1",
        "  steps   2, 0.666667 epochs of 3, 8 samples each",
        f"  out     {tmp_path}, with log.jsonl, weights.safetensors and checkpoints; begins",
    ]
    train_small(tmp_path, "steps=2", "samples=24")
    assert "goes on after step 2" in capsys.readouterr().err


def test_files_that_are_left_out_are_said(tmp_path, capsys):
    data = media.image_folder(tmp_path / "data", each=6)
    train_small(tmp_path / "run", "steps=1", "samples=8", f"data={data}", "eval_every=0")
    assert f"data    {data}: 8 of 12 samples to train on, 2 classes\n" in capsys.readouterr().err


def test_where_there_is_no_terminal_there_are_lines(tmp_path, capsys):
    train_small(tmp_path, "steps=2")
    text = capsys.readouterr().err
    assert "\r" not in text and "\x1b" not in text
    steps = [line for line in text.splitlines() if line.startswith("vit_tiny  step")]
    assert [line.split("  ")[1] for line in steps] == ["step 1 of 2", "step 2 of 2", "step 2 of 2"]
    assert "min left" in steps[0] and "loss" in steps[1] and "val_loss" in steps[2]


def test_a_terminal_has_one_line_that_moves(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(tmp_path, small(tmp_path), 0, 4)
    progress.advance()
    progress.log(1, loss=0.25)
    progress.close()
    assert "\r" in terminal.getvalue() and "loss 0.25" in terminal.getvalue()
    assert "step 1 of 4" not in terminal.getvalue()


def test_weights_and_biases_gets_the_log(tmp_path, monkeypatch):
    """A stand-in takes the calls of the package; a run that goes on has the same id."""
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    package = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", package)
    train_small(tmp_path, "steps=2", "wandb=masks")
    options = calls[0]
    assert options["project"] == "masks" and options["resume"] == "allow" and options["name"] == tmp_path.name
    assert options["config"] == to_dict(small(tmp_path, "steps=2", "wandb=masks"))
    sent = [{"step": step, **values} for step, values in calls[1:-1]]
    assert sent == [{k: v for k, v in line.items() if v is not None} for line in read_log(tmp_path)]
    assert calls[-1] == "end"
    Progress(tmp_path, small(tmp_path, "wandb=masks"), 0, 4)
    assert calls[-1]["id"] == options["id"]


def test_weights_and_biases_without_a_key_is_one_line(tmp_path, monkeypatch):
    def init(**options):
        raise RuntimeError("No API key configured. Use `wandb login` to log in.\nmore")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(ValueError, match=r"^wandb=masks: the package wandb says: No API key .* to log in\.$"):
        Progress(tmp_path, small(tmp_path, "wandb=masks"), 0, 4)


def test_lines_of_the_log_that_are_none_are_dropped(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2}\n5\n{"loss": 3}\n{"step": 2, "lo')
    assert Progress(tmp_path, small(tmp_path), 4, 8).last == {"step": 1, "loss": 2}
    assert read_log(tmp_path) == [{"step": 1, "loss": 2}]


@pytest.mark.parametrize("key", ["wandb=masks", "tensorboard=true"])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, key):
    name = key.split("=")[0]
    monkeypatch.setitem(sys.modules, {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}[name], None)
    with pytest.raises(ValueError, match=rf"{name}=\w+ needs the package {name}: pip install {name}"):
        train_small(tmp_path, key)
