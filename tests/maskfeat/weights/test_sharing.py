"""Folders for Hugging Face: the model card, and a run that starts from such a folder."""

import json

import pytest
import torch
import yaml
from test_train import SMALL

from maskfeat.build import build
from maskfeat.cli import main
from maskfeat.config import get_recipe, override
from maskfeat.weights.files import read_weights, save_weights
from maskfeat.weights.initialise import initialise


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run with a made-up log, and its folder for Hugging Face."""
    run, folder = tmp_path_factory.mktemp("secret") / "run", tmp_path_factory.mktemp("shared") / "hf"
    settings = [text for text in SMALL if text != "steps=4"] + ["steps=1", "mask_ratio=0.5", "knn=0", f"out={run}"]
    assert main(["pretrain", "vit_tiny", *settings, "val_data=synthetic"]) == 0
    log = [{"step": 20, "loss": 0.5}, {"step": 40, "val_loss": 0.25, "knn_accuracy": 0.75}, {"step": 60, "loss": 0.125}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"step": 80, "lo')
    assert main(["convert", str(run), str(folder), "--to", "huggingface"]) == 0
    return run, folder


def test_the_card_is_of_the_recipe_and_the_run(folders):
    run, folder = folders
    card = (folder / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers" and "license" not in yaml.safe_load(front)
    rows = ["| steps | 60 |", "| loss in training | 0.125 |", "| loss on held-out data | 0.25 |"]
    assert all(row in text for row in [*rows, "| accuracy of the nearest neighbours, held-out | 0.75 |"])
    assert "on `synthetic`" in text and "    mask_ratio=0.5\n" in text
    assert "secret" not in card and str(run.parent) not in card


@pytest.mark.slow
def test_paths_of_the_machine_stay_there(folders, tmp_path):
    weights, recipe = read_weights(folders[0])
    away = {"data": "/home/someone/photos|`x`", "init": "/home/someone/vit_b", "out": "/home/someone/out"}
    save_weights(tmp_path / "w.safetensors", weights, override(recipe, away), 1)
    assert main(["convert", str(tmp_path / "w.safetensors"), str(tmp_path / "hf"), "--to", "huggingface"]) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "/home" not in card and "on `photos  x `, from the weights `vit_b`" in card and "| steps |" not in card


@pytest.mark.slow
def test_a_run_starts_from_the_folder(folders):
    run, folder = folders
    weights, recipe = read_weights(run)
    model = build(recipe)
    assert initialise(model, folder) == "what predicts is new"
    encoder = {name: t for name, t in weights.items() if name.startswith("encoder.")}
    assert encoder and all(torch.equal(model.state_dict()[name], tensor) for name, tensor in encoder.items())
    size = [f"{key}={getattr(recipe, key)}" for key in ("image_size", "patch_size")]
    classifier = build(override(get_recipe("vit_tiny_ft"), size))
    initialise(classifier, folder)
    assert all(torch.equal(classifier.state_dict()[name.removeprefix("encoder.")], t) for name, t in encoder.items())


@pytest.mark.slow
def test_init_takes_a_checkpoint(folders):
    run, _ = folders
    weights, recipe = read_weights(run)
    model = build(recipe)
    initialise(model, next((run / "checkpoints").iterdir()))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
