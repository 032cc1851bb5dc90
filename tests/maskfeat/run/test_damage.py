"""Damage to checkpoints and weights is refused in one line; old files without checksums load and say so."""

import contextlib
import json
import random

import pytest
import torch
from safetensors.torch import save_file
from saved_checkpoint import RECIPE, RUN, legacy, loaded, refused, saved
from test_convert import VIT_CFG
from test_train import small, train_small

from maskfeat.cli import main
from maskfeat.config import describe
from maskfeat.run.checkpoint import find_checkpoint
from maskfeat.weights.convert import convert
from maskfeat.weights.files import read_weights, save_weights


def flips(number, files, seed=0):
    """Random places in files, and what is put there."""
    rng = random.Random(seed)
    for _ in range(number):
        file = rng.choice(files)
        place = rng.randrange(file.stat().st_size)
        yield file, place, rng.randrange(1, 256)


@contextlib.contextmanager
def flipped(file, place, bits):
    data = bytearray(file.read_bytes())
    data[place] ^= bits
    file.write_bytes(data)
    yield
    data[place] ^= bits
    file.write_bytes(data)


def one_line_about(path, error):
    return "\n" not in str(error) and str(path) in str(error)


def test_damage_anywhere_in_a_checkpoint_is_refused_or_changes_nothing(tmp_path, world):
    path, checkpoints = saved(tmp_path / "out", world)
    step, expected = loaded(checkpoints, path)
    assert step == 7 and expected["optimizer"] == {"lr": 0.5, "betas": (0.9, 0.95)}
    assert torch.equal(expected["model"]["weight"], torch.arange(12.0).view(3, 4))
    refusals, changed_nothing = 0, 0
    for file, place, bits in flips(200, sorted(path.iterdir())):
        with flipped(file, place, bits):
            try:
                again, state = loaded(checkpoints, path)
            except ValueError as error:
                refusals += one_line_about(path, error)
                continue
        assert again == step and state["optimizer"] == expected["optimizer"]
        assert torch.equal(state["model"]["weight"], expected["model"]["weight"])
        changed_nothing += 1
    assert refusals + changed_nothing == 200 and changed_nothing < 20  # the layout of run.json


@pytest.mark.parametrize(
    "old, new", [('"step": 7', '"step": 8'), ('"samples": 3', '"samples": 4'), ('"keep": 2', '"keep": 3')]
)
def test_another_number_in_run_json_is_refused(tmp_path, world, old, new):
    path, checkpoints = saved(tmp_path / "out", world)
    text = (path / "run.json").read_text()
    assert text.count(old) == 1
    (path / "run.json").write_text(text.replace(old, new))
    refused(lambda: loaded(checkpoints, path), "is damaged: run.json does not have its checksum")


def test_damage_anywhere_in_weights_is_refused_or_changes_nothing(tmp_path):
    file = tmp_path / "w.safetensors"
    weights = {"a": torch.randn(5, 7), "b": torch.arange(3), "c": torch.tensor(2.5, dtype=torch.bfloat16)}
    save_weights(file, weights, RECIPE, 3)
    refusals, changed_nothing = 0, 0
    for _, place, bits in flips(200, [file]):
        with flipped(file, place, bits):
            try:
                tensors, recipe = read_weights(file)
            except ValueError as error:
                refusals += one_line_about(file, error)
                continue
        assert recipe == RECIPE and tensors.keys() == weights.keys()
        assert all(torch.equal(tensors[name], weights[name]) for name in weights)
        changed_nothing += 1
    assert refusals + changed_nothing == 200 and changed_nothing < 20  # the name of the checksum, spaces


def test_old_checkpoints_without_checksums_load_and_say_so(tmp_path, world, caplog):
    """Damage to them is one line where torch notices it."""
    path, checkpoints = saved(tmp_path / "out", world)
    (path / "run.json").write_text(json.dumps(legacy(path)))
    step, state = loaded(checkpoints, path)
    assert step == 7 and state["model"]["weight"].sum() == 66
    assert "written without checksums" in caplog.text
    data = path / "__0_0.distcp"
    whole = data.read_bytes()
    data.write_bytes(whole.replace(b"PK\x03\x04", b"PK\x07\x04"))
    refused(lambda: loaded(checkpoints, path), "cannot be read: ")
    data.write_bytes(whole)
    for _, place, bits in flips(30, [path / ".metadata"]):
        with flipped(path / ".metadata", place, bits), contextlib.suppress(ValueError):
            loaded(checkpoints, path)


def test_old_weights_without_a_checksum_load_and_say_so(tmp_path, caplog):
    metadata = {"format": "pt", "recipe": json.dumps(RUN["recipe"])}
    save_file({"a": torch.ones(3)}, tmp_path / "old.safetensors", metadata)
    assert read_weights(tmp_path / "old.safetensors")[0]["a"].sum() == 3
    assert "written without a checksum" in caplog.text


def test_a_damaged_checkpoint_is_one_line_of_the_command(tmp_path, capsys):
    train_small(tmp_path, "steps=1", "eval_every=0")
    file = find_checkpoint(tmp_path) / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[5_000_000:5_000_040] = bytes(byte ^ 0x55 for byte in data[5_000_000:5_000_040])
    file.write_bytes(data)
    settings = [line.split("#")[0].strip() for line in describe(small(tmp_path, "steps=1")).splitlines()[1:]]
    capsys.readouterr()
    assert main(["pretrain", "vit_tiny", *settings]) == 1
    error = capsys.readouterr().err
    assert "is damaged: __0_0.distcp does not have its checksum; remove it to use an older one" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        {"model_state": 3, "cfg": VIT_CFG},
        {"model_state": {"a": "text"}, "cfg": VIT_CFG},
        {"model_state": {"a": torch.zeros(1)}, "cfg": "MODEL: {}"},
        {"model_state": {"a": torch.zeros(1)}, "cfg": None},
        {"model_state": {"a": torch.zeros(1)}, "cfg": "[" * 2000},
        {"state_dict": [torch.zeros(1)]},
        {"epoch": 3},
        {},
    ],
)
def test_files_of_torch_that_hold_something_else(tmp_path, content):
    torch.save(content, tmp_path / "file.pyth")
    refused(lambda: convert(tmp_path / "file.pyth", tmp_path / "out.safetensors"), "file")
