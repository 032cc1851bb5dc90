"""The experiment on photographs in miniature: every step of it, that it goes on where it was, and that bits repeat."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.photographs.__main__ import repeat
from examples.photographs.runs import Runs
from examples.photographs.settings import ARMS, Settings

torch.set_num_threads(1)
CLASSES = [f"class {i}" for i in range(10)]
MINIATURE = dict(seeds=(1,), pretrain_epochs=1, finetune_epochs=2, few=4, few_epochs=1, pilot_epochs=1, evaluations=1)
MINIATURE |= dict(pretrain_rates=(1e-3, 1e38), finetune_rates=(1e-3,))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty pictures to train on and twenty held out, of ten plain colours in noise."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, each in {"train": 4, "val": 2}.items():
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 156, (40, 40, 3)) + 10 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return str(folder)


def miniature(data, folder, said=None, **changes):
    settings = Settings(**MINIATURE | changes)
    small = dict(settings.model, image_size=32), dict(settings.run, batch_size=8, save_every=100)
    settings = dataclasses.replace(settings, model=small[0], run=small[1])
    return Runs(settings, data, folder / "out", folder / "results", (said if said is not None else []).append)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    miniature(data, folder).make_all()
    return folder


def read(folder, name):
    return json.loads((folder / "results" / f"{name}.json").read_text())


def test_every_arm_leaves_a_pilot_and_a_result(finished):
    files = {f"{arm}_{which}.json" for arm in ARMS for which in ("pilot", 1)}
    assert {file.name for file in (finished / "results").iterdir()} == files
    for arm in ARMS:
        found = read(finished, f"{arm}_1")
        assert ("pretrain" in found) == (arm != "none") and found["seed"] == 1 and found["instructions"]
        answers = np.unpackbits(np.frombuffer(bytes.fromhex(found["finetune"]["right"]), np.uint8))[:20]
        assert answers.mean() == pytest.approx(found["finetune"]["top1"]) and found["finetune"]["photographs"] == 20
        assert found["finetune"]["steps"] == 10 and found["few"]["steps"] == 1
        assert set(found["frozen"]) == {"linear", "knn"}


def test_the_pilot_tries_as_many_rates_for_every_arm_and_passes_over_those_that_diverge(finished):
    for arm in ARMS[1:]:
        pilot = read(finished, f"{arm}_pilot")
        assert len(pilot["tries"]["pretrain"]) == 2 and len(pilot["tries"]["finetune"]) == 1
        assert pilot["tries"]["pretrain"]["1e+38"] == math.inf and pilot["chosen"]["pretrain"] == 1e-3
    assert "pretrain" not in read(finished, "none_pilot")["tries"]


def test_only_what_is_missing_is_made_and_with_the_same_bits(data, finished, tmp_path):
    """Results travel, as a later call on another machine has them; trainings do not."""
    kept = {}
    for file in (finished / "results").iterdir():
        kept[file.name] = file.read_text()
        if file.name != "hog_1.json":
            (tmp_path / "results").mkdir(exist_ok=True)
            (tmp_path / "results" / file.name).write_text(file.read_text())
    said = []
    runs = miniature(data, tmp_path, said)
    assert runs.missing() == [("hog", 1)]
    runs.make_all()
    assert runs.missing() == [] and said[0].startswith("hog, seed 1: 1 of 4 runs are left")
    again, before = read(tmp_path, "hog_1"), json.loads(kept["hog_1.json"])
    for part in ("pretrain", "finetune", "few"):
        assert again[part]["weights"] == before[part]["weights"] and again[part]["losses"] == before[part]["losses"]
    assert again["frozen"] == before["frozen"]
    assert repeat(runs, "hog", 1) == 0
    before["finetune"]["weights"] = "other"
    runs.file("hog", 1).write_text(json.dumps(before))
    assert repeat(runs, "hog", 1) == 1


def test_what_another_process_makes_is_left_to_it(data, tmp_path):
    runs, other = miniature(data, tmp_path), miniature(data, tmp_path)
    with other.locked("none_1") as first, runs.locked("none_1") as second:
        assert first and not second


def test_the_protocol_has_the_numbers_of_the_settings():
    settings = Settings()
    text = " ".join((Path(sys.modules[Runs.__module__].__file__).parent / "PROTOCOL.md").read_text().split())
    batches = f"epochs in batches of {settings.run['batch_size']}"
    assert f"Pre-training takes {settings.pretrain_epochs} {batches}" in text
    assert f"Fine-tuning of all weights takes {settings.finetune_epochs} {batches}" in text
    assert f"({settings.few_epochs} passes over these)" in text and "Seeds 1, 2, 3 and 4." in text
    assert settings.seeds == (1, 2, 3, 4) and settings.pilot_epochs == 5 and "five epochs each" in text
    assert settings.finetune_rates == (5e-4, 1e-3, 2e-3) and settings.pretrain_rates == (1e-3, 2e-3, 4e-3)
